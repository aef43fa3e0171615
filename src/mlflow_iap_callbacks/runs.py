"""A run that is written to while it happens, and the experiment that it belongs to.

Callbacks only append; what is appended leaves in few requests. Nothing here raises into a training:
what cannot be delivered is kept in memory, sent with what follows and at exit, and told once; what
MLflow refuses is told and left out.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunStatus, RunTag
from mlflow.exceptions import MlflowException

from .client import RUN_KEY_TAG, find_run
from .errors import IAPError
from .names import mlflow_name
from .retry import RetryPolicy, seconds_left

_logger = logging.getLogger(__name__)

# The server's limits for one log_batch: mlflow.org/docs/latest/rest-api.html#log-batch
_MOST_METRICS, _MOST_PARAMS, _MOST_TAGS = 1000, 100, 100
_LONGEST_PARAM, _LONGEST_TAG = 6000, 8000
# Often enough to watch a training, seldom enough not to be felt in one.
_SECONDS_BETWEEN = 5.0
# For one delivery, so that a training does not wait long for a server that is away; less once that
# is known, and at exit for all that is left.
_PATIENT = RetryPolicy(deadline=20.0)
_IMPATIENT = RetryPolicy(deadline=1.0)
_AT_EXIT = RetryPolicy(deadline=30.0)


def now_ms() -> int:
    """Milliseconds since 1970, UTC, as MLflow counts time."""
    return time.time_ns() // 1_000_000


class Experiment:
    """The experiment called ``name``, made by whoever comes first; looked up once.

    Args:
        client: to look it up with.
        name: of the experiment.
    """

    def __init__(self, client: MlflowClient, name: str) -> None:
        self.client = client
        self.is_away = False  # whether the last delivery failed, and was told
        self._name = name
        self._lock = threading.Lock()
        self._id: str | None = None

    def id(self) -> str:
        """MLflow's id.

        Raises:
            MlflowException: the server cannot be reached.
        """
        with self._lock:
            if self._id is None:
                self._id = self._find() or self._create()
            return self._id

    def __reduce__(self) -> tuple[Any, ...]:
        return Experiment, (self.client, self._name)

    def _find(self) -> str | None:
        found = self.client.get_experiment_by_name(self._name)
        return None if found is None else str(found.experiment_id)

    def _create(self) -> str:
        try:
            return str(self.client.create_experiment(self._name))
        except MlflowException:  # another was first, or the answer was lost
            found = self._find()
            if found is None:
                raise
            return found


class RunWriter:
    """One run: made at the first delivery, written to from any thread, finished once.

    Args:
        experiment: that the run belongs to.
        run_name: shown in MLflow; None for one of MLflow's.
        start_time: milliseconds since 1970, UTC. Default: now.
        tags: given to the run when it is made.
    """

    def __init__(
        self,
        experiment: Experiment,
        *,
        run_name: str | None = None,
        start_time: int | None = None,
        tags: Mapping[str, Any] | None = None,
    ) -> None:
        self._experiment = experiment
        self._client = experiment.client
        self._run_name = run_name
        self._start_time = start_time or now_ms()
        self._key = uuid.uuid4().hex
        self._is_tried = False
        self._lock = threading.Lock()  # what waits
        self._delivery = threading.Lock()  # one delivery at a time: one writer per run
        self._run_id: str | None = None
        self._metrics: list[Metric] = []
        self._params: list[Param] = []
        self._tags: list[RunTag] = []
        self._known_params: dict[str, str] = {}
        self._skipped = 0
        self._renamed: set[str] = set()
        self._end: tuple[str, int] | None = None
        self._next_delivery = time.monotonic() + _SECONDS_BETWEEN
        self.set_tags(tags or {})
        _waiting.add(self)

    def log_metrics(
        self, values: Mapping[str, float], *, step: int = 0, timestamp: int | None = None
    ) -> None:
        """Append one point per name; NaN is counted instead, MLflow's run page breaks on it."""
        timestamp = timestamp or now_ms()
        for name, value in values.items():
            with self._lock, _never_raising(f"metric {name!r}"):
                if math.isnan(value):
                    self._skipped += 1
                else:
                    self._metrics.append(Metric(self._name(name), float(value), timestamp, step))
        if time.monotonic() > self._next_delivery:
            self.flush()

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Append params; values over 6,000 characters are cut, and the first value stays."""
        for name, value in params.items():
            with self._lock, _never_raising(f"param {name!r}"):
                text = _text(value, _LONGEST_PARAM)
                if name not in self._known_params:
                    self._known_params[name] = text
                    self._params.append(Param(self._name(name), text))
                elif self._known_params[name] != text:
                    raise ValueError(f"it is {self._known_params[name]!r}, not {text!r}, already")

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Append tags; values over 8,000 characters are cut."""
        for name, value in tags.items():
            with self._lock, _never_raising(f"tag {name!r}"):
                self._tags.append(RunTag(self._name(name), _text(value, _LONGEST_TAG)))

    def finish(self, status: str = "FINISHED", *, end_time: int | None = None) -> None:
        """Deliver what waits and end the run.

        Args:
            status: FINISHED, FAILED or KILLED.
            end_time: milliseconds since 1970, UTC. Default: now.
        """
        with self._lock:
            self._end = (status, end_time or now_ms())
            if self._skipped:
                self._tags.append(RunTag("mlflow_iap.skipped_nan_points", str(self._skipped)))
        self.flush()

    def flush(self) -> None:
        """Deliver what waits; what cannot be delivered goes on waiting."""
        with self._delivery:
            try:
                (_IMPATIENT if self._experiment.is_away else _PATIENT)(self._deliver)
                self._experiment.is_away = False
            except Exception as error:  # noqa: BLE001 - no training ends because of its log
                self._tell(error)
            self._next_delivery = time.monotonic() + _SECONDS_BETWEEN

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; None before the first delivery."""
        return self._run_id

    @property
    def has_undelivered(self) -> bool:
        """Whether something waits for delivery."""
        return bool(self._metrics or self._params or self._tags or self._end)

    def _deliver(self) -> None:
        run_id = self._run_id = self._run_id or self._create()
        while self._metrics or self._params or self._tags:
            with self._lock:
                metrics = self._metrics[:_MOST_METRICS]
                params = self._params[:_MOST_PARAMS]
                tags = self._tags[:_MOST_TAGS]
            # In all 1,000 entities, so params and tags are left for the next where they are many.
            metrics = metrics[: _MOST_METRICS - len(params) - len(tags)]
            self._log(run_id, [*metrics, *params, *tags])
            with self._lock:
                del self._metrics[: len(metrics)]
                del self._params[: len(params)]
                del self._tags[: len(tags)]
        if self._end is not None:
            status, end_time = self._end
            # set_terminated asks for the run first and prints two lines for each.
            self._client._tracking_client.store.update_run_info(
                run_id, RunStatus.from_string(status), end_time, None
            )
            self._end = None
            _waiting.discard(self)

    def _create(self) -> str:
        experiment_id = self._experiment.id()
        run = find_run(self._client, experiment_id, self._key) if self._is_tried else None
        self._is_tried = True
        if run is None:
            tags, name = {RUN_KEY_TAG: self._key}, self._run_name
            with self._lock:
                first, rest = self._tags[:_MOST_TAGS], self._tags[_MOST_TAGS:]
            tags |= {tag.key: tag.value for tag in first}
            run = self._client.create_run(experiment_id, self._start_time, tags, name)
            with self._lock:
                self._tags = rest + self._tags[len(first) + len(rest) :]
        return str(run.info.run_id)

    def _log(self, run_id: str, entities: Sequence[Metric | Param | RunTag]) -> None:
        try:
            self._client.log_batch(
                run_id,
                [entity for entity in entities if isinstance(entity, Metric)],
                [entity for entity in entities if isinstance(entity, Param)],
                [entity for entity in entities if isinstance(entity, RunTag)],
            )
        except MlflowException as error:
            if not _is_refused(error):
                raise
            if len(entities) == 1:
                _logger.warning("MLflow refuses %s, which is left out: %s", entities[0], error)
                return
            # Halve it until what is refused stands alone.
            middle = len(entities) // 2
            self._log(run_id, entities[:middle])
            self._log(run_id, entities[middle:])

    def _name(self, name: str) -> str:
        name = str(name)
        taken = mlflow_name(name)
        if taken != name and taken not in self._renamed:
            self._renamed.add(taken)
            tag = mlflow_name(f"mlflow_iap.name.{taken}")
            self._tags.append(RunTag(tag, _text(name, _LONGEST_TAG)))
        return taken

    def _tell(self, error: Exception) -> None:
        if not self._experiment.is_away:
            self._experiment.is_away = True
            _logger.warning(
                "MLflow could not be written to; training goes on, and what was logged is kept in "
                "memory and sent with what follows, at the latest at exit. %s",
                error,
            )


_waiting: set[RunWriter] = set()
if hasattr(os, "register_at_fork"):
    # What a process has yet to deliver is its own to deliver.
    os.register_at_fork(after_in_child=_waiting.clear)


@atexit.register
def _deliver_at_exit() -> None:
    def flush_all() -> None:
        for run in list(_waiting):
            if seconds_left() > 0:
                run.flush()

    _AT_EXIT(flush_all)
    lost = sum(run.has_undelivered for run in _waiting)
    if lost:
        _logger.warning("%d runs end without all that was logged: MLflow is still away.", lost)


@contextmanager
def _never_raising(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001 - no training ends because of its log
        _logger.warning("The %s was not logged: %s", what, error)


def _text(value: object, longest: int) -> str:
    return str(value).encode(errors="replace").decode()[:longest]


def _is_refused(error: MlflowException) -> bool:
    """Whether MLflow itself will never take it; IAP's refusals and lost connections may pass."""
    return error.error_code == "INVALID_PARAMETER_VALUE" and not isinstance(error, IAPError)
