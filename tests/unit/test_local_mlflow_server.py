"""A real MLflow server as a child process."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from mlflow_iap_callbacks.local import LocalCloud, MlflowServer


def create_experiment(url: str, name: str, **headers: str) -> requests.Response:
    return requests.post(
        f"{url}/api/2.0/mlflow/experiments/create",
        json={"name": name},
        headers=headers,
        timeout=30,
    )


def test_keeps_what_it_stored_over_a_kill_and_serves_behind_iap(tmp_path: Path) -> None:
    """It answers, dies at once by kill, comes back on its port, and ends with its block."""
    with MlflowServer(tmp_path) as server:
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


def test_a_start_that_fails_shows_the_tail_of_the_log(tmp_path: Path) -> None:
    """A port that somebody else listens on makes start raise with what the server said."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RuntimeError, match="address already in use"):
            MlflowServer(tmp_path, port=port).start()


def test_importing_it_does_not_start_anything() -> None:
    """The module only defines the class."""
    script = "import mlflow_iap_callbacks.local.mlflow_server"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
