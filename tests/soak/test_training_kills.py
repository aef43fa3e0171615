"""Autologged trainings killed at random moments: what each call had logged is in MLflow once.

Run by ``python -m pytest -m soak -s tests/soak``; SOAK_SEED picks other random moments.
"""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

import killed_trainings
from mlflow_iap_callbacks import IAPMlflowClient
from mlflow_iap_callbacks.local import LocalCloud
from scripts import starting
from soak_sweeps import SEED

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

_KILLS = 50


def test_after_kills_one_ordinary_process_delivers_what_was_logged(
    cloud: LocalCloud, tmp_path: Path
) -> None:
    name, notes = uuid.uuid4().hex, tmp_path / "notes"
    with starting(tmp_path, killed_trainings.IMPORTS) as start:
        for program in (killed_trainings.VICTIMS, killed_trainings.NEXT):
            script = start(program, name, str(notes), str(SEED), str(_KILLS))
            assert script.end(600.0) == 0, f"seed {SEED}: {script.err}"
    assert killed_trainings.wrong(IAPMlflowClient(), name, notes) == []
    print(f"{_KILLS} kills, {len(notes.read_text().splitlines())} acknowledged writes")
