"""What the Optuna callback logs, to an MLflow in memory."""

from __future__ import annotations

import gc
import logging
import pickle
import threading
import time
import weakref
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import optuna
import pytest
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial

from fake_mlflow import FakeRun
from inline_delivery import InlineDelivery
from mlflow_iap_callbacks import IAPMLflowCallback
from mlflow_iap_callbacks.delivery.run_creation import CLAIM_SECONDS
from mlflow_iap_callbacks.optuna.shared_file import warn_of_shared_file
from optuna_helpers import PARENT_TAG, STUDY_TAG, TRIAL_TAG, new_study
from own_log import said_by_us

pytestmark = [
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
    pytest.mark.usefixtures("fluent_state"),
]


def _x(trial: optuna.Trial) -> float:
    return trial.suggest_float("x", 0.0, 1.0)


def _callback(delivery: InlineDelivery, **options: Any) -> IAPMLflowCallback:
    return IAPMLflowCallback(client=delivery.client, **{"study_run": False, **options})


def _trial_runs(delivery: InlineDelivery) -> dict[int, FakeRun]:
    """The trials' runs by number, of which each trial has one."""
    found = [run for run in delivery.runs() if TRIAL_TAG in run.tags]
    by_number = {int(run.tags[TRIAL_TAG]): run for run in found}
    assert len(by_number) == len(found)
    return by_number


def _experiment_of(delivery: InlineDelivery, run: FakeRun) -> str:
    return str(delivery.server.experiments[run.experiment_id].name)


def _logged(delivery: InlineDelivery, *directions: Any, **options: Any) -> FakeRun:
    """The run of the only trial of a study."""
    study = new_study(*directions)
    several = len(directions) > 1
    study.optimize(
        lambda trial: (_x(trial), 2.0) if several else _x(trial),
        1,
        callbacks=[_callback(delivery, **options)],
    )
    return _trial_runs(delivery)[0]


# states


def test_a_run_says_how_its_trial_ended_and_when(delivery_of_files: InlineDelivery) -> None:
    def objective(trial: optuna.Trial) -> float:
        trial.report(0.5, 3)
        if trial.number == 1:
            raise optuna.TrialPruned
        if trial.number == 2:
            raise ValueError("odd")
        return _x(trial)

    study = new_study()
    study.optimize(objective, 3, callbacks=[_callback(delivery_of_files)], catch=ValueError)
    runs = _trial_runs(delivery_of_files)
    assert [runs[n].status for n in range(3)] == ["FINISHED", "KILLED", "FAILED"]
    assert [runs[n].tags["state"] for n in range(3)] == ["COMPLETE", "PRUNED", "FAIL"]
    for trial in study.trials:
        run = runs[trial.number]
        assert trial.datetime_start is not None
        assert trial.datetime_complete is not None
        assert run.start_time == int(trial.datetime_start.timestamp() * 1000)
        assert run.end_time == int(trial.datetime_complete.timestamp() * 1000)
        assert run.curve("intermediate_value") == [(3, 0.5)]
        assert run.params == {name: str(value) for name, value in trial.params.items()}
    assert [runs[n].curve("value") for n in range(3)] == [
        [(0, study.trials[0].value)],
        [(0, 0.5)],
        [],
    ]


def test_a_failed_trial_has_the_reason_of_its_failure_and_the_others_have_none(
    delivery_of_files: InlineDelivery,
) -> None:
    def objective(trial: optuna.Trial) -> float:
        if trial.number == 1:
            raise ValueError("odd")
        if trial.number == 2:
            return float("nan")
        return 1.0

    study = new_study()
    study.optimize(objective, 4, callbacks=[_callback(delivery_of_files)], catch=ValueError)
    runs = _trial_runs(delivery_of_files)
    reasons = [None, "ValueError: odd", "The value nan is not acceptable", None]
    assert [runs[n].tags.get("error") for n in range(4)] == reasons
    assert runs[1].artifacts["traceback.txt"].endswith(b"ValueError: odd\n")
    assert [len(runs[n].artifacts) for n in range(4)] == [0, 1, 0, 0]


def test_a_param_that_was_used_with_another_value_is_kept_beside_the_suggested_value(
    delivery: InlineDelivery,
) -> None:
    callback = _callback(delivery)

    def objective(trial: optuna.Trial) -> float:
        callback.run(trial).log_params({"depth": 50, "same": 3})
        return trial.suggest_int("depth", 5, 5) + trial.suggest_int("same", 3, 3)

    new_study().optimize(objective, 1, callbacks=[callback])
    run = _trial_runs(delivery)[0]
    assert run.params == {"depth": "50", "suggested.depth": "5", "same": "3"}


def test_trials_in_threads_each_have_a_run(delivery: InlineDelivery) -> None:
    all_are_there = threading.Barrier(4)

    def objective(trial: optuna.Trial) -> float:
        all_are_there.wait(30.0)
        callback.run(trial).log_metrics({"mine": float(trial.number)})
        return _x(trial)

    callback = _callback(delivery)
    study = new_study()
    study.optimize(objective, 8, n_jobs=4, callbacks=[callback])
    runs = _trial_runs(delivery)
    assert runs.keys() == set(range(8))
    for number, run in runs.items():
        assert run.curve("mine") == [(0, float(number))]
        assert run.curve("value") == [(0, study.trials[number].value)]


def test_only_the_run_of_an_old_trial_is_looked_up_by_both_keys_before_it_is_created(
    delivery: InlineDelivery,
) -> None:
    study = new_study()
    trial = create_trial(value=1.0)
    study.add_trial(trial)
    assert trial.datetime_complete is not None
    trial.datetime_complete -= timedelta(seconds=2 * CLAIM_SECONDS)
    study.add_trial(trial)
    callback = _callback(delivery)
    looks = []
    for trial in study.trials:
        callback(study, trial)
        delivery.runs()
        looks.append(delivery.server.calls.count("search_runs"))
    assert looks == [0, 2]


@pytest.mark.parametrize("state", [TrialState.PRUNED, TrialState.FAIL])
def test_a_trial_that_is_passed_by_hand_needs_neither_value_nor_params(
    delivery: InlineDelivery, state: TrialState
) -> None:
    study = new_study()
    study.add_trial(create_trial(state=state))
    _callback(delivery)(study, study.trials[0])
    run = _trial_runs(delivery)[0]
    assert (run.tags["state"], run.points, run.params) == (state.name, {}, {})


# names and attributes


@pytest.mark.parametrize(
    ("metric_name", "own", "expected"),
    [
        (None, None, {"value_0", "value_1"}),
        ("loss", None, {"loss_0", "loss_1"}),
        (("loss", "time"), None, {"loss", "time"}),
        (None, ["a", "b"], {"a", "b"}),
        (["one"], ["a", "b"], {"value_0", "value_1"}),
    ],
)
def test_values_have_the_given_names_or_the_study_s(
    delivery: InlineDelivery, metric_name: Any, own: list[str] | None, expected: set[str]
) -> None:
    study = new_study("minimize", "maximize")
    if own is not None:
        study.set_metric_names(own)
    callback = _callback(delivery, metric_name=metric_name)
    study.optimize(lambda trial: (_x(trial), 2.0), 1, callbacks=[callback])
    assert {name for name, *_ in _trial_runs(delivery)[0].points} == expected


@pytest.mark.parametrize("name", [0, 1.5, {"a"}, {"a": "b"}, iter("a")])
def test_an_invalid_metric_name_raises_type_error(delivery: InlineDelivery, name: Any) -> None:
    with pytest.raises(TypeError, match="metric_name"):
        _callback(delivery, metric_name=name)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"both": "trial", "of_trial": "1"}),
        ({"tag_study_user_attrs": True}, {"both": "study", "of_trial": "1", "of_study": "2"}),
        ({"tag_trial_user_attrs": False}, {}),
        (
            {"tag_study_user_attrs": True, "tag_trial_user_attrs": False},
            {"both": "study", "of_study": "2"},
        ),
    ],
)
def test_user_attributes_become_tags_on_request_and_the_studys_take_precedence(
    delivery: InlineDelivery, options: dict[str, bool], expected: dict[str, str]
) -> None:
    def objective(trial: optuna.Trial) -> float:
        trial.set_user_attr("both", "trial")
        trial.set_user_attr("of_trial", 1)
        return 1.0

    study = new_study()
    study.set_user_attr("both", "study")
    study.set_user_attr("of_study", 2)
    study.optimize(objective, 1, callbacks=[_callback(delivery, **options)])
    tags = _trial_runs(delivery)[0].tags
    names = ("both", "of_trial", "of_study")
    assert {name: tags[name] for name in names if name in tags} == expected


# mlflow_kwargs, tags and experiments


def test_runs_have_the_given_name_tags_and_description(delivery: InlineDelivery) -> None:
    given = {
        "run_name": "mine",
        "tags": {"team": "x", "budget": 5, "mlflow.runName": "no"},
        "description": "why",
    }
    run = _logged(delivery, mlflow_kwargs=given, tags={"team": "y"})
    assert run.name == run.tags["mlflow.runName"] == "mine"
    assert run.tags["mlflow.note.content"] == "why"
    assert (run.tags["team"], run.tags["budget"]) == ("y", "5")
    assert given["tags"]["mlflow.runName"] == "no"  # type: ignore[index]


def test_a_run_is_named_after_the_number_of_its_trial(delivery: InlineDelivery) -> None:
    assert _logged(delivery).name == "0"


def test_unknown_mlflow_kwargs_are_ignored_with_a_warning(
    delivery: InlineDelivery, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "mlflow_iap_callbacks"):
        run = _logged(delivery, mlflow_kwargs={"nest_trials": True, "run_name": "mine"})
    (message,) = said_by_us(caplog)
    assert "nest_trials" in message
    assert "parent_run_id" in message
    assert run.name == "mine"


@pytest.mark.parametrize("way", ["the study", "name", "id", "active", "variable", "default"])
def test_the_experiment_is_the_given_name_or_id_or_the_study_s_or_the_active_one(
    delivery: InlineDelivery, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    experiment = delivery.server.add_experiment("mine")
    options: dict[str, Any] = {"create_experiment": way in ("the study", "name")}
    if way == "name":
        options |= {"experiment_name": "mine", "mlflow_kwargs": {"experiment_id": "0"}}
    elif way == "id":
        options |= {"mlflow_kwargs": {"experiment_id": experiment}, "create_experiment": True}
    study = new_study()
    callback = _callback(delivery, **options)
    if way == "active":
        monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
    elif way == "variable":
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    study.optimize(_x, 1, callbacks=[callback])
    expected = {"the study": study.study_name, "default": "Default"}
    assert _experiment_of(delivery, delivery.run()) == expected.get(way, "mine")


def test_each_study_of_a_callback_has_its_own_experiment_and_parent(
    delivery: InlineDelivery,
) -> None:
    callback = _callback(delivery, study_run=True)
    studies = [new_study(), new_study()]
    for _ in range(2):
        for study in studies:
            study.optimize(_x, 1, callbacks=[callback])
    runs = delivery.runs()
    assert len(runs) == 6
    for study in studies:
        own = [run for run in runs if _experiment_of(delivery, run) == study.study_name]
        (parent,) = [run for run in own if TRIAL_TAG not in run.tags]
        children = [run for run in own if run is not parent]
        assert {run.tags[PARENT_TAG] for run in children} == {parent.run_id}
        assert [run.tags[TRIAL_TAG] for run in children] == ["0", "1"]
        assert len({run.tags[STUDY_TAG] for run in own}) == 1


def test_without_a_studys_run_the_trials_have_no_parent(delivery: InlineDelivery) -> None:
    assert PARENT_TAG not in _logged(delivery).tags
    assert len(delivery.runs()) == 1


_OUTER = "0123456789abcdef" * 2  # id of a run


@pytest.mark.parametrize("way", ["parent_run_id", "nested"])
def test_runs_nested_below_the_user_s_run_have_no_study_run_between(
    delivery: InlineDelivery, way: str
) -> None:
    given = {"nested": True} if way == "nested" else {"parent_run_id": _OUTER}
    study = new_study()
    callback = _callback(delivery, mlflow_kwargs=given, study_run=True)
    outer = mlflow.ActiveRun(_fluent_run(_OUTER))
    mlflow.tracking.fluent._active_run_stack.get().append(outer)
    study.optimize(_x, 2, callbacks=[callback])
    mlflow.tracking.fluent._active_run_stack.get().clear()
    assert [run.tags[PARENT_TAG] for run in delivery.runs()] == [_OUTER, _OUTER]


def _fluent_run(run_id: str) -> mlflow.entities.Run:
    info = mlflow.entities.RunInfo(
        run_id, "0", "user", "RUNNING", 0, None, mlflow.entities.LifecycleStage.ACTIVE
    )
    return mlflow.entities.Run(info, mlflow.entities.RunData())


def test_nested_runs_without_an_active_run_are_below_the_studys_run(
    delivery: InlineDelivery,
) -> None:
    run = _logged(delivery, mlflow_kwargs={"nested": True}, study_run=True)
    (study_run,) = [each for each in delivery.runs() if each is not run]
    assert run.tags[PARENT_TAG] == study_run.run_id


# run, log_trial


def test_the_objective_can_log_to_the_trial_s_run_which_is_the_only_one(
    delivery: InlineDelivery,
) -> None:
    callback = _callback(delivery)

    def objective(trial: optuna.Trial) -> float:
        assert callback.run(trial) is callback.run(trial)
        callback.run(trial).log_metrics({"mine": 1.0}, step=3)
        callback.run(trial).set_tags({"from": "inside"})
        return 2.0

    new_study().optimize(objective, 1, callbacks=[callback])
    run = _trial_runs(delivery)[0]
    assert (run.curve("mine"), run.curve("value")) == ([(3, 1.0)], [(0, 2.0)])
    assert run.tags["from"] == "inside"


def _best_trial(study: optuna.Study) -> Any:
    return study.best_trial


def _fixed_trial(_: optuna.Study) -> Any:
    return optuna.trial.FixedTrial({"x": 0.5})


@pytest.mark.parametrize("trial_of", [_best_trial, _fixed_trial])
def test_a_trial_that_does_not_know_its_study_runs_without_a_run_and_one_warning_says_so(
    delivery: InlineDelivery, caplog: pytest.LogCaptureFixture, tmp_path: Path, trial_of: Any
) -> None:
    callback = _callback(delivery)

    def objective(trial: optuna.Trial) -> float:
        run = callback.run(trial)
        run.log_metrics({"mine": 1.0})
        run.log_text("text", "a.txt")
        run.log_artifact(tmp_path)
        callback.log_if_best(trial, tmp_path)
        run.finish()
        return _x(trial)

    study = new_study()
    study.optimize(_x, 1, callbacks=[callback])
    trial = trial_of(study)
    with caplog.at_level(logging.WARNING, "mlflow_iap_callbacks"):
        assert [objective(trial) for _ in range(2)] == [trial.params["x"]] * 2
    (message,) = said_by_us(caplog)
    assert "callback.run(trial, study=study)" in message
    assert _trial_runs(delivery)[0].curve("mine") == []


def test_a_frozen_trial_with_its_study_logs_to_the_trials_run_which_stays_ended(
    delivery: InlineDelivery,
) -> None:
    study = new_study()
    study.optimize(_x, 2, callbacks=[_callback(delivery)])
    before = {number: run.end_time for number, run in _trial_runs(delivery).items()}
    callback = _callback(delivery)
    for _ in range(2):
        callback.run(study.trials[1], study=study).set_tags({"a": "b"})
    delivery.sender.end_open_runs()
    runs = _trial_runs(delivery)
    assert [runs[n].tags.get("a") for n in range(2)] == [None, "b"]
    assert {number: run.end_time for number, run in runs.items()} == before
    assert {run.status for run in runs.values()} == {"FINISHED"}


def test_the_handle_of_a_trial_that_has_ended_does_not_make_it_fail(
    delivery: InlineDelivery,
) -> None:
    study, callback = new_study(), _callback(delivery)
    trial = study.ask()
    callback.log_trial(study, study.tell(trial, 1.0))
    callback.run(trial).set_tags({"a": "b"})
    delivery.sender.end_open_runs()
    run = _trial_runs(delivery)[0]
    assert (run.status, run.tags["a"]) == ("FINISHED", "b")
    assert "mlflow_iap.ended" not in run.tags


@pytest.mark.parametrize("kind", ["without a study", "of another study", "fixed"])
def test_a_trial_that_is_not_in_the_study_is_not_logged_and_a_warning_says_what_to_do(
    delivery: InlineDelivery, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    study, other = new_study(), new_study()
    for each in (study, other):
        each.add_trial(create_trial(value=1.0))
    trials = {
        "without a study": create_trial(value=2.0),
        "of another study": other.trials[0],
        "fixed": optuna.trial.FixedTrial({}),
    }
    callback = _callback(delivery)
    with caplog.at_level(logging.WARNING, "mlflow_iap_callbacks"):
        callback.log_trial(study, trials[kind])  # type: ignore[arg-type]
        callback.run(trials[kind], study=study).set_tags({"a": "b"})  # type: ignore[arg-type]
    assert "study.add_trial(trial)" in said_by_us(caplog)[0]
    assert delivery.runs() == []


def test_a_custom_loop_logs_its_trials_with_log_trial(delivery: InlineDelivery) -> None:
    study = new_study()
    callback = _callback(delivery)
    for number in range(3):
        trial = study.ask()
        callback.run(trial).log_metrics({"mine": float(number)})
        state = TrialState.FAIL if number == 2 else TrialState.COMPLETE
        told = study.tell(trial, None if number == 2 else float(number), state=state)
        callback.log_trial(study, told)
    runs = _trial_runs(delivery)
    assert [runs[n].status for n in range(3)] == ["FINISHED", "FINISHED", "FAILED"]
    assert [runs[n].curve("value") for n in range(3)] == [[(0, 0.0)], [(0, 1.0)], []]
    assert [runs[n].curve("mine") for n in range(3)] == [[(0, float(n))] for n in range(3)]


@pytest.mark.parametrize("way", ["log_trial", "the callback itself"])
def test_a_trial_that_has_not_ended_is_logged_once_it_has(
    delivery: InlineDelivery, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    study = new_study()
    callback = _callback(delivery)
    log = callback.log_trial if way == "log_trial" else callback
    trial = study.ask()
    with caplog.at_level(logging.WARNING, "mlflow_iap_callbacks"):
        log(study, study.trials[0])
    assert "study.tell(trial, value)" in said_by_us(caplog)[0]
    assert delivery.runs() == []
    log(study, study.tell(trial, 0.5))
    assert _trial_runs(delivery)[0].status == "FINISHED"


def test_a_trial_that_is_logged_twice_is_one_run(delivery: InlineDelivery) -> None:
    study = new_study()
    study.add_trial(create_trial(value=1.0))
    callback = _callback(delivery)
    for _ in range(2):
        callback.log_trial(study, study.trials[0])
    other = _callback(delivery)
    other.log_trial(study, study.trials[0])
    run = _trial_runs(delivery)[0]
    assert (run.curve("value"), run.status) == ([(0, 1.0)], "FINISHED")


def test_two_callbacks_with_the_same_experiment_create_one_run_for_each_trial(
    delivery: InlineDelivery,
) -> None:
    new_study().optimize(_x, 3, callbacks=[_callback(delivery), _callback(delivery)])
    assert _trial_runs(delivery).keys() == {0, 1, 2}


# studies that are deleted, or that nobody holds


def _shared(folder: Path) -> Any:
    return optuna.storages.JournalStorage(JournalFileBackend(str(folder / "journal")))


@pytest.mark.parametrize("kind", ["memory", "journal"])
def test_nothing_raises_after_a_study_is_deleted(
    delivery_of_files: InlineDelivery, tmp_path: Path, kind: str
) -> None:
    storage = optuna.storages.InMemoryStorage() if kind == "memory" else _shared(tmp_path)
    study = optuna.create_study(study_name="mine", storage=storage)
    callback = _callback(delivery_of_files, study_run=True)
    study.optimize(_x, 2, callbacks=[callback])
    trials, running = study.trials, study.ask()
    optuna.delete_study(study_name="mine", storage=study._storage)
    callback.run(running).log_metrics({"mine": 1.0})
    _callback(delivery_of_files).run(running).log_metrics({"mine": 1.0})
    callback.run(trials[0], study=study).log_metrics({"mine": 1.0})
    callback(study, trials[1])
    callback.log_trial(study, trials[1])
    callback.log_if_best(running, tmp_path)
    assert callback.sync(study) == 0
    assert _callback(delivery_of_files).sync(study) == 0
    assert callback.close()
    assert "not in its storage" in callback.summary().rows["study mine"]
    assert {0, 1} <= _trial_runs(delivery_of_files).keys()


class _Model:
    """Something large."""


def _model_objective(made: list[weakref.ref[_Model]]) -> Callable[[optuna.Trial], float]:
    def objective(trial: optuna.Trial) -> float:
        model = _Model()
        made.append(weakref.ref(model))
        trial.set_user_attr("model", model)
        trial.set_user_attr("small", [1, 2])
        trial.study.set_user_attr("last", model)
        return _x(trial)

    return objective


def _alive(made: list[weakref.ref[_Model]]) -> int:
    gc.collect()
    return sum(ref() is not None for ref in made)


@pytest.mark.parametrize("way", ["flush", "close", "the next study"])
def test_a_study_in_memory_that_nobody_holds_is_freed_and_still_reported(
    delivery_of_files: InlineDelivery, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(
        "mlflow_iap_callbacks.optuna.study_run.StudyRun.draw",
        lambda study_run, *_, **__: drawn.extend(study_run.study.trials),
    )
    made: list[weakref.ref[_Model]] = []
    callback = _callback(delivery_of_files, study_run=True, experiment_name="folds")
    for _ in range(3):
        new_study().optimize(_model_objective(made), 2, callbacks=[callback])
    if way == "flush":
        assert callback.flush()
    elif way == "close":
        assert callback.close()
    else:
        new_study().optimize(_x, 1, callbacks=[callback])
    assert _alive(made) == 0
    assert callback.close()
    runs = delivery_of_files.runs()
    trials = [run for run in runs if TRIAL_TAG in run.tags and "model" in run.tags]
    assert ["_Model" in run.tags["model"] for run in trials] == [True] * 6
    studies = [run for run in runs if TRIAL_TAG not in run.tags and "last" in run.tags]
    assert [run.curve("trials.complete") for run in studies] == [[(2, 2.0)]] * 3
    assert len(list(callback.summary().rows)) >= 3
    of_models = [trial.user_attrs for trial in drawn if trial.user_attrs]
    assert [attrs["small"] for attrs in of_models] == [[1, 2]] * 6


def test_a_study_that_somebody_holds_keeps_its_objects(delivery: InlineDelivery) -> None:
    made: list[weakref.ref[_Model]] = []
    callback = _callback(delivery)
    study = new_study()
    study.optimize(_model_objective(made), 1, callbacks=[callback])
    callback.flush()
    assert isinstance(study.trials[0].user_attrs["model"], _Model)
    again = optuna.load_study(study_name=study.study_name, storage=study._storage)
    del study
    gc.collect()
    callback.flush()
    again.optimize(_x, 1, callbacks=[callback])
    assert callback.sync(again) == 0
    assert _trial_runs(delivery).keys() == {0, 1}
    assert _alive(made) == 1


# names that MLflow does not accept


@pytest.mark.parametrize("name", ["", "x" * 501, 5, Path("mine")])
def test_an_experiment_name_that_mlflow_rejects_raises_an_error(
    delivery: InlineDelivery, name: Any
) -> None:
    with pytest.raises((TypeError, ValueError), match=r"experiment_name is .* characters"):
        _callback(delivery, experiment_name=name)


@pytest.mark.parametrize(
    ("name", "experiment"), [("", "Default"), ("x" * 600, "x" * 500), ("x" * 500, "x" * 500)]
)
def test_a_study_whose_name_mlflow_rejects_is_logged_elsewhere_and_a_warning_says_so_once(
    delivery: InlineDelivery, caplog: pytest.LogCaptureFixture, name: str, experiment: str
) -> None:
    storage = optuna.storages.InMemoryStorage()
    storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], name)
    study = optuna.Study(name, storage)
    with caplog.at_level(logging.WARNING, "mlflow_iap_callbacks"):
        study.optimize(_x, 2, callbacks=[_callback(delivery)])
    said = said_by_us(caplog)
    assert len(said) == (0 if len(name) == 500 else 1)
    assert all("experiment_name" in message for message in said)
    runs = _trial_runs(delivery).values()
    assert [_experiment_of(delivery, run) for run in runs] == [experiment] * 2


def test_metric_names_that_are_set_after_the_first_trial_are_used_and_a_warning_says_so_once(
    delivery: InlineDelivery, caplog: pytest.LogCaptureFixture
) -> None:
    study = new_study()
    callback = _callback(delivery)
    with caplog.at_level(logging.WARNING, "mlflow_iap_callbacks"):
        study.optimize(_x, 1, callbacks=[callback])
        study.set_metric_names(["loss"])
        study.optimize(_x, 2, callbacks=[callback])
    (message,) = said_by_us(caplog)
    assert "are called loss from now on" in message
    assert "study.set_metric_names" in message
    names = [{name for name, *_ in run.points} for run in _trial_runs(delivery).values()]
    assert names == [{"value"}, {"loss"}, {"loss"}]
    assert _callback(delivery).sync(study) == 0


@pytest.mark.parametrize(
    ("tracking_uri", "is_shared"),
    [
        ("sqlite:///{folder}/studies.db", True),
        ("sqlite+pysqlite:///{folder}/link.db?timeout=3", True),
        ("sqlite:///{folder}/mlflow.db", False),
        ("sqlite://", False),
        ("https://mlflow.example", False),
        ("{folder}/studies.db", False),
    ],
)
def test_an_sqlite_file_that_optuna_and_mlflow_share_is_a_warning(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, tracking_uri: str, is_shared: bool
) -> None:
    path = tmp_path.resolve() / "studies.db"
    (tmp_path / "link.db").symlink_to(path)
    study: Any = SimpleNamespace(
        study_name="mine",
        _storage=SimpleNamespace(_backend=SimpleNamespace(url=f"sqlite:///{path}")),
    )
    with caplog.at_level(logging.WARNING, "mlflow_iap_callbacks"):
        warn_of_shared_file(study, tracking_uri.format(folder=tmp_path))
        warn_of_shared_file(new_study(), tracking_uri.format(folder=tmp_path))
    assert [str(path) in message for message in said_by_us(caplog)] == [True] * is_shared


# nothing stops a study


def test_a_logging_error_is_a_warning_that_names_the_trial(
    delivery: InlineDelivery, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = new_study()

    def objective(trial: optuna.Trial) -> float:
        if trial.number == 0:
            monkeypatch.setattr("mlflow_iap_callbacks.optuna.callback.study_key", _raise)
        else:
            monkeypatch.undo()
        return _x(trial)

    with caplog.at_level(logging.WARNING, "mlflow_iap_callbacks"):
        study.optimize(objective, 2, callbacks=[_callback(delivery)])
    (message,) = said_by_us(caplog)
    assert message.startswith("Could not log trial 0 (database is locked).")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 2
    assert _trial_runs(delivery).keys() == {1}


def _raise(*_: Any, **__: Any) -> Any:
    raise OSError("database is locked")


def test_a_study_continues_while_the_server_is_down_and_is_delivered_later(
    delivery: InlineDelivery, caplog: pytest.LogCaptureFixture
) -> None:
    delivery.server.is_away = True
    callback = _callback(delivery)
    study = new_study()
    with caplog.at_level(logging.WARNING, "mlflow_iap_callbacks"):
        study.optimize(_x, 3, callbacks=[callback])
        assert not callback.flush(5.0)
    assert len(study.trials) == 3
    delivery.server.is_away = False
    assert callback.flush(600.0)
    assert _trial_runs(delivery).keys() == {0, 1, 2}


# pickle, several processes


def test_a_pickled_callback_keeps_only_its_settings_and_no_studies(
    delivery: InlineDelivery, tmp_path: Path
) -> None:
    callback = _callback(
        delivery,
        metric_name=["loss"],
        mlflow_kwargs={"run_name": "mine"},
        tags={"team": "x"},
        experiment_name="mine",
    )
    study = new_study()
    study.optimize(_x, 1, callbacks=[callback])
    (tmp_path / "model.txt").write_text("x")
    again = pickle.loads(pickle.dumps(callback))
    study.optimize(_x, 1, callbacks=[again])
    runs = _trial_runs(delivery)
    assert runs.keys() == {0, 1}
    for number, run in runs.items():
        assert (run.name, run.tags["team"]) == ("mine", "x")
        assert run.curve("loss") == [(0, study.trials[number].value)]
        assert _experiment_of(delivery, run) == "mine"


def test_the_process_that_executed_a_trial_of_a_shared_study_claims_it(
    delivery: InlineDelivery, tmp_path: Path
) -> None:
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(tmp_path / "journal")))
    study = optuna.create_study(storage=storage)
    began = time.time()
    study.optimize(_x, 2, callbacks=[_callback(delivery)])
    assert _trial_runs(delivery).keys() == {0, 1}
    if time.time() - began < CLAIM_SECONDS:  # no lookup of whether another process has created it
        assert "search_runs" not in delivery.server.calls


# the end


def test_close_reports_and_ends_the_studys_run_then_delivers_and_then_draws(
    delivery_of_files: InlineDelivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str | None] = []
    server = delivery_of_files.server
    monkeypatch.setattr(
        "mlflow_iap_callbacks.optuna.study_run.StudyRun.draw",
        lambda study_run, *_, **__: drawn.append(server.run(study_run.key).status),
    )
    study = new_study()
    with _callback(delivery_of_files, study_run=True) as callback:
        study.optimize(_x, 2, callbacks=[callback])
    assert delivery_of_files.sender.waiting == 0
    (study_run,) = [run for run in delivery_of_files.runs() if TRIAL_TAG not in run.tags]
    assert study_run.status == "FINISHED"
    assert study_run.curve("trials.complete") == [(2, 2.0)]
    assert drawn == ["FINISHED"]
    study.optimize(_x, 1, callbacks=[callback])
    assert _trial_runs(delivery_of_files).keys() == {0, 1, 2}


@pytest.fixture
def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "mlflow_iap_callbacks.optuna.study_run.StudyRun.draw", lambda *_, **__: None
    )


@pytest.mark.usefixtures("without_plots")
def test_the_summary_says_what_was_logged_and_where_it_is(delivery: InlineDelivery) -> None:
    study = new_study()
    callback = _callback(delivery, study_run=True)
    study.optimize(lambda trial: 0.5 + trial.number, 2, callbacks=[callback])
    assert "waiting" in str(callback.summary())
    assert callback.close()
    rows = callback.summary().rows
    (study_run,) = [run for run in delivery.runs() if TRIAL_TAG not in run.tags]
    assert rows[f"study {study.study_name}"] == "2 COMPLETE"
    assert rows["best"] == "trial 0: value 0.5"
    assert rows["link"].endswith(f"{study_run.run_id}?workflowType=machine_learning")
    assert (rows["waiting"], rows["refused"]) == ("0 records", "0")
    assert rows["delivered"] == f"{delivery.sender.delivered} records to {delivery.server.uri}"


# the handle of the study's run


@pytest.mark.usefixtures("without_plots")
def test_more_is_logged_to_the_studys_run_at_any_time_and_it_ends_with_the_callback(
    delivery_of_files: InlineDelivery,
) -> None:
    study = new_study()
    callback = _callback(delivery_of_files, study_run=True)
    study.optimize(_x, 2, callbacks=[callback])
    callback.study_run(study).log_metrics({"test_auc": 0.75})
    assert callback.close()
    callback.study_run(study).log_text("trees", "model/model.txt")
    (run,) = [run for run in delivery_of_files.runs() if TRIAL_TAG not in run.tags]
    assert run.status == "RUNNING"
    assert callback.close()
    assert (run.status, run.artifacts["model/model.txt"]) == ("FINISHED", b"trees")
    assert run.curve("test_auc") == [(0, 0.75)]


def test_without_a_run_of_the_study_there_is_no_handle_but_an_error_with_the_remedy(
    delivery: InlineDelivery,
) -> None:
    study = new_study()
    callback = _callback(delivery, study_run=False)
    with pytest.raises(ValueError, match="after the first trial"):
        callback.study_run(study)
    study.optimize(_x, 1, callbacks=[callback])
    with pytest.raises(ValueError, match="without `study_run=False`"):
        callback.study_run(study)
