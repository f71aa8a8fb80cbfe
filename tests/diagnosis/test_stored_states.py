"""States that version 0.1 stored are read, and lead to the same diagnosis.

`data/states/<run>@<step>.state` holds the state of a run before that step, as version 0.1 wrote it. `expected.json`
holds the diagnosis that version 0.1 had at the end of the run, without its texts. Scores are left out: they are
calibrated since, and those of version 0.1 were not. Causes and advice are those of today, and findings of newer
detectors are left out: they need evidence that version 0.1 did not store.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks.corpus.recording import load
from tests.diagnosis.linear_chain import train_chain
from tests.diagnosis.whole_run import keep_verdicts
from tests.support.approximation import approximately

from gradmedic.protocol.diagnosis import DiagnosisAtStep, VerdictChange
from gradmedic.protocol.runs import Layer
from gradmedic_diagnosis import Block, Diagnostician
from gradmedic_diagnosis.detectors import DETECTORS
from gradmedic_diagnosis.state import unpack_state

STATES = Path(__file__).parent / "data" / "states"
RECORDINGS = Path(__file__).parents[1] / "data" / "recordings"
EXPECTED: dict[str, dict[str, Any]] = {
    name: {
        **{key: value for key, value in expected.items() if key != "score"},
        "changes": [[step, verdict, finding] for step, verdict, _, finding in expected["changes"]],
    }
    for name, expected in json.loads((STATES / "expected.json").read_text()).items()
}


def load_run(name: str) -> tuple[tuple[Layer, ...], Block, int]:
    """Return the layers and steps of a fixture's run, and the first step that its state has not read."""
    run, _, cut = name.partition("@")
    if run == "chain-0.5":
        chain = train_chain(0.5)
        return chain.layers, chain.block, int(cut)
    layers, _, block = load(RECORDINGS / f"{run}.npz")
    return layers, block, int(cut)


NEWER = frozenset(DETECTORS) - unpack_state((STATES / f"{min(EXPECTED)}.state").read_bytes())["detectors"].keys()
"""Detectors that version 0.1 did not have."""
NEWER_NUMBERS = frozenset({"nonfinite_weights"})
"""Evidence that version 0.1 did not collect."""


def as_expected(diagnosis: DiagnosisAtStep, changes: list[VerdictChange]) -> dict[str, Any]:
    """Return a diagnosis in the form of `expected.json`."""
    return {
        "verdict": diagnosis.verdict,
        "since_step": diagnosis.since_step,
        "changes": [[change.step, change.verdict, change.finding] for change in changes],
        "findings": [
            {
                "detector": finding.detector,
                "verdict": finding.verdict,
                "severity": finding.severity,
                "layers": finding.layers,
                "first_step": finding.first_step,
                "last_step": finding.last_step,
                "resolved_step": finding.resolved_step,
                "evidence": {name: number for name, number in finding.evidence.items() if name not in NEWER_NUMBERS},
            }
            for finding in diagnosis.findings
            if finding.detector not in NEWER
        ],
        "causes": [
            {"cause": cause.cause, "score": cause.score, "evidence": cause.evidence} for cause in diagnosis.causes
        ],
        "advice": [{"id": advice.remedy.id, "parameters": advice.remedy.parameters} for advice in diagnosis.advice],
    }


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_stored_state_goes_on_as_before(name: str) -> None:
    """A run whose state version 0.1 stored ends with the verdicts and findings of version 0.1."""
    layers, block, cut = load_run(name)
    restored = Diagnostician.from_bytes((STATES / f"{name}.state").read_bytes(), layers)
    assert restored.last_step == cut - 1
    verdict_before = restored.diagnose().verdict
    diagnosis = restored.update(block.cut(cut, len(block)))
    changes = keep_verdicts(diagnosis.changes, verdict_before)
    stored = {key: value for key, value in EXPECTED[name].items() if key not in ("causes", "advice")}
    assert {key: as_expected(diagnosis, changes)[key] for key in stored} == approximately(stored)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_all_steps_read_again_give_the_same(name: str) -> None:
    """Reading a run from its first step, as `gradmedic rediagnose` does, gives the findings of version 0.1."""
    layers, block, cut = load_run(name)
    diagnosis = Diagnostician(layers).update(block)
    changes = [change for change in keep_verdicts(diagnosis.changes) if change.step >= cut]
    assert as_expected(diagnosis, changes) == approximately(EXPECTED[name])


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_state_is_stored_with_the_same_keys(name: str) -> None:
    """A state that is read and stored again has every key, at every depth, that version 0.1 stored.

    Replicas of two versions may serve one database during an upgrade: each reads the states of the other.
    """
    layers, _, _ = load_run(name)
    before = (STATES / f"{name}.state").read_bytes()
    after = Diagnostician.from_bytes(before, layers).to_bytes()
    assert list_missing_keys(unpack_state(before), unpack_state(after)) == []


def list_missing_keys(before: Any, after: Any, path: str = "") -> list[str]:
    """Return the paths of the keys of nested mappings that `before` has and `after` lacks."""
    if not isinstance(before, dict):
        return []
    missing = [f"{path}.{key}" for key in before if key not in after]
    return missing + [
        found for key in before if key in after for found in list_missing_keys(before[key], after[key], f"{path}.{key}")
    ]
