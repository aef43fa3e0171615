"""The server's tables: migrated by one at a time, and never served half done."""

from __future__ import annotations

import pytest

from database_server import MariaDB
from deployed_server import run
from schema_checks import check_binary_logging_without_its_flag, check_three_migrations_at_once
from server_database import (
    OLDEST_REVISION,
    fill,
    is_the_run_there,
    kill_in_the_middle,
    log_a_run,
    mariadb,
    needs_mariadb,
    variables,
)

pytestmark = needs_mariadb
__all__ = ["mariadb"]


@pytest.mark.parametrize("revision", [None, OLDEST_REVISION])
def test_of_three_migrations_at_once_one_does_it_and_the_others_find_it_done(
    mariadb: MariaDB, revision: str | None
) -> None:
    check_three_migrations_at_once(mariadb, revision)


def test_a_first_migration_that_was_killed_begins_anew(mariadb: MariaDB) -> None:
    database = mariadb.new_database_for("mlflow")
    kill_in_the_middle(mariadb, database, changes=60)
    refused = run("check", variables(mariadb, database))
    assert "is in the middle of its first migration" in refused.stderr
    assert run("migrate", variables(mariadb, database)).stdout == "The schema is migrated.\n"


def test_a_later_migration_that_was_killed_is_undone_by_the_backup(mariadb: MariaDB) -> None:
    database = mariadb.new_database_for("mlflow")
    fill(mariadb, database, OLDEST_REVISION)
    log_a_run(mariadb, database)
    backup = mariadb.dump(database)
    kill_in_the_middle(mariadb, database, changes=12)
    for command in ("check", "migrate"):
        refused = run(command, variables(mariadb, database))
        assert refused.exit_code == 1
        assert "Restore the backup that was taken before it" in refused.stderr
    mariadb.restore(database, backup)
    assert run("migrate", variables(mariadb, database)).stdout == "The schema is migrated.\n"
    assert is_the_run_there(mariadb, database)


def test_a_lost_first_migration_is_kept_once_somebody_logged_into_it(mariadb: MariaDB) -> None:
    database = mariadb.new_database_for("mlflow")
    kill_in_the_middle(mariadb, database, changes=60)
    log_a_run(mariadb, database)
    refused = run("migrate", variables(mariadb, database))
    assert "Restore the backup" in refused.stderr
    assert is_the_run_there(mariadb, database)


def test_binary_logging_without_its_flag_is_told_before_anything_is_changed(
    mariadb: MariaDB,
) -> None:
    check_binary_logging_without_its_flag(mariadb)
