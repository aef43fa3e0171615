"""Migrations that are killed at ten moments, or begin at the oldest MLflow; the image's Python."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from bucket_emulator import BucketEmulator
from database_server import MariaDB
from deployed_server import HOST, DeployedServer, run, settings
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

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900), needs_mariadb]
__all__ = ["mariadb"]

_OLDEST_MLFLOW = "3.5.0"
_OLD_SQL = "sqlalchemy<2.1"  # 2.1 came after it
_APPENGINE = Path(__file__).parents[2] / "appengine"
_LOG = """
import mlflow
with mlflow.start_run():
    mlflow.log_metric("auc", 0.5)
    mlflow.log_param("depth", 3)
"""


def has_the_images_python() -> bool:
    try:
        done = subprocess.run(["python3.12", "--version"], capture_output=True)
    except FileNotFoundError:
        return False
    return done.returncode == 0


@pytest.mark.parametrize("changes", range(3, 130, 13))
def test_a_first_migration_that_was_killed_anywhere_begins_anew(
    mariadb: MariaDB, changes: int
) -> None:
    database = mariadb.new_database_for("mlflow")
    kill_in_the_middle(mariadb, database, changes)
    assert run("check", variables(mariadb, database)).exit_code == 1
    assert run("migrate", variables(mariadb, database)).stdout == "The schema is migrated.\n"
    assert run("migrate", variables(mariadb, database)).stdout == "The schema is current.\n"


@pytest.mark.parametrize("changes", range(1, 31, 3))
def test_a_later_migration_that_was_killed_anywhere_is_undone_by_the_backup(
    mariadb: MariaDB, changes: int
) -> None:
    database = mariadb.new_database_for("mlflow")
    fill(mariadb, database, OLDEST_REVISION)
    log_a_run(mariadb, database)
    backup = mariadb.dump(database)
    kill_in_the_middle(mariadb, database, changes)
    assert "Restore the backup" in run("migrate", variables(mariadb, database)).output
    mariadb.restore(database, backup)
    assert run("migrate", variables(mariadb, database)).stdout == "The schema is migrated.\n"
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
    assert run("migrate", given).stdout == "The schema is migrated.\n"
    with DeployedServer(tmp_path, given) as server:
        found = requests.post(
            f"{server.url}/api/2.0/mlflow/runs/search",
            json={"experiment_ids": ["0"], "filter": "metrics.auc = 0.5"},
            headers={"Host": HOST},
            timeout=30,
        )
        (only,) = found.json()["runs"]
        assert only["data"]["params"] == [{"key": "depth", "value": "3"}]


@pytest.mark.skipif(not has_the_images_python(), reason="needs python3.12")
def test_what_the_image_holds_is_enough_to_serve(mariadb: MariaDB, tmp_path: Path) -> None:
    """The steps of its Dockerfile in an environment of their own, and its entrypoint."""
    wheel = tmp_path / "wheel"
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", str(wheel)]
    subprocess.run([*build, str(_APPENGINE.parent)], check=True)
    (built,) = wheel.iterdir()
    pinned = ["--require-hashes", "-r", str(_APPENGINE / "requirements.txt")]
    python = venv(tmp_path / "image", "3.12", "--only-binary", ":all:", *pinned)
    install(python, "--no-deps", str(built))
    with BucketEmulator(tmp_path) as bucket:
        given = settings(mariadb, mariadb.new_database_for("mlflow"), f"gs://{bucket.bucket}/a")
        given |= {**bucket.environment, "MLFLOW_SERVER_MIGRATE": "true"}
        given["PATH"] = f"{Path(python).parent}:/usr/bin:/bin"
        with DeployedServer(tmp_path, given, ["sh", str(_APPENGINE / "entrypoint.sh")]) as server:
            put = f"{server.url}/api/2.0/mlflow-artifacts/artifacts/1/r/artifacts/a.txt"
            requests.put(put, b"kept", headers={"Host": HOST}, timeout=30).raise_for_status()
            assert bucket.names() == ["a/1/r/artifacts/a.txt"]
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(30) == 0


def venv(folder: Path, python: str, *packages: str) -> str:
    """An environment with packages; return its Python."""
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "-q", "--python", python, str(folder)], check=True)
    install(str(folder / "bin" / "python"), *packages)
    return str(folder / "bin" / "python")


def install(python: str, *packages: str) -> None:
    command = [sys.executable, "-m", "uv", "pip", "install", "-q", "--compile-bytecode"]
    subprocess.run([*command, "--python", python, *packages], check=True, timeout=600)
