"""Which journals are trusted, and which belong to another host."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

import python_process
from fork_server import FOR_OUTBOXES
from mlflow_iap_callbacks.outbox import Outbox, journal_folder, owner
from mlflow_iap_callbacks.outbox.adoption import Untaken, orphans
from mlflow_iap_callbacks.outbox.journal_folder import folder, new_outbox, survey
from own_log import said_by_us
from python_process import PIPE

_SERVER = "http://server"
_LOG_UNTIL_KILLED = """
import sys
from mlflow_iap_callbacks.outbox.journal_folder import new_outbox
outbox = new_outbox("http://server")
run = outbox.begin("key", "experiment")
outbox.intake.append(run.number, "start", {"key": "key", "experiment": "experiment"})
print(outbox.path, flush=True)
sys.stdin.read()
"""


def _killed() -> Path:
    with python_process.start(
        "-c", _LOG_UNTIL_KILLED, stdin=PIPE, stdout=PIPE, modules=FOR_OUTBOXES
    ) as process:
        assert process.stdout is not None
        path = Path(process.stdout.readline().strip())
        process.send_signal(signal.SIGKILL)
    return path


def _of_another_host(path: Path) -> Path:
    """Name a journal's files as another host would have named them."""
    other = path.stem.replace(owner.host(), "another-host")
    for file in folder().glob(f"{path.stem}*"):
        file.rename(file.with_name(file.name.replace(path.stem, other)))
    return path.with_name(f"{other}.sqlite")


# --- users -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_folder_that_others_can_write_to_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, mode: int
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    shared = tmp_path / f"shared-{mode}"
    shared.mkdir()
    shared.chmod(mode)
    monkeypatch.setenv("MLFLOW_IAP_OUTBOX", str(shared))
    outbox = new_outbox(_SERVER)
    assert outbox.path is not None
    assert outbox.path.parent == tmp_path / "state" / "mlflow-iap" / "outbox"
    assert outbox.path.parent.stat().st_mode & 0o777 == 0o700
    assert folder() == outbox.path.parent
    (text,) = said_by_us(caplog)
    assert f"chmod go-w {shared}" in text
    outbox.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_a_folder_of_another_user_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "theirs").mkdir(mode=0o700)
    os.chown(tmp_path / "theirs", 1234, 1234)
    monkeypatch.setenv("MLFLOW_IAP_OUTBOX", str(tmp_path / "theirs"))
    assert folder() == tmp_path / "state" / "mlflow-iap" / "outbox"
    (text,) = said_by_us(caplog)
    assert f"{tmp_path / 'theirs'} belongs to another user" in text


def _file(path: Path) -> Path:
    path.touch()
    return path


def _inaccessible(path: Path) -> Path:
    path.mkdir(mode=0o000)
    if os.access(path, os.W_OK):
        pytest.skip("root can write anywhere")
    return path / "outbox"


def _dangling(path: Path) -> Path:
    path.symlink_to(path.with_name("nowhere"))
    return path


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (_file, "given is not a folder"),
        (lambda path: _file(path) / "outbox", "given is not a folder"),
        (_dangling, "given is not a folder"),
        (_inaccessible, "given is not writable"),
    ],
)
def test_a_folder_that_cannot_be_created_is_not_used(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    given: Callable[[Path], Path],
    says: str,
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("MLFLOW_IAP_OUTBOX", str(given(tmp_path / "given")))
    outbox = new_outbox(_SERVER)
    assert outbox.path is not None
    assert outbox.path.parent == folder() == tmp_path / "state" / "mlflow-iap" / "outbox"
    (text,) = said_by_us(caplog)
    assert says in text
    assert f"Journals are kept in {folder()}" in text
    outbox.close()


def test_a_tilde_in_the_variable_is_the_home_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_IAP_OUTBOX", "~/outbox-of-a-user")
    assert folder() == tmp_path / "outbox-of-a-user"
    monkeypatch.setenv("MLFLOW_IAP_OUTBOX", "~no-such-user/outbox")
    assert folder().name == "outbox"


def test_a_folder_that_others_can_only_read_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "readable").mkdir(mode=0o755)
    monkeypatch.setenv("MLFLOW_IAP_OUTBOX", str(tmp_path / "readable"))
    assert folder() == tmp_path / "readable"
    assert said_by_us(caplog) == []


@pytest.mark.parametrize("suffix", [".sqlite", ".0.intake"])
def test_a_journal_with_a_file_that_others_can_write_to_is_not_sent(suffix: str) -> None:
    path = _killed()
    path.with_name(path.stem + suffix).chmod(0o666)
    (untaken,) = orphans(_SERVER)
    assert isinstance(untaken, Untaken)
    assert "can be written to by other users" in untaken.why
    path.with_name(path.stem + suffix).chmod(0o600)
    (outbox,) = orphans(_SERVER)
    assert isinstance(outbox, Outbox)
    outbox.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_journal_of_another_user_is_not_sent() -> None:
    path = _killed()
    os.chown(path, 1234, 1234)
    (untaken,) = orphans(_SERVER)
    assert isinstance(untaken, Untaken)
    assert "belongs to another user" in untaken.why


def test_a_relative_folder_stays_the_same_when_the_process_changes_its_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_IAP_OUTBOX", "relative-outbox")
    assert folder() == tmp_path / "relative-outbox"
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert folder() == tmp_path / "relative-outbox"


def _no_home(name: str) -> Path:
    raise RuntimeError("could not determine the home directory")


@pytest.mark.parametrize("state_path", [_no_home, lambda name: Path("~/.local/state", name)])
def test_a_user_without_a_home_gets_a_private_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state_path: Callable[[str], Path]
) -> None:
    monkeypatch.delenv("MLFLOW_IAP_OUTBOX", raising=False)
    monkeypatch.setattr("platformdirs.user_state_path", state_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert folder() == tmp_path / f"mlflow-iap-{os.getuid()}" / "outbox"


# --- hosts -----------------------------------------------------------------------------------


def test_a_journal_of_another_host_is_left_alone_and_shown_with_its_host() -> None:
    path = _of_another_host(_killed())
    assert list(orphans(_SERVER)) == []
    (report,) = survey()
    assert (report.path, report.is_from_here) == (path, False)
    assert report.last_beat is not None
    assert report.records() == 1


def test_a_journal_of_a_machine_with_the_same_name_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "machine-id").write_text("another")
    monkeypatch.setattr(owner, "_MACHINE_ID", tmp_path / "machine-id")
    owner._machine.cache_clear()
    outbox = new_outbox(_SERVER)
    outbox.intake.append(outbox.begin("key", "e").number, "start", {"key": "k", "experiment": "e"})
    outbox.close()
    assert len(survey()) == 1
    monkeypatch.undo()
    owner._machine.cache_clear()


def test_a_given_journal_of_another_host_is_moved_to_a_new_journal() -> None:
    killed = _killed()
    path = _of_another_host(killed)
    (outbox,) = orphans(_SERVER, other_hosts=[path])
    assert isinstance(outbox, Outbox)
    assert outbox.path in journal_folder.journals()
    assert path not in journal_folder.journals()
    assert outbox.name == killed.stem  # as in the tag of its runs
    assert [run.key for run in outbox.runs()] == ["key"]
    outbox.close()


def test_new_records_of_a_moved_journal_are_numbered_after_its_settled_ones() -> None:
    dead = new_outbox(_SERVER)
    assert dead.path is not None
    run = dead.begin("key", "experiment")
    dead.intake.append(run.number, "start", {"key": "key", "experiment": "experiment"})
    for step in range(5):
        dead.intake.append(run.number, "metrics", (step, step, {"m": 0.5}))
    dead.collect()
    dead.settle(run, dead.read(run, dead.last_seq))
    dead.close()
    (outbox,) = orphans(_SERVER, other_hosts=[_of_another_host(dead.path)])
    assert isinstance(outbox, Outbox)
    (moved,) = outbox.runs()
    assert (outbox.last_seq, moved.settled) == (6, 6)
    outbox.close()


def test_a_journal_that_is_in_use_is_live() -> None:
    outbox = new_outbox(_SERVER)
    (report,) = survey()
    assert (report.is_live, report.is_from_here) == (True, True)
    outbox.close()
