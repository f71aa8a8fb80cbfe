"""A callback for PyTorch Lightning: `Trainer(callbacks=[GradmedicCallback()])`.

Lightning steps the optimizers that `Run.watch` observes, and clips with torch's functions. So `Run.watch` measures the
gradients before clipping, and the callback only logs each step with its loss.
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from torch import Tensor

import gradmedic

_RESERVED = frozenset({"loss", "loss_step", "loss_epoch"})
"""Metrics that repeat the loss."""


class GradmedicCallback(pl.Callback):
    """Reports a training to gradmedic.

    Args:
        project: Project that owns the run.
        run: A run that the script has started. The callback does not finish it. Without it, each fit starts a run.
        activations: Whether to measure activations too; see `gradmedic.Run.watch`.
        init: Further arguments of `gradmedic.init`. The default `config` holds the module's hyperparameters.
    """

    def __init__(
        self, project: str | None = None, *, run: gradmedic.Run | None = None, activations: bool = False, **init: Any
    ) -> None:
        self.run = run
        """The run of the current fit, or of the last one."""
        self._is_own = run is None
        self._arguments = {"project": project, **init}
        self._activations = activations
        self._last_step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start a run and watch the module's optimizers."""
        if self._is_own:
            arguments = {"config": dict(pl_module.hparams), **self._arguments}
            self.run = gradmedic.init(**arguments)
        if self.run is None:
            return
        self._last_step = trainer.global_step
        if trainer.global_step > 0:  # Lightning resumed from a checkpoint
            self.run.rewind(trainer.global_step - 1)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self.run.watch(pl_module, trainer.optimizers, scaler=scaler, activations=self._activations)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log a step. A batch that was only accumulated is no step."""
        if self.run is None or trainer.global_step == self._last_step:
            return
        self._last_step = trainer.global_step
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        metrics = {name: value for name, value in trainer.callback_metrics.items() if name not in _RESERVED}
        self.run.log(
            loss=loss if isinstance(loss, (Tensor, float)) else None, step=trainer.global_step - 1, metrics=metrics
        )

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Finish the run: as failed, or as finished if gradmedic stopped it."""
        is_stop = isinstance(exception, gradmedic.RunStoppedError)
        self._finish("finished" if is_stop else "failed")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Finish the run."""
        self._finish("finished")

    def _finish(self, status: str) -> None:
        if self._is_own and self.run is not None:
            self.run.finish(status=status)
