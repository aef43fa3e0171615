"""The runs of an Optuna study and its trials, no matter how trials are created and end."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import pickle
import re
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import mlflow
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial

import python_process
from mlflow_iap_callbacks import IAPMLflowCallback, IAPMlflowClient
from mlflow_iap_callbacks.delivery import lifecycle
from mlflow_iap_callbacks.local import LocalCloud
from mlflow_iap_callbacks.optuna import callback as optuna_callback
from mlflow_iap_callbacks.optuna import reporter
from optuna_helpers import (
    PARENT_TAG,
    all_runs,
    artifacts,
    curve,
    fluent_state_of_its_own,
    new_study,
    quiet_optuna,
    study_run,
    text_of,
    trial_run,
    trial_runs,
)
from waiting import wait_until

# What MLflow's own server stores for infinity.
_LARGEST = sys.float_info.max


@pytest.fixture(autouse=True)
def _quiet_optuna() -> Iterator[None]:
    with quiet_optuna():
        yield


@pytest.fixture(autouse=True)
def cloud(cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalCloud]:
    with fluent_state_of_its_own(monkeypatch):
        yield cloud


pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


def _x(trial: optuna.Trial) -> float:
    return trial.suggest_float("x", 0.0, 1.0)


def _end_of_process() -> None:
    """The last report on studies, without time for plots, which take seconds of CPU."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(reporter, "_SECONDS_TO_DRAW", math.inf)
        lifecycle.exit_process(15.0)


def _everything(study: optuna.Study) -> dict[str, dict[str, Any]]:
    """Everything that MLflow has about the study's trials, by run id."""
    runs = trial_runs(study.study_name).values()
    return {run.info.run_id: {**run.to_dictionary(), "artifacts": artifacts(run)} for run in runs}


# values


def test_reported_values_are_a_curve_by_step() -> None:
    def objective(trial: optuna.Trial) -> float:
        for step in (7, 0, 3):
            trial.report(step / 10, step)
        return _x(trial)

    study = new_study()
    study.optimize(objective, 1, callbacks=[IAPMLflowCallback()])
    assert curve(trial_run(study), "intermediate_value") == [(0, 0.0), (3, 0.3), (7, 0.7)]


def test_thousands_of_reported_values_all_arrive() -> None:
    expected = [(step, step / 7) for step in range(2500)]

    def objective(trial: optuna.Trial) -> float:
        for step, value in expected:
            trial.report(value, step)
        return _x(trial)

    study = new_study()
    study.optimize(objective, 1, callbacks=[IAPMLflowCallback()])
    run = trial_run(study)
    assert curve(run, "intermediate_value") == expected
    assert (run.info.status, run.data.metrics["value"]) == ("FINISHED", study.trials[0].value)


def test_a_pruned_trial_keeps_what_it_reported() -> None:
    def objective(trial: optuna.Trial) -> float:
        trial.report(2.0, 0)
        trial.report(math.nan, 1)
        trial.report(1.0, 2)
        raise optuna.TrialPruned

    study = new_study()
    study.optimize(objective, 1, callbacks=[IAPMLflowCallback()])
    run = trial_run(study)
    assert curve(run, "intermediate_value") == [(0, 2.0), (2, 1.0)]
    assert run.data.tags["mlflow_iap.skipped_nan_points"] == "1"
    assert run.info.status == "KILLED"


def test_constraints_are_metrics_and_say_whether_the_trial_is_feasible() -> None:
    given = {0: (0.0, -2.0), 1: (-1.0, 0.5)}
    has_names = hasattr(optuna.Trial, "set_constraint")  # since Optuna 4.9
    names = ("memory", "time") if has_names else ("0", "1")

    def objective(trial: optuna.Trial) -> float:
        if has_names:
            for name, value in zip(names, given[trial.number], strict=True):
                trial.set_constraint(name, value)
        return 1.0 - trial.number

    study = new_study()
    if not has_names:
        study.sampler = optuna.samplers.TPESampler(constraints_func=lambda each: given[each.number])
    callback = IAPMLflowCallback()
    study.optimize(objective, 2, callbacks=[callback])
    runs = trial_runs(study.study_name)
    for number, values in given.items():
        for name, value in zip(names, values, strict=True):
            assert runs[number].data.metrics[f"constraint.{name}"] == value
    assert [runs[number].data.tags["feasible"] for number in given] == ["True", "False"]
    _end_of_process()
    # The other trial's value is lower, but it violates a constraint.
    assert study_run(study.study_name).data.metrics["best_value"] == 1.0


def test_a_trial_without_constraints_is_not_said_to_be_feasible() -> None:
    study = new_study()
    study.optimize(_x, 1, callbacks=[IAPMLflowCallback()])
    assert "feasible" not in trial_run(study).data.tags


def test_the_studys_metric_names_name_the_values_of_several_objectives() -> None:
    study = new_study("minimize", "maximize")
    study.set_metric_names(["loss", "accuracy"])
    study.optimize(lambda trial: (_x(trial), 2.0), 2, callbacks=[IAPMLflowCallback()])
    for number, run in trial_runs(study.study_name).items():
        loss, accuracy = study.trials[number].values
        assert run.data.metrics == {"loss": loss, "accuracy": accuracy}


def test_a_metric_name_of_the_callback_takes_precedence_over_the_studys() -> None:
    study = new_study()
    study.set_metric_names(["loss"])
    study.optimize(_x, 1, callbacks=[IAPMLflowCallback(metric_name="mine")])
    assert trial_run(study).data.metrics.keys() == {"mine"}


def test_infinite_values_are_logged_and_a_nan_trial_fails_without_a_value() -> None:
    study = new_study()
    values = [math.inf, -math.inf, math.nan]
    study.optimize(lambda trial: values[trial.number], 3, callbacks=[IAPMLflowCallback()])
    runs = trial_runs(study.study_name)
    assert [runs[n].data.metrics.get("value") for n in range(3)] == [_LARGEST, -_LARGEST, None]
    assert [runs[n].info.status for n in range(3)] == ["FINISHED", "FINISHED", "FAILED"]
    assert [runs[n].data.tags["state"] for n in range(3)] == ["COMPLETE", "COMPLETE", "FAIL"]


def test_user_attributes_of_all_kinds_are_tags() -> None:
    given = {
        "nan": math.nan,
        "inf": -math.inf,
        "none": None,
        "flag": True,
        "nested": {"a": [1, {"b": "ü"}]},
        "text": "two\nlines, ünïcode 🙂",
        "empty": "",
    }

    def objective(trial: optuna.Trial) -> float:
        for name, value in given.items():
            trial.set_user_attr(name, value)
        return 1.0

    study = new_study()
    study.optimize(objective, 1, callbacks=[IAPMLflowCallback()])
    tags = trial_run(study).data.tags
    assert {name: tags.get(name) for name in given} == {n: str(v) for n, v in given.items()}


def test_params_of_all_types_are_logged() -> None:
    given: dict[str, Any] = {
        "none": None,
        "flag": True,
        "text": "ünï\ncode 🙂",
        "empty": "",
        "int": -3,
        "float": 1e-300,
        "with space/and.dots": "x",
    }

    def objective(trial: optuna.Trial) -> float:
        for name, value in given.items():
            trial.suggest_categorical(name, [value])
        trial.suggest_categorical("long", ["ü" * 20_000])
        trial.suggest_categorical("odd#name", ["kept"])
        return 1.0

    study = new_study()
    study.optimize(objective, 1, callbacks=[IAPMLflowCallback()])
    run = trial_run(study)
    params = run.data.params
    assert {name: params.get(name) for name in given} == {n: str(v) for n, v in given.items()}
    assert params["long"] == "ü" * 6000
    (odd,) = [name for name, value in params.items() if value == "kept"]
    assert run.data.tags[f"mlflow_iap.name.{odd}"] == "odd#name"
    assert run.data.metrics == {"value": 1.0}


def test_a_trial_with_more_params_and_attributes_than_fit_into_one_request_is_complete() -> None:
    def objective(trial: optuna.Trial) -> float:
        for number in range(250):
            trial.suggest_int(f"p{number}", number, number)
            trial.set_user_attr(f"a{number}", number)
        return 1.0

    study = new_study()
    study.optimize(objective, 1, callbacks=[IAPMLflowCallback()])
    run = trial_run(study)
    assert run.data.params == {f"p{number}": str(number) for number in range(250)}
    assert {f"a{number}": str(number) for number in range(250)}.items() <= run.data.tags.items()
    assert len([name for name in run.data.tags if name.endswith("_distribution")]) == 250


def test_a_run_begins_and_ends_when_its_trial_does() -> None:
    study = new_study()
    study.optimize(_x, 1, callbacks=[IAPMLflowCallback()])
    info, trial = trial_run(study).info, study.trials[0]
    assert trial.datetime_start is not None
    assert trial.datetime_complete is not None
    assert info.start_time == int(trial.datetime_start.timestamp() * 1000)
    assert info.end_time == int(trial.datetime_complete.timestamp() * 1000)


# failures


@pytest.mark.parametrize("is_tracked", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_failed_trial_has_its_traceback_once_and_its_last_line_as_a_tag(
    cloud: LocalCloud, tmp_path: Path, is_tracked: bool
) -> None:
    callback = IAPMLflowCallback()

    def objective(trial: optuna.Trial) -> float:
        if trial.number == 0:
            raise ValueError(f"no such thing as {trial.number}")
        return _x(trial)

    study = new_study()
    given = callback.track_in_mlflow()(objective) if is_tracked else objective
    study.optimize(given, 2, catch=ValueError, callbacks=[callback])
    runs = trial_runs(study.study_name)
    assert runs[0].info.status == "FAILED"
    assert runs[0].data.tags["error"] == "ValueError: no such thing as 0"
    lines = text_of(runs[0], "traceback.txt", tmp_path).splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "ValueError: no such thing as 0"
    assert any("in objective" in line for line in lines)
    assert artifacts(runs[1]) == []
    assert "error" not in runs[1].data.tags
    sent = [seen for seen in cloud.requests if seen.method == "PUT" and "traceback" in seen.path]
    assert len(sent) == 1


@pytest.mark.parametrize("is_tracked", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_trials_that_fail_in_several_threads_each_have_their_own_traceback(
    tmp_path: Path, is_tracked: bool
) -> None:
    callback = IAPMLflowCallback()
    all_are_there = threading.Barrier(4)

    def objective(trial: optuna.Trial) -> float:
        all_are_there.wait(60.0)
        raise ValueError(f"trial {trial.number}")

    study = new_study()
    given = callback.track_in_mlflow()(objective) if is_tracked else objective
    study.optimize(given, 4, n_jobs=4, catch=ValueError, callbacks=[callback])
    for number, run in trial_runs(study.study_name).items():
        assert run.data.tags["error"] == f"ValueError: trial {number}"
        text = text_of(run, "traceback.txt", tmp_path / str(number))
        assert text.rstrip().endswith(f"ValueError: trial {number}")


def test_an_uncaught_exception_in_a_tracked_objective_is_logged_before_any_sync(
    cloud: LocalCloud, tmp_path: Path
) -> None:
    callback = IAPMLflowCallback()

    @callback.track_in_mlflow()
    def objective(trial: optuna.Trial) -> float:
        mlflow.log_metric("mine", 1.0)
        raise ZeroDivisionError("by hand")

    study = new_study()
    with pytest.raises(ZeroDivisionError):
        study.optimize(objective, 1, callbacks=[callback])
    assert mlflow.active_run() is None
    run = trial_run(study)
    assert run.data.tags["error"] == "ZeroDivisionError: by hand"
    assert text_of(run, "traceback.txt", tmp_path).endswith("ZeroDivisionError: by hand\n")
    assert callback.sync(study) == 1
    run = trial_run(study)
    assert (run.info.status, run.data.tags["state"]) == ("FAILED", "FAIL")
    assert run.data.metrics == {"mine": 1.0}
    sent = [seen for seen in cloud.requests if seen.method == "PUT" and "traceback" in seen.path]
    assert len(sent) == 1


def test_system_metrics_are_logged_to_the_trials_run_if_they_are_switched_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    callback = IAPMLflowCallback()
    memory = "system/system_memory_usage_percentage"

    @callback.track_in_mlflow()
    def objective(trial: optuna.Trial) -> float:
        run_id = callback.run(trial).run_id()
        client = IAPMlflowClient()
        wait_until(lambda: memory in client.get_run(run_id).data.metrics, "system metrics")
        return 1.0

    study = new_study()
    study.optimize(objective, 1, callbacks=[callback])
    run = trial_run(study)
    assert memory in run.data.metrics
    assert (run.info.status, run.data.metrics["value"]) == ("FINISHED", 1.0)
    assert "mlflow-iap-system-metrics" not in {each.name for each in threading.enumerate()}


def test_an_objective_that_ends_its_run_leaves_none_open_for_the_next_trials() -> None:
    callback = IAPMLflowCallback()

    @callback.track_in_mlflow()
    def objective(trial: optuna.Trial) -> float:
        mlflow.log_metric("mine", float(trial.number))
        mlflow.end_run()
        mlflow.log_metric("stray", float(trial.number))
        return 1.0

    study = new_study()
    study.optimize(objective, 2, callbacks=[callback])
    assert mlflow.active_run() is None
    runs = trial_runs(study.study_name)
    assert [runs[n].data.metrics for n in range(2)] == [
        {"mine": float(n), "value": 1.0} for n in range(2)
    ]
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    strays = [run for run in all_runs(study.study_name) if "stray" in run.data.metrics]
    assert [run.info.status for run in strays] == ["FINISHED"] * 2


def test_a_tracked_objective_that_is_pruned_has_no_traceback() -> None:
    callback = IAPMLflowCallback()

    @callback.track_in_mlflow()
    def objective(trial: optuna.Trial) -> float:
        raise optuna.TrialPruned

    study = new_study()
    study.optimize(objective, 1, callbacks=[callback])
    run = trial_run(study)
    assert run.info.status == "KILLED"
    assert artifacts(run) == []
    assert "error" not in run.data.tags


# how trials are created


def test_an_enqueued_trial_is_logged_like_any_other() -> None:
    study = new_study()
    study.enqueue_trial({"x": 0.25}, user_attrs={"why": "a guess"})
    study.optimize(_x, 2, callbacks=[IAPMLflowCallback()])
    runs = trial_runs(study.study_name)
    assert runs.keys() == {0, 1}
    assert runs[0].data.params == {"x": "0.25"}
    assert runs[0].data.tags["why"] == "a guess"


def test_ask_and_tell_is_logged_by_log_trial(tmp_path: Path) -> None:
    study = new_study()
    callback = IAPMLflowCallback()
    for number in range(3):
        trial = study.ask()
        trial.suggest_float("x", 0.0, 1.0)
        callback.run(trial).log_metrics({"loss": float(number)}, step=1)
        state = TrialState.FAIL if number == 2 else TrialState.COMPLETE
        told = study.tell(trial, None if number == 2 else float(number), state=state)
        callback.log_trial(study, told)
    runs = trial_runs(study.study_name)
    assert [runs[n].info.status for n in range(3)] == ["FINISHED", "FINISHED", "FAILED"]
    assert [runs[n].data.metrics.get("value") for n in range(3)] == [0.0, 1.0, None]
    assert [curve(runs[n], "loss") for n in range(3)] == [[(1, float(n))] for n in range(3)]
    assert all(run.data.params.keys() == {"x"} for run in runs.values())


def test_a_retried_trial_says_which_one_it_repeats() -> None:
    study = new_study()
    study.optimize(_x, 1)
    study.add_trial(
        create_trial(
            state=TrialState.WAITING, system_attrs={"failed_trial": 0, "retry_history": [0]}
        )
    )
    study.optimize(_x, 1, callbacks=[IAPMLflowCallback()])
    tags = trial_run(study, 1).data.tags
    assert (tags["retry_of"], tags["retry_history"]) == ("0", "[0]")


# sync


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, pytest.param(KeyError, marks=pytest.mark.slow)]
)
def test_sync_logs_trials_after_an_uncaught_exception(error: type[BaseException]) -> None:
    study = new_study()
    callback = IAPMLflowCallback()

    def objective(trial: optuna.Trial) -> float:
        if trial.number == 1:
            raise error
        return _x(trial)

    with pytest.raises(error):
        study.optimize(objective, 3, callbacks=[callback])
    assert trial_runs(study.study_name).keys() == {0}
    assert callback.sync(study) == 1
    runs = trial_runs(study.study_name)
    assert [runs[number].info.status for number in (0, 1)] == ["FINISHED", "FAILED"]
    assert runs[1].data.tags["state"] == "FAIL"


def test_sync_logs_a_study_that_is_older_than_the_callback_and_all_kinds_of_trials_in_it() -> None:
    study = new_study()

    def objective(trial: optuna.Trial) -> float:
        trial.report(0.5, 3)
        trial.set_user_attr("who", "me")
        if trial.number == 1:
            raise optuna.TrialPruned
        if trial.number == 2:
            raise ValueError
        return _x(trial)

    study.optimize(objective, 3, catch=ValueError)
    study.tell(study.ask(), 7.0)
    study.add_trial(
        create_trial(
            params={"x": 0.5},
            distributions={"x": optuna.distributions.FloatDistribution(0.0, 1.0)},
            value=0.125,
        )
    )
    study.ask()  # and goes on
    study.enqueue_trial({"x": 0.75})
    assert IAPMLflowCallback().sync(study) == 5
    runs = trial_runs(study.study_name)
    assert {number: run.info.status for number, run in runs.items()} == {
        0: "FINISHED",
        1: "KILLED",
        2: "FAILED",
        3: "FINISHED",
        4: "FINISHED",
    }
    assert [runs[n].data.metrics.get("value") for n in (0, 1, 2, 3, 4)] == [
        study.trials[0].value,
        0.5,
        None,
        7.0,
        0.125,
    ]
    assert curve(runs[0], "intermediate_value") == [(3, 0.5)]
    assert runs[1].data.tags["who"] == "me"
    assert runs[4].data.params == {"x": "0.5"}
    assert {run.data.tags[PARENT_TAG] for run in runs.values()} == {
        study_run(study.study_name).info.run_id
    }


def test_a_second_sync_by_any_callback_changes_nothing() -> None:
    study = new_study()
    callback = IAPMLflowCallback()
    study.optimize(_x, 2, callbacks=[callback])
    study.tell(study.ask(), 1.0)
    study.add_trial(create_trial(value=2.0))
    assert callback.sync(study) == 2
    before = _everything(study)
    assert len(before) == 4
    assert callback.sync(study) == 0
    assert IAPMLflowCallback().sync(study) == 0
    assert _everything(study) == before
    assert len(all_runs(study.study_name)) == 5


def test_what_is_logged_after_a_sync_is_logged_once() -> None:
    study = new_study()
    callback = IAPMLflowCallback()
    running = study.ask()
    study.tell(study.ask(), 1.0)
    assert callback.sync(study) == 1
    callback.log_trial(study, study.tell(running, 2.0))
    assert callback.sync(study) == 0
    runs = trial_runs(study.study_name)
    assert {number: run.data.metrics["value"] for number, run in runs.items()} == {0: 2.0, 1: 1.0}


def test_sync_of_an_empty_study_does_nothing() -> None:
    study = new_study()
    assert IAPMLflowCallback().sync(study) == 0
    assert all_runs(study.study_name) == []


def test_sync_before_the_first_trial_runs_leads_to_no_second_study(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    name = new_study().study_name
    study = optuna.create_study(study_name=name, storage=storage)
    study.enqueue_trial({"x": 0.5})
    callback = IAPMLflowCallback()
    assert callback.sync(study) == 0
    study.optimize(_x, 2, callbacks=[callback])
    assert trial_runs(name).keys() == {0, 1}
    # The study as another process sees it.
    again = optuna.load_study(study_name=name, storage=storage)
    assert IAPMLflowCallback().sync(again) == 0
    assert len(all_runs(name)) == 3


def test_sync_logs_old_trials_of_a_database_with_the_current_names(tmp_path: Path) -> None:
    name = new_study().study_name
    study = optuna.create_study(study_name=name, storage=f"sqlite:///{tmp_path / 'study.db'}")
    for value in (3.0, 1.0):
        trial = create_trial(value=value)
        assert trial.datetime_start is not None
        trial.datetime_start -= timedelta(days=1)
        trial.datetime_complete = trial.datetime_start + timedelta(minutes=1)
        study.add_trial(trial)
    study.set_metric_names(["loss"])
    assert IAPMLflowCallback().sync(study) == 2
    runs = trial_runs(name)
    assert [runs[number].data.metrics for number in (0, 1)] == [{"loss": 3.0}, {"loss": 1.0}]
    began = study.trials[1].datetime_start
    assert began is not None
    assert runs[1].info.start_time == int(began.timestamp() * 1000)
    assert IAPMLflowCallback().sync(study) == 0


def test_studies_in_memory_that_are_created_again_with_the_same_name_have_their_own_runs() -> None:
    name = new_study().study_name
    for _ in range(2):
        study = optuna.create_study(study_name=name)
        study.optimize(_x, 2, callbacks=[IAPMLflowCallback()])
    names = Counter(run.info.run_name for run in all_runs(name))
    assert names == {"0": 2, "1": 2, name: 2}


def test_studies_in_memory_that_begin_at_the_same_microsecond_have_different_runs() -> None:
    name = new_study().study_name
    first = create_trial(value=1.0)
    for _ in range(2):
        study = optuna.create_study(study_name=name)
        study.add_trial(first)
        assert IAPMLflowCallback().sync(study) == 1
    assert Counter(run.info.run_name for run in all_runs(name)) == {"0": 2, name: 2}


def test_a_pickled_study_in_memory_continues_its_run() -> None:
    study = new_study()
    study.optimize(_x, 2, callbacks=[IAPMLflowCallback()])
    again = pickle.loads(pickle.dumps(study))
    again.optimize(_x, 1, callbacks=[IAPMLflowCallback()])
    assert sorted(trial_runs(study.study_name)) == [0, 1, 2]
    assert len(all_runs(study.study_name)) == 4  # including the study's own run


def test_two_callbacks_with_different_experiments_each_log_all_of_a_study() -> None:
    study = new_study()
    other = new_study().study_name
    callbacks = [IAPMLflowCallback(), IAPMLflowCallback(experiment_name=other)]
    study.optimize(_x, 3, callbacks=callbacks)
    for name in (study.study_name, other):
        runs = trial_runs(name)
        assert {n: run.data.metrics["value"] for n, run in runs.items()} == {
            trial.number: trial.value for trial in study.trials
        }
        parents = {run.data.tags[PARENT_TAG] for run in runs.values()}
        assert parents == {study_run(name).info.run_id}


def test_a_study_whose_experiment_was_deleted_is_reported_and_delays_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    study = new_study()
    client = IAPMlflowClient()
    client.delete_experiment(client.create_experiment(study.study_name))
    callback = IAPMLflowCallback()
    with caplog.at_level(logging.WARNING, "mlflow_iap_callbacks"):
        study.optimize(_x, 2, callbacks=[callback])
        result = callback.flush(20.0)
    assert (result.delivered, result.waiting) == (0, 0)
    assert result.refused > 0
    assert len(study.trials) == 2
    assert "Current state is deleted" in caplog.text


# log_if_best


@pytest.fixture
def held_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_log_if_best_keeps_artifacts_of_trials_that_were_best_when_they_ended(
    tmp_path: Path, held_in: Path
) -> None:
    values = [3.0, 1.0, 2.0, 0.5]
    callback = IAPMLflowCallback()

    def objective(trial: optuna.Trial) -> float:
        folder = tmp_path / "models"
        folder.mkdir(exist_ok=True)
        (folder / "weights.txt").write_text(f"weights {trial.number}")
        callback.log_if_best(trial, folder)
        callback.log_if_best(trial, folder / "weights.txt", "copies")
        # The copy has the earlier content.
        (folder / "weights.txt").write_text("changed")
        return values[trial.number]

    study = new_study()
    study.optimize(objective, 4, callbacks=[callback])
    runs = trial_runs(study.study_name)
    for number in (0, 1, 3):
        text = text_of(runs[number], "models/weights.txt", tmp_path / str(number))
        assert text == f"weights {number}"
        assert artifacts(runs[number], "copies") == ["copies/weights.txt"]
    assert artifacts(runs[2]) == []
    assert not list(held_in.glob("mlflow-iap-held-*"))


def test_log_if_best_of_a_maximized_study_keeps_the_highest(tmp_path: Path) -> None:
    callback = IAPMLflowCallback()
    (tmp_path / "model.txt").write_text("x")

    def objective(trial: optuna.Trial) -> float:
        callback.log_if_best(trial, tmp_path / "model.txt")
        return [1.0, 0.5, 2.0][trial.number]

    study = new_study("maximize")
    study.optimize(objective, 3, callbacks=[callback])
    runs = trial_runs(study.study_name)
    kept = [number for number in range(3) if artifacts(runs[number])]
    assert kept == [0, 2]


def test_log_if_best_of_several_objectives_keeps_those_on_the_pareto_front(tmp_path: Path) -> None:
    callback = IAPMLflowCallback()
    (tmp_path / "model.txt").write_text("x")

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        callback.log_if_best(trial, tmp_path / "model.txt")
        return [(1.0, 5.0), (2.0, 6.0), (5.0, 1.0)][trial.number]

    study = new_study("minimize", "minimize")
    study.optimize(objective, 3, callbacks=[callback])
    runs = trial_runs(study.study_name)
    assert [number for number in range(3) if artifacts(runs[number])] == [0, 2]


def test_log_if_best_keeps_nothing_from_a_trial_that_does_not_complete(
    tmp_path: Path, held_in: Path
) -> None:
    callback = IAPMLflowCallback()
    (tmp_path / "model.txt").write_text("x")

    def objective(trial: optuna.Trial) -> float:
        callback.log_if_best(trial, tmp_path / "model.txt")
        trial.report(0.0, 0)
        raise optuna.TrialPruned if trial.number == 0 else ValueError

    study = new_study()
    study.optimize(objective, 2, catch=ValueError, callbacks=[callback])
    runs = trial_runs(study.study_name)
    assert artifacts(runs[0]) == []
    assert artifacts(runs[1]) == ["traceback.txt"]
    assert not list(held_in.glob("mlflow-iap-held-*"))


def test_log_if_best_of_a_missing_file_does_not_end_the_study(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    callback = IAPMLflowCallback()

    def objective(trial: optuna.Trial) -> float:
        callback.log_if_best(trial, tmp_path / "nothing.txt")
        return _x(trial)

    study = new_study()
    with caplog.at_level(logging.WARNING, "mlflow_iap_callbacks"):
        study.optimize(objective, 1, callbacks=[callback])
    assert trial_run(study).info.status == "FINISHED"
    assert "nothing.txt" in caplog.text


# the study's run


def test_the_studys_run_describes_the_study_and_is_the_parent_of_its_trials() -> None:
    study = new_study("maximize", pruner=optuna.pruners.HyperbandPruner())
    study.set_user_attr("dataset", "iris")
    callback = IAPMLflowCallback(tags={"team": "x"})
    study.optimize(_x, 2, callbacks=[callback])
    _end_of_process()
    run = study_run(study.study_name)
    expected = {
        "study_name": study.study_name,
        "direction": "MAXIMIZE",
        "sampler": "RandomSampler",
        "pruner": "HyperbandPruner",
        "storage": "InMemoryStorage",
        "optuna_version": optuna.__version__,
        "team": "x",
        "dataset": "iris",
    }
    assert expected.items() <= run.data.tags.items()
    assert (run.info.run_name, run.info.status) == (study.study_name, "FINISHED")
    parents = {each.data.tags[PARENT_TAG] for each in trial_runs(study.study_name).values()}
    assert parents == {run.info.run_id}


def test_without_a_studys_run_the_runs_of_trials_have_no_parent() -> None:
    study = new_study()
    callback = IAPMLflowCallback(study_run=False)
    study.optimize(_x, 2, callbacks=[callback])
    assert callback.close()
    runs = all_runs(study.study_name)
    assert len(runs) == 2
    assert not [run for run in runs if PARENT_TAG in run.data.tags]


def test_the_storage_url_is_logged_without_possible_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = new_study()
    url = "postgresql://me:se%40cret@db.example:5432/optuna?password=secret2&sslpassword=secret3"
    monkeypatch.setattr(study._storage, "url", url, raising=False)
    study.optimize(_x, 1, callbacks=[IAPMLflowCallback()])
    tags = study_run(study.study_name).data.tags
    assert tags["storage"] == "postgresql://me:***@db.example:5432/optuna"
    assert not [value for value in tags.values() if "cret" in value]


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_storages_without_secrets_are_logged_unchanged(tmp_path: Path, kind: str) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    storage: Any = url
    if kind == "journal":
        from optuna.storages.journal import JournalFileBackend

        storage = optuna.storages.JournalStorage(JournalFileBackend(str(tmp_path / "journal")))
    name = new_study().study_name
    study = optuna.create_study(study_name=name, storage=storage)
    study.optimize(_x, 1, callbacks=[IAPMLflowCallback()])
    told = study_run(name).data.tags["storage"]
    assert told == (url if kind == "sqlite" else "JournalFileBackend")


@pytest.mark.slow
def test_the_studys_run_has_the_number_of_trials_and_the_best_trial_after_close(
    tmp_path: Path,
) -> None:
    values = [3.0, None, 5.0, None, 1.0, 2.0]

    def objective(trial: optuna.Trial) -> float:
        trial.suggest_int("i", trial.number, trial.number)
        # None of these prevents the table or a plot.
        trial.suggest_categorical("c", [None, True, "ü", 1.5])
        trial.set_user_attr("odd", {"a": math.nan})
        trial.set_user_attr("note", f"a,b\n{trial.number}")
        value = values[trial.number]
        if value is None:
            raise optuna.TrialPruned if trial.number == 1 else ValueError
        return value

    study = new_study()
    callback = IAPMLflowCallback()
    study.optimize(objective, 6, catch=ValueError, callbacks=[callback])
    study.ask()
    study.enqueue_trial({"i": 1})
    assert callback.close()
    run = study_run(study.study_name)
    assert run.data.metrics == {
        "trials.complete": 4.0,
        "trials.pruned": 1.0,
        "trials.fail": 1.0,
        "trials.running": 1.0,
        "trials.waiting": 1.0,
        "best_value": 1.0,
        "best_value_so_far": 1.0,
    }
    expected = [(0, 3.0), (2, 3.0), (4, 1.0), (5, 1.0)]
    assert curve(run, "best_value_so_far") == expected
    assert (run.data.tags["best_trial"], run.data.tags["best_params.i"]) == ("4", "4")
    assert run.info.status == "FINISHED"
    rows = list(csv.DictReader(io.StringIO(text_of(run, "study/trials.csv", tmp_path))))
    assert [row["number"] for row in rows] == [str(number) for number in range(8)]
    assert [row["state"] for row in rows[:4]] == ["COMPLETE", "PRUNED", "COMPLETE", "FAIL"]
    assert [row["value"] for row in rows[:3]] == ["3.0", "", "5.0"]
    assert [row["params_i"] for row in rows[:6]] == [str(number) for number in range(6)]
    assert rows[4]["user_attrs_note"].splitlines() == ["a,b", "4"]


def test_a_studys_run_and_its_numbers_continue_after_its_end() -> None:
    study = new_study("maximize")
    study.set_metric_names(["score"])
    callback = IAPMLflowCallback()
    study.optimize(lambda trial: float(trial.number), 2, callbacks=[callback])
    _end_of_process()
    first = study_run(study.study_name)
    assert first.info.status == "FINISHED"
    assert first.data.metrics["best_score"] == 1.0
    study.optimize(lambda trial: float(trial.number), 2, callbacks=[callback])
    _end_of_process()
    run = study_run(study.study_name)
    assert run.info.run_id == first.info.run_id
    assert (run.info.status, run.data.metrics["trials.complete"]) == ("FINISHED", 4.0)
    assert run.data.metrics["best_score"] == 3.0
    assert curve(run, "best_score_so_far") == [(n, float(n)) for n in range(4)]


_PLOTS = {"optimization_history", "param_importances", "slice", "parallel_coordinate", "edf"}


@pytest.fixture
def time_to_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as a busy machine may take for all plots."""
    monkeypatch.setattr(optuna_callback, "SECONDS_TO_CLOSE", 240.0)


def _pictures(study: optuna.Study) -> set[str]:
    found = artifacts(study_run(study.study_name), "study")
    return {path.removeprefix("study/") for path in found if path.endswith((".png", ".html"))}


@pytest.mark.usefixtures("time_to_draw")
def test_the_studys_run_has_plots_and_the_study_itself_after_close(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    study = new_study()
    callback = IAPMLflowCallback()
    study.optimize(lambda trial: _x(trial) + trial.suggest_int("i", 0, 9), 12, callbacks=[callback])
    callback.close()
    assert {f"{name}.png" for name in _PLOTS} <= _pictures(study)
    run = study_run(study.study_name)
    client = IAPMlflowClient()
    path = client.download_artifacts(run.info.run_id, "study/slice.png", str(tmp_path))
    assert Path(path).stat().st_size > 1000
    # As the run's description says.
    storage = client.download_artifacts(run.info.run_id, "study/study.log", str(tmp_path))
    assert 'artifact_path="study/study.log"' in run.data.tags["mlflow.note.content"]
    again = optuna.load_study(
        study_name=study.study_name, storage=JournalStorage(JournalFileBackend(storage))
    )
    assert [trial.params for trial in again.trials] == [trial.params for trial in study.trials]
    again.optimize(lambda trial: _x(trial) + trial.suggest_int("i", 0, 9), 3)
    assert [trial.number for trial in again.trials] == list(range(15))


@pytest.mark.slow
@pytest.mark.usefixtures("time_to_draw")
def test_the_run_of_a_study_with_two_objectives_has_a_plot_of_the_pareto_front() -> None:
    pytest.importorskip("matplotlib")
    study = new_study("minimize", "maximize")
    callback = IAPMLflowCallback()
    study.optimize(lambda trial: (_x(trial), _x(trial) ** 2), 8, callbacks=[callback])
    callback.close()
    assert {"pareto_front.png", "slice-0.png", "slice-1.png"} <= _pictures(study)
    run = study_run(study.study_name)
    front = sorted(trial.number for trial in study.best_trials)
    assert sorted(json.loads(run.data.tags["best_trials"])) == front
    assert run.data.metrics["trials.pareto"] == len(front)


# what is shown


@pytest.mark.slow
def test_the_summary_is_a_text_with_a_link_that_can_be_copied() -> None:
    study = new_study()
    callback = IAPMLflowCallback()
    study.optimize(lambda trial: 0.5 + trial.number, 2, callbacks=[callback])
    callback.close()
    text = str(callback.summary())
    run = study_run(study.study_name)
    link = f"{mlflow.get_tracking_uri()}/#/experiments/{run.info.experiment_id}/runs/"
    assert f"study {study.study_name}" in text
    assert "2 COMPLETE" in text
    assert "trial 0: value 0.5" in text
    assert re.search(r"waiting\s+0 records", text)
    assert re.search(r"refused\s+0", text)
    assert f"{link}{run.info.run_id}" in text


def test_the_summary_escapes_the_studys_name_for_a_notebook() -> None:
    name = "<script>alert('x')</script> & co"
    study = optuna.create_study(study_name=name)
    callback = IAPMLflowCallback()
    study.optimize(_x, 1, callbacks=[callback])
    html = callback.summary()._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert html.startswith("<table>")
    assert name in str(callback.summary())
    assert trial_runs(name).keys() == {0}


@pytest.mark.slow
def test_the_link_to_the_studys_run_is_on_a_separate_line_above_a_progress_bar() -> None:
    name = new_study().study_name
    script = f"""
import optuna
from mlflow_iap_callbacks import IAPMLflowCallback
callback = IAPMLflowCallback()
study = optuna.create_study(study_name={name!r})
def objective(trial):
    if trial.number == 1:
        callback.run(trial).run_id()  # its parent is there, and so its link
    return trial.suggest_float("x", 0, 1)
for _ in range(2):
    study.optimize(objective, 20, callbacks=[callback], show_progress_bar=True)
callback.close()
callback.close()
"""
    done = python_process.run("-c", script)
    assert done.returncode == 0, done.stderr
    run = study_run(name)
    link = f"/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    link += "?workflowType=machine_learning"
    lines = re.split(r"[\r\n]", done.stderr)
    assert done.stderr.count(link) == 1
    (line,) = [line for line in lines if link in line]
    assert line.strip() == f"Study {name}: {mlflow.get_tracking_uri()}{link}"
    assert "100%" in done.stderr
    assert link not in done.stdout
