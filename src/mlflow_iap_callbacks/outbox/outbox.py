"""Records that are not delivered yet, in a journal on disk for one process and one server.

A journal is an SQLite database, plus the intake: files with the latest records. Most records are
delivered before they would have to be moved to the database. No record is lost if the process is
killed. A crash of the machine may lose the records of the last seconds, but no older ones. If the
disk cannot be written to, records are kept in memory, up to a limit.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import shutil
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from ..limits import MAX_BYTES, MAX_ENTITIES
from . import frames
from .database import (
    LETTERS,
    SELECT_RUNS,
    SEQ,
    Change,
    Database,
    Head,
    Row,
    artifacts_of,
    delete_journal,
    head_row,
    last_written,
    packed_row,
    record_id,
    run_number,
)
from .file_lock import FileLock
from .intake import BEGINNINGS, Intake, Message
from .journal_content import Content, messages_of
from .owner import beat
from .records import (
    POINTS,
    ROW,
    Record,
    Refusal,
    RunState,
    begun_by,
    kind_and_content,
    length,
    packed,
    unpacked,
)

_logger = logging.getLogger("mlflow_iap_callbacks")

_PUT_RUN = "INSERT OR REPLACE INTO runs VALUES (?, ?)"
_PUT_HEAD = "INSERT OR REPLACE INTO journal VALUES (?, ?)"
_INSERT_START = "INSERT OR IGNORE INTO starts VALUES (?, ?)"
_INSERT_RECORD = "INSERT INTO records VALUES (?, ?)"
_INSERT_REFUSED = "INSERT INTO refused VALUES (?, ?)"
_DELETE_RECORDS = "DELETE FROM records WHERE id BETWEEN ? AND ?"
_MOST_IN_MEMORY_BYTES = 16_000_000
# Records that only the intake and the memory have. More are moved to the database.
_MOST_UNSTORED_BYTES = 8_000_000
_MOST_FINISHED_RUNS = 100
_RUNS_AT_ONCE = 1000


@dataclass(eq=False, kw_only=True)
class QueuedRun(RunState):
    """A run whose records are in an outbox.

    Args:
        outbox: the outbox.
        number: its number in the outbox.
        is_urgent: whether other runs or processes may be waiting for its creation.
        at_exit: status that the run gets if it is still open when its process exits normally.
        experiment_id: MLflow's id of the experiment, once known.
        is_begun: whether its first record was moved from the intake.
        is_stored: whether the journal contains the state of the run.
    """

    outbox: Outbox
    number: int
    is_urgent: bool = False
    at_exit: str | None = None
    experiment_id: str | None = None
    is_begun: bool = False
    is_stored: bool = False

    @property
    def place(self) -> tuple[str, str]:
        """Identifies the run; one key may be used in several experiments."""
        return self.experiment, self.key

    @property
    def start(self) -> Any:
        """Content of its ``start`` record; None if the run was joined or the record is lost."""
        return self.outbox.start_of(self.number)

    @property
    def is_adopted(self) -> bool:
        """Whether its records were written by a process that is dead now."""
        return self.outbox.is_adopted


class Outbox:
    """The records of each run, in order, until they are settled. Its methods are thread-safe.

    Appended records wait in the intake until ``collect`` takes them. Then they are in the intake
    and in memory, until they are settled or, if there are too many, moved to the database.

    Args:
        path: path of the journal; None to use memory only.
        server: URI of the MLflow server for a new journal; None to open an existing journal.
        name: name of a new journal on the server. Default: the file's name.
        lock: lock file of the journal, held by the process that writes to it; released by
            ``close``.

    Raises:
        Damaged: the journal's database is damaged.
        sqlite3.Error, OSError: the journal cannot be created or read.
    """

    def __init__(
        self,
        path: Path | None,
        server: str | None = None,
        *,
        name: str | None = None,
        lock: FileLock | None = None,
    ) -> None:
        self.path = path
        self.file_lock = lock
        self.is_adopted = server is None
        # When an existing journal was last written to, in seconds since 1970.
        self.died = last_written(path) if path and server is None else 0.0
        self._lock = threading.Lock()
        # By run: sequence number and message of the records that are not in the database.
        self._memory: dict[int, deque[tuple[int, bytes]]] = {}
        self._memory_bytes = 0
        self._is_full = False  # whether the database failed to take the records in memory
        self._finished: list[int] = []  # runs whose state is to be deleted
        self._volatile: set[int] = set()  # sequence numbers of records that are in no file
        self._unstored_starts: dict[int, Any] = {}
        self._undeleted: dict[int, int] = {}  # by run: last settled record that is still on disk
        self._is_damage_reported = False
        self._stored = self._stored_seq = 0
        self._numbers = itertools.count(1)
        self._runs: WeakValueDictionary[int, QueuedRun] = WeakValueDictionary()
        self._db: Database | None = None
        host, pid = socket.gethostname(), os.getpid()
        name = name or (path.stem if path else f"{host}-{pid}-memory")
        self._head = Head(str(server), host, pid, time.time(), name)
        if path is None:
            self.server, self.intake = self._head.server, Intake(None)
            return
        self._db = Database(path, None if server is None else self._head)
        self._head = self._db.head
        self.server = self._head.server
        self.intake = Intake(path.with_suffix(""), self._head.seq, self.server)
        self._count()

    @property
    def name(self) -> str:
        """Identifies the journal, also on the server."""
        return self._head.name

    @property
    def waiting(self) -> int:
        """Number of records that are not settled."""
        return self._stored + self.last_seq - self._stored_seq

    @property
    def last_seq(self) -> int:
        """Sequence number of the last record that was appended."""
        return self.intake.last_seq

    @property
    def volatile(self) -> int:
        """Number of records that are lost if the process ends."""
        return len(self._volatile) + self.intake.in_memory

    def copy_artifact(self, path: Path) -> str:
        """Copy a file or folder to deliver it later; return the path to pass to ``artifact``.

        If the folder contains the journals, they are not copied.

        Raises:
            OSError: it cannot be copied, or the outbox is in memory only.
        """
        if self.path is None:
            raise OSError("this process has no journal on disk to copy it to")
        artifacts_of(self.path).mkdir(mode=0o700, exist_ok=True)
        folder = artifacts_of(self.path) / uuid.uuid4().hex
        folder.mkdir(mode=0o700)
        copied = folder / Path(os.path.abspath(path)).name  # a link keeps its own name
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
        here = Path(folder).resolve()
        if own in (here, *here.parents):
            return names  # the copy is in it too, and would be copied into itself without end
        return [name for name in names if here / name == own]

    def artifact(self, path: str, *, is_copied: bool) -> str:
        """Return the path of an artifact's file or folder."""
        return str(artifacts_of(self.path) / path) if is_copied and self.path else path

    def begin(
        self, key: str, experiment: str, *, is_owned: bool = True, run_id: str | None = None
    ) -> QueuedRun:
        """Return a new run to append to. Its first record must be ``start`` or ``join``."""
        number = next(self._numbers)
        run = QueuedRun(key, experiment, is_owned, run_id=run_id, outbox=self, number=number)
        self._runs[number] = run
        return run

    def append_run(self, records: Sequence[tuple[str, Any]]) -> bool:
        """Append all records of a new run that has ended; return whether the outbox is open.

        Args:
            records: kind and content of each; the first one is ``start``.

        Raises:
            TypeError, ValueError, OverflowError: see ``Intake.append_all``.
        """
        return self.intake.append_all(next(self._numbers), records)

    def collect(self) -> dict[QueuedRun, int]:
        """Take new records from the intake.

        Returns:
            The runs that they belong to, each with its number of new metrics, params and tags.
        """
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

    def collect_all_files(self) -> None:
        """Move the records that a dead process left in its intake to the database."""
        if self.path is None:
            return
        messages = messages_of(self.path, self._head.seq)
        with self._lock:
            while self._memory_bytes < _MOST_IN_MEMORY_BYTES:
                some = [*itertools.islice(messages, MAX_ENTITIES)]
                if not some:
                    break
                self._store(some, {}, is_volatile=False)
            # A crash of the machine may have lost the end of the intake.
            self._stored_seq = max(self._stored_seq, self._last_settled())
            if self._move_to_database():
                self._count()
            left = [message.seq for message in messages]  # neither disk nor memory has room
            self.intake.skip_to(max([self._stored_seq, *left]))

    def read(self, run: QueuedRun, upto: int) -> list[Record]:
        """Return the run's oldest records up to number ``upto``, as many as fit in one request."""
        found: list[Record] = []
        damaged: list[tuple[int, int]] = []
        size = points = 0
        with self._lock:
            for seq, payload in self._messages(run.number):
                if payload is None:
                    damaged.append((record_id(run.number, seq),) * 2)
                    continue
                size += len(payload)
                if seq > upto or (found and size > MAX_BYTES):
                    break
                record = Record.from_message(seq, payload)
                found.append(record)
                points += _points(record.kind, record.content)
                if points >= MAX_ENTITIES:
                    break
            if damaged:
                self._lose(damaged)
        return found

    def settle(
        self, run: QueuedRun, records: Sequence[Record], refused: Sequence[Refusal] = ()
    ) -> None:
        """Delete ``records``, the run's oldest; store the refusals and the state of the run."""
        run.settled = records[-1].seq
        payloads = [packed(tuple(refusal)) for refusal in refused]

        with self._lock:
            self._stored -= len(records)
            self._volatile.difference_update(record.seq for record in records)
            kept = self._memory.get(run.number, deque())
            while kept and kept[0][0] <= run.settled:
                self._memory_bytes -= len(kept.popleft()[1])
            if not kept:
                self._memory.pop(run.number, None)
                self._is_full = self._is_full and bool(self._memory)
            self._undeleted[run.number] = run.settled
            if self._write(
                (_DELETE_RECORDS, [(record_id(run.number, 0), record_id(run.number, run.settled))]),
                (_INSERT_REFUSED, self._new_refusals(run.number, payloads)),
                (_PUT_RUN, [_row(run)]),
            ):
                del self._undeleted[run.number]
        if not refused and run.number not in self._undeleted:
            for record in records:
                if record.has_files:
                    self._delete_copy(record.content)

    def set_aside(self, run: QueuedRun, record: Record) -> QueuedRun | None:
        """Move the run's oldest record to a new queue, so that its other records do not wait.

        Returns:
            A queued run for the same MLflow run that has only this record; None if the journal
            cannot be written to.
        """
        state = RunState(run.key, run.experiment, False, is_ended=True, run_id=run.run_id)
        aside = self._queued(next(self._numbers), state)
        old = record_id(run.number, record.seq)
        with self._lock:
            is_stored = self._move_to_database()
            moved = next((p for seq, p in self._messages(run.number) if seq == record.seq), None)
            if (
                not is_stored
                or moved is None
                or not self._write(
                    (_PUT_RUN, [_row(aside)]),
                    (_INSERT_RECORD, [_record_row(aside.number, record.seq, moved)]),
                    (_INSERT_START, self._starts(run.number, aside.number)),
                    (_DELETE_RECORDS, [(old, old)]),
                )
            ):
                return None
            aside.is_begun = aside.is_stored = True
            self._runs[aside.number] = aside
        return aside

    def start_of(self, number: int) -> Any:
        """Return the content of the ``start`` record of a run; None if it has none."""
        with self._lock:
            for _, payload in self._rows("starts", number, number + 1):
                if payload is not None:
                    kind, content = kind_and_content(payload)
                    return content if kind == "start" else content.get("start")
            return self._unstored_starts.get(number)

    def save(self, run: QueuedRun) -> None:
        """Store the state of the run in the journal."""
        with self._lock:
            run.is_stored = self._write((_PUT_RUN, [_row(run)]))

    def forget(self, run: QueuedRun) -> None:
        """Delete the state of a run that is finished and delivered.

        Not while the intake has records of the run: the state says that they are settled.
        """
        with self._lock:
            run.is_stored = self._has_rows("refused", run.number)
            if not run.is_stored:
                self._finished.append(run.number)
                if len(self._finished) >= _MOST_FINISHED_RUNS:
                    self._move_to_database()

    def runs(self, most: float = math.inf) -> list[QueuedRun]:
        """Return the runs that are open or have records, the oldest first."""
        found: list[QueuedRun] = []
        last, rows = 0, [(0, b"", 0)]
        with self._lock:
            while rows and len(found) < most:
                rows = [*self._select(SELECT_RUNS, last, _RUNS_AT_ONCE)]
                for number, frame, has_records in rows:
                    last = number
                    run = self._run(number, frames.unpack(frame, LETTERS["runs"], number))
                    if run is None or len(found) == most:
                        continue
                    if has_records or number in self._memory or not run.is_ended:
                        found.append(run)
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
        """Return whether the run has records."""
        with self._lock:
            return run.number in self._memory or self._has_rows("records", run.number)

    def holds(self, upto: int) -> bool:
        """Return whether any record up to sequence number ``upto`` still waits."""
        with self._lock:
            if self._stored_seq < upto:
                return True
            if any(kept[0][0] <= upto for kept in self._memory.values()):
                return True
            # A variable would keep the SQLite cursor open after the lock is released, when the
            # process may fork.
            if any(
                place & SEQ > self._undeleted.get(run_number(place), 0)
                for (place,) in self._select("SELECT id FROM records WHERE id & ? <= ?", SEQ, upto)
            ):
                return True
            return self._db is not None and not self._db.is_readable

    def refusals(self) -> int:
        """Return the number of records that MLflow refused."""
        with self._lock:
            return sum(number for (number,) in self._select("SELECT count(*) FROM refused"))

    def refused(self) -> list[Refusal]:
        """Return what MLflow refused, run by run."""
        with self._lock:
            payloads = [payload for _, payload in self._rows("refused") if payload is not None]
        return [Refusal(*unpacked(payload)) for payload in payloads]

    def requeue_refused(self) -> int:
        """Queue refused records again, behind all others; return their number."""
        with self._lock:
            if not self._move_to_database():
                return 0
            rows = [
                (run_number(place), unpacked(payload)[:2])
                for place, payload in self._rows("refused")
                if payload is not None
            ]
            records = [
                _record_row(number, seq, packed((number, *record)))
                for seq, (number, record) in enumerate(rows, self._stored_seq + 1)
            ]
            runs = [run for run in map(self._known_run, {number for number, _ in rows}) if run]
            for run in runs:
                run.refused = None
            self._stored_seq += len(rows)
            if not self._write(
                (_INSERT_RECORD, records),
                ("DELETE FROM refused", [()]),
                (_PUT_RUN, [_row(run) for run in runs]),
                (_PUT_HEAD, [self._moved_head()]),
            ):
                return 0
            self._checkpoint()
            self._count()
            return len(rows)

    def take_over(self, content: Content) -> None:
        """Add the rows of another journal, and give new records higher sequence numbers."""
        with self._lock:
            for table, rows in content.rows:
                statement = f"INSERT OR IGNORE INTO {table} VALUES (?, ?)"  # noqa: S608 - our tables
                self._write((statement, [packed_row(table, *row) for row in rows]))
            self._stored_seq = content.last_seq
            self._count()
            self._write((_PUT_HEAD, [self._moved_head()]))
            self._checkpoint()

    def end_open_runs(self, why: str, when: float) -> None:
        """End each open run, with its ``at_exit`` status or as failed.

        Args:
            why: text of the tag for runs that end as failed.
            when: when the runs end, in seconds since 1970.
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
        """Close the journal, and delete it if all of its records are settled."""
        with self._lock:  # no thread may be reading the file
            self.intake.close()
        is_done = (
            self._db is not None
            and not (self.waiting or self.refusals())
            # Runs that should have been deleted may still be on disk.
            and all(run.is_ended for run in self.runs())
        )
        with self._lock:
            if self._db is not None and self._db.close() and is_done:
                delete_journal(self._db.path)
            self._db = None
            if self.file_lock is not None:
                self.file_lock.release()
                self.file_lock = None

    def beat(self) -> None:
        """Note that this process is alive, for hosts that do not see its lock."""
        if self.file_lock is not None:
            beat(self.file_lock)

    def stop_for_fork(self) -> None:
        """Keep threads out of SQLite, whose locks would stay locked forever in a forked child."""
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
        self, messages: Sequence[Message], entities: dict[QueuedRun, int], *, is_volatile: bool
    ) -> None:
        records: list[tuple[int, int, bytes]] = []
        starts: list[Row] = []
        changed: set[QueuedRun] = set()
        number, run = 0, None
        for message in messages:
            seq, number_of_run, kind, count, payload = message
            self._stored_seq = seq
            if number_of_run != number or run is None:
                number = number_of_run
                run = self._known_run(number) or self._new_run(message)
                if run is None:  # the record that began the run was damaged
                    continue
                self._runs[number] = run
            if seq <= run.settled:  # a dead process delivered it
                continue
            if kind in (ROW, "metrics") and run.is_stored:  # most records
                records.append((number, seq, payload))
                entities[run] = entities.get(run, 0) + count
                continue
            run.is_begun = True
            if not run.is_stored or kind in ("start", "finish", "abandon"):
                changed.add(run)
            if number in self._finished:
                self._finished.remove(number)
            if kind in BEGINNINGS:
                starts.append(packed_row("starts", number, payload))
            run.is_owned |= kind == "start"  # after `join`, if the outbox was closed before `start`
            run.is_ended |= kind in ("finish", "abandon")
            if kind != "join":
                records.append((number, seq, payload))
                entities[run] = entities.get(run, 0) + count
        self._stored += len(records)
        if starts or changed:
            self._store_states(messages, starts, changed)
        for number, seq, payload in records:
            self._memory.setdefault(number, deque()).append((seq, payload))
            self._memory_bytes += len(payload)
        if is_volatile:
            self._volatile.update(seq for _, seq, _ in records)
        if is_volatile or self._memory_bytes > _MOST_UNSTORED_BYTES:
            self._move_to_database()
        self._start_new_file()

    def _store_states(
        self, messages: Sequence[Message], starts: Sequence[Row], changed: Collection[QueuedRun]
    ) -> None:
        if self._write((_INSERT_START, starts), (_PUT_RUN, [_row(run) for run in changed])):
            for run in changed:
                run.is_stored = True
            return
        for message in messages:
            if message.kind == "start":
                _, self._unstored_starts[message.number] = kind_and_content(message.payload)

    def _move_to_database(self) -> bool:
        """Store all records that are only in the intake and in memory; return whether it succeeded.

        After a failure, this does nothing until they are settled.
        """
        if self._is_full:
            return False
        finished = [(number,) for number in self._finished]
        self._is_full = self._db is None or not self._write(
            (
                _INSERT_RECORD,
                (
                    _record_row(number, *message)
                    for number, kept in self._memory.items()
                    for message in kept
                ),
            ),
            (_PUT_HEAD, [self._moved_head()]),
            ("DELETE FROM runs WHERE id = ?", finished),
            ("DELETE FROM starts WHERE id = ?", finished),
        )
        if self._is_full:
            self._is_full = bool(self._memory)
            return False
        for number in self._finished:
            self._undeleted.pop(number, None)
            self._unstored_starts.pop(number, None)
        self._finished.clear()
        self._memory.clear()
        self._memory_bytes = 0
        self._volatile.clear()
        return True

    def _starts(self, number: int, other: int) -> list[Row]:
        rows = self._rows("starts", number, number + 1)
        return [packed_row("starts", other, payload) for _, payload in rows if payload is not None]

    def _moved_head(self) -> Row:
        self._head.seq = self._stored_seq
        return head_row(self._head)

    def _start_new_file(self) -> None:
        old = self.intake.start_new_file()
        # Damage to the WAL loses its records, unless the intake still has them.
        if old is not None and self._move_to_database() and self._checkpoint():
            old.unlink(missing_ok=True)

    def _checkpoint(self) -> bool:
        return self._db is not None and self._db.checkpoint()

    def _known_run(self, number: int) -> QueuedRun | None:
        if number not in self._runs:
            for _, payload in self._rows("runs", number, number + 1):
                return self._run(number, payload)
        return self._runs.get(number)

    def _new_run(self, message: Message) -> QueuedRun | None:
        if message.kind not in BEGINNINGS:
            return None
        return self._queued(message.number, begun_by(message.kind, message.content))

    def _run(self, number: int, payload: bytes | None) -> QueuedRun | None:
        run = self._runs.get(number)
        if run is None and payload is not None:
            run = self._queued(number, RunState(*unpacked(payload)))
            run.is_begun = run.is_stored = True
            self._runs[number] = run
        return run

    def _queued(self, number: int, state: RunState) -> QueuedRun:
        return QueuedRun(**vars(state), outbox=self, number=number)

    def _lose(self, damaged: Sequence[tuple[int, int]]) -> None:
        if self._write((_DELETE_RECORDS, damaged)):
            self._stored -= len(damaged)
        if not self._is_damage_reported:
            self._is_damage_reported = True
            _logger.warning("%s is damaged, and some of its records are lost.", self.path)

    def _last_settled(self) -> int:
        states = (payload for _, payload in self._rows("runs") if payload is not None)
        return max((RunState(*unpacked(state)).settled for state in states), default=0)

    def _new_refusals(self, number: int, payloads: Sequence[bytes]) -> list[Row]:
        first, end = record_id(number, 0), record_id(number + 1, 0)
        query = "SELECT coalesce(max(id), ?) FROM refused WHERE id >= ? AND id < ?"
        rows = [*self._select(query, first, first, end)] if payloads else []
        return [
            packed_row("refused", place, payload)
            for (last,) in rows
            for place, payload in enumerate(payloads, last + 1)
        ]

    def _delete_copy(self, content: dict[str, Any]) -> None:
        if content["is_copied"]:
            copied = Path(self.artifact(content["path"], is_copied=True))
            shutil.rmtree(copied.parent, ignore_errors=True)

    def _count(self) -> None:
        for seq, stored in self._select(
            "SELECT coalesce(max(id & ?), 0), count(*) FROM records", SEQ
        ):
            self._stored_seq, self._stored = max(seq, self._head.seq, self._stored_seq), stored
            self.intake.skip_to(self._stored_seq)
        last = [
            number
            for query in ("SELECT max(id) FROM runs", "SELECT max(id) FROM starts")
            for (number,) in self._select(query)
        ]
        self._numbers = itertools.count(max([0, *filter(None, last)]) + 1)

    def _messages(self, number: int) -> Iterator[tuple[int, bytes | None]]:
        after, end = record_id(number, self._undeleted.get(number, 0)), record_id(number + 1, 0)
        for place, payload in self._rows("records", after + 1, end):
            yield place & SEQ, payload
        yield from list(self._memory.get(number, ()))

    def _rows(self, table: str, *bounds: int) -> Iterator[tuple[int, bytes | None]]:
        return iter(()) if self._db is None else self._db.rows(table, *bounds)

    def _has_rows(self, table: str, number: int) -> bool:
        after = record_id(number, self._undeleted.get(number, 0) if table == "records" else 0)
        query = f"SELECT 1 FROM {table} WHERE id > ? AND id < ? LIMIT 1"  # noqa: S608
        return bool([*self._select(query, after, record_id(number + 1, 0))])

    def _select(self, query: str, *values: object) -> Iterator[tuple[Any, ...]]:
        return iter(()) if self._db is None else self._db.select(query, *values)

    def _write(self, *changes: Change) -> bool:
        return self._db is not None and self._db.write(*changes)


def _copy_file(path: str | Path, copied: str | Path) -> None:
    """Copy a regular file; a pipe or a device would be read without end."""
    if not os.path.isfile(path):
        raise OSError(f"{path} is not a regular file")
    shutil.copy2(path, copied)


def _points(kind: str, content: Any) -> int:
    """Return a record's size in a request, counted in points; at least one."""
    return length(kind, content) or 1 if kind in (*POINTS, "points") else 1


def _row(run: QueuedRun) -> Row:
    run.saves += 1
    return packed_row("runs", run.number, run.packed_state())


def _record_row(number: int, seq: int, payload: bytes) -> Row:
    return packed_row("records", record_id(number, seq), payload)
