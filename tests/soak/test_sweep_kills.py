"""Sweeps killed at random moments: the next ordinary process makes MLflow equal to the storage.

Run by ``python -m pytest -m soak -s tests/soak``; SOAK_SEED picks other random moments.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend

import database_server
import killed_sweeps
from database_server import MariaDB
from mlflow_iap_callbacks.local import LocalCloud
from mlflow_iap_callbacks.outbox import journal_folder
from mlflow_iap_callbacks.tags import STATE_TAG, TRIAL_TAG
from optuna_equality import assert_mlflow_equals_storage, runs_in
from scripts import starting
from soak_sweeps import SEED

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

_KILLS = {"SQLite": 34, "JournalStorage": 33, "MariaDB": 33}


@pytest.fixture
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of an empty storage, or the path of its file."""
    if request.param == "SQLite":
        yield f"sqlite:///{tmp_path / 'study.db'}"
    elif request.param == "JournalStorage":
        yield str(tmp_path / "study.log")
    elif not database_server.is_installed() and not os.environ.get("CI"):
        pytest.skip("Debian's mariadb-server is not installed")
    else:
        folder = tmp_path / "mariadb"
        folder.mkdir()
        with MariaDB(folder) as server:
            yield server.new_database()


@pytest.mark.parametrize(
    ("storage", "kills"), _KILLS.items(), indirect=["storage"], ids=list(_KILLS)
)
def test_after_kills_one_ordinary_process_makes_mlflow_equal_to_the_storage(
    cloud: LocalCloud, tmp_path: Path, storage: str, kills: int
) -> None:
    name = uuid.uuid4().hex
    with starting(tmp_path, killed_sweeps.IMPORTS) as start:
        victims = start(killed_sweeps.VICTIMS, name, storage, str(SEED), str(kills))
        assert victims.end(600.0) == 0, f"seed {SEED}: {victims.err}"
        ended = {t.number for t in _load(name, storage).trials if t.state.is_finished()}
        tags = [run.data.tags for run in runs_in(name)]
        logged = {int(each[TRIAL_TAG]) for each in tags if STATE_TAG in each}
        # On a slow machine, more is waiting than the 30 seconds of an exit are enough for.
        program = f"{killed_sweeps.ORDINARY}\ncallback.flush(None)"
        ordinary = start(program, name, storage, "30")
        assert ordinary.end(300.0) == 0, f"seed {SEED}: {ordinary.err}"
    print(f"\n  seed: {SEED}\n  kills: {kills}\n  trials that had ended: {len(ended)}")
    print(f"  trials that MLflow lacked before the ordinary process: {len(ended - logged)}")
    print(f"  said by killed processes: {victims.err.strip()}")
    print(f"  said: {ordinary.err.strip()}")
    study = _load(name, storage)
    for what, count in assert_mlflow_equals_storage(study, has_killed=True).items():
        print(f"  {what} compared: {count}")
    print(f"  trials that run for ever: {sum(not t.state.is_finished() for t in study.trials)}")
    assert not [journal for journal in journal_folder.survey() if journal.records()]


def _load(name: str, storage: str) -> optuna.Study:
    if "://" in storage:
        return optuna.load_study(study_name=name, storage=storage)
    journal = optuna.storages.JournalStorage(JournalFileBackend(storage))
    return optuna.load_study(study_name=name, storage=journal)
