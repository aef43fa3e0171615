"""Lets an objective log to its trial's run with MLflow's fluent API."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import mlflow
from mlflow import ActiveRun
from mlflow.entities import Run
from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
from mlflow.tracking import fluent

from ..delivery.never_raising import never_raising
from ..delivery.run import IAPRun
from ..delivery.thread_signals import start_without_signals
from ..iap.arguments import check

if TYPE_CHECKING:
    import optuna

_T = TypeVar("_T")

_SECONDS_FOR_SYSTEM_METRICS = 10.0  # for the last ones, at the end of a trial


def tracked(
    objective: Callable[[optuna.Trial], _T],
    run_of: Callable[[optuna.Trial], IAPRun | None],
    when_failed: Callable[[IAPRun, BaseException], None],
) -> Callable[[optuna.Trial], _T]:
    """Wrap an objective so that the trial's run, which ``run_of`` returns, is the active one.

    If it returns None, only the runs that the objective leaves open are ended. ``when_failed`` is
    called with an exception of the objective, unless it prunes the trial.
    """

    check("objective", objective)

    @functools.wraps(objective)
    def call(trial: optuna.Trial) -> _T:
        from optuna import TrialPruned

        run = run_of(trial)
        with ExitStack() as stack:
            if run is None:
                stack.enter_context(_ending_runs())
            else:
                stack.enter_context(_active(run))
                stack.enter_context(_system_metrics(run))
            try:
                return objective(trial)
            except TrialPruned:
                raise
            except BaseException as error:
                # Optuna calls no callback for an exception that the study does not catch.
                if run is not None:
                    when_failed(run, error)
                raise

    return call


class _ActiveExperiment:
    """The process's active experiment in the fluent API, while objectives are tracked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._objectives = 0
        self._previous: str | None = None
        self._given: str | None = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._objectives:
                self._previous = self._given = fluent._active_experiment_id
            self._objectives += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._objectives -= 1
            # The user may have chosen another one meanwhile.
            if not self._objectives and fluent._active_experiment_id == self._given:
                setattr(fluent, "_active_experiment_id", self._previous)  # noqa: B010

    def set(self, experiment_id: str) -> None:
        """Let nested runs go to this experiment."""
        with self._lock:
            self._given = experiment_id
            setattr(fluent, "_active_experiment_id", experiment_id)  # noqa: B010


_active_experiment = _ActiveExperiment()


class _LazyRun(ActiveRun):
    """Waits for its run only at the first call of the fluent API."""

    def __init__(self, writer: IAPRun) -> None:
        self.writer = writer

    @functools.cached_property
    def _run(self) -> Run:
        run = self.writer.client.get_run(self.writer.run_id())
        # MLflow reads a run's id before it starts a nested run.
        _active_experiment.set(run.info.experiment_id)
        return run

    info = property(lambda self: self._run.info)
    data = property(lambda self: self._run.data)
    inputs = property(lambda self: self._run.inputs)
    outputs = property(lambda self: self._run.outputs)


@contextmanager
def _active(run: IAPRun) -> Iterator[None]:
    """Make a run the active one in this thread, and restore the previous ones afterwards.

    The fluent API gets the run's tracking URI, in the whole process. It does not see the previous
    runs, so that ``mlflow.end_run`` cannot end them.
    """
    if mlflow.get_tracking_uri() != run.client.tracking_uri:
        mlflow.set_tracking_uri(run.client.tracking_uri)
    # mlflow.start_run would wait for the server, twice.
    stack: list[Any] = fluent._active_run_stack.get()
    previous = [*stack]
    lazy = _LazyRun(run)
    stack[:] = [lazy]
    try:
        with _active_experiment, _ending_runs():
            yield
    finally:
        stack[:] = previous
        if run.known_id is not None:
            fluent._last_active_run_id.set(run.known_id)


@contextmanager
def _ending_runs() -> Iterator[None]:
    """End the runs that are started in this thread and left open."""
    stack: list[Any] = fluent._active_run_stack.get()
    previous = [*stack]
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    finally:
        while stack and stack[-1] not in previous:
            with never_raising("the end of a run that an objective left open"):
                mlflow.end_run(status)


@contextmanager
def _system_metrics(run: IAPRun) -> Iterator[None]:
    """Log system metrics to a run if they are switched on, in a thread that waits for its id."""
    if not MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get():
        yield
        return
    is_over = threading.Event()

    def log() -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        with never_raising("system metrics"):
            monitor = SystemMetricsMonitor(run.run_id())
            monitor.start()
            is_over.wait()
            monitor.finish()

    thread = threading.Thread(target=log, name="mlflow-iap-system-metrics", daemon=True)
    start_without_signals(thread)
    try:
        yield
    finally:
        is_over.set()
        thread.join(_SECONDS_FOR_SYSTEM_METRICS)
