"""Predictions beside true values, for every kind of label."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from mlflow_iap_callbacks.lightgbm.comparison import (
    confusion,
    residual_quantiles,
    with_true_values,
)

_PROBABILITIES = np.array([0.1, 0.9, 0.6, 0.4])  # of the second class
_COUNTS = [[1, 1], [1, 1]]  # for the true classes below


def _y(first: Any, second: Any) -> list[Any]:
    return [first, second, first, second]


@pytest.mark.parametrize(
    ("y", "labels"),
    [
        (_y(0, 1), ["0", "1"]),
        (_y(-1, 1), ["-1", "1"]),
        (_y(0, 2), ["0", "2"]),
        (_y(0.0, 1.0), ["0", "1"]),
        (_y(0.0, 0.5), ["0", "0.5"]),
        (_y(False, True), ["False", "True"]),
        (_y("no", "yes"), ["no", "yes"]),
        (_y("-1", "1"), ["-1", "1"]),
        (pd.Series(_y(-1, 1), dtype="Int64"), ["-1", "1"]),
        (pd.Series(_y("no", "yes"), dtype="category"), ["no", "yes"]),
        (np.array(_y(-1, 1)).reshape(-1, 1), ["-1", "1"]),
    ],
)
def test_probabilities_of_two_classes_are_compared_with_labels_of_any_kind(
    y: Any, labels: list[str]
) -> None:
    counts, found = confusion(_PROBABILITIES, y, has_labels=False)
    assert found == labels
    assert counts.tolist() == _COUNTS


@pytest.mark.parametrize(("label", "other"), [(-1, "1"), (1, "0")])
def test_true_values_of_one_class_are_compared_with_both(label: int, other: str) -> None:
    counts, labels = confusion(_PROBABILITIES, [label] * 4, has_labels=False)
    assert sorted(labels) == sorted([str(label), other])
    assert counts[labels.index(str(label))].tolist() == [2, 2]


def test_probabilities_of_several_classes_are_compared_with_numbers_and_texts() -> None:
    probabilities = np.eye(3)[[0, 1, 2, 2]]
    for y, names in (([0, 1, 2, 1], ["0", "1", "2"]), (list("abcb"), ["a", "b", "c"])):
        counts, labels = confusion(probabilities, y, has_labels=False)
        assert labels == names
        assert counts.tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 1]]


@pytest.mark.parametrize("probabilities", [_PROBABILITIES, np.eye(4)])
def test_texts_that_cannot_be_assigned_to_the_classes_are_an_error_with_the_remedy(
    probabilities: Any,
) -> None:
    with pytest.raises(ValueError, match=r"3 different labels.*Pass class numbers"):
        confusion(probabilities, ["a", "b", "c", "a"], has_labels=False)


def test_predicted_labels_are_compared_as_they_are() -> None:
    counts, labels = confusion(["a", "b", "b"], ["a", "b", "c"], has_labels=True)
    assert labels == ["a", "b", "c"]
    assert counts.tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 0]]


def test_large_numbers_as_labels_keep_all_digits() -> None:
    assert confusion([1234567.0], [1234568.0], has_labels=True).labels == ["1234567", "1234568"]


def test_rare_classes_are_counted_together_if_there_are_very_many() -> None:
    y = np.repeat(np.arange(5000), np.where(np.arange(5000) < 100, 3, 1))
    counts, labels = confusion(y, y, has_labels=True)
    assert len(labels) == 200
    assert labels[:100] == [str(number) for number in range(100)]
    assert labels[-1] == "4801 others"
    assert counts.shape == (200, 200)
    assert counts.sum() == np.trace(counts) == len(y)
    assert counts[-1, -1] == 4801


def test_residuals_have_quantiles() -> None:
    found = dict(residual_quantiles(np.arange(101.0)))
    assert (found[0.0], found[0.5], found[1.0]) == (0.0, 50.0, 100.0)


@pytest.mark.parametrize(
    "y",
    [
        [1.0, None, 0.0],
        np.array([1.0, np.nan, 0.0]),
        np.array([[1.0], [np.nan], [0.0]]),
        pd.Series([1, pd.NA, 0], dtype="Int64"),
        pd.DataFrame({"y": [1.0, None, 0.0]}),
        pl.Series([1, None, 0]),
        pa.chunked_array([[1, None], [0]]),
    ],
    ids=lambda y: type(y).__name__,
)
@pytest.mark.parametrize("shape", [(3,), (3, 2)])
def test_rows_without_a_true_value_are_left_out(y: Any, shape: tuple[int, ...]) -> None:
    predicted = np.arange(np.prod(shape)).reshape(shape)
    kept, true = with_true_values(predicted, y)
    assert kept.tolist() == predicted[[0, 2]].tolist()
    assert true.astype(float).tolist() == [1.0, 0.0]


def test_texts_with_missing_ones_are_compared() -> None:
    labels = pd.Series(["no", None, "yes"], dtype="str")
    kept, true = with_true_values(np.array([0.9, 0.9, 0.9]), labels)
    assert confusion(kept, true, has_labels=False).labels == ["no", "yes"]


@pytest.mark.parametrize(
    ("y", "words"),
    [
        ([1, 0], "X has 3 rows, and y has 2 values"),
        (np.ones((3, 2)), "X has 3 rows, and y has 6 values"),
        ([None] * 3, "y has no values"),
    ],
)
def test_true_values_that_do_not_fit_are_an_error_in_words(y: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        with_true_values(np.zeros(3), y)


def test_no_rows_have_no_true_values() -> None:
    with pytest.raises(ValueError, match="y has no values"):
        with_true_values(np.zeros(0), [])
