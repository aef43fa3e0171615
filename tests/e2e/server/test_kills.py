"""Shutdowns and kills of the deployed server and its database, which lose no acknowledged data."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
import requests

from deployed_server import DeployedServer
from deployment import Deployment
from ledger import Ledger
from server_database import KINDS, needs_mariadb
from server_helpers import ASSERTION
from variables import set_all
from waiting import wait_until

pytestmark = [needs_mariadb, pytest.mark.slow]  # a deployment with a durable database

_PIECE = bytes(1_000_000)  # size of an artifact


@pytest.fixture(scope="module", params=["mariadb"])
def started(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    folder, kind = tmp_path_factory.mktemp("deployed"), KINDS[request.param]()
    with Deployment(folder, is_durable=True, backend=kind) as deployment:
        yield deployment


@pytest.fixture
def deployment(started: Deployment, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    if started.server.has_ended:
        started.server.restart()
    set_all(monkeypatch, started.cloud.environment())
    return started


@pytest.mark.parametrize(
    "started", ["mariadb", pytest.param("postgresql", marks=pytest.mark.soak)], indirect=True
)
def test_a_kill_of_the_server_and_its_database_loses_nothing_and_stops_no_client(
    deployment: Deployment,
) -> None:
    both = (deployment.backend, deployment.server)
    with Ledger(clients=2) as ledger:
        ledger.wait_for_more(10)
        for victim in both:
            victim.kill()
        for victim in both:
            victim.restart()
        ledger.wait_for_more(1)
    assert ledger.wrong(deployment.backend, deployment.database) == []


def test_after_sigterm_under_load_the_server_finishes_its_requests_and_exits(
    deployment: Deployment,
) -> None:
    cloud, server = deployment.cloud, deployment.server
    with ThreadPoolExecutor(9) as pool:
        # Directly to the server, because IAP would respond in place of an unavailable one.
        headers = {"Host": cloud.url.removeprefix("http://"), ASSERTION: cloud.assertion()}
        is_begun, may_end = Event(), Event()
        upload = pool.submit(upload_slowly, server, headers, is_begun, may_end)
        assert is_begun.wait(30)
        answers: list[str] = []
        loads = [pool.submit(create_runs, server, headers, answers) for _ in range(8)]
        wait_until(lambda: len(answers) > 50, "the load")
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "Waiting for connections to close" in server.log.read_text(), "SIGTERM")
        assert not server.has_ended
        may_end.set()
        # App Engine kills after 30 seconds.
        assert server.process.wait(30) == 0
        for load in loads:
            load.result()
        assert upload.result() == 200
        wait_until(lambda: server.processes == [], "the end of its child processes", 5)
    runs = deployment.backend.query(
        f"SELECT run_uuid FROM {deployment.database}.runs WHERE experiment_id = 0"
    )
    assert {run_id for (run_id,) in runs} == set(answers), "each stored run was acknowledged"
    assert deployment.bucket.sizes()["artifacts/slow.bin"] == 4 * len(_PIECE)


def create_runs(server: DeployedServer, headers: Mapping[str, str], answers: list[str]) -> None:
    """Create runs until the server accepts no more connections."""
    while True:
        try:
            response = requests.post(
                f"{server.url}/api/2.0/mlflow/runs/create",
                json={"experiment_id": "0"},
                headers=headers,
                timeout=30,
            )
        except requests.ConnectionError:
            return
        answers.append(response.json()["run"]["info"]["run_id"])


def upload_slowly(
    server: DeployedServer, headers: Mapping[str, str], is_begun: Event, may_end: Event
) -> int:
    """Upload half of a file, then the rest once `may_end` is set; return the status."""

    def pieces() -> Iterator[bytes]:
        yield from (_PIECE, _PIECE)
        is_begun.set()
        may_end.wait(60)
        yield from (_PIECE, _PIECE)

    url = f"{server.url}/api/2.0/mlflow-artifacts/artifacts/slow.bin"
    return requests.put(url, data=pieces(), headers=headers, timeout=60).status_code
