"""The files that records are appended to, until the database of the journal has stored them.

Appending costs a training one system call. Inserting into a database would cost several times as
much, because the training fills the processor's caches between two inserts. A file contains
MessagePack objects, one after the other. When ``append`` returns, the kernel has the message, so it
survives the kill of the process.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgpack

_logger = logging.getLogger("mlflow_iap_callbacks")

_CHUNK_BYTES = 1_000_000
_LONG_FILE_BYTES = 4_000_000
# The limit in memory when the disk is full: several hours of four metrics a second.
_MOST_IN_MEMORY_BYTES = 16_000_000

HEADER = "journal"  # the kind of a file's first message, which names the server
_KINDS = frozenset(
    [
        *(HEADER, "start", "join", "metrics", "curve", "params", "suggestions", "tags", "aside"),
        *("artifact", "model", "input", "reopen", "finish", "abandon"),
    ]
)
Message = tuple[int, str, Any]


class Intake:
    """Messages in order, appended by any thread and taken by one.

    Args:
        stem: path of the files without its suffixes; None to use memory only.
        generation: number of the file to continue; each file has a higher one than the last.
        offset: bytes of that file that were taken before.
        server: tracking URI, which each file begins with as a message of the kind ``journal``.

    Raises:
        OSError: the file cannot be made or read.
    """

    def __init__(
        self, stem: Path | None, generation: int = 0, offset: int = 0, server: str = ""
    ) -> None:
        self.generation = generation
        self.offset = offset
        self.appended = 0
        self.lost = 0  # messages that had no room on disk nor in memory
        self._stem = stem
        self._server = server
        self._lock = threading.Lock()
        self._pack = msgpack.Packer(default=float).pack
        self._memory: deque[bytes] = deque()
        self._memory_bytes = 0
        self.is_open = True
        self._is_reported = False
        self._file: int | None = None
        self._size = 0
        if stem is not None:
            self._open()

    def append(self, number: int, kind: str, content: Any) -> bool:
        """Append a message, and return whether the intake is open.

        Raises:
            TypeError, ValueError, OverflowError: the content is not plain data. Objects that
                ``float`` accepts are allowed.
        """
        with self._lock:
            if not self.is_open:
                return False
            message = self._pack((number, kind, content))
            # Messages in memory must not be overtaken.
            if (not self._memory and self._write(message)) or self._keep_in_memory(message):
                self.appended += 1
            return True

    @property
    def in_memory(self) -> int:
        """Number of messages that wait in memory."""
        return len(self._memory)

    def take(self) -> list[Message]:
        """Return about a megabyte of messages on disk, the oldest that were not taken before.

        Afterwards, ``generation`` and ``offset`` point past these messages.
        """
        return list(self._from_file())

    def take_from_memory(self) -> list[Message]:
        """Return the messages in memory, which are newer than all on disk."""
        with self._lock:
            if self._file is not None and self.offset < self._size:
                return []  # messages that reached the file meanwhile are older
            found = list(self._memory)
            self._memory.clear()
            self._memory_bytes = 0
        return [msgpack.unpackb(message) for message in found]

    def go_to_next_file(self) -> bool:
        """Continue with the next file, if there is one. Return whether there is."""
        with self._lock:
            if self._file is None or not self._path(self.generation + 1).exists():
                return False
            os.close(self._file)
            self.generation, self.offset = self.generation + 1, 0
            self._open()
            return True

    def start_new_file(self) -> Path | None:
        """Start a new file if all of a long one was taken. Return the old one, to be deleted."""
        with self._lock:
            is_due = self.offset > _LONG_FILE_BYTES and self.offset == self._size
            if self._file is None or not is_due:
                return None
            old, old_file = self._path(self.generation), self._file
            self.generation += 1
            try:
                self._open()
            except OSError:
                self.generation -= 1
                return None
            os.close(old_file)
            self.offset = 0
            return old

    def cut_off(self) -> int:
        """Remove an incomplete message at the end of the file. Return its number of bytes."""
        with self._lock:
            if self._file is None or self.offset >= self._size:
                return 0
            cut = self._size - self.offset
            os.ftruncate(self._file, self.offset)
            self._size = self.offset
            return cut

    def close(self) -> None:
        """Accept no more messages."""
        with self._lock:
            self.is_open = False
            if self._file is not None:
                os.close(self._file)
                self._file = None

    def stop_for_fork(self) -> None:
        """Keep all threads from appending until ``go_on_after_fork``."""
        self._lock.acquire()

    def go_on_after_fork(self) -> None:
        """Undo ``stop_for_fork``."""
        self._lock.release()

    def _path(self, generation: int) -> Path:
        return Path(f"{self._stem}.{generation}.intake")

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
        self._file = os.open(self._path(self.generation), flags, 0o600)
        self._size = os.fstat(self._file).st_size
        if not self._size and self._server:
            self._write(self._pack((0, HEADER, self._server)))

    def _write(self, message: bytes) -> bool:
        if self._file is None:
            return False
        try:
            written = os.write(self._file, message)
            if written == len(message):
                self._size += written
                return True
            os.ftruncate(self._file, self._size)
            self._report("no space left")
        except OSError as error:
            self._report(error.strerror)
        return False

    def _keep_in_memory(self, message: bytes) -> bool:
        if self._memory_bytes + len(message) > _MOST_IN_MEMORY_BYTES:
            if not self.lost:
                _logger.warning(
                    "Neither disk nor memory has room for more records. New records are lost until "
                    "the waiting ones are delivered."
                )
            self.lost += 1
            return False
        self._memory.append(message)
        self._memory_bytes += len(message)
        return True

    def _from_file(self) -> Iterator[Message]:
        if self._file is None:
            return
        unpacker = msgpack.Unpacker(max_buffer_size=0)
        start = end = self.offset
        while self.offset == start and end < self._size:
            chunk = os.pread(self._file, min(_CHUNK_BYTES, self._size - end), end)
            if not chunk:
                return
            end += len(chunk)
            unpacker.feed(chunk)
            try:
                for message in unpacker:
                    yield _checked(message)
                    self.offset = start + unpacker.tell()
            except (TypeError, ValueError) as error:
                _logger.warning(
                    "%s is damaged at byte %d (%s): everything after that byte is lost.",
                    self._path(self.generation),
                    self.offset,
                    error,
                )
                self.offset = self._size

    def _report(self, why: str | None) -> None:
        if not self._is_reported:
            self._is_reported = True
            _logger.warning(
                "Records cannot be written to %s (%s); they are kept in memory for now, and "
                "training goes on. Free space there, or set MLFLOW_IAP_OUTBOX to another folder.",
                self._path(self.generation).parent,
                why,
            )


def read_messages(path: Path, offset: int) -> Iterator[Message]:
    """Yield the messages behind ``offset`` up to the first that is damaged. Changes nothing."""
    with path.open("rb") as file:
        file.seek(offset)
        with suppress(TypeError, ValueError):
            for message in msgpack.Unpacker(file):
                yield _checked(message)


def _checked(message: Any) -> Message:
    """Return the message if it is well-formed: random bytes may be valid MessagePack.

    Raises:
        TypeError, ValueError: it is not.
    """
    number, kind, content = message
    if type(number) is not int or kind not in _KINDS:
        raise ValueError("no message")
    return number, kind, content
