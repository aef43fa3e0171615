"""Each record in a journal's files is in its own frame, so damage to one does not affect others.

Several records of a run that were appended at once are in one frame.

A frame consists of a mark of three bytes, a letter for the kind of content, the length of the
payload, the place, a checksum (CRC-32 of all other bytes), and the payload. The place is the
sequence number of a message or the id of a row. So a stray copy of a frame is recognized as a copy.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple
from zlib import crc32

MARK = b"\xc1ml"  # MessagePack never uses the first byte
_LABEL = struct.Struct("<4sIQ")
_CHECKSUM = struct.Struct("<I")
_HEADER = struct.Struct("<4sIQI")
pack_label, pack_checksum = _LABEL.pack, _CHECKSUM.pack
HEADER_BYTES = _LABEL.size + _CHECKSUM.size
_CHUNK_BYTES = 1_000_000
# A search ends when it has read this many bytes of damaged frames.
_MOST_WASTED_BYTES = 1_000_000_000

Reader = Callable[[int, int], bytes]  # is called with an offset and a size


class Frame(NamedTuple):
    """An undamaged frame.

    Args:
        offset: where it begins in its file.
        letter: the kind of its content.
        place: sequence number of the message, or id of the row.
        payload: its content.
    """

    offset: int
    letter: bytes
    place: int
    payload: bytes

    @property
    def size(self) -> int:
        """Number of bytes of the frame."""
        return HEADER_BYTES + len(self.payload)

    @property
    def end(self) -> int:
        """Where the frame ends in its file, if it is in one piece."""
        return self.offset + self.size


def pack(letter: bytes, place: int, payload: bytes) -> bytes:
    """Return a frame."""
    label = pack_label(MARK + letter, len(payload), place)
    return label + pack_checksum(crc32(payload, crc32(label))) + payload


def unpack(frame: object, letter: bytes, place: object) -> bytes | None:
    """Return the payload of a frame; None if it is damaged or has another letter or place."""
    # In a damaged database, both may be values of any type.
    if not isinstance(frame, bytes) or len(frame) < HEADER_BYTES or type(place) is not int:
        return None
    label, payload = frame[: _LABEL.size], frame[HEADER_BYTES:]
    try:
        expected = pack_label(MARK + letter, len(payload), place)
    except struct.error:  # a negative place
        return None
    (checksum,) = _CHECKSUM.unpack_from(frame, _LABEL.size)
    return payload if label == expected and checksum == crc32(payload, crc32(label)) else None


def find(read: Reader, start: int, end: int, read_frame: Reader | None = None) -> Iterator[Frame]:
    """Yield the undamaged frames between two offsets of a file, and skip all other bytes.

    Args:
        read: reads the file.
        start: offset to begin at.
        end: offset to stop at.
        read_frame: reads a frame that may be in several pieces. Default: each is in one piece.
    """
    if read_frame is None:
        while chunk := read(start, min(_CHUNK_BYTES, end - start)):
            length = yield from _undamaged(chunk, start)
            if not length:
                break
            start += length
    next_frame, wasted = start, 0
    for offset, chunk, found in _marks(read, start, end):
        if wasted > _MOST_WASTED_BYTES:
            return
        if offset < next_frame:
            continue
        mark, length, place = _LABEL.unpack_from(chunk, found)
        size = HEADER_BYTES + length
        if read_frame is None and offset + size > end:
            continue
        if read_frame is None and found + size <= len(chunk):
            frame = chunk[found : found + size]
        elif size <= end:
            frame = (read_frame or read)(offset, size)
        else:
            continue
        payload = unpack(frame, mark[-1:], place) if len(frame) == size else None
        if payload is None:
            wasted += size
            continue
        yield Frame(offset, mark[-1:], place, payload)
        # The next frame may begin between the pieces of this one.
        next_frame = offset + (size if read_frame is None else HEADER_BYTES)


def _undamaged(chunk: bytes, offset: int) -> Generator[Frame, None, int]:
    """Yield the frames of a chunk, up to the first byte that is not in a frame.

    Args:
        chunk: a part of a file.
        offset: where it begins in the file.

    Returns:
        The number of bytes of these frames.
    """
    at = 0
    while at + HEADER_BYTES <= len(chunk):
        mark, length, place, checksum = _HEADER.unpack_from(chunk, at)
        end = at + HEADER_BYTES + length
        if mark[:-1] != MARK or end > len(chunk):
            break
        payload = chunk[at + HEADER_BYTES : end]
        if checksum != crc32(payload, crc32(chunk[at : at + _LABEL.size])):
            break
        yield Frame(offset + at, mark[-1:], place, payload)
        at = end
    return at


def _marks(read: Reader, start: int, end: int) -> Iterator[tuple[int, bytes, int]]:
    """Yield the offset of each mark, a chunk of the file, and the mark's offset in the chunk."""
    while start < end:
        chunk = read(start, min(_CHUNK_BYTES, end - start))
        found = chunk.find(MARK)
        while 0 <= found <= len(chunk) - HEADER_BYTES:
            yield start + found, chunk, found
            found = chunk.find(MARK, found + 1)
        if len(chunk) < HEADER_BYTES:
            return
        start += len(chunk) - HEADER_BYTES + 1
