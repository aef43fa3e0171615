"""What a run's records make MLflow do: few requests, in order, each safe to be repeated."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LifecycleStage,
    Metric,
    Param,
    RunTag,
)
from mlflow.exceptions import MlflowException

from ..outbox import QueuedRun, Record, Refusal
from .models import log_model
from .names import MOST_TAGS, mlflow_name, original_names, with_names_that_mlflow_takes
from .refusals import NotYet, refusal
from .run_creation import ENDED_TAG, JOURNAL_TAG, Starter

# How many points are no numbers.
_SKIPPED_TAG = "mlflow_iap.skipped_nan_points"

# The server's limits for one log_batch: mlflow.org/docs/latest/rest-api.html#log-batch
MOST_METRICS, MOST_PARAMS = 1000, 100
LONGEST_PARAM = 6000
_MOST_ENTITIES, _MOST_BYTES = 1000, 950_000
_MOST_INPUTS = 10  # each with a schema of up to 100 kB
# Of an entity's JSON without its name and value.
_BYTES_AROUND = 150

_POINTS = ("metrics", "curve")
_JOINABLE = ("metrics", "curve", "params", "suggestions", "tags")

Entity = Metric | Param | RunTag


class _Batch:
    """What one log_batch carries: names and values that MLflow takes, and what it would not.

    Args:
        skipped: points of the run that were left out before.
    """

    def __init__(self, skipped: int) -> None:
        self.skipped = skipped
        self.records: list[Record] = []
        self.refused: list[Refusal] = []
        self.other_names: dict[str, str] = {}  # for params that have another value already
        self._metrics: list[Metric] = []
        self._params: dict[str, str] = {}
        self._tags: dict[str, str] = {}
        self._size = 0

    def takes(self, record: Record) -> bool:
        """Add the record, if one request can carry it with what is there already."""
        content = record.content
        is_points, is_params = record.kind in _POINTS, record.kind in ("params", "suggestions")
        values: dict[str, Any]
        points: list[tuple[int, int, dict[str, Any]]]
        if record.kind == "curve":
            name, time_ms, curve = content
            values, points = {name: None}, [(step, time_ms, {name: value}) for step, value in curve]
        else:
            values, points = (content[2], [content]) if is_points else (content, [])
        count = sum(len(point[2]) for point in points)
        names = {name: mlflow_name(name) for name in values}
        originals = original_names(names)
        params = {names[name]: value for name, value in values.items()} if is_params else {}
        tags = originals if is_points or is_params else with_names_that_mlflow_takes(values)
        around = _BYTES_AROUND + (len(name) if record.kind == "curve" else 0)
        size = self._size + len(record.body) + around * (count or len(values))
        if self.records and not self._has_room(count, params, tags, size):
            return False
        for step, time_ms, values_then in points:
            self._add_points(step, time_ms, values_then, names)
        self._params.update(params)
        if record.kind == "suggestions":
            self.other_names |= {taken: f"suggested.{name}" for name, taken in names.items()}
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
        self._starter = Starter(client)

    @property
    def client(self) -> MlflowClient:
        """What it calls; may be replaced by another one for the same server."""
        return self._starter.client

    @client.setter
    def client(self, client: MlflowClient) -> None:
        self._starter.client = client

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
            self._starter.refuse(run)
            run.outbox.save(run)
        if records[0].kind == "start":
            self._starter.refuse(run)  # by an earlier process, say
        return records, [_refused(record, str(run.refused)) for record in records]

    def _send(
        self, run: QueuedRun, records: Sequence[Record]
    ) -> tuple[Sequence[Record], Sequence[Refusal]]:
        kind, content = records[0].kind, records[0].content
        if kind == "start":
            self._starter.start(run, content)
            return records[:1], ()
        run_id = self._starter.known(run)
        if kind in _JOINABLE:
            return self._log(run, run_id, records)
        if kind == "artifact":
            path = run.outbox.artifact(content["path"], is_copied=content["is_copied"])
            self.client.log_artifact(run_id, path, content["to"])
        elif kind == "model":
            path = run.outbox.artifact(content["path"], is_copied=True)
            log_model(self.client, run_id, path, content)
        elif kind == "input":
            inputs = [*takewhile(lambda record: record.kind == "input", records)][:_MOST_INPUTS]
            self._log_inputs(run_id, [_input(record.content) for record in inputs])
            return inputs, ()
        elif kind == "reopen":
            found = self.client.get_run(run_id)
            if found.info.status != "RUNNING" or ENDED_TAG in found.data.tags:
                self._starter.reopen(run, found)
        elif kind == "finish":
            self._starter.end(run, **content)
        else:
            self._abandon(run, run_id, **content)
        return records[:1], ()

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
            refused += self._log_halves(run_id, entities, batch.other_names, error)
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
        self,
        run_id: str,
        entities: Sequence[Entity],
        other_names: Mapping[str, str],
        error: Exception,
    ) -> Iterable[Refusal]:
        """Halve what was refused until what is to blame stands alone."""
        if len(entities) == 1:
            entity = entities[0]
            if isinstance(entity, Param) and entity.key in other_names:
                middle, entities = 0, [Param(mlflow_name(other_names[entity.key]), entity.value)]
            else:
                yield _entity_refusal(entity, str(refusal(error)))
                return
        else:
            middle = len(entities) // 2
        for half in filter(None, (entities[:middle], entities[middle:])):
            try:
                self._log_entities(run_id, half)
            except Exception as half_error:
                if refusal(half_error) is None:
                    raise
                yield from self._log_halves(run_id, half, other_names, half_error)

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

    def _log_inputs(self, run_id: str, inputs: list[DatasetInput]) -> None:
        try:
            self.client.log_inputs(run_id, inputs)
        except MlflowException as error:
            # MLflow looks whether it has a data set, and then inserts it.
            if "IntegrityError" in str(error):
                raise NotYet("Another run logs the same data set right now.", 0.2) from None
            raise

    def _abandon(self, run: QueuedRun, run_id: str, *, time_ms: int, text: str) -> None:
        """End a run whose process died, unless it was ended, or another goes on with it."""
        found = self.client.get_run(run_id)
        journal = found.data.tags.get(JOURNAL_TAG, run.outbox.name)
        if found.info.status == "RUNNING" and journal == run.outbox.name:
            self.client.set_tag(run_id, ENDED_TAG, text)
            self._starter.end(run, "FAILED", time_ms)


def _input(content: Mapping[str, Any]) -> DatasetInput:
    tags = [InputTag(name, value) for name, value in content["tags"].items()]
    return DatasetInput(Dataset(**content["dataset"]), tags)


def _refused(record: Record, reason: str) -> Refusal:
    return Refusal(record.kind, record.content, reason)


def _entity_refusal(entity: Entity, reason: str) -> Refusal:
    if isinstance(entity, Metric):
        content = (entity.step, entity.timestamp, {entity.key: entity.value})
        return Refusal("metrics", content, reason)
    kind = "params" if isinstance(entity, Param) else "tags"
    return Refusal(kind, {entity.key: entity.value}, reason)
