"""The course of a disease: an unhealthy verdict stays until the run has recovered, and keeps its consequences apart."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.diagnosis.synthetic_run import falling, layers, noisy, run
from tests.diagnosis.whole_run import diagnose, find_finding, keep_verdicts, without_weights

from gradmedic.protocol.diagnosis import VerdictChange
from gradmedic.protocol.runs import Loss, Objective, Training
from gradmedic_diagnosis import Block, Diagnostician, StepSeries
from gradmedic_diagnosis.course import CERTAIN_LOSSES, CONSEQUENCES, RECOVERED_LOSSES
from gradmedic_diagnosis.detectors import DETECTOR_TYPES
from gradmedic_diagnosis.state import pack_state, unpack_state

ONSET = 150
GAP = 10.0 ** np.array([-4, -3, -1, 0])

Floats = NDArray[np.float64]


def list_verdicts(block: Block) -> list[str]:
    """Return the verdicts of a run in order, without the first, `undetermined`."""
    return [change.verdict for change in keep_verdicts(diagnose(block).changes)]


def exploding_run(after: Floats, *, gradient_after: float = 1.0) -> Block:
    """Return a run that learns, blows up at step `ONSET` for ten steps, and goes on with the losses in `after`.

    The updates of the blow-up are as large as the weights.
    """
    loss = np.concatenate([falling(ONSET), np.geomspace(100, 1000, 10), after])
    update, gradient = np.full((len(loss), 1), 0.01), np.ones((len(loss), 1))
    update[ONSET : ONSET + 10], gradient[ONSET : ONSET + 10] = 10.0, 30.0
    gradient[ONSET + 10 :] = gradient_after
    return run(loss, update=update, gradient=gradient)


def test_dead_units_after_an_explosion_are_its_consequence() -> None:
    """A network that an explosion killed stays exploding; its zero gradients and its plateau follow from that."""
    diagnosis = diagnose(exploding_run(noisy(2.5, 300), gradient_after=0.0))
    assert [change.verdict for change in keep_verdicts(diagnosis.changes)] == ["healthy", "exploding"]
    dead = find_finding(diagnosis, "zero_gradient")
    assert dead is not None
    assert dead.consequence_of == keep_verdicts(diagnosis.changes)[1].finding
    exploded = find_finding(diagnosis, "loss_divergence")
    assert exploded is not None
    assert exploded.consequence_of is None
    assert f"(it began at step {ONSET})" in diagnosis.summary
    assert f"Gradients are exactly zero since step {dead.first_step}" in diagnosis.summary
    assert "as a consequence" in diagnosis.summary


def test_what_a_run_had_before_its_explosion_is_no_consequence() -> None:
    """A finding that is older than the explosion does not follow from it."""
    block = exploding_run(noisy(2.5, 300))
    diagnosis = diagnose(dataclasses.replace(block, values=block.values * np.array([1, 1, 1, 1, 0])))
    assert find_finding(diagnosis, "saturation") is None
    values = block.values.copy()
    values[:, :, -1] = 0.8  # saturated from the first step
    diagnosis = diagnose(dataclasses.replace(block, values=values))
    saturated = find_finding(diagnosis, "saturation")
    assert diagnosis.verdict == "exploding"
    assert saturated is not None
    assert saturated.consequence_of is None


def test_what_may_follow_from_an_explosion_has_words() -> None:
    """Every detector of vanishing may follow from an explosion; one of explosions, or of faults of the script, not."""
    verdicts = {detector.id: detector.verdict for detector in DETECTOR_TYPES}
    assert {identity for identity, verdict in verdicts.items() if verdict == "vanishing"} <= set(CONSEQUENCES)
    assert set(CONSEQUENCES) <= set(verdicts)
    assert "exploding" not in {verdicts[identity] for identity in CONSEQUENCES}
    assert not {"disconnected_parameters", "loss_mismatch"} & set(CONSEQUENCES)


def test_a_fault_of_the_script_is_no_consequence() -> None:
    """Layers without any gradient are a fault from the first step on, also where the run explodes at once."""
    block = run(np.full(300, np.nan))
    present = block.present.copy()
    present[:, 0] = False
    diagnosis = diagnose(dataclasses.replace(block, present=present))
    assert diagnosis.verdict == "exploding"
    fault = find_finding(diagnosis, "disconnected_parameters")
    assert fault is not None
    assert (fault.first_step, fault.consequence_of) == (0, None)


def test_a_plateau_at_a_worse_level_is_no_recovery() -> None:
    """A loss that is below its start again, but far above its level from before the explosion, has not recovered."""
    assert list_verdicts(exploding_run(noisy(1.4, 600))) == ["healthy", "exploding"]
    assert "The loss gets worse: it is 1.3" in diagnose(exploding_run(noisy(1.4, 600))).summary


def test_a_moment_at_the_old_level_is_no_recovery() -> None:
    """A loss that is below its level from before the explosion for a moment only stays exploding."""
    after = noisy(1.4, 400)
    after[200 : 200 + RECOVERED_LOSSES] = 0.2
    assert list_verdicts(exploding_run(after)) == ["healthy", "exploding"]


def test_a_run_recovers_when_it_is_back_and_learns() -> None:
    """A run that learns again and falls below its level from before ends its explosion once, and the summary has it."""
    diagnosis = diagnose(exploding_run(falling(400)))
    changes = keep_verdicts(diagnosis.changes)
    assert [change.verdict for change in changes] == ["healthy", "exploding", "healthy"]
    level_before = float(falling(ONSET)[-40:].mean())
    at_recovery = exploding_run(falling(400)).series["loss"].values[changes[2].step]
    assert at_recovery < level_before
    assert f"Healthy again since step {changes[2].step}: the run was exploding from step {ONSET} on" in (
        diagnosis.summary
    )
    exploded = find_finding(diagnosis, str(changes[1].finding))
    assert exploded is not None
    assert exploded.resolved_step == changes[2].step


def test_a_converged_run_recovers_at_its_old_level() -> None:
    """A run that had converged before an excursion has nothing more to learn: its old level is enough."""
    loss = np.concatenate(
        [falling(200, half_life=20), np.full(100, 0.003), [200, 900, 900, 500, 90], noisy(0.003, 300)]
    )
    update = np.full((len(loss), 1), 0.01)
    update[300:305] = 8.0
    assert list_verdicts(run(loss, update=update)) == ["healthy", "exploding", "healthy"]


def test_an_explosion_before_anything_was_learned_needs_learning() -> None:
    """A run that exploded at its beginning and is back at its start has not recovered; one that learns has."""

    def with_blow_up(after: Floats) -> Block:
        loss = np.concatenate([noisy(2.3, 10), [100, 500, 4000, 4000, 900], after])
        update = np.full((len(loss), 1), 0.01)
        update[9:15] = 8.0
        return run(loss, update=update)

    assert list_verdicts(with_blow_up(noisy(2.3, 400))) == ["exploding"]
    assert list_verdicts(with_blow_up(falling(400))) == ["exploding", "healthy"]


def test_dead_units_after_a_single_blow_up_wait_for_its_aftermath() -> None:
    """A blow-up that alone is no verdict, and kills the network, is the explosion; the dead units follow from it."""
    loss = np.concatenate([[2.3, 2.3, 60.0], noisy(2.3, 300)])
    update, gradient = np.full((len(loss), 1), 0.01), np.ones((len(loss), 1))
    update[1], gradient[4:] = 2.0, 0.0
    assert list_verdicts(run(loss, update=update, gradient=gradient)) == ["healthy", "exploding"]


def test_gradients_that_vanish_while_the_weights_grow_wait_for_the_explosion() -> None:
    """Weights that have doubled and still grow may explode: gradients that fade meanwhile are no verdict yet."""
    steps = 500
    growth = np.exp(np.arange(steps) / 60)
    loss = np.where(np.arange(steps) < 350, noisy(2.3, steps), 2.3 * np.exp((np.arange(steps) - 350) / 30))
    fading = GAP * np.ones((steps, 1))
    assert list_verdicts(run(loss, gradient=fading, weight=(10 * growth)[:, None])) == ["healthy", "exploding"]
    assert list_verdicts(run(loss[:300], gradient=fading[:300])) == ["healthy", "vanishing"]


def test_a_gap_that_narrows_does_not_end_vanishing() -> None:
    """A network that is flat from the first step to the last stays vanishing when its gradients even out."""
    gradient = np.tile(GAP, (600, 1))
    gradient[300:] = 1.0
    diagnosis = diagnose(run(noisy(2.3, 600), gradient=gradient))
    assert [change.verdict for change in keep_verdicts(diagnosis.changes)] == ["healthy", "vanishing"]
    finding = find_finding(diagnosis, "depth_gap")
    assert finding is not None
    assert finding.resolved_step is None
    assert finding.last_step < 400
    assert f"At step {finding.last_step}:" in diagnosis.summary


@pytest.mark.parametrize("dip", [5, 15])
def test_a_dip_does_not_end_vanishing(dip: int) -> None:
    """A stuck loss that is lower for a few steps stays vanishing."""
    loss = noisy(2.3, 600)
    loss[300 : 300 + dip] = 0.5
    assert list_verdicts(run(loss, gradient=GAP)) == ["healthy", "vanishing"]


def test_vanishing_ends_when_the_run_learns() -> None:
    """A loss that falls after a plateau ends vanishing once, and for good."""
    loss = np.concatenate([noisy(2.3, 300), falling(300)])
    diagnosis = diagnose(run(loss, gradient=GAP))
    assert [change.verdict for change in keep_verdicts(diagnosis.changes)] == ["healthy", "vanishing", "healthy"]
    assert "the run was vanishing from step" in diagnosis.summary


@pytest.mark.parametrize("noise", [0.02, 0.3])
def test_noise_rarely_changes_a_verdict(noise: float) -> None:
    """Of twenty stuck runs none gets vanishing twice, whatever the noise."""
    for seed in range(20):
        loss = np.abs(2.3 * (1 + noise * np.random.default_rng(seed).normal(size=600)))
        assert list_verdicts(run(loss, gradient=GAP)).count("vanishing") == 1


def vanishing_run(excursion: int, *, dead: bool = False) -> Block:
    """Return a vanishing run whose loss is a thousand times higher from step 300 on, for so many steps, or NaN."""
    loss, update = noisy(2.3, 600), np.full((600, 1), 0.01)
    loss[300 : 300 + excursion] = np.nan if dead else 3000.0
    update[300 : 300 + excursion] = 10.0
    return run(loss, gradient=GAP, update=update)


def test_an_excursion_does_not_change_vanishing() -> None:
    """A vanishing run with a short excursion stays vanishing; it never goes back and forth."""
    assert list_verdicts(vanishing_run(CERTAIN_LOSSES // 2)) == ["healthy", "vanishing"]


def test_a_vanishing_run_that_truly_explodes_changes_once() -> None:
    """A loss that stays blown up, or is NaN for good, makes a vanishing run exploding, once and for all."""
    expected = ["healthy", "vanishing", "exploding"]
    assert list_verdicts(vanishing_run(300)) == expected
    assert list_verdicts(vanishing_run(300, dead=True)) == expected
    changes = keep_verdicts(diagnose(vanishing_run(300, dead=True)).changes)
    assert changes[-1].step in (300, 301)


def test_a_loss_that_is_finite_again_recovers_when_it_is_back() -> None:
    """NaN losses that reached no weight end as an explosion when the loss goes on as before."""
    loss = falling(300)
    loss[150:153] = np.nan
    assert list_verdicts(without_weights(run(loss))) == ["healthy", "exploding", "healthy"]
    loss[153:] = noisy(2.3, 147)
    assert list_verdicts(without_weights(run(loss))) == ["healthy", "exploding"]


def test_nonfinite_weights_never_recover() -> None:
    """Once a weight is NaN the run stays exploding, whatever its loss is."""
    block = run(falling(400))
    values = block.values.copy()
    values[200, 1, block.statistics.index("weight_norm")] = np.nan
    assert list_verdicts(dataclasses.replace(block, values=values)) == ["healthy", "exploding"]


REWARD = Training(objective=Objective(kind="metric", metric="reward", direction="maximize"))


@pytest.mark.parametrize(("reward_after", "expected"), [(20.0, "exploding"), (120.0, "healthy")])
def test_a_declared_metric_shows_the_recovery(reward_after: float, expected: str) -> None:
    """A policy that exploded has recovered when its reward is back, whatever its loss is."""
    block = exploding_run(noisy(1.4, 600))
    every = np.ones(len(block), dtype=np.bool_)
    reward = 100 - falling(len(block), start=100.0)
    reward[ONSET : ONSET + 10] = 0.0
    reward[ONSET + 10 :] = reward_after - falling(600, start=reward_after, half_life=30)
    block = dataclasses.replace(block, metrics={"reward": StepSeries(reward, every)})
    assert Diagnostician(layers(), REWARD).update(block).verdict == expected


def test_a_surrogate_shows_no_recovery() -> None:
    """The loss of a policy gradient is no level: where it explodes, nothing shows that the policy is back."""
    block = exploding_run(falling(400))
    assert diagnose(block).verdict == "healthy"
    surrogate = Training(loss=Loss(surrogate=True))
    assert Diagnostician(layers(), surrogate).update(block).verdict == "exploding"


def test_without_a_loss_silent_detectors_end_a_verdict() -> None:
    """Gradients that explode and calm down are healthy again when no detector votes any more."""
    scale = np.ones((300, 1))
    scale[100:130] = np.geomspace(10, 1e6, 30)[:, None]
    block = dataclasses.replace(without_weights(run(falling(300), gradient=scale)), series={})
    changes = keep_verdicts(diagnose(block).changes)
    assert [change.verdict for change in changes] == ["healthy", "exploding", "healthy"]
    assert changes[2].step > 130


def test_an_explosion_with_a_level_outlasts_a_change_of_the_layers() -> None:
    """A run whose layers take turns after an explosion keeps it for some steps: its losses show no level any more."""
    block = exploding_run(noisy(1.4, 100))
    present = block.present.copy()
    present[ONSET + 40 :: 2, :2] = False
    changes = keep_verdicts(diagnose(dataclasses.replace(block, present=present)).changes)
    assert changes[1].verdict == "exploding"
    assert all(change.step >= ONSET + 39 + RECOVERED_LOSSES for change in changes[2:])


def test_muting_what_decided_drops_the_verdict() -> None:
    """A muted detector's verdict ends with the next block; another detector that voted for it takes over."""
    block = exploding_run(noisy(1.4, 600))
    diagnostician = Diagnostician(layers())
    diagnostician.update(block.cut(0, 500))
    state, votes = diagnostician.to_bytes(), diagnostician.diagnose()
    deciders = {finding.detector for finding in votes.findings if finding.verdict == "exploding"}
    muted = Diagnostician.from_bytes(state, layers(), muted=deciders)
    assert muted.update(block.cut(500, 600)).verdict == "healthy"
    partly = Diagnostician.from_bytes(state, layers(), muted={"loss_divergence"})
    expected = "exploding" if deciders - {"loss_divergence"} else "healthy"
    assert partly.update(block.cut(500, 600)).verdict == expected


def test_a_state_without_a_course_keeps_its_verdict() -> None:
    """A state of version 0.1 has no course: its verdict goes on, and ends as that of any run does."""
    for after, expected in ((noisy(1.4, 600), "exploding"), (falling(600), "healthy")):
        block = exploding_run(after)
        diagnostician = Diagnostician(layers())
        diagnostician.update(block.cut(0, 170))
        state = unpack_state(diagnostician.to_bytes())
        del state["course"]
        restored = Diagnostician.from_bytes(pack_state(state), layers())
        assert restored.diagnose().verdict == "exploding"
        assert restored.update(block.cut(170, len(block))).verdict == expected


def test_a_finding_ends_when_its_level_is_the_runs_own() -> None:
    """Gradients that grew a thousandfold at the start, as behind an output of zero, are normal once the run learns."""
    growth = 10.0 ** (np.minimum(np.arange(300) / 8, 3) - 3)
    finding = find_finding(diagnose(run(falling(300, half_life=150), gradient=growth[:, None])), "growth_in_time")
    assert finding is not None
    assert finding.resolved_step is not None
    stuck = find_finding(diagnose(run(noisy(2.3, 80), gradient=growth[:80, None])), "growth_in_time")
    assert stuck is not None
    assert stuck.resolved_step is None


PIECES = st.lists(
    st.tuples(
        st.sampled_from(["fall", "flat", "blow up", "nan", "dead", "gap"]), st.integers(5, 120), st.floats(0.1, 5.0)
    ),
    min_size=2,
    max_size=6,
)


def build_run(pieces: list[tuple[str, int, float]]) -> Block:
    """Return a run of pieces of a kind, a length and a level of the loss each."""
    losses, updates, gradients = [], [], []
    for kind, steps, level in pieces:
        loss = falling(steps, start=level, half_life=30) if kind == "fall" else noisy(level, steps)
        loss = {"blow up": loss * 1e4, "nan": np.full(steps, np.nan)}.get(kind, loss)
        losses.append(loss)
        updates.append(np.full((steps, 1), 10.0 if kind == "blow up" else 0.01))
        row = {"dead": np.zeros(4), "gap": GAP}.get(kind, np.ones(4))
        gradients.append(np.tile(row, (steps, 1)))
    return run(np.concatenate(losses), update=np.concatenate(updates), gradient=np.concatenate(gradients))


@settings(max_examples=40, deadline=None)
@given(pieces=PIECES, data=st.data())
def test_no_run_goes_from_exploding_to_vanishing(pieces: list[tuple[str, int, float]], data: st.DataObject) -> None:
    """Whatever a run does, exploding never changes to vanishing, and vanishing to exploding at most once in a row.

    The changes are the same however the run is cut into blocks, and through bytes after each of them.
    """
    block = build_run(pieces)
    changes = list(diagnose(block).changes)
    verdicts = [change.verdict for change in keep_verdicts(changes)]
    assert ("exploding", "vanishing") not in list(pairwise(verdicts))
    assert all(before != after for before, after in pairwise(verdicts))
    cuts = data.draw(st.lists(st.integers(1, len(block) - 1), max_size=8))
    diagnostician, parts = Diagnostician(layers()), list[VerdictChange]()
    for start, stop in pairwise([0, *sorted(set(cuts)), len(block)]):
        parts += diagnostician.update(block.cut(start, stop)).changes
        diagnostician = Diagnostician.from_bytes(diagnostician.to_bytes(), layers())
    assert parts == changes
    assert diagnostician.diagnose().summary == diagnose(block).summary
