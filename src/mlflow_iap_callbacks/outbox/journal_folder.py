"""The journals on this machine: where they are, which processes are dead, what they hold."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import socket
import sqlite3
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs

from .database import FORMAT, HAS_WORK, artifacts_of, delete_journal, files_of
from .file_lock import FileLock
from .intake import HEADER
from .outbox import Outbox
from .rescue import messages_of, read_damaged

_logger = logging.getLogger("mlflow_iap_callbacks")

VARIABLE = "MLFLOW_IAP_OUTBOX"
_reported: set[Path] = set()  # journals that cannot be taken over
_NAMES = f"{'[0-9a-f]' * 8}-*.sqlite"  # without damaged-*


@dataclass
class JournalReport:
    """What a journal holds.

    Args:
        path: path of the database.
        is_live: whether its process is alive.
        server: tracking URI of the server.
        host: machine of its process.
        pid: id of its process.
        begun: seconds since 1970.
        bytes: size on disk, with copied artifacts.
        waiting: number of records that wait, by kind.
        runs: number of runs that are open or wait to be delivered.
        refused: number of refusals, by reason.
        trouble: why the last delivery failed, if known.
        error: why the journal cannot be read, if it cannot.
    """

    path: Path
    is_live: bool
    server: str = ""
    host: str = ""
    pid: int = 0
    begun: float = 0.0
    bytes: int = 0
    waiting: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    trouble: str | None = None
    error: str | None = None

    def records(self, *, refused: bool = False) -> int:
        """Return how many records wait; with ``refused=True``, include the refused ones."""
        return self.waiting.total() + (self.refused.total() if refused else 0)


def folder() -> Path:
    """Return the journals' folder: MLFLOW_IAP_OUTBOX, or one in the user's state directory."""
    given = os.environ.get(VARIABLE)
    return Path(given) if given else platformdirs.user_state_path("mlflow-iap") / "outbox"


def new_outbox(server: str) -> Outbox:
    """Return a new outbox of this process; in memory, with a warning, if no journal can be made."""
    mark = _mark(server)
    host = re.sub(r"[^\w]+", "-", socket.gethostname())
    path = folder() / f"{mark}-{host}-{os.getpid()}-{uuid.uuid4().hex[:8]}.sqlite"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = FileLock(path.with_suffix(".lock"))
        try:
            return Outbox(path, server, lock=lock)
        except BaseException:
            delete_journal(path)
            lock.release()
            raise
    except (OSError, sqlite3.Error) as error:
        _logger.warning(
            "What is logged is kept in memory, and lost if this process is killed: no journal can "
            "be kept in %s (%s). Make it writable, or set %s to another folder.",
            path.parent,
            error,
            VARIABLE,
        )
        return Outbox(None, server)


def orphans(server: str | None = None) -> Iterator[Outbox]:
    """Take over the journals of dead processes, for one server or for all, and yield each.

    The caller must close each outbox. If a journal is damaged, a warning is logged and the records
    that can still be read are moved to a new journal.
    """
    for path in sorted(folder().glob(f"{_mark(server)}-*.sqlite" if server else _NAMES)):
        try:
            lock = FileLock(path.with_suffix(".lock"))
        except OSError:
            continue  # its process is alive
        outbox = None
        try:
            outbox = _adopt(path, lock)
        except Exception as error:  # noqa: BLE001 - one must not stop the others
            _report_once(path, "%s cannot be taken over: %s", path, error)
        if outbox is None:
            lock.release()
        else:
            yield outbox


def survey() -> list[JournalReport]:
    """Return a report of each journal, also of living processes. Changes nothing."""
    found = []
    for path in sorted(folder().glob(_NAMES)):
        journal = JournalReport(path, is_live=_is_live(path))
        with suppress(OSError):  # delivered and deleted meanwhile
            files = [*files_of(path), *artifacts_of(path).rglob("*")]
            journal.bytes = sum(file.stat().st_size for file in files if file.is_file())
            try:
                _look_into(journal)
            except (sqlite3.Error, TypeError) as error:
                journal.error = str(error)
                _look_into_intake(journal)
            if path.exists():
                found.append(journal)
    return found


def _look_into(journal: JournalReport) -> None:
    uri = f"{journal.path.resolve().as_uri()}?mode=ro"
    if not Path(f"{journal.path}-wal").exists():
        uri += "&immutable=1"  # else SQLite makes one
    with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as db:
        journal.server, journal.host, journal.pid, journal.begun = db.execute(
            "SELECT server, host, pid, begun FROM journal"
        ).fetchone()
        journal.waiting.update(
            dict(db.execute("SELECT kind, count(*) FROM records GROUP BY kind").fetchall())
        )
        rows = db.execute(f"SELECT number FROM runs WHERE {HAS_WORK}")  # noqa: S608 - a constant
        runs = {number for (number,) in rows}
        journal.refused.update(
            dict(db.execute("SELECT reason, count(*) FROM refused GROUP BY reason").fetchall())
        )
        place = db.execute("SELECT generation, offset FROM journal").fetchone()
        for number, kind, _ in messages_of(journal.path, *place):
            if kind not in (HEADER, "join"):
                journal.waiting[kind] += 1
                runs.add(number)
        journal.runs = len(runs)
        for (trouble,) in db.execute(
            "SELECT trouble FROM runs WHERE trouble IS NOT NULL ORDER BY number DESC LIMIT 1"
        ):
            journal.trouble = trouble


def _look_into_intake(journal: JournalReport) -> None:
    """Report on the intake alone, because the database cannot be read."""
    journal.waiting.clear()
    for _, kind, content in messages_of(journal.path):
        if kind == HEADER:
            journal.server = content
        elif kind != "join":
            journal.waiting[kind] += 1


def _adopt(path: Path, lock: FileLock) -> Outbox | None:
    if not any(file.exists() and file.stat().st_size for file in files_of(path)):
        delete_journal(path)  # already delivered, or never begun
        return None
    try:
        with closing(sqlite3.connect(path)) as db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            is_whole = db.execute("PRAGMA quick_check(1)").fetchone() == ("ok",)
        if version not in (0, FORMAT):
            _report_once(
                path,
                "%s was written by another version of mlflow-iap-callbacks. Use that version to "
                "send it.",
                path,
            )
            return None
        if version == 0 and is_whole and not list(messages_of(path)):
            delete_journal(path)  # its process died while it made it
            return None
        if is_whole and version == FORMAT:
            return _opened(path, lock)
    except sqlite3.OperationalError as error:
        # Not damaged: the disk is full, or the file cannot be opened.
        _report_once(path, "%s cannot be taken over for now: %s.", path, error)
        return None
    except sqlite3.Error:
        pass
    return _rescued(path)


def _opened(path: Path, lock: FileLock) -> Outbox:
    outbox = Outbox(path, lock=lock)
    cut = outbox.collect_all_files()
    if cut:
        _logger.warning(
            "%s was cut off in the middle of a record: its last %d bytes are lost, everything "
            "before them is intact.",
            path.with_suffix(f".{outbox.intake.generation}.intake"),
            cut,
        )
    return outbox


def _rescued(path: Path) -> Outbox | None:
    """Return a new journal with the readable records of a damaged one, which is kept beside it."""
    remains = read_damaged(path)
    if remains.server is None:
        _logger.warning("%s cannot be read at all. It is left as damaged-%s.", path, path.name)
        _set_aside(path)
        return None
    outbox = new_outbox(remains.server)
    if outbox.path is None:
        return None
    outbox.is_adopted = True
    outbox.died = path.stat().st_mtime
    outbox.take_over(remains.tables)
    for message in remains.messages:
        outbox.intake.append(*message)
    outbox.collect()
    if artifacts_of(path).exists():
        artifacts_of(path).rename(artifacts_of(outbox.path))
    _logger.warning(
        "%s is damaged: %d records can be read and will be sent, the rest is lost. The journal "
        "is kept as damaged-%s.",
        path,
        outbox.waiting,
        path.name,
    )
    _set_aside(path)
    return outbox


def _set_aside(path: Path) -> None:
    for file in files_of(path):
        with suppress(FileNotFoundError):
            file.rename(file.with_name(f"damaged-{file.name}"))
    path.with_suffix(".lock").unlink(missing_ok=True)


def _report_once(path: Path, text: str, *values: object) -> None:
    if path not in _reported:
        _reported.add(path)
        _logger.warning(text, *values)


def _is_live(path: Path) -> bool:
    try:
        FileLock(path.with_suffix(".lock"), create=False).release()
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _mark(server: str) -> str:
    return hashlib.sha256(server.encode()).hexdigest()[:8]
