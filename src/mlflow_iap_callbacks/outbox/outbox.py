"""What is logged and not yet delivered: a journal on disk for one process and one server.

A journal is an SQLite database, plus the intake: files with the records that the database has not
stored yet. It survives the kill of its process at any moment; a crash of the machine may lose the
last seconds, but nothing older. If the disk cannot be written to, records are kept in memory, up to
a limit.
"""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import msgpack

from ..limits import MAX_BYTES, MAX_ENTITIES
from .database import (
    HAS_WORK,
    SEQ,
    Change,
    Database,
    artifacts_of,
    delete_journal,
    last_written,
    record_id,
    run_number,
)
from .file_lock import FileLock
from .intake import HEADER, Intake
from .records import Record, Refusal

_SAVE_RUN = "INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_INSERT_RECORD = "INSERT INTO records VALUES (?, ?, ?)"
_SAVE_PLACE = "UPDATE journal SET generation = ?, offset = ?"
_MOST_IN_MEMORY_BYTES = 16_000_000


@dataclass(eq=False)
class QueuedRun:
    """A run whose records an outbox holds.

    Args:
        outbox: the outbox.
        number: its number in the outbox.
        key: run key, which is also a tag of the run in MLflow.
        experiment: its experiment, as ``name:NAME`` or ``id:ID``.
        is_owned: whether this outbox started the run, and so must end it.
        is_ended: whether its end is among the records, or delivered.
        run_id: MLflow's id of the run, once known.
        tried: when its creation was tried, seconds since 1970, if the answer is unknown.
        refused: why MLflow permanently rejects the run; None if it does not.
        trouble: what stands in the way of its delivery, if something does.
        skipped: number of points that were not logged because they are NaN.
        is_urgent: whether others wait for its creation.
        at_exit: status that the run gets if it is still open when its process exits normally.
        experiment_id: MLflow's id of the experiment, once known; not stored.
        start: content of its ``start`` record, as MessagePack; None for a run that was joined.
        is_begun: whether its first record has come to the outbox.
        is_stored: whether the journal knows all this.
    """

    outbox: Outbox
    number: int
    key: str
    experiment: str
    is_owned: bool = True
    is_ended: bool = False
    run_id: str | None = None
    tried: float | None = None
    refused: str | None = None
    trouble: str | None = None
    skipped: int = 0
    is_urgent: bool = False
    at_exit: str | None = None
    experiment_id: str | None = None
    start: bytes | None = None
    is_begun: bool = False
    is_stored: bool = False

    @property
    def place(self) -> tuple[str, str]:
        """Tells runs apart; one key may be used in several experiments."""
        return self.experiment, self.key

    @property
    def is_adopted(self) -> bool:
        """Whether it was written by a process that is dead."""
        return self.outbox.is_adopted


class Outbox:
    """Records in order, run by run, until they are settled. Its methods are thread-safe.

    What is appended waits in the intake until ``collect`` moves it, many at once, to the database.

    Args:
        path: path of the journal; None to use memory only.
        server: URI of the MLflow server for a new journal; None to open an existing journal.
        lock: lock file of the journal, held by the process that writes to it; released by
            ``close``.

    Raises:
        sqlite3.Error, OSError: the journal cannot be made, or read.
    """

    def __init__(
        self, path: Path | None, server: str | None = None, *, lock: FileLock | None = None
    ) -> None:
        self.path = path
        self.file_lock = lock
        self.is_adopted = server is None
        # When an existing journal was last written to, in seconds since 1970.
        self.died = last_written(path) if path and server is None else 0.0
        self._lock = threading.Lock()
        self._memory: dict[int, deque[Record]] = {}
        self._memory_bytes = 0
        self._volatile: set[int] = set()  # sequence numbers of records that are in no file
        self._settled: dict[int, int] = {}  # by run: last settled record that could not be deleted
        self._stored = self._stored_seq = self._first_seq = 0
        self._numbers = itertools.count(1)
        self._runs: WeakValueDictionary[int, QueuedRun] = WeakValueDictionary()
        self._db: Database | None = None
        if path is None:
            self.server, self.intake = str(server), Intake(None)
            return
        self._db = Database(path, server)
        self.server, place = self._db.server, (self._db.generation, self._db.offset)
        self.intake = Intake(path.with_suffix(""), *place, self.server)
        self._count()

    @property
    def name(self) -> str:
        """Tells journals apart, on the server too."""
        return self.path.stem if self.path else f"{socket.gethostname()}-{os.getpid()}-memory"

    @property
    def waiting(self) -> int:
        """Records that are not settled."""
        return self._stored + self.last_seq - self._stored_seq

    @property
    def last_seq(self) -> int:
        """Sequence number of what was appended last."""
        return self._first_seq + self.intake.appended

    @property
    def volatile(self) -> int:
        """Records that are lost with the process."""
        return len(self._volatile) + self.intake.in_memory

    def copy_artifact(self, path: Path) -> str:
        """Copy a file or folder for its delivery; return the path to pass to ``artifact``.

        The journals themselves are left out of a folder that contains them.

        Raises:
            OSError: it cannot be copied, or the outbox is in memory only.
        """
        if self.path is None:
            raise OSError("there is no journal on disk to store the copy with")
        artifacts_of(self.path).mkdir(mode=0o700, exist_ok=True)
        folder = artifacts_of(self.path) / uuid.uuid4().hex
        folder.mkdir(mode=0o700)
        copied = folder / path.resolve().name
        try:
            if path.is_dir():
                shutil.copytree(path, copied, copy_function=_copy_file, ignore=self._journals_in)
            else:
                _copy_file(path, copied)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return f"{folder.name}/{copied.name}"

    def _journals_in(self, folder: str, names: list[str]) -> list[str]:
        own = None if self.path is None else self.path.resolve().parent
        return [name for name in names if Path(folder, name).resolve() == own]

    def artifact(self, path: str, *, is_copied: bool) -> str:
        """Return the path of an artifact's file or folder."""
        return str(artifacts_of(self.path) / path) if is_copied and self.path else path

    def begin(
        self, key: str, experiment: str, *, is_owned: bool = True, run_id: str | None = None
    ) -> QueuedRun:
        """Return a new run to append to. Its first record must be ``start`` or ``join``."""
        run = QueuedRun(self, next(self._numbers), key, experiment, is_owned, run_id=run_id)
        self._runs[run.number] = run
        return run

    def collect(self) -> dict[QueuedRun, int]:
        """Move new records from the intake to the database; return the runs that were written to,
        each with its number of new metrics, params and tags."""
        entities: dict[QueuedRun, int] = {}
        with self._lock:
            while self._memory_bytes < _MOST_IN_MEMORY_BYTES:
                messages = self.intake.take()
                is_volatile = not messages
                messages = messages or self.intake.take_from_memory()
                if not messages:
                    break
                self._store(messages, entities, is_volatile=is_volatile)
        return entities

    def collect_all_files(self) -> int:
        """Like ``collect``, but for all intake files of a dead process; return the number of bytes
        of an incomplete last message, which is cut off."""
        self.collect()
        while self.intake.go_to_next_file():
            self.collect()
        if not self._memory:
            self._count()
        self._first_seq = self._stored_seq - self.intake.appended
        return self.intake.cut_off()

    def read(self, run: QueuedRun, upto: int) -> list[Record]:
        """The run's oldest records up to sequence number ``upto``, as many as a request takes."""
        found: list[Record] = []
        size = 0
        with self._lock:
            for record in self._records(run.number):
                size += len(record.body)
                if record.seq > upto or (found and size > MAX_BYTES):
                    break
                found.append(record)
                if len(found) == MAX_ENTITIES:
                    break
        return found

    def settle(
        self, run: QueuedRun, records: Sequence[Record], refused: Sequence[Refusal] = ()
    ) -> None:
        """Delete ``records``, which must be the run's oldest ones; store the refusals and the state
        of the run."""
        upto, now = records[-1].seq, time.time()
        rows = [
            (run.number, kind, msgpack.packb(content), reason, now)
            for kind, content, reason in refused
        ]

        with self._lock:
            self._stored -= len(records)
            self._volatile.difference_update(record.seq for record in records)
            kept = self._memory.get(run.number, deque())
            while kept and kept[0].seq <= upto:
                self._memory_bytes -= len(kept.popleft().body)
            if not kept:
                self._memory.pop(run.number, None)
            self._settled[run.number] = upto
            if self._write(
                (
                    "DELETE FROM records WHERE id BETWEEN ? AND ?",
                    [(record_id(run.number, 0), record_id(run.number, upto))],
                ),
                ("INSERT INTO refused VALUES (?, ?, ?, ?, ?)", rows),
                (_SAVE_RUN, [_row(run)]),
            ):
                del self._settled[run.number]
        if not refused and run.number not in self._settled:
            for record in records:
                if record.has_files:
                    self._delete_copy(record.content)

    def set_aside(self, run: QueuedRun, record: Record) -> QueuedRun | None:
        """Move the run's oldest record out of the way of the others.

        Returns:
            Another queued run for the same run of MLflow, which has this record only; None if the
            journal cannot be written to.
        """
        aside = QueuedRun(self, next(self._numbers), *run.place[::-1], False, True, run.run_id)
        aside.start = run.start
        ids = (record_id(aside.number, record.seq), record_id(run.number, record.seq))
        with self._lock:
            if not self._write(
                (_SAVE_RUN, [_row(aside)]), ("UPDATE records SET id = ? WHERE id = ?", [ids])
            ):
                return None
            kept = self._memory.get(run.number, deque())
            if kept and kept[0].seq == record.seq:
                self._memory[aside.number] = deque([kept.popleft()])
                if not kept:
                    del self._memory[run.number]
            aside.is_begun = aside.is_stored = True
            self._runs[aside.number] = aside
        return aside

    def save(self, run: QueuedRun) -> None:
        """Store the state of the run in the journal."""
        with self._lock:
            run.is_stored = self._write((_SAVE_RUN, [_row(run)]))

    def forget(self, run: QueuedRun) -> None:
        """Delete the state of a run that is finished and delivered."""
        query = "DELETE FROM runs WHERE number = ? AND number NOT IN (SELECT run FROM refused)"
        with self._lock:
            if self._write((query, [(run.number,)])):
                self._settled.pop(run.number, None)
            run.is_stored = False

    def runs(self, most: int = -1) -> list[QueuedRun]:
        """Runs that are not done with, the oldest first."""
        with self._lock:
            query = f"SELECT * FROM runs WHERE {HAS_WORK} ORDER BY number LIMIT ?"  # noqa: S608
            found = [self._run(row) for row in self._select(query, most)]
            # Runs that could not be written to disk.
            return found + [
                run
                for run in list(self._runs.values())
                if run.is_begun
                and not run.is_stored
                and run not in found
                and (not run.is_ended or run.number in self._memory)
            ]

    def has_records(self, run: QueuedRun) -> bool:
        """Whether anything waits for the run."""
        with self._lock:
            return next(self._records(run.number), None) is not None

    def holds(self, upto: int) -> bool:
        """Whether any record up to sequence number ``upto`` still waits."""
        with self._lock:
            if self._stored_seq < upto:
                return True
            if any(kept[0].seq <= upto for kept in self._memory.values()):
                return True
            # Not assigned to a variable: the rows would then be freed after the lock is released,
            # when a fork could happen.
            if any(
                place & SEQ > self._settled.get(run_number(place), 0)
                for (place,) in self._select("SELECT id FROM records WHERE id & ? <= ?", SEQ, upto)
            ):
                return True
            return self._db is not None and not self._db.is_readable

    def refusals(self) -> int:
        """How many things MLflow refused."""
        with self._lock:
            return sum(number for (number,) in self._select("SELECT count(*) FROM refused"))

    def requeue_refused(self) -> int:
        """Put refused records back in the queue, after all others; return their number."""
        with self._lock:
            rows = list(self._select("SELECT run, kind, body FROM refused ORDER BY rowid"))
            first = self._stored_seq + 1
            records = [(record_id(row[0], seq), *row[1:]) for seq, row in enumerate(rows, first)]
            if not self._write(
                (_INSERT_RECORD, records),
                ("DELETE FROM refused", [()]),
                ("UPDATE runs SET refused = NULL", [()]),
            ):
                return 0
            self._count()
            return len(rows)

    def take_over(self, tables: Mapping[str, Sequence[Sequence[object]]]) -> None:
        """Add the rows of another journal's tables ``runs``, ``records`` and ``refused``."""
        changes = []
        for table, rows in tables.items():
            marks = ", ".join("?" * len(rows[0])) if rows else ""
            statement = f"INSERT OR IGNORE INTO {table} VALUES ({marks})"  # noqa: S608 - our tables
            changes += [(statement, rows)] if rows else []
        with self._lock:
            self._write(*changes)
            self._count()

    def end_open_runs(self, why: str, when: float) -> None:
        """End each collected run that is open, with its ``at_exit`` status or as failed.

        Args:
            why: text of the tag that a failed run gets.
            when: seconds since 1970.
        """
        time_ms = int(when * 1000)
        for run in self.runs():
            if run.is_ended:
                continue
            if run.at_exit is not None:
                content = {"status": run.at_exit, "time_ms": time_ms}
                self.intake.append(run.number, "finish", content)
            elif run.is_owned:
                self.intake.append(run.number, "abandon", {"text": why, "time_ms": time_ms})
            else:
                run.is_ended = True
                self.save(run)

    def close(self) -> None:
        """Let go of the journal, and delete it if all that was in it is settled."""
        with self._lock:  # no thread may be reading the file
            self.intake.close()
        is_done = (
            self._db is not None
            and not (self.waiting or self.refusals())
            # The disk may have kept runs that it was told to delete.
            and all(run.is_ended for run in self.runs())
        )
        with self._lock:
            if self._db is not None and self._db.close() and is_done:
                delete_journal(self._db.path)
            self._db = None
            if self.file_lock is not None:
                self.file_lock.release()
                self.file_lock = None

    def stop_for_fork(self) -> None:
        """Keep threads out of SQLite, whose locks would stay taken forever in a child."""
        self._lock.acquire()
        self.intake.stop_for_fork()

    def go_on_after_fork(self) -> None:
        """Undo ``stop_for_fork``."""
        self.intake.go_on_after_fork()
        self._lock.release()

    def leave_to_parent(self) -> None:
        """In a forked child, stop using the journal, which belongs to the parent."""
        self.go_on_after_fork()
        self.intake.close()
        if self.file_lock is not None:
            self.file_lock.release()

    def _store(
        self,
        messages: Sequence[tuple[int, str, Any]],
        entities: dict[QueuedRun, int],
        *,
        is_volatile: bool,
    ) -> None:
        records: list[tuple[int, Record]] = []
        changed: set[QueuedRun] = set()
        for number, kind, content in messages:
            if kind == HEADER:
                continue
            self._stored_seq += 1
            run = self._runs.get(number) or self._read_run(number, kind, content)
            if run is None:  # the record that began the run was damaged
                continue
            self._runs[number] = run
            run.is_begun = True
            if not run.is_stored or kind in ("start", "finish", "abandon"):
                changed.add(run)
            run.is_owned |= kind == "start"  # of a run that was begun while its outbox was closed
            run.is_ended |= kind in ("finish", "abandon")
            if kind != "join":
                body = msgpack.packb(content)
                records.append((number, Record(self._stored_seq, kind, body)))
                run.start = body if kind == "start" else run.start
                values = content[2] if kind in ("metrics", "curve") else content
                entities[run] = entities.get(run, 0) + len(values)
        self._stored += len(records)

        # While records wait in memory, the database must not get newer ones, and the saved place in
        # the intake must not move past them.
        if not self._memory and self._write(
            (_INSERT_RECORD, [(record_id(n, record.seq), *record[1:]) for n, record in records]),
            (_SAVE_RUN, [_row(run) for run in changed]),
            (_SAVE_PLACE, [(self.intake.generation, self.intake.offset)]),
        ):
            for run in changed:
                run.is_stored = True
            self._start_new_file()
            return
        for number, record in records:
            self._memory.setdefault(number, deque()).append(record)
            self._memory_bytes += len(record.body)
            if is_volatile:
                self._volatile.add(record.seq)

    def _start_new_file(self) -> None:
        old = self.intake.start_new_file()
        place = (self.intake.generation, self.intake.offset)
        if old is not None and self._write((_SAVE_PLACE, [place])):
            old.unlink(missing_ok=True)

    def _read_run(self, number: int, kind: str, content: Any) -> QueuedRun | None:
        for row in self._select("SELECT * FROM runs WHERE number = ?", number):
            return self._run(row)
        if kind not in ("start", "join"):
            return None
        return QueuedRun(
            self,
            number,
            content["key"],
            content["experiment"],
            is_owned=kind == "start",
            run_id=content.get("run_id"),
        )

    def _run(self, row: Sequence[Any]) -> QueuedRun:
        number, key, experiment, is_owned, is_ended, *known = row
        run = self._runs.get(number)
        if run is None:
            run = QueuedRun(self, number, key, experiment, bool(is_owned), bool(is_ended), *known)
            run.is_begun = run.is_stored = True
            self._runs[number] = run
        return run

    def _delete_copy(self, content: dict[str, Any]) -> None:
        if content["is_copied"]:
            copied = Path(self.artifact(content["path"], is_copied=True))
            shutil.rmtree(copied.parent, ignore_errors=True)

    def _count(self) -> None:
        ((self._stored_seq, self._stored),) = self._select(
            "SELECT coalesce(max(id & ?), 0), count(*) FROM records", SEQ
        )
        self._first_seq = self._stored_seq - self.intake.appended
        ((last_number,),) = self._select("SELECT coalesce(max(number), 0) FROM runs")
        self._numbers = itertools.count(last_number + 1)

    def _records(self, number: int) -> Iterator[Record]:
        query = "SELECT id, kind, body FROM records WHERE id > ? AND id < ? ORDER BY id"
        after, end = record_id(number, self._settled.get(number, 0)), record_id(number + 1, 0)
        for place, kind, body in self._select(query, after, end):
            yield Record(place & SEQ, kind, body)
        yield from list(self._memory.get(number, ()))

    def _select(self, query: str, *values: object) -> Iterator[tuple[Any, ...]]:
        return iter(()) if self._db is None else self._db.select(query, *values)

    def _write(self, *changes: Change) -> bool:
        return self._db is not None and self._db.write(*changes)


def _copy_file(path: str | Path, copied: str | Path) -> None:
    """Copy a file; a pipe or a device would be read without end."""
    if not os.path.isfile(path):
        raise OSError(f"{path} is not a regular file")
    shutil.copy2(path, copied)


def _row(run: QueuedRun) -> tuple[object, ...]:
    return (
        *(run.number, run.key, run.experiment, run.is_owned, run.is_ended),
        *(run.run_id, run.tried, run.refused, run.trouble, run.skipped),
    )
