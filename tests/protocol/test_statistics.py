"""The tables of statistics and of step series."""

from __future__ import annotations

from dataclasses import fields

from gradmedic.protocol.statistics import (
    SERIES,
    SERIES_TABLE,
    STATISTICS,
    STATISTICS_TABLE,
    Reduction,
    Scale,
    StatisticKind,
    columns_multiplied_by_loss_scale,
    columns_of,
    columns_reduced,
    statistics_drawn,
    statistics_of,
)
from gradmedic.protocol.steps import StepsAppend


def test_names_and_their_order_are_those_of_stored_runs() -> None:
    """Stored runs and recorded bodies hold these names. A watched run has its columns in this order."""
    assert STATISTICS == (
        "grad_norm", "grad_abs_max", "grad_mean", "grad_zero_fraction", "nonfinite_count", "weight_norm", "update_norm",
        "activation_zero_fraction", "activation_saturation",
    )  # fmt: skip
    assert SERIES == ("loss", "learning_rate", "time", "loss_scale", "clip_coefficient", "output_gradient_norm")
    assert tuple(row.name for row in STATISTICS_TABLE.values()) == STATISTICS
    assert tuple(row.name for row in SERIES_TABLE.values()) == SERIES


def test_every_series_is_a_field_of_a_block() -> None:
    """A block has one field for each step series with a fixed meaning."""
    assert set(SERIES) <= {field.name for field in fields(StepsAppend)}


def test_only_the_mean_is_signed_and_fractions_end_at_one() -> None:
    """All statistics but the mean are at least 0, and the fractions are at most 1."""
    assert [row.name for row in STATISTICS_TABLE.values() if row.is_signed] == ["grad_mean"]
    fractions = ("grad_zero_fraction", "activation_zero_fraction", "activation_saturation")
    assert tuple(row.name for row in STATISTICS_TABLE.values() if row.is_fraction) == fractions
    assert statistics_drawn(Scale.LINEAR) == fractions


def test_the_columns_of_a_kind_hold_its_statistics() -> None:
    """Each kind has columns next to each other, and the kinds together have every column."""
    for kind in StatisticKind:
        assert STATISTICS[columns_of(kind)] == statistics_of(kind)
    assert statistics_of(*StatisticKind) == STATISTICS


def test_every_column_has_one_reduction() -> None:
    """The columns of the reductions are disjoint and together are all columns. Norms are reduced as norms."""
    columns = [column for reduction in Reduction for column in columns_reduced(reduction)]
    assert sorted(columns) == list(range(len(STATISTICS)))
    norms = [name for name in STATISTICS if name.endswith("_norm")]
    assert [STATISTICS[column] for column in columns_reduced(Reduction.NORM)] == norms


def test_a_loss_scaler_multiplies_the_sizes_of_gradients() -> None:
    """A loss scaler multiplies norm, largest element and mean of a gradient, and no share, count, weight or update."""
    scaled = [STATISTICS[column] for column in columns_multiplied_by_loss_scale()]
    assert scaled == ["grad_norm", "grad_abs_max", "grad_mean"]
