"""A journal that a killed process of version 0.1.0 left behind is delivered completely."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fake_mlflow import FakeMlflow
from mlflow_iap_callbacks.delivery.names import mlflow_name
from mlflow_iap_callbacks.outbox import journal_folder
from virtual_process import VirtualProcess

_STORED = Path(__file__).parents[2] / "data" / "0.1.0" / "journal"
_BEGAN = 1_700_000_000_000
_ODD = mlflow_name("odd#name")
_TAGS = {
    "mlflow.source.name": "train.py",
    "mlflow.source.type": "LOCAL",
    "mlflow.user": "ada",
    "mlflow_iap.journal": "aad766b3-trainer-14633-6f945b5c",
}


@pytest.fixture
def delivered(server: FakeMlflow, new_process: Callable[[], VirtualProcess]) -> FakeMlflow:
    """The server, after another process has taken over the journal."""
    shutil.copytree(_STORED, journal_folder.folder())
    process = new_process()
    process.sender.adopt(other_hosts=journal_folder.journals())
    process.deliver_for(60.0)
    assert process.sender.waiting == 0
    return server


def test_the_finished_run_has_everything_that_was_logged_to_it(delivered: FakeMlflow) -> None:
    run = delivered.run("a" * 32)
    assert (run.name, run.status) == ("first", "FINISHED")
    assert (run.start_time, run.end_time) == (_BEGAN, _BEGAN + 1000)
    points = {
        "loss": [(step, _BEGAN + step, 1 / (step + 1)) for step in range(20)],
        _ODD: [(step, _BEGAN + step, float(step)) for step in range(20)],
        "curve": [(0, _BEGAN + 100, 3.0), (1, _BEGAN + 100, 2.0)],
    }
    arrived: dict[str, list[tuple[int, int, float]]] = {}
    for name, step, timestamp, value in run.points:
        arrived.setdefault(name, []).append((step, timestamp, value))
    assert arrived == points
    assert run.params == {"depth": "3", "rate": "0.1", "suggested.depth": "4"}
    assert run.artifacts == {"hello.txt": b"hello"}
    assert [name for name, _ in run.inputs] == ["numbers"]
    assert run.tags == {
        **_TAGS,
        "mlflow.runName": "first",
        "mlflow_iap.run_key": "a" * 32,
        f"mlflow_iap.name.{_ODD}": "odd#name",
        "mlflow_iap.skipped_nan_points": "1",
        "note": "from the version before",
        "team": "a",
    }


def test_the_open_run_has_failed_and_says_why(delivered: FakeMlflow) -> None:
    run = delivered.run("b" * 32)
    assert (run.name, run.status) == ("second", "FAILED")
    assert [*run.points] == [("loss", 7, _BEGAN, 0.5)]
    assert (run.params, run.artifacts, run.inputs) == ({}, {}, {})
    assert run.tags == {
        **_TAGS,
        "mlflow.runName": "second",
        "mlflow_iap.run_key": "b" * 32,
        "mlflow_iap.ended": "The process that wrote to the run died.",
    }


def test_no_other_run_is_created_and_no_file_is_left(delivered: FakeMlflow) -> None:
    assert len(delivered.runs) == 2
    assert list(journal_folder.folder().iterdir()) == []
