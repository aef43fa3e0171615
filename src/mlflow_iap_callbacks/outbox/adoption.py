"""Takes over the journals of dead processes."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..plurals import counted
from . import format_1
from .database import (
    FORMATS,
    Damaged,
    artifacts_of,
    delete_journal,
    files_of,
    last_written,
)
from .file_lock import FileLock
from .intake import files_by_generation, unreadable_bytes
from .journal_content import (
    Content,
    is_empty,
    read_damaged,
    read_whole,
    version_of,
)
from .journal_folder import journals, new_outbox
from .outbox import Outbox
from .owner import beat, is_from_here, objection

_logger = logging.getLogger("mlflow_iap_callbacks")

# Beginnings of SQLite's messages about files that are not damaged.
_NOT_DAMAGED = ("unable to open", "database is locked", "disk ", "database or disk", "attempt to")
_NO_ROOM = "there is no room for a new journal"
_MESSAGES_AT_ONCE = 1000


@dataclass
class Untaken:
    """A dead process's journal that cannot be taken over.

    Args:
        path: path of the journal.
        why: the reason.
    """

    path: Path
    why: str


def orphans(
    server: str | None = None,
    *,
    other_hosts: Collection[Path] = (),
    passed_over: Collection[Path] = (),
) -> Iterator[Outbox | Untaken]:
    """Take over the journals of dead processes, and yield each.

    Each is yielded as an Outbox, which the caller must close, or as Untaken if it cannot be taken
    over. If a journal is damaged, a warning is logged, and its undamaged records are moved to a new
    journal.

    Args:
        server: tracking URI; None for all servers.
        other_hosts: journals of other hosts' processes, to take over as well.
        passed_over: journals to leave alone, because they could not be taken over before.
    """
    for path in journals(server):
        if path in passed_over or not (path in other_hosts or is_from_here(path)):
            continue
        try:
            lock = FileLock(path.with_suffix(".lock"))
        except BlockingIOError:
            continue  # its process is alive
        except OSError as error:
            yield Untaken(path, f"its lock cannot be opened: {error.strerror}")
            continue
        found: Outbox | Untaken | None
        try:
            found = _taken(path, lock, server)
        except Exception as error:  # noqa: BLE001 - a bad journal must not stop the others
            found = Untaken(path, str(error))
        if not isinstance(found, Outbox) or found.file_lock is not lock:
            lock.release()
        if found is not None:
            yield found


def _taken(path: Path, lock: FileLock, server: str | None) -> Outbox | Untaken | None:
    if not any(file.exists() and file.stat().st_size for file in files_of(path)):
        delete_journal(path)  # it was delivered, or never got a record
        return None
    for file in (*files_of(path), artifacts_of(path)):
        if file.exists() and (why := objection(file)):
            return Untaken(path, why)
    version: int | None = 0
    try:
        version = version_of(path)
        if version in FORMATS:
            content = read_whole(path)
            for _ in content.rows:
                pass
            _report_damage(path)
            if not is_from_here(path):  # a process on its host may not see the lock
                return _replaced(path, read_whole(path), content.server or "")
            beat(lock)
            outbox = Outbox(path, lock=lock)
            outbox.collect_all_files()
            return outbox
    except sqlite3.OperationalError as error:
        if str(error).startswith(_NOT_DAMAGED):
            return Untaken(path, str(error))
    except (sqlite3.Error, Damaged, TypeError, ValueError):
        pass  # damage can cause any of these
    return _rescued(path, version, server)


def _report_damage(path: Path) -> None:
    for file in files_by_generation(path.with_suffix("")).values():
        size = unreadable_bytes(file)
        if size:
            _logger.warning(
                "%s is damaged: %d bytes of it cannot be read. Everything else in it is intact.",
                file,
                size,
            )


def _rescued(path: Path, version: int | None, server: str | None) -> Outbox | Untaken | None:
    content = read_damaged(path)
    if content.server is None:
        content = format_1.read(path) or content
    if version is None and is_empty(path, content):
        delete_journal(path)  # its process died while creating it
        return None
    form = content.head.format if content.head else version
    if form not in (0, None, format_1.FORMAT, *FORMATS):
        return Untaken(path, "another version of mlflow-iap-callbacks wrote it; use that version")
    server = content.server or server
    if server is None:
        return Untaken(path, "it is damaged and its server is unknown; set MLFLOW_TRACKING_URI")
    if form == version == format_1.FORMAT and format_1.is_whole(path):
        return _replaced(path, content, server)
    outbox = _moved(path, content, server)
    if outbox is None:
        return Untaken(path, _NO_ROOM)
    _logger.warning(
        "%s is damaged. %s without damage will be sent, and the file is kept as damaged-%s.",
        path,
        counted(outbox.waiting, "record"),
        path.name,
    )
    for file in files_of(path):
        with suppress(FileNotFoundError):
            file.rename(file.with_name(f"damaged-{file.name}"))
    path.with_suffix(".lock").unlink(missing_ok=True)
    return outbox


def _replaced(path: Path, content: Content, server: str) -> Outbox | Untaken:
    outbox = _moved(path, content, server)
    if outbox is None:
        return Untaken(path, _NO_ROOM)
    delete_journal(path)
    return outbox


def _moved(path: Path, content: Content, server: str) -> Outbox | None:
    """Return a new journal with the content of another; None if there is no room for it."""
    head = content.head
    outbox = new_outbox(server, name=head.name if head and head.name else path.stem)
    if outbox.path is None:
        return None
    outbox.is_adopted, outbox.died = True, last_written(path)
    outbox.take_over(content)
    for number, message in enumerate(content.messages, 1):
        outbox.intake.append(message.number, message.kind, message.content)
        if number % _MESSAGES_AT_ONCE == 0:
            outbox.collect()
    outbox.collect()
    if artifacts_of(path).exists():
        artifacts_of(path).rename(artifacts_of(outbox.path))
    return outbox
