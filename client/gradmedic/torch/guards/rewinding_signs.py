"""Finds out from the course of a training that it should go back, and to before which step.

Leaving out a step is enough where one batch is bad. It is not enough where a bad number has reached the weights, or the
buffers of a normalization; where bad steps go on; and where the loss has jumped and stays there. A loss that jumps with
the learning rate is judged sooner: then the weights are bad, and not the data.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

NONFINITE_IN_A_ROW = 10
"""Steps in a row with a non-finite loss or gradient, while the weights are finite, after which the training goes back.
Fewer may be a stretch of bad data, which passes by itself."""
WINDOW = 100
"""Losses of good steps with which a loss is compared."""
FEWEST_LOSSES = 50
"""Losses that must be known before one counts as a jump."""
_RENEWAL = 10
"""Good losses after which the limit is computed again."""
SPREADS = 10.0
"""Distance of a jump from the largest usual loss, in distances between the median and the 5 or 95 % quantile. A jump
that a training recovers from by itself is often as high; so a jump alone is no trouble."""
LASTING_STEPS = 30
"""Steps in a row above the limit after which it is looked whether the loss recovers from a jump."""
_RECOVERY = 0.1
"""Share of the jump by which the last third of these losses must be lower than the first third, to be a recovery."""
RATE_JUMP = 3.0
"""Ratio of a learning rate to the largest one before, above which it has jumped. A warm-up grows by less in a step, and
a restart goes back to a rate that was there before."""
FEWEST_RATES = 20
"""Steps of an optimizer before its learning rate can jump: a warm-up may begin at 0."""
SPREADS_AFTER_RATE_JUMP = 3.0
"""`SPREADS` for a loss that jumps within `LASTING_STEPS` after the learning rate."""
WINDOW_AFTER_RATE_JUMP = 30
"""`WINDOW` for such a loss. The loss of a young training falls far within a hundred steps, so that the largest of so
many hides a jump back to where it was fifty steps before."""
LASTING_AFTER_RATE_JUMP = 9
"""`LASTING_STEPS` for such a loss. Then it is left alone only if it will be back within `LASTING_STEPS`, as far as the
course so far can tell: otherwise going back, which gives up some tens of steps, is the shorter way."""
_LONGEST_RECOVERY = 10 * LASTING_STEPS
"""Steps after which a loss that falls slowly from a jump is the new level: the data have changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Why a training should go back."""

    reason: str
    """One of `GUARD_REASONS`."""
    onset: int
    """First step that shows it. The state must be from before."""
    sentence: str
    """What happened, for people."""
    numbers: Mapping[str, float] = field(default_factory=dict)


class LossCourse:
    """The losses of a training, and whether they have jumped and stay there. A lower loss is never trouble.

    Args:
        spreads: distance of a jump from the largest usual loss; see `SPREADS`.
        lasting: steps in a row above the limit after which it is looked whether the loss recovers.
        window: number of the last usual losses that a loss is compared with.
        returns_within: steps within which a loss that recovers must be back; None if a slow recovery is one, too.
    """

    def __init__(
        self,
        spreads: float = SPREADS,
        lasting: int = LASTING_STEPS,
        *,
        window: int = WINDOW,
        returns_within: int | None = None,
    ) -> None:
        self._spreads, self._lasting, self._returns_within = spreads, lasting, returns_within
        self._usual: deque[float] = deque(maxlen=window)
        self._fewest = min(FEWEST_LOSSES, window)
        self._above: list[float] = []
        self._added = 0
        self.limit = math.inf
        """Largest loss that is no jump; infinite while too few losses are known."""
        self.jumped_at: int | None = None
        """First step of the losses in a row that are above the limit."""

    def add(self, step: int, loss: float) -> bool:
        """Add a finite loss; return whether it is the one by which a jump has lasted too long."""
        if loss <= self.limit:
            self._add_usual(loss)
            self._above.clear()
            self.jumped_at = None
            return False
        self.jumped_at = step if self.jumped_at is None else self.jumped_at
        self._above.append(loss)
        if len(self._above) % self._lasting:
            return False
        if not self._is_recovering():
            return True
        if len(self._above) >= _LONGEST_RECOVERY:
            self.forget()
        return False

    def forget(self) -> None:
        """Forget all losses: another level begins."""
        self._usual.clear()
        self.end_jump()
        self.limit = math.inf

    def end_jump(self) -> None:
        """Forget the losses above the limit: the training went back."""
        self._above.clear()
        self.jumped_at = None

    def _add_usual(self, loss: float) -> None:
        self._usual.append(loss)
        self._added += 1
        if len(self._usual) >= self._fewest and self._added % _RENEWAL == 0:
            ordered = sorted(self._usual)
            last = len(ordered) - 1
            median, low, high = (ordered[round(share * last)] for share in (0.5, 0.05, 0.95))
            self.limit = ordered[-1] + self._spreads * max(high - median, median - low)

    def _is_recovering(self) -> bool:
        third = self._lasting // 3
        last = self._above[-self._lasting :]
        first_mean, last_mean = (sum(part) / third for part in (last[:third], last[-third:]))
        if self._returns_within is None:
            return last_mean < first_mean - _RECOVERY * (first_mean - self._usual[-1])
        ordered = sorted(self._usual)
        median, largest = ordered[len(ordered) // 2], ordered[-1]
        if last_mean >= first_mean or median >= largest:
            return False
        # It is back where it is among the usual losses, and not where it is just below the limit of a jump.
        decay = math.log((first_mean - median) / (last_mean - median)) / (self._lasting - third)
        return math.log((last_mean - median) / (largest - median)) <= decay * self._returns_within


class Rates:
    """The learning rates of an optimizer, and whether they have jumped."""

    def __init__(self) -> None:
        self._count = 0
        self._largest_before: float | None = None
        self.largest = 0.0
        """The largest learning rate so far."""

    def add(self, rate: float) -> bool:
        """Add the learning rate of a step; return whether it has jumped."""
        self._count += 1
        has_jumped = self._count > FEWEST_RATES and 0.0 < self.largest * RATE_JUMP < rate < math.inf
        if has_jumped:
            self._largest_before = self.largest
        if rate < math.inf:
            self.largest = max(self.largest, rate)
        return has_jumped

    def go_back(self) -> None:
        """Forget the last jump: the training went back to before it, and the same rate may come again."""
        if self._largest_before is not None:
            self.largest, self._largest_before = self._largest_before, None


class Signs:
    """Collects the signs of trouble, step by step.

    Args:
        is_state_finite: function that returns whether weights, buffers and the optimizers' states are finite. It is
            called only at steps with a non-finite number, because it takes some time.
    """

    def __init__(self, is_state_finite: Callable[[], bool]) -> None:
        self._is_state_finite = is_state_finite
        self._course = LossCourse()
        self._course_after_rate_jump = LossCourse(
            SPREADS_AFTER_RATE_JUMP,
            LASTING_AFTER_RATE_JUMP,
            window=WINDOW_AFTER_RATE_JUMP,
            returns_within=LASTING_STEPS,
        )
        self._rates: dict[object, Rates] = {}
        self._rate_jump: tuple[float, float] | None = None  # rate before and after, in the present step
        self._last_rate_jump: tuple[int, float, float] | None = None  # step, rate before and after
        self._since: int | None = None
        self._nonfinite_in_a_row = 0
        self._has_nonfinite_gradient = self._has_spike = self._has_lasting_spike = False
        self._verdict: tuple[str, int | None] | None = None

    @property
    def is_suspicious(self) -> bool:
        """Whether the last step showed a sign. A state from then may be a bad one."""
        return self._since is not None

    def note_nonfinite_gradient(self) -> None:
        """Note that a gradient of the present step is not finite."""
        self._has_nonfinite_gradient = True

    def note_spike(self, *, is_lasting: bool) -> None:
        """Note that the gradient of the present step is a spike.

        Args:
            is_lasting: whether as many steps were left out before as may be, so that this one is taken.
        """
        self._has_spike = True
        self._has_lasting_spike |= is_lasting

    def note_rate(self, optimizer: object, rate: float) -> None:
        """Note the learning rate of a step of an optimizer, the largest of its groups.

        Args:
            optimizer: key of the optimizer.
            rate: the learning rate.
        """
        rates = self._rates.setdefault(optimizer, Rates())
        before = rates.largest
        if rates.add(rate):
            self._rate_jump = (before, rate)

    def note_verdict(self, verdict: str, since_step: int | None) -> None:
        """Note a verdict of the service from which the training should go back."""
        self._verdict = (verdict, since_step)

    def end_step(self, step: int, losses: Sequence[tuple[int, float]]) -> Trouble | None:
        """Return the trouble that the step shows, None if it shows none.

        Args:
            step: number of the step that ends.
            losses: the losses that became known since the last call, with their steps.
        """
        nonfinite = [(number, loss) for number, loss in losses if not math.isfinite(loss)]
        has_lasted = False
        has_followed_rate = False
        if self._rate_jump is not None:
            self._last_rate_jump, self._rate_jump = (step, *self._rate_jump), None
        for number, loss in losses:
            if math.isfinite(loss):
                has_lasted |= self._course.add(number, loss)
                has_followed_rate |= self._course_after_rate_jump.add(number, loss) and self._follows_rate_jump()
        is_nonfinite = self._has_nonfinite_gradient or bool(nonfinite)
        first = min([step, *(number for number, _ in nonfinite)])
        if is_nonfinite or self._has_spike:
            self._since = first if self._since is None else min(self._since, first)
        elif self._course.jumped_at is not None:
            self._since = self._course.jumped_at if self._since is None else self._since
        else:
            self._since = None
        self._nonfinite_in_a_row = self._nonfinite_in_a_row + 1 if is_nonfinite else 0
        trouble = self._judge(step, nonfinite, is_nonfinite=is_nonfinite, has_lasted=has_lasted)
        if trouble is None and has_followed_rate:
            trouble = self._describe_rate_jump()
        self._has_nonfinite_gradient = self._has_spike = self._has_lasting_spike = False
        return trouble

    def begin_anew(self) -> None:
        """Forget the signs: the training went back."""
        self._since = self._verdict = None
        self._nonfinite_in_a_row = 0
        self._course.end_jump()
        self._course_after_rate_jump.end_jump()
        self._last_rate_jump = self._rate_jump = None
        for rates in self._rates.values():
            rates.go_back()

    def _follows_rate_jump(self) -> bool:
        """Whether the present jump of the loss began soon after the learning rate had jumped."""
        jumped_at = self._course_after_rate_jump.jumped_at
        if self._last_rate_jump is None or jumped_at is None:
            return False
        return self._last_rate_jump[0] <= jumped_at <= self._last_rate_jump[0] + LASTING_STEPS

    def _describe_rate_jump(self) -> Trouble | None:
        if self._last_rate_jump is None:
            return None
        step, before, after = self._last_rate_jump
        return Trouble(
            reason="learning_rate_jump",
            onset=step,
            numbers={"limit": self._course_after_rate_jump.limit, "rate_before": before, "rate_after": after},
            sentence=f"The learning rate rose from {before:.4g} to {after:.4g} at step {step}, and the loss with it",
        )

    def _judge(
        self, step: int, nonfinite: Sequence[tuple[int, float]], *, is_nonfinite: bool, has_lasted: bool
    ) -> Trouble | None:
        since = step if self._since is None else self._since
        if is_nonfinite and not self._is_state_finite():
            return Trouble(
                reason="nonfinite_weights",
                onset=since,
                sentence=f"The weights or what belongs to them were not finite at step {step}",
            )
        if is_nonfinite and self._nonfinite_in_a_row >= NONFINITE_IN_A_ROW:
            return Trouble(
                reason="nonfinite_loss" if nonfinite else "nonfinite_gradient",
                onset=since,
                numbers={"in_a_row": float(self._nonfinite_in_a_row)},
                sentence=f"{self._nonfinite_in_a_row} steps in a row had a loss or a gradient that is not finite",
            )
        if self._has_lasting_spike:
            return Trouble(
                reason="gradient_spike",
                onset=since,
                sentence=f"The gradients since step {since} are far above the usual ones, though steps were left out",
            )
        if has_lasted:
            return Trouble(
                reason="loss_spike",
                onset=since,
                numbers={"limit": self._course.limit},
                sentence=f"The loss jumped above {self._course.limit:.4g} at step {since} and has not recovered",
            )
        if self._verdict is not None:
            (verdict, since_step), self._verdict = self._verdict, None
            onset = step if since_step is None else min(step, since_step)
            return Trouble(reason="verdict", onset=onset, sentence=f"The verdict is {verdict} since step {onset}")
        return None
