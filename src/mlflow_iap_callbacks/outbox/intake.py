"""The files to which records are appended before they are stored in the journal's database.

Appending takes one system call. Inserting into a database would take several times as long, because
training fills the processor's caches between two inserts. A file contains messages as MessagePack,
each in a frame, or several of a run in one. When ``append`` returns, the kernel has the message, so
the message is not lost if the process is killed.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import msgpack

from . import frames
from .frames import MARK, pack_checksum, pack_label
from .records import BYTES_OF_DOUBLE, POINTS, ROW, length, packed, unpacked

_logger = logging.getLogger("mlflow_iap_callbacks")

# `os.write` releases Python's global lock. If other threads are busy, this one may get it back only
# after `sys.getswitchinterval()`, 5 ms, although the kernel just copies a few hundred bytes. If the
# kernel makes this wait, as on a network file system that hangs, all threads wait.
_write_with_lock: Callable[[int, bytes, int], int] = (
    (lambda file, data, _: os.write(file, data)) if os.name == "nt" else ctypes.PyDLL(None).write
)

_CHUNK_BYTES = 1_000_000
# Messages in the file that are kept in memory too, because reading them takes longer than sending.
_MOST_FRESH_BYTES = 4_000_000
# When a long file is replaced, its undelivered messages are moved to the database.
_LONG_FILE_BYTES = 16_000_000
# The limit in memory when the disk is full, enough for several hours of four metrics a second.
_MOST_IN_MEMORY_BYTES = 16_000_000

# The letters of frames. A file begins with a frame that contains the server's URI. A group is
# several messages; its place is the sequence number of the last one.
_MESSAGE, _GROUP, _SERVER = b"i", b"g", b"h"
_OF_GROUP = ""  # in place of the kind of a message
_LETTERS = (_MESSAGE, _GROUP)
_MESSAGE_MARK = MARK + _MESSAGE
BEGINNINGS = ("start", "join")  # kinds of the first message of each run


class Message(NamedTuple):
    """An appended message.

    Args:
        seq: its sequence number in the journal, from 1.
        number: number of the run.
        kind: kind of the record, or ``row`` or ``join``.
        length: number of its points, params or tags.
        payload: number, kind and content as MessagePack.
    """

    seq: int
    number: int
    kind: str
    length: int
    payload: bytes

    @classmethod
    def from_payload(cls, seq: int, payload: bytes) -> Message:
        """Return the message with this number and payload."""
        number, kind, content = unpacked(payload)
        return cls(seq, number, kind, length(kind, content), payload)

    @property
    def content(self) -> Any:
        """Content of the record."""
        return unpacked(self.payload)[2]


class Intake:
    """A queue of messages; any thread may append, and one thread takes them.

    Use ``read_messages`` to read what existing files already contain.

    Args:
        stem: path of the files without its suffixes; None to use memory only.
        last_seq: sequence number of the last message in existing files.
        server: tracking URI; each file begins with it.

    Raises:
        OSError: the file cannot be created or read.
    """

    def __init__(self, stem: Path | None, last_seq: int = 0, server: str = "") -> None:
        self.last_seq = last_seq  # sequence number of the last message
        self.lost = 0  # number of messages for which neither disk nor memory had room
        self._taken = last_seq
        self._read = 0  # bytes read from the file
        # The fields of the messages that follow these bytes in the file; None if they would take
        # too much memory. With their content, the garbage collector would take longer.
        self._fresh: list[tuple[int, int, str, int, bytes]] | None = []
        self._fresh_bytes = 0
        self._stem = stem
        self._server = server
        self._lock = threading.Lock()
        self._pack = msgpack.Packer(default=float).pack
        self._pack_plain = msgpack.Packer().pack
        self._memory: deque[bytes] = deque()
        self._memory_bytes = 0
        self.is_open = True
        self._is_reported = False
        self._file: int | None = None
        # Each file has a higher number than the earlier ones.
        self._generation = max([0, *files_by_generation(stem)]) if stem else 0
        if stem is not None:
            self._open()
            self._read = self._size()

    def append(self, number: int, kind: str, content: Any) -> bool:
        """Append a message, and return whether the intake is open.

        Raises:
            TypeError, ValueError, OverflowError: the content has a value that is neither plain data
                nor accepted by ``float``.
        """
        with self._lock:
            payload = self._pack((number, kind, content))
            seq = self.last_seq + 1
            file = self._file
            # While older messages are in memory, newer ones must not be written to the file.
            if file is not None and not self._memory:
                # Training fills the processor's caches. Then each call of a function and each look
                # at an object takes up to a microsecond, so `frames.pack` and `_write` are repeated
                # here, and `length` below.
                label = pack_label(_MESSAGE_MARK, len(payload), seq)
                frame = label + pack_checksum(crc32(payload, crc32(label))) + payload
                if type(content) is dict and kind in BEGINNINGS:
                    # Without its first message, the run's other messages would be useless.
                    frame *= 2
                try:
                    size = len(frame)
                    written = _write_with_lock(file, frame, size)
                    if written < 0:
                        written = os.write(file, frame)  # raises the error
                    if written == size:
                        self.last_seq = seq
                        if self._fresh is not None:
                            if kind == ROW:
                                count = len(content[3]) // BYTES_OF_DOUBLE
                            else:
                                count = len(content[2] if kind in POINTS else content)
                            self._fresh.append((seq, number, kind, count, payload))
                            self._fresh_bytes += len(payload)
                            if self._fresh_bytes > _MOST_FRESH_BYTES:
                                self._fresh = None
                        return True
                    self._remove_incomplete(written)
                except OSError as error:
                    self._report(error.strerror)
            if not self.is_open:
                return False
            if self._keep_in_memory(payload):
                self.last_seq = seq
            return True

    def append_all(self, number: int, records: Sequence[tuple[str, Any]]) -> bool:
        """Append several messages of a run in one frame; return whether the intake is open.

        Either all of them are appended or none.

        Args:
            number: number of the run.
            records: kind and content of each message.

        Raises:
            TypeError, ValueError, OverflowError: the content has a value that is not plain data, a
                text that UTF-8 cannot encode, or an integer of more than 64 bits.
        """
        with self._lock:
            if not self.is_open:
                return False
            payload = self._pack_plain((number, records))
            seq = self.last_seq + len(records)
            if self._memory or not self._write(frames.pack(_GROUP, seq, payload)):
                kept = [self._keep_in_memory(each.payload) for each in _group(seq, payload)]
                self.last_seq += sum(kept)
                return True
            self.last_seq = seq
            if self._fresh is not None:
                self._fresh.append((seq, number, _OF_GROUP, 0, payload))
                self._fresh_bytes += len(payload)
                if self._fresh_bytes > _MOST_FRESH_BYTES:
                    self._fresh = None
            return True

    def skip_to(self, seq: int) -> None:
        """Give new messages higher sequence numbers than this one."""
        with self._lock:
            self.last_seq = self._taken = max(self.last_seq, seq)

    @property
    def in_memory(self) -> int:
        """Number of messages in memory that were not taken yet."""
        return len(self._memory)

    def take(self) -> list[Message]:
        """Return the oldest messages on disk that were not taken yet, a few megabytes of them."""
        with self._lock:
            fresh = self._fresh
            if fresh is not None:
                self._fresh, self._fresh_bytes = [], 0
                self._read = self._size()
        if fresh is None:
            return list(self._from_file())
        found: list[Message] = []
        for fields in fresh:
            if fields[0] > self._taken:
                is_group = fields[2] == _OF_GROUP
                found += _group(fields[0], fields[-1]) if is_group else (Message(*fields),)
        self._taken = found[-1].seq if found else self._taken
        return found

    def take_from_memory(self) -> list[Message]:
        """Return the messages in memory, which are newer than all messages on disk."""
        with self._lock:
            if self._file is not None and self._read < self._size():
                return []  # the file has older messages, which must be taken first
            found = list(self._memory)
            first = self.last_seq - len(found) + 1
            self._memory.clear()
            self._memory_bytes = 0
        return [Message.from_payload(seq, payload) for seq, payload in enumerate(found, first)]

    def start_new_file(self) -> Path | None:
        """Start a new file if the current one is long and all of its messages were taken.

        Returns:
            The old file, which can be deleted; None if no file was started.
        """
        with self._lock:
            if self._file is None or not _LONG_FILE_BYTES < self._read == self._size():
                return None
            old, old_file = self._path(self._generation), self._file
            self._generation += 1
            try:
                self._open()
            except OSError:
                self._generation -= 1
                return None
            os.close(old_file)
            self._read = 0
            return old

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
        self._file = os.open(self._path(self._generation), flags, 0o600)
        if not self._size() and self._server:
            self._write(frames.pack(_SERVER, 0, self._server.encode()))

    def _write(self, data: bytes) -> bool:
        """Write frames to the file; return whether there was room for them."""
        if self._file is None:
            return False
        try:
            written = _write_with_lock(self._file, data, len(data))
            if written < 0:
                written = os.write(self._file, data)  # raises the error
            if written == len(data):
                return True
            self._remove_incomplete(written)
        except OSError as error:
            self._report(error.strerror)
        return False

    def _size(self) -> int:
        """Return the number of bytes in the file. Call this while no thread can append."""
        return 0 if self._file is None else os.fstat(self._file).st_size

    def _remove_incomplete(self, written: int) -> None:
        """Remove the written part of a frame, and report that there was no room."""
        assert self._file is not None  # noqa: S101
        with suppress(OSError):
            os.ftruncate(self._file, self._size() - written)
        self._report("no space left")

    def _keep_in_memory(self, payload: bytes) -> bool:
        if self._memory_bytes + len(payload) > _MOST_IN_MEMORY_BYTES:
            if not self.lost:
                _logger.warning(
                    "Neither disk nor memory has room for more records. New records are lost until "
                    "the waiting ones are delivered."
                )
            self.lost += 1
            return False
        self._memory.append(payload)
        self._memory_bytes += len(payload)
        return True

    def _from_file(self) -> Iterator[Message]:
        with self._lock:
            start, size = self._read, self._size()
        if self._file is None:
            return
        for offset, letter, seq, payload in _frames(self._file, start, size):
            self._pass_over(offset)
            self._read = end = offset + frames.HEADER_BYTES + len(payload)
            if letter in _LETTERS and seq > self._taken:
                self._taken = seq
                yield from _messages(letter, seq, payload)
            if end - start >= _CHUNK_BYTES:
                return
        self._pass_over(size)
        with self._lock:
            if self._read == self._size():
                self._fresh, self._fresh_bytes = [], 0

    def _pass_over(self, offset: int) -> None:
        """Report the bytes up to an offset as damaged, if there are any."""
        if offset > self._read:
            _logger.warning(
                "%s is damaged: %d bytes from byte %d on cannot be read, and their content is "
                "lost. Everything else in it is intact.",
                self._path(self._generation),
                offset - self._read,
                self._read,
            )
            self._read = offset

    def _report(self, why: str | None) -> None:
        if not self._is_reported:
            self._is_reported = True
            _logger.warning(
                "Records cannot be written to %s (%s); they are kept in memory for now, and "
                "training goes on. Free some space, or set MLFLOW_IAP_OUTBOX to another folder.",
                self._path(self._generation).parent,
                why,
            )


def files_by_generation(stem: Path) -> dict[int, Path]:
    """Return the files of an intake by their numbers, the oldest first."""
    files = {path.suffixes[-2][1:]: path for path in stem.parent.glob(f"{stem.name}.*.intake")}
    return {int(number): files[number] for number in sorted(filter(str.isdigit, files), key=int)}


def read_messages(path: Path, after: int) -> Iterator[Message]:
    """Yield, in order, a file's undamaged messages after a sequence number. Change nothing."""
    with path.open("rb") as file:
        found: dict[int, tuple[bytes, int, int]] = {}
        # Damage can duplicate messages or change their order.
        for frame in _frames(file.fileno(), 0, path.stat().st_size):
            if frame.letter in _LETTERS and frame.place > after:
                found[frame.place] = (frame.letter, frame.offset, frame.size)
        for seq in sorted(found):
            letter, offset, size = found[seq]
            payload = frames.unpack(os.pread(file.fileno(), size, offset), letter, seq)
            if payload is not None:
                messages = _messages(letter, seq, payload)
                yield from (message for message in messages if message.seq > after)


def unreadable_bytes(path: Path) -> int:
    """Return how many bytes of a file are damaged."""
    with path.open("rb") as file:
        size = path.stat().st_size
        return size - sum(frame.size for frame in _frames(file.fileno(), 0, size))


def read_server(path: Path) -> str | None:
    """Return the server that a file begins with; None if it is unreadable. Change nothing."""
    with path.open("rb") as file:
        for frame in _frames(file.fileno(), 0, path.stat().st_size):
            if frame.letter == _SERVER:
                return frame.payload.decode()
    return None


def _messages(letter: bytes, seq: int, payload: bytes) -> Sequence[Message]:
    """Return the messages in a frame."""
    if letter == _GROUP:
        return _group(seq, payload)
    return [Message.from_payload(seq, payload)]


def _group(last_seq: int, payload: bytes) -> Sequence[Message]:
    """Return the messages of a group, of which the last one has this sequence number."""
    number, records = unpacked(payload)
    return [
        Message(seq, number, kind, length(kind, content), packed((number, kind, content)))
        for seq, (kind, content) in enumerate(records, last_seq - len(records) + 1)
    ]


def _frames(file: int, start: int, end: int) -> Iterator[frames.Frame]:
    return frames.find(lambda at, size: os.pread(file, size, at), start, end)
