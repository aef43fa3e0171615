"""Checks of MLflow's tables for each kind of database server."""

from __future__ import annotations

from database_server import DatabaseServer
from deployed_server import FORKED, begin, run
from server_database import fill, is_the_run_there, log_a_run, variables


def check_three_migrations_at_once(server: DatabaseServer, revision: str | None) -> None:
    """Check that one of several concurrent migrations does the work and the others find it done.

    Args:
        server: the server that gets a database.
        revision: revision of the initial tables, which contain a run; None for no tables.
    """
    database = server.new_database_for("mlflow")
    if revision:
        fill(server, database, revision)
        log_a_run(server, database)
    three = [begin("migrate", variables(server, database), program=FORKED) for _ in range(3)]
    assert [process.wait(120) for process in three] == [0, 0, 0]
    assert run("migrate", variables(server, database)).stdout == "The schema is up to date.\n"
    assert not revision or is_the_run_there(server, database)


def check_binary_logging_without_its_flag(server: DatabaseServer) -> None:
    """Check that the problem is reported before anything is changed."""
    database = server.new_database_for("mlflow")
    server.query("SET GLOBAL log_bin_trust_function_creators = 0")
    try:
        refused = run("migrate", variables(server, database))
    finally:
        server.query("SET GLOBAL log_bin_trust_function_creators = 1")
    assert "--database-flags=log_bin_trust_function_creators=on" in refused.stderr
    assert server.query(f"SHOW TABLES IN {database}") == []
    assert run("migrate", variables(server, database)).exit_code == 0
