"""The server's tables: migrated by one process at a time, and never served half migrated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import requests
import sqlalchemy
from mlflow.store.db import utils as mlflow_db

from database_server import DatabaseServer, MariaDB
from deployed_server import FORKED, HOST, DeployedServer, begin, run
from mlflow_iap_callbacks.local import LocalCloud
from ports import free_port
from schema_checks import check_binary_logging_without_its_flag, check_three_migrations_at_once
from server_database import (
    OLDEST_REVISION,
    backend,
    fill,
    is_the_run_there,
    kill_in_the_middle,
    log_a_run,
    mariadb,
    needs_mariadb,
    text_of,
    variables,
)
from server_helpers import ASSERTION

pytestmark = [needs_mariadb, pytest.mark.slow]
__all__ = ["backend", "mariadb"]


@pytest.mark.parametrize("revision", [None, pytest.param(OLDEST_REVISION, marks=pytest.mark.soak)])
def test_of_three_concurrent_migrations_one_migrates_and_the_others_wait(
    backend: DatabaseServer, revision: str | None
) -> None:
    check_three_migrations_at_once(backend, revision)


def test_a_killed_first_migration_starts_over(backend: DatabaseServer) -> None:
    database = backend.new_database_for("mlflow")
    kill_in_the_middle(backend, database, changes=60)
    failed = run("check", variables(backend, database))
    assert "is in the middle of its first migration" in failed.stderr
    assert run("migrate", variables(backend, database)).stdout == "The schema has been migrated.\n"


@pytest.mark.soak
def test_a_killed_later_migration_is_undone_by_restoring_the_backup(mariadb: MariaDB) -> None:
    database = mariadb.new_database_for("mlflow")
    fill(mariadb, database, OLDEST_REVISION)
    log_a_run(mariadb, database)
    backup = mariadb.dump(database)
    kill_in_the_middle(mariadb, database, changes=12)
    for command in ("check", "migrate"):
        failed = run(command, variables(mariadb, database))
        assert failed.exit_code == 1
        assert "Restore the backup that was taken before it" in failed.stderr
    mariadb.restore(database, backup)
    assert run("migrate", variables(mariadb, database)).stdout == "The schema has been migrated.\n"
    assert is_the_run_there(mariadb, database)


@pytest.mark.parametrize("backend", ["postgresql"], indirect=True)
def test_a_killed_later_migration_of_postgresql_is_repeated_without_a_backup(
    backend: DatabaseServer,
) -> None:
    database = backend.new_database_for("mlflow")
    fill(backend, database, OLDEST_REVISION)
    log_a_run(backend, database)
    kill_in_the_middle(backend, database, changes=3)
    failed = run("check", variables(backend, database))
    assert f"has the older schema {OLDEST_REVISION}. Back it up, then run" in failed.stderr
    assert run("migrate", variables(backend, database)).stdout == "The schema has been migrated.\n"
    assert is_the_run_there(backend, database)


def test_the_tables_of_a_killed_first_migration_are_not_dropped_once_they_contain_runs(
    mariadb: MariaDB,
) -> None:
    database = mariadb.new_database_for("mlflow")
    kill_in_the_middle(mariadb, database, changes=60)
    log_a_run(mariadb, database)
    failed = run("migrate", variables(mariadb, database))
    assert "Restore the backup" in failed.stderr
    assert is_the_run_there(mariadb, database)


def test_binary_logging_without_its_flag_is_reported_before_anything_is_changed(
    mariadb: MariaDB,
) -> None:
    check_binary_logging_without_its_flag(mariadb)


@pytest.mark.parametrize(
    "collation", ["utf8mb4_general_ci", "utf8mb4_bin", "latin1_swedish_ci", "utf8mb3_bin"]
)
def test_names_that_the_database_considered_equal_are_distinct_after_the_migration(
    mariadb: MariaDB, collation: str
) -> None:
    database = mariadb.new_database_for("mlflow", collation)
    given = variables(mariadb, database)
    if collation != "utf8mb3_bin":  # a database that has tables already
        engine = sqlalchemy.create_engine(text_of(mariadb, database))
        mlflow_db._initialize_tables(engine)
        engine.dispose()
        log_a_run(mariadb, database)
        failed = run("check", given)
        assert "has a collation that considers different names equal" in failed.stderr
    assert run("migrate", given).stdout == "The schema has been migrated.\n"
    assert run("migrate", given).stdout == "The schema is up to date.\n"
    if collation == "utf8mb3_bin":
        log_a_run(mariadb, database)
    assert is_the_run_there(mariadb, database)
    keys = ("mlflow.user", "mlflow.user ", "MLflow.User", "mlflow.us\u00e9r", "\U0001f600")
    for key in keys:
        mariadb.query(f"INSERT INTO {database}.tags (run_uuid, `key`) VALUES ('r1', %s)", key)
    assert len(mariadb.query(f"SELECT * FROM {database}.tags WHERE `key` = 'mlflow.user'")) == 1
    assert len(mariadb.query(f"SELECT * FROM {database}.tags")) == len(keys)


def test_a_column_that_a_migration_gives_a_collation_of_its_own_is_converted_too(
    mariadb: MariaDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of MLflow 3.18 do."""
    upgrade: Any = mlflow_db._initialize_tables

    def initialize(engine: sqlalchemy.Engine) -> None:
        upgrade(engine)
        change = "ALTER TABLE tags MODIFY `key` VARCHAR(250) COLLATE utf8mb4_bin NOT NULL"
        mariadb.query(change, database=str(engine.url.database))

    monkeypatch.setattr(mlflow_db, "_initialize_tables", initialize)
    given = variables(mariadb, mariadb.new_database_for("mlflow"))
    assert run("migrate", given).stdout == "The schema has been migrated.\n"
    assert run("migrate", given).stdout == "The schema is up to date.\n"


@pytest.mark.parametrize("backend", ["postgresql"], indirect=True)
@pytest.mark.parametrize(
    "kind", ["varchar(250) COLLATE inexact", "citext", "char(250)", "inexact_text", "spaced_text"]
)
def test_postgresql_whose_columns_may_consider_different_names_equal_is_rejected(
    tables_of_postgresql: str, backend: DatabaseServer, kind: str
) -> None:
    database = tables_of_postgresql
    given = variables(backend, database)
    change = "ALTER TABLE tags ALTER COLUMN key TYPE"
    backend.query(f"{change} {kind}", database=database)
    for command in ("check", "migrate"):
        failed = run(command, given)
        assert "may consider different names equal in tags.key" in failed.stderr
        assert len(failed.stderr.splitlines()) == 1
    backend.query(f'{change} varchar(250) COLLATE "default"', database=database)
    assert run("migrate", given).stdout == "The schema is up to date.\n"


@pytest.fixture(scope="module")
def tables_of_postgresql(backend: DatabaseServer) -> str:
    """A database with MLflow's tables, and the types in which different texts can be equal."""
    database = backend.new_database_for("mlflow")
    assert run("migrate", variables(backend, database)).exit_code == 0
    for statement in (
        "CREATE COLLATION inexact"
        " (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
        "CREATE EXTENSION citext",
        "CREATE DOMAIN inexact_text AS text COLLATE inexact",
        "CREATE DOMAIN spaced_text AS char(250)",
    ):
        backend.query(statement, database=database)
    return database


@pytest.mark.parametrize("backend", ["postgresql"], indirect=True)
def test_postgresql_without_a_schema_or_with_few_characters_is_reported_before_anything_is_changed(
    backend: DatabaseServer,
) -> None:
    database = backend.new_database_for("mlflow")
    given = variables(backend, database)
    backend.query("ALTER SCHEMA public OWNER TO postgres", database=database)
    failed = run("migrate", given)
    assert f"`ALTER DATABASE {database} OWNER TO mlflow`" in failed.stderr
    backend.query("ALTER SCHEMA public OWNER TO mlflow", database=database)
    assert run("migrate", given).exit_code == 0
    options = "OWNER mlflow TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C' ENCODING 'LATIN1'"
    backend.query(f"CREATE DATABASE latin {options}")
    failed = run("migrate", variables(backend, "latin"))
    assert "has the encoding LATIN1, which lacks many characters" in failed.stderr
    assert (
        backend.query(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public'", database="latin"
        )
        == []
    )


@pytest.mark.slow
def test_the_migration_creates_the_tables_of_users_if_permissions_are_on(
    backend: DatabaseServer, tmp_path: Path
) -> None:
    database = backend.new_database_for("mlflow")
    without = variables(backend, database)
    assert run("migrate", without).stdout == "The schema has been migrated.\n"
    given = {
        **without,
        "MLFLOW_IAP_PERMISSIONS": "true",
        "MLFLOW_IAP_ADMINS": "root@example.com",
        "MLFLOW_SERVER_DATABASE_WAIT": "5",
    }
    failed = run("check", given)
    assert "has the older schema for users, revision none. Back it up, then run" in failed.stderr
    three = [begin("migrate", given, program=FORKED) for _ in range(3)]
    assert [process.wait(120) for process in three] == [0, 0, 0]
    assert run("migrate", given).stdout == "The schema is up to date.\n"
    checked = run("check", given).stdout
    assert "permissions by user, admins root@example.com\n" in checked
    assert backend.query("SELECT COUNT(*) FROM users", database=database) == [(0,)]
    with LocalCloud() as cloud:
        given |= cloud.server_environment()
        with DeployedServer(tmp_path, given, gated_port=free_port()) as server:
            assertion = cloud.assertion("ada@example.com")
            headers = {ASSERTION: assertion, "Host": HOST}
            url = f"{server.url}/api/2.0/mlflow/experiments/create"
            requests.post(
                url, json={"name": "hers"}, headers=headers, timeout=30
            ).raise_for_status()
    users = backend.query(
        "SELECT username, is_admin FROM users ORDER BY username", database=database
    )
    assert users == [("ada@example.com", 0), ("root@example.com", 1)]
