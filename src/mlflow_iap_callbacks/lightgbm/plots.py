"""Plots of a trained model, each written to ``path``.

They are drawn without pyplot, because its state belongs to the user.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from .fonts import drawable, show_names

_MOST_DOTS = 5000
_MOST_COUNTS = 20  # classes; with more, the matrix has no numbers in it
_MOST_TICKS = 40
_MOST_PANELS = 12  # metrics; each takes a sixth of a second
_MOST_SETS = 20
_STEPS = (1, 2, 5, 10)  # between ticks
_DPI = 120
_BLUE = "#4c78a8"
_SLANTED: Any = {"rotation": 60, "ha": "right", "rotation_mode": "anchor"}


def draw_importance(rows: Sequence[tuple[str, float, float]], total: int, path: Path) -> None:
    """Draw bars of gain and split.

    Args:
        rows: feature, gain and split of the features shown, the most important first.
        total: number of all features.
        path: file to write.
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
        axes.tick_params(axis="y", length=0)
        _style(axes, MaxNLocator(5, steps=_STEPS), grid="x")
    what = f"the first {len(rows)} of {total} features" if total > len(rows) else "all features"
    figure.suptitle(f"Feature importance, {what}")
    _save(figure, path)


def draw_curves(
    samples: Sequence[tuple[int, Mapping[tuple[str, ...], float]]], best_iteration: int, path: Path
) -> None:
    """Draw a panel for each metric, with a curve for each data set.

    Args:
        samples: steps, each with its values by data set and metric. If empty, nothing is drawn.
        best_iteration: LightGBM's ``best_iteration``; 0 for none.
        path: file to write.
    """
    all_metrics = list(dict.fromkeys(metric for _, values in samples for _, metric in values))
    all_sets = list(dict.fromkeys(data for _, values in samples for data, _ in values))
    if not all_metrics:
        return
    metrics, sets = all_metrics[:_MOST_PANELS], all_sets[:_MOST_SETS]
    by_metric: dict[str, dict[str, list[tuple[int, float]]]] = {metric: {} for metric in metrics}
    for step, values in samples:
        for (data, metric), value in values.items():
            if metric in by_metric and data in sets:
                by_metric[metric].setdefault(data, []).append((step, float(value)))
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
                color=palette[sets.index(data)],
                linewidth=1.6,
                marker="o" if len(points) == 1 else "",
            )
        if best_iteration:
            best = axes.axvline(best_iteration - 1, color="grey", linestyle=":")
        axes.set(title=_shortened(metric, 60), xlabel="iteration")
        _style(axes, MaxNLocator(integer=True, min_n_ticks=1, steps=_STEPS))
    for axes in cells[len(by_metric) :]:
        axes.remove()
    named = [(_shortened(data, 24), line) for data, line in shown.items()]
    if best is not None:
        named.append(("best iteration", best))
    names, drawn = zip(*named, strict=True)
    figure.legend(drawn, names, loc="outside right upper")
    counts = ((metrics, all_metrics, "metrics"), (sets, all_sets, "data sets"))
    cut = [f"{len(some)} of {len(all_)} {what}" for some, all_, what in counts if some != all_]
    if cut:
        figure.suptitle(", ".join(cut))
    _save(figure, path)


def draw_confusion(counts: Any, labels: Sequence[str], path: Path) -> None:
    """Draw a confusion matrix of ``counts``, in which each row is a true class.

    Colours show the share of the true class, so that rare classes are visible.
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
    ticks = range(0, len(labels), every)
    longest = max(map(_width, names))
    is_slanted = longest * len(names) > 8 * size or len(labels) > _MOST_COUNTS
    axes.set_yticks(ticks, names)
    axes.set_xticks(ticks, names, **(_SLANTED if is_slanted else {}))
    axes.set(xlabel="predicted", ylabel="true", title="Confusion matrix")
    if len(labels) <= _MOST_COUNTS:
        centered: Any = {"ha": "center", "va": "center", "fontsize": 10 if len(labels) <= 10 else 7}
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > shares.max() / 2 else "black"
            axes.text(column, row, str(count), color=colour, **centered)
    else:
        axes.tick_params(labelsize=7)
    _save(figure, path)


def draw_residuals(predicted: Any, true: Any, path: Path) -> None:
    """Draw residuals against predictions, and their distribution; inputs have shape (rows,)."""
    every = max(1, len(true) // _MOST_DOTS)
    residuals = true - predicted
    figure = Figure(figsize=(10, 4), layout="constrained")
    over, spread = figure.subplots(1, 2)
    over.scatter(predicted[::every], residuals[::every], s=8, alpha=0.4, linewidths=0, color=_BLUE)
    over.axhline(0.0, color="grey", linewidth=1)
    over.set(xlabel="predicted", ylabel="true - predicted", title="Residuals")
    # With a few outliers, all other residuals would be in one bar.
    low, high = np.quantile(residuals, (0.005, 0.995))
    spread.hist(residuals[(residuals >= low) & (residuals <= high)], bins=50, color=_BLUE)
    spread.axvline(0.0, color="grey", linewidth=1)
    spread.set(xlabel="true - predicted", ylabel="rows", title="Distribution of the middle 99 %")
    for axes in (over, spread):
        _style(axes, MaxNLocator(6, steps=_STEPS))
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    show_names(figure.findobj(Text))
    figure.savefig(path, dpi=_DPI)


def _style(axes: Any, ticks: MaxNLocator, grid: str = "both") -> None:
    axes.xaxis.set_major_locator(ticks)
    axes.grid(axis=grid, alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _shortened(name: str, most: int) -> str:
    """Cut out the middle of a name; long names differ at their ends."""
    is_short = len(name) <= most
    return drawable(name if is_short else f"{name[: most // 2 - 2]}...{name[1 - most // 2 :]}")


def _width(name: str) -> int:
    """Width in characters; Chinese, Japanese and Korean ones count twice."""
    return sum(2 if each > "\u2e80" else 1 for each in name)
