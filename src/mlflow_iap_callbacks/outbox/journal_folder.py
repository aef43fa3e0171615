"""The journals on this machine: finds, creates and summarizes them."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import sqlite3
import tempfile
import uuid
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs

from . import format_1
from .database import Damaged, artifacts_of, delete_journal, files_of, run_number
from .file_lock import FileLock
from .journal_content import Content, is_empty, read_damaged, read_whole, version_of
from .outbox import Outbox
from .owner import beat, host, host_of, is_from_here, last_beat, objection
from .records import RunState, record_kind, unpacked

_logger = logging.getLogger("mlflow_iap_callbacks")

VARIABLE = "MLFLOW_IAP_OUTBOX"


@dataclass
class JournalReport:
    """A summary of a journal.

    Args:
        path: path of the database.
        is_live: whether its lock is held, so its process is alive. A process on another host may
            be alive although the lock looks free here.
        is_from_here: whether its process runs, or ran, on this host.
        last_beat: when its process last noted that it is alive, in seconds since 1970 by the clock
            of its host; None if it never did.
        server: tracking URI of the server.
        host: machine of its process.
        pid: id of its process.
        begun: when it was created, in seconds since 1970.
        bytes: size on disk, with copied artifacts.
        waiting: number of waiting records, by kind.
        runs: number of runs that are open or have waiting records.
        refused: number of refusals, by reason.
        trouble: why the last delivery failed, if known.
        error: why the journal cannot be read; None if it can.
    """

    path: Path
    is_live: bool
    is_from_here: bool = True
    last_beat: float | None = None
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
        """Return the number of waiting records; with ``refused=True``, add the refused ones."""
        return self.waiting.total() + (self.refused.total() if refused else 0)


def folder() -> Path:
    """Return the journals' folder: MLFLOW_IAP_OUTBOX, or one in the user's state directory.

    A folder that other users can write to is not used: through it, they could make this process
    upload any file that this user can read. Nor is one that this user cannot look into or create,
    as in a container whose user does not own its home directory. A warning is
    logged once.
    """
    given = os.environ.get(VARIABLE)
    candidates = [_absolute(given)] if given else []
    with suppress(RuntimeError):  # there may be no home directory
        candidates.append(platformdirs.user_state_path("mlflow-iap") / "outbox")
    user = os.getuid() if hasattr(os, "getuid") else os.getpid()
    objections = []
    used = Path(tempfile.gettempdir(), f"mlflow-iap-{user}", "outbox")
    for candidate in filter(Path.is_absolute, candidates):
        why = _objection(candidate)
        if why is None:
            used = candidate
            break
        objections.append(why)
    for why in objections:
        _warn_once(why, used)
    return used


def _objection(path: Path) -> str | None:
    """Return why a folder cannot be used, whether or not it exists; None if it can."""
    # `Path.exists` would raise an error inside a folder that this user cannot look into.
    nearest = next(each for each in (path, *path.parents) if os.path.lexists(each))
    if not nearest.is_dir():
        return f"{path} cannot be used, because {nearest} is not a folder"
    if nearest == path:
        return objection(path) if os.access(path, os.R_OK | os.X_OK) else f"{path} cannot be read"
    if not os.access(nearest, os.W_OK | os.X_OK):
        return f"{path} cannot be created, because {nearest} is not writable"
    return None


@functools.cache
def _absolute(given: str) -> Path:
    """Return the absolute path, which stays the same when ``os.chdir`` is called later."""
    try:
        return Path(given).expanduser().absolute()
    except RuntimeError:  # there may be no home directory
        return Path(given).absolute()


@functools.cache
def _warn_once(why: str, used: Path) -> None:
    _logger.warning("%s. Journals are kept in %s; set %s to choose a folder.", why, used, VARIABLE)


def new_outbox(server: str, *, name: str | None = None) -> Outbox:
    """Return a new outbox of this process.

    If no file can be created, a warning is logged, and the outbox is in memory only.

    Args:
        server: tracking URI.
        name: name of the journal on the server. Default: the file's name.
    """
    path = folder() / f"{_mark(server)}-{host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.sqlite"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if why := objection(path.parent):
            raise PermissionError(why)
        lock = FileLock(path.with_suffix(".lock"))
        try:
            beat(lock)
            return Outbox(path, server, name=name, lock=lock)
        except BaseException:
            delete_journal(path)
            lock.release()
            raise
    except (OSError, sqlite3.Error) as error:
        _logger.warning(
            "No journal can be created in %s (%s), so records are kept in memory and are lost if "
            "this process is killed. Make the folder writable, or set %s to another one.",
            path.parent,
            error,
            VARIABLE,
        )
        return Outbox(None, server)


def is_for(server: str, journal: Path) -> bool:
    """Return whether a journal's name says that it is for a server."""
    return journal.name.startswith(f"{_mark(server)}-")


def journals(server: str | None = None) -> list[Path]:
    """Return the paths of the journals, for one server or all; they may be deleted at any time."""
    mark = _mark(server) if server else "[0-9a-f]" * 8  # does not match damaged-*
    where = folder()
    if not os.path.isdir(where):  # the path may be too long, for which `glob` raises an error
        return []
    found = {*where.glob(f"{mark}-*.sqlite")}
    intakes = where.glob(f"{mark}-*.intake")
    return sorted(found | {path.with_suffix("").with_suffix(".sqlite") for path in intakes})


def survey() -> list[JournalReport]:
    """Return a report on each journal, including those of live processes. Change nothing."""
    found = []
    for path in journals():
        report = JournalReport(path, _is_live(path), is_from_here(path), last_beat(path))
        try:
            if not _look_into(report):
                continue
            files = [*files_of(path), *artifacts_of(path).rglob("*")]
            report.bytes = sum(file.stat().st_size for file in files if file.is_file())
        except Exception as error:  # noqa: BLE001 - it may be deleted meanwhile, or be any other file
            report.error = str(error)
        if any(file.exists() for file in files_of(path)):
            found.append(report)
    return found


def _look_into(report: JournalReport) -> bool:
    """Describe a journal's content. Return False if its process only began to create it."""
    try:
        _count(report, read_whole(report.path))
    except (sqlite3.Error, Damaged) as error:
        old = format_1.read(report.path)
        if old is None:
            report.error = str(error)
        content = old or read_damaged(report.path)
        if is_empty(report.path, content) and version_of(report.path) is None:
            return False
        _count(report, content)
    return True


def _count(report: JournalReport, content: Content) -> None:
    if content.head is not None:
        report.host, report.pid = content.head.host or host_of(report.path), content.head.pid
        report.begun = content.head.begun
    report.server = content.server or ""
    runs: set[int] = set()
    report.waiting, report.refused = Counter(), Counter()
    for table, rows in content.rows:
        for place, payload in rows:
            row = unpacked(payload)
            if table == "records":
                report.waiting[record_kind(row[1])] += 1
                runs.add(run_number(place))
            elif table == "refused":
                report.refused[row[2]] += 1
            elif table == "runs":
                state = RunState(*row)
                report.trouble = state.trouble or report.trouble
                if not state.is_ended:
                    runs.add(place)
    for message in content.messages:
        if message.kind != "join":
            report.waiting[record_kind(message.kind)] += 1
            runs.add(message.number)
    report.runs = len(runs)


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
