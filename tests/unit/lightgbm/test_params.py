"""The params of a model: as given, and as LightGBM used them."""

from __future__ import annotations

from typing import Any

import lightgbm as lgb
import pytest

from lightgbm_helpers import PARAMS, sets
from mlflow_iap_callbacks.lightgbm.params import features_in, header_of, params_of, used_in


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
