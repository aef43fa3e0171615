"""Several training runs that are logged to one run, each under its prefix."""

from __future__ import annotations

from typing import Any

import lightgbm as lgb
import pytest
from sklearn.model_selection import KFold

from inline_delivery import InlineDelivery
from lightgbm_helpers import PARAMS, arrays
from mlflow_iap_callbacks import IAPLightGBMCallback
from mlflow_iap_callbacks.delivery.names import mlflow_name
from recording_run import RecordingRun


@pytest.fixture
def run() -> RecordingRun:
    run = RecordingRun()
    run._client = InlineDelivery().client
    return run


def _folds(run: RecordingRun, **options: Any) -> list[dict[str, Any]]:
    """Train a model for each of two folds, and return what LightGBM recorded."""
    records = []
    x, y = arrays()
    for number, (rows, held_out) in enumerate(KFold(2).split(x)):
        record: dict[str, Any] = {}
        callback = IAPLightGBMCallback(run, prefix=f"fold{number}", **options)
        train = lgb.Dataset(x[rows], y[rows])
        valid = lgb.Dataset(x[held_out], y[held_out], reference=train)
        booster = lgb.train(
            {**PARAMS, "bagging_seed": number},
            train,
            3,
            valid_sets=[valid],
            valid_names=["valid"],
            callbacks=[callback, lgb.record_evaluation(record)],
        )
        callback.finish(booster)
        assert callback.run is run
        records.append(record)
    return records


def test_each_fold_has_its_curves_best_values_and_params(run: RecordingRun) -> None:
    for number, record in enumerate(_folds(run, log_model=False, log_pictures=False)):
        values = record["valid"]["binary_logloss"]
        assert run.curve(f"fold{number}/valid-binary_logloss") == list(enumerate(values))
        assert run.curve(f"fold{number}/best-valid-binary_logloss") == [
            (values.index(min(values)), min(values))
        ]
        assert run.params[f"fold{number}/bagging_seed"] == number
    names = {*run.metrics(), *run.params}
    assert {name.partition("/")[0] for name in names} == {"fold0", "fold1"}
    assert all(mlflow_name(name) == name for name in names)
    assert run.status is None


def test_each_fold_has_its_artifacts_and_data_sets(run: RecordingRun) -> None:
    _folds(run, log_model=False)
    for file in ("feature_importance.csv", "feature_importance.png", "learning_curves.png"):
        assert {f"fold{n}/lightgbm/{file}" for n in range(2)} <= run.artifacts.keys()
    assert {path.partition("/")[0] for path in run.artifacts} == {"fold0", "fold1"}
    found = [(dataset.to_dict()["name"], context) for dataset, context in run.inputs]
    assert found == [
        (f"fold{n}/{name}", context)
        for n in range(2)
        for name, context in (("training", "training"), ("valid", "validation"))
    ]


def test_each_fold_has_its_model(run: RecordingRun, monkeypatch: pytest.MonkeyPatch) -> None:
    names = []

    def log_model(_: Any, name: str = "model", **__: Any) -> None:
        names.append(name)

    monkeypatch.setattr(run, "log_model", log_model)
    _folds(run, log_pictures=False)
    assert names == ["fold0/model", "fold1/model"]


def test_a_new_run_has_everything_under_the_prefix_too() -> None:
    delivery = InlineDelivery()
    x, y = arrays()
    callback = IAPLightGBMCallback(prefix="/a/b/", client=delivery.client)
    lgb.train(PARAMS, lgb.Dataset(x, y), 2, callbacks=[callback])
    run = delivery.run()
    assert run.status == "FINISHED"
    assert run.params["a/b/num_leaves"] == "31"
    assert {name for name, _ in run.inputs} == {"a/b/training"}


@pytest.mark.parametrize("prefix", ["", "/", "..", "../a", "a/../..", "a//b", 3, ["a"]])
def test_a_prefix_that_is_not_a_folder_name_is_an_error_with_the_remedy(prefix: Any) -> None:
    with pytest.raises(ValueError, match="Give the name of a folder"):
        IAPLightGBMCallback(prefix=prefix, client=InlineDelivery().client)
