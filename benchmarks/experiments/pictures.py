"""The pictures of the tables and of the conditions, as SVG."""

from __future__ import annotations

import textwrap
from pathlib import Path

import matplotlib as mpl
import numpy as np

from benchmarks.experiments.clipping import Point
from benchmarks.experiments.conditions import Evidence
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


def draw_condition(evidence: Evidence, path: Path) -> None:
    """Draw the loss and what the finding rests on over the steps, and the step at which the condition began."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(6.4, 4.4), sharex=True, layout="constrained")
    above.plot(evidence.steps, evidence.loss, color="0.3", linewidth=1)
    above.set(ylabel="loss")
    for name, (steps, values) in evidence.lines.items():
        label = f"{name} (exactly zero)" if len(values) and not values.any() else name
        below.plot(steps, values, linewidth=1, label=label)
    values = np.concatenate([values for _, values in evidence.lines.values()] or [np.ones(1)])
    finite = values[np.isfinite(values) & (values > 0)]
    if len(finite) and finite.max() > 100 * finite.min():
        below.set_yscale("log")
    below.set(xlabel="step", ylabel=evidence.drawn.replace("_", " "))
    for axes in (above, below):
        axes.axvline(evidence.finding.first_step, color="tab:red", linestyle="--", linewidth=1)
        axes.grid(visible=True, alpha=0.3)
    if len(evidence.lines) > 1:
        below.legend(fontsize=6)
    text = "\n".join(textwrap.wrap(evidence.finding.explanation, 100))
    figure.suptitle(f"{evidence.condition}\n{text}", fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
