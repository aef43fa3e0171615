"""Hours of faults in minutes: everything that was logged is in MLflow exactly once.

Run with ``python -m pytest -m soak -s tests/soak``; SOAK_SEED chooses other random moments.
"""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos import Chaos
from mlflow_iap_callbacks.local import LocalCloud, MlflowServer
from soak_sweeps import COMMAND, SEED, Soak
from variables import set_all

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

_KILLS, _SERVER_KILLS = 50, 20
_CHAINS, _JOBS = 2, 2  # parallel processes, parallel trials of each
_WITHOUT_ROLE = 30.0
_MOST_GROWTH_MEGABYTES = 30.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MlflowServer]:
    with MlflowServer(tmp_path / "mlflow") as server:
        yield server


@pytest.fixture
def soak(server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Soak]:
    with LocalCloud(server.url) as cloud:
        set_all(monkeypatch, cloud.environment())
        with Soak(tmp_path, cloud, f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}") as soak:
            yield soak


def test_a_sweep_killed_50_times_amid_all_kinds_of_faults_is_in_mlflow_exactly_once(
    soak: Soak, server: MlflowServer
) -> None:
    kills = itertools.count(1)
    numbers = itertools.count()
    killed = 0

    def work_and_be_killed(chain: int) -> None:
        nonlocal killed
        rng = random.Random(f"{SEED} {chain}")
        while not chaos.has_failed and (
            killed < _KILLS or chaos.kills < _SERVER_KILLS or not chaos.seconds_without_role
        ):
            worker = soak.worker("until-killed", next(numbers))
            chaos.wait(rng.uniform(0.3, 3.0))
            worker.kill()
            killed = next(kills)

    def sync_beside_them() -> None:
        rng = random.Random(f"{SEED} sync")
        command = [COMMAND, "sync"]
        with (soak.folder / "said-sync").open("w") as said:
            while chaos.wait(5.0):
                with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said) as sync:
                    try:
                        sync.wait(rng.uniform(4.0, 30.0))
                    except subprocess.TimeoutExpired:
                        sync.kill()

    with Chaos(soak.cloud, SEED) as chaos:
        chaos.start(chaos.revoke_tokens_every_second)
        chaos.start(sync_beside_them)
        chaos.start(chaos.kill, _SERVER_KILLS, server)
        chaos.start(chaos.withdraw_the_role, 40.0, _WITHOUT_ROLE)
        for thread in [chaos.start(work_and_be_killed, chain) for chain in range(_CHAINS)]:
            thread.join()

    requests = len(soak.cloud.requests)
    waiting = len(list(soak.folder.glob("outbox/*.sqlite")))
    began, syncs = time.monotonic(), 0
    while True:
        done = subprocess.run([COMMAND, "sync"], capture_output=True, text=True, timeout=240.0)
        syncs += 1
        if done.returncode == 0 or syncs == 5:
            break
    assert done.returncode == 0, f"seed {SEED}: {done.stdout} {done.stderr}"
    soak.check(
        {
            "kills": killed,
            "server kills": chaos.kills,
            "revocations": chaos.revocations,
            "requests in trouble": requests,
            "seconds without role": round(chaos.seconds_without_role),
            "journals left by the last kills": waiting,
            "syncs": syncs,
            "seconds of sync": round(time.monotonic() - began),
            "sync said": (done.stdout + done.stderr).strip(),
        },
        most_unknown=killed * _JOBS,
    )
    assert killed >= _KILLS
    assert chaos.kills == _SERVER_KILLS


def test_ten_minutes_of_sweep_without_a_server_cost_neither_memory_nor_a_point(
    soak: Soak, server: MlflowServer
) -> None:
    # Ten minutes of trials that take half a second: more than the sender keeps in memory.
    worker = soak.worker("outage", trials=1200, seconds=70.0)
    assert worker.hear() == "warm"
    server.kill()
    worker.go_on()
    assert worker.hear() == "swept"
    during = soak.warnings()
    server.restart()
    worker.go_on()
    figures = json.loads(worker.hear())
    worker.end()
    soak.check(figures)
    assert figures["is_delivered"]
    assert figures["seconds"] >= 60.0
    assert figures["highest"] - figures["after_tenth"] < _MOST_GROWTH_MEGABYTES
    assert len(during) == 1, during
    assert "cannot be written to" in during[0]
    assert len(soak.warnings()) == 2


def test_two_minutes_of_8_parallel_trials_with_every_fifth_response_lost_arrive_exactly_once(
    soak: Soak,
) -> None:
    with Chaos(soak.cloud, SEED) as chaos:
        chaos.start(chaos.revoke_tokens_every_second)
        worker = soak.worker("steady", seconds=120.0)
        figures = json.loads(worker.hear())
    worker.end()
    soak.check({**figures, "revocations": chaos.revocations})
    assert figures["is_delivered"]
