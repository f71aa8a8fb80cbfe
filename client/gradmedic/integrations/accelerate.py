"""A tracker for Hugging Face Accelerate: `Accelerator(log_with=GradmedicTracker("project"))`.

One idea: `accelerator.log` is `Run.log`; gradients are seen once `tracker.run.watch(model, optimizer)` was called, on
every process, with what `accelerator.prepare` answered.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accelerate.tracking import GeneralTracker

import gradmedic

_LOSSES = ("loss", "train_loss")
"""Names under which scripts log the loss of a step, the first that is there counts."""


class GradmedicTracker(GeneralTracker):  # type: ignore[misc]  # accelerate has no types
    """Reports a training to gradmedic.

    Args:
        project: that owns the run.
        init: further arguments of `gradmedic.init`; `config` is what `init_trackers` is given unless it is here.
    """

    name = "gradmedic"
    requires_logging_directory = False
    main_process_only = True

    def __init__(self, project: str | None = None, **init: Any) -> None:
        super().__init__()
        self._arguments = {"project": project, **init}
        self._run: gradmedic.Run | None = None
        self._last_step: int | None = None
        self._waiting: dict[str, Any] = {}

    @property
    def run(self) -> gradmedic.Run:
        """The run; begun when it is first asked for."""
        if self._run is None:
            self._run = gradmedic.init(**self._arguments)
        return self._run

    @property
    def tracker(self) -> gradmedic.Run:
        """The run, under Accelerate's name for it."""
        return self.run

    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        """Take the hyperparameters that `init_trackers` was given."""
        if self._run is None:
            self._arguments.setdefault("config", dict(values))

    def log(self, values: Mapping[str, Any], step: int | None = None, **_: Any) -> None:
        """Log a step; what is logged for the same step again is kept for the next one."""
        if step is not None and step == self._last_step:
            self._waiting.update(values)
            return
        self._last_step = step
        values, self._waiting = {**self._waiting, **values}, {}
        name = next((name for name in _LOSSES if name in values), None)
        loss = None if name is None else values[name]
        self.run.log(loss=loss, step=step, metrics={k: v for k, v in values.items() if k != name})

    def finish(self) -> None:
        """End the run."""
        if self._run is not None:
            self._run.finish()
