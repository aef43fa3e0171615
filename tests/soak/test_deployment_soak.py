"""Kills the deployed server and its database at random moments under load.

Run with ``python -m pytest -m soak -s tests/soak``; SOAK_SEED chooses other moments.
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos import Chaos
from deployment import Deployment
from ledger import Ledger
from server_database import needs_mariadb, text_of
from soak_sweeps import SEED, Soak
from variables import set_all

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900), needs_mariadb]
_CLIENTS, _KILLS = 6, 8
_LONGEST_OUTAGE = 5.0  # seconds until a killed server is restarted


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployment]:
    with Deployment(tmp_path, is_durable=True) as deployment:
        set_all(monkeypatch, deployment.cloud.environment())
        yield deployment


@pytest.mark.parametrize("killed", [("server",), ("backend",), ("backend", "server")])
def test_everything_acknowledged_is_stored_exactly_once_no_matter_what_is_killed(
    deployment: Deployment, killed: tuple[str, ...]
) -> None:
    rng = random.Random(f"{SEED} {killed}")
    victims = [getattr(deployment, name) for name in killed]
    tick = threading.Event()
    with Ledger(_CLIENTS) as ledger:
        for _ in range(_KILLS):
            ledger.wait_for_more(rng.randint(1, 30))
            for victim in victims:
                victim.kill()
            tick.wait(rng.uniform(0.0, _LONGEST_OUTAGE))
            for victim in victims:
                victim.restart()
        ledger.wait_for_more(10)
    statuses = {seen.status for seen in deployment.cloud.requests}
    print("", {**ledger.figures, "kills": _KILLS, "answers": statuses, "seed": SEED}, sep="\n  ")
    assert ledger.wrong(deployment.backend, deployment.database) == []


def test_a_sweep_with_both_callbacks_is_in_mlflow_exactly_once_no_matter_what_is_killed(
    deployment: Deployment, tmp_path: Path
) -> None:
    store = text_of(deployment.backend, deployment.database)
    with (
        Soak(tmp_path, deployment.cloud, store) as soak,
        Chaos(deployment.cloud, SEED, lost=0.0) as chaos,
    ):
        worker = soak.worker("steady", seconds=90.0)
        victims = (deployment.backend, deployment.server)
        chaos.start(chaos.kill, _KILLS, *victims).join()
        figures = json.loads(worker.hear())
        worker.end()
        soak.check({**figures, "kills": chaos.kills})
    assert figures["is_delivered"]
    assert chaos.kills == _KILLS
