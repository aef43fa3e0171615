"""What ``sync`` adds to MLflow, and what it leaves to others."""

from __future__ import annotations

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
from optuna_helpers import TRIAL_TAG, new_study


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
    trial = create_trial(value=value)
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
