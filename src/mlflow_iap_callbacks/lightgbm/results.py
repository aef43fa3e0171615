"""What only the finished model knows: importance, pictures, tables, trees, and the model itself."""

from __future__ import annotations

import csv
import logging
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from rich.console import Console

from ..delivery.run_writer import RunWriter
from .boosters import boosters_of, is_cv

_logger = logging.getLogger(__name__)

_FOLDER = "lightgbm"
_MOST_SHOWN = 30  # features in a picture
_EXAMPLE_ROWS = 5
_MOST_NAMED = 1000  # features that a signature names
_CLASSES = ("binary", "multiclass", "multiclassova")
_REGRESSION = (
    *("regression", "regression_l1", "huber", "fair", "poisson", "quantile", "mape", "gamma"),
    "tweedie",
)


@dataclass
class Wanted:
    """What is to be logged of a finished model.

    Args:
        model: whether it itself is.
        registered_model_name: in the registry, if it is to be there.
        pictures: whether they are drawn.
        trees: how many, the first ones.
    """

    model: bool
    registered_model_name: str | None
    pictures: bool
    trees: int


class Results:
    """Logs them to a run, each with a word on a terminal while it takes its time.

    Args:
        run: to log to.
        model: a Booster or a CVBooster.
        objective: in LightGBM's words.
    """

    def __init__(self, run: RunWriter, model: Any, objective: str) -> None:
        self._run = run
        self._boosters = boosters_of(model)
        self._is_cv = is_cv(model)
        self._booster = self._boosters[0]
        self._objective = objective

    def log(
        self,
        wanted: Wanted,
        samples: Sequence[tuple[int, Any]],
        best_iteration: int,
        *,
        estimator: Any = None,
        X: Any = None,
        y: Any = None,
    ) -> None:
        """Log all that is wanted and can be had; what cannot is told.

        Args:
            wanted: of it.
            samples: of the learning curves: step, and values by data set and metric.
            best_iteration: as LightGBM has it; 0 for none.
            estimator: of scikit-learn's kind, if the model is its.
            X: data to predict, for signature, example, and what follows.
            y: what is true of it, for confusion matrix or residuals.
        """
        with tempfile.TemporaryDirectory(prefix="mlflow-iap-lightgbm-") as name, _progress() as say:
            folder = Path(name) / _FOLDER
            folder.mkdir()
            rows = self._importance()
            steps: list[tuple[str, bool, Callable[[], None]]] = [
                ("feature importance", True, lambda: _write_importance(rows, folder)),
                (
                    "a picture of the feature importance",
                    wanted.pictures,
                    lambda: _pictures().draw_importance(
                        rows[:_MOST_SHOWN], len(rows), folder / "feature_importance.png"
                    ),
                ),
                (
                    "a picture of the learning curves",
                    wanted.pictures,
                    lambda: _pictures().draw_curves(
                        samples, best_iteration, folder / "learning_curves.png"
                    ),
                ),
                (
                    "predictions",
                    X is not None and y is not None and not self._is_cv,
                    lambda: self._judge(estimator, X, y, folder, draws=wanted.pictures),
                ),
                ("trees", wanted.trees > 0, lambda: self._write_trees(wanted.trees, folder)),
                ("the files", True, lambda: self._run.log_artifact(folder)),
                (
                    "the model",
                    wanted.model and not self._is_cv,
                    lambda: self._log_model(X, wanted.registered_model_name, Path(name) / "model"),
                ),
            ]
            for what, is_wanted, do in steps:
                if is_wanted:
                    say(what)
                    with _telling(what):
                        do()

    def _importance(self) -> list[tuple[str, float, float]]:
        """Feature, gain, split; of a cross-validation the means."""
        gain, split = (
            np.mean([each.feature_importance(kind) for each in self._boosters], axis=0)
            for kind in ("gain", "split")
        )
        names = self._booster.feature_name()
        order = np.argsort(-gain, kind="stable")
        return [(names[at], float(gain[at]), float(split[at])) for at in order]

    def _judge(self, estimator: Any, X: Any, y: Any, folder: Path, *, draws: bool) -> None:
        """Confusion matrix of classes, residuals of numbers."""
        true = np.asarray(y).ravel()
        if self._objective in _CLASSES:
            predicted = _classes(self._booster.predict(X) if estimator is None else estimator, X)
            labels, numbers = np.unique(np.concatenate([true, predicted]), return_inverse=True)
            counts = np.zeros((len(labels), len(labels)), dtype=int)
            np.add.at(counts, (numbers[: len(true)], numbers[len(true) :]), 1)
            names = [f"{label:g}" if isinstance(label, float) else str(label) for label in labels]
            rows = ([name, *row] for name, row in zip(names, counts.tolist(), strict=True))
            _write_table(folder / "confusion_matrix.csv", ["true \\ predicted", *names], rows)
            if draws:
                _pictures().draw_confusion(counts, names, folder / "confusion_matrix.png")
        elif self._objective in _REGRESSION:
            predicted = np.asarray(self._booster.predict(X), dtype=float).ravel()
            true = true.astype(float)
            residuals = true - predicted
            quantiles = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
            found = np.quantile(residuals, quantiles)
            of_each = zip(quantiles, found.tolist(), strict=True)
            _write_table(folder / "residuals.csv", ["quantile", "true - predicted"], of_each)
            if draws:
                _pictures().draw_residuals(predicted, true, folder / "residuals.png")

    def _write_trees(self, most: int, folder: Path) -> None:
        trees = self._booster.trees_to_dataframe()
        trees[trees["tree_index"] < most].to_csv(folder / "trees.csv", index=False)
        if shutil.which("dot") is None or find_spec("graphviz") is None:
            return
        import lightgbm

        for number in range(min(most, self._booster.num_trees())):
            graph = lightgbm.create_tree_digraph(self._booster, tree_index=number)
            (folder / f"tree_{number}.svg").write_bytes(graph.pipe(format="svg"))

    def _log_model(self, X: Any, registered_name: str | None, folder: Path) -> None:
        from mlflow import lightgbm as flavour

        head = None if X is None else X[:_EXAMPLE_ROWS]
        flavour.save_model(
            self._booster,
            folder,
            signature=self._signature(head),
            input_example=head,
            # MLflow would load the model in a process of its own to find them, for 8 seconds.
            pip_requirements=[
                f"{name}=={version(name)}"
                for name in ("mlflow", "lightgbm", "numpy", "pandas", "scikit-learn", "scipy")
            ],
        )
        self._run.log_model(folder, registered_name=registered_name)

    def _signature(self, head: Any) -> Any:
        from mlflow.models import ModelSignature, infer_signature
        from mlflow.types import ColSpec, Schema, TensorSpec

        if head is not None:
            return infer_signature(head, self._booster.predict(head))
        names = self._booster.feature_name()
        is_named = names != [f"Column_{number}" for number in range(len(names))]
        columns: list[Any] = [ColSpec("double", name) for name in names]
        if not is_named or len(names) > _MOST_NAMED:
            columns = [TensorSpec(np.dtype("float64"), (-1, len(names)))]
        classes = int(self._booster.num_model_per_iteration())
        shape = (-1,) if classes == 1 else (-1, classes)
        return ModelSignature(Schema(columns), Schema([TensorSpec(np.dtype("float64"), shape)]))


def _classes(found: Any, X: Any) -> Any:
    """Predicted classes: an estimator's own labels, or numbers from a booster's probabilities."""
    if hasattr(found, "predict"):
        return np.asarray(found.predict(X)).ravel()
    return found.argmax(axis=1) if found.ndim > 1 else (found > 0.5).astype(int)


def _pictures() -> ModuleType:
    """Imported when one is drawn: matplotlib takes its time."""
    from . import plots as lightgbm_pictures

    return lightgbm_pictures


def _write_importance(rows: Iterable[tuple[str, float, float]], folder: Path) -> None:
    _write_table(folder / "feature_importance.csv", ["feature", "gain", "split"], rows)


def _write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(header)
        table.writerows(rows)


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """A line on a terminal, gone when all is done."""
    console = Console(file=sys.stderr)
    with console.status("") as line:
        yield lambda what: line.update(f"LightGBM: logging {what}")


@contextmanager
def _telling(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001 - no program ends because of its log
        _logger.warning("Of the LightGBM model, %s could not be logged: %s", what, error)
