"""Logs a finished model: feature importance, plots, tables, trees, and the model itself."""

from __future__ import annotations

import csv
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..delivery.never_raising import never_raising
from ..delivery.progress import progress_line
from ..delivery.run import IAPRun
from .boosters import boosters_of, is_cv
from .comparison import CLASSES, REGRESSION, confusion, residual_quantiles, with_true_values
from .inputs import predict
from .prefixed_run import PrefixedRun
from .saved_model import save

_FOLDER = "lightgbm"
_MOST_SHOWN = 30  # features in a plot


@dataclass
class Wanted:
    """What to log about a finished model.

    Args:
        model: whether to log the model itself.
        registered_model_name: registered model to which it is added as a new version, if any.
        pictures: whether to draw plots.
        trees: number of trees.
    """

    model: bool
    registered_model_name: str | None
    pictures: bool
    trees: int


class FinishedModel:
    """Logs a finished model.

    Args:
        run: run to log to.
        model: the Booster or CVBooster.
        objective: its objective, by LightGBM's canonical name.
        estimator: the estimator that predicts with the booster, and is logged in its place, if any.
    """

    def __init__(
        self, run: IAPRun | PrefixedRun, model: Any, objective: str, estimator: Any = None
    ) -> None:
        self._run = run
        self._estimator = estimator
        self._boosters = boosters_of(model)
        self._is_cv = is_cv(model)
        self._booster = self._boosters[0]
        self._predictor = self._booster if estimator is None else estimator
        self._objective = objective

    def log(
        self,
        wanted: Wanted,
        samples: Sequence[tuple[int, Any]],
        best_iteration: int,
        *,
        trained_on: Any = None,
        X: Any = None,
        y: Any = None,
    ) -> None:
        """Log everything that is wanted, step by step; a failed step is logged as a warning.

        Args:
            wanted: what to log.
            samples: points of the learning curves, as in ``Curves.samples``.
            best_iteration: LightGBM's ``best_iteration``; 0 for none.
            trained_on: rows of the training data, if known; they are the input example if there is
                no ``X``.
            X: data for the signature, the input example and predictions.
            y: true values for ``X``.
        """
        with (
            tempfile.TemporaryDirectory(prefix="mlflow-iap-lightgbm-") as name,
            progress_line() as show,
        ):
            folder = Path(name) / _FOLDER
            folder.mkdir()
            rows = self._importance()
            steps: dict[str, Callable[[], None]] = {
                "the feature importance": lambda: _write_table(
                    folder / "feature_importance.csv", ("feature", "gain", "split"), rows
                )
            }
            if wanted.pictures:
                steps["the plot of the feature importance"] = lambda: _plots().draw_importance(
                    rows[:_MOST_SHOWN], len(rows), folder / "feature_importance.png"
                )
                steps["the plot of the learning curves"] = lambda: _plots().draw_curves(
                    samples, best_iteration, folder / "learning_curves.png"
                )
            if X is not None and y is not None and not self._is_cv:
                steps["the predictions"] = lambda: self._compare(
                    X, y, folder, draws=wanted.pictures
                )
            if wanted.trees > 0:
                steps["the trees"] = lambda: self._write_trees(wanted.trees, folder)
            steps["the files"] = lambda: self._run.log_artifact(folder)
            if wanted.model and not self._is_cv:
                steps["the model"] = lambda: self._log_model(
                    trained_on if X is None else X,
                    wanted.registered_model_name,
                    Path(name) / "model",
                )
            done: list[str] = []
            for what, do in steps.items():
                show(f"LightGBM: logging {what}")
                with never_raising(f"{what} of a LightGBM model"):
                    do()
                    done.append(what)
            show(f"LightGBM: logged {', '.join(done)}")

    def _importance(self) -> list[tuple[str, float, float]]:
        """Feature, gain and split, sorted by gain, highest first; means for a cross-validation."""
        gain, split = (
            np.mean([each.feature_importance(kind) for each in self._boosters], axis=0)
            for kind in ("gain", "split")
        )
        names = self._booster.feature_name()
        order = np.argsort(-gain, kind="stable")
        return [(names[at], float(gain[at]), float(split[at])) for at in order]

    def _compare(self, X: Any, y: Any, folder: Path, *, draws: bool) -> None:
        """Compare predictions with true values, as a confusion matrix or as residuals."""
        if self._objective in CLASSES:
            has_labels = hasattr(self._estimator, "classes_")
            predicted, true = with_true_values(predict(self._predictor, X), y)
            counts, labels = confusion(predicted, true, has_labels=has_labels)
            rows = ([name, *row] for name, row in zip(labels, counts.tolist(), strict=True))
            _write_table(folder / "confusion_matrix.csv", ["true \\ predicted", *labels], rows)
            if draws:
                _plots().draw_confusion(counts, labels, folder / "confusion_matrix.png")
        elif self._objective in REGRESSION:
            predicted, true = with_true_values(predict(self._predictor, X), y)
            predicted, true = predicted.astype(float).ravel(), true.astype(float)
            found = residual_quantiles(true - predicted)
            _write_table(folder / "residuals.csv", ["quantile", "true - predicted"], found)
            if draws:
                _plots().draw_residuals(predicted, true, folder / "residuals.png")

    def _write_trees(self, most: int, folder: Path) -> None:
        trees = self._booster.trees_to_dataframe()
        trees[trees["tree_index"] < most].to_csv(folder / "trees.csv", index=False)
        if shutil.which("dot") is None or find_spec("graphviz") is None:
            return
        import lightgbm

        for number in range(min(most, self._booster.num_trees())):
            graph = lightgbm.create_tree_digraph(self._booster, tree_index=number)
            (folder / f"tree_{number}.svg").write_bytes(graph.pipe(format="svg"))

    def _log_model(self, data: Any, registered_name: str | None, folder: Path) -> None:
        folder.mkdir()
        path = save(self._booster, self._estimator, data, folder)
        self._run.log_model(path, registered_name=registered_name)


def _plots() -> ModuleType:
    from . import plots  # importing matplotlib is slow

    return plots


def _write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(header)
        table.writerows(rows)
