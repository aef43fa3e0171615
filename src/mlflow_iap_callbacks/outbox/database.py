"""The database of a journal, and what else a journal consists of on disk.

SQLite in WAL mode: a transaction survives the kill of its process; a crash of the machine may cost
the last ones, never what was before.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

_logger = logging.getLogger(__name__)

FORMAT = 1
_RUN_BITS = 40  # that a sequence number leaves to the run's in a record's id
SEQ = (1 << _RUN_BITS) - 1
_SCHEMA = (
    f"PRAGMA user_version = {FORMAT}",
    "CREATE TABLE journal(server TEXT, host TEXT, pid INTEGER, begun REAL,"
    " generation INTEGER, offset INTEGER)",
    "CREATE TABLE runs(number INTEGER PRIMARY KEY, key TEXT, experiment TEXT, is_owned INTEGER,"
    " is_ended INTEGER, run_id TEXT, tried REAL, refused TEXT, trouble TEXT, skipped INTEGER)",
    "CREATE TABLE records(id INTEGER PRIMARY KEY, kind TEXT, body BLOB)",
    "CREATE TABLE refused(run INTEGER, kind TEXT, body BLOB, reason TEXT, time REAL)",
)
_IDS = f"number << {_RUN_BITS} AND (number + 1) << {_RUN_BITS}"
# Of the table of runs: those that are not done with.
HAS_WORK = f"(NOT is_ended OR EXISTS (SELECT 1 FROM records WHERE id BETWEEN {_IDS}))"  # noqa: S608

Change = tuple[str, Iterable[Sequence[object]]]


class Database:
    """One process's; what goes wrong with it is told once, and never raised.

    Args:
        path: of the file.
        server: URI that a new one is for; None for one that is there already.

    Raises:
        sqlite3.Error, OSError: it cannot be made, or read.
    """

    def __init__(self, path: Path, server: str | None) -> None:
        self.path = path
        self.is_readable = True
        self._is_told = False
        if server is not None:
            # SQLite gives its other files the permissions of the first.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db: sqlite3.Connection | None = db
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            if server is not None:
                row = (server, socket.gethostname(), os.getpid(), time.time(), 0, 0)
                db.execute("BEGIN")
                for statement in _SCHEMA:
                    db.execute(statement)
                db.execute("INSERT INTO journal VALUES (?, ?, ?, ?, ?, ?)", row)
                db.execute("COMMIT")
            self.server, self.generation, self.offset = db.execute(
                "SELECT server, generation, offset FROM journal"
            ).fetchone()
        except BaseException:
            db.close()
            raise

    def select(self, query: str, *values: object) -> Iterator[tuple[Any, ...]]:
        """Rows; none where the database cannot be read, or no longer."""
        if self._db is None:
            return
        try:
            yield from self._db.execute(query, values)
        except sqlite3.Error as error:
            self._tell(error, "What it holds is left as it is, for `mlflow-iap sync`")
            self._db, self.is_readable = None, False

    def write(self, *changes: Change) -> bool:
        """Carry out all changes, each a statement and rows of values for it, or none; whether."""
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
            self._tell(error, "What is logged is kept in memory for now")
            return False
        return True

    def close(self) -> bool:
        """Let go of it; whether it could be read and written to the end."""
        db, self._db = self._db, None
        if db is None:
            return False
        with suppress(sqlite3.Error):
            db.close()
        return True

    def _tell(self, error: sqlite3.Error, then: str) -> None:
        if not self._is_told:
            self._is_told = True
            _logger.warning(
                "The journal %s fails (%s). %s; training goes on. Make room there, or set "
                "MLFLOW_IAP_OUTBOX to another folder.",
                self.path,
                error,
                then,
            )


def record_id(number: int, seq: int) -> int:
    """Of a record: in the order of runs by number, and of their records by sequence number."""
    return number << _RUN_BITS | seq


def run_number(record: int) -> int:
    """Of the run that a record's id belongs to."""
    return record >> _RUN_BITS


def artifacts_of(journal: Path) -> Path:
    """Folder of the artifacts that were copied for their delivery."""
    return journal.with_suffix(".artifacts")


def files_of(journal: Path) -> list[Path]:
    """Of the database and of the intake; some may not exist."""
    database = [Path(f"{journal}{suffix}") for suffix in ("", "-wal", "-shm")]
    return [*database, *journal.parent.glob(f"{journal.stem}.*.intake")]


def delete_journal(journal: Path) -> None:
    """Delete a journal with all that belongs to it, what it is found by last; its lock is held."""
    shutil.rmtree(artifacts_of(journal), ignore_errors=True)
    for path in reversed(files_of(journal)):
        path.unlink(missing_ok=True)
    journal.with_suffix(".lock").unlink(missing_ok=True)


def last_written(journal: Path) -> float:
    """When, in seconds since 1970."""
    files = [path for path in files_of(journal) if path.exists()]
    # Whoever opens the database writes to it.
    appended = [path for path in files if path.suffix == ".intake"]
    return max(path.stat().st_mtime for path in appended or files)
