"""Trials whose processes died before the callback: an ordinary process logs them, or a command."""

from __future__ import annotations

import uuid
from pathlib import Path

import optuna
import pytest

import killed_sweeps
from mlflow_iap_callbacks.local import LocalCloud
from optuna_equality import assert_mlflow_equals_storage
from scripts import DEADLINE, Start, command

IMPORTS = killed_sweeps.IMPORTS
_KILLS = 3


@pytest.fixture
def study(start: Start, tmp_path: Path) -> optuna.Study:
    """A study whose processes killed themselves between a commit and the callback."""
    name, storage = uuid.uuid4().hex, f"sqlite:///{tmp_path / 'study.db'}"
    victims = start(killed_sweeps.SELF_KILLED, name, storage, str(_KILLS))
    assert victims.end() == 0, victims.err
    study = optuna.load_study(study_name=name, storage=storage)
    assert len(study.trials) == 4 * _KILLS
    return study


@pytest.mark.slow
def test_after_kills_one_ordinary_process_makes_mlflow_equal_to_the_storage(
    cloud: LocalCloud, start: Start, study: optuna.Study, tmp_path: Path
) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    ordinary = start(killed_sweeps.ORDINARY, study.study_name, storage, "0")
    assert ordinary.end(DEADLINE) == 0, ordinary.err
    assert_mlflow_equals_storage(study, has_killed=True)


@pytest.mark.slow
def test_after_kills_the_command_makes_mlflow_equal_to_the_storage(
    cloud: LocalCloud, study: optuna.Study, tmp_path: Path
) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    done = command("sync", "--storage", storage, "--study", study.study_name)
    assert (done.returncode, done.stderr.count("Error")) == (0, 0), done.stderr
    assert f"study '{study.study_name}': {_KILLS} logged" in done.stdout, done.stdout
    assert_mlflow_equals_storage(study, has_killed=True)
    again = command("sync", "--storage", storage)
    assert again.stdout == f"study '{study.study_name}': {4 * _KILLS} already in MLflow\n"
