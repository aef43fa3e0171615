"""The LightGBM callback, against a real MLflow server behind a local IAP."""

from __future__ import annotations

import logging
import math
import uuid
from typing import Any

import lightgbm as lgb
import numpy as np
import optuna
import pytest

import python_process
from lightgbm_helpers import PARAMS, points, runs
from mlflow_iap_callbacks import IAPLightGBMCallback, IAPMLflowCallback
from mlflow_iap_callbacks.local import LocalCloud
from own_log import said_by_us
from waiting import wait_until


def _data() -> lgb.Dataset:
    rng = np.random.default_rng(0)
    return lgb.Dataset(rng.normal(size=(200, 4)), rng.integers(0, 2, 200))


def test_training_without_a_given_run_creates_one(cloud: LocalCloud) -> None:
    name = uuid.uuid4().hex
    kept: dict[str, Any] = {}
    data = _data()
    callback = IAPLightGBMCallback(experiment_name=name, run_name="mine", tags={"a": "b"})
    for _ in range(2):
        lgb.train(
            PARAMS,
            data,
            7,
            valid_sets=[data],
            valid_names=["x"],
            callbacks=[lgb.record_evaluation(kept), callback],
        )
    found = runs(name)
    assert len(found) == 2
    for run in found:
        assert (run.info.status, run.info.run_name, run.data.tags["a"]) == ("FINISHED", "mine", "b")
        assert run.data.params["objective"] == "binary"
        assert points(run, "x-binary_logloss") == list(enumerate(kept["x"]["binary_logloss"]))


def test_early_stopping_keeps_its_last_iteration_and_close_finishes_the_run(
    cloud: LocalCloud,
) -> None:
    name = uuid.uuid4().hex
    kept: dict[str, Any] = {}
    rng = np.random.default_rng(1)
    train = lgb.Dataset(rng.normal(size=(200, 4)), rng.integers(0, 2, 200))
    valid = train.create_valid(rng.normal(size=(200, 4)), rng.integers(0, 2, 200))
    with IAPLightGBMCallback(experiment_name=name) as callback:
        lgb.train(
            PARAMS,
            train,
            200,
            valid_sets=[valid],
            valid_names=["x"],
            callbacks=[
                lgb.early_stopping(3, verbose=False),
                lgb.record_evaluation(kept),
                callback,
            ],
        )
    (run,) = runs(name)
    assert run.info.status == "FINISHED"
    assert len(kept["x"]["binary_logloss"]) < 200
    assert points(run, "x-binary_logloss") == list(enumerate(kept["x"]["binary_logloss"]))


def test_cv_logs_mean_and_standard_deviation(cloud: LocalCloud) -> None:
    name = uuid.uuid4().hex
    result = lgb.cv(
        PARAMS, _data(), 5, nfold=3, callbacks=[IAPLightGBMCallback(experiment_name=name)]
    )
    (run,) = runs(name)
    for ours, theirs in (("valid-binary_logloss", "mean"), ("valid-binary_logloss-stdv", "stdv")):
        values: Any = result[f"valid binary_logloss-{theirs}"]
        expected = list(enumerate(values))
        assert points(run, ours) == expected


def test_names_that_mlflow_rejects_are_replaced_and_nan_is_counted(
    cloud: LocalCloud,
) -> None:
    name = uuid.uuid4().hex

    def odd(_: Any, __: Any) -> list[tuple[str, float, bool]]:
        return [("ndcg@1", 0.5, True), ("ndcg#1", 0.25, True), ("none", math.nan, True)]

    data = _data()
    lgb.train(
        {**PARAMS, "metric": "None"},
        data,
        2,
        valid_sets=[data],
        feval=odd,
        callbacks=[IAPLightGBMCallback(experiment_name=name)],
    )
    (run,) = runs(name)
    odd_ones = [v for k, v in run.data.metrics.items() if k.startswith("training-")]
    assert sorted(odd_ones) == [0.25, 0.5]
    originals = {v for k, v in run.data.tags.items() if k.startswith("mlflow_iap.name.")}
    assert {"training-ndcg@1", "training-ndcg#1"} <= originals
    assert run.data.tags["mlflow_iap.skipped_nan_points"] == "2"


def test_logging_never_changes_or_stops_training(
    cloud: LocalCloud, caplog: pytest.LogCaptureFixture
) -> None:
    plain = lgb.train(PARAMS, _data(), 10).model_to_string()
    cloud.members.clear()
    with caplog.at_level(logging.WARNING, "mlflow_iap_callbacks"):
        callback = IAPLightGBMCallback(experiment_name=uuid.uuid4().hex)
        logged = lgb.train(PARAMS, _data(), 10, callbacks=[callback]).model_to_string()
        study = optuna.create_study(study_name=uuid.uuid4().hex)
        study.optimize(lambda trial: 1.0, 3, callbacks=[IAPMLflowCallback()])
        wait_until(lambda: "httpsResourceAccessor" in caplog.text, "the refusal is told", 60.0)
    assert logged == plain
    assert len(study.trials) == 3
    assert len(said_by_us(caplog)) == 1


def test_training_that_raises_leaves_a_failed_run(cloud: LocalCloud) -> None:
    name = uuid.uuid4().hex

    def stop(env: Any) -> None:
        if env.iteration == 3:
            raise ZeroDivisionError

    data = _data()
    with (
        pytest.raises(ZeroDivisionError),
        IAPLightGBMCallback(experiment_name=name) as callback,
    ):
        lgb.train(PARAMS, data, 10, valid_sets=[data], callbacks=[stop, callback])
    (run,) = runs(name)
    assert run.info.status == "FAILED"
    assert [step for step, _ in points(run, "training-binary_logloss")] == [0, 1, 2, 3]


def test_a_run_with_early_stopping_that_is_not_closed_is_finished_at_exit(
    cloud: LocalCloud,
) -> None:
    name = uuid.uuid4().hex
    script = f"""
import lightgbm as lgb, numpy as np
from mlflow_iap_callbacks import IAPLightGBMCallback
rng = np.random.default_rng(1)
train = lgb.Dataset(rng.normal(size=(200, 4)), rng.integers(0, 2, 200))
valid = train.create_valid(rng.normal(size=(200, 4)), rng.integers(0, 2, 200))
lgb.train({PARAMS!r}, train, 200, valid_sets=[valid],
    callbacks=[lgb.early_stopping(3, verbose=False), IAPLightGBMCallback(experiment_name={name!r})])
"""
    done = python_process.run("-c", script)
    assert done.returncode == 0, done.stderr
    (run,) = runs(name)
    assert run.info.status == "FINISHED"
    assert len(points(run, "valid_0-binary_logloss")) > 3
