"""The configurations that are rerun: listed ones, and others that a seed draws."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import cast

import numpy as np
import pytest
from benchmarks.reruns.configurations import CONFIGURATIONS, FAMILIES, Configuration, by_name, drawn
from benchmarks.reruns.strategies import RANGES, SEEDS, race
from benchmarks.reruns.trials import Laboratory, Result

from gradmedic.protocol.remedies import REMEDIES, Remedy
from gradmedic.protocol.remedy_kind import Choice
from gradmedic_service.reruns.candidates import GENERAL
from gradmedic_service.reruns.loss_curves import summarize_losses


def test_a_seed_draws_the_same_again_and_another_others() -> None:
    """The same seed draws the same configurations again, and another seed draws others."""
    assert drawn(1) == drawn(1)
    settings = [
        repr(configuration.faulty)
        for configuration in (*drawn(1).values(), *drawn(2).values(), *CONFIGURATIONS.values())
    ]
    assert len(set(settings)) == len(settings)


def test_every_family_is_drawn_as_often_as_it_is_listed() -> None:
    """Drawn configurations have the same mixture of families as the listed ones."""
    assert Counter(configuration.family for configuration in drawn(3).values()) == Counter(
        configuration.family for configuration in CONFIGURATIONS.values()
    )
    assert {configuration.family for configuration in drawn(3).values()} == set(FAMILIES)


@pytest.mark.parametrize("known", [CONFIGURATIONS, drawn(4)], ids=["listed", "drawn"])
def test_the_script_finds_a_configuration_by_its_name(known: dict[str, object]) -> None:
    """The script finds a configuration, listed or drawn, by its name alone."""
    assert {name: by_name(name) for name in known} == known


@pytest.mark.parametrize("name", ["sigmoid-mlp", "sigmoid-mlp-99", "sigmoid-mlp-99-of-1", "sigmoid-mlp-0-of-x"])
def test_an_unknown_name_is_refused(name: str) -> None:
    """An unknown name raises ValueError, before any training."""
    with pytest.raises(ValueError, match=r"there is no configuration|invalid literal for int"):
        by_name(name)


RESIDUAL = Remedy(id="add_residual")
NORMALIZED = Remedy(id="insert_normalization", parameters={"kind": "LayerNorm"})


class PlayedLaboratory:
    """A laboratory in which only both remedies together repair a network."""

    def trial(
        self,
        configuration: Configuration,
        remedies: Sequence[Remedy],
        seed: int,
        *,
        is_twin: bool = False,
        has_advice: bool = False,
    ) -> Result:
        """Return a result that depends on the remedies alone."""
        del configuration, is_twin
        is_repaired = {remedy.id for remedy in remedies} == {RESIDUAL.id, NORMALIZED.id}
        losses = np.linspace(2.0, 0.5 if is_repaired else 1.99, 100) + seed / 1000
        return Result(
            status="done",
            reason=None,
            verdict="healthy" if is_repaired else "vanishing",
            curve=summarize_losses(losses),
            is_silent=is_repaired,
            has_dead_units=False,
            causes={},
            advice=[NORMALIZED] if has_advice else [],
            cpu_seconds=0.0,
        )


@pytest.mark.parametrize(("max_rounds", "verified"), [(1, 0), (3, 1)])
def test_a_race_goes_on_with_what_its_trials_advise(max_rounds: int, verified: int) -> None:
    """Where the first round proves nothing, the next one tries a candidate with what its own diagnosis advises."""
    laboratory = cast("Laboratory", PlayedLaboratory())
    raced = race(laboratory, next(iter(CONFIGURATIONS.values())), [(RESIDUAL,)], max_rounds=max_rounds)
    assert len(raced.verified) == verified
    assert raced.is_repaired == bool(verified)
    untried = sum(remedy.id != RESIDUAL.id for remedy in GENERAL)
    assert raced.trials == 2 + verified * (1 + untried + 2 * (len(SEEDS) - 1))
    if verified:
        assert raced.candidates[raced.verified[0].candidate] == (RESIDUAL, NORMALIZED)


def test_random_search_can_draw_every_parameter() -> None:
    """Each number of a remedy that a rerun can apply has a range to draw from, within what the remedy allows."""
    for kind in REMEDIES.values():
        for name, parameter in ({} if kind.needs_script else kind.parameters).items():
            if not isinstance(parameter, Choice):
                low, high = RANGES[name]
                assert parameter.minimum <= low < high <= parameter.maximum, name
