"""Who owns a journal: its user, and the host whose process writes to it.

A journal names files to upload, so only a journal that belongs to this user is trusted. If the lock
of a journal is free, its process is dead; but this is certain only on the same host, because
network file systems may not share locks between hosts.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import socket
import time
from contextlib import suppress
from pathlib import Path

from . import frames
from .file_lock import FileLock
from .records import packed, unpacked

_MACHINE_ID = Path("/etc/machine-id")
_LETTER = b"o"


def objection(path: Path) -> str | None:
    """Return why a file or folder cannot be trusted; None if it can.

    As in OpenSSH, it must belong to this user, and nobody else may write to it.
    """
    if not hasattr(os, "geteuid"):
        return None  # Windows
    found = path.stat()
    if found.st_uid != os.geteuid():
        return f"{path} belongs to another user"
    if found.st_mode & 0o022:
        return f"{path} can be written to by other users; `chmod go-w {path}` changes that"
    return None


def host() -> str:
    """Return this host's name, with the characters that names of journals may contain."""
    return re.sub(r"[^\w]+", "-", socket.gethostname())


def host_of(journal: Path) -> str:
    """Return the host in a journal's name: ``SERVER-HOST-PID-NUMBER.sqlite``."""
    return journal.stem.split("-", 1)[-1].rsplit("-", 2)[0]


def is_from_here(journal: Path) -> bool:
    """Return whether a process of this host writes, or wrote, to a journal."""
    machine = _note(journal)[0]
    return host_of(journal) == host() and machine in ("", _machine())


def beat(lock: FileLock) -> None:
    """Note in a journal's lock file that its process is alive."""
    lock.write(frames.pack(_LETTER, 0, packed((_machine(), time.time()))))


def last_beat(journal: Path) -> float | None:
    """Return when a journal's process last noted that it is alive; None if it never did.

    In seconds since 1970, by the clock of its host.
    """
    return _note(journal)[1]


def _note(journal: Path) -> tuple[str, float | None]:
    payload = None
    with suppress(OSError):
        payload = frames.unpack(journal.with_suffix(".lock").read_bytes(), _LETTER, 0)
    machine, seconds = ("", None) if payload is None else unpacked(payload)
    return machine, seconds


@functools.cache
def _machine() -> str:
    """Return a machine id, to tell hosts with the same name apart; empty if there is none."""
    text = b""
    with suppress(OSError):
        text = _MACHINE_ID.read_bytes().strip()
    return hashlib.sha256(text).hexdigest()[:8] if text else ""
