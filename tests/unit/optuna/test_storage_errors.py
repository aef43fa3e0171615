"""The warning about a storage that its user closed or removed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from inline_delivery import InlineDelivery
from mlflow_iap_callbacks import IAPMLflowCallback
from mlflow_iap_callbacks.optuna import storage_errors
from own_log import said_by_us


@pytest.fixture(autouse=True)
def nothing_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_errors, "_reported", set())


def _journal(folder: Path) -> tuple[BaseStorage, Callable[[], None]]:
    path = folder / "journal"
    return JournalStorage(JournalFileBackend(str(path))), path.unlink


def _database(folder: Path) -> tuple[BaseStorage, Callable[[], None]]:
    storage = RDBStorage(f"sqlite:///{folder}/study.db")

    def remove() -> None:
        storage.engine.dispose()
        (folder / "study.db").unlink()

    return storage, remove


def _studies_in(storage: BaseStorage) -> tuple[BaseStorage, Callable[[], None]]:
    def delete() -> None:
        for name in optuna.get_all_study_names(storage):
            optuna.delete_study(study_name=name, storage=storage)

    return storage, delete


def _studies_of_a_journal(folder: Path) -> tuple[BaseStorage, Callable[[], None]]:
    return _studies_in(_journal(folder)[0])


def _studies_of_a_database(folder: Path) -> tuple[BaseStorage, Callable[[], None]]:
    return _studies_in(_database(folder)[0])


@pytest.mark.parametrize(
    "make",
    [
        *(_journal, _studies_of_a_journal),
        pytest.param(_database, marks=pytest.mark.slow),
        pytest.param(_studies_of_a_database, marks=pytest.mark.slow),
    ],
)
def test_a_storage_that_is_gone_causes_one_warning_for_all_its_studies(
    make: Callable[[Path], tuple[BaseStorage, Callable[[], None]]],
    delivery: InlineDelivery,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    storage, remove = make(tmp_path)
    callback = IAPMLflowCallback(client=delivery.client)
    for name in "abc":
        study = optuna.create_study(study_name=name, storage=storage)
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), 2, callbacks=[callback])
    remove()
    for _ in range(2):
        assert callback.close()
    (text,) = said_by_us(caplog)
    assert "If its storage was closed or removed, nothing is wrong" in text
    assert "\n" not in text
    assert {run.status for run in delivery.runs()} == {"FINISHED"}
    assert len(delivery.runs()) == 9


def test_an_error_of_several_lines_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    study = optuna.create_study(study_name="mine")
    with storage_errors.reading(study):
        raise RuntimeError("<terminated with:\n\tstatus = UNAVAILABLE\n>")
    (text,) = said_by_us(caplog)
    assert "study 'mine' (<terminated with: status = UNAVAILABLE >)" in text
