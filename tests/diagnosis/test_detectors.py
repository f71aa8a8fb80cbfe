"""The condition that each detector finds, and similar runs without a finding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.diagnosis.synthetic_run import falling, layers, noisy, run

from gradmedic.protocol.diagnosis import Finding
from gradmedic.protocol.runs import Layer
from gradmedic_diagnosis import Block, Diagnostician, UpdatedDiagnosis
from gradmedic_diagnosis.state import pack_state, unpack_state

STEPS = 300


def diagnose(block: Block) -> UpdatedDiagnosis:
    """Diagnose a whole run at once."""
    return Diagnostician(layers(block.present.shape[1])).update(block)


def found(diagnosis: UpdatedDiagnosis, detector: str) -> Finding | None:
    """Return a detector's finding; None if it has none."""
    return next((finding for finding in diagnosis.findings if finding.detector == detector), None)


def alarms(diagnosis: UpdatedDiagnosis) -> list[tuple[int, str]]:
    """Return the unhealthy verdicts of the whole run with their steps."""
    return [(c.step, c.verdict) for c in diagnosis.changes if c.verdict in ("vanishing", "exploding")]


def test_a_falling_loss_is_healthy() -> None:
    """An ordinary run has no finding at all."""
    diagnosis = diagnose(run(falling(STEPS)))
    assert diagnosis.verdict == "healthy"
    assert not diagnosis.findings


def test_a_gap_over_depth_needs_a_stuck_loss() -> None:
    """Early gradients four decades below the last are a verdict while the loss is flat, and none while it falls."""
    gradient = 10.0 ** np.array([-4, -3, -1, 0])
    stuck = diagnose(run(noisy(2.3, STEPS), gradient=gradient))
    assert stuck.verdict == "vanishing"
    finding = found(stuck, "depth_gap")
    assert finding is not None
    assert finding.layers[0] == "0.weight"
    assert finding.evidence["gap_decades"] == pytest.approx(3.5)
    assert not alarms(diagnose(run(falling(STEPS), gradient=gradient)))


def test_a_plateau_without_a_gap_is_a_note() -> None:
    """A flat loss with even gradients is noted as a plateau and is no alarm."""
    diagnosis = diagnose(run(noisy(2.3, STEPS)))
    assert not alarms(diagnosis)
    finding = found(diagnosis, "plateau")
    assert finding is not None
    assert finding.severity == "note"


def test_a_low_learning_rate_is_a_note() -> None:
    """Updates a billion times smaller than the weights are noted as starvation and are no alarm."""
    diagnosis = diagnose(run(noisy(2.3, STEPS), update=1e-8, learning_rate=1e-8))
    assert not alarms(diagnosis)
    finding = found(diagnosis, "starvation")
    assert finding is not None
    assert finding.evidence["update_to_weight"] == pytest.approx(1e-9, rel=1e-3)


def test_excessive_clipping_is_vanishing() -> None:
    """An update a million times below learning rate times gradient, with a stuck loss, is excessive clipping."""
    diagnosis = diagnose(run(noisy(2.3, STEPS), update=1e-8, learning_rate=0.01))
    assert diagnosis.verdict == "vanishing"
    assert diagnosis.causes[0].cause == "excessive_clipping"
    assert diagnosis.advice[0].remedy.id == "relax_clipping"
    finding = found(diagnosis, "excessive_clipping")
    assert finding is not None
    assert finding.evidence["share_of_gradient_left"] == pytest.approx(1e-6, rel=1e-3)


def test_a_dead_network_is_vanishing_soon() -> None:
    """Gradients that are all exactly zero, with a loss that is not down, are vanishing within fifty steps."""
    gradient = np.ones((STEPS, 4))
    gradient[100:] = 0
    loss = np.concatenate([falling(100, half_life=300), noisy(2.3, STEPS - 100)])
    diagnosis = diagnose(run(loss, gradient=gradient))
    assert diagnosis.verdict == "vanishing"
    assert 119 <= alarms(diagnosis)[0][0] <= 150
    assert diagnosis.causes[0].cause == "dead_units"


def test_one_batch_with_gradients_revives_no_network() -> None:
    """A single step with gradients does not resolve a dead network; lasting gradients do."""
    gradient = np.ones((STEPS, 4))
    gradient[100:] = 0
    gradient[250] = 1e-7
    assert diagnose(run(noisy(2.3, STEPS), gradient=gradient)).verdict == "vanishing"
    gradient[250:] = 1
    finding = found(diagnose(run(noisy(2.3, STEPS), gradient=gradient)), "zero_gradient")
    assert finding is not None
    assert finding.resolved_step is not None


def recurrent_layers() -> tuple[Layer, ...]:
    """A small plain recurrent network, from its input to its head."""
    names = ("rnn.weight_ih_l0", "rnn.weight_hh_l0", "hidden.weight", "head.weight")
    return tuple(Layer(name=name, numel=100, shape=[10, 10]) for name in names)


def test_a_dead_hidden_state_is_vanishing() -> None:
    """A recurrent matrix whose gradient becomes exactly zero, while the loss is stuck, has a dead hidden state."""
    gradient = np.ones((STEPS, 4))
    gradient[30:, 1] = 0
    diagnosis = Diagnostician(recurrent_layers()).update(run(noisy(2.3, STEPS), gradient=gradient))
    assert diagnosis.verdict == "vanishing"
    finding = found(diagnosis, "zero_gradient")
    assert finding is not None
    assert finding.layers == ["rnn.weight_hh_l0"]
    assert "dead after its first time step" in finding.explanation
    assert "replace_recurrent_cell" in {advice.remedy.id for advice in diagnosis.advice}


@pytest.mark.parametrize(
    ("loss", "dead_from"),
    [(noisy(2.3, STEPS), 0), (falling(STEPS), 30)],
    ids=["sequences of one step", "the loss falls"],
)
def test_a_recurrent_matrix_may_be_unused(loss: NDArray[np.float64], dead_from: int) -> None:
    """A matrix that never had a gradient, or without which the loss falls, is no dead hidden state."""
    gradient = np.ones((STEPS, 4))
    gradient[dead_from:, 1] = 0
    diagnosis = Diagnostician(recurrent_layers()).update(run(loss, gradient=gradient))
    assert "zero_gradient" not in {change.finding for change in diagnosis.changes}


def test_converged_to_zero_gradient_is_healthy() -> None:
    """Zero gradients after the loss has fallen are no failure: nothing is left to learn."""
    gradient = np.ones((STEPS, 4))
    gradient[250:] = 0
    assert not alarms(diagnose(run(falling(STEPS, half_life=20), gradient=gradient)))


def test_saturation_is_found_where_it_is_watched() -> None:
    """Mostly saturated activations are a warning in a run that learns, and a verdict in one that is stuck."""
    learning = diagnose(run(falling(STEPS), saturation=0.8))
    finding = found(learning, "saturation")
    assert finding is not None
    assert finding.severity == "warning"
    assert not alarms(learning)
    assert diagnose(run(noisy(2.3, STEPS), saturation=0.8)).verdict == "vanishing"


def test_growth_towards_the_input_is_a_warning() -> None:
    """Input-side gradients four decades above the output side are a warning, no verdict."""
    diagnosis = diagnose(run(falling(STEPS), gradient=10.0 ** np.array([4, 2, 0, 0])))
    finding = found(diagnosis, "depth_growth")
    assert finding is not None
    assert finding.layers[0] == "0.weight"
    assert not alarms(diagnosis)


def test_overshooting_is_a_note() -> None:
    """A loss that alternates around its level is noted as oscillation."""
    swing = [2.3 * (1 + 0.4 * (-1) ** step) for step in range(STEPS)]
    finding = found(diagnose(run(swing)), "oscillation")
    assert finding is not None
    assert finding.severity == "note"


def test_geometric_growth_is_exploding_early() -> None:
    """Gradients and updates that double every step are exploding long before the loss overflows float32."""
    steps = 200
    growth = np.maximum(0, np.arange(steps) - 100)
    loss = falling(steps) * 1.5**growth
    scale = (2.0**growth)[:, None]
    diagnosis = diagnose(
        run(np.minimum(loss, 1e30), gradient=np.minimum(scale, 1e30), update=np.minimum(0.01 * scale, 1e30))
    )
    assert diagnosis.verdict == "exploding"
    assert alarms(diagnosis)[0][0] < 116


def test_one_bad_batch_is_no_verdict() -> None:
    """A loss that is a thousand times too high for one step, with a small update, is no verdict."""
    loss, gradient = falling(STEPS), np.ones((STEPS, 1))
    loss[150] *= 1000
    gradient[150] = 1000
    assert not alarms(diagnose(run(loss, gradient=gradient)))


def test_a_blow_up_that_ends_the_training_is_exploding() -> None:
    """After one blow-up that rewrote a tenth of the weights, a loss that never falls again is an explosion."""
    loss, update = noisy(2.3, STEPS), np.full((STEPS, 1), 0.01)
    loss[5], update[4] = 80, 3.0
    diagnosis = diagnose(run(loss, update=update))
    assert diagnosis.verdict == "exploding"
    finding = found(diagnosis, "loss_divergence")
    assert finding is not None
    assert finding.first_step == 5


def test_slow_divergence_is_exploding() -> None:
    """A loss that climbs tenfold over hundreds of steps while the weights double is exploding, with tiny updates."""
    growth = np.exp(np.arange(900) / 250)
    block = run(2.0 * growth, gradient=growth[:, None], weight=(10 * np.sqrt(growth))[:, None], update=0.02)
    assert diagnose(block).verdict == "exploding"


BIASED = (*layers(4), Layer(name="4.bias", numel=1, role="bias"))
"""Weight matrices and an output bias."""


@pytest.mark.parametrize("fall", [0.0, 0.6])
def test_a_bias_does_not_make_the_loss_sensitive(fall: float) -> None:
    """An insensitive loss is found although an output bias learns and lowers the loss."""
    loss = noisy(2.3, STEPS, noise=0.1) * (1 - fall * (1 - 0.5 ** (np.arange(STEPS) / 10)))
    still = run(loss, gradient=[1e-5, 1e-5, 1e-5, 1e-5, 1.0], count=5)
    diagnosis = Diagnostician(BIASED).update(still)
    assert diagnosis.verdict == "vanishing"
    finding = found(diagnosis, "insensitive_loss")
    assert finding is not None
    assert finding.evidence["grip"] < 1e-3
    assert ("never moved" in finding.explanation) == (fall == 0)
    assert not alarms(Diagnostician(BIASED).update(run(loss, gradient=1.0, count=5)))


def test_a_loss_that_became_insensitive_has_converged() -> None:
    """A loss that fell while it was sensitive to the weights, and is flat since it is not, is no failure."""
    loss = noisy(2.3, STEPS) * (0.4 + 0.6 * 0.5 ** (np.arange(STEPS) / 10))
    gradient = np.where(np.arange(STEPS) < 40, 1.0, 1e-5)[:, None]
    assert not alarms(Diagnostician(BIASED).update(run(loss, gradient=gradient, count=5)))


def test_a_state_without_the_first_sensitivity_raises_no_alarm() -> None:
    """A converged run stays healthy if its state lacks whether the loss was ever sensitive to the weights."""
    loss = noisy(2.3, STEPS) * (0.4 + 0.6 * 0.5 ** (np.arange(STEPS) / 10))
    block = run(loss, gradient=np.where(np.arange(STEPS) < 40, 1.0, 1e-5)[:, None])
    diagnostician = Diagnostician(layers(4))
    diagnostician.update(block.cut(0, 100))
    state = unpack_state(diagnostician.to_bytes())
    del state["detectors"]["insensitive_loss"]["never_had_grip"]
    restored = Diagnostician.from_bytes(pack_state(state), layers(4))
    assert restored.update(block.cut(100, STEPS)).verdict == "healthy"


def test_noise_does_not_withdraw_a_verdict() -> None:
    """A noisy stuck loss rarely seems to move; a loss that falls by half always does."""
    gradient = 10.0 ** np.array([-4, -3, -1, 0])
    withdrawn = 0
    for seed in range(20):
        noise = 1 + 0.3 * np.random.default_rng(seed).normal(size=2 * STEPS)
        verdicts = [c.verdict for c in diagnose(run(np.abs(2.3 * noise), gradient=gradient)).changes]
        assert "vanishing" in verdicts
        withdrawn += verdicts.count("healthy") > 1
        moving = np.where(np.arange(2 * STEPS) < STEPS, 1.0, 0.5) * np.abs(2.3 * noise)
        changes = diagnose(run(moving, gradient=gradient)).changes
        assert any(change.verdict == "healthy" and change.step > STEPS for change in changes)
    assert withdrawn <= 1


def overwritten(loss: NDArray[np.float64]) -> Block:
    """A run whose second update is thirty times its weights, most in the third layer."""
    weight, update = np.full((len(loss), 4), 10.0), np.full((len(loss), 4), 0.01)
    update[1] = weight[2:] = [300.0, 300.0, 600.0, 300.0]
    return run(loss, weight=weight, update=update)


def test_an_explosion_that_saturation_hides_is_found() -> None:
    """Weights that were overwritten and a noisy loss that never fell are an explosion, wherever the steps are cut."""
    block = overwritten(noisy(1.5, STEPS, noise=0.3))
    diagnosis = diagnose(block)
    assert diagnosis.verdict == "exploding"
    finding = found(diagnosis, "overwritten_weights")
    assert finding is not None
    assert finding.layers[0] == "2.weight"
    assert finding.first_step == 2
    assert finding.evidence["weight_growth"] == pytest.approx(np.sqrt(3 * 30**2 + 60**2) / 2)
    for size in (1, 7, 64):
        diagnostician = Diagnostician(layers(4))
        cuts = [diagnostician.update(block.cut(start, start + size)) for start in range(0, STEPS, size)]
        assert [change for cut in cuts for change in cut.changes] == list(diagnosis.changes)


def test_overwritten_weights_that_learn_are_healthy() -> None:
    """A loss that falls after such an update, at once or later, is a recovery, which withdraws the verdict."""
    assert not alarms(diagnose(overwritten(falling(STEPS))))
    late = np.concatenate([noisy(2.3, 100, noise=0.2), falling(500)])
    changes = diagnose(overwritten(late)).changes
    assert [change.verdict for change in changes] == ["healthy", "exploding", "healthy"]


def test_overwritten_weights_need_a_loss_that_did_not_blow_up() -> None:
    """A loss that blew up with the weights and came back may start learning again without an alarm."""
    loss = noisy(0.7, STEPS)
    loss[2] = 10.0
    loss[120:] = falling(STEPS - 120, start=0.7)
    assert found(diagnose(overwritten(loss)), "overwritten_weights") is None


def test_weights_that_grow_slowly_are_not_overwritten() -> None:
    """Weights that became thirty times as large by small steps are no explosion, though the loss is flat."""
    weight = 10 * 30 ** (np.arange(STEPS) / STEPS)
    assert found(diagnose(run(noisy(1.5, STEPS), weight=weight[:, None])), "overwritten_weights") is None


@settings(max_examples=25)
@given(order=st.permutations(range(4)))
def test_equal_layers_are_interchangeable(order: list[int]) -> None:
    """Permuting layers, with their depths given, changes nothing but their order in storage."""
    gradient = 10.0 ** np.array([-4, -3, -1, 0])
    facts = layers()
    block = run(noisy(2.3, 150), gradient=gradient)
    permuted = run(noisy(2.3, 150), gradient=gradient[list(order)])
    named = tuple(type(facts[i])(name=facts[i].name, numel=100, role="weight", depth=i) for i in order)
    expected = Diagnostician(facts).update(block)
    assert Diagnostician(named).update(permuted) == expected


@settings(max_examples=25)
@given(cut=st.integers(21, STEPS))
def test_a_healthy_prefix_stays_healthy(cut: int) -> None:
    """The verdict at a step does not depend on later steps."""
    assert diagnose(run(falling(STEPS)).cut(0, cut)).verdict == "healthy"


def without_weights(block: Block) -> Block:
    """Return the block without weight and update norms, as from a client that sends only gradients."""
    keep = [block.statistics.index(name) for name in ("grad_norm", "nonfinite_count")]
    fields = {name: getattr(block, name) for name in Block.__dataclass_fields__}
    return Block(**{**fields, "statistics": ("grad_norm", "nonfinite_count"), "values": block.values[:, :, keep]})


def test_gradients_alone_can_explode() -> None:
    """Gradients that double every step are exploding, also where neither loss nor weights are sent."""
    scale = 2.0 ** np.maximum(0, np.arange(120) - 60)
    block = without_weights(run(falling(120), gradient=scale[:, None]))
    without_loss = Block(**{**{n: getattr(block, n) for n in Block.__dataclass_fields__}, "series": {}})
    assert diagnose(without_loss).verdict == "exploding"


def test_losses_alone_can_explode() -> None:
    """A loss that climbs by a third every step is exploding without any statistics."""
    block = run([2.0 * 1.3**step for step in range(60)])
    empty = np.zeros((0, 4, len(block.statistics)), dtype=np.float32)
    fields = {name: getattr(block, name) for name in Block.__dataclass_fields__}
    none = np.zeros(60, dtype=np.bool_)
    alone = Block(**{**fields, "sampled": none, "values": empty, "present": np.zeros((0, 4), dtype=np.bool_)})
    assert diagnose(alone).verdict == "exploding"


def test_an_objective_without_a_floor_diverges_downwards() -> None:
    """A negative loss that diverges to minus infinity, with growing updates, is exploding before it is infinite."""
    steps = 160
    growth = np.maximum(0, np.arange(steps) - 100)
    loss = np.where(growth == 0, 1.0 - np.arange(steps) / 100, -(1.8 ** growth.astype(float)))
    scale = (2.0**growth)[:, None]
    diagnosis = diagnose(run(loss, gradient=scale, update=0.01 * scale))
    assert diagnosis.verdict == "exploding"
    assert alarms(diagnosis)[0][0] < 125


def test_the_summary_of_a_healthy_run_names_what_was_measured() -> None:
    """The summary names gradients and updates only where they were sent, and a warning where one is open."""
    assert "an update changes the weights by 0.001" in diagnose(run(falling(100))).summary
    assert "update" not in diagnose(without_weights(run(falling(100)))).summary
    assert diagnose(run(falling(100), saturation=0.8)).summary.startswith("No alarm, but:")


def test_an_update_of_exactly_zero_is_starvation() -> None:
    """A learning rate too small to change any weight in float32 is starvation, too."""
    assert found(diagnose(run(noisy(2.3, STEPS), update=0.0, learning_rate=1e-12)), "starvation") is not None
