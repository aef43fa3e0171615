"""Which processes of servers wait for each other while they create the tables of users."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from waiting import wait_until

pytest.importorskip("flask_wtf", reason="the extra `server` is not installed")
pytest.importorskip("fcntl")

from mlflow_iap_callbacks.server.permissions import _one_process_at_a_time

_HELD = "mysql+pymysql://mlflow:secret@10.0.0.1/mlflow"


@pytest.fixture(autouse=True)
def lock_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


class Start:
    """A start of a process in a thread, which takes the lock and releases it."""

    def __init__(self, database_uri: str) -> None:
        self.thread = threading.Thread(target=self._start, args=(database_uri,), daemon=True)
        self.has_locked = threading.Event()
        self.thread.start()

    def _start(self, database_uri: str) -> None:
        with _one_process_at_a_time(database_uri):
            self.has_locked.set()


@pytest.mark.parametrize(
    "other",
    [
        "mysql+pymysql://mlflow:secret@10.0.0.1/another",
        "mysql+pymysql://mlflow:secret@10.0.0.2/mlflow",
        "mysql+pymysql://mlflow:secret@10.0.0.1:3307/mlflow",
        "mysql+pymysql://mlflow:secret@localhost/mlflow?unix_socket=/cloudsql/a",
        "postgresql+psycopg://mlflow:secret@10.0.0.1/mlflow",
        "sqlite:///mlflow.db",
        "sqlite://",
    ],
)
def test_a_server_of_another_database_starts_while_one_is_held_up(other: str) -> None:
    with _one_process_at_a_time(_HELD):
        assert Start(other).has_locked.wait(10)


def test_a_server_of_a_file_of_the_same_name_elsewhere_starts_while_one_is_held_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "one")
    with _one_process_at_a_time("sqlite:///mlflow.db"):
        monkeypatch.chdir(tmp_path / "other")
        assert Start("sqlite:///mlflow.db").has_locked.wait(10)


@pytest.mark.parametrize("password", ["secret", "changed"])
def test_a_second_process_waits_for_the_first_one_of_its_database(
    tmp_path: Path, password: str
) -> None:
    with _one_process_at_a_time(_HELD):
        second = Start(_HELD.replace("secret", password))
        (lock,) = tmp_path.iterdir()
        waiting = f":{lock.stat().st_ino} "

        def is_waiting() -> bool:
            locks = Path("/proc/locks").read_text().splitlines()
            return any("->" in line and waiting in line for line in locks)

        if Path("/proc/locks").exists():
            wait_until(is_waiting, "the second process to wait", 10)
        assert not second.has_locked.is_set()
    assert second.has_locked.wait(10)
    assert "secret" not in lock.name
