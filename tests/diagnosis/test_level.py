"""The level is judged from verdict, learning and open findings; warnings count only when they last."""

from __future__ import annotations

import numpy as np
import pytest
from tests.diagnosis.synthetic_run import noisy, run
from tests.diagnosis.whole_run import STEPS, diagnose, find_finding

from gradmedic.protocol.verdicts import LEVELS
from gradmedic_diagnosis.level import WARNING_STEPS, LevelTracker


@pytest.mark.parametrize(
    ("verdict", "learning", "has_open_warning", "level"),
    [
        ("undetermined", "unknown", False, "unknown"),
        ("undetermined", "stuck", False, "attention"),
        ("healthy", "unknown", False, "ok"),
        ("healthy", "unknown", True, "attention"),
        ("healthy", "learning", True, "ok"),
        ("healthy", "converged", True, "ok"),
        ("healthy", "stuck", False, "attention"),
        ("healthy", "worsening", False, "attention"),
        ("vanishing", "learning", False, "critical"),
        ("exploding", "stuck", True, "critical"),
    ],
)
def test_level(verdict: str, learning: str, has_open_warning: bool, level: str) -> None:
    """Only a vanishing or exploding verdict is critical; a warning counts unless the run learns or has converged."""
    assert level in LEVELS
    tracker = LevelTracker()
    levels = [judge(tracker, verdict, learning, has_warning=has_open_warning) for _ in range(WARNING_STEPS)]
    assert levels[-1] == level


def judge(tracker: LevelTracker, verdict: str, learning: str, *, has_warning: bool, has_fault: bool = False) -> str:
    """Return the level of the next step."""
    return tracker.judge(verdict, learning, has_open_warning=lambda: has_warning, has_open_fault=lambda: has_fault)


def test_a_fault_counts_at_once() -> None:
    """A fault of the script asks for attention at its first step, also while the run learns."""
    assert judge(LevelTracker(), "healthy", "learning", has_warning=False, has_fault=True) == "attention"


def test_warnings_that_come_and_go_change_nothing() -> None:
    """A warning for fewer than twenty steps at a time never changes the level, in either direction."""
    tracker = LevelTracker()
    brief = [judge(tracker, "healthy", "unknown", has_warning=step % 25 < 19) for step in range(100)]
    assert set(brief) == {"ok"}
    lasting = [judge(tracker, "healthy", "unknown", has_warning=step % 25 < 19 or step < 30) for step in range(100)]
    assert lasting[25:] == ["attention"] * 75


def bursts(*starts: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Return gradients `[step, 1]` that are thirty times as large for six steps from each start on."""
    gradient = np.ones((STEPS, 1))
    for start in starts:
        gradient[start : start + 6] = 30.0
    return gradient


def test_gradients_that_burst_again_and_again_ask_for_attention() -> None:
    """Three bursts are a warning, where nothing shows that the run learns; two are none."""
    loss = np.random.default_rng(0).normal(0.1, 0.3, STEPS)  # measures no progress
    often = diagnose(run(loss, gradient=bursts(60, 90, 130)))
    assert (finding := find_finding(often, "recurring_growth")) is not None
    assert (finding.first_step, finding.evidence["bursts"]) == (60, 3)
    assert "attention" in {change.level for change in often.changes}
    assert find_finding(diagnose(run(loss, gradient=bursts(60, 90))), "recurring_growth") is None


def test_bursts_are_over_after_a_long_calm() -> None:
    """After as many calm steps as the bursts lasted, the finding is resolved and the level is ok."""
    loss = np.random.default_rng(0).normal(0.1, 0.3, STEPS)
    diagnosis = diagnose(run(loss, gradient=bursts(60, 90, 130)))
    assert (finding := find_finding(diagnosis, "recurring_growth")) is not None
    assert finding.resolved_step == 135 + 75 + 1
    assert diagnosis.level == "ok"


def test_a_run_that_learns_may_burst() -> None:
    """Bursts of a run whose loss falls are known, and ask for no attention."""
    loss = 2.3 * 0.5 ** (np.arange(STEPS) / 60)
    assert "attention" not in {change.level for change in diagnose(run(loss, gradient=bursts(60, 90, 130))).changes}
    assert diagnose(run(noisy(2.3, STEPS))).level == "attention"
