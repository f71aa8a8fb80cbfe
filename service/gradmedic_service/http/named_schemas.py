"""Schemas of OpenAPI that have a name of their own, although the code has no class for them.

A generated client then has one type `Verdict`, and not one for each field with the same values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gradmedic.protocol.diagnosis import OUTCOME_STATES, SEVERITIES
from gradmedic.protocol.numbers import NONFINITE_NAMES
from gradmedic.protocol.reruns import EXECUTORS, RERUN_STATUSES, TRIAL_STATUSES
from gradmedic.protocol.runs import STATUSES
from gradmedic.protocol.verdicts import LEARNING_STATES, LEVELS, VERDICTS

SCHEMAS_PATH = "#/components/schemas"

_TEXTS: Mapping[str, tuple[Sequence[str], str]] = {
    "Verdict": (
        VERDICTS,
        "Verdict on the gradients of a run. `undetermined` means that there are too few steps to judge.",
    ),
    "Learning": (
        LEARNING_STATES,
        "Course of the objective of a run, which is the loss unless the run names another one.",
    ),
    "Level": (
        LEVELS,
        "The level that a person reads first. Only a vanishing or exploding verdict makes a run `critical`.",
    ),
    "RunStatus": (STATUSES, "Status of a run. `stalled` means that a running run has sent nothing for some time."),
    "Severity": (SEVERITIES, "Severity of a finding. Only a `critical` finding decides a verdict."),
    "OutcomeState": (
        OUTCOME_STATES,
        "Outcome of a candidate in a rerun. `verified`: it repaired the run on every seed.",
    ),
    "RerunStatus": (RERUN_STATUSES, "Status of a rerun. `not_reproduced`: the unchanged control did not fail."),
    "TrialStatus": (TRIAL_STATUSES, "Status of a trial. `stopped`: other candidates were better."),
    "Executor": (EXECUTORS, "Executor of trials: `local` is the worker's own machine, `ray` a Ray cluster."),
    "NonFinite": (NONFINITE_NAMES, "A non-finite number, by its name."),
}
NAMED_SCHEMAS: Mapping[str, Mapping[str, Any]] = {
    **{
        name: {"type": "string", "enum": list(values), "title": name, "description": description}
        for name, (values, description) in _TEXTS.items()
    },
    "Number": {
        "anyOf": [{"type": "number"}, {"$ref": f"{SCHEMAS_PATH}/NonFinite"}],
        "title": "Number",
        "description": "A finite number, or the name of a non-finite one.",
    },
}
_NAMES_BY_VALUES = {tuple(values): name for name, (values, _) in _TEXTS.items()}


def name_schemas(node: Any) -> None:
    """Put a reference in place of every schema within a document that has a name. Its description and default stay."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in list(children):
        name_schemas(child)
        name = _name_of(child)
        if name is not None:
            kept = {word: value for word, value in child.items() if word not in ("type", "enum", "title", "pattern")}
            node[key] = {"$ref": f"{SCHEMAS_PATH}/{name}", **kept}


def _name_of(node: Any) -> str | None:
    if not isinstance(node, dict):
        return None
    if node.get("type") == "number":
        return "Number"
    values = node.get("enum")
    return _NAMES_BY_VALUES.get(tuple(values)) if isinstance(values, list) else None
