"""Batches of metrics in a real database are stored as MLflow's own store would store them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
import sqlalchemy
from hypothesis import HealthCheck, given, settings
from mlflow.entities import Metric
from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlMetric
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from batch_model import Batch, batches, require_equal
from database_server import DatabaseServer
from deployed_server import run
from server_database import backend, mariadb, needs_mariadb, text_of, variables

pytest.importorskip("flask_wtf", reason="the extra `server` is not installed")

from mlflow_iap_callbacks.server.trace_store import _new_store

pytestmark = [needs_mariadb, pytest.mark.slow]
__all__ = ["backend", "mariadb"]

_WRITERS, _BATCHES = 4, 30


class Both(NamedTuple):
    mlflow: SqlAlchemyStore
    own: SqlAlchemyStore


@pytest.fixture(scope="module")
def both(backend: DatabaseServer) -> Iterator[Both]:
    name = backend.new_database_for("mlflow")
    assert run("migrate", variables(backend, name)).exit_code == 0
    url = text_of(backend, name)
    stores = Both(SqlAlchemyStore(url, "artifacts"), _new_store(url, "artifacts"))
    yield stores
    stores.own.engine.dispose()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("examples", [pytest.param(20), pytest.param(400, marks=pytest.mark.soak)])
def test_any_batches_leave_the_same_tables_and_the_same_errors(both: Both, examples: int) -> None:
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(batches())
    def compare(calls: list[Batch]) -> None:
        require_equal(*both, calls)

    compare()


def test_several_writers_to_one_run_lose_no_point_and_keep_the_latest(both: Both) -> None:
    run_id = both.own.create_run("0", "ada", 1, [], "run").info.run_id
    batches = [
        [
            # Some points are in the batches of all writers, in different orders.
            Metric(f"m{(writer + point) % 5}", (batch * point) % 7, batch, batch - point)
            for point in range(20)
        ]
        for batch in range(_BATCHES)
        for writer in range(_WRITERS)
    ]
    with ThreadPoolExecutor(_WRITERS) as pool:
        list(pool.map(lambda metrics: both.own.log_batch(run_id, metrics, [], []), batches))
    points = {
        (point.key, float(point.value), point.timestamp, point.step)
        for metrics in batches
        for point in metrics
    }
    keys = {key for key, *_ in points}
    latest = {key: max(age(point) for point in points if point[0] == key) for key in keys}
    found, newest = (
        [tuple(row) for row in rows_of(both.own, kind, run_id)]
        for kind in (SqlMetric, SqlLatestMetric)
    )
    assert sorted(found) == sorted(points)
    assert {row[0]: age(row) for row in newest} == latest


def test_a_batch_that_is_the_victim_of_a_deadlock_is_stored_after_all(both: Both) -> None:
    run_id = both.own.create_run("0", "ada", 1, [], "run").info.run_id
    metrics = [Metric("a", 1.0, 1, 1)]
    attempts = []

    def fail_once(_: object, __: object, statement: str, *___: object) -> None:
        attempts.append(statement)
        if len(attempts) == 1:
            raise sqlalchemy.exc.OperationalError(statement, None, Exception("Deadlock found"))

    sqlalchemy.event.listen(both.own.engine, "before_cursor_execute", fail_once)
    try:
        both.own.log_batch(run_id, metrics, [], [])
    finally:
        sqlalchemy.event.remove(both.own.engine, "before_cursor_execute", fail_once)
    assert both.own.get_metric_history(run_id, "a")[0].value == 1.0


def age(point: tuple[str, float, int, int]) -> tuple[int, int, float]:
    _, value, timestamp, step = point
    return step, timestamp, value


def rows_of(store: SqlAlchemyStore, kind: Any, run_id: str) -> Any:
    query = sqlalchemy.select(kind.key, kind.value, kind.timestamp, kind.step)
    with store.engine.connect() as connection:
        return connection.execute(query.where(kind.run_uuid == run_id)).all()
