"""What the LightGBM callback logs, to an MLflow in memory."""

from __future__ import annotations

import copy
import gc
import logging
import pickle
import threading
from collections.abc import Callable
from typing import Any

import lightgbm as lgb
import mlflow
import numpy as np
import optuna
import pandas as pd
import pytest
from sklearn.base import clone

from inline_delivery import InlineDelivery
from lightgbm_helpers import PARAMS, arrays, expected_of_cv, sets
from mlflow_iap_callbacks import IAPLightGBMCallback
from mlflow_iap_callbacks.delivery.run_writer import RunWriter
from own_log import said_by_us
from recording_run import RecordingRun


def _callback(delivery: InlineDelivery, **options: Any) -> IAPLightGBMCallback:
    given = {"client": delivery.client, "experiment_name": "mine", "log_model": False}
    return IAPLightGBMCallback(**{**given, "log_pictures": False, **options})


def _train(callback: Any, rounds: int = 4, *others: Callable[..., Any], **options: Any) -> Any:
    train, valid = sets()
    options = {"valid_sets": [train, valid], "valid_names": ["train", "valid"], **options}
    return lgb.train(PARAMS, train, rounds, callbacks=[callback, *others], **options)


def _raise(env: Any) -> None:
    if env.iteration == 2:
        raise ZeroDivisionError


# a run of its own


def test_a_call_of_lightgbm_is_a_run_with_what_lightgbm_recorded(delivery: InlineDelivery) -> None:
    record: dict[str, Any] = {}
    callback = _callback(delivery, run_name="mine", tags={"team": "x"})
    _train(callback, 5, lgb.record_evaluation(record))
    run = delivery.run()
    for name in ("train", "valid"):
        values = record[name]["binary_logloss"]
        assert run.curve(f"{name}-binary_logloss") == list(enumerate(values))
        best = min(values)
        assert run.curve(f"best-{name}-binary_logloss") == [(values.index(best), best)]
    assert (run.status, run.name, run.tags["team"]) == ("FINISHED", "mine", "x")
    assert delivery.server.experiments[run.experiment_id].name == "mine"
    assert run.params["objective"] == "binary"
    assert {name for name, _ in run.inputs} == {"train", "valid"}


def test_custom_metrics_are_logged_with_names_that_mlflow_accepts(
    delivery: InlineDelivery,
) -> None:
    def mine(predicted: np.ndarray, data: lgb.Dataset) -> list[tuple[str, float, bool]]:
        return [("ndcg@1", 0.5, True), ("ndcg#1", 0.25, True), ("none", float("nan"), True)]

    _train(_callback(delivery), 2, feval=mine)
    run = delivery.run()
    originals = {value: name for name, value in run.tags.items() if "mlflow_iap.name." in name}
    for name, value in (("train-ndcg@1", 0.5), ("train-ndcg#1", 0.25)):
        taken = originals[name].removeprefix("mlflow_iap.name.")
        assert run.curve(taken) == [(0, value), (1, value)]
    assert run.tags["mlflow_iap.skipped_nan_points"] == "4"  # two data sets


@pytest.mark.parametrize("way", ["active", "variable", "default"])
def test_the_experiment_is_mlflows_active_one_if_none_is_given(
    delivery: InlineDelivery, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    experiment = delivery.server.add_experiment("mine")
    if way == "active":
        monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
    elif way == "variable":
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    _train(_callback(delivery, experiment_name=None), 1)
    assert delivery.run().experiment_id == ("0" if way == "default" else experiment)


def test_each_training_run_of_a_callback_is_a_run(delivery: InlineDelivery) -> None:
    callback = _callback(delivery)
    assert callback.run is None
    found: list[RunWriter | None] = []
    for _ in range(2):
        _train(callback)
        found.append(callback.run)
    runs = delivery.runs()
    assert [run.status for run in runs] == ["FINISHED"] * 2
    assert [each and each.known_id for each in found] == [run.run_id for run in runs]


def test_more_can_be_logged_to_the_last_run(delivery: InlineDelivery) -> None:
    callback = _callback(delivery)
    _train(callback)
    assert callback.run is not None
    callback.run.set_tags({"after": "yes"})
    run = delivery.run()
    assert (run.tags["after"], run.status) == ("yes", "FINISHED")


def test_a_failed_run_ends_when_the_next_one_in_its_thread_begins(
    delivery: InlineDelivery,
) -> None:
    callback = _callback(delivery)
    with pytest.raises(ZeroDivisionError) as kept:
        _train(callback, 4, _raise)
    assert delivery.run().status == "RUNNING"
    _train(callback)
    assert [run.status for run in delivery.runs()] == ["FAILED", "FINISHED"]
    assert kept


def test_a_failed_run_ends_with_flush(delivery: InlineDelivery) -> None:
    callback = _callback(delivery)
    with pytest.raises(ZeroDivisionError) as kept:
        _train(callback, 4, _raise)
    assert callback.flush()
    assert delivery.server.runs[next(iter(delivery.server.runs))].status == "FAILED"
    assert kept


@pytest.mark.parametrize(("status", "expected"), [(None, "FAILED"), ("KILLED", "KILLED")])
def test_a_failed_run_ends_with_close_and_the_given_status(
    delivery: InlineDelivery, status: str | None, expected: str
) -> None:
    callback = _callback(delivery)
    with pytest.raises(ZeroDivisionError) as kept:
        _train(callback, 4, _raise)
    callback.close(status)
    assert delivery.run().status == expected
    assert callback.run is None
    assert kept


class _At2(optuna.pruners.BasePruner):
    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return trial.last_step == 2


@pytest.mark.parametrize("is_in_with", [False, True])
def test_a_pruned_run_is_killed_and_has_all_its_points(
    delivery: InlineDelivery, is_in_with: bool
) -> None:
    from optuna_integration import LightGBMPruningCallback

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(pruner=_At2())

    def objective(trial: optuna.Trial) -> float:
        prune = LightGBMPruningCallback(trial, "binary_logloss", valid_name="valid")
        callback = _callback(delivery)
        if is_in_with:
            with callback:
                _train(callback, 10, prune)
        _train(callback, 10, prune)
        return 0.0

    study.optimize(objective, 1)
    gc.collect()
    assert study.trials[0].state.name == "PRUNED"
    run = delivery.run()
    assert run.status == "KILLED"
    assert [step for step, _ in run.curve("valid-binary_logloss")] == [0, 1, 2]


# runs that already exist


def test_a_given_run_is_logged_to_and_stays_open() -> None:
    run = RecordingRun()
    run._client = InlineDelivery().client
    callback = IAPLightGBMCallback(run)
    assert callback.run is run
    _train(callback)
    assert run.status is None
    assert len(run.curve("valid-binary_logloss")) == 4
    assert "num_leaves" not in run.params  # a default, which could conflict with the trial's own
    assert run.inputs == []


@pytest.mark.parametrize("way", ["id", "run", "active run"])
def test_an_mlflow_run_is_logged_to_and_stays_open(delivery: InlineDelivery, way: str) -> None:
    made = delivery.client.create_run("0")
    given = {"id": made.info.run_id, "run": made, "active run": mlflow.ActiveRun(made)}
    _train(_callback(delivery, run=given[way]))
    run = delivery.run()
    assert len(run.curve("valid-binary_logloss")) == 4
    assert run.status == "RUNNING"


# forms of training


def test_a_cross_validation_is_logged_as_lightgbm_returns_it(delivery: InlineDelivery) -> None:
    callback = _callback(delivery, fold_curves=True)
    result = lgb.cv(PARAMS, sets()[0], 3, nfold=3, eval_train_metric=True, callbacks=[callback])
    run = delivery.run()
    for name, curve in expected_of_cv(result).items():
        assert run.curve(name) == curve
    assert len(run.curve("valid-binary_logloss-fold2")) == 3
    assert run.status == "FINISHED"


@pytest.mark.filterwarnings("ignore:The argument 'eval_set' is deprecated")
@pytest.mark.parametrize("way", ["as it is", "clone", "deepcopy", "pickle"])
def test_an_estimator_of_scikit_learn_is_logged_however_it_was_copied(
    delivery: InlineDelivery, way: str
) -> None:
    x, y = arrays()
    callback = _callback(delivery)
    estimator = lgb.LGBMClassifier(n_estimators=3, verbose=-1, n_jobs=1)
    if way == "clone":
        estimator = clone(estimator)
    elif way == "deepcopy":
        estimator, callback = copy.deepcopy((estimator, callback))
    elif way == "pickle":
        estimator, callback = pickle.loads(pickle.dumps((estimator, callback)))
    estimator.fit(x, y, eval_set=[(x[:80], y[:80])], eval_names=["held"], callbacks=[callback])
    values = estimator.evals_result_["held"]["binary_logloss"]
    assert delivery.run().curve("held-binary_logloss") == list(enumerate(values))


def test_each_thread_has_its_own_run(delivery: InlineDelivery) -> None:
    callback = _callback(delivery)
    records: dict[int, dict[str, Any]] = {}

    def train(seed: int) -> None:
        records[seed] = {}
        train, valid = sets()
        lgb.train(
            {**PARAMS, "seed": seed, "bagging_fraction": 0.5, "bagging_freq": 1},
            train,
            5,
            valid_sets=[valid],
            callbacks=[callback, lgb.record_evaluation(records[seed])],
        )

    threads = [threading.Thread(target=train, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)
    runs = delivery.runs()
    assert len(runs) == 4
    for run in runs:
        values = records[int(run.params["seed"])]["valid_0"]["binary_logloss"]
        assert run.curve("valid_0-binary_logloss") == list(enumerate(values))


def test_only_the_first_worker_of_distributed_training_logs(
    delivery: InlineDelivery,
) -> None:
    callback = _callback(delivery)
    booster = lgb.Booster(PARAMS, sets()[0])
    machines = {"machines": "10.0.0.1:1,10.0.0.1:2", "local_listen_port": 2}
    for step in range(2):
        callback(_env(booster, step, machines))
    callback.flush()
    assert delivery.runs() == []
    machines["local_listen_port"] = 1
    for step in range(2):
        callback(_env(booster, step, machines))
    assert delivery.run().status == "FINISHED"


def _env(booster: lgb.Booster, step: int, params: dict[str, Any]) -> Any:
    from lightgbm.callback import CallbackEnv

    items: Any = [("x", "loss", 1.0, False)]
    return CallbackEnv(booster, params, step, 0, 2, items)


def test_the_callback_is_called_before_those_that_raise_and_hide_the_iteration(
    delivery: InlineDelivery,
) -> None:
    assert _callback(delivery).order < lgb.early_stopping(3).order
    assert _callback(delivery).order < -(10**9)  # the order of callbacks that set none


# finish, and the context manager


def test_a_with_block_logs_the_finished_model_of_each_run() -> None:
    delivery = InlineDelivery(has_files=True)
    with _callback(delivery) as callback:
        for _ in range(2):
            _train(callback)
    runs = delivery.runs()
    assert [run.status for run in runs] == ["FINISHED"] * 2
    assert all("lightgbm/feature_importance.csv" in run.artifacts for run in runs)
    assert delivery.sender.waiting == 0


def test_finish_logs_the_model_once_and_ends_its_run() -> None:
    delivery = InlineDelivery(has_files=True)
    with _callback(delivery) as callback:
        booster = _train(callback)
        callback.finish(booster)
        assert delivery.run().status == "FINISHED"
    assert delivery.server.calls.count("log_artifact") == 1
    assert len(delivery.run().curve("stopped_iteration")) == 1


def test_finish_accepts_an_estimator_in_place_of_its_booster() -> None:
    delivery = InlineDelivery(has_files=True)
    callback = _callback(delivery)
    x, y = arrays()
    estimator = lgb.LGBMClassifier(n_estimators=3, verbose=-1, n_jobs=1)
    estimator.fit(x, y, callbacks=[callback])
    callback.finish(estimator, X=x, y=y)
    run = delivery.run()
    assert {"lightgbm/confusion_matrix.csv"} <= run.artifacts.keys()
    assert run.status == "FINISHED"


def test_finish_of_a_model_that_was_trained_elsewhere_creates_a_run() -> None:
    delivery = InlineDelivery(has_files=True)
    booster = lgb.train({**PARAMS, "num_leaf": 7}, sets()[0], 3)
    _callback(delivery).finish(booster)
    run = delivery.run()
    assert "lightgbm/feature_importance.csv" in run.artifacts
    assert (run.params["num_leaf"], run.params["num_leaves"]) == ("7", "7")
    assert run.status == "FINISHED"


def test_finish_says_that_y_is_not_used_without_X(caplog: pytest.LogCaptureFixture) -> None:
    delivery = InlineDelivery(has_files=True)
    booster = lgb.train(PARAMS, sets()[0], 3)
    with caplog.at_level(logging.WARNING, "mlflow_iap_callbacks"):
        _callback(delivery).finish(booster, y=arrays()[1])
    assert "y is not used" in caplog.text
    assert "lightgbm/feature_importance.csv" in delivery.run().artifacts


def test_finish_called_again_logs_nothing_more(caplog: pytest.LogCaptureFixture) -> None:
    delivery = InlineDelivery(has_files=True)
    callback = _callback(delivery)
    x, y = arrays()
    elsewhere = lgb.train(PARAMS, sets()[0], 3)
    for booster in (_train(callback), elsewhere):
        for _ in range(2):
            callback.finish(booster)
    with caplog.at_level(logging.WARNING, "mlflow_iap_callbacks"):
        callback.finish(elsewhere, X=x, y=y)
    assert "already logged, so X and y are not used" in caplog.text
    assert [run.status for run in delivery.runs()] == ["FINISHED"] * 2
    assert delivery.server.calls.count("log_artifact") == 2


def test_finish_after_a_with_block_logs_nothing_more() -> None:
    delivery = InlineDelivery(has_files=True)
    with _callback(delivery) as callback:
        booster = _train(callback)
    callback.finish(booster)
    assert delivery.server.calls.count("log_artifact") == 1
    assert delivery.run().status == "FINISHED"


def test_finish_logs_an_earlier_training_to_its_own_run() -> None:
    delivery = InlineDelivery(has_files=True)
    callback = _callback(delivery)
    boosters = [_train(callback) for _ in range(2)]
    callback.finish(boosters[0])
    first, second = delivery.runs()
    assert "lightgbm/feature_importance.csv" in first.artifacts
    assert second.artifacts == {}


def test_finish_of_a_cross_validation_logs_to_its_run() -> None:
    delivery = InlineDelivery(has_files=True)
    callback = _callback(delivery)
    options: dict[str, Any] = {"return_cvbooster": True, "callbacks": [callback]}
    result: Any = lgb.cv(PARAMS, sets()[0], 3, nfold=3, **options)
    callback.finish(result["cvbooster"])
    run = delivery.run()
    assert "lightgbm/feature_importance.csv" in run.artifacts
    assert run.status == "FINISHED"


def test_finish_of_something_else_raises_before_there_is_a_run(delivery: InlineDelivery) -> None:
    callback = _callback(delivery)
    with pytest.raises(TypeError, match="return_cvbooster=True"):
        callback.finish({"valid auc-mean": [0.5]})
    assert delivery.runs() == []


def test_finish_of_a_model_that_a_copy_has_trained_logs_to_the_copy_s_run() -> None:
    """As with Dask, whose workers get the callback by pickle and return the model by pickle."""
    delivery = InlineDelivery(has_files=True)
    callback = _callback(delivery)
    copied = pickle.loads(pickle.dumps(callback))
    booster = pickle.loads(pickle.dumps(_train(copied)))
    x, y = arrays()
    callback.finish(booster, X=x, y=y)
    run = delivery.run()
    assert "lightgbm/confusion_matrix.csv" in run.artifacts
    assert len(run.curve("valid-binary_logloss")) == 4
    _callback(delivery).finish(booster)  # another callback does not know it
    assert len(delivery.runs()) == 2


@pytest.mark.slow
def test_a_with_block_logs_an_estimator_as_it_is() -> None:
    delivery = InlineDelivery(has_files=True)
    x, y = arrays()
    with _callback(delivery, log_model=True) as callback:
        estimator = lgb.LGBMClassifier(n_estimators=3, verbose=-1, n_jobs=1)
        estimator.fit(x, y, callbacks=[callback])
        _train(callback)
    saved = [files["MLmodel"].decode() for files in delivery.server.model_files.values()]
    kinds = ["model_class: lightgbm.sklearn.LGBMClassifier" in text for text in saved]
    assert kinds == [True, False]
    assert ["input_example" in text for text in saved] == [True, False]


def test_an_exception_after_training_fails_its_run_but_not_earlier_ones() -> None:
    delivery = InlineDelivery(has_files=True)

    def train_and_raise() -> None:
        with _callback(delivery) as callback:
            for _ in range(2):
                _train(callback)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train_and_raise()
    runs = delivery.runs()
    assert [run.status for run in runs] == ["FINISHED", "FAILED"]
    assert all("lightgbm/feature_importance.csv" in run.artifacts for run in runs)


def test_failed_training_in_a_with_block_logs_no_model() -> None:
    delivery = InlineDelivery(has_files=True)

    def train_and_raise() -> None:
        with _callback(delivery) as callback:
            _train(callback, 4, _raise)

    with pytest.raises(ZeroDivisionError):
        train_and_raise()
    run = delivery.run()
    assert (run.status, run.artifacts) == ("FAILED", {})


# training inside other training


@pytest.mark.parametrize("is_in_with", [False, True])
def test_training_inside_a_callback_of_another_has_its_own_run(
    delivery: InlineDelivery, is_in_with: bool
) -> None:
    outer, inner = _callback(delivery, log_pictures=False), {}
    callback = outer.__enter__() if is_in_with else outer

    def train_another(env: Any) -> None:
        record: dict[str, Any] = {}
        _train(callback, 2, lgb.record_evaluation(record))
        inner[env.iteration] = record["valid"]["binary_logloss"]
        callback.flush()

    record: dict[str, Any] = {}
    _train(callback, 3, train_another, lgb.record_evaluation(record))
    if is_in_with:
        outer.__exit__(None, None, None)
    values = record["valid"]["binary_logloss"]
    curves = sorted((run.curve("valid-binary_logloss") for run in delivery.runs()), key=len)
    assert curves == [*([*enumerate(inner[step])] for step in range(3)), list(enumerate(values))]
    assert {run.status for run in delivery.runs()} == {"FINISHED"}


def test_a_failure_inside_a_callback_of_another_training_fails_its_own_run(
    delivery: InlineDelivery,
) -> None:
    callback = _callback(delivery)
    kept = []

    def train_another(env: Any) -> None:
        if env.iteration == 0:
            with pytest.raises(ZeroDivisionError) as error:
                _train(callback, 4, _raise)
            kept.append(error)

    _train(callback, 4, train_another)
    callback.flush()
    assert [(run.status, len(run.curve("valid-binary_logloss"))) for run in delivery.runs()] == [
        ("FINISHED", 4),
        ("FAILED", 3),
    ]


# nothing stops training


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["intervals", "times", "bytes"])
def test_categories_that_a_model_s_text_cannot_contain_leave_one_run_with_its_curve(
    delivery: InlineDelivery, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    x, y = arrays()
    categories = {
        "intervals": pd.cut(x[:, 1], 4),
        "times": pd.to_datetime(np.where(x[:, 1] > 0, "2026-01-01", "2026-02-01")),
        "bytes": np.where(x[:, 1] > 0, b"a", b"b").astype(object),
    }
    frame = pd.DataFrame({"a": x[:, 0], "b": pd.Categorical(categories[kind])})
    record: dict[str, Any] = {}
    callbacks: list[Any] = [_callback(delivery), lgb.record_evaluation(record)]
    with caplog.at_level(logging.WARNING, "mlflow_iap_callbacks"):
        lgb.cv(PARAMS, lgb.Dataset(frame, y), 5, nfold=3, callbacks=callbacks)
    run = delivery.run()
    (means,) = [values for name, values in record["valid"].items() if name.endswith("-mean")]
    assert run.curve("valid-binary_logloss") == list(enumerate(means))
    assert run.status == "FINISHED"
    assert run.params["objective"] == "binary"
    assert {name for name, _ in run.inputs} == {"cv"}
    assert len(said_by_us(caplog)) == 1


@pytest.mark.parametrize("part", ["header_of", "params_of", "data_of", "first_rows"])
def test_what_cannot_be_read_at_the_first_iteration_is_left_out_and_the_rest_is_logged(
    delivery: InlineDelivery,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    part: str,
) -> None:
    monkeypatch.setattr(f"mlflow_iap_callbacks.lightgbm.training.{part}", _refuse)
    with caplog.at_level(logging.WARNING, "mlflow_iap_callbacks"):
        _train(_callback(delivery))
    run = delivery.run()
    assert len(run.curve("valid-binary_logloss")) == 4
    assert run.status == "FINISHED"
    assert len(said_by_us(caplog)) == 1


def test_training_whose_run_cannot_be_started_is_tried_once(
    delivery: InlineDelivery, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = []

    def fail() -> None:
        attempts.append(1)
        _refuse()

    callback = _callback(delivery)
    monkeypatch.setattr(callback, "_new_run", fail)
    with caplog.at_level(logging.WARNING, "mlflow_iap_callbacks"):
        booster = _train(callback)
    assert booster.num_trees() == 4
    assert (len(attempts), len(said_by_us(caplog))) == (1, 1)


def test_the_model_is_the_same_with_and_without_the_callback(delivery: InlineDelivery) -> None:
    def text(*callbacks: Any) -> str:
        train, valid = sets()
        params = {**PARAMS, "bagging_fraction": 0.5, "bagging_freq": 1}
        booster = lgb.train(params, train, 5, valid_sets=[valid], callbacks=list(callbacks))
        return str(booster.model_to_string())

    assert text(_callback(delivery, max_points=3)) == text()


def test_a_logging_error_is_one_warning_and_training_continues(
    delivery: InlineDelivery, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    callback = _callback(delivery)
    monkeypatch.setattr(RunWriter, "log_metrics", _refuse)
    with caplog.at_level(logging.WARNING, "mlflow_iap_callbacks"):
        booster = _train(callback)
    assert booster.num_trees() == 4
    iterations = [message for message in caplog.messages if "an iteration" in message]
    assert len(iterations) == 1
    assert "disk full" in iterations[0]


def _refuse(*_: Any, **__: Any) -> None:
    raise OSError("disk full")


def test_fewer_than_three_points_are_rejected() -> None:
    with pytest.raises(ValueError, match="at least 3"):
        IAPLightGBMCallback(tracking_uri="http://127.0.0.1:1", max_points=2)


def test_a_pickled_callback_keeps_only_its_settings(
    delivery: InlineDelivery,
) -> None:
    callback = _callback(delivery, run_name="mine", tags={"team": "x"}, max_points=3)
    with callback:
        _train(callback)
        again = pickle.loads(pickle.dumps(callback))
        assert again.run is None
        _train(again, 20)
    runs = delivery.runs()
    assert [(run.name, run.tags["team"]) for run in runs] == [("mine", "x")] * 2
    assert [run.status for run in runs] == ["FINISHED"] * 2
    assert len(runs[1].curve("valid-binary_logloss")) <= 3
