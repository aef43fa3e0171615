"""Lets an objective log to its trial's run with MLflow's fluent API."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import mlflow
from mlflow import ActiveRun
from mlflow.entities import Run
from mlflow.tracking import fluent

from ..delivery.run_writer import IAPRun

if TYPE_CHECKING:
    import optuna

_T = TypeVar("_T")


def tracked(
    objective: Callable[[optuna.Trial], _T],
    run_of: Callable[[optuna.Trial], IAPRun],
    when_failed: Callable[[IAPRun, BaseException], None],
) -> Callable[[optuna.Trial], _T]:
    """Wrap an objective so that the trial's run, which ``run_of`` returns, is the active one.

    ``when_failed`` is called with an exception of the objective, unless it prunes the trial.
    """

    @functools.wraps(objective)
    def call(trial: optuna.Trial) -> _T:
        from optuna import TrialPruned

        run = run_of(trial)
        with _active(run):
            try:
                return objective(trial)
            except TrialPruned:
                raise
            except BaseException as error:
                # Optuna calls no callback for an exception that the study does not catch.
                when_failed(run, error)
                raise

    return call


class _LazyRun(ActiveRun):
    """Waits for its run only at the first call of the fluent API."""

    def __init__(self, writer: IAPRun) -> None:
        self.writer = writer

    @functools.cached_property
    def _run(self) -> Run:
        run = self.writer.client.get_run(self.writer.run_id())
        # MLflow reads a run's id before it starts a nested run.
        setattr(fluent, "_active_experiment_id", run.info.experiment_id)  # noqa: B010
        return run

    info = property(lambda self: self._run.info)
    data = property(lambda self: self._run.data)
    inputs = property(lambda self: self._run.inputs)
    outputs = property(lambda self: self._run.outputs)


@contextmanager
def _active(run: IAPRun) -> Iterator[None]:
    """Make a run the active one in this thread, and restore the previous one afterwards.

    The fluent API gets the run's tracking URI, in the whole process.
    """
    if mlflow.get_tracking_uri() != run.client.tracking_uri:
        mlflow.set_tracking_uri(run.client.tracking_uri)
    # mlflow.start_run would wait for the server, twice.
    stack: list[Any] = fluent._active_run_stack.get()
    lazy = _LazyRun(run)
    stack.append(lazy)
    try:
        yield
    finally:
        stack[:] = [each for each in stack if each is not lazy]
