"""Which records an outbox contains, from their append until they are settled or refused."""

from __future__ import annotations

import gc
import os
import shutil
import sqlite3
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from disk_helpers import Disk
from mlflow_iap_callbacks.outbox import Outbox, QueuedRun, Record, Refusal
from mlflow_iap_callbacks.outbox import outbox as outbox_module
from mlflow_iap_callbacks.outbox.database import connect_to_read
from mlflow_iap_callbacks.outbox.journal_folder import new_outbox, survey
from own_log import said_by_us

_SERVER = "http://server"


@pytest.fixture
def outbox() -> Iterator[Outbox]:
    outbox = new_outbox(_SERVER)
    yield outbox
    outbox.close()


@pytest.fixture(params=["in the intake", "in the database", "in memory"])
def any_outbox(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Outbox]:
    if request.param == "in the database":
        monkeypatch.setattr(outbox_module, "_MOST_UNSTORED_BYTES", 0)
    outbox = Outbox(None, _SERVER) if request.param == "in memory" else new_outbox(_SERVER)
    yield outbox
    outbox.close()


@pytest.fixture(params=Disk.KINDS)
def disk(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Disk]:
    with Disk.of_kind(request.param, tmp_path / "disk") as disk:
        monkeypatch.setenv("MLFLOW_IAP_OUTBOX", str(disk.folder / "outbox"))
        yield disk


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "model.txt"
    file.write_text("model")
    return file


def _begin(outbox: Outbox, key: str = "key") -> QueuedRun:
    run = outbox.begin(key, "experiment")
    outbox.intake.append(run.number, "start", {"key": key, "experiment": "experiment"})
    return run


def _log(run: QueuedRun, steps: range) -> None:
    for step in steps:
        run.outbox.intake.append(run.number, "metrics", (step, step, {run.key: step / 7}))


def _steps(records: list[Record]) -> list[int]:
    return [record.content[0] for record in records if record.kind == "metrics"]


def _read(run: QueuedRun) -> list[Record]:
    return run.outbox.read(run, run.outbox.last_seq)


def _settle_all(run: QueuedRun) -> list[int]:
    """The steps of the records, in order."""
    steps: list[int] = []
    while records := _read(run):
        steps += _steps(records)
        run.outbox.settle(run, records)
    return steps


def _reopen(outbox: Outbox) -> Outbox:
    assert outbox.path is not None
    outbox.close()
    outbox = Outbox(outbox.path)
    outbox.collect_all_files()
    return outbox


def _adopted_as_it_is(outbox: Outbox, tmp_path: Path) -> Outbox:
    """What another process finds if this one is killed now."""
    assert outbox.path is not None
    folder = tmp_path / "killed"
    shutil.copytree(outbox.path.parent, folder)
    adopted = Outbox(folder / outbox.path.name)
    adopted.collect_all_files()
    return adopted


def _rows(outbox: Outbox) -> int:
    assert outbox.path is not None
    with closing(connect_to_read(outbox.path)) as db:
        return int(db.execute("SELECT count(*) FROM records").fetchone()[0])


# --- reading ---------------------------------------------------------------------------------


def test_each_run_is_read_separately_and_in_order(any_outbox: Outbox) -> None:
    runs = [_begin(any_outbox, key) for key in "abc"]
    for step in range(50):
        for run in runs:
            _log(run, range(step, step + 1))
        if step % 20 == 0:
            any_outbox.collect()
    any_outbox.collect()
    for run in runs:
        start, *metrics = _read(run)
        assert (start.kind, start.content["key"]) == ("start", run.key)
        assert [r.content for r in metrics] == [[s, s, {run.key: s / 7}] for s in range(50)]
    _settle_all(runs[1])
    assert [_steps(_read(run)) for run in runs] == [list(range(50)), [], list(range(50))]


@pytest.mark.parametrize("most_bytes", [0, 900, 100_000])
def test_records_are_read_in_order_no_matter_how_many_of_them_memory_has_room_for(
    monkeypatch: pytest.MonkeyPatch, any_outbox: Outbox, most_bytes: int
) -> None:
    monkeypatch.setattr(outbox_module, "_MOST_UNSTORED_BYTES", most_bytes)
    runs = [_begin(any_outbox, key) for key in "ab"]
    steps: dict[str, list[int]] = {run.key: [] for run in runs}
    for step in range(0, 300, 10):
        for run in runs:
            _log(run, range(step, step + 10))
        any_outbox.collect()
        if step % 50 == 0:
            for run in runs:
                some = _read(run)[:7]
                steps[run.key] += _steps(some)
                any_outbox.settle(run, some)
        if step == 150:
            steps["a"] += _settle_all(runs[0])
    for run in runs:
        assert [*steps[run.key], *_settle_all(run)] == list(range(300))
    assert any_outbox.waiting == 0


def test_a_request_has_at_most_a_thousand_points(any_outbox: Outbox) -> None:
    run = _begin(any_outbox)
    for step in range(600):
        content = (step, step, {"a": 0.5, "b": 0.5, "c": 0.5})
        any_outbox.intake.append(run.number, "metrics", content)
    any_outbox.collect()
    sizes = []
    while records := _read(run):
        sizes.append(len(records))
        any_outbox.settle(run, records)
    assert sizes == [334, 601 - 334]  # the first is the run's start


def test_a_batch_has_at_most_a_thousand_records(any_outbox: Outbox) -> None:
    run = _begin(any_outbox)
    _log(run, range(2500))
    any_outbox.collect()
    sizes, steps = [], []
    while records := _read(run):
        sizes.append(len(records))
        steps += _steps(records)
        any_outbox.settle(run, records)
    assert (sizes, steps) == ([1000, 1000, 501], list(range(2500)))


def test_a_batch_has_at_most_a_megabyte_or_one_record(any_outbox: Outbox) -> None:
    run = _begin(any_outbox)
    for size in [*[100_000] * 30, 3_000_000, 10]:
        any_outbox.intake.append(run.number, "tags", {"t": "x" * size})
    any_outbox.collect()
    batches = []
    while records := _read(run):
        batches.append([record.size for record in records])
        any_outbox.settle(run, records)
    assert all(sum(batch) <= 1_000_000 or len(batch) == 1 for batch in batches)
    assert sum(map(len, batches)) == 33
    assert len(batches) <= 7


def test_records_appended_after_the_mark_are_not_read(any_outbox: Outbox) -> None:
    run = _begin(any_outbox)
    _log(run, range(5))
    upto = any_outbox.last_seq
    _log(run, range(5, 10))
    any_outbox.collect()
    assert _steps(any_outbox.read(run, upto)) == list(range(5))


def test_collect_returns_the_runs_with_new_records_and_marks_those_that_ended(
    any_outbox: Outbox,
) -> None:
    written, ended, _ = (_begin(any_outbox, key) for key in "abc")
    any_outbox.collect()
    _log(written, range(3))
    any_outbox.intake.append(ended.number, "finish", {"status": "FINISHED", "time_ms": 0})
    assert any_outbox.collect() == {written: 3, ended: 2}
    assert any_outbox.collect() == {}
    assert [run.is_ended for run in (written, ended)] == [False, True]


# --- settled ---------------------------------------------------------------------------------


def test_waiting_counts_the_records_that_are_not_settled_at_each_step(any_outbox: Outbox) -> None:
    joined = any_outbox.begin("other", "experiment", is_owned=False)
    any_outbox.intake.append(joined.number, "join", {"key": "other", "experiment": "experiment"})
    any_outbox.collect()
    assert any_outbox.waiting == 0
    run = _begin(any_outbox)
    _log(run, range(9))
    assert any_outbox.waiting == 10
    any_outbox.collect()
    assert any_outbox.waiting == 10
    _log(run, range(9, 12))
    assert any_outbox.waiting == 13
    any_outbox.settle(run, _read(run)[:4])
    assert any_outbox.waiting == 9
    any_outbox.collect()
    assert _settle_all(run) == list(range(3, 12))
    assert any_outbox.waiting == 0


def test_holds_is_true_while_records_up_to_the_mark_wait(any_outbox: Outbox) -> None:
    first, second = _begin(any_outbox, "a"), _begin(any_outbox, "b")
    _log(first, range(3))
    upto = any_outbox.last_seq
    _log(second, range(3))
    assert any_outbox.holds(upto)
    any_outbox.collect()
    _settle_all(first)
    assert any_outbox.holds(upto)  # the second's start
    any_outbox.settle(second, _read(second)[:1])
    assert not any_outbox.holds(upto)
    assert any_outbox.holds(any_outbox.last_seq)
    _settle_all(second)
    assert not any_outbox.holds(any_outbox.last_seq)


def test_no_sqlite_statement_is_open_when_a_fork_can_happen(outbox: Outbox) -> None:
    assert outbox._db is not None
    lock, connection = outbox._lock, outbox._db._db
    is_open: list[Any] = []

    class Watched:
        def __enter__(self) -> None:
            lock.acquire()

        def __exit__(self, *error: object) -> None:
            cursors = [each for each in gc.get_objects() if type(each) is sqlite3.Cursor]
            is_open.extend(each for each in cursors if each.connection is connection)
            lock.release()

    gc.freeze()  # leaves older objects out of gc.get_objects()
    outbox._lock = Watched()  # type: ignore[assignment]
    run = _begin(outbox)
    _log(run, range(2000))
    outbox.collect()
    assert outbox.holds(1)
    assert outbox.has_records(run)
    outbox.settle(run, _read(run))
    assert not outbox.holds(1)
    assert outbox.runs(most=1) == [run]
    outbox.requeue_refused()
    assert is_open == []


def test_a_reopened_outbox_continues_where_it_stopped(outbox: Outbox) -> None:
    first, second = _begin(outbox, "a"), _begin(outbox, "b")
    _log(first, range(10))
    _log(second, range(10))
    outbox.collect()
    outbox.settle(first, _read(first)[:5])
    _log(first, range(10, 12))  # in the intake only
    upto = outbox.last_seq

    outbox = _reopen(outbox)
    first, second = outbox.runs()
    assert outbox.waiting == 19
    assert outbox.holds(upto)
    assert _settle_all(first) == list(range(4, 12))
    third = _begin(outbox, "c")
    assert third.number not in (first.number, second.number)
    _log(second, range(10, 12))
    outbox.collect()
    assert _settle_all(second) == list(range(12))
    assert outbox.waiting == 1
    outbox.close()


def test_the_state_of_a_run_survives(outbox: Outbox) -> None:
    owned, joined = _begin(outbox, "a"), outbox.begin("b", "experiment", is_owned=False)
    content = {"key": "b", "experiment": "experiment", "run_id": "id of b"}
    outbox.intake.append(joined.number, "join", content)
    _log(joined, range(1))
    outbox.intake.append(owned.number, "finish", {"status": "FINISHED", "time_ms": 0})
    outbox.collect()
    owned.run_id, owned.tried, owned.skipped, owned.trouble = "id of a", 12.5, 3, "trouble"
    outbox.save(owned)

    outbox = _reopen(outbox)
    first, second = outbox.runs()
    assert (first.key, first.experiment, first.is_owned) == ("a", "experiment", True)
    assert (first.is_ended, first.run_id, first.tried) == (True, "id of a", 12.5)
    assert (first.skipped, first.trouble, first.refused) == (3, "trouble", None)
    assert (second.key, second.is_owned, second.is_ended) == ("b", False, False)
    outbox.close()


def test_a_joined_run_has_its_id_even_if_its_process_died_at_once(
    outbox: Outbox,
) -> None:
    run = outbox.begin("b", "experiment", is_owned=False, run_id="id of b")
    content = {"key": "b", "experiment": "experiment", "run_id": "id of b"}
    outbox.intake.append(run.number, "join", content)
    _log(run, range(1))
    del run
    outbox = _reopen(outbox)
    (run,) = outbox.runs()
    assert (run.key, run.is_owned, run.run_id) == ("b", False, "id of b")
    outbox.close()


def test_a_run_is_not_listed_before_its_start_is_collected(any_outbox: Outbox) -> None:
    run = any_outbox.begin("key", "experiment")
    any_outbox.collect()
    assert any_outbox.runs() == []
    any_outbox.intake.append(run.number, "start", {"key": "key", "experiment": "experiment"})
    any_outbox.collect()
    assert any_outbox.runs() == [run]


def test_a_run_that_is_ended_and_settled_is_not_listed(any_outbox: Outbox) -> None:
    done, open_one = _begin(any_outbox, "a"), _begin(any_outbox, "b")
    any_outbox.intake.append(done.number, "finish", {"status": "FINISHED", "time_ms": 0})
    any_outbox.collect()
    assert any_outbox.runs() == [done, open_one]
    _settle_all(done)
    any_outbox.forget(done)
    _settle_all(open_one)
    assert any_outbox.runs() == [open_one]


# --- refused ---------------------------------------------------------------------------------


def test_refused_records_are_kept_with_their_reason_and_can_be_queued_again(
    outbox: Outbox,
) -> None:
    run = _begin(outbox)
    _log(run, range(5))
    outbox.collect()
    records = _read(run)
    run.refused = "because"
    outbox.settle(run, records[:3], [Refusal("metrics", [0, 0, {"key": 0.0}], "because")])
    outbox.forget(run)
    assert (outbox.refusals(), outbox.waiting) == (1, 3)
    assert outbox.path is not None
    (journal,) = survey()
    assert (journal.refused, journal.waiting) == ({"because": 1}, {"metrics": 3})
    del run

    outbox = _reopen(outbox)
    assert outbox.refusals() == 1
    assert outbox.requeue_refused() == 1
    assert (outbox.refusals(), outbox.waiting) == (0, 4)
    (run,) = outbox.runs()
    assert run.refused is None
    assert outbox.holds(outbox.last_seq)
    assert _settle_all(run) == [2, 3, 4, 0]
    assert (outbox.waiting, outbox.requeue_refused()) == (0, 0)
    assert not outbox.holds(outbox.last_seq)
    outbox.close()


# --- memory ----------------------------------------------------------------------------------


def test_records_that_are_only_in_memory_are_counted(any_outbox: Outbox) -> None:
    run = _begin(any_outbox)
    _log(run, range(9))
    any_outbox.collect()
    assert any_outbox.volatile == (0 if any_outbox.path else 10)
    _settle_all(run)
    assert any_outbox.volatile == 0


def test_intake_and_database_each_report_a_full_disk_once_and_records_are_read_from_memory(
    disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = new_outbox(_SERVER)
    run = _begin(outbox)
    _log(run, range(100))
    outbox.collect()
    disk.fill()
    _log(run, range(100, 3000))
    outbox.collect()
    assert outbox.waiting == 3001
    assert outbox.volatile > 0
    steps = _steps(records := _read(run))
    outbox.settle(run, records)  # a full disk cannot delete them
    assert outbox.waiting == 3001 - len(records)
    _log(run, range(3000, 3010))
    outbox.collect()
    disk.free()
    _log(run, range(3010, 3020))
    outbox.collect()
    assert steps + _settle_all(run) == list(range(3020))
    assert (outbox.waiting, outbox.volatile) == (0, 0)
    assert not outbox.holds(outbox.last_seq)
    told = said_by_us(caplog)
    assert len(told) == len(set(told)) <= 2
    assert all("MLFLOW_IAP_OUTBOX" in text for text in told)

    _log(run, range(3020, 3030))
    outbox.collect()
    assert outbox.volatile == 0
    outbox = _reopen(outbox)
    (run,) = outbox.runs()
    assert _settle_all(run) == list(range(3020, 3030))
    outbox.close()


def test_a_run_that_is_only_in_memory_is_listed(disk: Disk) -> None:
    outbox = new_outbox(_SERVER)
    disk.fill()
    run = _begin(outbox)
    _log(run, range(1000))
    outbox.collect()
    assert outbox.volatile > 0
    assert outbox.runs() == [run]
    disk.free()
    outbox.close()


def test_settled_records_that_a_full_disk_cannot_delete_are_not_sent_again(disk: Disk) -> None:
    outbox = new_outbox(_SERVER)
    run = _begin(outbox)
    _log(run, range(10))
    outbox.intake.append(run.number, "finish", {"status": "FINISHED", "time_ms": 0})
    outbox.collect()
    disk.fill()
    assert _settle_all(run) == [*range(10)]
    outbox.forget(run)
    assert not outbox.holds(outbox.last_seq)
    outbox.close()
    assert survey() == []


def test_memory_use_on_a_full_disk_is_limited(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    outbox = new_outbox(_SERVER)
    run = _begin(outbox)
    outbox.collect()
    disk.fill()
    for step in range(100):
        content = (step, step, {"x" * 1_000_000: 0.0})
        outbox.intake.append(run.number, "metrics", content)
        outbox.collect()
    assert 15 <= outbox.volatile <= 40
    assert outbox.intake.lost == 100 - outbox.volatile
    assert outbox.waiting == 101 - outbox.intake.lost
    disk.free()
    kept = _settle_all(run)
    outbox.collect()
    kept += _settle_all(run)
    assert kept == list(range(100 - outbox.intake.lost))
    assert outbox.waiting == 0
    outbox.close()


# --- closed ----------------------------------------------------------------------------------


def _nothing(run: QueuedRun) -> None:
    pass


def _leave_in_intake(run: QueuedRun) -> None:
    _log(run, range(1))


def _leave_in_database(run: QueuedRun) -> None:
    _log(run, range(1))
    run.outbox.collect()


def _refuse(run: QueuedRun) -> None:
    _leave_in_database(run)
    run.outbox.settle(run, _read(run), [Refusal("metrics", [0, 0, {"key": 0.0}], "because")])


@pytest.mark.parametrize(
    ("leave", "is_kept"),
    [(_nothing, False), (_leave_in_intake, True), (_leave_in_database, True), (_refuse, True)],
)
def test_a_closed_journal_is_kept_only_while_it_has_records(
    outbox: Outbox, leave: Callable[[QueuedRun], None], is_kept: bool
) -> None:
    run = _begin(outbox)
    outbox.intake.append(run.number, "finish", {"status": "FINISHED", "time_ms": 0})
    outbox.collect()
    _settle_all(run)
    outbox.forget(run)
    leave(run)
    assert outbox.path is not None
    outbox.close()
    assert outbox.path.exists() == is_kept
    assert any(outbox.path.parent.iterdir()) == is_kept
    assert not outbox.intake.append(1, "tags", {})


def test_a_run_that_is_still_open_keeps_its_journal(outbox: Outbox) -> None:
    run = _begin(outbox)
    outbox.collect()
    _settle_all(run)
    outbox.close()
    assert outbox.path is not None
    assert outbox.path.exists()


def test_a_journal_can_be_closed_while_another_thread_collects(tmp_path: Path) -> None:
    for n in range(20):
        outbox = Outbox(tmp_path / f"{n}.sqlite", _SERVER)
        _log(_begin(outbox), range(300))
        with ThreadPoolExecutor(1) as threads:
            collected = [threads.submit(outbox.collect) for _ in range(30)]
            outbox.close()
        for future in collected:
            future.result()


def test_only_its_owner_can_read_a_journal(outbox: Outbox, file: Path) -> None:
    file.chmod(0o644)
    _begin(outbox)
    outbox.copy_artifact(file)
    outbox.collect()
    assert outbox.path is not None
    folder = outbox.path.parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    suffixes = {"".join(Path(name).suffixes) for name in modes}
    assert {".sqlite", ".sqlite-wal", ".sqlite-shm", ".0.intake", ".lock"} <= suffixes
    files = {name: mode for name, mode in modes.items() if not name.endswith(".artifacts")}
    assert set(files.values()) == {0o600}


# --- artifacts -------------------------------------------------------------------------------


def _artifact(run: QueuedRun, file: Path, *, is_copied: bool) -> Path:
    """The path from which it is delivered."""
    outbox = run.outbox
    kept = outbox.copy_artifact(file) if is_copied else str(file)
    content: dict[str, Any] = {"path": kept, "is_copied": is_copied, "to": None}
    outbox.intake.append(run.number, "artifact", content)
    outbox.collect()
    return Path(outbox.artifact(kept, is_copied=is_copied))


def test_a_copy_is_kept_until_it_is_settled(outbox: Outbox, file: Path) -> None:
    run = _begin(outbox)
    copied, other = (_artifact(run, file, is_copied=True) for _ in range(2))
    file.write_text("changed")
    start, first, _ = _read(run)
    outbox.settle(run, [start])
    assert copied.read_text() == "model"
    assert copied.name == file.name
    outbox.settle(run, [first])
    assert (copied.exists(), other.read_text(), file.exists()) == (False, "model", True)
    _settle_all(run)
    assert not other.exists()


def test_a_folder_is_copied_with_its_contents(outbox: Outbox, file: Path) -> None:
    folder = file.parent / "model"
    (folder / "deep").mkdir(parents=True)
    shutil.copy(file, folder / "deep")
    copied = _artifact(_begin(outbox), folder, is_copied=True)
    shutil.rmtree(folder)
    assert (copied / "deep" / file.name).read_text() == "model"


@pytest.mark.parametrize("logged", ["of the journals", "above it", "of copies"])
def test_a_folder_is_copied_without_the_journals(outbox: Outbox, file: Path, logged: str) -> None:
    _artifact(_begin(outbox), file, is_copied=True)
    assert outbox.path is not None
    journals = outbox.path.parent
    copies = outbox.path.with_suffix(".artifacts")
    folder = {"of the journals": journals, "above it": file.parent, "of copies": copies}[logged]
    copied = _artifact(_begin(outbox), folder, is_copied=True)
    assert [*copied.rglob("*")] == ([copied / file.name] if logged == "above it" else [])


def test_a_copy_that_was_refused_is_kept_and_can_be_sent_later(outbox: Outbox, file: Path) -> None:
    run = _begin(outbox)
    copied = _artifact(run, file, is_copied=True)
    records = _read(run)
    outbox.settle(run, records, [Refusal("artifact", records[1].content, "because")])
    outbox.forget(run)
    del run
    outbox = _reopen(outbox)
    assert copied.read_text() == "model"
    outbox.requeue_refused()
    (run,) = outbox.runs()
    (record,) = _read(run)
    content = record.content
    assert outbox.artifact(content["path"], is_copied=content["is_copied"]) == str(copied)
    _settle_all(run)
    assert not copied.exists()
    outbox.close()


def test_files_that_are_not_copies_are_never_deleted(outbox: Outbox, file: Path) -> None:
    run = _begin(outbox)
    assert _artifact(run, file, is_copied=False) == file
    _settle_all(run)
    assert file.exists()


def test_an_outbox_in_memory_makes_no_copies(file: Path) -> None:
    with pytest.raises(OSError, match="no journal"):
        Outbox(None, _SERVER).copy_artifact(file)


def test_a_copy_that_does_not_fit_on_the_disk_leaves_nothing_behind(disk: Disk) -> None:
    outbox = new_outbox(_SERVER)
    assert outbox.path is not None
    large = disk.folder / "large"
    large.write_bytes(bytes(100_000))
    disk.fill()
    with pytest.raises(OSError):  # noqa: PT011 - which one depends on the disk
        outbox.copy_artifact(large)
    disk.free()
    assert list(outbox.path.with_suffix(".artifacts").rglob("*")) == []
    outbox.close()


# --- when records are moved to the database --------------------------------------------------


def test_records_are_moved_to_the_database_only_when_many_are_waiting(
    monkeypatch: pytest.MonkeyPatch, outbox: Outbox
) -> None:
    monkeypatch.setattr(outbox_module, "_MOST_UNSTORED_BYTES", 2_000)
    run = _begin(outbox)
    for first in range(0, 200, 20):
        _log(run, range(first, first + 20))
        outbox.collect()
        assert _rows(outbox) == 0
        assert _settle_all(run) == list(range(first, first + 20))
    _log(run, range(200))
    outbox.collect()
    assert _rows(outbox) == 200
    _log(run, range(200, 210))
    outbox.collect()
    assert (_rows(outbox), outbox.waiting) == (200, 210)
    assert _settle_all(run) == list(range(210))


@pytest.mark.parametrize("most_bytes", [0, 900, 100_000])
@pytest.mark.parametrize("settled", [1, 17, 40])
def test_after_a_kill_exactly_the_records_that_were_not_settled_are_found(
    monkeypatch: pytest.MonkeyPatch,
    outbox: Outbox,
    tmp_path: Path,
    most_bytes: int,
    settled: int,
) -> None:
    monkeypatch.setattr(outbox_module, "_MOST_UNSTORED_BYTES", most_bytes)
    run, other = _begin(outbox), _begin(outbox, "other")
    for first in range(0, 50, 10):
        _log(run, range(first, first + 10))
        _log(other, range(first, first + 10))
        outbox.collect()
    outbox.settle(run, _read(run)[:settled])
    _log(run, range(50, 60))  # not even collected
    (reported,) = survey()
    assert reported.records() == outbox.waiting == 112 - settled
    adopted = _adopted_as_it_is(outbox, tmp_path)
    assert adopted.waiting == 112 - settled
    found = {each.key: each for each in adopted.runs()}
    assert _settle_all(found["key"]) == list(range(settled - 1, 60))
    assert _settle_all(found["other"]) == list(range(50))
    assert adopted.waiting == 0
    adopted.close()


def test_a_run_that_was_delivered_does_not_return_after_a_kill(
    outbox: Outbox, tmp_path: Path
) -> None:
    run, other = _begin(outbox), _begin(outbox, "other")
    _log(run, range(10))
    _log(other, range(10))
    outbox.intake.append(run.number, "finish", {"status": "FINISHED", "time_ms": 0})
    outbox.collect()
    _settle_all(run)
    outbox.forget(run)
    (reported,) = survey()
    assert (reported.runs, reported.records()) == (1, 11)
    adopted = _adopted_as_it_is(outbox, tmp_path)
    assert [each.key for each in adopted.runs()] == ["other"]
    assert adopted.waiting == 11
    adopted.close()


def test_a_delivered_run_that_gets_another_record_keeps_its_state(
    monkeypatch: pytest.MonkeyPatch, outbox: Outbox, tmp_path: Path
) -> None:
    run = _begin(outbox)
    outbox.intake.append(run.number, "finish", {"status": "FINISHED", "time_ms": 0})
    outbox.collect()
    _settle_all(run)
    outbox.forget(run)
    _log(run, range(3))
    outbox.collect()
    monkeypatch.setattr(outbox_module, "_MOST_UNSTORED_BYTES", 0)
    _log(run, range(3, 5))
    outbox.collect()
    adopted = _adopted_as_it_is(outbox, tmp_path)
    (found,) = adopted.runs()
    assert _settle_all(found) == list(range(5))
    adopted.close()


def test_the_states_of_delivered_runs_do_not_pile_up(outbox: Outbox) -> None:
    assert outbox.path is not None
    for number in range(250):
        run = _begin(outbox, f"key {number}")
        outbox.intake.append(run.number, "finish", {"status": "FINISHED", "time_ms": 0})
        outbox.collect()
        _settle_all(run)
        outbox.forget(run)
    with closing(connect_to_read(outbox.path)) as db:
        for table in ("runs", "starts"):
            (count,) = db.execute(f"SELECT count(*) FROM {table}").fetchone()
            assert count <= 100


def test_new_records_are_sent_after_a_crash_of_the_machine_lost_the_end_of_the_intake(
    outbox: Outbox, tmp_path: Path
) -> None:
    assert outbox.path is not None
    run = _begin(outbox)
    _log(run, range(20))
    outbox.collect()
    outbox.settle(run, _read(run)[:15])
    intake = outbox.path.with_name(f"{outbox.path.stem}.0.intake")
    os.truncate(intake, intake.stat().st_size // 2)
    adopted = _adopted_as_it_is(outbox, tmp_path)
    (found,) = adopted.runs()
    _log(found, range(100, 105))
    adopted.collect()
    assert _settle_all(found) == list(range(100, 105))
    adopted.close()


# --- a file that gets long -------------------------------------------------------------------


@pytest.mark.parametrize("died", ["later", "before the old was deleted"])
def test_a_new_intake_file_neither_loses_nor_duplicates_records(
    outbox: Outbox, short_files: None, died: str
) -> None:
    assert outbox.path is not None
    run = _begin(outbox)
    for step in range(50):
        content = (step, step, {"x" * 100_000: 0.0})
        outbox.intake.append(run.number, "metrics", content)
    old = outbox.path.with_name(f"{outbox.path.stem}.0.intake")
    content_of_old = old.read_bytes()
    outbox.collect()
    assert not old.exists()
    _log(run, range(50, 60))
    del run
    outbox.close()

    # What remains if a process dies between these steps.
    if died != "later":
        old.write_bytes(content_of_old)
    assert [journal.records() for journal in survey()] == [61]
    outbox = Outbox(outbox.path)
    outbox.collect_all_files()
    (run,) = outbox.runs()
    assert outbox.waiting == 61
    assert _settle_all(run) == list(range(60))
    assert outbox.waiting == 0
    outbox.intake.append(run.number, "finish", {"status": "FAILED", "time_ms": 0})
    outbox.collect()
    _settle_all(run)
    outbox.forget(run)
    outbox.close()
    assert outbox.path is not None
    assert os.listdir(outbox.path.parent) == []


def test_the_records_of_a_joined_run_are_kept_when_its_process_dies_before_storing_them(
    tmp_path: Path,
) -> None:
    path = tmp_path / "journal.sqlite"
    dead = Outbox(path, "https://host")
    dead.intake.append(1, "join", {"key": "k", "experiment": "e", "run_id": None})
    dead.intake.append(1, "metrics", (0, 1, {"m": 0.5}))
    adopted = Outbox(path)
    adopted.collect_all_files()
    (run,) = adopted.runs()
    (record,) = adopted.read(run, adopted.last_seq)
    assert (run.key, run.is_owned, record.kind) == ("k", False, "metrics")
