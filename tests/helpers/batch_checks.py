"""Checks of how batches of metrics are stored, for each kind of database server."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import sqlalchemy
from hypothesis import HealthCheck, given, settings
from mlflow.entities import Metric
from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlMetric
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from batch_model import Batch, batches, require_equal

_WRITERS, _BATCHES = 4, 30


def check_any_batches(mlflow: SqlAlchemyStore, own: SqlAlchemyStore, examples: int) -> None:
    """Check that two stores leave the same tables and raise the same errors."""

    @settings(
        max_examples=examples,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(batches())
    def compare(calls: list[Batch]) -> None:
        require_equal(mlflow, own, calls)

    compare()


def check_several_writers(store: SqlAlchemyStore) -> None:
    """Check that several writers to one run lose no point, and keep the latest."""
    run_id = store.create_run("0", "ada", 1, [], "run").info.run_id
    logged = [
        [
            # Some points are in the batches of all writers, in different orders.
            Metric(f"m{(writer + point) % 5}", (batch * point) % 7, batch, batch - point)
            for point in range(20)
        ]
        for batch in range(_BATCHES)
        for writer in range(_WRITERS)
    ]
    with ThreadPoolExecutor(_WRITERS) as pool:
        list(pool.map(lambda metrics: store.log_batch(run_id, metrics, [], []), logged))
    points = {
        (point.key, float(point.value), point.timestamp, point.step)
        for metrics in logged
        for point in metrics
    }
    keys = {key for key, *_ in points}
    latest = {key: max(age(point) for point in points if point[0] == key) for key in keys}
    found, newest = (
        [tuple(row) for row in rows_of(store, kind, run_id)]
        for kind in (SqlMetric, SqlLatestMetric)
    )
    assert sorted(found) == sorted(points)
    assert {row[0]: age(row) for row in newest} == latest


def age(point: tuple[str, float, int, int]) -> tuple[int, int, float]:
    _, value, timestamp, step = point
    return step, timestamp, value


def rows_of(store: SqlAlchemyStore, kind: Any, run_id: str) -> Any:
    query = sqlalchemy.select(kind.key, kind.value, kind.timestamp, kind.step)
    with store.engine.connect() as connection:
        return connection.execute(query.where(kind.run_uuid == run_id)).all()
