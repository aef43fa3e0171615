"""MLflow's store of traces, in which each trace belongs to the visitor who created it.

Spans that arrive by OpenTelemetry's protocol name no owner, and MLflow lets whoever sends a known
trace id continue that trace: with another name, and in another experiment.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

from mlflow.entities import Span, TraceInfo
from mlflow.environment_variables import MLFLOW_ENABLE_WORKSPACES
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED
from mlflow.server.constants import READ_REPLICA_BACKEND_STORE_URI_ENV_VAR
from mlflow.store.db.db_types import DATABASE_ENGINES
from mlflow.store.tracking.dbmodels.models import SqlSpan, SqlTraceInfo, SqlTraceMetadata
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.store.tracking.sqlalchemy_workspace_store import WorkspaceAwareSqlAlchemyStore
from mlflow.tracing.constant import SpanAttributeKey, TraceMetadataKey
from sqlalchemy import Connection, event, func, insert, select

from ..tags import CLAIM_TAG, STARTER_TAG
from .batch_store import BatchedMetrics
from .gate import visitor
from .ownership import OWNER_TAG, is_of_server, is_owner_key

_TAG = SpanAttributeKey.TRACE_TAG_PREFIX

if TYPE_CHECKING:
    _Store = SqlAlchemyStore
else:
    _Store = object


def use_owned_traces() -> None:
    """Let MLflow's server use this store."""
    from mlflow.server import handlers

    registry = handlers._tracking_store_registry
    for scheme in DATABASE_ENGINES:
        registry.register(scheme, _new_store)
    # A process that was forked may have created MLflow's own.
    registry._get_store_with_resolved_uri.cache_clear()
    handlers._tracking_store = None
    event.listen(SqlTraceInfo, "after_insert", _add_owner)


def _new_store(store_uri: str, artifact_uri: str) -> SqlAlchemyStore:
    kind = WorkspaceTraceStore if MLFLOW_ENABLE_WORKSPACES.get() else TraceStore
    replica = os.environ.get(READ_REPLICA_BACKEND_STORE_URI_ENV_VAR)
    store: SqlAlchemyStore = kind(store_uri, artifact_uri, read_db_uri=replica)
    # On the connection with which MLflow creates the first experiment, it leaves MySQL's `sql_mode`
    # empty. There, MySQL would change or cut a value that it has to reject.
    store.engine.dispose()
    return store


class _OwnedTraces(_Store):
    def start_trace(self, trace_info: TraceInfo) -> TraceInfo:
        email = visitor.get("")
        for trace in self._stored([trace_info.trace_id]) if email else ():
            trace.require_experiment(trace_info.experiment_id or "", email)
            self._begin(trace, email)
            trace_info.trace_metadata.pop(OWNER_TAG, None)
        return super().start_trace(trace_info)

    def log_spans(
        self, location: str, spans: list[Span], tracking_uri: str | None = None
    ) -> list[Span]:
        email = visitor.get("")
        for span in spans if email else ():
            _rename_tags(span)
        for trace in self._stored(list({span.trace_id for span in spans})) if email else ():
            trace.require_experiment(location)
            of_trace = [span for span in spans if span.trace_id == trace.trace_id]
            if any(span.parent_id is None for span in of_trace):
                self._begin(trace, email)
            elif not trace.is_started_by(email):
                self._require_new(trace, of_trace)
        return super().log_spans(location, spans, tracking_uri)

    def _stored(self, trace_ids: list[str]) -> list[_Trace]:
        def metadata(key: str) -> Any:
            return (
                select(func.max(SqlTraceMetadata.value))
                .where(
                    SqlTraceMetadata.request_id == SqlTraceInfo.request_id,
                    SqlTraceMetadata.key == key,
                )
                .scalar_subquery()
            )

        root: Any = select(func.max(SqlSpan.span_id)).where(
            SqlSpan.trace_id == SqlTraceInfo.request_id, SqlSpan.parent_span_id.is_(None)
        )
        with self.ManagedSessionMaker(read_only=False) as session:
            rows = session.execute(
                select(
                    SqlTraceInfo.request_id,
                    SqlTraceInfo.experiment_id,
                    metadata(OWNER_TAG),
                    metadata(STARTER_TAG),
                    func.coalesce(
                        metadata(TraceMetadataKey.TRACE_INFO_FINALIZED), root.scalar_subquery()
                    ),
                ).where(SqlTraceInfo.request_id.in_(trace_ids))
            ).all()
        return [_Trace(*row) for row in rows]

    def _begin(self, trace: _Trace, email: str) -> None:
        """Check that this user may start a trace or name it, and remember who did."""
        if trace.is_started_by(email):
            return
        if trace.owner is None or trace.starter or trace.start:
            trace.refuse()
        row = SqlTraceMetadata(request_id=trace.trace_id, key=STARTER_TAG, value=email)
        with self.ManagedSessionMaker(read_only=False) as session:
            session.merge(row)

    def _require_new(self, trace: _Trace, spans: list[Span]) -> None:
        names = [span.span_id for span in spans]
        with self.ManagedSessionMaker(read_only=False) as session:
            found = session.execute(
                select(SqlSpan.span_id).where(
                    SqlSpan.trace_id == trace.trace_id, SqlSpan.span_id.in_(names)
                )
            ).first()
        if found is not None:
            trace.refuse()


class TraceStore(_OwnedTraces, BatchedMetrics, SqlAlchemyStore):
    """MLflow's store for a database."""


class WorkspaceTraceStore(_OwnedTraces, BatchedMetrics, WorkspaceAwareSqlAlchemyStore):
    """MLflow's store for a database with workspaces."""


class _Trace(NamedTuple):
    """What is stored of a trace. Several services, each with its account, may send its spans.

    The owner is whoever sent the first ones, which often is not whoever starts the trace.
    """

    trace_id: str
    experiment_id: int
    owner: str | None
    starter: str | None
    start: str | None  # None if it has not been started

    def is_started_by(self, email: str) -> bool:
        return email in (self.owner, self.starter)

    def require_experiment(self, experiment_id: str, email: str = "") -> None:
        if str(self.experiment_id) != str(experiment_id) and (not email or self.owner != email):
            self.refuse()

    def refuse(self) -> None:
        raise MlflowException(
            f"The trace {self.trace_id} exists, and belongs to another user or experiment. Send "
            "spans with a new trace id.",
            PERMISSION_DENIED,
        )


def _add_owner(_: object, connection: Connection, trace: Any) -> None:
    """Add the owner to a new trace, in the same transaction."""
    email = visitor.get("")
    known = [each.key for each in trace.__dict__.get("request_metadata", ())]
    if email and OWNER_TAG not in known:
        row = {"request_id": trace.request_id, "key": OWNER_TAG, "value": email}
        connection.execute(insert(SqlTraceMetadata).values(row))


def _rename_tags(span: Span) -> None:
    """Rename or remove a span's attributes that set tags which only this server may set."""
    attributes: Any = span._span._attributes or {}
    for name in [key for key in attributes if key.startswith(_TAG)]:
        key = name.removeprefix(_TAG)
        if is_owner_key(key):
            attributes[f"{_TAG}{CLAIM_TAG}"] = attributes.pop(name)
        elif is_of_server(key):
            attributes.pop(name)
