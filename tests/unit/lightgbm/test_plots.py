"""The plots of a model, with names of every kind and in any number."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from mlflow_iap_callbacks.lightgbm import plots

_NAMES = [
    *("price_$_min_$", r"\$x$", "_hidden", "価格", "Größe", "رقم \U0001f600", "no\xa0break"),
    *("next\u2028line", "a\nb", "x" * 300, "\udcff", ""),
]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn, which are not written to files."""
    found: list[Figure] = []
    monkeypatch.setattr(plots, "_save", lambda figure, _: found.append(figure))
    return found


def _samples(metrics: int, sets: int = 1, steps: int = 3) -> list[tuple[int, Any]]:
    names = [(f"set {n}", f"ndcg@{k}") for k in range(metrics) for n in range(sets)]
    return [(step, dict.fromkeys(names, 0.5)) for step in range(steps)]


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: plots.draw_importance([(name, 1.0, 2.0) for name in _NAMES], 1, path),
        *(
            pytest.param(draw, marks=pytest.mark.slow)
            for draw in (
                lambda path: plots.draw_curves([(0, {(n, n): 1.0 for n in _NAMES})], 1, path),
                lambda path: plots.draw_confusion(np.eye(len(_NAMES)), _NAMES, path),
            )
        ),
    ],
    ids=["importance", "curves", "confusion"],
)
def test_every_name_is_drawn_without_a_warning(draw: Any, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["price_$_min_$", "a$^b$", r"\$x$"])
def test_dollars_in_a_name_are_not_a_formula(name: str, tmp_path: Path) -> None:
    figure = Figure()
    text = figure.text(0.5, 0.5, name)
    plots._save(figure, tmp_path / "a.png")
    assert text._preprocess_math(text.get_text()) == (name, False)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("metrics", "panels"), [(1, 1), (3, 3), (12, 12), (400, 12)])
def test_the_number_of_panels_is_bounded(figures: list[Figure], metrics: int, panels: int) -> None:
    plots.draw_curves(_samples(metrics), 0, Path("unused"))
    assert len(figures[0].axes) == panels
    assert figures[0].get_suptitle() == ("12 of 400 metrics" if metrics == 400 else "")


def test_the_number_of_curves_in_a_panel_is_bounded(figures: list[Figure]) -> None:
    plots.draw_curves(_samples(30, sets=50), 1, Path("unused"))
    curves = [len(axes.lines) for axes in figures[0].axes]
    assert curves == [21] * 12  # and the best iteration
    assert figures[0].get_suptitle() == "12 of 30 metrics, 20 of 50 data sets"


def test_names_below_a_confusion_matrix_are_slanted_if_they_would_overlap(
    figures: list[Figure],
) -> None:
    for labels in (["0", "1"], ["a long name", "b"], ["a long name", *"bcdefgh"]):
        plots.draw_confusion(np.eye(len(labels)), labels, Path("unused"))
    slanted = [figure.axes[0].get_xticklabels()[0].get_rotation() > 0 for figure in figures]
    assert slanted == [False, False, True]


def test_the_texts_of_a_plot_keep_their_place_in_it(figures: list[Figure]) -> None:
    plots.draw_importance([("a", 2.0, 1.0), ("b", 1.0, 2.0)], 2, Path("unused"))
    shown = {text.get_text() for text in figures[0].findobj(Text)}
    assert {"a", "b", "gain", "split"} <= shown
