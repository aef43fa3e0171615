"""A run as the active one of MLflow's fluent API, without a wait until that is used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlflow
from mlflow import ActiveRun
from mlflow.entities import Run
from mlflow.tracking import fluent

from ..delivery.run_writer import RunWriter


class _LazyRun(ActiveRun):
    """Asks for itself when something of it is needed: the first call of the fluent API."""

    def __init__(self, run: RunWriter) -> None:
        self.writer = run
        self._found: Run | None = None

    @property
    def _itself(self) -> Run:
        if self._found is None:
            self._found = self.writer.client.get_run(self.writer.run_id())
            # MLflow asks a run for its id before it begins one under it.
            setattr(fluent, "_active_experiment_id", self._found.info.experiment_id)  # noqa: B010
        return self._found

    @property
    def info(self) -> Any:
        return self._itself.info

    @property
    def data(self) -> Any:
        return self._itself.data

    @property
    def inputs(self) -> Any:
        return self._itself.inputs

    @property
    def outputs(self) -> Any:
        return self._itself.outputs


@contextmanager
def active(run: RunWriter) -> Iterator[None]:
    """Let ``mlflow.log_metric`` and the like write to the run, in this thread.

    A run that was active before is so again afterwards. The tracking URI of the fluent API becomes
    the run's, for the whole process.
    """
    if mlflow.get_tracking_uri() != run.client.tracking_uri:
        mlflow.set_tracking_uri(run.client.tracking_uri)
    # mlflow.start_run would wait for the server, twice.
    stack = fluent._active_run_stack.get()
    lazy = _LazyRun(run)
    stack.append(lazy)
    try:
        yield
    finally:
        stack[:] = [each for each in stack if each is not lazy]
