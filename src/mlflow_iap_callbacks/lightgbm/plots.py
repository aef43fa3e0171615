"""Pictures of a trained model; drawn without pyplot, whose state is the user's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

_MOST_DOTS = 5000
_MOST_COUNTS = 20  # classes whose counts are written into the matrix
_MOST_TICKS = 40
_STEPS = (1, 2, 5, 10)  # between ticks
_DPI = 120
_BLUE = "#4c78a8"


def draw_importance(rows: Sequence[tuple[str, float, float]], total: int, path: Path) -> None:
    """Bars for gain and split.

    Args:
        rows: feature, gain and split of those shown, the most important first.
        total: how many features there are.
        path: of the picture.
    """
    figure = Figure(figsize=(10, 1.3 + 0.24 * len(rows)), layout="constrained")
    names = [_shortened(row[0], 40) for row in rows]
    for column, (axes, title) in enumerate(
        zip(figure.subplots(1, 2, sharey=True), ("gain", "split"), strict=True), start=1
    ):
        axes.barh(range(len(rows)), [row[column] for row in rows], color=_BLUE)
        axes.set_title(title)
        axes.set_yticks(range(len(rows)), names)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right"]].set_visible(False)
    what = f"the first {len(rows)} of {total} features" if total > len(rows) else "all features"
    figure.suptitle(f"Feature importance, {what}")
    figure.savefig(path, dpi=_DPI)


def draw_curves(
    samples: Sequence[tuple[int, Mapping[tuple[str, ...], float]]], best_iteration: int, path: Path
) -> None:
    """Each metric's curves, of all sets; nothing where nothing was evaluated.

    Args:
        samples: step, and values by data set and metric.
        best_iteration: as LightGBM has it; 0 for none.
        path: of the picture.
    """
    by_metric: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for step, values in samples:
        for (data, metric), value in values.items():
            points = by_metric.setdefault(metric, {}).setdefault(data, [])
            points.append((step, float(value)))
    if not by_metric:
        return
    sets = list(dict.fromkeys(data for curves in by_metric.values() for data in curves))
    palette = colormaps["tab10" if len(sets) <= 10 else "tab20"].colors  # type: ignore[attr-defined]
    columns = 1 if len(by_metric) <= 3 else 2
    lines = -(-len(by_metric) // columns)
    height = max((3.4 if columns == 1 else 2.8) * lines, 0.6 + 0.22 * len(sets))
    figure = Figure(figsize=(10, height), layout="constrained")
    cells = figure.subplots(lines, columns, squeeze=False).ravel()
    shown: dict[str, Any] = {}
    best: Any = None
    for axes, (metric, curves) in zip(cells, by_metric.items(), strict=False):
        for data, points in curves.items():
            (shown[data],) = axes.plot(
                *zip(*points, strict=True),
                color=palette[sets.index(data) % len(palette)],
                linewidth=1.6,
                marker="o" if len(points) == 1 else "",
            )
        if best_iteration:
            best = axes.axvline(best_iteration - 1, color="grey", linestyle=":")
        axes.set(title=metric, xlabel="iteration")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=_STEPS))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in cells[len(by_metric) :]:
        axes.remove()
    named = [(_shortened(data, 24), line) for data, line in shown.items()]
    if best is not None:
        named.append(("best iteration", best))
    names, drawn = zip(*named, strict=True)
    figure.legend(drawn, names, loc="outside right upper")
    figure.savefig(path, dpi=_DPI)


def draw_confusion(counts: Any, labels: Sequence[str], path: Path) -> None:
    """A confusion matrix, coloured by the share of the true class, that a rare one is seen too.

    Args:
        counts: shape (classes, classes); a row is a true class.
        labels: of the classes.
        path: of the picture.
    """
    total = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, total, out=np.zeros(counts.shape), where=total > 0)
    size = 3.6 + 0.4 * min(len(labels), _MOST_COUNTS)
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0.0)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    every = -(-len(labels) // _MOST_TICKS)
    names = [_shortened(label, 20) for label in labels[::every]]
    ticks, is_long = range(0, len(labels), every), sum(map(len, names)) > 8 * len(names)
    axes.set_yticks(ticks, names)
    if is_long or len(labels) > _MOST_COUNTS:
        axes.set_xticks(ticks, names, rotation=60, ha="right", rotation_mode="anchor")
    else:
        axes.set_xticks(ticks, names)
    axes.set(xlabel="predicted", ylabel="true", title="Confusion matrix")
    if len(labels) <= _MOST_COUNTS:
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > shares.max() / 2 else "black"
            axes.text(
                column,
                row,
                str(count),
                ha="center",
                va="center",
                color=colour,
                fontsize=10 if len(labels) <= 10 else 7,
            )
    else:
        axes.tick_params(labelsize=7)
    figure.savefig(path, dpi=_DPI)


def draw_residuals(predicted: Any, true: Any, path: Path) -> None:
    """Residuals over predictions, and how they are distributed.

    Args:
        predicted: shape (rows,).
        true: shape (rows,).
        path: of the picture.
    """
    every = max(1, len(true) // _MOST_DOTS)
    residuals = true - predicted
    figure = Figure(figsize=(10, 4), layout="constrained")
    over, spread = figure.subplots(1, 2)
    over.scatter(predicted[::every], residuals[::every], s=8, alpha=0.4, linewidths=0, color=_BLUE)
    over.axhline(0.0, color="grey", linewidth=1)
    over.set(xlabel="predicted", ylabel="true - predicted", title="Residuals")
    # A few far away would press all others into one bar.
    low, high = np.quantile(residuals, (0.005, 0.995))
    spread.hist(residuals[(residuals >= low) & (residuals <= high)], bins=50, color=_BLUE)
    spread.axvline(0.0, color="grey", linewidth=1)
    spread.set(xlabel="true - predicted", ylabel="rows", title="Distribution, the inner 99 %")
    for axes in (over, spread):
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=_STEPS))
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=_DPI)


def _shortened(name: str, most: int) -> str:
    """Without its middle: names that are long differ at their ends."""
    if len(name) <= most:
        return name
    return f"{name[: most // 2 - 2]}...{name[1 - most // 2 :]}"
