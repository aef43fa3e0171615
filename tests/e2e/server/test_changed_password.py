"""A running server goes on after the password of its database was changed."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests

from database_server import DatabaseServer
from deployed_server import HOST, PASSWORD, DeployedServer, run, settings
from mlflow_iap_callbacks.local import LocalCloud
from ports import free_port
from server_database import backend, mariadb, needs_mariadb
from server_helpers import ASSERTION

pytestmark = [needs_mariadb, pytest.mark.slow]
__all__ = ["backend", "mariadb"]

# What changes the password to `changed`, and ends the connections that were made before.
_CHANGE = {
    "mysql": (
        "ALTER USER mlflow@localhost IDENTIFIED BY 'changed'",
        "KILL USER mlflow@localhost",
    ),
    "postgresql": (
        "ALTER USER mlflow PASSWORD 'changed'",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'mlflow'",
    ),
}


def test_requests_succeed_after_the_password_was_changed_without_a_restart(
    backend: DatabaseServer, tmp_path: Path
) -> None:
    file = tmp_path / "password"
    file.write_text(PASSWORD)
    with LocalCloud() as cloud:
        database = backend.new_database_for("mlflow")
        given = {
            **settings(backend, database, str(tmp_path / "artifacts")),
            **cloud.server_environment(),
            "MLFLOW_WORKERS": "1",
            "MLFLOW_SERVER_DATABASE_PASSWORD": "",
            "MLFLOW_SERVER_DATABASE_PASSWORD_FILE": str(file),
        }
        assert run("migrate", given).exit_code == 0
        headers = {ASSERTION: cloud.assertion("ada@example.com"), "Host": HOST}
        with DeployedServer(tmp_path, given, gated_port=free_port()) as server:

            def status() -> int:
                url = f"{server.url}/api/2.0/mlflow/experiments/get?experiment_id=0"
                return requests.get(url, headers=headers, timeout=30).status_code

            assert status() == 200
            # In the order of the README: first the secret, then the database.
            file.write_text("changed")
            assert status() == 200
            for statement in _CHANGE[backend.engine]:
                backend.query(statement)
            assert [status() for _ in range(4)] == [200] * 4
