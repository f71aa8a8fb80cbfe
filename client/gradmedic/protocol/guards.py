"""Guard actions: what a guard did in the training loop of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, ClassVar

from gradmedic.protocol.paging import Page
from gradmedic.protocol.schema import SCHEMA, Number, OneOf, StrictInt, Text
from gradmedic.protocol.verdicts import Verdict

GUARD_ACTIONS = ("skip", "clip", "rewind", "lower_rate", "stop", "give_up")
"""What a guard does: it leaves out a step, clips gradients, goes back to an earlier state, lowers the learning rate,
stops the training, or acts no longer."""

GUARD_REASONS = (
    "nonfinite_gradient",
    "nonfinite_loss",
    "nonfinite_weights",
    "gradient_spike",
    "loss_spike",
    "learning_rate_jump",
    "verdict",
)
"""Why a guard acts."""

MOST_GUARD_ACTIONS = 1_000
"""Largest number of guard actions in a block. `GET /limits` publishes it as `max_guard_actions`."""
MOST_GUARD_NUMBERS = 16
"""Largest number of entries in `numbers` of a guard action."""
LONGEST_NUMBER_NAME = 64
"""Largest number of characters in the name of a number of a guard action."""
LONGEST_EXPLANATION = 500
"""Largest number of characters in the explanation of a guard action."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardAction:
    """One action of a guard, as the SDK sends it."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    step: StrictInt
    """Step in which the guard acted: a step of the block, or of a rewind a step after the one that stays."""
    action: Annotated[Text, OneOf(*GUARD_ACTIONS)]
    """Kind of the action. `rewind` is sent with `POST /runs/{id}/rewind`, every other action with the steps."""
    reason: Annotated[Text, OneOf(*GUARD_REASONS)]
    """Reason for the action."""
    numbers: dict[Text, Number] = field(default_factory=dict)
    """The numbers of the decision by name, for example `grad_norm` and `limit`. At most 16."""
    explanation: Text
    """One sentence about the action, of at most 500 characters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedGuardAction:
    """One action of a guard, as the service has stored it."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    sequence: int
    """Number of the action among those of the run, from 1 on, in the order in which they arrived."""
    generation: int
    """Generation of the run in which the guard acted: the number of rewinds before it."""
    step: int
    """Step in which the guard acted."""
    to_step: int | None
    """The last step that a rewind kept. Null for every other action."""
    verdict: Verdict | None
    """The verdict that a rewind took back. Null for every other action."""
    since_step: int | None
    """First step of that verdict. Null if the verdict was undetermined, and for every other action."""
    action: Annotated[str, OneOf(*GUARD_ACTIONS)]
    """Kind of the action."""
    reason: Annotated[str, OneOf(*GUARD_REASONS)]
    """Reason for the action."""
    numbers: dict[str, float]
    """The numbers of the decision by name."""
    explanation: str
    """One sentence about the action."""
    is_dropped: bool
    """True if a later rewind dropped the step of the action. Always false for a rewind."""
    created_at: datetime
    """Time at which the service stored the action."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardReport:
    """Report on the actions of the guards of a run."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    counts: dict[str, int]
    """Number of actions of each kind, of all generations. A kind without an action is left out."""
    recent_steps: int
    """Number of the last steps of the run of which `recent_actions` counts."""
    recent_actions: int
    """Number of those steps that a guard skipped or clipped."""
    is_repeated: bool
    """True if the guards act over and over: the cause is not cured."""
    summary: str
    """Summary of the actions in one or two sentences."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardActionList(Page):
    """A page of the guard actions of a run, the newest first."""

    items: list[RecordedGuardAction]
