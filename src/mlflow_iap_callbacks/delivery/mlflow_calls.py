"""The calls to MLflow that deliver records: few requests, in order, each safe to repeat."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
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
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME

from ..iap.client import IAPMlflowClient
from ..iap.log_batch_request import Point, send_log_batch
from ..iap.unwrapping import unwrapped_errors
from ..limits import MAX_ENTITIES, MAX_PARAMS, MAX_TAGS
from ..outbox import QueuedRun, Record, Refusal
from ..tags import ENDED_TAG, JOURNAL_TAG, RUN_KEY_TAG
from .clock import Clock
from .log_batch import JOINABLE, Batch, Entity, key, metric, refused_entity
from .mlflow_request import send_request
from .models import log_model, log_step_metrics
from .names import Names, mlflow_name
from .provisional_models import ProvisionalModels, has_provisional_id
from .refusals import NotYet, first_line, refusal
from .run_creation import RunCreation

_WITH_PARTS = (*JOINABLE, "input")  # kinds of records of which a part can be sent
_MAX_INPUTS = 10  # each with a schema of up to 100 kB
_LOCKED = "database is locked"  # SQLite's message after it waited a few seconds


class Failing(list[Refusal]):
    """Parts of records on which the server fails while it accepts others, each with the error.

    Args:
        most: maximum number of parts.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def add(self, part: Entity | Record, error: Exception) -> None:
        """Add a part, or raise the error if there are too many."""
        if len(self) == self._most:
            raise error
        why = first_line(error)
        self.append(_refused(part, why) if isinstance(part, Record) else refused_entity(part, why))


class MlflowCalls:
    """Delivers records with ``client``, one request at a time.

    Args:
        client: any MlflowClient that is thread-safe, as MLflow's own are.
        clock: tells the time.
    """

    def __init__(self, client: MlflowClient, clock: Clock) -> None:
        self.client = client
        self._creation = RunCreation(client, clock)
        self._models = ProvisionalModels(clock)

    def use(self, client: MlflowClient) -> None:
        """Replace the client with another one for the same server."""
        self.client = self._creation.client = client

    def note_refused(self, refused: Iterable[Refusal]) -> None:
        """Note what MLflow rejected, so that no other record waits for it."""
        self._models.note_refused(refused)

    def send(
        self, run: QueuedRun, records: Sequence[Record]
    ) -> tuple[Sequence[Record], Sequence[Refusal]]:
        """Deliver as many of the run's oldest records as fit into one request.

        Args:
            run: the run that the records belong to.
            records: at least one record.

        Returns:
            The settled records, and the parts of them that MLflow permanently rejected.

        Raises:
            NotYet: the run has to wait for something.
            MlflowException, requests.RequestException: the server is unreachable, or fails. Send
                the same records again later.
        """
        run_id = run.run_id
        try:
            if run.refused is None:
                return self._send(run, records)
        except Exception as error:
            if _LOCKED in str(error) and run.outbox.server.startswith("sqlite:"):
                raise NotYet("Another process is writing to the database.") from None
            reason = refusal(error)
            if reason is None:
                raise
            if run_id is not None:
                stage = self._creation.stage(run_id)
                if stage == LifecycleStage.ACTIVE:
                    return records[:1], [_refused(records[0], reason)]
                if stage is None and self._creation.can_create_again(run, run_id):
                    raise NotYet(
                        "The server no longer has the run, so it is created again.", 0.0
                    ) from None
                if stage == LifecycleStage.DELETED and self._creation.take_agreed(run):
                    raise NotYet(
                        "Other processes chose a different run, which is used instead.", 0.0
                    ) from None
            return self._refuse(run, records, reason)
        if records[0].kind == "start":
            self._creation.refuse(run)  # ``run.refused`` may come from an earlier process
        return records, [_refused(record, str(run.refused)) for record in records]

    def _refuse(
        self, run: QueuedRun, records: Sequence[Record], reason: str
    ) -> tuple[Sequence[Record], Sequence[Refusal]]:
        """Note that MLflow rejects the run, and all that is logged to it."""
        run.refused = reason
        self._creation.refuse(run)
        run.outbox.save(run)
        return records, [_refused(record, reason) for record in records]

    def send_in_parts(
        self, run: QueuedRun, records: Sequence[Record], most: int
    ) -> tuple[Sequence[Record], Sequence[Refusal], Sequence[Refusal]]:
        """Deliver some of the run's oldest records, even if the server fails on parts of them.

        Args:
            run: the run that the records belong to.
            records: at least one record.
            most: maximum number of such parts. A single record may have more.

        Returns:
            The settled records, the parts of them that MLflow permanently rejected, and the parts
            that the server fails on.
        """
        if len(records) == 1:
            most = MAX_ENTITIES
        if records[0].kind == "start":
            failing = Failing(most)
            try:
                self._start_in_parts(run, records[0].content, failing)
            except Exception as error:
                reason = refusal(error)
                if reason is None or run.run_id is not None:
                    raise
                return (*self._refuse(run, records, reason), ())
            return records[:1], (), failing
        if records[0].kind not in _WITH_PARTS:
            failing = Failing(most)
            try:
                done, refused = self.send(run, records)
            except NotYet:
                raise
            except Exception as error:  # noqa: BLE001 - it is tried again later
                failing.add(records[0], error)
                return records[:1], (), failing
            return done, refused, failing
        while True:
            failing = Failing(most)
            try:
                done, refused = self._send(run, records, failing)
                return done, refused, failing
            except Exception as error:
                if refusal(error) is not None or len(failing) < most or len(records) == 1:
                    raise
            records = records[: min(len(records) // 2, max(1, most // 2))]

    def answers(self, run: QueuedRun) -> bool:
        """Return whether the server responds to a simple request about the run."""
        return self._works(lambda: self.client.get_run(str(run.run_id)))

    def takes_writes(self, run: QueuedRun) -> bool:
        """Return whether the server accepts a simple write to the run."""
        return self._works(lambda: self.client.set_tag(str(run.run_id), RUN_KEY_TAG, run.key))

    def _works(self, request: Callable[[], object]) -> bool:
        try:
            request()
        except Exception as error:  # noqa: BLE001 - any error means that it does not respond
            return refusal(error) is not None
        return True

    def _send(
        self, run: QueuedRun, records: Sequence[Record], failing: Failing | None = None
    ) -> tuple[Sequence[Record], Sequence[Refusal]]:
        kind, content = records[0].kind, records[0].content
        if kind == "start":
            self._creation.start(run, content)
            return records[:1], ()
        run_id = self._creation.known(run)
        if kind == "model_start":
            self._models.create(self.client, run_id, content)
            return records[:1], ()
        if kind in JOINABLE:
            return self._log(run, run_id, records, failing)
        content = self._models.with_ids(self.client, run_id, records[0]).content
        if kind == "artifact":
            path = run.outbox.artifact(content["path"], is_copied=content["is_copied"])
            self.client.log_artifact(run_id, path, content["to"])
        elif kind == "model_files":
            path = run.outbox.artifact(content["path"], is_copied=True)
            self._models.write_ids(self.client, run_id, path)
            self.client.log_model_artifacts(content["model_id"], path, content["to"])
        elif kind == "model_metrics":
            if not has_provisional_id(content["model_id"]):  # else MLflow rejected the model
                log_step_metrics(self.client, run_id, **content)
        elif kind == "model":
            path = run.outbox.artifact(content["path"], is_copied=True)
            log_model(self.client, run_id, path, content)
        elif kind == "input":
            inputs = [*takewhile(lambda record: record.kind == "input", records)][:_MAX_INPUTS]
            return inputs, self._log_inputs(run_id, inputs, failing)
        elif kind == "experiment_tags":
            experiment_id = self.client.get_run(run_id).info.experiment_id
            for name, text in content.items():
                self.client.set_experiment_tag(experiment_id, name, text)
        elif kind == "reopen":
            found = self.client.get_run(run_id)
            if found.info.status != "RUNNING" or ENDED_TAG in found.data.tags:
                self._creation.reopen(run, found)
        elif kind == "finish":
            self._creation.end(run, **content)
        elif kind == "update":
            self._creation.update(run_id, content["status"], content["end_time"], content["name"])
        elif kind == "request":
            send_request(self.client, **content)
        else:
            self._abandon(run, run_id, **content)
        return records[:1], ()

    def _start_in_parts(self, run: QueuedRun, content: Mapping[str, Any], failing: Failing) -> None:
        """Create a run without its name and tags, then set those that the server accepts."""
        self._creation.start(run, {**content, "name": None, "tags": {}})
        tags = self._names(run, str(run.run_id)).tags(content["tags"])
        if content["name"] is not None:
            tags[MLFLOW_RUN_NAME] = content["name"]
        entities = [RunTag(*tag) for tag in tags.items()]
        for entity in entities:
            try:
                self._log_entities(str(run.run_id), [entity])
            except Exception as error:  # noqa: BLE001 - it is tried again later
                failing.add(entity, error)

    def _log(
        self,
        run: QueuedRun,
        run_id: str,
        records: Sequence[Record],
        failing: Failing | None,
    ) -> tuple[Sequence[Record], Sequence[Refusal]]:
        batch = Batch(run.skipped, self._names(run, run_id))
        for record in records:
            if record.kind not in JOINABLE:
                break
            try:
                known = self._models.with_ids(self.client, run_id, record)
            except NotYet:
                if not batch.records:
                    raise
                break  # the records before it need not wait
            if not batch.takes(known):
                break
        entities, refused = batch.entities(), batch.refused
        try:
            if entities:
                self._log_entities(run_id, entities)
        except Exception as error:
            if refusal(error) is None and failing is None:
                raise
            if self._creation.stage(run_id) != LifecycleStage.ACTIVE:
                raise
            if self._creation.names.learns_from(error, [*map(key, entities)]):
                return self._log(run, run_id, records, failing)
            refused += self._log_halves(run_id, entities, batch.other_names, failing, error)
        run.skipped = batch.skipped
        return batch.records, refused

    def _names(self, run: QueuedRun, run_id: str) -> Names:
        return self._creation.names.of(run, lambda: self.client.get_run(run_id))

    def _log_halves(
        self,
        run_id: str,
        entities: Sequence[Entity],
        other_names: Mapping[str, str],
        failing: Failing | None,
        error: Exception,
    ) -> Iterable[Refusal]:
        """Log the entities by halving them repeatedly, until each one at fault is found."""
        if len(entities) == 1:
            entity = entities[0]
            if failing is not None and refusal(error) is None:
                failing.add(entity, error)
                return
            if isinstance(entity, Param) and entity.key in other_names:
                middle, entities = 0, [Param(mlflow_name(other_names[entity.key]), entity.value)]
            else:
                yield refused_entity(entity, str(refusal(error)))
                return
        else:
            middle = len(entities) // 2
        for half in filter(None, (entities[:middle], entities[middle:])):
            try:
                self._log_entities(run_id, half)
            except Exception as half_error:
                if refusal(half_error) is None and failing is None:
                    raise
                yield from self._log_halves(run_id, half, other_names, failing, half_error)

    def _log_entities(self, run_id: str, entities: Sequence[Entity]) -> None:
        metrics = [entity for entity in entities if isinstance(entity, tuple | Metric)]
        params = [entity for entity in entities if isinstance(entity, Param)]
        tags = [entity for entity in entities if isinstance(entity, RunTag)]
        # One request is enough unless very many names need a tag with the original name.
        while metrics or params or tags:
            some_params, some_tags = params[:MAX_PARAMS], tags[:MAX_TAGS]
            room = MAX_ENTITIES - len(some_params) - len(some_tags)
            self._log_batch(run_id, metrics[:room], some_params, some_tags)
            del metrics[:room], params[:MAX_PARAMS], tags[:MAX_TAGS]

    def _log_batch(
        self,
        run_id: str,
        metrics: Sequence[Point | Metric],
        params: Sequence[Param],
        tags: Sequence[RunTag],
    ) -> None:
        if type(self.client).log_batch is IAPMlflowClient.log_batch:
            store = self.client._tracking_client.store
            with unwrapped_errors():
                if send_log_batch(store, run_id, metrics, params, tags):
                    return
        self.client.log_batch(run_id, [*map(metric, metrics)], params, tags)

    def _log_inputs(
        self, run_id: str, records: Sequence[Record], failing: Failing | None
    ) -> list[Refusal]:
        """Log data sets, one by one if MLflow rejects them together; return those it rejects."""
        try:
            self.client.log_inputs(run_id, [_input(record.content) for record in records])
        except Exception as error:
            # Two runs that log the same new data set at the same time may both try to create it.
            if isinstance(error, MlflowException) and "IntegrityError" in str(error):
                raise NotYet("Another run is logging the same data set.", 0.2) from None
            reason = refusal(error)
            if reason is None and failing is None:
                raise
            if len(records) > 1:
                return [
                    found
                    for record in records
                    for found in self._log_inputs(run_id, [record], failing)
                ]
            if self._creation.stage(run_id) != LifecycleStage.ACTIVE:
                raise
            if reason is not None:
                return [_refused(records[0], reason)]
            assert failing is not None  # noqa: S101
            failing.add(records[0], error)
        return []

    def _abandon(self, run: QueuedRun, run_id: str, *, time_ms: int, text: str) -> None:
        """End a run whose process died, unless it has ended or another process continues it."""
        found = self.client.get_run(run_id)
        journal = found.data.tags.get(JOURNAL_TAG, run.outbox.name)
        if found.info.status == "RUNNING" and journal == run.outbox.name:
            self.client.set_tag(run_id, ENDED_TAG, text)
            self._creation.end(run, "FAILED", time_ms)


def _input(content: Mapping[str, Any]) -> DatasetInput:
    tags = [InputTag(name, value) for name, value in content["tags"].items()]
    return DatasetInput(Dataset(**content["dataset"]), tags)


def _refused(record: Record, reason: str) -> Refusal:
    return Refusal(record.kind, record.content, reason)
