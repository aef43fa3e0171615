"""Hours of trouble in minutes: what was logged is in MLflow, each point exactly once.

Run by ``python -m pytest -m soak -s tests/soak``; SOAK_SEED picks other random moments.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos import Chaos
from ground_truth import Notes, compare, read
from mlflow import MlflowClient

from conftest import set_all
from mlflow_iap_callbacks.local import LocalCloud, MlflowServer

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

_SEED = int(os.environ.get("SOAK_SEED", "20"))
_COMMAND = str(Path(sysconfig.get_path("scripts")) / "mlflow-iap")
_WORKER = str(Path(__file__).with_name("sweep_worker.py"))
_KILLS, _SERVER_KILLS = 50, 20
_CHAINS, _JOBS = 2, 2  # processes at once, trials at once of each
_WITHOUT_ROLE = 30.0
_MOST_GROWTH_MEGABYTES = 30.0
# What may be said to a training's owner while such things happen.
_EXPECTED = re.compile(
    r"(WARNING mlflow_iap_callbacks\.sender )?"
    r"(\S+ (cannot be written to|takes what is logged again)|A run waits, and is tried again later)"
)


class Worker:
    """A sweep in a process of its own."""

    def __init__(self, folder: Path, mode: str, number: int = 0, **options: float) -> None:
        self.said = folder / f"said-{number}"
        self._notes = folder / f"notes-{number}"
        command = [sys.executable, _WORKER, mode, "--name=sweep"]
        command += [f"--notes={self._notes}", f"--seed={_SEED * 1000 + number}"]
        command += [f"--{name}={value}" for name, value in options.items()]
        with self.said.open("w") as said:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
            )

    def hear(self) -> str:
        """The next line of its output."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line, f"seed {_SEED}: the sweep ended: {self.said.read_text()[-3000:]}"
        return line

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        assert self.process.poll() is None, self.said.read_text()
        self.process.kill()
        self.process.communicate()
        Notes(self._notes).killed()

    def end(self) -> None:
        self.process.communicate(timeout=60.0)
        assert self.process.returncode == 0, self.said.read_text()


class Soak:
    """A server of its own behind IAP, the sweeps that log to it, and what they noted."""

    def __init__(self, folder: Path, server: MlflowServer, cloud: LocalCloud) -> None:
        self.folder = folder
        self.server = server
        self.cloud = cloud
        self._workers: list[Worker] = []
        self._began = time.monotonic()

    def worker(self, mode: str, number: int = 0, **options: float) -> Worker:
        """A sweep that is ready to begin."""
        worker = Worker(self.folder, mode, number, **options)
        self._workers.append(worker)
        assert worker.hear() == "ready"
        return worker

    def close(self) -> None:
        """Leave no sweep behind, whatever became of the test."""
        for worker in self._workers:
            worker.process.kill()
            worker.process.communicate()

    def warnings(self) -> list[str]:
        """All that the sweeps said to their owners, but where their studies are."""
        said = "".join(path.read_text() for path in sorted(self.folder.glob("said-*")))
        # A warning may quote the page that a front end answered with, over several lines.
        lines = re.sub(r"\n(?=[<'])", " ", said).splitlines()
        return [line for line in lines if not line.startswith("Study sweep: http")]

    def check(self, figures: dict[str, object], *, most_unknown: int = 0) -> None:
        """Hold all that was noted against MLflow, and print the figures."""
        store = MlflowClient(f"sqlite:///{self.folder / 'mlflow' / 'mlflow.db'}")
        noted = read(sorted(self.folder.glob("notes-*")))
        result = compare(store, noted, most_unknown=most_unknown)
        status = subprocess.run([_COMMAND, "status"], capture_output=True, text=True, check=True)
        if not status.stdout.startswith("Nothing waits in"):
            result.wrong.append(status.stdout)
        if left := [path.name for path in self.folder.glob("outbox/*")]:
            result.wrong.append(f"{left} are left in the outbox")
        result.wrong += [f"a sweep said {w!r}" for w in self.warnings() if not _EXPECTED.match(w)]
        answers = Counter(seen.status for seen in self.cloud.requests)
        figures |= {
            **result.figures,
            "seconds": round(time.monotonic() - self._began),
            "requests": len(self.cloud.requests),
            "answers": ", ".join(f"{n} x {status or 'lost'}" for status, n in answers.items()),
            "tokens": len(self.cloud.tokens),
            "warnings": len(self.warnings()),
            "seed": _SEED,
        }
        print("", *(f"{name}: {value}" for name, value in figures.items()), sep="\n  ")
        wrong = "\n".join(result.wrong[:20])
        assert not result.wrong, f"seed {_SEED}, {len(result.wrong)} wrong:\n{wrong}"


@pytest.fixture
def soak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Soak]:
    with MlflowServer(tmp_path / "mlflow") as server, LocalCloud(server.url) as cloud:
        set_all(monkeypatch, cloud.environment())
        soak = Soak(tmp_path, server, cloud)
        yield soak
        soak.close()


def test_a_sweep_killed_50_times_amid_all_troubles_at_once_is_in_mlflow_exactly_once(
    soak: Soak,
) -> None:
    kills = itertools.count(1)
    numbers = itertools.count()
    killed = 0

    def work_and_be_killed(chain: int) -> None:
        nonlocal killed
        rng = random.Random(f"{_SEED} {chain}")
        while not chaos.has_failed and (
            killed < _KILLS or chaos.server_kills < _SERVER_KILLS or not chaos.seconds_without_role
        ):
            worker = soak.worker("until-killed", next(numbers))
            chaos.wait(rng.uniform(0.3, 3.0))
            worker.kill()
            killed = next(kills)

    def sync_beside_them() -> None:
        rng = random.Random(f"{_SEED} sync")
        command = [_COMMAND, "sync"]
        with (soak.folder / "said-sync").open("w") as said:
            while chaos.wait(5.0):
                with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said) as sync:
                    try:
                        sync.wait(rng.uniform(4.0, 30.0))
                    except subprocess.TimeoutExpired:
                        sync.kill()

    with Chaos(soak.cloud, soak.server, _SEED) as chaos:
        chaos.start(chaos.revoke_tokens_every_second)
        chaos.start(sync_beside_them)
        chaos.start(chaos.kill_the_server, _SERVER_KILLS)
        chaos.start(chaos.withdraw_the_role, 40.0, _WITHOUT_ROLE)
        for thread in [chaos.start(work_and_be_killed, chain) for chain in range(_CHAINS)]:
            thread.join()

    requests = len(soak.cloud.requests)
    waiting = len(list(soak.folder.glob("outbox/*.sqlite")))
    began, syncs = time.monotonic(), 0
    while True:
        done = subprocess.run([_COMMAND, "sync"], capture_output=True, text=True, timeout=240.0)
        syncs += 1
        if done.returncode == 0 or syncs == 5:
            break
    assert done.returncode == 0, f"seed {_SEED}: {done.stdout} {done.stderr}"
    soak.check(
        {
            "kills": killed,
            "server kills": chaos.server_kills,
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
    assert chaos.server_kills == _SERVER_KILLS


def test_a_server_away_for_ten_minutes_worth_of_sweep_costs_neither_memory_nor_a_point(
    soak: Soak,
) -> None:
    # Ten minutes of trials of half a second; more of them than the sender keeps in memory.
    worker = soak.worker("outage", trials=1200, seconds=70.0)
    assert worker.hear() == "warm"
    soak.server.kill()
    worker.go_on()
    assert worker.hear() == "swept"
    during = soak.warnings()
    soak.server.restart()
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


def test_two_minutes_of_8_trials_at_once_with_every_fifth_answer_lost_are_there_exactly_once(
    soak: Soak,
) -> None:
    with Chaos(soak.cloud, soak.server, _SEED) as chaos:
        chaos.start(chaos.revoke_tokens_every_second)
        worker = soak.worker("steady", seconds=120.0)
        figures = json.loads(worker.hear())
    worker.end()
    soak.check({**figures, "revocations": chaos.revocations})
    assert figures["is_delivered"]
