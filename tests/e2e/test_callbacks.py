"""Both callbacks, against a real MLflow server behind a local IAP."""

from __future__ import annotations

import logging
import math
import pickle
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import optuna
import pytest
from mlflow.entities import Run

import python_process
from mlflow_iap_callbacks import IAPLightGBMCallback, IAPMLflowCallback, IAPMlflowClient
from mlflow_iap_callbacks.delivery import lifecycle
from mlflow_iap_callbacks.local import LocalCloud
from optuna_equality import is_of_a_study
from own_log import said_by_us
from variables import set_all
from waiting import wait_until

_PARAMS: dict[str, Any] = {"objective": "binary", "verbosity": -1, "num_threads": 1, "seed": 1}


@pytest.fixture(autouse=True)
def _quiet_optuna() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)


def _data() -> lgb.Dataset:
    rng = np.random.default_rng(0)
    return lgb.Dataset(rng.normal(size=(200, 4)), rng.integers(0, 2, 200))


def _runs(name: str) -> list[Run]:
    client = IAPMlflowClient()
    assert lifecycle.sender_for(client).flush(60.0)
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    return [run for run in found if not is_of_a_study(run)]


def _curve(run: Run, metric: str) -> list[tuple[int, float]]:
    history = IAPMlflowClient().get_metric_history(run.info.run_id, metric)
    return sorted((point.step, point.value) for point in history)


def _ms(moment: Any) -> int:
    return int(moment.timestamp() * 1000)


def test_a_sweep_of_30_trials_in_4_threads_with_tokens_of_2_s_is_in_mlflow_exactly_once(
    new_cloud: Callable[..., LocalCloud], monkeypatch: pytest.MonkeyPatch
) -> None:
    lifetime = 2.0
    with new_cloud(token_lifetime=lifetime) as cloud:
        set_all(monkeypatch, cloud.environment())
        callback = IAPMLflowCallback()
        curves: dict[int, dict[str, Any]] = {}

        def objective(trial: optuna.Trial) -> float:
            rate = trial.suggest_float("learning_rate", 0.01, 0.3, log=True)
            kept: dict[str, Any] = {}
            data = _data()
            # Long enough for several lifetimes: an artificial training of 0.7 s.
            slow = lambda env: time.sleep(0.035)  # noqa: E731
            lgb.train(
                {**_PARAMS, "learning_rate": rate},
                data,
                20,
                valid_sets=[data],
                callbacks=[
                    slow,
                    lgb.record_evaluation(kept),
                    IAPLightGBMCallback(run=callback.run(trial)),
                ],
            )
            curves[trial.number] = kept["training"]
            return float(kept["training"]["binary_logloss"][-1])

        began = time.time()
        study = optuna.create_study(study_name=uuid.uuid4().hex)
        study.optimize(objective, n_trials=30, n_jobs=4, callbacks=[callback])
        seconds = time.time() - began

        runs = {int(run.data.tags["number"]): run for run in _runs(study.study_name)}
        assert len(_runs(study.study_name)) == 30
        for trial in study.trials:
            run = runs[trial.number]
            assert run.info.status == "FINISHED"
            assert run.data.metrics["value"] == trial.value
            assert {k: float(run.data.params[k]) for k in trial.params} == trial.params
            assert run.info.start_time == _ms(trial.datetime_start)
            assert run.info.end_time == _ms(trial.datetime_complete)
            expected = list(enumerate(curves[trial.number]["binary_logloss"]))
            assert _curve(run, "training-binary_logloss") == expected
        fetched = [token for token in cloud.tokens if token.time <= began + seconds]
        assert seconds > 2 * lifetime
        assert len(fetched) <= math.ceil(seconds / lifetime) + 1
        assert len({token.time for token in fetched}) >= 2


def test_a_run_says_how_its_trial_ended(cloud: LocalCloud) -> None:
    def objective(trial: optuna.Trial) -> float:
        trial.suggest_categorical("c", ["a", None, 1])
        trial.set_user_attr("who", "me")
        if trial.number == 1:
            raise optuna.TrialPruned
        if trial.number == 2:
            raise ValueError
        return 1.5

    study = optuna.create_study(study_name=uuid.uuid4().hex)
    study.optimize(
        objective, 3, callbacks=[IAPMLflowCallback(tags={"team": "x"})], catch=ValueError
    )
    runs = {run.data.tags["number"]: run for run in _runs(study.study_name)}
    assert {number: run.info.status for number, run in runs.items()} == {
        "0": "FINISHED",
        "1": "KILLED",
        "2": "FAILED",
    }
    assert [runs[n].data.tags["state"] for n in "012"] == ["COMPLETE", "PRUNED", "FAIL"]
    assert runs["0"].info.run_name == "0"
    assert runs["0"].data.tags["who"] == "me"
    assert runs["0"].data.tags["team"] == "x"
    assert runs["0"].data.tags["direction"] == "MINIMIZE"
    assert "CategoricalDistribution" in runs["0"].data.tags["c_distribution"]


def test_several_objectives_are_called_by_their_metric_names(cloud: LocalCloud) -> None:
    study = optuna.create_study(study_name=uuid.uuid4().hex, directions=["minimize", "maximize"])
    study.set_metric_names(["loss", "accuracy"])
    study.optimize(lambda trial: (1.0, 2.0), 1, callbacks=[IAPMLflowCallback()])
    assert _runs(study.study_name)[0].data.metrics == {"loss": 1.0, "accuracy": 2.0}


def test_a_trial_takes_three_requests_with_its_learning_curve(cloud: LocalCloud) -> None:
    callback = IAPMLflowCallback(experiment_name=uuid.uuid4().hex)

    def objective(trial: optuna.Trial) -> float:
        data = _data()
        logged = IAPLightGBMCallback(run=callback.run(trial))
        lgb.train(_PARAMS, data, 50, valid_sets=[data], callbacks=[logged])
        return 0.0

    study = optuna.create_study()
    study.optimize(objective, 1, callbacks=[callback])  # finds or makes the experiment
    assert callback.flush()
    cloud.forget()
    study.optimize(objective, 4, callbacks=[callback])
    assert callback.flush()
    assert len(cloud.requests) == 12


def test_a_training_alone_makes_a_run_of_its_own(cloud: LocalCloud) -> None:
    name = uuid.uuid4().hex
    kept: dict[str, Any] = {}
    data = _data()
    callback = IAPLightGBMCallback(experiment_name=name, run_name="mine", tags={"a": "b"})
    for _ in range(2):
        lgb.train(
            _PARAMS,
            data,
            7,
            valid_sets=[data],
            valid_names=["x"],
            callbacks=[lgb.record_evaluation(kept), callback],
        )
    runs = _runs(name)
    assert len(runs) == 2
    for run in runs:
        assert (run.info.status, run.info.run_name, run.data.tags["a"]) == ("FINISHED", "mine", "b")
        assert run.data.params["objective"] == "binary"
        assert _curve(run, "x-binary_logloss") == list(enumerate(kept["x"]["binary_logloss"]))


def test_an_early_stop_keeps_its_last_iteration_and_close_finishes_the_run(
    cloud: LocalCloud,
) -> None:
    name = uuid.uuid4().hex
    kept: dict[str, Any] = {}
    rng = np.random.default_rng(1)
    train = lgb.Dataset(rng.normal(size=(200, 4)), rng.integers(0, 2, 200))
    valid = train.create_valid(rng.normal(size=(200, 4)), rng.integers(0, 2, 200))
    with IAPLightGBMCallback(experiment_name=name) as callback:
        lgb.train(
            _PARAMS,
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
    (run,) = _runs(name)
    assert run.info.status == "FINISHED"
    assert len(kept["x"]["binary_logloss"]) < 200
    assert _curve(run, "x-binary_logloss") == list(enumerate(kept["x"]["binary_logloss"]))


def test_cv_logs_mean_and_standard_deviation(cloud: LocalCloud) -> None:
    name = uuid.uuid4().hex
    result = lgb.cv(
        _PARAMS, _data(), 5, nfold=3, callbacks=[IAPLightGBMCallback(experiment_name=name)]
    )
    (run,) = _runs(name)
    for ours, theirs in (("valid-binary_logloss", "mean"), ("valid-binary_logloss-stdv", "stdv")):
        values: Any = result[f"valid binary_logloss-{theirs}"]
        expected = list(enumerate(values))
        assert _curve(run, ours) == expected


def test_names_that_mlflow_refuses_arrive_under_others_and_nan_is_counted(
    cloud: LocalCloud,
) -> None:
    name = uuid.uuid4().hex

    def odd(_: Any, __: Any) -> list[tuple[str, float, bool]]:
        return [("ndcg@1", 0.5, True), ("ndcg#1", 0.25, True), ("none", math.nan, True)]

    data = _data()
    lgb.train(
        {**_PARAMS, "metric": "None"},
        data,
        2,
        valid_sets=[data],
        feval=odd,
        callbacks=[IAPLightGBMCallback(experiment_name=name)],
    )
    (run,) = _runs(name)
    odd_ones = [v for k, v in run.data.metrics.items() if k.startswith("training-")]
    assert sorted(odd_ones) == [0.25, 0.5]
    originals = {v for k, v in run.data.tags.items() if k.startswith("mlflow_iap.name.")}
    assert {"training-ndcg@1", "training-ndcg#1"} <= originals
    assert run.data.tags["mlflow_iap.skipped_nan_points"] == "2"


def test_logging_never_changes_nor_stops_a_training(
    cloud: LocalCloud, caplog: pytest.LogCaptureFixture
) -> None:
    plain = lgb.train(_PARAMS, _data(), 10).model_to_string()
    cloud.members.clear()
    with caplog.at_level(logging.WARNING, "mlflow_iap_callbacks"):
        callback = IAPLightGBMCallback(experiment_name=uuid.uuid4().hex)
        logged = lgb.train(_PARAMS, _data(), 10, callbacks=[callback]).model_to_string()
        study = optuna.create_study(study_name=uuid.uuid4().hex)
        study.optimize(lambda trial: 1.0, 3, callbacks=[IAPMLflowCallback()])
        wait_until(lambda: "httpsResourceAccessor" in caplog.text, "the refusal is told", 60.0)
    assert logged == plain
    assert len(study.trials) == 3
    assert len(said_by_us(caplog)) == 1


def test_a_training_that_raises_leaves_a_failed_run(cloud: LocalCloud) -> None:
    name = uuid.uuid4().hex

    def stop(env: Any) -> None:
        if env.iteration == 3:
            raise ZeroDivisionError

    data = _data()
    with (
        pytest.raises(ZeroDivisionError),
        IAPLightGBMCallback(experiment_name=name) as callback,
    ):
        lgb.train(_PARAMS, data, 10, valid_sets=[data], callbacks=[stop, callback])
    (run,) = _runs(name)
    assert run.info.status == "FAILED"
    assert [step for step, _ in _curve(run, "training-binary_logloss")] == [0, 1, 2, 3]


def test_an_early_stop_that_nobody_closes_is_finished_at_exit(cloud: LocalCloud) -> None:
    name = uuid.uuid4().hex
    script = f"""
import lightgbm as lgb, numpy as np
from mlflow_iap_callbacks import IAPLightGBMCallback
rng = np.random.default_rng(1)
train = lgb.Dataset(rng.normal(size=(200, 4)), rng.integers(0, 2, 200))
valid = train.create_valid(rng.normal(size=(200, 4)), rng.integers(0, 2, 200))
lgb.train({_PARAMS!r}, train, 200, valid_sets=[valid],
    callbacks=[lgb.early_stopping(3, verbose=False), IAPLightGBMCallback(experiment_name={name!r})])
"""
    done = python_process.run("-c", script)
    assert done.returncode == 0, done.stderr
    (run,) = _runs(name)
    assert run.info.status == "FINISHED"
    assert len(_curve(run, "valid_0-binary_logloss")) > 3


def test_the_optuna_callback_travels_by_pickle(cloud: LocalCloud, tmp_path: Path) -> None:
    name = uuid.uuid4().hex
    callback = pickle.loads(pickle.dumps(IAPMLflowCallback(experiment_name=name)))
    optuna.create_study().optimize(lambda trial: 1.0, 2, callbacks=[callback])
    assert len(_runs(name)) == 2


def test_two_callbacks_of_one_process_make_one_run_of_each_trial(cloud: LocalCloud) -> None:
    study = optuna.create_study(study_name=uuid.uuid4().hex)
    study.optimize(lambda trial: 1.0, 5, callbacks=[IAPMLflowCallback(), IAPMLflowCallback()])
    assert sorted(run.data.tags["number"] for run in _runs(study.study_name)) == list("01234")
