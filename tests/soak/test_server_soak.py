"""Migrations that are killed or start from the oldest MLflow; the chain with the image's pins."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import pytest
import requests

from database_server import MariaDB
from deployed_server import HOST, DeployedServer, run, settings
from deployment import PROGRAM, Deployment
from server_database import (
    OLDEST_REVISION,
    fill,
    is_the_run_there,
    kill_in_the_middle,
    log_a_run,
    mariadb,
    needs_mariadb,
    text_of,
    variables,
)
from variables import set_all
from waiting import wait_until

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900), needs_mariadb]
__all__ = ["mariadb"]

_OLDEST_MLFLOW = "3.5.0"
_OLD_SQL = "sqlalchemy<2.1"  # 2.1 came after it
_IMAGE = Path(__file__).parents[2] / "build" / "server" / "bin" / "python"
_LOG = """
import mlflow
with mlflow.start_run():
    mlflow.log_metric("auc", 0.5)
    mlflow.log_param("depth", 3)
"""

needs_the_image = pytest.mark.skipif(
    not _IMAGE.exists(), reason="needs what the image holds: `make build/server/ready`"
)


@pytest.mark.parametrize("changes", range(3, 130, 13))
def test_a_first_migration_starts_over_no_matter_where_it_was_killed(
    mariadb: MariaDB, changes: int
) -> None:
    database = mariadb.new_database_for("mlflow")
    kill_in_the_middle(mariadb, database, changes)
    assert run("check", variables(mariadb, database)).exit_code == 1
    assert run("migrate", variables(mariadb, database)).stdout == "The schema has been migrated.\n"
    assert run("migrate", variables(mariadb, database)).stdout == "The schema is up to date.\n"


@pytest.mark.parametrize("changes", range(1, 31, 3))
def test_a_later_migration_is_undone_by_the_backup_no_matter_where_it_was_killed(
    mariadb: MariaDB, changes: int
) -> None:
    database = mariadb.new_database_for("mlflow")
    fill(mariadb, database, OLDEST_REVISION)
    log_a_run(mariadb, database)
    backup = mariadb.dump(database)
    kill_in_the_middle(mariadb, database, changes)
    assert "Restore the backup" in run("migrate", variables(mariadb, database)).output
    mariadb.restore(database, backup)
    assert run("migrate", variables(mariadb, database)).stdout == "The schema has been migrated.\n"
    assert is_the_run_there(mariadb, database)


def test_a_database_of_the_oldest_mlflow_is_served_after_its_migration(
    mariadb: MariaDB, tmp_path: Path
) -> None:
    database = mariadb.new_database_for("mlflow")
    old = venv(tmp_path / "old", sys.executable, f"mlflow=={_OLDEST_MLFLOW}", "pymysql", _OLD_SQL)
    logged = subprocess.run(
        [old, "-c", _LOG], env={"MLFLOW_TRACKING_URI": text_of(mariadb, database)}, cwd=tmp_path
    )
    assert logged.returncode == 0
    given = settings(mariadb, database, str(tmp_path / "artifacts"))
    assert f"has the older schema {OLDEST_REVISION}" in run("check", given).output
    assert run("migrate", given).stdout == "The schema has been migrated.\n"
    with DeployedServer(tmp_path, given) as server:
        found = requests.post(
            f"{server.url}/api/2.0/mlflow/runs/search",
            json={"experiment_ids": ["0"], "filter": "metrics.auc = 0.5"},
            headers={"Host": HOST},
            timeout=30,
        )
        (only,) = found.json()["runs"]
        assert only["data"]["params"] == [{"key": "depth", "value": "3"}]


@needs_the_image
def test_the_image_has_everything_that_the_whole_chain_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Deployment(tmp_path, _IMAGE) as deployment:
        set_all(monkeypatch, deployment.cloud.environment())
        run_id = mlflow.MlflowClient().create_run("0").info.run_id
        mlflow.MlflowClient().log_text(run_id, "kept", "a.txt")
        assert f"artifacts/0/{run_id}/artifacts/a.txt" in deployment.bucket.names()
        deployment.server.process.send_signal(signal.SIGTERM)
        assert deployment.server.process.wait(30) == 0


@needs_the_image
def test_the_program_runs_a_command_against_the_deployment_and_exits_with_its_status(
    tmp_path: Path,
) -> None:
    with begun(tmp_path, "--", sys.executable, "-c", f"{_LOG}\nexit(3)") as program:
        assert program.wait(120) == 3, said_by(tmp_path)
    assert "What IAP saw" in said_by(tmp_path)


@needs_the_image
def test_the_program_serves_until_it_is_ended_and_leaves_nothing(tmp_path: Path) -> None:
    with begun(tmp_path) as program:
        wait_until(lambda: "MLFLOW_IAP_CLIENT_ID" in said_by(tmp_path), "the program", 120)
        exports = dict(re.findall(r"^export (\w+)=(.+)$", said_by(tmp_path), re.MULTILINE))
        logged = subprocess.run([sys.executable, "-c", _LOG], env=exports, cwd=tmp_path)
        assert logged.returncode == 0
        children = children_of(program.pid)
        assert len(children) == 3, "MariaDB, the bucket and the server"
        program.send_signal(signal.SIGTERM)
        assert program.wait(60) == 0
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
    assert not Path(exports["GOOGLE_APPLICATION_CREDENTIALS"]).exists()
    with pytest.raises(requests.ConnectionError):
        requests.get(exports["MLFLOW_TRACKING_URI"], timeout=5)


@contextmanager
def begun(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start what `make server` starts, with its output in a file in the folder."""
    command = [sys.executable, PROGRAM, "--python", str(_IMAGE), *arguments]
    with (folder / "said").open("wb") as said:
        program = subprocess.Popen(command, stdout=said, stderr=said)
    try:
        yield program
    finally:
        program.terminate()
        program.wait(60)


def said_by(folder: Path) -> str:
    return (folder / "said").read_text()


def children_of(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True)
    return [int(line) for line in listed.stdout.split()]


def venv(folder: Path, python: str, *packages: str) -> str:
    """Create an environment with packages; return its Python."""
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "-q", "--python", python, str(folder)], check=True)
    install(str(folder / "bin" / "python"), *packages)
    return str(folder / "bin" / "python")


def install(python: str, *packages: str) -> None:
    command = [sys.executable, "-m", "uv", "pip", "install", "-q", "--compile-bytecode"]
    subprocess.run([*command, "--python", python, *packages], check=True, timeout=600)
