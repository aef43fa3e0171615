"""The database of a journal, and the other files that a journal consists of.

SQLite in WAL mode: a transaction survives the kill of its process; a crash of the machine may lose
the last transactions, but none before them.
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

_logger = logging.getLogger("mlflow_iap_callbacks")

FORMAT = 1
_RUN_BITS = 40  # low bits of a record's id: sequence number; the others: run number
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
# Selects the runs that are not finished and delivered.
HAS_WORK = f"(NOT is_ended OR EXISTS (SELECT 1 FROM records WHERE id BETWEEN {_IDS}))"  # noqa: S608

Change = tuple[str, Iterable[Sequence[object]]]


class Database:
    """The database. Its errors are logged once, and never raised after it was opened.

    Args:
        path: path of the file.
        server: tracking URI of a new database; None to open one that exists.

    Raises:
        sqlite3.Error, OSError: it cannot be made, or read.
    """

    def __init__(self, path: Path, server: str | None) -> None:
        self.path = path
        self.is_readable = True
        self._is_reported = False
        if server is not None:
            # SQLite creates its other files with the permissions of this one.
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
        """Yield rows; none if the database cannot be read."""
        if self._db is None:
            return
        try:
            yield from self._db.execute(query, values)
        except sqlite3.Error as error:
            self._report(error, "What it holds is left as it is, for `mlflow-iap sync`")
            self._db, self.is_readable = None, False

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
            self._report(error, "What is logged is kept in memory for now")
            return False
        return True

    def close(self) -> bool:
        """Close it. Return whether it was readable and writable until now."""
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
                "The journal %s cannot be used (%s). %s; training goes on. Free space there, or "
                "set MLFLOW_IAP_OUTBOX to another folder.",
                self.path,
                error,
                then,
            )


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
    """Delete a journal whose lock is held. The file that it is found by goes last."""
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
