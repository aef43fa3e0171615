"""How long each end of a process takes, for any number of studies and in any state of the server.

Run by ``python -m pytest -m soak -s tests/soak/test_ends.py``; it prints a line for each case.
"""

from __future__ import annotations

import signal
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import mlflow
import pytest

from mlflow_iap_callbacks.local import MlflowServer
from mlflow_iap_callbacks.tags import STUDY_TAG
from scripts import starting
from tracking_server import TrackingServer

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

_SWEEPS = """
import sys, time
import optuna
from mlflow_iap_callbacks import IAPMLflowCallback

optuna.logging.set_verbosity(optuna.logging.ERROR)
way, name, studies, trials = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
callback = IAPMLflowCallback(experiment_name=name)
found = []

def sweep():
    for number in range(studies):
        sampler = optuna.samplers.RandomSampler()
        study = optuna.create_study(study_name=f"{name} {number}", sampler=sampler)
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), trials, callbacks=[callback])
        found.append(study)

if way == "with":
    with callback:
        sweep()
        print("swept", time.time(), flush=True)
else:
    sweep()
    print("swept", time.time(), flush=True)
if way in ("close", "Ctrl-C"):
    callback.close()
elif way == "SIGTERM":
    time.sleep(600)
print("closed", flush=True)
"""
# Seconds that an end may take, and what the process's start of its last request may add.
_BUDGETS = {
    "exit": 30.0,
    "with": 60.0 + 30.0,
    "close": 60.0 + 30.0,
    "SIGTERM": 10.0,
    "Ctrl-C": 30.0,
}
_GRACE = 10.0
_STATUS = {"SIGTERM": -signal.SIGTERM, "Ctrl-C": -signal.SIGINT}


class _Way(threading.Thread):
    """A TCP proxy in front of the server, which is slow or silent once it is told to be.

    Args:
        port: port of the server.
    """

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.state = "up"
        self._server = port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.port = self._listener.getsockname()[1]
        self.start()

    def run(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._server))
                for ends in ((client, server, True), (server, client, False)):
                    threading.Thread(target=self._pass, args=ends, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):  # a thread that waits in accept() would take one more connection
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _pass(self, source: socket.socket, to: socket.socket, is_request: bool) -> None:
        with suppress(OSError), closing(source), closing(to):
            while data := source.recv(65536):
                if is_request and self.state == "slow":
                    threading.Event().wait(1.0)  # the delay is what is tested
                if self.state != "half open":
                    to.sendall(data)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with TrackingServer(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.mark.parametrize("state", ["up", "slow", "away", "half open"])
@pytest.mark.parametrize(
    ("studies", "trials"), [(1, 2), (20, 2), (200, 2), (1, 20_000)], ids=lambda count: str(count)
)
@pytest.mark.parametrize("way", _BUDGETS)
def test_an_end_keeps_its_time_limit(
    server: MlflowServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
    studies: int,
    trials: int,
    state: str,
) -> None:
    name = uuid.uuid4().hex
    proxy = _Way(int(server.url.rpartition(":")[2]))
    proxy.state = state
    port = proxy.port
    if state == "away":
        proxy.close()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    with starting(tmp_path, "") as start:
        script = start(_SWEEPS, way, name, str(studies), str(trials))
        script.wait_for("swept", 300.0)
        began = float(script.out.split("swept")[1].split()[0])
        if way == "SIGTERM":
            script.send(signal.SIGTERM)
        elif way == "Ctrl-C":
            threading.Event().wait(2.0)  # somewhere in the middle of closing
            script.send(signal.SIGINT)
        status = script.end(300.0)
        took = time.time() - began
    proxy.close()
    runs = mlflow.MlflowClient(server.url).search_experiments(filter_string=f"name = '{name}'")
    statuses: Counter[str] = Counter()
    for experiment in runs:
        query = f"tags.`{STUDY_TAG}` LIKE '%'"
        found = mlflow.MlflowClient(server.url).search_runs([experiment.experiment_id], query)
        statuses.update(run.info.status for run in found)
    said = next((line for line in script.err.splitlines() if "left on disk" in line), "")
    print(
        f"\n  {way:8} {studies:4} studies {trials:6} trials  server {state:9}  {took:5.1f} s  "
        f"status {status:4}  {dict(statuses)}  {said[:80]}"
    )
    assert status == _STATUS.get(way, 0) or (way == "Ctrl-C" and status == 1), script.err
    assert took < _BUDGETS[way] + _GRACE, script.err
