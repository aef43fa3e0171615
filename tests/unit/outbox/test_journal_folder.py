"""Journals of live and of dead processes, damaged journals, and folders without room."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest

import python_process
from disk_helpers import JUNK, Disk
from fork_server import FOR_OUTBOXES
from mlflow_iap_callbacks.outbox import Outbox, QueuedRun, Refusal
from mlflow_iap_callbacks.outbox.adoption import Untaken, orphans
from mlflow_iap_callbacks.outbox.database import LETTERS, connect, packed_row
from mlflow_iap_callbacks.outbox.frames import unpack
from mlflow_iap_callbacks.outbox.journal_folder import folder, new_outbox, survey
from own_log import said_by_us
from python_process import PIPE, Process

_SERVER, _OTHER = "http://server", "http://other"
_SCRIPT = """
import sys
from mlflow_iap_callbacks.outbox.adoption import orphans
from mlflow_iap_callbacks.outbox.journal_folder import new_outbox

def hold(server, collected, appended):
    "Leave so many points in the database, and so many in the intake."
    outbox = new_outbox(server)
    run = outbox.begin("key", "experiment")
    start = {"key": "key", "experiment": "experiment"}
    outbox.intake.append(run.number, "start", start)
    for step in range(int(collected) + int(appended)):
        if step == int(collected):
            outbox.collect()
            assert outbox._move_to_database()
        outbox.intake.append(run.number, "metrics", (step, step, {"m": step / 7}))
    print(outbox.path, flush=True)
    sys.stdin.read()

def take(server):
    print("ready", flush=True)
    sys.stdin.readline()
    taken = list(orphans(server))
    print(*(outbox.path.name for outbox in taken), flush=True)
    sys.stdin.read()

{"hold": hold, "take": take}[sys.argv[1]](*sys.argv[2:])
"""


@contextmanager
def _process(*args: str) -> Iterator[tuple[Process, str]]:
    """Start a process that creates or adopts journals; yield it and its first line of output."""
    with python_process.start(
        "-c", _SCRIPT, *args, stdin=PIPE, stdout=PIPE, modules=FOR_OUTBOXES
    ) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def _killed(server: str = _SERVER, collected: int = 20, appended: int = 10) -> Path:
    """The journal of a process that was killed."""
    with _process("hold", server, str(collected), str(appended)) as (_, path):
        return Path(path)


def _steps(outbox: Outbox, run: QueuedRun) -> list[int]:
    steps = []
    while records := outbox.read(run, outbox.last_seq):
        steps += [record.content[0] for record in records if record.kind == "metrics"]
        outbox.settle(run, records)
    return steps


def _adopted(server: str | None = None) -> list[Outbox]:
    return [outbox for outbox in orphans(server) if isinstance(outbox, Outbox)]


def _settle_all(outbox: Outbox) -> dict[str, list[int]]:
    """The steps of each run."""
    return {run.key: _steps(outbox, run) for run in outbox.runs()}


def _files() -> dict[str, bytes]:
    # Except SQLite's shared memory, which each reader changes.
    return {f.name: f.read_bytes() for f in folder().iterdir() if not f.name.endswith("-shm")}


# --- journals of dead processes --------------------------------------------------------------


def test_a_journal_is_adopted_once_its_process_is_killed() -> None:
    with _process("hold", _SERVER, "20", "10") as (process, path):
        assert _adopted(_SERVER) == []
        process.send_signal(signal.SIGKILL)
        process.wait()
        (outbox,) = _adopted(_SERVER)
    assert (str(outbox.path), outbox.server, outbox.is_adopted) == (path, _SERVER, True)
    assert (outbox.waiting, outbox.volatile) == (31, 0)
    assert _adopted(_SERVER) == []  # this process has it
    assert _settle_all(outbox) == {"key": list(range(30))}
    outbox.close()


def test_a_process_does_not_adopt_its_own_journals() -> None:
    outbox = new_outbox(_SERVER)
    assert _adopted() == []
    outbox.close()


def test_only_journals_for_the_given_server_are_adopted() -> None:
    paths = {_killed(server) for server in (_SERVER, _OTHER)}
    (outbox,) = _adopted(_OTHER)
    assert outbox.server == _OTHER
    outbox.close()
    left = _adopted()
    assert {outbox.path for outbox in left} == paths
    for outbox in left:
        outbox.close()


def test_only_one_of_several_adopting_processes_gets_each_journal() -> None:
    paths = sorted(_killed(collected=1, appended=1).name for _ in range(4))
    with _process("take", _SERVER) as (one, _), _process("take", _SERVER) as (other, _):
        for taker in (one, other):
            assert taker.stdin is not None
            taker.stdin.write("go\n")
            taker.stdin.flush()
        assert one.stdout is not None
        assert other.stdout is not None
        assert sorted(one.stdout.readline().split() + other.stdout.readline().split()) == paths


def test_a_delivered_journal_leaves_nothing_behind() -> None:
    _killed()
    (outbox,) = _adopted(_SERVER)
    (run,) = outbox.runs()
    outbox.intake.append(run.number, "finish", {"status": "FAILED", "time_ms": 0})
    outbox.collect()
    _settle_all(outbox)
    outbox.forget(run)
    outbox.close()
    assert os.listdir(folder()) == []
    assert _adopted() == []


def test_a_lock_without_its_journal_does_no_harm() -> None:
    path = _killed()
    for file in folder().glob(f"{path.stem}*"):
        if file.suffix != ".lock":
            file.unlink()
    assert list(orphans()) == []


def test_a_journal_whose_database_was_deleted_is_found_by_its_intake() -> None:
    path = _killed(collected=20, appended=10)
    path.unlink()
    assert [journal.records() for journal in survey()] == [31]
    (outbox,) = _adopted()
    assert _settle_all(outbox) == {"key": list(range(30))}
    outbox.close()


@pytest.mark.parametrize("statement", [None, "PRAGMA journal_mode = WAL"])
def test_a_process_that_dies_while_creating_its_journal_leaves_nothing_to_report(
    statement: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = _killed(collected=0, appended=0)
    for file in folder().iterdir():
        file.unlink()
    path.touch()
    if statement is not None:  # writes the file's first page
        with closing(connect(path)) as db:
            db.execute(statement)
    assert survey() == []
    assert _adopted() == []
    assert said_by_us(caplog) == []
    assert not path.exists()


# --- survey ----------------------------------------------------------------------------------


def test_a_survey_shows_live_and_dead_processes_with_the_records_in_their_intakes() -> None:
    dead = _killed(collected=20, appended=10)
    with _process("hold", _OTHER, "5", "7") as (process, path):
        found = {journal.path: journal for journal in survey()}
        assert set(found) == {dead, Path(path)}
        live = found[Path(path)]
        assert (live.is_live, live.server, live.pid) == (True, _OTHER, process.pid)
        assert (live.waiting, live.runs) == ({"start": 1, "metrics": 12}, 1)
        assert not found[dead].is_live
        assert found[dead].waiting == {"start": 1, "metrics": 30}
        assert found[dead].records() == 31
        assert (found[dead].error, found[dead].trouble) == (None, None)
        assert found[dead].bytes > 10_000


def test_a_survey_shows_what_was_refused_and_why_the_rest_is_waiting() -> None:
    outbox = new_outbox(_SERVER)
    run = outbox.begin("key", "experiment")
    outbox.intake.append(run.number, "start", {"key": "key", "experiment": "experiment"})
    for name in "ab":
        outbox.intake.append(run.number, "tags", {name: "text"})
    outbox.collect()
    refused = [Refusal("tags", {"a": "text"}, reason) for reason in ("this", "this", "that")]
    outbox.settle(run, outbox.read(run, outbox.last_seq)[:2], refused)
    run.trouble = "no answer"
    outbox.save(run)
    (journal,) = survey()
    assert journal.refused == {"this": 2, "that": 1}
    assert (journal.waiting, journal.trouble) == ({"tags": 1}, "no answer")
    assert (journal.records(), journal.records(refused=True)) == (1, 4)
    outbox.close()


@pytest.mark.parametrize("is_killed", [True, False])
def test_a_survey_changes_nothing(is_killed: bool) -> None:
    _killed()
    if not is_killed:
        for outbox in _adopted():
            outbox.close()
    before = _files()
    assert [journal.records() for journal in survey()] == [31]
    assert _files() == before


def test_a_survey_does_not_prevent_writing_or_adoption() -> None:
    own = new_outbox(_SERVER)
    run = own.begin("key", "experiment")
    own.intake.append(run.number, "start", {"key": "key", "experiment": "experiment"})
    _killed()
    survey()
    own.collect()
    assert (own.waiting, own.volatile) == (1, 0)
    (adopted,) = _adopted()
    for outbox in (own, adopted):
        outbox.close()


# --- damaged journals ------------------------------------------------------------------------


def _filled(runs: int = 3, points: int = 400) -> Path:
    """A journal with most records only in the database, and the last ones only in the intake."""
    outbox = new_outbox(_SERVER)
    assert outbox.path is not None
    queued = [outbox.begin(f"key{n}", "experiment") for n in range(runs)]
    for run in queued:
        start = {"key": run.key, "experiment": "experiment"}
        outbox.intake.append(run.number, "start", start)
    for step in range(points):
        for run in queued:
            # Long enough for the intake to start a new file.
            content = (step, step, {"m" * 5000: step / 7})
            outbox.intake.append(run.number, "metrics", content)
        if step % 20 == 0:
            outbox.collect()
    outbox.collect()
    for run in queued:
        for step in range(points, points + 5):
            outbox.intake.append(run.number, "metrics", (step, step, {"m": step / 7}))
    del run, queued
    outbox.close()
    assert not outbox.path.with_name(f"{outbox.path.stem}.0.intake").exists()
    return outbox.path


def _destroy(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink()  # they can hold all of a database


@pytest.mark.parametrize(
    "share", [0.5, *(pytest.param(share, marks=pytest.mark.slow) for share in (0.97, 0.8, 0.2))]
)
def test_everything_that_is_left_of_a_truncated_journal_is_rescued(
    caplog: pytest.LogCaptureFixture, short_files: None, share: float
) -> None:
    path = _filled()
    os.truncate(path, int(path.stat().st_size * share))
    damaged = path.read_bytes()
    (outbox,) = _adopted(_SERVER)
    waiting = outbox.waiting
    found = _settle_all(outbox)
    rescued = sum(map(len, found.values()))
    assert share * 1200 - 20 < rescued - 15 <= 1200  # 15 are in the intake only
    for steps in found.values():
        assert steps == sorted(set(steps))
        assert steps[-5:] == list(range(400, 405))
    assert (outbox.waiting, outbox.holds(outbox.last_seq)) == (0, False)
    (told,) = said_by_us(caplog)
    assert f"{waiting:,} records without damage" in told
    assert path.with_name(f"damaged-{path.name}").read_bytes() == damaged
    outbox.close()


@pytest.mark.parametrize("damage", [bytes(100), b"", b"no database " * 1000], ids=len)
def test_a_journal_without_its_database_is_rescued_from_its_intake(
    caplog: pytest.LogCaptureFixture, damage: bytes
) -> None:
    path = _killed(collected=20, appended=10)
    _destroy(path, damage)
    (outbox,) = _adopted(_SERVER)
    assert (outbox.server, outbox.is_adopted, outbox.waiting) == (_SERVER, True, 31)
    assert _settle_all(outbox) == {"key": list(range(30))}
    assert (outbox.waiting, outbox.holds(outbox.last_seq)) == (0, False)
    (told,) = said_by_us(caplog)
    assert "31 records without damage" in told
    outbox.close()
    assert path.with_name(f"damaged-{path.name}").read_bytes() == damage
    (again,) = _adopted()
    assert again.path == outbox.path  # the damaged journal is not tried again
    again.close()


def test_a_survey_knows_the_server_of_a_journal_without_its_database() -> None:
    _destroy(_killed(collected=20, appended=10), b"no database")
    (journal,) = survey()
    assert (journal.server, journal.records()) == (_SERVER, 31)
    assert journal.error


def test_the_copied_artifacts_of_a_damaged_journal_are_delivered(tmp_path: Path) -> None:
    outbox = new_outbox(_SERVER)
    (tmp_path / "model.txt").write_text("model")
    run = outbox.begin("key", "experiment")
    outbox.intake.append(run.number, "start", {"key": "key", "experiment": "experiment"})
    kept = outbox.copy_artifact(tmp_path / "model.txt")
    outbox.intake.append(run.number, "artifact", {"path": kept, "is_copied": True, "to": None})
    outbox.close()
    assert outbox.path is not None
    outbox.path.write_bytes(b"no database")
    (outbox,) = _adopted()
    assert Path(outbox.artifact(kept, is_copied=True)).read_text() == "model"
    outbox.close()


@pytest.mark.parametrize(
    ("name", "is_database_gone"),
    [
        *((name, False) for name in JUNK),
        *(pytest.param(name, True, marks=pytest.mark.slow) for name in JUNK if name != "zeros"),
        ("zeros", True),
    ],
)
def test_garbage_in_an_intake_is_reported_and_no_record_is_lost(
    caplog: pytest.LogCaptureFixture, name: str, is_database_gone: bool
) -> None:
    path = _killed(collected=0, appended=10)
    intake = path.with_name(f"{path.stem}.0.intake")
    intake.write_bytes(intake.read_bytes() + JUNK[name])
    if is_database_gone:
        _destroy(path, b"no database")
    other = _killed(collected=3, appended=0)
    assert len(survey()) == 2
    outboxes = {max(steps["key"]) + 1: outbox for outbox in _adopted() if (steps := _peek(outbox))}
    assert set(outboxes) == {10, 3}
    assert outboxes[3].path == other
    assert any("is damaged" in text for text in said_by_us(caplog))
    for outbox in outboxes.values():
        outbox.close()


def _peek(outbox: Outbox) -> dict[str, list[int]]:
    return {
        run.key: [r.content[0] for r in outbox.read(run, outbox.last_seq) if r.kind == "metrics"]
        for run in outbox.runs()
    }


def test_a_journal_that_ends_in_half_a_message_is_reported_and_everything_before_it_is_read(
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = _killed(collected=5, appended=10)
    intake = path.with_name(f"{path.stem}.0.intake")
    os.truncate(intake, intake.stat().st_size - 3)
    (outbox,) = _adopted()
    (told,) = said_by_us(caplog)
    assert f"{intake.name} is damaged" in told
    (run,) = outbox.runs()
    outbox.intake.append(run.number, "metrics", (99, 99, {"m": 1.0}))
    outbox.collect()
    assert _settle_all(outbox) == {"key": [*range(14), 99]}
    outbox.close()


def test_an_unreadable_journal_is_reported_and_kept_and_others_are_adopted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    paths = sorted(_killed() for _ in range(3))
    broken = paths[1]
    for file in folder().glob(f"{broken.stem}*"):
        if file.suffix != ".lock":
            file.write_bytes(b"\xc1 no journal")
    first, untaken, last = orphans()
    assert isinstance(untaken, Untaken)
    assert "server is unknown" in untaken.why
    outboxes = _adopted(_SERVER)
    (told,) = said_by_us(caplog)
    assert "0 records without damage" in told
    assert folder().joinpath(f"damaged-{broken.name}").read_bytes() == b"\xc1 no journal"
    for outbox in (first, last, *outboxes):
        assert isinstance(outbox, Outbox)
        outbox.close()


def _set_format(path: Path, number: int) -> None:
    with closing(connect(path)) as db:
        ((_, frame),) = db.execute("SELECT * FROM journal").fetchall()
        known = unpack(frame, LETTERS["journal"], 1)
        assert known is not None
        head = [*msgpack.unpackb(known)[:-1], number]
        db.execute(
            "REPLACE INTO journal VALUES (?, ?)", packed_row("journal", 1, msgpack.packb(head))
        )
        db.execute(f"PRAGMA user_version = {number}")


@pytest.mark.parametrize("number", [2, 3], ids=["before rows", "before groups"])
def test_a_journal_in_an_earlier_format_is_sent(number: int) -> None:
    _set_format(_killed(collected=5, appended=10), number)
    (outbox,) = _adopted()
    assert _settle_all(outbox) == {"key": [*range(15)]}


def test_a_journal_in_another_format_is_reported_and_not_changed() -> None:
    path = _killed()
    _set_format(path, 99)
    before = _files()
    (untaken,) = orphans()
    assert isinstance(untaken, Untaken)
    assert untaken.path == path
    assert "another version" in untaken.why
    assert _files() == before


# --- no room ---------------------------------------------------------------------------------


@pytest.fixture(params=Disk.KINDS)
def disk(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Disk]:
    with Disk.of_kind(request.param, tmp_path / "disk") as disk:
        monkeypatch.setenv("MLFLOW_IAP_OUTBOX", str(disk.folder / "outbox"))
        yield disk


@pytest.mark.parametrize("is_closed", [False, True])
def test_no_journal_is_lost_when_it_is_adopted_on_a_full_disk(disk: Disk, is_closed: bool) -> None:
    _killed(collected=20, appended=200)
    if is_closed:
        for outbox in _adopted():
            outbox.close()
        _append_to_what_is_left(50)
    expected = list(range(220 + 50 * is_closed))
    disk.fill()
    for outbox in _adopted():
        assert outbox.waiting == 1 + len(expected)
        outbox.close()  # like a process that exits without having delivered it
    disk.free()
    (outbox,) = _adopted()
    assert _settle_all(outbox) == {"key": expected}
    outbox.close()


def _append_to_what_is_left(points: int) -> None:
    (outbox,) = _adopted()
    (run,) = outbox.runs()
    for step in range(220, 220 + points):
        outbox.intake.append(run.number, "metrics", (step, step, {"m": step / 7}))
    outbox.close()


def _with_too_long_a_path(tmp_path: Path) -> Path:
    return tmp_path.joinpath(*["d" * 200] * 25)


def _in_a_folder_that_is_read_only(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    if os.geteuid():
        (tmp_path / "folder").chmod(0o500)
    else:
        mount = ["mount", "-t", "tmpfs", "-o", "ro,mode=700", "tmpfs", str(tmp_path / "folder")]
        if subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("root cannot make a folder read-only here")
    return tmp_path / "folder"


@pytest.mark.parametrize("place", [_with_too_long_a_path, _in_a_folder_that_is_read_only])
def test_a_folder_without_room_for_a_journal_is_reported_once_and_memory_is_used(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    place: Callable[[Path], Path],
) -> None:
    given = place(tmp_path)
    try:
        monkeypatch.setenv("MLFLOW_IAP_OUTBOX", str(given))
        outbox = new_outbox(_SERVER)
        (told,) = said_by_us(caplog)
        assert str(given) in told
        assert "MLFLOW_IAP_OUTBOX" in told
        run = outbox.begin("key", "experiment")
        content: dict[str, Any] = {"key": "key", "experiment": "experiment"}
        outbox.intake.append(run.number, "start", content)
        outbox.collect()
        assert (outbox.path, outbox.server, outbox.waiting) == (None, _SERVER, 1)
        assert (_adopted(), survey()) == ([], [])
        outbox.close()
        assert len(said_by_us(caplog)) == 1
    finally:
        if os.path.ismount(given):
            subprocess.run(["umount", str(given)], check=True)
