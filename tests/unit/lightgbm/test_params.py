"""The params of a model: as given, and as LightGBM used them."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import lightgbm as lgb
import pytest

from lightgbm_helpers import PARAMS, arrays, sets
from mlflow_iap_callbacks.lightgbm.params import features_in, header_of, name_of, params_of, used_in


@pytest.fixture(scope="module")
def header() -> str:
    return header_of(lgb.train(PARAMS, sets()[0], 2))


def test_the_used_params_are_canonical_and_only_those_of_the_model(header: str) -> None:
    used = used_in(header)
    expected = {
        "objective": "binary",
        "boosting": "gbdt",
        "num_iterations": "2",
        "num_leaves": "31",
        "learning_rate": "0.1",
    }
    assert expected.items() <= used.items()
    assert not {"data", "valid", "machines", "gpu_platform_id", "header"} & used.keys()
    assert all(used.values())


def test_the_features_have_their_ranges(header: str) -> None:
    names, infos = features_in(header)
    assert names == ["Column_0", "Column_1", "Column_2", "Column_3"]
    assert all(info.startswith("[") and info.endswith("]") for info in infos)


@pytest.mark.parametrize("blank", ["\xa0", "\u3000", "\u2028", "\x85", "\t", "\x0b", "\x1c"])
@pytest.mark.parametrize("name", ["a{}b", "{}ab", "ab{}"])
def test_the_features_have_their_names_with_any_whitespace_that_lightgbm_keeps(
    blank: str, name: str
) -> None:
    x, y = arrays(features=2)
    names = [name.format(blank), "c"]
    booster = lgb.train(PARAMS, lgb.Dataset(x, y, feature_name=names), 1)
    assert features_in(header_of(booster))[0] == booster.feature_name() == names


def _objective(*_: object) -> None: ...


class _Objective:
    def __call__(self, *_: object) -> None: ...


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (_objective, "_objective"),
        (functools.partial(_objective, 1), "_objective"),
        (functools.partial(functools.partial(_objective, 1), 2), "_objective"),
        (SimpleNamespace(func=_objective), "_objective"),  # as scikit-learn's estimators pass it
        (_Objective(), "_Objective"),
        (_Objective().__call__, "__call__"),
    ],
)
def test_a_custom_objective_has_the_name_of_its_function(function: Any, name: str) -> None:
    assert name_of(function) == name


def test_a_model_text_without_params_has_none() -> None:
    assert used_in("tree\nfeature_names=a b") == {}
    assert features_in("tree\nfeature_names=a b") == (["a", "b"], [])


@pytest.mark.parametrize(
    ("given", "used", "expected"),
    [
        pytest.param({"num_leaves": 7}, {"num_leaves": "7"}, {"num_leaves": 7}, id="the same"),
        pytest.param(
            {"num_leaf": 7}, {"num_leaves": "7"}, {"num_leaf": 7, "num_leaves": 7}, id="an alias"
        ),
        pytest.param(
            {"eta": 0.0123456789},
            {"learning_rate": "0.0123457"},
            {"eta": 0.0123456789, "learning_rate": 0.0123456789},
            id="more digits than LightGBM writes",
        ),
        pytest.param(
            {"objective": "mse"},
            {"objective": "regression"},
            {"objective": "regression", "given.objective": "mse"},
            id="another name for a value",
        ),
        pytest.param(
            {"metric": ["mae", "rmse"]},
            {"metric": "l1,rmse"},
            {"metric": "l1,rmse", "given.metric": ["mae", "rmse"]},
            id="other names in a list",
        ),
        pytest.param(
            {"metric": ["l1", "l2"]}, {"metric": "l1,l2"}, {"metric": ["l1", "l2"]}, id="a list"
        ),
        pytest.param(
            {"metric": {"l2", "l1", "auc"}},
            {"metric": "l2,auc,l1"},
            {"metric": ["auc", "l1", "l2"]},
            id="a set",
        ),
        pytest.param(
            {"metrics": {"mae", "rmse"}},
            {"metric": "rmse,l1"},
            {"metric": "l1,rmse", "metrics": ["mae", "rmse"]},
            id="other names in a set",
        ),
        pytest.param(
            {"mine": [{"b", "a"}, (1,)]}, {}, {"mine": [["a", "b"], (1,)]}, id="nested sets"
        ),
        pytest.param(
            {"num_leaf": 7, "num_leaves": 15},
            {"num_leaves": "15"},
            {"num_leaf": 7, "num_leaves": 15},
            id="an alias that LightGBM ignored",
        ),
        pytest.param({"mine": "x"}, {}, {"mine": "x"}, id="one that LightGBM does not know"),
        pytest.param(
            {"boost_from_average": True},
            {"boost_from_average": "1"},
            {"boost_from_average": True},
            id="true",
        ),
        pytest.param(
            {"boost_from_average": False},
            {"boost_from_average": "1"},
            {"boost_from_average": "1", "given.boost_from_average": False},
            id="false that was overruled",
        ),
        pytest.param(
            {"num_leaves": 10**400}, {"num_leaves": "31"}, None, id="a number out of bounds"
        ),
    ],
)
def test_given_params_have_their_names_and_the_used_values(
    given: dict[str, Any], used: dict[str, str], expected: dict[str, Any] | None
) -> None:
    found = params_of(given, used)
    assert found == (expected or {"num_leaves": "31", "given.num_leaves": 10**400})
