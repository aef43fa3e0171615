"""What a run's records make MLflow do: few requests, in order, each safe to be repeated."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import requests
from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LifecycleStage,
    Metric,
    Param,
    Run,
    RunStatus,
    RunTag,
)
from mlflow.exceptions import MlflowException

from .client import RUN_KEY_TAG, IAPMlflowClient, errors_of_ours, find_run
from .errors import IAPError, IAPUnknownOutcomeError
from .names import mlflow_name
from .outbox import QueuedRun, Record, Refusal

# Given to a run by the journal that took it over, and to one whose process died.
JOURNAL_TAG = "mlflow_iap.journal"
ENDED_TAG = "mlflow_iap.ended"
# What a name was before it was made one that MLflow takes, and how many points are no numbers.
_NAME_TAG = "mlflow_iap.name"
_SKIPPED_TAG = "mlflow_iap.skipped_nan_points"

# The server's limits for one log_batch: mlflow.org/docs/latest/rest-api.html#log-batch
MOST_METRICS, MOST_PARAMS, MOST_TAGS = 1000, 100, 100
LONGEST_PARAM, LONGEST_TAG = 6000, 8000
_MOST_ENTITIES, _MOST_BYTES = 1000, 950_000
# Of an entity's JSON without its name and value.
_BYTES_AROUND = 150
# A server may yet make a run that it was asked for by a process that died, or gave up waiting.
_PATIENCE = 30.0
_REFUSED = frozenset(
    {"BAD_REQUEST", "INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST"}
)
# What no request can be made of: a file that is gone, a number out of bounds.
_NO_REQUEST = (
    *(FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError),
    *(OverflowError, TypeError, ValueError),
)
_REFUSED_STATUS = frozenset({400, 404, 413})

_NO_START: dict[str, Any] = {"time_ms": None, "tags": {}, "name": None, "is_resumed": True}
_JOINABLE = ("metrics", "params", "tags")

Entity = Metric | Param | RunTag


class NotYet(Exception):
    """The run cannot be written to for a while, through no fault of the server's.

    Args:
        why: for who asks what a run waits for.
        after: seconds; None for a while that grows.
    """

    def __init__(self, why: str, after: float | None = None) -> None:
        super().__init__(why)
        self.after = after


class _Batch:
    """What one log_batch carries: names and values that MLflow takes, and what it would not.

    Args:
        skipped: points of the run that were left out before.
    """

    def __init__(self, skipped: int) -> None:
        self.skipped = skipped
        self.records: list[Record] = []
        self.refused: list[Refusal] = []
        self._metrics: list[Metric] = []
        self._params: dict[str, str] = {}
        self._tags: dict[str, str] = {}
        self._size = 0

    def takes(self, record: Record) -> bool:
        """Add the record, if one request can carry it with what is there already."""
        content = record.content
        values = content[2] if record.kind == "metrics" else content
        names = {name: mlflow_name(name) for name in values}
        originals = _originals(names)
        is_metrics, is_params = record.kind == "metrics", record.kind == "params"
        params = {names[name]: value for name, value in values.items()} if is_params else {}
        tags = originals if is_metrics or is_params else _named(values)
        size = self._size + len(record.body) + _BYTES_AROUND * len(values)
        if self.records and not self._has_room(len(values) * is_metrics, params, tags, size):
            return False
        if is_metrics:
            self._add_points(content[0], content[1], values, names)
        self._params.update(params)
        self._tags.update(tags)
        self._size = size
        self.records.append(record)
        return True

    def entities(self) -> list[Entity]:
        """All of it."""
        params = [Param(name, value) for name, value in self._params.items()]
        tags = [RunTag(name, value) for name, value in self._tags.items()]
        return [*self._metrics, *params, *tags]

    def _has_room(
        self, points: int, params: dict[str, str], tags: dict[str, str], size: int
    ) -> bool:
        counts = (
            len(self._metrics) + points,
            len(self._params.keys() | params.keys()),
            len(self._tags.keys() | tags.keys()) + 1,
        )
        # MLflow takes no param twice in one request; of two values it is to judge itself.
        is_changed = any(self._params.get(name, value) != value for name, value in params.items())
        return (
            not is_changed
            and size <= _MOST_BYTES
            and counts[1] <= MOST_PARAMS
            and counts[2] <= MOST_TAGS
            and sum(counts) <= _MOST_ENTITIES
        )

    def _add_points(
        self, step: int, time_ms: int, values: dict[str, Any], names: dict[str, str]
    ) -> None:
        for name, value in values.items():
            try:
                number = float(value)
            except (TypeError, ValueError) as error:
                content = (step, time_ms, {name: value})
                self.refused.append(Refusal("metrics", content, str(error)))
                continue
            if math.isnan(number):  # MLflow's run page breaks on it
                self.skipped += 1
                self._tags[_SKIPPED_TAG] = str(self.skipped)
            else:
                self._metrics.append(Metric(names[name], number, time_ms, step))


class Delivery:
    """Turns records into calls of ``client``, one request at a time.

    Args:
        client: any MlflowClient; thread-safe, as MLflow's are.
    """

    def __init__(self, client: MlflowClient) -> None:
        self.client = client
        self._experiments: dict[str, str] = {}
        self._starting: dict[str, QueuedRun] = {}
        self._lock = threading.Lock()

    def send(
        self, run: QueuedRun, records: Sequence[Record]
    ) -> tuple[Sequence[Record], Sequence[Refusal]]:
        """Deliver as many of the run's oldest records as one request takes.

        Args:
            run: theirs.
            records: at least one.

        Returns:
            The records that are done with, and what of them MLflow refuses for good.

        Raises:
            NotYet: the run waits for something.
            MlflowException, requests.RequestException: the server cannot be written to; nothing
                is lost if the same records are sent again.
        """
        try:
            if run.refused is None:
                return self._send(run, records)
        except Exception as error:
            reason = refusal(error)
            if reason is None:
                raise
            if run.run_id is not None:
                return records[:1], [_refused(records[0], reason)]
            run.refused = reason
            run.outbox.save(run)
        return records, [_refused(record, str(run.refused)) for record in records]

    def _send(
        self, run: QueuedRun, records: Sequence[Record]
    ) -> tuple[Sequence[Record], Sequence[Refusal]]:
        kind = records[0].kind
        if kind in _JOINABLE:
            return self._log(run, self._known(run), records)
        content = records[0].content
        if kind == "start":
            with self._alone(run):
                self._start(run, content)
        elif kind == "artifact":
            path = run.outbox.artifact(content["path"], is_copied=content["is_copied"])
            self.client.log_artifact(self._known(run), path, content["to"])
        elif kind == "input":
            tags = [InputTag(name, value) for name, value in content["tags"].items()]
            dataset = DatasetInput(Dataset(**content["dataset"]), tags)
            self.client.log_inputs(self._known(run), [dataset])
        elif kind == "finish":
            self._end(self._known(run), **content)
        else:
            self._abandon(run, self._known(run), **content)
        return records[:1], ()

    @contextmanager
    def _alone(self, run: QueuedRun) -> Iterator[None]:
        """Two that go on with one run look for it one after the other."""
        if self._starting.setdefault(run.key, run) is not run:
            raise NotYet("It is being created.", 0.5)
        try:
            yield
        finally:
            del self._starting[run.key]

    def _start(self, run: QueuedRun, content: dict[str, Any]) -> None:
        if run.run_id is not None:
            return
        experiment_id = self._experiment_id(run.experiment)
        found = None
        if content["is_resumed"] or run.tried is not None or run.outbox.is_adopted:
            found = find_run(self.client, experiment_id, run.key)
        if found is None:
            self._wait_for_earlier_try(run)
            found = self._create(run, experiment_id, content)
        elif content["is_resumed"] and not run.outbox.is_adopted:
            self._resume(run, found)
        run.run_id = str(found.info.run_id)
        run.outbox.save(run)

    def _resume(self, run: QueuedRun, found: Run) -> None:
        run_id = found.info.run_id
        self.client.set_tag(run_id, JOURNAL_TAG, run.outbox.name)
        if ENDED_TAG in found.data.tags:
            self.client.delete_tag(run_id, ENDED_TAG)
        if found.info.status != "RUNNING":
            self._update(run_id, "RUNNING", None)

    def _wait_for_earlier_try(self, run: QueuedRun) -> None:
        since = time.time() - (run.tried or 0.0)
        if 0 <= since < _PATIENCE:
            raise NotYet(
                "The answer to its creation was lost; it is created again if it does not show up.",
                _PATIENCE - since,
            )

    def _create(self, run: QueuedRun, experiment_id: str, content: dict[str, Any]) -> Run:
        tags = {RUN_KEY_TAG: run.key, **_named(content["tags"])}
        if content["is_resumed"]:
            tags[JOURNAL_TAG] = run.outbox.name
        run.tried = time.time()
        run.outbox.save(run)
        try:
            return self.client.create_run(experiment_id, content["time_ms"], tags, content["name"])
        except Exception as error:
            # Of other clients it is not known what their errors say about the run.
            is_unknown = isinstance(error, IAPUnknownOutcomeError)
            is_unknown |= not isinstance(self.client, IAPMlflowClient)
            run.tried = time.time() if is_unknown else None
            run.outbox.save(run)
            if refusal(error) is not None:
                self._experiments.pop(run.experiment, None)
            raise

    def _known(self, run: QueuedRun) -> str:
        if run.run_id is None and run.is_owned:  # its start was lost: no room, or damage
            self._start(run, _NO_START)
        if run.run_id is None:
            found = find_run(self.client, self._experiment_id(run.experiment), run.key)
            if found is None:
                raise NotYet("It is created by another process, which has not done so yet.")
            run.run_id = str(found.info.run_id)
            run.outbox.save(run)
        return run.run_id

    def _log(
        self, run: QueuedRun, run_id: str, records: Sequence[Record]
    ) -> tuple[Sequence[Record], Sequence[Refusal]]:
        batch = _Batch(run.skipped)
        for record in records:
            if record.kind not in _JOINABLE or not batch.takes(record):
                break
        entities, refused = batch.entities(), batch.refused
        try:
            if entities:
                self._log_entities(run_id, entities)
        except Exception as error:
            if refusal(error) is None:
                raise
            if self._is_gone(run_id):
                run.run_id = None
                raise
            refused += self._log_halves(run_id, entities, error)
        run.skipped = batch.skipped
        return batch.records, refused

    def _is_gone(self, run_id: str) -> bool:
        """Whether the run itself is what is refused, and nothing else need be tried."""
        try:
            return bool(self.client.get_run(run_id).info.lifecycle_stage != LifecycleStage.ACTIVE)
        except Exception as error:
            if refusal(error) is None:
                raise
            return True

    def _log_halves(
        self, run_id: str, entities: Sequence[Entity], error: Exception
    ) -> Iterable[Refusal]:
        """Halve what was refused until what is to blame stands alone."""
        if len(entities) == 1:
            yield _entity_refusal(entities[0], str(refusal(error)))
            return
        middle = len(entities) // 2
        for half in (entities[:middle], entities[middle:]):
            try:
                self._log_entities(run_id, half)
            except Exception as half_error:
                if refusal(half_error) is None:
                    raise
                yield from self._log_halves(run_id, half, half_error)

    def _log_entities(self, run_id: str, entities: Sequence[Entity]) -> None:
        metrics = [entity for entity in entities if isinstance(entity, Metric)]
        params = [entity for entity in entities if isinstance(entity, Param)]
        tags = [entity for entity in entities if isinstance(entity, RunTag)]
        # One request, but for the tags of a great many names that MLflow does not take.
        while metrics or params or tags:
            some_params, some_tags = params[:MOST_PARAMS], tags[:MOST_TAGS]
            room = _MOST_ENTITIES - len(some_params) - len(some_tags)
            self.client.log_batch(run_id, metrics[:room], some_params, some_tags)
            del metrics[:room], params[:MOST_PARAMS], tags[:MOST_TAGS]

    def _abandon(self, run: QueuedRun, run_id: str, *, time_ms: int, text: str) -> None:
        """End a run whose process died, unless it was ended, or another goes on with it."""
        found = self.client.get_run(run_id)
        journal = found.data.tags.get(JOURNAL_TAG, run.outbox.name)
        if found.info.status == "RUNNING" and journal == run.outbox.name:
            self.client.set_tag(run_id, ENDED_TAG, text)
            self._update(run_id, "FAILED", time_ms)

    def _end(self, run_id: str, *, status: str, time_ms: int) -> None:
        self._update(run_id, status, time_ms)

    def _update(self, run_id: str, status: str, time_ms: int | None) -> None:
        # The public set_terminated asks for the run first and prints two lines for each.
        store = self.client._tracking_client.store
        with errors_of_ours():
            store.update_run_info(run_id, RunStatus.from_string(status), time_ms, None)

    def _experiment_id(self, name: str) -> str:
        """Of the experiment called ``name``, made by whoever comes first."""
        with self._lock:
            if name not in self._experiments:
                self._experiments[name] = self._find_experiment(name) or self._make(name)
            return self._experiments[name]

    def _find_experiment(self, name: str) -> str | None:
        found = self.client.get_experiment_by_name(name)
        return None if found is None else str(found.experiment_id)

    def _make(self, name: str) -> str:
        try:
            return str(self.client.create_experiment(name))
        except MlflowException:  # another was first, or the answer was lost
            found = self._find_experiment(name)
            if found is None:
                raise
            return found


def refusal(error: Exception) -> str | None:
    """Why MLflow will never take what it was sent; None where it may yet."""
    if isinstance(error, IAPError | NotYet):
        return None
    if isinstance(error, MlflowException):
        return str(error.message) if error.error_code in _REFUSED else None
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return str(error) if error.response.status_code in _REFUSED_STATUS else None
    if isinstance(error, requests.RequestException):
        return None
    return f"{type(error).__name__}: {error}" if isinstance(error, _NO_REQUEST) else None


def _named(tags: Mapping[str, str]) -> dict[str, str]:
    """The tags under names that MLflow takes, and those that say what they were called."""
    names = {name: mlflow_name(name) for name in tags}
    return {**{names[name]: text for name, text in tags.items()}, **_originals(names)}


def _originals(names: Mapping[str, str]) -> dict[str, str]:
    """Tags for what goes by another name."""
    return {
        mlflow_name(f"{_NAME_TAG}.{taken}"): name[:LONGEST_TAG]
        for name, taken in names.items()
        if name != taken
    }


def _refused(record: Record, reason: str) -> Refusal:
    return Refusal(record.kind, record.content, reason)


def _entity_refusal(entity: Entity, reason: str) -> Refusal:
    if isinstance(entity, Metric):
        content = (entity.step, entity.timestamp, {entity.key: entity.value})
        return Refusal("metrics", content, reason)
    kind = "params" if isinstance(entity, Param) else "tags"
    return Refusal(kind, {entity.key: entity.value}, reason)
