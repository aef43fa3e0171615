"""A real MLflow server as a child process."""

from __future__ import annotations

import socket
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest
import requests

from mlflow_iap_callbacks.local import LocalCloud, MlflowServer
from tracking_server import TrackingServer
from waiting import wait_until


def create_experiment(url: str, name: str, **headers: str) -> requests.Response:
    return requests.post(
        f"{url}/api/2.0/mlflow/experiments/create",
        json={"name": name},
        headers=headers,
        timeout=30,
    )


@pytest.mark.parametrize(
    "kind", [TrackingServer, pytest.param(MlflowServer, marks=pytest.mark.slow)]
)
def test_keeps_what_it_stored_over_a_kill_and_serves_behind_iap(
    kind: type[MlflowServer], tmp_path: Path
) -> None:
    """It answers, dies at once by kill, comes back on its port, and ends with its block."""
    with kind(tmp_path) as server:
        url = server.url
        assert create_experiment(url, "kept").status_code == 200
        with LocalCloud(url) as cloud:
            assert create_experiment(cloud.url, "refused").status_code == 401
            assert cloud.requests[-1].iap_answer
        server.kill()
        with pytest.raises(requests.ConnectionError):
            requests.get(url, timeout=5)
        server.restart()
        assert server.url == url
        again = create_experiment(url, "kept")
        assert (again.status_code, again.json()["error_code"]) == (400, "RESOURCE_ALREADY_EXISTS")
    with pytest.raises(requests.ConnectionError):
        requests.get(url, timeout=5)
    assert server.log.exists()


def test_requests_that_wait_for_its_database_at_once_are_all_carried_out(tmp_path: Path) -> None:
    """Of MLflow's own 15 connections, 30 requests take one each and wait 30 s for a second."""
    with TrackingServer(tmp_path) as server, ThreadPoolExecutor(30) as pool:
        experiment = create_experiment(server.url, "crowded").json()
        runs = f"{server.url}/api/2.0/mlflow/runs"
        run = requests.post(f"{runs}/create", json=experiment, timeout=30)
        run_id = run.json()["run"]["info"]["run_id"]

        def log(step: int) -> int:
            point = {"key": "m", "value": 0.5, "timestamp": 1, "step": step}
            batch = {"run_id": run_id, "metrics": [point]}
            return requests.post(f"{runs}/log-batch", json=batch, timeout=60).status_code

        database = tmp_path / "mlflow.db"
        with closing(sqlite3.connect(database, isolation_level=None)) as other:
            before = _opened(database)
            other.execute("BEGIN EXCLUSIVE")
            answers = [pool.submit(log, step) for step in range(30)]
            wait_until(lambda: _opened(database) > before + 20, "more than 20 wait for it", 4.0)
            other.execute("ROLLBACK")
        assert [answer.result() for answer in answers] == [200] * 30


def _opened(database: Path) -> int:
    """How often this process's children have it open."""
    found = 0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            found += sum(file.path == str(database) for file in process.open_files())
    return found


def test_a_start_that_fails_shows_the_tail_of_the_log(tmp_path: Path) -> None:
    """A port that somebody else listens on makes start raise with what the server said."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RuntimeError, match="address already in use"):
            TrackingServer(tmp_path, port=port).start()


def test_importing_it_does_not_start_anything() -> None:
    """The module only defines the class."""
    script = "import mlflow_iap_callbacks.local.mlflow_server"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
