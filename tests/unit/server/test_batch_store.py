"""Batches of metrics are stored as MLflow's own store would store them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import sqlalchemy
from hypothesis import HealthCheck, given, seed, settings
from mlflow.entities import Metric, Param, RunTag
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from batch_model import Batch, batches, new_tables, require_equal

pytest.importorskip("flask_wtf", reason="the extra `server` is not installed")

from mlflow_iap_callbacks.server.trace_store import _new_store

_NAN = float("nan")


class Both(NamedTuple):
    mlflow: SqlAlchemyStore
    own: SqlAlchemyStore


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    folder = tmp_path_factory.mktemp("stores")
    urls = [new_tables(folder / name) for name in ("mlflow.db", "own.db")]
    stores = Both(SqlAlchemyStore(urls[0], "artifacts"), _new_store(urls[1], "artifacts"))
    for store in stores:
        sqlalchemy.event.listen(store.engine, "connect", _keep_in_memory)
        store.engine.dispose()
    yield stores
    for store in stores:
        store.engine.dispose()


def _keep_in_memory(connection: sqlite3.Connection, _: object) -> None:
    connection.executescript("PRAGMA synchronous = OFF; PRAGMA journal_mode = MEMORY")


def of(*metrics: Metric, run: int = 0, params: tuple[Param, ...] = ()) -> Batch:
    return Batch(run, list(metrics), list(params), [])


@pytest.mark.parametrize(
    "calls",
    [
        pytest.param([of(Metric("a", 1.0, 1, 1), Metric("a", 1.0, 1, 1))], id="twice in a batch"),
        pytest.param([of(Metric("a", 1.0, 1, 1))] * 2, id="twice"),
        pytest.param(
            [of(Metric("a", 1.0, 1, 1)), of(Metric("a", 1.0, 1, 1), Metric("a", 2.0, 2, 2))],
            id="one of two twice",
        ),
        pytest.param([of(Metric("a", _NAN, 1, 1), Metric("a", _NAN, 1, 1))], id="NaN twice"),
        pytest.param(
            [of(Metric("a", 0.0, 1, 1), Metric("a", _NAN, 1, 1), Metric("a", -0.0, 1, 1))],
            id="NaN, 0 and -0",
        ),
        pytest.param([of(Metric("a", _NAN, 1, 1)), of(Metric("a", 0.0, 1, 1))], id="0 after NaN"),
        pytest.param(
            [of(Metric("a", float("inf"), 1, 1)), of(Metric("a", -float("inf"), 1, 1))],
            id="infinities",
        ),
        pytest.param(
            [of(Metric("a", 5.0, 5, 5)), of(Metric("a", 6.0, 6, 4))], id="a smaller step later"
        ),
        pytest.param(
            [of(Metric("a", 5.0, 5, 5)), of(Metric("a", 1.0, 6, 5))], id="a greater timestamp"
        ),
        pytest.param(
            [of(Metric("a", 5.0, 5, 5)), of(Metric("a", 6.0, 5, 5))], id="a greater value"
        ),
        pytest.param(
            [of(Metric("a", 5.0, 5, 5)), of(Metric("a", 4.0, 5, 5))], id="a smaller value"
        ),
        pytest.param(
            [of(*(Metric(f"m{n % 7}", n / 8, n, n) for n in range(1000)))], id="as many as allowed"
        ),
        pytest.param([of(*(Metric("a", n, n, n) for n in range(1001)))], id="too many"),
        pytest.param([of(Metric("a", 1.0, 1, 1), run=2)], id="a deleted run"),
        pytest.param([of(Metric("a", 1.0, 1, 1), run=3)], id="an unknown run"),
        pytest.param(
            [
                of(params=(Param("a", "1"),)),
                of(Metric("a", 1.0, 1, 1), params=(Param("a", "2"), Param("b", "3"))),
            ],
            id="a changed param",
        ),
        pytest.param(
            [of(Metric("a", 1.0, 2**63, 1), params=(Param("a", "1"),))],
            id="an error of the database",
        ),
        pytest.param(
            [Batch(0, [Metric("a", 1.0, 1, 1)], [], [RunTag("mlflow.runName", "new")])],
            id="a new name",
        ),
    ],
)
def test_a_batch_leaves_the_same_tables_and_the_same_error_as_with_mlflows_store(
    both: Both, calls: list[Batch]
) -> None:
    require_equal(*both, calls)


def test_any_batches_leave_the_same_tables_and_the_same_errors(both: Both) -> None:
    @seed(1)
    @settings(max_examples=10, database=None, suppress_health_check=list(HealthCheck))
    @given(batches())
    def compare(calls: list[Batch]) -> None:
        require_equal(*both, calls)

    compare()


def test_a_batch_takes_three_statements_no_matter_how_many_points_it_has(both: Both) -> None:
    run_id = both.own.create_run("0", "ada", 1, [], "run").info.run_id
    statements = []

    def remember(_: object, __: object, statement: str, *___: object) -> None:
        statements.append(statement.split()[0])

    sqlalchemy.event.listen(both.own.engine, "before_cursor_execute", remember)
    try:
        both.own.log_batch(run_id, [Metric("a", n, n, n) for n in range(500)], [], [])
    finally:
        sqlalchemy.event.remove(both.own.engine, "before_cursor_execute", remember)
    assert [each for each in statements if each != "PRAGMA"] == ["SELECT", "INSERT", "INSERT"]
