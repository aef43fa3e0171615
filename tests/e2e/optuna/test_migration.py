"""Everything that users of optuna_integration's MLflowCallback had still works.

Most of what is marked slow is asserted in tests/unit/optuna/test_callback.py too, without a server.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightgbm as lgb
import mlflow
import numpy as np
import optuna
import pytest
from mlflow.entities import Run
from optuna.trial import FrozenTrial, TrialState

from mlflow_iap_callbacks import IAPMLflowCallback, IAPMlflowClient
from mlflow_iap_callbacks.local import LocalCloud
from optuna_helpers import (
    PARENT_TAG,
    STUDY_TAG,
    TRIAL_TAG,
    Direction,
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

# The fluent API's tags for the machine and the program; other mlflow.* tags say where a run is.
_FROM_CONTEXT = ("mlflow.user", "mlflow.source.name", "mlflow.source.type")


@pytest.fixture(autouse=True)
def _quiet_optuna() -> Iterator[None]:
    with quiet_optuna():
        yield


@pytest.fixture(autouse=True)
def cloud(cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalCloud]:
    with fluent_state_of_its_own(monkeypatch):
        yield cloud


def _x(trial: optuna.Trial) -> float:
    return trial.suggest_float("x", 0.0, 1.0)


def _two(trial: optuna.Trial) -> tuple[float, float]:
    return _x(trial), 2.0


def _metrics(callback: IAPMLflowCallback, *directions: Direction) -> dict[str, float]:
    study = new_study(*directions)
    study.optimize(_two if len(directions) == 2 else _x, 1, callbacks=[callback])
    return dict(trial_run(study).data.metrics)


# metric_name


def test_the_value_is_called_value() -> None:
    assert _metrics(IAPMLflowCallback()).keys() == {"value"}


def test_a_metric_name_names_the_value() -> None:
    assert _metrics(IAPMLflowCallback(metric_name="loss")).keys() == {"loss"}


@pytest.mark.slow
def test_a_metric_name_is_numbered_for_several_objectives() -> None:
    found = _metrics(IAPMLflowCallback(metric_name="loss"), "minimize", "maximize")
    assert found.keys() == {"loss_0", "loss_1"}
    assert found["loss_1"] == 2.0


@pytest.mark.slow
def test_without_a_metric_name_several_objectives_are_numbered_values() -> None:
    assert _metrics(IAPMLflowCallback(), "minimize", "maximize").keys() == {"value_0", "value_1"}


@pytest.mark.parametrize("kind", [list, pytest.param(tuple, marks=pytest.mark.slow)])
def test_a_sequence_of_metric_names_names_several_objectives(
    kind: Callable[[Sequence[str]], Sequence[str]],
) -> None:
    callback = IAPMLflowCallback(metric_name=kind(["loss", "time"]))
    found = _metrics(callback, "minimize", "maximize")
    assert found.keys() == {"loss", "time"}
    assert found["time"] == 2.0


def test_a_sequence_of_one_metric_name_names_one_objective() -> None:
    assert _metrics(IAPMLflowCallback(metric_name=["loss"])).keys() == {"loss"}


@pytest.mark.parametrize(
    "names",
    [["loss"], *(pytest.param(names, marks=pytest.mark.slow) for names in (["a", "b", "c"], []))],
)
def test_too_few_or_too_many_metric_names_do_not_end_the_study(names: list[str]) -> None:
    study = new_study("minimize", "maximize")
    study.optimize(_two, 2, callbacks=[IAPMLflowCallback(metric_name=names)])
    runs = trial_runs(study.study_name)
    assert sorted(runs[1].data.metrics.values()) == sorted(study.trials[1].values)


@pytest.mark.parametrize("name", [0, 1.5, {"a"}, {"a": "b"}, iter("a")])
def test_a_metric_name_that_is_neither_a_name_nor_a_sequence_raises_type_error(name: Any) -> None:
    with pytest.raises(TypeError, match="metric_name"):
        IAPMLflowCallback(metric_name=name)


# tracking_uri, create_experiment, mlflow_kwargs


def test_the_first_argument_is_the_tracking_uri(
    cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        callback = IAPMLflowCallback(cloud.url)
    study = new_study()
    study.optimize(_x, 1, callbacks=[callback])
    assert trial_run(study).info.status == "FINISHED"


def test_runs_are_in_an_experiment_named_after_the_study() -> None:
    study = new_study()
    study.optimize(_x, 3, callbacks=[IAPMLflowCallback()])
    assert trial_runs(study.study_name).keys() == {0, 1, 2}


@pytest.mark.slow
def test_a_second_study_of_a_callback_has_its_own_experiment() -> None:
    callback = IAPMLflowCallback()
    studies = [new_study(), new_study()]
    for study in studies:
        study.optimize(_x, 2, callbacks=[callback])
    for study in studies:
        assert trial_runs(study.study_name).keys() == {0, 1}


def test_an_existing_experiment_is_used() -> None:
    study = new_study()
    experiment = mlflow.create_experiment(study.study_name)
    study.optimize(_x, 1, callbacks=[IAPMLflowCallback()])
    assert trial_run(study).info.experiment_id == experiment


@pytest.mark.parametrize("create", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_runs_are_in_the_experiment_whose_id_is_given(create: bool) -> None:
    name = uuid.uuid4().hex
    given = {"experiment_id": mlflow.create_experiment(name)}
    study = new_study()
    callback = IAPMLflowCallback(create_experiment=create, mlflow_kwargs=given)
    study.optimize(_x, 1, callbacks=[callback])
    assert trial_runs(name).keys() == {0}


def test_without_create_experiment_runs_are_in_the_active_one() -> None:
    name = uuid.uuid4().hex
    mlflow.set_experiment(name)
    study = new_study()
    study.optimize(_x, 2, callbacks=[IAPMLflowCallback(create_experiment=False)])
    assert trial_runs(name).keys() == {0, 1}
    assert all_runs(study.study_name) == []


def test_the_active_experiment_may_be_set_after_the_callback_is_made() -> None:
    name = uuid.uuid4().hex
    callback = IAPMLflowCallback(create_experiment=False)
    mlflow.set_experiment(name)
    new_study().optimize(_x, 1, callbacks=[callback])
    assert trial_runs(name).keys() == {0}


@pytest.mark.slow
def test_the_active_experiment_may_be_named_by_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    name = uuid.uuid4().hex
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", name)
    new_study().optimize(_x, 1, callbacks=[IAPMLflowCallback(create_experiment=False)])
    assert trial_runs(name).keys() == {0}


@pytest.mark.slow
def test_without_any_experiment_runs_are_in_the_default_one() -> None:
    study = new_study()
    study.optimize(_x, 1, callbacks=[IAPMLflowCallback(create_experiment=False)])
    found = [run for run in all_runs("Default") if run.info.run_name == study.study_name]
    assert len(found) == 1
    key = found[0].data.tags[STUDY_TAG]
    tags = [run.data.tags for run in all_runs("Default")]
    assert [
        each["number"] for each in tags if each.get(STUDY_TAG) == key and TRIAL_TAG in each
    ] == ["0"]


@pytest.mark.slow
def test_a_run_is_named_after_the_number_of_its_trial() -> None:
    study = new_study()
    study.optimize(_x, 2, callbacks=[IAPMLflowCallback()])
    assert {n: r.info.run_name for n, r in trial_runs(study.study_name).items()} == {0: "0", 1: "1"}


@pytest.mark.slow
def test_a_given_run_name_applies_to_all_runs() -> None:
    study = new_study()
    study.optimize(_x, 2, callbacks=[IAPMLflowCallback(mlflow_kwargs={"run_name": "mine"})])
    assert [r.info.run_name for r in trial_runs(study.study_name).values()] == ["mine", "mine"]


@pytest.mark.slow
def test_given_tags_are_on_all_runs() -> None:
    study = new_study()
    callback = IAPMLflowCallback(mlflow_kwargs={"tags": {"team": "x", "budget": 5}})
    study.optimize(_x, 2, callbacks=[callback])
    for run in trial_runs(study.study_name).values():
        assert (run.data.tags["team"], run.data.tags["budget"]) == ("x", "5")


def test_a_run_name_among_the_tags_does_no_harm() -> None:
    study = new_study()
    callback = IAPMLflowCallback(mlflow_kwargs={"tags": {"mlflow.runName": "mine", "team": "x"}})
    study.optimize(_x, 1, callbacks=[callback])
    assert callback.flush(20.0)
    run = trial_run(study)
    assert (run.info.run_name, run.data.tags["team"]) == ("0", "x")


@pytest.mark.slow
def test_the_description_is_the_note_of_each_run() -> None:
    study = new_study()
    study.optimize(_x, 1, callbacks=[IAPMLflowCallback(mlflow_kwargs={"description": "why"})])
    assert trial_run(study).data.tags["mlflow.note.content"] == "why"


def test_nested_runs_are_below_the_active_run() -> None:
    study = new_study()
    callback = IAPMLflowCallback(mlflow_kwargs={"nested": True})
    with mlflow.start_run() as outer:
        study.optimize(_x, 2, callbacks=[callback])
    runs = trial_runs(study.study_name)
    assert [run.data.tags[PARENT_TAG] for run in runs.values()] == [outer.info.run_id] * 2
    assert len(all_runs(study.study_name)) == 2


def test_nested_runs_of_tracked_objectives_are_below_the_active_run() -> None:
    study = new_study()
    callback = IAPMLflowCallback(mlflow_kwargs={"nested": True})

    @callback.track_in_mlflow()
    def objective(trial: optuna.Trial) -> float:
        mlflow.log_metric("inside", trial.number)
        return _x(trial)

    with mlflow.start_run() as outer:
        study.optimize(objective, 2, callbacks=[callback])
    runs = trial_runs(study.study_name)
    assert [run.data.tags[PARENT_TAG] for run in runs.values()] == [outer.info.run_id] * 2
    assert {number: run.data.metrics["inside"] for number, run in runs.items()} == {0: 0.0, 1: 1.0}


@pytest.mark.slow
def test_unknown_mlflow_kwargs_are_a_warning_and_change_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "mlflow_iap_callbacks"):
        callback = IAPMLflowCallback(mlflow_kwargs={"nest_trials": True, "run_name": "mine"})
    told = [message for message in caplog.messages if "mlflow_kwargs" in message]
    assert len(told) == 1
    assert "nest_trials" in told[0]
    study = new_study()
    study.optimize(_x, 1, callbacks=[callback])
    assert trial_run(study).info.run_name == "mine"


def test_mlflow_kwargs_may_be_none_and_the_callers_dict_is_not_changed() -> None:
    given: dict[str, Any] = {"tags": {"a": "b"}}
    IAPMLflowCallback(mlflow_kwargs=None)
    study = new_study()
    study.optimize(_x, 1, callbacks=[IAPMLflowCallback(mlflow_kwargs=given)])
    assert given == {"tags": {"a": "b"}}


# tags, params


def test_tags_show_number_times_state_direction_and_distributions() -> None:
    def objective(trial: optuna.Trial) -> float:
        trial.suggest_categorical("c", ["a", None])
        return _x(trial) + trial.suggest_int("i", 1, 9, log=True)

    study = new_study()
    study.optimize(objective, 2, callbacks=[IAPMLflowCallback()])
    runs = trial_runs(study.study_name)
    for trial in study.trials:
        expected = {
            "number": str(trial.number),
            "datetime_start": str(trial.datetime_start),
            "datetime_complete": str(trial.datetime_complete),
            "state": "COMPLETE",
            "direction": "MINIMIZE",
            **{f"{name}_distribution": str(each) for name, each in trial.distributions.items()},
        }
        assert expected.items() <= runs[trial.number].data.tags.items()
        assert len(expected) == 8


def test_a_maximized_value_has_a_tag_that_says_so() -> None:
    study = new_study("maximize")
    study.optimize(_x, 1, callbacks=[IAPMLflowCallback()])
    assert trial_run(study).data.tags["direction"] == "MAXIMIZE"


def test_directions_of_several_objectives_are_one_tag() -> None:
    study = new_study("minimize", "maximize")
    study.optimize(_two, 1, callbacks=[IAPMLflowCallback()])
    assert trial_run(study).data.tags["direction"] == "['MINIMIZE', 'MAXIMIZE']"


def test_params_are_logged_as_they_were_suggested() -> None:
    def objective(trial: optuna.Trial) -> float:
        trial.suggest_int("i", 3, 3)
        trial.suggest_categorical("c", ["a b"])
        return _x(trial)

    study = new_study()
    study.optimize(objective, 1, callbacks=[IAPMLflowCallback()])
    expected = {name: str(value) for name, value in study.trials[0].params.items()}
    assert trial_run(study).data.params == expected
    assert len(expected) == 3


@pytest.mark.parametrize(
    ("study_attrs", "trial_attrs", "expected"),
    [
        (True, True, {"both": "study", "of_trial": "1", "of_study": "2"}),
        pytest.param(False, True, {"both": "trial", "of_trial": "1"}, marks=pytest.mark.slow),
        pytest.param(True, False, {"both": "study", "of_study": "2"}, marks=pytest.mark.slow),
        pytest.param(False, False, {}, marks=pytest.mark.slow),
    ],
)
def test_user_attributes_become_tags_on_request_and_the_studys_take_precedence(
    study_attrs: bool, trial_attrs: bool, expected: dict[str, str]
) -> None:
    def objective(trial: optuna.Trial) -> float:
        trial.set_user_attr("both", "trial")
        trial.set_user_attr("of_trial", 1)
        return 1.0

    study = new_study()
    study.set_user_attr("both", "study")
    study.set_user_attr("of_study", 2)
    callback = IAPMLflowCallback(tag_study_user_attrs=study_attrs, tag_trial_user_attrs=trial_attrs)
    study.optimize(objective, 1, callbacks=[callback])
    tags = trial_run(study).data.tags
    names = ("both", "of_trial", "of_study")
    assert {name: tags[name] for name in names if name in tags} == expected


@pytest.mark.slow
def test_trial_attributes_are_tags_and_study_attributes_are_not_by_default() -> None:
    def objective(trial: optuna.Trial) -> float:
        trial.set_user_attr("of_trial", 1)
        return 1.0

    study = new_study()
    study.set_user_attr("of_study", 2)
    study.optimize(objective, 1, callbacks=[IAPMLflowCallback()])
    tags = trial_run(study).data.tags
    assert tags["of_trial"] == "1"
    assert "of_study" not in tags


def test_user_attributes_replace_tags_of_the_same_name() -> None:
    def objective(trial: optuna.Trial) -> float:
        trial.set_user_attr("direction", "up")
        trial.set_user_attr("team", "mine")
        return _x(trial)

    study = new_study()
    callback = IAPMLflowCallback(mlflow_kwargs={"tags": {"team": "all"}})
    study.optimize(objective, 1, callbacks=[callback])
    tags = trial_run(study).data.tags
    assert (tags["direction"], tags["team"]) == ("up", "mine")


def test_a_long_user_attribute_is_cut_to_mlflow_s_limit() -> None:
    text = "0123456789" * 900

    def objective(trial: optuna.Trial) -> float:
        trial.set_user_attr("text", text)
        trial.set_user_attr("list", list(range(5000)))
        return _x(trial)

    study = new_study()
    study.optimize(objective, 1, callbacks=[IAPMLflowCallback()])
    run = trial_run(study)
    for name, whole in (("text", text), ("list", str(list(range(5000))))):
        assert len(run.data.tags[name]) == 8000
        assert whole.startswith(run.data.tags[name][:7900])
    assert run.data.metrics["value"] == study.trials[0].value


def test_user_attributes_whose_names_mlflow_rejects_are_logged_with_similar_names() -> None:
    names = ("a#b", "n" * 300, "../up", "", "ü:*", "mlflow.runName")

    def objective(trial: optuna.Trial) -> float:
        for number, name in enumerate(names):
            trial.set_user_attr(name, f"kept {number}")
        return _x(trial)

    study = new_study()
    study.optimize(objective, 2, callbacks=[IAPMLflowCallback()])
    runs = trial_runs(study.study_name)
    assert runs.keys() == {0, 1}
    for run in runs.values():
        assert run.info.status == "FINISHED"
        kept = {value for value in run.data.tags.values() if value.startswith("kept")}
        assert kept >= {f"kept {number}" for number in range(len(names) - 1)}


def test_a_run_has_the_user_and_program_tags_of_the_fluent_api() -> None:
    with mlflow.start_run() as fluent_run:
        pass
    study = new_study()
    study.optimize(_x, 1, callbacks=[IAPMLflowCallback()])
    fluent_tags = mlflow.get_run(fluent_run.info.run_id).data.tags
    expected = {name: fluent_tags[name] for name in _FROM_CONTEXT}
    tags = trial_run(study).data.tags
    assert {name: tags.get(name) for name in _FROM_CONTEXT} == expected


# how trials end


def test_a_trial_without_a_value_has_no_metric() -> None:
    def objective(trial: optuna.Trial) -> float:
        _x(trial)
        raise optuna.TrialPruned if trial.number == 0 else ValueError

    study = new_study()
    study.optimize(objective, 2, catch=ValueError, callbacks=[IAPMLflowCallback()])
    runs = trial_runs(study.study_name)
    assert [runs[number].data.metrics for number in (0, 1)] == [{}, {}]
    assert [runs[number].data.params.keys() for number in (0, 1)] == [{"x"}, {"x"}]
    assert [runs[number].data.tags["state"] for number in (0, 1)] == ["PRUNED", "FAIL"]


def test_a_pruned_trial_has_its_last_report_as_value() -> None:
    def objective(trial: optuna.Trial) -> float:
        trial.report(5.0, 0)
        trial.report(4.0, 1)
        raise optuna.TrialPruned

    study = new_study()
    study.optimize(objective, 1, callbacks=[IAPMLflowCallback()])
    assert trial_run(study).data.metrics["value"] == 4.0


@pytest.mark.parametrize(
    "state", [TrialState.PRUNED, pytest.param(TrialState.FAIL, marks=pytest.mark.slow)]
)
def test_the_callback_may_be_called_by_hand_with_a_trial_that_has_no_value(
    state: TrialState,
) -> None:
    study = new_study()
    study.add_trial(optuna.create_trial(state=state))
    trial: FrozenTrial = study.trials[0]
    assert trial.values is None
    IAPMLflowCallback()(study, trial)
    assert trial_run(study).data.tags["state"] == state.name


# track_in_mlflow


def test_what_the_fluent_api_logs_in_a_tracked_objective_is_in_the_trials_run(
    tmp_path: Path,
) -> None:
    callback = IAPMLflowCallback()

    @callback.track_in_mlflow()
    def objective(trial: optuna.Trial) -> float:
        for step in range(3):
            mlflow.log_metric("loss", 1.0 / (step + 1), step=step)
        mlflow.log_metrics({"a": 1.0, "b": trial.number})
        mlflow.log_param("depth", 7)
        mlflow.set_tag("mine", "yes")
        file = tmp_path / "model.txt"
        file.write_text(f"model {trial.number}")
        mlflow.log_artifact(str(file))
        mlflow.log_text("text", "folder/note.txt")
        return _x(trial)

    study = new_study()
    study.optimize(objective, 2, callbacks=[callback])
    runs = trial_runs(study.study_name)
    for trial in study.trials:
        run = runs[trial.number]
        assert curve(run, "loss") == [(0, 1.0), (1, 0.5), (2, 1.0 / 3)]
        assert run.data.metrics["b"] == trial.number
        assert run.data.metrics["value"] == trial.value
        assert run.data.params == {"depth": "7", "x": str(trial.params["x"])}
        assert (run.data.tags["mine"], run.data.tags["number"]) == ("yes", str(trial.number))
        assert artifacts(run) == ["folder", "model.txt"]
        assert text_of(run, "model.txt", tmp_path / "down") == f"model {trial.number}"
        assert run.info.status == "FINISHED"
    assert study_run(study.study_name).data.params == {}
    assert mlflow.active_run() is None


def test_what_lightgbm_autolog_logs_in_a_tracked_objective_is_in_the_trials_run() -> None:
    callback = IAPMLflowCallback()
    rng = np.random.default_rng(0)
    features, target = rng.normal(size=(200, 3)), rng.integers(0, 2, 200)

    @callback.track_in_mlflow()
    def objective(trial: optuna.Trial) -> float:
        data = lgb.Dataset(features, target)
        lgb.train(
            {
                "objective": "binary",
                "verbosity": -1,
                "num_threads": 1,
                "learning_rate": trial.suggest_float("learning_rate", 0.01, 0.3),
            },
            data,
            5,
            valid_sets=[data],
            valid_names=["train"],
        )
        return 1.0

    study = new_study()
    mlflow.lightgbm.autolog(log_models=False, log_datasets=False)
    try:
        study.optimize(objective, 2, callbacks=[callback])
    finally:
        mlflow.lightgbm.autolog(disable=True)
    assert len(all_runs(study.study_name)) == 3
    for number, run in trial_runs(study.study_name).items():
        assert [step for step, _ in curve(run, "train-binary_logloss")] == [0, 1, 2, 3, 4]
        assert run.data.params["objective"] == "binary"
        rate = study.trials[number].params["learning_rate"]
        assert run.data.params["learning_rate"] == str(rate)
        assert not [name for name in run.data.params if name.startswith("suggested.")]


def test_eight_tracked_objectives_run_at_the_same_time() -> None:
    callback = IAPMLflowCallback()
    all_are_there = threading.Barrier(8)

    @callback.track_in_mlflow()
    def objective(trial: optuna.Trial) -> float:
        all_are_there.wait(60.0)
        mlflow.log_metric("mine", trial.number)
        mlflow.log_param("p", trial.number)
        all_are_there.wait(60.0)
        return _x(trial)

    study = new_study()
    study.optimize(objective, 8, n_jobs=8, callbacks=[callback])
    runs = trial_runs(study.study_name)
    assert runs.keys() == set(range(8))
    for number, run in runs.items():
        assert run.data.metrics == {"mine": number, "value": study.trials[number].value}
        assert run.data.params["p"] == str(number)


@pytest.mark.parametrize("is_tracked", [False, True])
def test_a_run_that_is_active_during_the_study_stays_active_and_unchanged(
    is_tracked: bool,
) -> None:
    callback = IAPMLflowCallback()
    objective = callback.track_in_mlflow()(_x) if is_tracked else _x
    study = new_study()
    with mlflow.start_run() as outer:
        mlflow.log_metric("before", 1.0)
        study.optimize(objective, 2, callbacks=[callback])
        active = mlflow.active_run()
        assert active is not None
        assert active.info.run_id == outer.info.run_id
        mlflow.log_metric("after", 2.0)
    run = mlflow.get_run(outer.info.run_id)
    assert run.data.metrics == {"before": 1.0, "after": 2.0}
    assert (run.data.params, run.info.status) == ({}, "FINISHED")
    parents = {each.data.tags[PARENT_TAG] for each in trial_runs(study.study_name).values()}
    assert parents == {study_run(study.study_name).info.run_id}


def test_a_run_that_is_started_inside_a_tracked_objective_is_a_child_of_the_trials() -> None:
    callback = IAPMLflowCallback()

    @callback.track_in_mlflow()
    def objective(trial: optuna.Trial) -> float:
        with mlflow.start_run(nested=True, run_name="inner"):
            mlflow.log_metric("inner", 1.0)
        mlflow.log_metric("outer", 2.0)
        return _x(trial)

    study = new_study()
    study.optimize(objective, 1, callbacks=[callback])
    outer = trial_run(study)
    assert outer.data.metrics == {"outer": 2.0, "value": study.trials[0].value}
    (inner,) = IAPMlflowClient().search_runs(
        [each.experiment_id for each in IAPMlflowClient().search_experiments()],
        f"tags.`{PARENT_TAG}` = '{outer.info.run_id}'",
    )
    assert (inner.info.run_name, inner.info.status) == ("inner", "FINISHED")
    assert inner.data.metrics == {"inner": 1.0}
    # MLflow's page shows only children in the same experiment.
    assert inner.info.experiment_id == outer.info.experiment_id


def test_a_tracked_objective_keeps_its_name_and_what_it_returns() -> None:
    @IAPMLflowCallback().track_in_mlflow()
    def my_objective(trial: optuna.Trial) -> tuple[float, float]:
        """Mine."""
        return 1.0, 2.0

    assert (my_objective.__name__, my_objective.__doc__) == ("my_objective", "Mine.")
    study = new_study("minimize", "maximize")
    study.optimize(my_objective, 1)
    assert study.trials[0].values == [1.0, 2.0]


def test_a_param_that_was_logged_with_another_value_is_kept_beside_the_suggested_value() -> None:
    callback = IAPMLflowCallback()

    @callback.track_in_mlflow()
    def objective(trial: optuna.Trial) -> float:
        suggested = trial.suggest_int("depth", 5, 5)
        trial.suggest_int("same", 3, 3)
        mlflow.log_param("depth", suggested * 10)
        mlflow.log_param("same", 3)
        return 1.0

    study = new_study()
    study.optimize(objective, 1, callbacks=[callback])
    run = trial_run(study)
    assert run.data.params == {"depth": "50", "suggested.depth": "5", "same": "3"}
    assert (run.info.status, run.data.metrics["value"]) == ("FINISHED", 1.0)


def test_a_tracked_objective_may_be_pruned_or_fail_and_the_rest_is_tracked() -> None:
    callback = IAPMLflowCallback()

    @callback.track_in_mlflow()
    def objective(trial: optuna.Trial) -> float:
        mlflow.log_metric("mine", trial.number)
        if trial.number == 0:
            raise optuna.TrialPruned
        if trial.number == 1:
            raise ValueError("no")
        return 1.0

    study = new_study()
    study.optimize(objective, 3, catch=ValueError, callbacks=[callback])
    runs = trial_runs(study.study_name)
    assert [runs[n].info.status for n in range(3)] == ["KILLED", "FAILED", "FINISHED"]
    assert [runs[n].data.metrics["mine"] for n in range(3)] == [0.0, 1.0, 2.0]
    assert mlflow.active_run() is None


# beside the old one itself


def _of_old(experiment: str) -> dict[int, Run]:
    return {int(run.data.tags["number"]): run for run in all_runs(experiment)}


def _assert_nothing_is_lost(old: dict[int, Run], ours: dict[int, Run], *left_out: str) -> None:
    assert old.keys() == ours.keys()
    assert old
    for number, run in old.items():
        kept = ours[number].data
        tags = {
            name: value
            for name, value in run.data.tags.items()
            if name == "mlflow.runName"
            or (name not in left_out and name.split(".")[0] not in ("mlflow", "mlflow_iap"))
        }
        assert tags.items() <= kept.tags.items()
        assert run.data.params.items() <= kept.params.items()
        assert run.data.metrics.items() <= kept.metrics.items()
        assert {"number", "state", "direction"} <= tags.keys()


def _all_kinds(trial: optuna.Trial) -> float:
    trial.suggest_categorical("c", ["a", None, True, 1.5, "ü\n"])
    trial.suggest_int("i", 1, 1000, log=True)
    trial.suggest_float("step", 0.0, 1.0, step=0.1)
    trial.set_user_attr("list", [1, {"a": None}])
    if trial.number == 3:
        trial.set_user_attr("number", "superseded")
    for step in range(3):
        trial.report(step * 0.5, step)
    if trial.number % 5 == 1:
        raise optuna.TrialPruned
    if trial.number % 5 == 2:
        raise ValueError("no")
    if trial.number % 5 == 4:
        return float("nan")
    return _x(trial) * 1e-7


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("options", "directions"),
    [
        ({}, ["minimize"]),
        ({"metric_name": "loss", "tag_study_user_attrs": True}, ["maximize"]),
        ({"metric_name": ["a", "b"], "tag_trial_user_attrs": False}, ["minimize", "maximize"]),
        ({"mlflow_kwargs": {"run_name": "mine", "tags": {"t": "1"}}}, ["minimize", "maximize"]),
    ],
)
def test_everything_that_the_old_callback_logs_for_a_trial_is_logged(
    options: dict[str, Any], directions: list[Direction]
) -> None:
    module = pytest.importorskip("optuna_integration")
    study = new_study(*directions)
    study.set_user_attr("of_study", "yes")
    elsewhere = uuid.uuid4().hex
    callbacks = [
        module.MLflowCallback(**options),
        IAPMLflowCallback(**options, experiment_name=elsewhere),
    ]
    objective = _two if len(directions) == 2 else _all_kinds
    study.optimize(objective, 5, callbacks=callbacks, catch=ValueError)
    # One trial has an attribute called number, which is its tag with both callbacks.
    old = all_runs(study.study_name)
    starts = {str(trial.datetime_start): trial.number for trial in study.trials}
    by_number = {starts[run.data.tags["datetime_start"]]: run for run in old}
    assert len(old) == 5
    _assert_nothing_is_lost(by_number, trial_runs(elsewhere))


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::optuna.exceptions.ExperimentalWarning"
)
def test_everything_that_the_old_callback_logs_in_a_tracked_objective_is_logged() -> None:
    module = pytest.importorskip("optuna_integration")
    found = []
    for callback in (module.MLflowCallback(), IAPMLflowCallback()):

        @callback.track_in_mlflow()  # type: ignore[untyped-decorator]
        def objective(trial: optuna.Trial) -> float:
            value = _x(trial)
            for step in range(3):
                mlflow.log_metric("loss", value / (step + 1), step=step)
            mlflow.log_param("own", trial.number)
            mlflow.set_tag("mine", "yes")
            mlflow.log_dict({"a": 1}, "dict.json")
            return value

        study = new_study(seed=7)
        study.optimize(objective, 3, callbacks=[callback])
        found.append(study)
    old, ours = _of_old(found[0].study_name), trial_runs(found[1].study_name)
    _assert_nothing_is_lost(old, ours, "datetime_start", "datetime_complete")
    for number, run in old.items():
        assert curve(run, "loss") == curve(ours[number], "loss")
        assert artifacts(run) == artifacts(ours[number]) == ["dict.json"]
