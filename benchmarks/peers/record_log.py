"""Records of a file in LevelDB's log format, in which two trackers keep a run."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

_BLOCK, _HEADER = 32768, 7
_LAST_TYPES = (1, 4)  # a whole record, or its last part


def records(path: Path) -> Iterator[bytes]:
    """Yield each record; the file may be truncated."""
    content = path.read_bytes()
    position = _HEADER  # the file has one of its own
    record = b""
    while position + _HEADER <= len(content):
        left = _BLOCK - position % _BLOCK
        if left < _HEADER:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        position += _HEADER
        record += content[position : position + length]
        position += length
        if kind in _LAST_TYPES:
            yield record
            record = b""
