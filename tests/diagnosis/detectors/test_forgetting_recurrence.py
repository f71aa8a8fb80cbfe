"""A recurrence through which no gradient reaches the first time steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.diagnosis.probed_run import add_probes
from tests.diagnosis.synthetic_run import falling, noisy, run

from gradmedic.protocol.probes import name_metric
from gradmedic.protocol.runs import Layer, Loss, Training
from gradmedic_diagnosis import Block, Diagnostician, UpdatedDiagnosis

STEPS = 300
LAYERS = [
    Layer(name="lstm.weight_ih_l0", numel=100, role="weight", kind="LSTM"),
    Layer(name="lstm.weight_hh_l0", numel=100, role="recurrent", kind="LSTM"),
    Layer(name="decoder.weight_hh_l0", numel=100, role="recurrent", kind="LSTM"),
    Layer(name="head.weight", numel=100, role="weight", kind="Linear"),
]


def probed(loss: Any, factor: Any, length: float = 40.0, module: str = "lstm", block: Block | None = None) -> Block:
    """Return a run with a recurrent module."""
    names = name_metric("time_gradient_factor", module), name_metric("time_steps", module)
    return add_probes(block or run(loss), {names[0]: factor, names[1]: length})


def diagnose(block: Block, training: Training | None = None) -> UpdatedDiagnosis:
    """Diagnose a whole run."""
    return Diagnostician(LAYERS, training).update(block)


def find(diagnosis: UpdatedDiagnosis) -> Any:
    """Return the finding; None if there is none."""
    return next((each for each in diagnosis.findings if each.detector == "forgetting_recurrence"), None)


def test_a_stuck_run_whose_gradient_dies_over_time_is_explained() -> None:
    """The finding is a warning and a cause, with the factor, the length and what arrives; the verdict is healthy."""
    diagnosis = diagnose(probed(noisy(0.69, STEPS), 0.6))
    finding = find(diagnosis)
    assert finding.severity == "warning"
    assert finding.layers == ["lstm.weight_ih_l0", "lstm.weight_hh_l0"]
    assert finding.evidence["share_at_first_time_step"] == pytest.approx(0.6**39)
    assert diagnosis.verdict == "healthy"
    assert diagnosis.level == "attention"
    assert diagnosis.causes[0].cause == "forgetting_recurrence"


@pytest.mark.parametrize(("batch_size", "is_asked"), [(40, True), (64, False), (None, False)])
def test_a_sequence_as_long_as_the_batch_is_asked_about(batch_size: int | None, is_asked: bool) -> None:
    """A recurrence without batch_first takes the batch for the time; then both numbers are the same."""
    finding = find(diagnose(probed(noisy(0.69, STEPS), 0.6), Training(batch_size=batch_size)))
    assert ("batch_first=True" in finding.explanation) is is_asked


def test_it_is_a_note_while_the_loss_falls() -> None:
    """Most cells forget; where the loss falls, that is no trouble."""
    diagnosis = diagnose(probed(falling(STEPS), 0.6))
    assert find(diagnosis).severity == "note"
    assert diagnosis.level == "ok"
    assert not diagnosis.causes


def test_a_loss_at_the_level_of_a_constant_output_has_learned_nothing() -> None:
    """A loss that fell from 2 to what a constant output gets is stuck, although it fell."""
    loss = np.concatenate([np.linspace(2.0, 0.69, 10), noisy(0.69, STEPS - 10)])
    training = Training(loss=Loss(kind="cross_entropy", classes=2, constant_level=0.69, surrogate=False))
    assert find(diagnose(probed(loss, 0.6), training)).severity == "warning"
    assert find(diagnose(probed(loss, 0.6))).severity == "note"


@pytest.mark.parametrize(("factor", "length"), [(0.98, 40.0), (0.6, 12.0), (1.1, 200.0), (np.nan, 40.0), (0.0, 1.0)])
def test_it_is_silent_where_the_gradient_arrives(factor: float, length: float) -> None:
    """A good memory, a short sequence, growth and an unknown factor are no finding, also in a stuck run."""
    assert find(diagnose(probed(noisy(0.69, STEPS), factor, length))) is None


def test_one_of_several_modules_on_one_sequence_may_remember() -> None:
    """Of modules with one length, one that remembers is enough; of another length, each must."""
    block = probed(noisy(0.69, STEPS), 0.6)
    assert find(diagnose(probed(None, 0.99, module="decoder", block=block))) is None
    assert find(diagnose(probed(None, 0.99, length=10.0, module="decoder", block=block))) is not None


def test_it_ends_when_the_recurrence_remembers_and_the_warning_when_the_loss_falls() -> None:
    """A factor that rises resolves the finding; a loss that falls makes it a note."""
    factor = np.where(np.arange(STEPS) < 200, 0.6, 0.99)
    assert find(diagnose(probed(noisy(0.69, STEPS), factor))).resolved_step == 200
    loss = np.concatenate([noisy(0.69, 200), 0.69 * 0.5 ** (np.arange(200) / 40)])
    assert find(diagnose(probed(loss, 0.6))).severity == "note"


def test_two_probes_are_not_enough() -> None:
    """The finding needs three probes in a row."""
    factor = np.where(np.arange(STEPS) % 15 < 10, 0.6, 0.99)
    assert find(diagnose(probed(noisy(0.69, STEPS), factor))) is None


@pytest.mark.parametrize("cut", [7, 100, 122, 250])
def test_blocks_do_not_matter(cut: int) -> None:
    """The finding is the same however the steps are cut, also over a stored state."""
    loss = np.concatenate([noisy(0.69, 200), 0.69 * 0.5 ** (np.arange(100) / 40)])
    block = probed(loss, 0.6)
    diagnostician = Diagnostician(LAYERS)
    diagnostician.update(block.cut(0, cut))
    restored = Diagnostician.from_bytes(diagnostician.to_bytes(), LAYERS)
    assert find(restored.update(block.cut(cut, len(block)))) == find(diagnose(block))


def test_a_measured_factor_counts_more_than_a_matrix() -> None:
    """A plain matrix that seems to shrink gradients is no verdict if they were measured to arrive, and else one."""
    layers = [
        Layer(name="rnn.weight_ih", numel=100, shape=[10, 10], role="weight", kind="RNNCell", activation="tanh"),
        Layer(name="rnn.weight_hh", numel=100, shape=[10, 10], role="recurrent", kind="RNNCell", activation="tanh"),
        Layer(name="head.weight", numel=100, role="weight", kind="Linear"),
    ]
    for weight, factor, verdict in ((5.0, 0.98, "healthy"), (5.0, 0.4, "vanishing"), (10.0, 0.4, "vanishing")):
        block = probed(noisy(0.69, STEPS), factor, module="rnn", block=run(noisy(0.69, STEPS), weight=weight, count=3))
        diagnosis = Diagnostician(layers).update(block)
        assert diagnosis.verdict == verdict
        if verdict == "vanishing":
            causes = {cause.cause: cause.evidence for cause in diagnosis.causes}
            assert causes["long_recurrence"]["factor_per_time_step"] == factor


def test_a_measured_factor_is_the_evidence_of_an_explosion_through_time() -> None:
    """A recurrence that was measured to shrink gradients is not blamed for an explosion, whatever its matrix is."""
    layers = [*LAYERS[:2], Layer(name="rnn.weight_hh", shape=[10, 10], role="recurrent", spectral_norm=1.3), LAYERS[3]]
    loss = np.concatenate([falling(80), np.full(20, np.nan)])
    for factor, is_blamed in ((1.2, True), (0.5, False)):
        causes = {c.cause: c.evidence for c in Diagnostician(layers).update(probed(loss, factor)).causes}
        assert ("long_recurrence" in causes) == is_blamed
        if is_blamed:
            assert causes["long_recurrence"] == {"factor_per_time_step": factor}
