"""The pictures of the tables, as SVG."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np

from benchmarks.experiments.clipping import Point
from benchmarks.experiments.repairs import Cell

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "gradmedic"  # the same picture is the same file
from matplotlib import pyplot as plt  # noqa: E402  # after the backend is chosen


def draw_repairs(table: dict[str, dict[str, Cell]], path: Path) -> None:
    """Draw shares as a matrix; where a remedy does not apply, nothing."""
    families, remedies = list(table), list(next(iter(table.values())))
    shares = np.array(
        [
            [cell.repaired / cell.applicable if cell.applicable else np.nan for cell in table[family].values()]
            for family in families
        ]
    )
    figure, axes = plt.subplots(figsize=(0.42 * len(remedies) + 2.6, 0.34 * len(families) + 2.6), layout="constrained")
    image = axes.imshow(shares, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(remedies)), remedies, rotation=60, ha="right", fontsize=8)
    axes.set_yticks(range(len(families)), families, fontsize=8)
    for row, family in enumerate(families):
        for column, cell in enumerate(table[family].values()):
            color = "white" if not cell.repaired > 0.6 * cell.applicable else "black"
            axes.text(
                column, row, str(cell), ha="center", va="center", fontsize=6, color=color if cell.applicable else "0.5"
            )
    figure.colorbar(image, label="share repaired, one seed")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def draw_clipping(curves: dict[str, list[Point]], path: Path) -> None:
    """Draw stability and skill over the threshold, a panel for each family."""
    figure, panels = plt.subplots(1, len(curves), figsize=(3.4 * len(curves), 2.9), sharey=True, layout="constrained")
    for axes, (family, points) in zip(np.atleast_1d(panels), curves.items(), strict=True):
        thresholds = [point.threshold for point in points]
        axes.semilogx(thresholds, [point.stable for point in points], "o-", label="share stable")
        axes.semilogx(thresholds, [point.skill for point in points], "s--", label="median skill")
        axes.set(title=family, xlabel="max_norm", ylim=(-0.03, 1.03))
        axes.grid(visible=True, alpha=0.3)
    np.atleast_1d(panels)[0].legend()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
