"""Reads journals of version 0.1.0: tables with a column for each value, and no checksums."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import msgpack

from .database import Head, connect_to_read, record_id, run_number
from .intake import Message, files_by_generation
from .journal_content import Batch, Content, batches
from .records import RunState, packed

FORMAT = 1
_HEADER = "journal"  # kind of the first message of an intake file, which names the server
# A damaged length must not use up the memory.
_LIMITS: dict[str, Any] = {"max_array_len": 1_000_000, "max_map_len": 1_000_000}


def read(journal: Path) -> Content | None:
    """Read a journal up to the first damage; return None if it has another format."""
    query = "SELECT server, host, pid, begun, generation, offset FROM journal"
    heads = [*_select(journal, query)]
    place = heads[0][-2:] if heads else (0, 0)
    servers = [server for server, *_ in heads]
    servers += [content for _, kind, content in _messages(journal, 0, 0) if kind == _HEADER]
    if not servers:
        return None
    head = None
    if heads:
        server, host, pid, begun, *_ = heads[0]
        head = Head(server, host, pid, begun, journal.stem, format=FORMAT)
    messages = (
        Message.from_payload(seq, packed(message))
        for seq, message in enumerate(_messages(journal, *place))
        if message[1] != _HEADER
    )
    return Content(head, servers[0], _rows(journal), messages)


def is_whole(journal: Path) -> bool:
    """Return whether SQLite finds no damage."""
    return [*_select(journal, "PRAGMA quick_check(1)")] == [("ok",)]


def _rows(journal: Path) -> Iterator[Batch]:
    runs = _select(journal, "SELECT * FROM runs")
    yield from batches("runs", ((number, _state(*row)) for number, *row in runs))
    starts = _select(journal, "SELECT id, kind, body FROM records WHERE kind = 'start'")
    yield from batches("starts", ((run_number(place), body) for place, body in _packed(starts)))
    records = _select(journal, "SELECT id, kind, body FROM records")
    yield from batches("records", _packed(records))
    refused = _select(journal, "SELECT run, rowid, kind, body, reason FROM refused")
    yield from batches("refused", _packed_refusals(refused))


def _state(key: str, experiment: str, is_owned: int, is_ended: int, *known: Any) -> bytes:
    return RunState(key, experiment, bool(is_owned), bool(is_ended), *known).packed_state()


def _packed(rows: Iterator[tuple[int, str, bytes]]) -> Iterator[tuple[int, bytes]]:
    for place, kind, body in rows:
        with suppress(ValueError):
            yield place, packed((run_number(place), kind, msgpack.unpackb(body, **_LIMITS)))


def _packed_refusals(rows: Iterator[tuple[Any, ...]]) -> Iterator[tuple[int, bytes]]:
    for run, number, kind, body, reason in rows:
        with suppress(ValueError):
            refusal = (kind, msgpack.unpackb(body, **_LIMITS), reason)
            yield record_id(run, number), packed(refusal)


def _select(journal: Path, query: str) -> Iterator[tuple[Any, ...]]:
    with suppress(sqlite3.Error), closing(connect_to_read(journal)) as db:
        db.text_factory = str
        yield from db.execute(query)


def _messages(journal: Path, generation: int, offset: int) -> Iterator[tuple[int, str, Any]]:
    for number, path in files_by_generation(journal.with_suffix("")).items():
        if number >= generation:
            with suppress(OSError, TypeError, ValueError), path.open("rb") as file:
                file.seek(offset if number == generation else 0)
                yield from msgpack.Unpacker(file, **_LIMITS)
