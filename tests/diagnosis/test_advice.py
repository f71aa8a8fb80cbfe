"""Advice: its remedies are complete, applicable, and have parameters that fit the run."""

from __future__ import annotations

import ast
import functools
import string

import numpy as np
import pytest
from tests.diagnosis.synthetic_run import noisy, run

from gradmedic.protocol.diagnosis import Advice, Cause
from gradmedic.protocol.remedies import REMEDIES, Remedy, remedy_errors
from gradmedic.protocol.runs import Layer
from gradmedic_diagnosis import Diagnostician, UpdatedDiagnosis
from gradmedic_diagnosis.advice import advise
from gradmedic_diagnosis.race_counts import RACE_COUNTS, SCALE_FREE, SCALED, correct_merit
from gradmedic_diagnosis.remedies import CATALOGUE
from gradmedic_diagnosis.remedies.row import RemedyRow
from gradmedic_diagnosis.repair_counts import REPAIR_COUNTS
from gradmedic_diagnosis.run_evidence import RunEvidence
from gradmedic_diagnosis.snippets import write_snippet

FRAMEWORKS = ("torch 2.13.0", "keras 3.15", "jax 0.10", None)
EXAMPLES: dict[str, float | int | str] = {
    "activation": "ELU",
    "bias": 1.0,
    "cap": 30.0,
    "beta2": 0.95,
    "cell": "GRU",
    "clip_value": 0.1,
    "clipping": 0.01,
    "epsilon": 1e-8,
    "factor": 0.1,
    "kind": "LayerNorm",
    "max_learning_rate": 0.01,
    "learning_rate": 0.001,
    "max_norm": 1.0,
    "optimizer": "Adam",
    "relative_norm": 1.05,
    "scheme": "kaiming_normal",
    "share": 0.1,
    "standard_deviation": 0.1,
    "steps": 100,
    "strength": 1e-5,
    "threshold": 1.0,
    "time_steps": 35,
    "times_usual": 4.0,
    "weight_decay": 0.01,
}


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("id", sorted({row.id for row in CATALOGUE}))
def test_snippets_are_python(id: str, framework: str | None) -> None:
    """Every remedy's code parses, in every framework, with its parameters filled in."""
    code = write_snippet(Remedy(id=id, parameters=EXAMPLES), framework)
    ast.parse(code)
    assert not [field for _, field, _, _ in string.Formatter().parse(code.replace("{}", "")) if field in EXAMPLES]


@pytest.mark.parametrize("row", CATALOGUE, ids=lambda row: row.id)
def test_every_remedy_is_documented(row: RemedyRow) -> None:
    """Every remedy has a reason, a cost, a source, and a cause that it repairs."""
    assert row.reason.endswith(".")
    assert row.cost.endswith(".")
    assert row.sources
    assert any(chance >= 0.1 for chance in row.chances.values())


def test_the_textbook_remedies_are_all_there() -> None:
    """The catalogue holds every remedy that the literature on exploding and vanishing gradients names."""
    assert {
        "add_residual",
        "clip_grad_norm",
        "clip_grad_norm_per_layer",
        "clip_grad_value",
        "insert_normalization",
        "l1_penalty",
        "reinitialize",
        "replace_activation",
        "replace_recurrent_cell",
        "scale_learning_rate",
        "standardize_inputs",
        "switch_optimizer",
        "weight_decay",
        "weight_normalization",
    } <= {row.id for row in CATALOGUE}


def test_clipping_bound_comes_from_the_calm_steps() -> None:
    """The advised bound is the run's typical gradient norm, however large the gradients of the explosion are."""
    steps = 150
    gradient, update = np.full((steps, 1), 0.35), np.full((steps, 1), 0.01)
    loss = noisy(2.3, steps)
    gradient[120:], update[120:], loss[120:] = 1e6, 100.0, 1e6
    facts = tuple(Layer(name=f"{i}.weight", numel=100, role="weight") for i in range(4))
    diagnosis = Diagnostician(facts).update(run(loss, gradient=gradient, update=update))
    assert diagnosis.verdict == "exploding"
    remedy = next(a.remedy for a in diagnosis.advice if a.remedy.id == "clip_grad_norm")
    assert remedy.parameters == {"max_norm": 0.7}  # sqrt(4 * 0.35^2)


def test_trials_outweigh_published_chances(monkeypatch: pytest.MonkeyPatch) -> None:
    """A remedy that never repaired in many trials falls in rank; one that always repaired becomes the first."""
    calls: list[tuple[RunEvidence, list[Cause]]] = []

    def advise_as_published(evidence: RunEvidence, causes: list[Cause]) -> list[Advice]:
        calls.append((evidence, causes))
        return advise(evidence, causes, {}, {})

    monkeypatch.setattr("gradmedic_diagnosis.diagnostician.advise", advise_as_published)
    facts = tuple(Layer(name=f"{i}.weight", numel=100, role="weight") for i in range(4))
    published = Diagnostician(facts).update(run(noisy(2.3, 150) * np.where(np.arange(150) > 100, 1e4, 1), update=8.0))
    first, *others = published.advice
    evidence, causes = calls[-1]
    names = {row.reason: row.name for row in CATALOGUE}
    counts = {
        names[first.reason]: {cause.cause: (0, 100) for cause in causes},
        names[others[-1].reason]: {cause.cause: (100, 100) for cause in causes},
    }
    corrected = advise(evidence, causes, counts, {})
    assert corrected[0].remedy == others[-1].remedy
    assert first.remedy not in [advice.remedy for advice in corrected[:4]]
    top = causes[0].cause
    races = {
        names[first.reason]: {top: {SCALED: (0, 40)}},
        names[others[-1].reason]: {top: {SCALED: (40, 40)}},
    }
    raced = advise(evidence, causes, {}, races)
    assert raced[0].remedy == others[-1].remedy
    assert first.remedy not in [advice.remedy for advice in raced[:4]]


def test_races_with_the_same_kind_of_optimizer_count_most() -> None:
    """A race corrects the merit of its remedy and cause; one with another kind of optimizer corrects it less."""
    races = {"warm_up": {"dead_units": {SCALE_FREE: (0, 4)}}}
    own = correct_merit(0.5, "warm_up", "dead_units", is_scale_free=True, counts=races)
    other = correct_merit(0.5, "warm_up", "dead_units", is_scale_free=False, counts=races)
    assert own < other < correct_merit(0.5, "warm_up", "long_recurrence", is_scale_free=True, counts=races) == 0.5


def test_counts_are_of_known_rows_and_causes() -> None:
    """Every count belongs to a row of the catalogue and to a cause; one of an older name would be ignored."""
    assert REPAIR_COUNTS
    names = [row.name for row in CATALOGUE]
    assert len(set(names)) == len(names)
    assert set(REPAIR_COUNTS) <= set(names)
    assert {cause for causes in REPAIR_COUNTS.values() for cause in causes} <= {
        cause for row in CATALOGUE for cause in row.chances
    }
    assert all(0 <= hits <= of for causes in REPAIR_COUNTS.values() for hits, of in causes.values())
    assert set(RACE_COUNTS) <= set(names)
    kinds = [kind for causes in RACE_COUNTS.values() for kind in causes.values()]
    assert {name for kind in kinds for name in kind} <= {SCALE_FREE, SCALED}
    assert all(0 <= verified <= tried for kind in kinds for verified, tried in kind.values())


def recurrent_network(*hidden: Layer, spectral_norm: float = 1.0, is_dead: bool = False) -> UpdatedDiagnosis:
    """Diagnose a plain recurrent network with these hidden layers; it explodes, or its hidden state is dead."""
    layer = functools.partial(Layer, shape=[10, 10], numel=100)
    facts = (
        layer(name="rnn.weight_ih_l0", kind="RNN", role="weight"),
        layer(name="rnn.weight_hh_l0", kind="RNN", role="recurrent", spectral_norm=spectral_norm),
        *hidden,
        layer(name="head.weight", kind="Linear", role="weight"),
    )
    gradient = np.ones((150, len(facts)))
    gradient[30:, 1] = 0 if is_dead else 1
    loss = noisy(2.3, 150) * np.where(np.arange(150) > (150 if is_dead else 100), 1e4, 1)
    block = run(loss, gradient=gradient, weight=np.sqrt(10), update=0.01 if is_dead else 8.0, count=len(facts))
    diagnosis = Diagnostician(facts).update(block)
    assert diagnosis.verdict == ("vanishing" if is_dead else "exploding")
    return diagnosis


def test_a_recurrent_cell_needs_another_hidden_layer_for_some_remedies() -> None:
    """Activations and normalization are advised only if there is a hidden layer outside of the cell."""
    placed = {"insert_normalization", "replace_activation"}
    assert not placed & {advice.remedy.id for advice in recurrent_network(is_dead=True).advice}
    hidden = Layer(name="hidden.weight", kind="Linear", shape=[10, 10], numel=100, role="weight")
    assert placed & {advice.remedy.id for advice in recurrent_network(hidden, is_dead=True).advice}


def test_a_recurrent_matrix_that_starts_too_large_is_a_cause() -> None:
    """A large spectral norm at the start is the first cause, before large updates; that of torch's own is none."""
    causes = {cause.cause: cause for cause in recurrent_network(spectral_norm=6.0).causes}
    assert causes["poor_initialization"].evidence == {"recurrent_factor": 6.0}
    assert "orthogonal" in causes["poor_initialization"].explanation
    assert recurrent_network(spectral_norm=2.0).causes[0].cause == "poor_initialization"
    usual = recurrent_network(spectral_norm=1.15).causes
    assert usual[0].cause == "learning_rate_too_high"
    assert "poor_initialization" not in {cause.cause for cause in usual}


def test_code_is_for_the_runs_framework() -> None:
    """The advice for a JAX run has optax code."""
    facts = tuple(Layer(name=f"{i}.weight", numel=100, role="weight") for i in range(4))
    block = run(noisy(2.3, 150) * np.where(np.arange(150) > 100, 1e4, 1), update=8.0)
    diagnosis = Diagnostician(facts, framework="jax 0.10").update(block)
    assert diagnosis.verdict == "exploding"
    assert any("optax" in advice.snippet for advice in diagnosis.advice)
    assert not any("torch" in advice.snippet for advice in diagnosis.advice if advice.remedy.id != "add_residual")


def test_every_remedy_can_be_requested() -> None:
    """The advice has exactly the remedies of the protocol, and their parameters are valid."""
    assert {row.id for row in CATALOGUE} == set(REMEDIES)
    for id, kind in REMEDIES.items():
        remedy = Remedy(id=id, parameters={name: EXAMPLES[name] for name in kind.parameters})
        assert list(remedy_errors("remedies", [remedy])) == []
