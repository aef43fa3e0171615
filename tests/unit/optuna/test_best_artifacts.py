"""Which artifacts of ``log_if_best`` are kept."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest

from inline_delivery import InlineDelivery
from mlflow_iap_callbacks import IAPMLflowCallback
from optuna_helpers import TRIAL_TAG, Direction, new_study


@pytest.fixture(autouse=True)
def held_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def _kept(
    delivery: InlineDelivery,
    path: Path,
    values: Sequence[Any],
    *directions: Direction,
    before: Callable[[optuna.Trial], None] = lambda trial: None,
) -> dict[int, set[str]]:
    """The artifacts by trial, if each calls ``log_if_best`` and then returns or raises."""
    callback = IAPMLflowCallback(client=delivery.client, study_run=False)

    def objective(trial: optuna.Trial) -> Any:
        before(trial)
        callback.log_if_best(trial, path)
        found = values[trial.number]
        if isinstance(found, Exception):
            raise found
        return found

    study = new_study(*directions)
    study.optimize(objective, len(values), callbacks=[callback], catch=ValueError)
    return {int(run.tags[TRIAL_TAG]): set(run.artifacts) for run in delivery.runs()}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.txt"
    path.write_text("model")
    return path


@pytest.mark.parametrize(
    ("values", "directions", "expected"),
    [
        ([3.0, 1.0, 2.0, 0.5], ["minimize"], [0, 1, 3]),
        ([1.0, 0.5, 2.0], ["maximize"], [0, 2]),
        ([(1.0, 5.0), (2.0, 6.0), (5.0, 1.0)], ["minimize", "minimize"], [0, 2]),
    ],
)
def test_artifacts_of_trials_that_were_best_when_they_ended_are_kept(
    delivery_of_files: InlineDelivery,
    file: Path,
    held_in: Path,
    values: Sequence[Any],
    directions: list[Direction],
    expected: list[int],
    recwarn: pytest.WarningsRecorder,
) -> None:
    found = _kept(delivery_of_files, file, values, *directions)
    assert [number for number, names in found.items() if names == {"model.txt"}] == expected
    assert [number for number, names in found.items() if names] == expected
    assert not list(held_in.iterdir())
    # A callback that forgot some would leave their folder to the garbage collection, which warns.
    assert not [each for each in recwarn if str(held_in) in str(each.message)]


def test_artifacts_of_trials_that_do_not_complete_are_not_kept(
    delivery_of_files: InlineDelivery, file: Path, held_in: Path
) -> None:
    found = _kept(delivery_of_files, file, [optuna.TrialPruned(), ValueError()])
    assert found == {0: set(), 1: {"traceback.txt"}}
    assert not list(held_in.iterdir())


def test_a_file_is_uploaded_as_it_was_when_it_was_logged(
    delivery_of_files: InlineDelivery, tmp_path: Path
) -> None:
    callback = IAPMLflowCallback(client=delivery_of_files.client, study_run=False)
    folder = tmp_path / "models"
    folder.mkdir()

    def objective(trial: optuna.Trial) -> float:
        (folder / "weights.txt").write_text("mine")
        callback.log_if_best(trial, folder)
        callback.log_if_best(trial, folder / "weights.txt", "copies")
        (folder / "weights.txt").write_text("changed")
        return 1.0

    new_study().optimize(objective, 1, callbacks=[callback])
    assert delivery_of_files.run().artifacts == {
        "models/weights.txt": b"mine",
        "copies/weights.txt": b"mine",
    }


def test_a_missing_file_is_a_warning_and_does_not_fail_the_trial(
    delivery_of_files: InlineDelivery,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "mlflow_iap_callbacks"):
        found = _kept(delivery_of_files, tmp_path / "nothing.txt", [1.0])
    assert found == {0: set()}
    (message,) = caplog.messages
    assert "an artifact of trial 0" in message
    assert "nothing.txt" in message
