"""A callback for the Trainer of Hugging Face Transformers: `Trainer(..., callbacks=[GradmedicCallback()])`.

The Trainer calls its hook before the optimizer's step only after clipping, and it reports losses as averages over many
steps. So `Run.watch` measures the gradients where torch clips them, and a forward hook reads the loss of each batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

import gradmedic
from gradmedic.protocol.statistics import SERIES, STATISTICS

_RESERVED = frozenset({"loss", *SERIES, *STATISTICS})
"""Names in the Trainer's logs that gradmedic uses itself."""


class GradmedicCallback(TrainerCallback):
    """Reports a training to gradmedic.

    Args:
        project: Project that owns the run.
        run: A run that the script has started. The callback does not finish it. Without it, each training starts a run.
        activations: Whether to measure activations too; see `gradmedic.Run.watch`.
        init: Further arguments of `gradmedic.init`. The default `config` holds the training's arguments.
    """

    def __init__(
        self, project: str | None = None, *, run: gradmedic.Run | None = None, activations: bool = False, **init: Any
    ) -> None:
        self.run = run
        """The run of the current training, or of the last one."""
        self._is_own = run is None
        self._arguments = {"project": project, **init}
        self._activations = activations
        self._losses = _Losses()
        self._metrics: dict[str, float] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start a run and watch the model and its optimizer."""
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        if self._is_own:
            config = {
                **args.to_dict(),  # type: ignore[no-untyped-call]
                "model_type": getattr(getattr(model, "config", None), "model_type", None),
            }
            self.run = gradmedic.init(**{"config": config, **self._arguments})
        if self.run is None:
            return
        if state.global_step > 0:  # the Trainer resumed from a checkpoint
            self.run.rewind(state.global_step - 1)
        self.run.watch(model, optimizer, activations=self._activations)
        self._losses = _Losses(model)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep evaluations and other numbers; the next step logs them."""
        numbers = {k: v for k, v in (logs or {}).items() if k not in _RESERVED and isinstance(v, (int, float))}
        self._metrics.update(numbers)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Log a step."""
        if self.run is None:
            return
        metrics, self._metrics = self._metrics, {}
        self.run.log(loss=self._losses.finish_step(), step=state.global_step - 1, metrics=metrics)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Finish the run."""
        self._losses.close()
        if self._is_own and self.run is not None:
            self.run.finish()


class _Losses:
    """Collects the losses that a model returns while it trains."""

    def __init__(self, model: nn.Module | None = None) -> None:
        self._losses: list[Tensor] = []
        self._are_summands = False  # each loss is one summand of the step's loss
        self._hook = None if model is None else model.register_forward_hook(self, with_kwargs=True)

    def __call__(self, module: nn.Module, _args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        if torch.compiler.is_compiling() or not module.training:
            return
        loss = output.get("loss") if isinstance(output, Mapping) else None
        if isinstance(loss, Tensor) and loss.numel() == 1:
            self._losses.append(loss.detach())
            self._are_summands = kwargs.get("num_items_in_batch") is not None

    def finish_step(self) -> Tensor | None:
        """Return the loss of the step that has ended, and start the next step."""
        losses, self._losses = self._losses, []
        if len(losses) < 2:
            return losses[0] if losses else None
        stacked = torch.stack([loss.reshape(()) for loss in losses])
        return stacked.sum() if self._are_summands else stacked.mean()

    def close(self) -> None:
        """Remove the hook from the model."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def __reduce__(self) -> tuple[type[_Losses], tuple[()]]:
        return _Losses, ()
