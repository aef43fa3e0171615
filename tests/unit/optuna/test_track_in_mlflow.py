"""The active run of MLflow's fluent API in a tracked objective."""

from __future__ import annotations

import threading

import mlflow
import optuna
import pytest

from inline_delivery import InlineDelivery
from mlflow_iap_callbacks import IAPLightGBMCallback, IAPMLflowCallback
from optuna_helpers import TRIAL_TAG, new_study

pytestmark = pytest.mark.usefixtures("fluent_state")


def _callback(delivery: InlineDelivery) -> IAPMLflowCallback:
    return IAPMLflowCallback(client=delivery.client, study_run=False)


def _active_id() -> str:
    active = mlflow.active_run()
    assert active is not None
    return str(active.info.run_id)


def test_the_run_of_the_trial_is_active_only_in_its_objective(
    delivery: InlineDelivery,
) -> None:
    callback = _callback(delivery)
    active: list[str] = []

    @callback.track_in_mlflow()
    def objective(trial: optuna.Trial) -> float:
        active.append(_active_id())
        return 1.0

    new_study().optimize(objective, 2, callbacks=[callback])
    assert active == [run.run_id for run in delivery.runs()]
    assert mlflow.active_run() is None
    assert mlflow.get_tracking_uri() == delivery.server.uri


def test_an_objective_that_does_not_use_mlflow_does_not_wait_for_the_server(
    delivery: InlineDelivery,
) -> None:
    callback = _callback(delivery)
    asked: list[list[str]] = []

    @callback.track_in_mlflow()
    def objective(trial: optuna.Trial) -> float:
        assert mlflow.active_run() is not None
        asked.append(list(delivery.server.calls))
        return 1.0

    new_study().optimize(objective, 1, callbacks=[callback])
    assert asked == [[]]


def test_objectives_in_threads_each_have_their_own_active_run(delivery: InlineDelivery) -> None:
    callback = _callback(delivery)
    all_are_there = threading.Barrier(3)
    active: dict[int, str] = {}

    @callback.track_in_mlflow()
    def objective(trial: optuna.Trial) -> float:
        all_are_there.wait(30.0)
        active[trial.number] = _active_id()
        all_are_there.wait(30.0)
        return 1.0

    new_study().optimize(objective, 3, n_jobs=3, callbacks=[callback])
    assert active == {int(run.tags[TRIAL_TAG]): run.run_id for run in delivery.runs()}


def test_a_run_that_is_active_when_the_study_starts_stays_active_and_unchanged(
    delivery: InlineDelivery,
) -> None:
    callback = _callback(delivery)
    client = delivery.client
    outer = mlflow.ActiveRun(client.create_run("0"))
    stack = mlflow.tracking.fluent._active_run_stack.get()
    stack.append(outer)

    @callback.track_in_mlflow()
    def objective(trial: optuna.Trial) -> float:
        assert _active_id() != outer.info.run_id
        return 1.0

    new_study().optimize(objective, 1, callbacks=[callback])
    assert mlflow.active_run() is outer
    stack.clear()
    assert delivery.runs()[0].tags == {"mlflow.runName": "run-0"}


def test_a_run_that_the_objective_leaves_open_is_not_mistaken_for_the_trials(
    delivery: InlineDelivery,
) -> None:
    callback = _callback(delivery)
    inner = mlflow.ActiveRun(delivery.client.create_run("0"))
    stack = mlflow.tracking.fluent._active_run_stack.get()

    @callback.track_in_mlflow()
    def objective(trial: optuna.Trial) -> float:
        mlflow.tracking.fluent._active_run_stack.get().append(inner)
        return 1.0

    new_study().optimize(objective, 1, callbacks=[callback])
    assert stack == [inner]
    stack.clear()


@pytest.mark.parametrize("is_caught", [True, False])
def test_the_reason_of_a_failure_is_logged_once_even_if_the_study_catches_it(
    delivery_of_files: InlineDelivery, is_caught: bool
) -> None:
    callback = _callback(delivery_of_files)

    @callback.track_in_mlflow()
    def objective(trial: optuna.Trial) -> float:
        raise ValueError("by hand")

    study = new_study()
    if is_caught:
        study.optimize(objective, 1, callbacks=[callback], catch=ValueError)
    else:
        with pytest.raises(ValueError, match="by hand"):
            study.optimize(objective, 1, callbacks=[callback])
        run = delivery_of_files.run()
        assert (run.status, run.tags["error"]) == ("RUNNING", "ValueError: by hand")
        assert callback.sync(study) == 1
    run = delivery_of_files.run()
    assert (run.status, run.tags["error"]) == ("FAILED", "ValueError: by hand")
    assert run.artifacts["traceback.txt"].endswith(b"ValueError: by hand\n")
    assert delivery_of_files.server.calls.count("log_artifact") == 1
    assert mlflow.active_run() is None


def test_a_pruned_objective_has_no_traceback(delivery_of_files: InlineDelivery) -> None:
    callback = _callback(delivery_of_files)

    @callback.track_in_mlflow()
    def objective(trial: optuna.Trial) -> float:
        raise optuna.TrialPruned

    new_study().optimize(objective, 1, callbacks=[callback])
    run = delivery_of_files.run()
    assert (run.status, run.artifacts) == ("KILLED", {})
    assert "error" not in run.tags
    assert mlflow.active_run() is None


def test_a_tracked_objective_keeps_its_name_and_what_it_returns(delivery: InlineDelivery) -> None:
    @_callback(delivery).track_in_mlflow()
    def my_objective(trial: optuna.Trial) -> tuple[float, float]:
        """Mine."""
        return 1.0, 2.0

    assert (my_objective.__name__, my_objective.__doc__) == ("my_objective", "Mine.")
    study = new_study("minimize", "maximize")
    study.optimize(my_objective, 1)
    assert study.trials[0].values == [1.0, 2.0]


def test_the_active_run_of_a_tracked_objective_can_be_passed_to_the_lightgbm_callback(
    delivery: InlineDelivery,
) -> None:
    callback = _callback(delivery)
    found = []

    @callback.track_in_mlflow()
    def objective(trial: optuna.Trial) -> float:
        logged = IAPLightGBMCallback(run=mlflow.active_run())
        found.append(logged.run is callback.run(trial))
        return 1.0

    new_study().optimize(objective, 1, callbacks=[callback])
    assert found == [True]
    assert "get_run" not in delivery.server.calls
