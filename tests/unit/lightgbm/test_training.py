"""One call of LightGBM and its run: what is logged when, and how the run ends."""

from __future__ import annotations

import gc
import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import lightgbm as lgb
import numpy as np
import optuna
import pytest

from lightgbm_helpers import PARAMS, arrays, sets
from mlflow_iap_callbacks.delivery.closing import Deadline
from mlflow_iap_callbacks.lightgbm import training as training_module
from mlflow_iap_callbacks.lightgbm.endings import engine_of
from mlflow_iap_callbacks.lightgbm.training import Training
from recording_run import RecordingRun


class _Logs:
    """A callback that logs to a run that keeps what it gets."""

    def __init__(self, **options: Any) -> None:
        self.order = float("-inf")
        self.run = RecordingRun()
        self.training: Any = None
        self._options = {
            "is_own": True,
            "keeps_model": False,
            "fold_curves": False,
            "max_points": None,
            "log_datasets": True,
            **options,
        }

    def __call__(self, env: Any) -> None:
        if self.training is None:
            engine = engine_of(sys._getframe())
            self.training = Training(self.run, env, engine, **self._options)
        self.training.log(env)


def _train(logs: _Logs, rounds: int = 4, *others: Callable[..., Any], **options: Any) -> Any:
    train, valid = sets()
    options = {"valid_sets": [valid], "valid_names": ["valid"], **options}
    params = options.pop("params", PARAMS)
    return lgb.train(params, train, rounds, callbacks=[logs, *others], **options)


def _raise(env: Any) -> None:
    if env.iteration == 2:
        raise ZeroDivisionError


def test_training_that_returns_is_finished_with_what_lightgbm_recorded() -> None:
    record: dict[str, Any] = {}
    logs = _Logs()
    _train(logs, 5, lgb.record_evaluation(record))
    expected = list(enumerate(record["valid"]["binary_logloss"]))
    assert logs.run.curve("valid-binary_logloss") == expected
    assert logs.run.status == "FINISHED"
    assert logs.run.end_time == logs.training.ending.time_ms
    assert logs.training not in training_module._live


def test_early_stopping_is_finished_with_its_last_iteration() -> None:
    record: dict[str, Any] = {}
    logs = _Logs()
    booster = _train(logs, 200, lgb.early_stopping(3, verbose=False), lgb.record_evaluation(record))
    values = record["valid"]["binary_logloss"]
    assert logs.run.curve("valid-binary_logloss") == list(enumerate(values))
    assert logs.run.curve("best_iteration") == [(len(values) - 1, booster.best_iteration)]
    assert logs.run.status == "FINISHED"


@pytest.mark.parametrize("order", [-1000, 1000])
def test_training_that_raises_is_failed_with_its_last_iteration(order: int) -> None:
    logs = _Logs()

    def stop(env: Any) -> None:
        _raise(env)

    stop.order = order  # type: ignore[attr-defined]
    with pytest.raises(ZeroDivisionError):
        _train(logs, 5, stop)
    logs.training.end()
    assert [step for step, _ in logs.run.curve("valid-binary_logloss")] == [0, 1, 2]
    assert logs.run.status == "FAILED"


def test_a_given_status_takes_precedence_over_how_training_ended() -> None:
    logs = _Logs()
    with pytest.raises(ZeroDivisionError) as error:
        _train(logs, 5, _raise)
    logs.training.end("KILLED")
    assert logs.run.status == "KILLED"
    logs.training.end("FINISHED")  # it has ended
    assert logs.run.status == "KILLED"
    assert error


@pytest.mark.parametrize(
    ("error", "status"), [(ZeroDivisionError, "FAILED"), (optuna.TrialPruned, "KILLED")]
)
@pytest.mark.parametrize("is_cv", [False, True])
def test_training_that_raises_at_its_last_iteration_has_the_status_of_the_exception(
    error: type[Exception], status: str, is_cv: bool
) -> None:
    def stop(env: Any) -> None:
        if env.iteration == env.end_iteration - 1:
            raise error

    logs = _Logs()
    train: Callable[[], Any] = (
        (lambda: lgb.cv(PARAMS, sets()[0], 3, nfold=3, callbacks=[logs, stop]))
        if is_cv
        else (lambda: _train(logs, 3, stop))
    )
    with pytest.raises(error):
        train()
    logs.training.end()
    assert logs.run.status == status
    assert [step for step, _ in logs.run.curve("valid-binary_logloss")] == [0, 1, 2]


def test_a_cross_validation_that_reaches_its_last_iteration_is_finished() -> None:
    logs = _Logs()
    lgb.cv(PARAMS, sets()[0], 3, nfold=3, callbacks=[logs])
    assert logs.run.status == "FINISHED"
    assert len(logs.run.curve("valid-binary_logloss-stdv")) == 3
    assert not any("fold" in name for name in logs.run.metrics())


def test_folds_are_evaluated_with_custom_metrics() -> None:
    def mine(predicted: np.ndarray, data: lgb.Dataset) -> tuple[str, float, bool]:
        return "mine", float(np.max(predicted)), True

    logs = _Logs(fold_curves=True)
    result: Any = lgb.cv(PARAMS, sets()[0], 3, nfold=3, feval=mine, callbacks=[logs])
    for metric in ("binary_logloss", "mine"):
        folds = [logs.run.curve(f"valid-{metric}-fold{number}") for number in range(3)]
        means = np.mean([[value for _, value in fold] for fold in folds], axis=0)
        np.testing.assert_allclose(means, result[f"valid {metric}-mean"], rtol=1e-12)


def test_training_without_folds_has_none_evaluated() -> None:
    logs = _Logs(fold_curves=True)
    _train(logs)
    assert logs.run.status == "FINISHED"
    assert not any("fold" in name for name in logs.run.metrics())


def test_a_new_run_has_all_params_and_a_given_run_only_the_given_ones() -> None:
    own, others = _Logs(), _Logs(is_own=False)
    params = {**PARAMS, "eta": 0.2}
    for logs in (own, others):
        _train(logs, params=params)
    assert own.run.params["num_leaves"] == "31"
    for logs in (own, others):
        assert (logs.run.params["eta"], logs.run.params["learning_rate"]) == (0.2, 0.2)
    assert "num_leaves" not in others.run.params


@pytest.mark.parametrize("way", ["train", "cv", "estimator"])
def test_a_custom_objective_is_logged_by_its_name(way: str) -> None:
    def mine(y: Any, predicted: Any) -> Any:
        return predicted - y, np.ones_like(predicted)

    def ours(predicted: Any, data: Any) -> Any:
        return mine(data.get_label(), predicted)

    logs = _Logs()
    params = {**PARAMS, "objective": ours}
    if way == "train":
        _train(logs, params=params)
    elif way == "cv":
        lgb.cv(params, sets()[0], 2, nfold=3, callbacks=[logs])
    else:
        lgb.LGBMRegressor(objective=mine, n_estimators=2).fit(*arrays(), callbacks=[logs])
    assert logs.run.params["objective"] == ("mine" if way == "estimator" else "ours")
    assert logs.training.used["objective"] == "custom"


def test_a_given_run_is_left_open() -> None:
    logs = _Logs(is_own=False)
    _train(logs)
    assert logs.run.status is None
    assert logs.run.curve("stopped_iteration") == [(3, 4)]


@pytest.mark.parametrize("is_wanted", [True, False])
def test_data_sets_are_logged_as_inputs_on_request(is_wanted: bool) -> None:
    logs = _Logs(log_datasets=is_wanted)
    _train(logs)
    contexts = [context for _, context in logs.run.inputs]
    assert contexts == (["training", "validation"] if is_wanted else [])


def test_a_kept_model_remains_after_training_and_its_run_stays_open() -> None:
    logs = _Logs(keeps_model=True)
    booster = _train(logs)
    assert (logs.training.status, logs.run.status) == ("FINISHED", None)
    del booster
    gc.collect()
    assert logs.training.model.num_trees() == 4
    logs.training.finish()
    assert logs.run.status == "FINISHED"
    gc.collect()
    assert logs.training.model is None


def test_a_model_that_is_not_kept_is_freed_after_its_last_use() -> None:
    logs = _Logs()
    booster = _train(logs)
    assert logs.training.model is booster
    del booster
    gc.collect()
    assert logs.training.model is None


def test_a_later_status_replaces_the_first_one_if_the_model_was_kept() -> None:
    logs = _Logs(keeps_model=True)
    _train(logs)
    logs.training.finish("FAILED")
    assert logs.run.status == "FAILED"


def test_training_that_is_not_watched_ends_with_its_last_iteration() -> None:
    run = RecordingRun()
    booster = lgb.Booster(PARAMS, sets()[0])
    options: dict[str, Any] = {"fold_curves": False, "max_points": None, "log_datasets": False}
    envs = [_env(booster, step) for step in range(3)]
    training = Training(run, envs[0], None, is_own=True, keeps_model=False, **options)
    for env in envs:
        assert run.status is None
        training.log(env)
    assert run.status == "FINISHED"


def _env(booster: lgb.Booster, step: int) -> Any:
    from lightgbm.callback import CallbackEnv

    items: Any = [("x", "loss", 1.0, False)]
    return CallbackEnv(booster, {}, step, 0, 3, items)


def test_open_runs_end_with_the_process_and_their_own_status() -> None:
    both = _Logs(), _Logs(keeps_model=True)
    errors = []
    for logs in both:
        with pytest.raises(ZeroDivisionError) as error:
            _train(logs, 5, _raise)
        errors.append(error)
    assert [logs.run.status for logs in both] == [None, None]
    training_module._end_all(Deadline(time.monotonic, 30.0))
    assert [logs.run.status for logs in both] == ["FAILED", "FAILED"]


def test_a_forked_process_leaves_its_parents_run_to_the_parent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logs = _Logs()
    with pytest.raises(ZeroDivisionError) as error:
        _train(logs, 5, _raise)
    with monkeypatch.context() as fork:
        pid = os.getpid()
        fork.setattr(os, "getpid", lambda: pid + 1)
        logs.training.end()
    assert logs.run.status is None
    logs.training.end()
    assert logs.run.status == "FAILED"
    assert error


def test_an_error_at_the_end_is_a_warning_instead_of_an_exception(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = _Logs()
    monkeypatch.setattr(logs.run, "finish", _refuse)
    with caplog.at_level(logging.WARNING, "mlflow_iap_callbacks"):
        booster = _train(logs)
    (message,) = caplog.messages
    assert "the end of LightGBM training (disk full)" in message
    assert booster.num_trees() == 4


def _refuse(*_: Any, **__: Any) -> None:
    raise OSError("disk full")
