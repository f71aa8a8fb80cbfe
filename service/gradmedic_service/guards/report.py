"""What the guards of a run did, in short, and whether they act over and over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gradmedic.protocol.guards import GuardReport

REPEATED_SHARE = 0.05
"""Share of the recent steps with an action from which a guard acts over and over. PaLM was rewound about 20 times in
255,000 steps, and 200 to 500 batches were skipped each time (Chowdhery et al. 2022, section 5.1): under 4 percent."""
REPEATED_ACTIONS = 5
"""Number of these actions from which a guard acts over and over: a few bad batches may be neighbours."""
REPEATED_REWINDS = 3
"""Number of rewinds from which a guard acts over and over. The second may meet the same bad batch as the first."""
REWINDS_NAMED = 3
STEP_ACTIONS = ("skip", "clip")
"""The actions that concern one step. They are named first, then rewinds."""

_PARTS = {
    "skip": ("step skipped", "steps skipped"),
    "clip": ("step clipped", "steps clipped"),
    "lower_rate": ("learning rate lowered once", "learning rate lowered {count} times"),
    "stop": ("training stopped", "training stopped {count} times"),
    "give_up": ("a guard gave up", "guards gave up {count} times"),
}


def describe_guards(
    counts: Mapping[str, int], rewinds: Sequence[tuple[int, int]], recent_steps: int, recent_actions: int
) -> GuardReport:
    """Return the report on the guards of a run.

    Args:
        counts: number of actions of each kind.
        rewinds: the last rewinds: the step of each, and the step that it kept.
        recent_steps: number of the run's last steps.
        recent_actions: number of these that a guard skipped or clipped.

    >>> describe_guards({"skip": 3, "rewind": 1}, [(412, 320)], 100, 3).summary
    'Guards: 3 steps skipped, rewound once (step 412 to 320).'
    """
    is_often = recent_actions >= REPEATED_ACTIONS and recent_actions >= REPEATED_SHARE * recent_steps
    is_rewound_often = counts.get("rewind", 0) >= REPEATED_REWINDS
    sentences = [f"Guards: {', '.join(_describe_counts(counts, rewinds))}."]
    if is_often:
        share = _describe_share(recent_actions, recent_steps)
        sentences.append(f"A guard changed {share} of the last {recent_steps} steps: the cause is not cured.")
    elif is_rewound_often:
        sentences.append("The trouble came back after each rewind: the cause is not cured.")
    return GuardReport(
        counts=dict(counts),
        recent_steps=recent_steps,
        recent_actions=recent_actions,
        is_repeated=is_often or is_rewound_often,
        summary=" ".join(sentences),
    )


def _describe_counts(counts: Mapping[str, int], rewinds: Sequence[tuple[int, int]]) -> list[str]:
    parts = []
    for action, (one, many) in _PARTS.items():
        if (count := counts.get(action, 0)) > 0:
            is_counted = action in STEP_ACTIONS
            text = (one if count == 1 else many).format(count=count)
            parts.append(f"{count} {text}" if is_counted else text)
    if (count := counts.get("rewind", 0)) > 0:
        last = rewinds[-REWINDS_NAMED:]
        places = ", ".join(f"step {step} to {'the start' if to_step < 0 else to_step}" for step, to_step in last)
        times = "once" if count == 1 else f"{count} times"
        parts.insert(sum(counts.get(action, 0) > 0 for action in STEP_ACTIONS), f"rewound {times} ({places})")
    return parts


def _describe_share(part: int, whole: int) -> str:
    """Return a share as a sentence has it.

    >>> _describe_share(13, 100), _describe_share(60, 100)
    ('1 of 8', '60 of 100')
    """
    return f"1 of {round(whole / part)}" if part * 2 <= whole else f"{part} of {whole}"
