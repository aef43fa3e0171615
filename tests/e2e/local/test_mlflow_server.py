"""A real MLflow server in a child process."""

from __future__ import annotations

import socket
import sqlite3
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
def test_a_restarted_server_has_its_data_and_works_behind_iap(
    kind: type[MlflowServer], tmp_path: Path
) -> None:
    """A killed server does not respond. It restarts on the same port, and stops after `with`."""
    with kind(tmp_path) as server:
        url = server.url
        assert create_experiment(url, "kept").status_code == 200
        with LocalCloud(url) as cloud:
            assert create_experiment(cloud.url, "rejected").status_code == 401
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


def test_many_concurrent_requests_that_wait_for_the_database_all_succeed(tmp_path: Path) -> None:
    """With MLflow's own 15 connections, 30 requests take one each and wait 30 s for another."""
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
    """Return how often this process's children have a database open."""
    found = 0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            found += sum(file.path == str(database) for file in process.open_files())
    return found


def test_a_failed_start_shows_the_end_of_the_log(tmp_path: Path) -> None:
    """If the port is in use, start raises with what the server said about it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RuntimeError, match="address already in use"):
            TrackingServer(tmp_path, port=port).start()
