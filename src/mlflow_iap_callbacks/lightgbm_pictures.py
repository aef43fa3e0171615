"""Pictures of a trained model; drawn without pyplot, whose state is the user's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

_MOST_DOTS = 5000
_DPI = 120


def draw_importance(rows: Sequence[tuple[str, float, float]], total: int, path: Path) -> None:
    """Bars for gain and split.

    Args:
        rows: feature, gain and split of those shown, the most important first.
        total: how many features there are.
        path: of the picture.
    """
    figure = Figure(figsize=(10, 1.2 + 0.24 * len(rows)), layout="constrained")
    names = [row[0] if len(row[0]) <= 40 else f"{row[0][:37]}..." for row in reversed(rows)]
    for column, (axes, title) in enumerate(
        zip(figure.subplots(1, 2, sharey=True), ("gain", "split"), strict=True), start=1
    ):
        axes.barh(range(len(rows)), [row[column] for row in reversed(rows)], color="#4c78a8")
        axes.set_title(title)
        axes.set_yticks(range(len(rows)), names)
        axes.grid(axis="x", alpha=0.3)
    what = f"the first {len(rows)} of {total} features" if total > len(rows) else "all features"
    figure.suptitle(f"Feature importance, {what}")
    figure.savefig(path, dpi=_DPI)


def draw_curves(
    samples: Sequence[tuple[int, Mapping[tuple[str, ...], float]]], best_iteration: int, path: Path
) -> None:
    """Each metric's curves, of all sets.

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
    figure = Figure(figsize=(10, 3.2 * len(by_metric)), layout="constrained")
    for axes, (metric, curves) in zip(
        figure.subplots(len(by_metric), 1, squeeze=False)[:, 0], by_metric.items(), strict=True
    ):
        for data, points in curves.items():
            axes.plot(*zip(*points, strict=True), label=data, linewidth=1.4)
        if best_iteration:
            axes.axvline(best_iteration - 1, color="grey", linestyle=":", label="best iteration")
        axes.set(title=metric, xlabel="iteration")
        axes.legend()
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=_DPI)


def draw_confusion(counts: Any, labels: Sequence[str], path: Path) -> None:
    """A confusion matrix.

    Args:
        counts: shape (classes, classes); a row is a true class.
        labels: of the classes.
        path: of the picture.
    """
    size = 3.0 + 0.5 * min(len(labels), 40)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    axes.imshow(counts, cmap="Blues")
    ticks = range(len(labels))
    axes.set_xticks(ticks, labels, rotation=45 if len(labels) > 5 else 0)
    axes.set_yticks(ticks, labels)
    axes.set(xlabel="predicted", ylabel="true", title="Confusion matrix")
    if len(labels) <= 20:
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if count > counts.max() / 2 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour)
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
    over.scatter(predicted[::every], residuals[::every], s=6, alpha=0.5)
    over.axhline(0.0, color="grey", linewidth=1)
    over.set(xlabel="predicted", ylabel="true - predicted", title="Residuals")
    spread.hist(residuals, bins=50)
    spread.set(xlabel="true - predicted", title="Distribution")
    figure.savefig(path, dpi=_DPI)
