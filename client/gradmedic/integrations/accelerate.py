"""A tracker for Hugging Face Accelerate: `Accelerator(log_with=GradmedicTracker("project"))`.

`accelerator.log` becomes `Run.log`. To record gradients, every process calls `tracker.run.watch(model, optimizer)` with
the objects that `accelerator.prepare` returned.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accelerate.tracking import GeneralTracker

import gradmedic

_LOSSES = ("loss", "train_loss")
"""Names under which scripts log the loss of a step. The first one that is present is used."""


class GradmedicTracker(GeneralTracker):  # type: ignore[misc]  # accelerate has no types
    """Reports a training to gradmedic.

    Args:
        project: Project that owns the run.
        init: Further arguments of `gradmedic.init`. Without `config`, the configuration of `init_trackers` is used.
    """

    name = "gradmedic"
    requires_logging_directory = False
    main_process_only = True

    def __init__(self, project: str | None = None, **init: Any) -> None:
        super().__init__()
        self._arguments = {"project": project, **init}
        self._run: gradmedic.Run | None = None
        self._last_step: int | None = None
        self._pending_values: dict[str, Any] = {}

    @property
    def run(self) -> gradmedic.Run:
        """The run. The first access starts it."""
        if self._run is None:
            self._run = gradmedic.init(**self._arguments)
        return self._run

    @property
    def tracker(self) -> gradmedic.Run:
        """The run, under the name that Accelerate uses."""
        return self.run

    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        """Use the hyperparameters of `init_trackers` as the run's config."""
        if self._run is None:
            self._arguments.setdefault("config", dict(values))

    def log(self, values: Mapping[str, Any], step: int | None = None, **_: Any) -> None:
        """Log a step. Further values of the same step are logged with the next step."""
        if step is not None and step == self._last_step:
            self._pending_values.update(values)
            return
        self._last_step = step
        values, self._pending_values = {**self._pending_values, **values}, {}
        name = next((name for name in _LOSSES if name in values), None)
        loss = None if name is None else values[name]
        self.run.log(loss=loss, step=step, metrics={k: v for k, v in values.items() if k != name})

    def finish(self) -> None:
        """End the run."""
        if self._run is not None:
            self._run.finish()
