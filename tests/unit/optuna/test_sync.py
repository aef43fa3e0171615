"""What ``sync`` adds to MLflow, and what it leaves to others."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
from mlflow.exceptions import MlflowException
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial

from fake_mlflow import FakeRun
from inline_delivery import InlineDelivery
from mlflow_iap_callbacks import IAPMLflowCallback
from mlflow_iap_callbacks.tags import RUN_KEY_TAG
from optuna_helpers import PARENT_TAG, TRIAL_TAG, new_study


def _x(trial: optuna.Trial) -> float:
    return trial.suggest_float("x", 0.0, 1.0)


def _callback(delivery: InlineDelivery, **options: Any) -> IAPMLflowCallback:
    return IAPMLflowCallback(client=delivery.client, study_run=False, **options)


def _trial_runs(delivery: InlineDelivery) -> dict[int, FakeRun]:
    runs = delivery.runs()
    found = {int(run.tags[TRIAL_TAG]): run for run in runs}
    assert len(found) == len(runs)
    return found


def _old_trial(value: float) -> optuna.trial.FrozenTrial:
    x = optuna.distributions.FloatDistribution(0.0, 1.0)
    trial = create_trial(value=value, params={"x": 0.5}, distributions={"x": x})
    assert trial.datetime_start is not None
    trial.datetime_start -= timedelta(days=1)
    trial.datetime_complete = trial.datetime_start + timedelta(minutes=1)
    return trial


def _shared_study(folder: Path) -> optuna.Study:
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / "journal")))
    return optuna.create_study(study_name="mine", storage=storage, load_if_exists=True)


def test_ended_trials_of_every_kind_are_logged_and_the_others_are_not(
    delivery: InlineDelivery,
) -> None:
    study = new_study()
    for state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL):
        values = [1.0] if state == TrialState.COMPLETE else None
        study.add_trial(create_trial(state=state, values=values))
    study.ask()
    study.enqueue_trial({"x": 0.5})
    assert _callback(delivery).sync(study) == 3
    runs = _trial_runs(delivery)
    assert {n: run.status for n, run in runs.items()} == {0: "FINISHED", 1: "KILLED", 2: "FAILED"}


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_a_trial_that_ended_with_an_uncaught_exception_is_logged(
    delivery: InlineDelivery, error: type[BaseException]
) -> None:
    study = new_study()
    callback = _callback(delivery)

    def objective(trial: optuna.Trial) -> float:
        if trial.number == 1:
            raise error
        return _x(trial)

    with pytest.raises(error):
        study.optimize(objective, 3, callbacks=[callback])
    assert _trial_runs(delivery).keys() == {0}
    assert callback.sync(study) == 1
    assert [run.status for run in _trial_runs(delivery).values()] == ["FINISHED", "FAILED"]


def test_a_second_sync_by_any_callback_writes_nothing(
    delivery: InlineDelivery,
) -> None:
    study = new_study()
    callback = _callback(delivery)
    study.optimize(_x, 2, callbacks=[callback])
    study.add_trial(create_trial(value=2.0))
    assert callback.sync(study) == 1
    assert _trial_runs(delivery).keys() == {0, 1, 2}
    writes = [call for call in delivery.server.calls if not call.startswith(("get", "search"))]
    assert callback.sync(study) == 0
    assert _callback(delivery).sync(study) == 0
    assert _trial_runs(delivery).keys() == {0, 1, 2}
    assert writes == [
        call for call in delivery.server.calls if not call.startswith(("get", "search"))
    ]


# studies whose trials have the same numbers


def _study_of(folder: Path, name: str) -> optuna.Study:
    """The first study of a storage; all have the same id."""
    (folder / name).mkdir(exist_ok=True)
    return _shared_study(folder / name)


def _shifted(trial: optuna.Trial) -> float:
    return 100.0 + _x(trial)


def _assert_each_has_a_run_of_its_own(delivery: InlineDelivery, *studies: optuna.Study) -> None:
    """No two trials share a run, and each run has one trial's params and value."""
    trials = {(t.number, t.params["x"], t.value) for study in studies for t in study.trials}
    runs = [run for run in delivery.runs() if TRIAL_TAG in run.tags]
    found = {
        (int(run.tags[TRIAL_TAG]), float(run.params["x"]), run.curve("value")[0][1]) for run in runs
    }
    assert all(len(run.params) == len(run.points) == 1 for run in runs)
    assert trials <= found
    assert len(found) == len(runs)


@pytest.mark.parametrize("is_same_callback", [True, False])
def test_a_study_that_is_deleted_and_created_again_shares_no_run_with_the_old_one(
    delivery: InlineDelivery, tmp_path: Path, is_same_callback: bool
) -> None:
    old = _study_of(tmp_path, "old")
    callback = _callback(delivery)
    old.optimize(_x, 4, callbacks=[callback])
    callback.flush()
    # As in an SQLite file, which gives the id of the deleted study to the next one.
    new = _study_of(tmp_path, "new")
    assert new._study_id == old._study_id
    new.add_trials([trial for trial in old.trials if trial.number != 1])
    callback = callback if is_same_callback else _callback(delivery)
    new.optimize(_shifted, 1, callbacks=[callback])
    assert callback.sync(new) == 2  # those that have other numbers now
    _assert_each_has_a_run_of_its_own(delivery, new)
    assert callback.sync(new) == 0
    assert _callback(delivery).sync(new) == 0


@pytest.mark.parametrize("is_same_callback", [True, False])
def test_two_copies_of_a_study_share_the_runs_of_the_copied_trials_only(
    delivery: InlineDelivery, tmp_path: Path, is_same_callback: bool
) -> None:
    one, other = _study_of(tmp_path, "one"), _study_of(tmp_path, "other")
    callback = _callback(delivery)
    one.optimize(_x, 2, callbacks=[callback])
    callback.flush()
    other.add_trials(one.trials)  # as optuna.copy_study does
    for _ in range(2):
        for study, objective in ((one, _x), (other, _shifted)):
            callback = callback if is_same_callback else _callback(delivery)
            study.optimize(objective, 1, callbacks=[callback])
            callback.flush()
            assert callback.sync(study) == 0
    _assert_each_has_a_run_of_its_own(delivery, one, other)
    assert len(delivery.runs()) == 2 + 2 * 2


def test_a_study_whose_object_shows_only_its_last_trials_is_one_study(
    delivery: InlineDelivery,
) -> None:
    """As in LightGBMTuner, which makes a study object for each of its steps."""

    class Step(optuna.Study):
        def get_trials(self, *args: Any, **options: Any) -> list[optuna.trial.FrozenTrial]:
            return super().get_trials(*args, **options)[first:]

        @property
        def best_trials(self) -> list[optuna.trial.FrozenTrial]:
            return []

    study = new_study()
    callback = IAPMLflowCallback(client=delivery.client)
    for first in (0, 2, 4):  # noqa: B007
        step = Step(study.study_name, study._storage, study.sampler)
        step.optimize(_x, 2, callbacks=[callback])
    assert callback.sync(study) == callback.sync(step) == 0
    runs = delivery.runs()
    assert len(runs) == 7
    (study_run,) = [run for run in runs if TRIAL_TAG not in run.tags]
    assert callback.summary().rows[f"study {study.study_name}"] == "6 COMPLETE"
    assert {run.tags[PARENT_TAG] for run in runs if run is not study_run} == {study_run.run_id}


# runs of version 0.1.0, whose keys lack the trial's start


def _as_by_0_1_0(runs: Iterable[FakeRun]) -> None:
    for run in runs:
        run.tags[RUN_KEY_TAG] = run.tags[RUN_KEY_TAG].rpartition("-")[0]
        run.tags["mlflow_iap.trial_state"] = run.tags.pop("_mlflow_iap.trial_state")


@pytest.mark.parametrize("hours", [0, 9])
def test_runs_of_version_0_1_0_are_those_of_their_trials(
    delivery: InlineDelivery, tmp_path: Path, hours: int
) -> None:
    study = _shared_study(tmp_path)
    study.optimize(_x, 3, callbacks=[_callback(delivery)])
    runs = _trial_runs(delivery)
    _as_by_0_1_0(runs.values())
    for run in runs.values():  # logged in another time zone
        run.start_time += hours * 3_600_000
    again = _callback(delivery)
    _shared_study(tmp_path).optimize(_x, 1, callbacks=[again])
    assert again.sync(study) == 0
    assert {number: run.run_id for number, run in _trial_runs(delivery).items()}.items() >= {
        number: run.run_id for number, run in runs.items()
    }.items()


def test_a_run_of_version_0_1_0_that_is_not_complete_is_completed(
    delivery: InlineDelivery, tmp_path: Path
) -> None:
    study = _shared_study(tmp_path)
    study.add_trials([_old_trial(1.0), _old_trial(2.0), _old_trial(3.0)])
    _callback(delivery).sync(study)
    assert study.trials[0].params == {"x": 0.5}
    runs = _trial_runs(delivery)
    _as_by_0_1_0(runs.values())
    runs[0].status = "RUNNING"
    del runs[0].tags["mlflow_iap.trial_state"]
    runs[0].points.clear()
    runs[0].points["value", 0, 0, 100.0] = None  # by the objective, as this param
    runs[0].params["x"] = "17"
    runs[1].is_deleted = True
    callback = _callback(delivery)
    assert callback.sync(study) == 1
    callback.log_trial(study, study.trials[2])
    assert [run.run_id for run in _trial_runs(delivery).values()] == [
        runs[0].run_id,
        runs[2].run_id,
    ]
    assert (runs[0].status, runs[0].curve("value")) == ("FINISHED", [(0, 100.0), (0, 1.0)])
    assert runs[0].params == {"x": "17", "suggested.x": "0.5"}


def test_a_trial_that_version_0_1_0_logged_partly_to_another_trials_run_gets_a_run(
    delivery: InlineDelivery,
) -> None:
    study = new_study()
    study.optimize(_x, 2, callbacks=[_callback(delivery)])
    runs = _trial_runs(delivery)
    _as_by_0_1_0(runs.values())
    runs[0].params["x"] = "17.0"
    runs[1].points.clear()
    runs[1].points["value", 0, 0, 100.0] = None
    before = {id(run): (dict(run.params), dict(run.points)) for run in runs.values()}
    assert _callback(delivery).sync(study) == 2
    assert len(delivery.runs()) == 4
    assert {id(run): (run.params, run.points) for run in runs.values()} == before
    assert _callback(delivery).sync(study) == 0


# runs and their trials


def test_a_run_without_a_param_or_value_of_its_trial_is_completed(
    delivery: InlineDelivery,
) -> None:
    study = new_study()
    study.optimize(_x, 3, callbacks=[_callback(delivery)])
    runs = _trial_runs(delivery)
    runs[0].params.clear()
    runs[1].points.clear()
    assert _callback(delivery).sync(study) == 2
    for trial in study.trials:
        run = _trial_runs(delivery)[trial.number]
        assert (run.params, run.curve("value")) == (
            {"x": str(trial.params["x"])},
            [(0, trial.value)],
        )
    assert _callback(delivery).sync(study) == 0


def test_what_the_user_logged_beside_a_trials_results_does_not_make_it_incomplete(
    delivery: InlineDelivery,
) -> None:
    callback = _callback(delivery, metric_name="loss")

    def objective(trial: optuna.Trial) -> float:
        run = callback.run(trial)
        run.log_params({"depth": 50})
        run.log_metrics({"loss": 7.0, "other": 1.0}, step=3)
        trial.report(0.5, 3)
        trial.suggest_categorical("odd name:%", ["a", "b" * 7000])
        trial.suggest_categorical("odd name:&", ["c", "d"])
        return trial.suggest_int("depth", 5, 5)

    study = new_study()
    study.optimize(objective, 2, callbacks=[callback])
    callback.flush()
    assert _callback(delivery).sync(study) == 0


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), 0.1 + 0.2, 1e-300])
def test_every_value_is_found_again_as_mlflow_stores_it(
    delivery: InlineDelivery, value: float
) -> None:
    study = new_study()
    study.add_trial(create_trial(value=value))
    _callback(delivery).sync(study)
    (run,) = delivery.runs()
    stored = min(max(value, -1.7976931348623157e308), 1.7976931348623157e308)
    ((name, step, timestamp, _),) = run.points
    run.points = {(name, step, timestamp, stored): None}
    assert _callback(delivery, metric_name="loss").sync(study) == 0


@pytest.mark.parametrize(
    "left", ["RUNNING", "another status", "another state", "ended by the journal"]
)
def test_a_run_that_does_not_show_how_its_trial_ended_is_completed(
    delivery: InlineDelivery, left: str
) -> None:
    study = new_study()
    study.optimize(_x, 1, callbacks=[_callback(delivery)])
    run = _trial_runs(delivery)[0]
    if left == "RUNNING":
        run.status = "RUNNING"
    elif left == "another status":
        run.status = "FAILED"
    elif left == "another state":
        run.tags["_mlflow_iap.trial_state"] = "RUNNING"
    else:
        run.tags["mlflow_iap.ended"] = "The process that wrote to the run died."
    assert _callback(delivery).sync(study) == 1
    assert _trial_runs(delivery)[0] is run
    assert (run.status, run.tags["_mlflow_iap.trial_state"]) == ("FINISHED", "COMPLETE")
    assert "mlflow_iap.ended" not in run.tags
    assert _callback(delivery).sync(study) == 0


def test_runs_on_more_than_one_page_are_all_found(
    delivery: InlineDelivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = new_study()
    study.add_trials([create_trial(value=float(number)) for number in range(5)])
    callback = _callback(delivery)
    assert callback.sync(study) == 5
    assert len(_trial_runs(delivery)) == 5
    search = delivery.client.search_runs
    monkeypatch.setattr(
        delivery.client,
        "search_runs",
        lambda *args, **options: search(*args, **{**options, "max_results": 2}),
    )
    assert _callback(delivery).sync(study) == 0
    assert delivery.server.calls.count("search_runs") >= 3


def test_a_study_without_a_started_trial_is_ignored(delivery: InlineDelivery) -> None:
    study = new_study()
    callback = _callback(delivery)
    assert callback.sync(study) == 0
    study.enqueue_trial({"x": 0.5})
    assert callback.sync(study) == 0
    assert delivery.server.calls == []


def test_the_experiment_can_be_given_by_id(delivery: InlineDelivery) -> None:
    study = new_study()
    study.add_trial(create_trial(value=1.0))
    given: dict[str, Any] = {"mlflow_kwargs": {"experiment_id": "0"}}
    assert _callback(delivery, **given).sync(study) == 1
    assert _trial_runs(delivery)[0].experiment_id == "0"
    assert _callback(delivery, **given).sync(study) == 0


def test_an_unreachable_mlflow_is_an_error(delivery: InlineDelivery) -> None:
    study = new_study()
    study.add_trial(create_trial(value=1.0))
    delivery.server.is_away = True
    with pytest.raises(MlflowException, match="away"):
        _callback(delivery).sync(study)


def test_a_new_trial_of_a_shared_study_is_left_to_its_own_process_for_20_seconds(
    delivery: InlineDelivery, tmp_path: Path
) -> None:
    study = _shared_study(tmp_path)
    study.add_trial(create_trial(value=1.0))
    began = delivery.clock.monotonic()
    assert _callback(delivery).sync(study) == 1
    assert _trial_runs(delivery).keys() == {0}
    assert 15.0 < delivery.clock.monotonic() - began < 25.0


@pytest.mark.parametrize("hours", [1, 9])
def test_a_trial_whose_end_lies_in_the_future_is_logged_after_20_seconds(
    hours: int, delivery: InlineDelivery, tmp_path: Path
) -> None:
    """Its worker's clock is wrong, or a database holds the local times of another time zone."""
    study = _shared_study(tmp_path)
    trial = create_trial(value=1.0)
    assert trial.datetime_start is not None
    trial.datetime_start += timedelta(hours=hours)
    trial.datetime_complete = trial.datetime_start
    study.add_trial(trial)
    began = delivery.clock.monotonic()
    assert _callback(delivery).sync(study) == 1
    assert _trial_runs(delivery).keys() == {0}
    assert delivery.clock.monotonic() - began < 25.0


def test_an_old_trial_of_a_shared_study_is_logged_at_once(
    delivery: InlineDelivery, tmp_path: Path
) -> None:
    study = _shared_study(tmp_path)
    study.add_trial(_old_trial(1.0))
    began = delivery.clock.monotonic()
    assert _callback(delivery).sync(study) == 1
    run = _trial_runs(delivery)[0]
    # Long enough to agree with others that log it at the same time.
    assert delivery.clock.monotonic() - began < 5.0
    trial = study.trials[0]
    assert trial.datetime_start is not None
    assert run.start_time == int(trial.datetime_start.timestamp() * 1000)
    again = _shared_study(tmp_path)  # as another process sees it
    assert _callback(delivery).sync(again) == 0


def test_a_trial_that_seems_to_end_in_an_hour_is_logged_in_20_seconds(
    delivery: InlineDelivery, tmp_path: Path
) -> None:
    study = _shared_study(tmp_path)
    trial = create_trial(value=1.0)
    assert trial.datetime_complete is not None
    trial.datetime_complete += timedelta(hours=1)
    study.add_trial(trial)
    began = delivery.clock.monotonic()
    assert _callback(delivery).sync(study) == 1
    assert _trial_runs(delivery).keys() == {0}
    assert delivery.clock.monotonic() - began < 25.0


def test_a_fresh_trial_of_a_study_in_memory_is_logged_at_once(delivery: InlineDelivery) -> None:
    study = new_study()
    study.tell(study.ask(), 1.0)
    began = delivery.clock.monotonic()
    assert _callback(delivery).sync(study) == 1
    assert _trial_runs(delivery).keys() == {0}
    assert delivery.clock.monotonic() - began < 1.0
