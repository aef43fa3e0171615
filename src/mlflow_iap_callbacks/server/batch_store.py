"""MLflow's store of metrics, which inserts a batch with one statement per table.

MLflow's own creates an object for each point, reads the latest metrics before it writes them, and
nests sessions. With 8 or 16 batches of 10 points at once, one took it 18 to 22 ms of processor
time; with 32, it took 28 ms, and one in 8 opened a connection to MariaDB and closed it afterwards.
This store took 3 to 6 ms with any number, and opened none.
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
# What happens to points that are stored already, and to latest metrics that have a row: only a
# later one replaces it. MySQL assigns from left to right, and later expressions see what earlier
# ones assigned, so the columns that decide are last, the one that decides most at the very end.
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
    """Overrides how MLflow's store logs batches of metrics; the tables are the same."""

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
            # In the same order for all writers, so that no two wait for each other.
            session.execute(points, sorted(rows, key=_order))
            session.execute(latest, sorted(_latest(rows), key=_order))

    def _rows(self, run_id: str, metrics: Iterable[Metric]) -> list[dict[str, Any]]:
        """Return the rows, each once; of those that the primary key holds equal, the first."""
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
        if _age(row) > _age(known):
            latest[row["key"]] = row
    return latest.values()


def _age(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["step"], row["timestamp"], row["value"]


def _order(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["key"], *_age(row), row["is_nan"]
