"""Names that MLflow takes: the rule is checked against MLflow's own."""

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
def test_mlflow_takes_every_name(name: str) -> None:
    taken = mlflow_name(name)
    _validate_metric_name(taken)
    assert not path_not_unique(taken)
    assert 0 < len(taken) <= 250


@pytest.mark.parametrize("name", ["valid_0-auc", "tr/ain-auc", "l2", "a...b", "x" * 250, "a b.c"])
def test_a_name_that_mlflow_takes_stays_as_it_is(name: str) -> None:
    assert mlflow_name(name) == name


def test_no_two_names_become_one() -> None:
    alphabet = ["a", "/", ".", "@", "#", "_", " "]
    names = {"".join(parts) for n in range(5) for parts in itertools.product(alphabet, repeat=n)}
    assert len({mlflow_name(name) for name in names | set(_ODD)}) == len(names | set(_ODD))
