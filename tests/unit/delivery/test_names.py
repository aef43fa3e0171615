"""Names that MLflow accepts, checked against MLflow's own rule."""

from __future__ import annotations

import itertools

import pytest
from mlflow.utils.validation import _validate_metric_name, path_not_unique

from mlflow_iap_callbacks.delivery.names import mlflow_name

_ODD = [
    *("", " ", ".", "..", "/", "//", "a//b", "/a", "a/", "./a", "a/../b", "a/.", "a/./b"),
    *("ndcg@1", "ndcg_1", "ndcg#1", "my metric's%x", "hold out (2024)", "a:b", "ünï", "a\nb"),
    *(
        "x" * 250,
        "x" * 251,
        "..a",
        "...",
        "\ud800",
        "x" * 250 + "@",
        "@" * 300,
        "tr/ain-auc",
        "valid_0-auc",
        "a...b",
    ),
]


@pytest.mark.parametrize("name", _ODD)
def test_mlflow_accepts_every_name(name: str) -> None:
    taken = mlflow_name(name)
    _validate_metric_name(taken)
    assert not path_not_unique(taken)
    assert 0 < len(taken) <= 250


@pytest.mark.parametrize("name", ["valid_0-auc", "tr/ain-auc", "l2", "a...b", "x" * 250, "a b.c"])
def test_a_name_that_mlflow_accepts_is_not_changed(name: str) -> None:
    assert mlflow_name(name) == name


def test_different_names_stay_different() -> None:
    alphabet = ["a", "/", ".", "@", "#", "_", " "]
    names = {"".join(parts) for n in range(5) for parts in itertools.product(alphabet, repeat=n)}
    assert len({mlflow_name(name) for name in names | set(_ODD)}) == len(names | set(_ODD))
