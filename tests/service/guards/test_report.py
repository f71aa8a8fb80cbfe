"""The report on the guards of a run, in words."""

from __future__ import annotations

import pytest

from gradmedic_service.guards.report import describe_guards


@pytest.mark.parametrize(
    ("counts", "rewinds", "text"),
    [
        ({"skip": 1}, [], "1 step skipped"),
        ({"clip": 2}, [], "2 steps clipped"),
        ({"skip": 2, "clip": 1, "rewind": 1}, [(9, 5)], "2 steps skipped, 1 step clipped, rewound once (step 9 to 5)"),
        ({"rewind": 2}, [(9, 5), (12, 3)], "rewound 2 times (step 9 to 5, step 12 to 3)"),
        (
            {"rewind": 1, "lower_rate": 2, "stop": 1, "give_up": 1},
            [(7, -1)],
            "rewound once (step 7 to the start), learning rate lowered 2 times, training stopped, a guard gave up",
        ),
    ],
)
def test_the_summary_has_each_kind_of_action(counts: dict[str, int], rewinds: list[tuple[int, int]], text: str) -> None:
    """The kinds come in the order in which guards go on, and what did not happen is left out."""
    report = describe_guards(counts, rewinds, 100, 0)
    assert report.summary == f"Guards: {text}."
    assert not report.is_repeated


@pytest.mark.parametrize(
    ("recent_steps", "recent_actions", "share"),
    [(100, 4, None), (100, 5, "1 of 20"), (400, 19, None), (400, 20, "1 of 20"), (6, 5, "5 of 6"), (80, 10, "1 of 8")],
)
def test_guards_that_act_over_and_over(recent_steps: int, recent_actions: int, share: str | None) -> None:
    """Five actions in a twentieth of the recent steps are too many."""
    report = describe_guards({"skip": recent_actions}, [], recent_steps, recent_actions)
    assert report.is_repeated == (share is not None)
    assert (f"A guard changed {share} of the last {recent_steps} steps" in report.summary) == (share is not None)
