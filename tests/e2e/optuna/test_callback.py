"""The Optuna callback, against a real MLflow server behind a local IAP."""

from __future__ import annotations

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

from lightgbm_helpers import PARAMS
from mlflow_iap_callbacks import IAPLightGBMCallback, IAPMLflowCallback
from mlflow_iap_callbacks.local import LocalCloud
from optuna_equality import is_of_a_study
from optuna_helpers import all_runs, curve, quiet_optuna
from variables import set_all


@pytest.fixture(autouse=True)
def _quiet_optuna() -> Iterator[None]:
    with quiet_optuna():
        yield


def _data() -> lgb.Dataset:
    rng = np.random.default_rng(0)
    return lgb.Dataset(rng.normal(size=(200, 4)), rng.integers(0, 2, 200))


def _runs(name: str) -> list[Run]:
    return [run for run in all_runs(name) if not is_of_a_study(run)]


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
            # Long enough for several lifetimes of a token: artificial training that takes 0.7 s.
            slow = lambda env: time.sleep(0.035)  # noqa: E731
            lgb.train(
                {**PARAMS, "learning_rate": rate},
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
            assert curve(run, "training-binary_logloss") == expected
        fetched = [token for token in cloud.tokens if token.time <= began + seconds]
        assert seconds > 2 * lifetime
        times = [round(token.time - began, 2) for token in fetched]
        assert len(fetched) <= math.ceil(seconds / lifetime) + 1, times
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


def test_a_trial_takes_three_requests_with_its_learningcurve(cloud: LocalCloud) -> None:
    callback = IAPMLflowCallback(experiment_name=uuid.uuid4().hex)

    def objective(trial: optuna.Trial) -> float:
        data = _data()
        logged = IAPLightGBMCallback(run=callback.run(trial))
        lgb.train(PARAMS, data, 50, valid_sets=[data], callbacks=[logged])
        return 0.0

    study = optuna.create_study()
    study.optimize(objective, 1, callbacks=[callback])  # finds or creates the experiment
    assert callback.flush()
    cloud.forget()
    study.optimize(objective, 4, callbacks=[callback])
    assert callback.flush()
    assert len(cloud.requests) == 12


def test_the_optuna_callback_can_be_pickled(cloud: LocalCloud, tmp_path: Path) -> None:
    name = uuid.uuid4().hex
    callback = pickle.loads(pickle.dumps(IAPMLflowCallback(experiment_name=name)))
    optuna.create_study().optimize(lambda trial: 1.0, 2, callbacks=[callback])
    assert len(_runs(name)) == 2


def test_two_callbacks_in_one_process_create_one_run_for_each_trial(cloud: LocalCloud) -> None:
    study = optuna.create_study(study_name=uuid.uuid4().hex)
    study.optimize(lambda trial: 1.0, 5, callbacks=[IAPMLflowCallback(), IAPMLflowCallback()])
    assert sorted(run.data.tags["number"] for run in _runs(study.study_name)) == list("01234")
