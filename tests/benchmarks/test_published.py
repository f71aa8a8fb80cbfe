"""The published failing programs: their list, their trainings, and the judgement of a proof."""

from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from benchmarks.reruns.__main__ import SETS, members_of
from benchmarks.reruns.configurations import CONFIGURATIONS, Setting
from benchmarks.reruns.measurement import is_false_proof
from benchmarks.reruns.published.catalogue import KINDS, by_id, sources
from benchmarks.reruns.published.configurations import PUBLISHED, PublishedSetting
from benchmarks.reruns.published.program import PROGRAMS, Program
from benchmarks.reruns.published.train import train
from benchmarks.reruns.report import TARGET_COUNT, TARGET_VERIFIED
from benchmarks.reruns.trials import Result, skill

from gradmedic_service.reruns.loss_curves import LossCurve

FEW_STEPS = 2


def test_every_source_has_a_program_and_every_program_a_source() -> None:
    """The list of sources and the programs name the same ids, each once."""
    listed = [
        line.split("|")[1].strip() for line in _list().splitlines() if line.startswith("| ") and "---" not in line
    ]
    assert Counter(listed[1:]) == Counter(PROGRAMS.keys())
    assert sources().keys() == PROGRAMS.keys() == PUBLISHED.keys()


def _list() -> str:
    return (Path(__file__).parents[2] / "benchmarks" / "reruns" / "published" / "SOURCES.md").read_text()


def test_every_row_of_the_list_is_complete() -> None:
    """A source names where it is from, a fault, a repair and a verdict that gradmedic gives."""
    for source in sources().values():
        assert source.expected in ("vanishing", "exploding"), source.id
        assert all((source.after, source.network, source.fault, source.repair)), source.id


def test_the_set_is_large_and_of_many_kinds() -> None:
    """There are more programs than the target needs, of every kind."""
    assert len(PROGRAMS) > TARGET_COUNT
    kinds = Counter(program.kind for program in PROGRAMS.values())
    assert kinds.keys() == set(KINDS)
    assert kinds["transformers"] >= 8
    assert min(kinds["convolutional"], kinds["recurrent"]) >= 10


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_a_program_and_its_twin_train_from_the_same_random_state(program: Program) -> None:
    """Both are built from the same random state, train for a few steps, and and have a skill."""
    generator = torch.get_rng_state()
    for is_twin in (False, True):
        torch.set_rng_state(generator)
        random.seed(0)
        training = program.build(is_twin)
        losses = [training.step() for _ in range(FEW_STEPS)]
        assert all(loss.numel() == 1 and loss.requires_grad for loss in losses)
        assert training.final_skill() <= 1.0
        assert not any(model.training for model in _models(training.models))


def _models(models: object) -> list[torch.nn.Module]:
    return [models] if isinstance(models, torch.nn.Module) else list(models.values())  # type: ignore[attr-defined]


def test_the_script_seeds_both_sides_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """The script builds a program and its twin from the state of the seed: nothing is drawn before."""
    monkeypatch.setenv("GRADMEDIC_MODE", "disabled")
    monkeypatch.setenv("GRADMEDIC_SEED", "5")
    states = []
    program = by_id("stats-284189-linear")

    def build(is_twin: bool):  # type: ignore[no-untyped-def]
        states.append(torch.get_rng_state())
        return program.build(is_twin)

    watched = Program(id=program.id, kind=program.kind, steps=FEW_STEPS, build=build)
    for is_twin in (False, True):
        assert math.isfinite(train(watched, is_twin=is_twin))
    assert torch.equal(states[0], states[1])


def test_a_skill_that_is_not_a_number_is_none_at_all() -> None:
    """A destroyed model has the skill minus infinity, which no threshold passes."""
    training = by_id("stats-284189-linear").build(False)
    for parameter in _models(training.models)[0].parameters():
        torch.nn.init.constant_(parameter, math.nan)
    assert training.final_skill() == -math.inf


def test_an_unknown_program_is_refused() -> None:
    """An unknown id raises ValueError, before any training."""
    with pytest.raises(ValueError, match="no published program 'alexnet'"):
        by_id("alexnet")


def test_every_set_has_a_target() -> None:
    """Each set can be listed, and has its own target."""
    assert set(SETS) == TARGET_VERIFIED.keys()
    assert all(len(members_of(name, 1)) >= TARGET_COUNT for name in SETS)


@pytest.mark.parametrize(
    ("reached", "control", "twin", "is_false"),
    [
        (0.8, 0.0, 0.9, False),
        (0.22, 0.0, 0.9, True),
        (0.6, 0.58, 0.9, True),
        (0.6, -math.inf, 0.9, False),
        (-math.inf, -math.inf, 0.9, True),
    ],
)
def test_a_proof_is_false_where_the_skill_stays_lost(
    reached: float, control: float, twin: float, is_false: bool
) -> None:
    """A verified remedy is a false proof at a quarter of the twin's skill, or no better than the faulty training."""
    assert is_false_proof(reached, control, twin) is is_false


def test_a_published_program_is_judged_by_its_own_skill() -> None:
    """The judge reads the logged skill of a published program, and the final loss of our own configurations."""
    curve = LossCurve(steps=10, start=2.0, best=0.0, final=0.0, digest="")
    setting = PublishedSetting(program="stats-284189-linear", is_twin=False)
    assert skill(_result(curve, 0.7), setting) == 0.7
    assert skill(_result(curve, math.nan), setting) == -math.inf
    own = next(iter(CONFIGURATIONS.values())).faulty
    assert isinstance(own, Setting)
    assert skill(_result(curve, None), own) == 1.0


def _result(curve: LossCurve, logged: float | None) -> Result:
    return Result(
        status="done",
        reason=None,
        verdict="healthy",
        curve=curve,
        is_silent=True,
        has_dead_units=False,
        causes={},
        advice=[],
        cpu_seconds=None,
        logged_skill=logged,
    )
