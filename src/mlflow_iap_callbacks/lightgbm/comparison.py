"""Compares predictions with true values: a confusion matrix, or residuals."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

CLASSES = ("binary", "multiclass", "multiclassova")
REGRESSION = (
    *("regression", "regression_l1", "huber", "fair", "poisson", "quantile", "mape", "gamma"),
    "tweedie",
)
_MOST_CLASSES = 200  # of a confusion matrix
_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


class Confusion(NamedTuple):
    """A confusion matrix.

    Attributes:
        counts: rows by true class and predicted class, of shape (classes, classes).
        labels: names of the classes.
    """

    counts: Any
    labels: list[str]


def with_true_values(predicted: Any, y: Any) -> tuple[Any, Any]:
    """Return predictions and true values of the rows whose true value is not missing.

    Args:
        predicted: predictions, of shape (rows,) or (rows, classes).
        y: true values, of shape (rows,) or (rows, 1), in any form that LightGBM accepts.

    Raises:
        ValueError: there are none, or there are more or fewer true values than rows.
    """
    import pandas as pd

    predicted, true = np.asarray(predicted), np.asarray(y).ravel()
    if len(true) != len(predicted):
        raise ValueError(f"X has {len(predicted)} rows, and y has {len(true)} values")
    is_known = ~pd.isna(true)
    if not is_known.any():
        raise ValueError("y has no values")
    return predicted[is_known], true[is_known]


def confusion(predicted: Any, y: Any, *, has_labels: bool) -> Confusion:
    """Count rows by true and predicted class; with many classes, count the rare ones together.

    Args:
        predicted: labels, or probabilities of shape (rows,) or (rows, classes).
        y: labels, none of them missing.
        has_labels: whether ``predicted`` are labels.

    Raises:
        ValueError: it is unknown which label stands for which of the model's classes.
    """
    true, found = np.asarray(y).ravel(), np.asarray(predicted)
    if not has_labels:
        true, found = _labels(true, found)
    labels, numbers = np.unique(np.concatenate([true, found.ravel()]), return_inverse=True)
    numbers, names = numbers.ravel(), [_name(label) for label in labels.tolist()]
    if len(names) > _MOST_CLASSES:
        most_frequent = np.argsort(-np.bincount(numbers), kind="stable")[: _MOST_CLASSES - 1]
        kept = np.sort(most_frequent)
        new_numbers = np.full(len(names), len(kept))
        new_numbers[kept] = np.arange(len(kept))
        names = [*(names[at] for at in kept), f"{len(names) - len(kept)} others"]
        numbers = new_numbers[numbers]
    counts = np.zeros((len(names), len(names)), dtype=int)
    np.add.at(counts, (numbers[: len(true)], numbers[len(true) :]), 1)
    return Confusion(counts, names)


def residual_quantiles(residuals: Any) -> list[tuple[float, float]]:
    """Quantiles of residuals of shape (rows,), each with its value."""
    return list(zip(_QUANTILES, np.quantile(residuals, _QUANTILES).tolist(), strict=True))


def _labels(true: Any, probabilities: Any) -> tuple[Any, Any]:
    """True labels, and the labels of the most probable classes."""
    is_binary = probabilities.ndim < 2 or probabilities.shape[1] == 1
    number_of_classes = 2 if is_binary else probabilities.shape[1]
    chosen = (probabilities.ravel() > 0.5).astype(int)
    if not is_binary:
        chosen = probabilities.argmax(axis=1)
    try:
        numbers = true.astype(float)
    except (TypeError, ValueError):  # texts
        labels = np.unique(true)
        if len(labels) != number_of_classes:
            raise ValueError(
                f"y has {len(labels)} different labels, and the model has {number_of_classes} "
                "classes. Pass class numbers (0, 1, ...) as y."
            ) from None
        return true, labels[chosen]
    if not is_binary:
        return numbers, chosen.astype(float)
    # As in LightGBM: positive is what is greater than 0, such as 1 of -1 and 1.
    is_positive = numbers > 0
    names = np.array([_only(true[~is_positive], 0), _only(true[is_positive], 1)])
    return names[is_positive.astype(int)], names[chosen]


def _only(labels: Any, default: int) -> Any:
    """The only label in use; the default if there is none, or several."""
    found = np.unique(labels)
    return found[0] if len(found) == 1 else default


def _name(label: object) -> str:
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)
