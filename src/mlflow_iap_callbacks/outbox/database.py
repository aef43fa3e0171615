"""The SQLite database of a journal, and the other files that a journal consists of.

SQLite's WAL mode keeps each transaction even if the process is killed. A crash of the machine, or
damage, may lose the last transactions, but the intake still has their records. Each row is an id
and a frame. So a damaged row is always noticed, and the other rows can be read even if SQLite
cannot read the file.
"""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from . import frames
from .records import packed, unpacked

_logger = logging.getLogger("mlflow_iap_callbacks")

FORMAT = 4
FORMATS = (2, 3, FORMAT)  # that can be read; 3 is the same without groups, 2 also without rows
PAGE_BYTES = 4096
_RUN_BITS = 40  # low bits of a record's id for its sequence number; the others are its run number
SEQ = (1 << _RUN_BITS) - 1
# The tables, each with the letter of its frames.
LETTERS = {
    "journal": b"j",  # one row: the head
    "runs": b"r",  # the state of each run, by its number
    "starts": b"s",  # the first message of each run, by the run's number
    "records": b"m",  # waiting messages, by the run's number and their sequence number
    "refused": b"n",  # what MLflow rejected, by the run's number and a counter
}
_LAST_ID = (1 << 63) - 1
# Selects runs, each with its state and whether it has records.
SELECT_RUNS = (
    "SELECT id, frame, EXISTS (SELECT 1 FROM records WHERE records.id BETWEEN"  # noqa: S608
    f" runs.id << {_RUN_BITS} AND (runs.id << {_RUN_BITS}) + {SEQ}) FROM runs"
    " WHERE id > ? ORDER BY id LIMIT ?"
)

Row = tuple[int, bytes]  # an id and a frame
Change = tuple[str, Iterable[Sequence[object]]]


@dataclass
class Head:
    """A journal's description of itself.

    Args:
        server: tracking URI of the server.
        host: machine of its process.
        pid: id of its process.
        begun: when the journal was created, in seconds since 1970.
        name: name of the journal on the server. If the records were moved here from another
            journal, it is the name of that one.
        seq: sequence number of the last stored record.
        format: version of the format of journals.
    """

    server: str
    host: str
    pid: int
    begun: float
    name: str
    seq: int = 0
    format: int = FORMAT

    @classmethod
    def from_row(cls, payload: bytes) -> Head:
        """Return the head in a row; if it has another format, only the format is known."""
        known = unpacked(payload)
        return cls(*known) if known[-1] in FORMATS else cls("", "", 0, 0.0, "", format=known[-1])


class Damaged(Exception):
    """The database is damaged. Its undamaged records can be rescued."""


class Database:
    """The database of a journal. Once it is open, errors are not raised; the first is logged.

    Args:
        path: path of the file.
        head: head of a new database; None to open one that exists.

    Raises:
        Damaged: its head cannot be read.
        sqlite3.Error, OSError: it cannot be created or read.
    """

    def __init__(self, path: Path, head: Head | None) -> None:
        self.path = path
        self.is_readable = True
        self._is_reported = False
        if head is not None:
            # SQLite creates its other files with the permissions of this one.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        db = connect(path)
        self._db: sqlite3.Connection | None = db
        try:
            if head is not None:
                db.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            if head is not None:
                db.execute("BEGIN")
                db.execute(f"PRAGMA user_version = {FORMAT}")
                for table in LETTERS:
                    db.execute(f"CREATE TABLE {table}(id INTEGER PRIMARY KEY, frame BLOB)")
                db.execute("INSERT INTO journal VALUES (?, ?)", head_row(head))
                db.execute("COMMIT")
            self.head = head or self._read_head()
        except BaseException:
            db.close()
            raise

    def _read_head(self) -> Head:
        for _, payload in self.rows("journal"):
            if payload is not None:
                return Head.from_row(payload)
        raise Damaged

    def select(self, query: str, *values: object) -> Iterator[tuple[Any, ...]]:
        """Yield rows; none if the database cannot be read."""
        if self._db is None:
            return
        try:
            yield from self._db.execute(query, values)
        except sqlite3.Error as error:
            self._report(
                error, "The records stay in this file until `mlflow-iap sync` can read them"
            )
            self._db, self.is_readable = None, False

    def rows(
        self, table: str, first: int = 0, end: int = _LAST_ID
    ) -> Iterator[tuple[int, bytes | None]]:
        """Yield the rows of a table with ids from ``first`` up to ``end``.

        Each row is an id and the payload of its frame, or None if the frame is damaged.
        """
        query = f"SELECT id, frame FROM {table} WHERE id >= ? AND id < ? ORDER BY id"  # noqa: S608
        for number, frame in self.select(query, first, end):
            if number < first:  # a damaged page makes SQLite loop
                return
            first = number + 1
            yield number, frames.unpack(frame, LETTERS[table], number)

    def write(self, *changes: Change) -> bool:
        """Execute all changes in one transaction. Return whether it succeeded."""
        if self._db is None:
            return False
        try:
            self._db.execute("BEGIN")
            for statement, rows in changes:
                self._db.executemany(statement, rows)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            with suppress(sqlite3.Error):
                self._db.rollback()
            self._report(error, "New records are kept in memory for now")
            return False
        return True

    def checkpoint(self) -> bool:
        """Move all transactions from the WAL to the database; return whether that succeeded."""
        rows = [*self.select("PRAGMA wal_checkpoint(TRUNCATE)")]
        return bool(rows) and rows[0][0] == 0

    def close(self) -> bool:
        """Close the database. Return whether all reads succeeded."""
        db, self._db = self._db, None
        if db is None:
            return False
        with suppress(sqlite3.Error):
            db.close()
        return True

    def _report(self, error: sqlite3.Error, then: str) -> None:
        if not self._is_reported:
            self._is_reported = True
            _logger.warning(
                "The journal %s cannot be used (%s). %s; training goes on. Free some space, or "
                "set MLFLOW_IAP_OUTBOX to another folder.",
                self.path,
                error,
                then,
            )


def connect(path: Path | str, *, uri: bool = False) -> sqlite3.Connection:
    """Return a connection to a database that may be damaged."""
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, uri=uri)
    db.text_factory = bytes  # a damaged row may contain any bytes
    return db


def connect_to_read(path: Path) -> sqlite3.Connection:
    """Return a connection that changes no file."""
    uri = f"{path.resolve().as_uri()}?mode=ro"
    if not Path(f"{path}-wal").exists():
        uri += "&immutable=1"  # otherwise SQLite would create a WAL
    return connect(uri, uri=True)


def head_row(head: Head) -> Row:
    """Return the row of the table ``journal``."""
    return packed_row("journal", 1, packed(astuple(head)))


def packed_row(table: str, number: int, payload: bytes) -> Row:
    """Return a row of a table."""
    return number, frames.pack(LETTERS[table], number, payload)


def record_id(number: int, seq: int) -> int:
    """Return a record's id, which sorts by run and then by sequence number."""
    return number << _RUN_BITS | seq


def run_number(record: int) -> int:
    """Return the run number that a record's id contains."""
    return record >> _RUN_BITS


def artifacts_of(journal: Path) -> Path:
    """Return the folder of the artifacts that were copied for delivery."""
    return journal.with_suffix(".artifacts")


def files_of(journal: Path) -> list[Path]:
    """Return the files of the database and the intake, some of which may not exist."""
    database = [Path(f"{journal}{suffix}") for suffix in ("", "-wal", "-shm")]
    return [*database, *journal.parent.glob(f"{journal.stem}.*.intake")]


def delete_journal(journal: Path) -> None:
    """Delete a journal whose lock is held.

    The database is deleted last of its files, because journals are found by it.
    """
    shutil.rmtree(artifacts_of(journal), ignore_errors=True)
    for path in reversed(files_of(journal)):
        path.unlink(missing_ok=True)
    journal.with_suffix(".lock").unlink(missing_ok=True)


def last_written(journal: Path) -> float:
    """Return when a journal was last written to, in seconds since 1970."""
    files = [path for path in files_of(journal) if path.exists()]
    # Opening the database writes to it.
    appended = [path for path in files if path.suffix == ".intake"]
    return max(path.stat().st_mtime for path in appended or files)
