"""LightGBM's data sets as MLflow inputs: shape, features, digest and context."""

from __future__ import annotations

import json
from typing import Any

import lightgbm as lgb
import numpy as np
import pandas as pd
import pytest

from lightgbm_helpers import PARAMS, arrays, sets
from mlflow_iap_callbacks.lightgbm.datasets import LightGBMData, data_of
from mlflow_iap_callbacks.lightgbm.params import features_in, header_of


def _of(booster: Any) -> list[tuple[dict[str, Any], str]]:
    """What MLflow gets for each data set, and its context."""
    found = data_of(booster, *features_in(header_of(booster)))
    return [(data.to_dict(), context) for data, context in found]


def _booster(x: Any, y: np.ndarray, *held: tuple[Any, np.ndarray], **options: Any) -> lgb.Booster:
    train = lgb.Dataset(x, y, **options)
    booster = lgb.Booster({**PARAMS, "verbosity": -1}, train)
    for number, (held_x, held_y) in enumerate(held):
        booster.add_valid(lgb.Dataset(held_x, held_y, reference=train), f"held{number}")
    booster.update()
    return booster


def test_each_data_set_has_its_name_context_and_shape() -> None:
    x, y = arrays()
    (train, context), (held, held_context) = _of(_booster(x[:120], y[:120], (x[120:], y[120:])))
    assert (train["name"], context) == ("training", "training")
    assert (held["name"], held_context) == ("held0", "validation")
    profiles = [json.loads(each["profile"]) for each in (train, held)]
    assert [(each["num_rows"], each["num_features"]) for each in profiles] == [(120, 4), (80, 4)]
    assert [each["num_elements"] for each in profiles] == [480, 320]


def test_a_cross_validation_logs_the_whole_data_set() -> None:
    found: list[Any] = []
    lgb.cv(PARAMS, sets()[0], 2, nfold=3, callbacks=[lambda env: found.append(_of(env.model))])
    ((data, context),) = found[0]
    assert (data["name"], context) == ("cv", "cross-validation")
    assert json.loads(data["profile"])["num_rows"] == 120


def test_columns_have_names_and_categories_are_not_numbers() -> None:
    x, y = arrays()
    frame = pd.DataFrame(x, columns=["age", "height", "weight", "pulse"])
    frame["colour"] = pd.Categorical(np.where(x[:, 1] > 0, "red", "green"))
    ((data, _),) = _of(_booster(frame, y))
    columns = json.loads(data["schema"])["mlflow_colspec"]
    assert [column["name"] for column in columns] == list(frame.columns)
    assert [column["type"] for column in columns] == ["double"] * 4 + ["long"]
    assert json.loads(data["profile"])["categorical_features"] == ["colour"]


def test_only_the_same_data_has_the_same_digest() -> None:
    x, y = arrays()
    weights = np.linspace(1.0, 2.0, len(y))
    digests = [
        _of(_booster(*given, **options))[0][0]["digest"]
        for given, options in (
            ((x, y), {}),
            ((x, y), {}),
            ((x, 1 - y), {}),
            ((x * 2, y), {}),
            ((x[:-1], y[:-1]), {}),
            ((x, y), {"weight": weights}),
            ((x, y), {"feature_name": ["a", "b", "c", "d"]}),
        )
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == len(digests) - 1
    assert {len(digest) for digest in digests} == {16}


class _Wide:
    """A stub of a data set with many features and rows."""

    def num_data(self) -> int:
        return 1_000_000

    def get_field(self, name: str) -> np.ndarray | None:
        return np.zeros(1_000_000) if name == "label" else None


@pytest.mark.parametrize(("features", "columns"), [(1000, 1000), (1001, 0), (0, 0)])
def test_data_with_too_many_features_has_no_schema(features: int, columns: int) -> None:
    names = [f"f{number}" for number in range(features)]
    data = LightGBMData(_Wide(), "wide", names, ["0:1"] * features).to_dict()
    schema = json.loads(data["schema"])
    assert len(schema.get("mlflow_colspec", [])) == columns
    profile = json.loads(data["profile"])
    assert profile["num_features"] == features
    assert len(profile["categorical_features"]) == min(features, 1000)
