"""A router that sends almost all tokens to one expert."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.diagnosis.probed_run import add_probes
from tests.diagnosis.synthetic_run import falling, noisy, run

from gradmedic.protocol.probes import name_metric
from gradmedic.protocol.runs import Layer
from gradmedic_diagnosis import Block, Diagnostician, UpdatedDiagnosis

STEPS = 300
LAYERS = [Layer(name=f"moe.{i}.gate.weight", numel=100, role="weight") for i in range(4)]


def probed(shares: Any, loss: Any = None) -> Block:
    """Return a run with two routers; the second is balanced."""
    names = [name_metric("router_largest_share", f"moe.{i}.gate") for i in (2, 3)]
    return add_probes(run(falling(STEPS) if loss is None else loss), {names[0]: shares, names[1]: 0.2})


def find(diagnosis: UpdatedDiagnosis) -> Any:
    """Return the finding; None if there is none."""
    return next((each for each in diagnosis.findings if each.detector == "router_collapse"), None)


def test_a_router_that_collapses_is_found_and_is_a_cause() -> None:
    """The finding begins where the share rose, names the gate, and asks for attention where the loss is stuck."""
    shares = np.where(np.arange(STEPS) < 50, 0.2, 0.97)
    diagnosis = Diagnostician(LAYERS).update(probed(shares, noisy(2.3, STEPS)))
    finding = find(diagnosis)
    assert (finding.severity, finding.first_step, finding.layers) == ("warning", 50, ["moe.2.gate.weight"])
    assert finding.evidence == {"largest_share": 0.97, "routers_affected": 1.0}
    assert "97%" in finding.explanation
    assert diagnosis.verdict == "healthy"
    assert diagnosis.level == "attention"
    assert "router_collapse" in [cause.cause for cause in diagnosis.causes]
    assert Diagnostician(LAYERS).update(probed(shares)).level == "ok"


@pytest.mark.parametrize(
    "shares",
    [
        0.7,
        np.where(np.arange(STEPS) < 90, 1.0, 0.3),
        np.where(np.arange(STEPS) % 50 < 25, 1.0, 0.3),
        np.nan,
    ],
    ids=["idle experts", "first steps", "single batches", "unknown"],
)
def test_it_is_silent_on_look_alikes(shares: Any) -> None:
    """Idle experts, a router that prefers one at first, batches of one kind and a NaN are no finding."""
    assert find(Diagnostician(LAYERS).update(probed(shares))) is None


def test_it_ends_when_the_tokens_spread() -> None:
    """A share below 80 % resolves the finding."""
    shares = np.where(np.arange(STEPS) < 200, 0.97, np.where(np.arange(STEPS) < 250, 0.85, 0.4))
    assert find(Diagnostician(LAYERS).update(probed(shares))).resolved_step == 250


@pytest.mark.parametrize("cut", [52, 149, 151, 260])
def test_blocks_do_not_matter(cut: int) -> None:
    """The finding is the same however the steps are cut, also over a stored state."""
    block = probed(np.where(np.arange(STEPS) < 50, 0.2, 0.97))
    diagnostician = Diagnostician(LAYERS)
    diagnostician.update(block.cut(0, cut))
    restored = Diagnostician.from_bytes(diagnostician.to_bytes(), LAYERS)
    assert find(restored.update(block.cut(cut, len(block)))) == find(Diagnostician(LAYERS).update(block))
