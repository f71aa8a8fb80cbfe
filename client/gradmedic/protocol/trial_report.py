"""The report of a trial's script to its worker.

Every trial imports it, so it stands apart from the other classes of trials.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import msgspec

from gradmedic.protocol.encoding import without_nonfinite
from gradmedic.protocol.origins import Origin
from gradmedic.protocol.schema import SCHEMA, Number, StrictInt


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialEvaluation:
    """An evaluation of the models of a trial, in `eval()` and in `train()`, on its last batches with its last weights.

    Batch normalization and dropout make the two differ. The losses are in the units of the loss that the script logs,
    where that is a multiple of its loss functions, else in those of the loss functions.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    batches: StrictInt
    """Number of the last batches that were evaluated."""
    training_loss: Number | None = None
    """Mean loss of these batches in `train()`. Null if the calls of the loss function could not be repeated."""
    loss: Number | None = None
    """Mean loss of these batches in `eval()`. Null if the calls of the loss function could not be repeated."""
    output_difference: Number | None = None
    """Root mean square of the differences between the outputs in `eval()` and in `train()`, as a multiple of the
    standard deviation of the outputs over the examples of the last batch. Null if the losses are known, or if there is
    no output to compare."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialReport:
    """What the script of a trial reports to its worker beside its steps. `GRADMEDIC_REPORT` names the file.

    >>> TrialReport(applied=1).to_fields()
    {'applied': 1}
    >>> TrialReport.from_fields({"applied": 1, "unknown": 2}).to_fields()
    {'applied': 1}
    """

    watched: bool = False
    """Whether the script has called `run.watch()`."""
    applied: int | None = None
    """Number of places where remedies were applied. Null before they were applied."""
    not_applied: list[str] = field(default_factory=list)
    """The reasons why remedies were not applied in some places."""
    skipped_steps: int = 0
    """Number of optimizer steps that remedies skipped. It is known at the end."""
    not_applicable: str | None = None
    """The reason why the remedies cannot be applied at all. Null if they can."""
    ended: str | None = None
    """The reason why the SDK has ended the script. Null if the SDK has not."""
    last_step: int | None = None
    """Number of the last step that the script has logged within the budget. It is known at the end: before, and if the
    script logged no step, it is -1. Null in a report of an earlier version."""
    environment: dict[str, str] = field(default_factory=dict)
    """Versions and device that the script runs on."""
    evaluation: TrialEvaluation | None = None
    """The evaluation of the models at the end. Null if there was none."""
    origin: Origin | None = None
    """The origin of the first non-finite number, or the reason why it was not found. Null in a trial that does not look
    for it, and if every number was finite."""

    def to_fields(self) -> dict[str, Any]:
        """Return the fields as JSON has them, without those that have their default.

        They are left out because workers of earlier versions take each key that is there for a fact.
        """
        default = asdict(TrialReport())
        return {name: without_nonfinite(value) for name, value in asdict(self).items() if value != default[name]}

    @classmethod
    def from_fields(cls, fields: object) -> TrialReport:
        """Return the report that has these fields; an empty report where they are those of no report."""
        try:
            return msgspec.convert(fields, cls, strict=False)  # lax: "NaN" is a float
        except msgspec.ValidationError:
            return cls()
