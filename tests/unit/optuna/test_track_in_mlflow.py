"""The active run of MLflow's fluent API in a tracked objective."""

from __future__ import annotations

import logging
import threading

import mlflow
import optuna
import pytest

from inline_delivery import InlineDelivery
from mlflow_iap_callbacks import IAPLightGBMCallback, IAPMLflowCallback
from optuna_helpers import TRIAL_TAG, new_study
from own_log import said_by_us

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


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Ids and statuses of the runs that ``mlflow.end_run`` ends, without a server."""
    found: list[tuple[str, str]] = []

    def end_run(status: str = "FINISHED") -> None:
        found.append((mlflow.tracking.fluent._active_run_stack.get().pop().info.run_id, status))

    monkeypatch.setattr(mlflow, "end_run", end_run)
    return found


def _start_run(delivery: InlineDelivery) -> mlflow.ActiveRun:
    run = mlflow.ActiveRun(delivery.client.create_run("0"))
    mlflow.tracking.fluent._active_run_stack.get().append(run)
    return run


@pytest.mark.parametrize("is_failing", [False, True])
def test_a_run_that_the_objective_leaves_open_ends_with_it(
    delivery: InlineDelivery, ended: list[tuple[str, str]], is_failing: bool
) -> None:
    callback = _callback(delivery)
    inner: list[str] = []

    @callback.track_in_mlflow()
    def objective(trial: optuna.Trial) -> float:
        inner.append(_start_run(delivery).info.run_id)
        if is_failing:
            raise ValueError("by hand")
        return 1.0

    new_study().optimize(objective, 2, callbacks=[callback], catch=ValueError)
    assert ended == [(run_id, "FAILED" if is_failing else "FINISHED") for run_id in inner]
    assert mlflow.active_run() is None


def test_ending_the_trials_run_in_an_objective_affects_no_other_trial_and_no_outer_run(
    delivery: InlineDelivery, ended: list[tuple[str, str]]
) -> None:
    callback = _callback(delivery)
    outer = _start_run(delivery)
    active: list[str] = []

    @callback.track_in_mlflow()
    def objective(trial: optuna.Trial) -> float:
        active.append(_active_id())
        mlflow.end_run()
        assert mlflow.active_run() is None
        _start_run(delivery)  # as mlflow.log_metric would
        return 1.0

    new_study().optimize(objective, 2, callbacks=[callback])
    of_trials = [run.run_id for run in delivery.runs() if TRIAL_TAG in run.tags]
    assert active == of_trials
    assert outer.info.run_id not in dict(ended)
    assert mlflow.active_run() is outer
    assert [run.status for run in delivery.runs() if TRIAL_TAG in run.tags] == ["FINISHED"] * 2


@pytest.mark.parametrize("is_chosen_inside", [False, True])
def test_the_active_experiment_is_the_trials_only_in_an_objective(
    delivery: InlineDelivery, is_chosen_inside: bool
) -> None:
    callback = _callback(delivery)
    fluent = mlflow.tracking.fluent
    fluent._active_experiment_id = "17"  # type: ignore[assignment]

    @callback.track_in_mlflow()
    def objective(trial: optuna.Trial) -> float:
        run_id = _active_id()
        assert fluent._get_experiment_id() == delivery.server.runs[run_id].experiment_id
        if is_chosen_inside:
            fluent._active_experiment_id = "18"  # type: ignore[assignment]
        return 1.0

    new_study().optimize(objective, 1, callbacks=[callback])
    assert fluent._get_experiment_id() == ("18" if is_chosen_inside else "17")
    assert fluent._last_active_run_id.get() == delivery.run().run_id


def test_a_trial_that_does_not_know_its_study_logs_to_the_run_that_is_active_outside(
    delivery: InlineDelivery, caplog: pytest.LogCaptureFixture, ended: list[tuple[str, str]]
) -> None:
    callback = _callback(delivery)
    active: list[str] = []

    @callback.track_in_mlflow()
    def objective(trial: optuna.Trial) -> float:
        active.append(_active_id())
        left_open.append(_start_run(delivery).info.run_id)
        return trial.suggest_float("x", 0.0, 1.0)

    left_open: list[str] = []
    outer = _start_run(delivery)
    with caplog.at_level(logging.WARNING, "mlflow_iap_callbacks"):
        for _ in range(2):
            assert objective(optuna.trial.FixedTrial({"x": 0.5})) == 0.5
    (message,) = said_by_us(caplog)
    assert message.startswith("A FixedTrial does not know its study")
    assert active == [outer.info.run_id] * 2
    assert ended == [(run_id, "FINISHED") for run_id in left_open]
    assert mlflow.active_run() is outer


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
