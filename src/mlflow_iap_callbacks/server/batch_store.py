"""Makes MLflow's store insert a batch of metrics with one statement per table.

MLflow's own method creates an object for each point, reads the latest metrics before it writes
them, and nests sessions. With 8 or 16 batches of 10 points at once, a batch took 18 to 35 ms of
processor time. With 32 at once, a batch took 28 ms, and one in 8 opened a connection to MariaDB and
closed it afterwards. Here, a batch took 3 to 6 ms in all cases, and opened none.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from mlflow.entities import Metric, Param, RunTag
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.utils.validation import (
    _validate_batch_log_data,
    _validate_batch_log_limits,
    _validate_param_keys_unique,
    _validate_run_id,
)
from sqlalchemy import text

if TYPE_CHECKING:
    _Store = SqlAlchemyStore
else:
    _Store = object

_INSERT = (
    "INSERT INTO {table} (run_uuid, {key}, value, timestamp, step, is_nan)"
    " VALUES (:run_uuid, :key, :value, :timestamp, :step, :is_nan)"
)
# For each dialect: the quoted column "key"; what to do if a point is stored already (nothing); and
# what to do if a metric has a latest value already (replace it if the new one is later). MySQL
# assigns from left to right, and each expression sees the values assigned before it. So the columns
# that are compared are assigned last, and the one that is compared first at the very end.
_STANDARD = (
    '"key"',
    " ON CONFLICT DO NOTHING",
    ' ON CONFLICT ("key", run_uuid) DO UPDATE SET is_nan = excluded.is_nan,'
    " value = excluded.value, timestamp = excluded.timestamp, step = excluded.step"
    " WHERE (excluded.step, excluded.timestamp, excluded.value)"
    " > (latest_metrics.step, latest_metrics.timestamp, latest_metrics.value)",
)
_IS_LATER = "(VALUES(step), VALUES(timestamp), VALUES(value)) > (step, timestamp, value)"
_MYSQL = (
    "`key`",
    " ON DUPLICATE KEY UPDATE step = step",
    " ON DUPLICATE KEY UPDATE "
    + ", ".join(
        f"{column} = IF({_IS_LATER}, VALUES({column}), {column})"
        for column in ("is_nan", "value", "timestamp", "step")
    ),
)
_DIALECTS = {"mysql": _MYSQL, "postgresql": _STANDARD, "sqlite": _STANDARD}
_STATEMENTS = {
    dialect: (
        text(_INSERT.format(table="metrics", key=key) + known),
        text(_INSERT.format(table="latest_metrics", key=key) + latest),
    )
    for dialect, (key, known, latest) in _DIALECTS.items()
}


class BatchedMetrics(_Store):
    """A mixin for MLflow's store that logs batches of metrics faster, to the same tables."""

    def log_batch(
        self, run_id: str, metrics: list[Metric], params: list[Param], tags: list[RunTag]
    ) -> None:
        has_models = any(metric.model_id is not None for metric in metrics)
        if not metrics or has_models or self.db_type not in _STATEMENTS:
            super().log_batch(run_id, metrics, params, tags)
            return
        _validate_run_id(run_id)
        metrics, params, tags = _validate_batch_log_data(metrics, params, tags)
        _validate_batch_log_limits(metrics, params, tags)
        _validate_param_keys_unique(params)
        self._log_params(run_id, params)
        self._run_with_deadlock_retry(self._insert, run_id, self._rows(run_id, metrics))
        self._set_tags(run_id, tags)

    def _insert(self, run_id: str, rows: list[dict[str, Any]]) -> None:
        points, latest = _STATEMENTS[self.db_type]
        with self.ManagedSessionMaker(read_only=False) as session:
            self._check_run_is_active(self._get_run(session, run_id))
            # In the same order for all writers, so that no two deadlock.
            session.execute(points, sorted(rows, key=_order))
            session.execute(latest, sorted(_latest(rows), key=_order))

    def _rows(self, run_id: str, metrics: Iterable[Metric]) -> list[dict[str, Any]]:
        """Return a row for each point; of those with the same primary key, only the first."""
        rows: dict[tuple[object, ...], dict[str, Any]] = {}
        for metric in metrics:
            is_nan, value = self.sanitize_metric_value(metric.value)
            row = {
                "run_uuid": run_id,
                "key": metric.key,
                "value": value,
                "timestamp": metric.timestamp,
                "step": metric.step,
                "is_nan": is_nan,
            }
            rows.setdefault(tuple(row.values()), row)
        return list(rows.values())


def _latest(rows: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """Return the latest row of each key; of those that are equally late, the first."""
    latest: dict[str, dict[str, Any]] = {}
    for row in rows:
        known = latest.setdefault(row["key"], row)
        if _lateness(row) > _lateness(known):
            latest[row["key"]] = row
    return latest.values()


def _lateness(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["step"], row["timestamp"], row["value"]


def _order(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["key"], *_lateness(row), row["is_nan"]
