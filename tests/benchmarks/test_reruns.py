"""The configurations that are rerun: listed ones, and others that a seed draws."""

from __future__ import annotations

from collections import Counter

import pytest
from benchmarks.reruns.configurations import CONFIGURATIONS, FAMILIES, by_name, drawn
from benchmarks.reruns.strategies import RANGES

from gradmedic.protocol.remedies import REMEDIES
from gradmedic.protocol.remedy_kind import Choice


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


def test_random_search_can_draw_every_parameter() -> None:
    """Each number of a remedy that a rerun can apply has a range to draw from, within what the remedy allows."""
    for kind in REMEDIES.values():
        for name, parameter in ({} if kind.needs_script else kind.parameters).items():
            if not isinstance(parameter, Choice):
                low, high = RANGES[name]
                assert parameter.minimum <= low < high <= parameter.maximum, name
