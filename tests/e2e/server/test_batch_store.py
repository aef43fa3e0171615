"""Batches of metrics in a real database are stored as MLflow's own store would store them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

import pytest
import sqlalchemy
from mlflow.entities import Metric
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from batch_checks import check_any_batches, check_several_writers
from database_server import DatabaseServer, MariaDB
from deployed_server import run
from server_database import backend, mariadb, needs_mariadb, text_of, variables

pytest.importorskip("flask_wtf", reason="the extra `server` is not installed")

from mlflow_iap_callbacks.server.trace_store import _new_store

pytestmark = [needs_mariadb, pytest.mark.slow]
__all__ = ["backend", "mariadb"]


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
    check_any_batches(*both, examples)


@pytest.mark.parametrize("has_workspaces", [False, True])
def test_each_connection_of_a_new_store_rejects_what_the_database_rejects(
    mariadb: MariaDB, has_workspaces: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if has_workspaces:
        monkeypatch.setenv("MLFLOW_ENABLE_WORKSPACES", "true")
    name = mariadb.new_database_for("mlflow")
    assert run("migrate", variables(mariadb, name)).exit_code == 0
    store = _new_store(text_of(mariadb, name), "artifacts")
    is_as_strict = sqlalchemy.text("SELECT @@SESSION.sql_mode = @@GLOBAL.sql_mode")
    with ExitStack() as opened:
        connections = [opened.enter_context(store.engine.connect()) for _ in range(5)]
        assert [each.scalar(is_as_strict) for each in connections] == [1] * 5
    store.engine.dispose()


def test_several_writers_to_one_run_lose_no_point_and_keep_the_latest(both: Both) -> None:
    check_several_writers(both.own)


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
