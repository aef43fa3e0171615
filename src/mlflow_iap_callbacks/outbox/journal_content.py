"""Reads a journal: with SQLite or, if it is damaged, by looking for undamaged frames."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO

from . import frames
from .database import (
    LETTERS,
    PAGE_BYTES,
    SEQ,
    Damaged,
    Head,
    connect_to_read,
    record_id,
    run_number,
)
from .intake import BEGINNINGS, Message, files_by_generation, read_messages, read_server
from .records import RunState, begun_by, unpacked

_ROWS_AT_ONCE = 1000

Row = tuple[int, bytes]  # an id, and the payload of its frame
Batch = tuple[str, list[Row]]  # the name of a table, and some of its rows
_TABLES = ("runs", "starts", "records", "refused")


@dataclass
class Content:
    """The readable content of a journal; rows and messages are read during iteration.

    Args:
        head: the journal's description of itself; None if it is unreadable.
        server: tracking URI of the server; None if it is unreadable.
        rows: batches of rows of an outbox's tables, each with the name of its table.
        messages: messages of the intake that are neither in the database nor settled.
        last_seq: sequence number of the last stored or settled record; 0 for version 0.1.0.
    """

    head: Head | None
    server: str | None
    rows: Iterable[Batch]
    messages: Iterable[Message]
    last_seq: int = 0


def version_of(journal: Path) -> int | None:
    """Return the format of a journal's database; None if it has no tables."""
    if not journal.exists():
        return None
    with closing(connect_to_read(journal)) as db:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        tables = db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()
    return int(version) if tables else None


def is_empty(journal: Path, content: Content) -> bool:
    """Return whether a journal without tables is empty: its process only began to create it."""
    has_messages = next(messages_of(journal), None) is not None
    return content.server is None and content.last_seq == 0 and not has_messages


def read_whole(journal: Path) -> Content:
    """Read a journal, even that of a live process. Change nothing.

    Raises:
        Damaged: it is damaged; may also be raised during iteration over the rows.
        sqlite3.Error: it cannot be read.
    """
    db = connect_to_read(journal)
    try:
        db.execute("BEGIN")  # all reads see one snapshot
        if db.execute("PRAGMA quick_check(1)").fetchall() != [(b"ok",)]:
            raise Damaged
        heads = db.execute("SELECT frame FROM journal").fetchall()
        if len(heads) != 1:
            raise Damaged
        head = Head.from_row(_checked(heads[0][0], "journal", 1))
        runs = {
            number: RunState(*unpacked(_checked(frame, "runs", number)))
            for number, frame in db.execute("SELECT id, frame FROM runs")
        }
    except BaseException:
        db.close()
        raise
    messages = (
        message
        for message in messages_of(journal, head.seq)
        if not _is_settled(record_id(message.number, message.seq), runs)
    )
    last_seq = max([head.seq, *(run.settled for run in runs.values())])
    return Content(head, head.server, _rows_by_sqlite(db), messages, last_seq)


def read_damaged(journal: Path) -> Content:
    """Read all undamaged frames in a journal's files, without SQLite. Change nothing."""
    head: Head | None = None
    runs: dict[int, RunState] = {}
    begun: dict[int, bytes] = {}
    last_seq = 0
    for frame in _stored_frames(journal):
        if frame.letter == LETTERS["journal"]:
            found = Head.from_row(frame.payload)
            if head is None or found.seq >= head.seq:
                head = found
        elif frame.letter == LETTERS["runs"]:
            state = RunState(*unpacked(frame.payload))
            known = runs.setdefault(frame.place, state)
            if known.saves < state.saves:  # older states may still be in the files
                runs[frame.place] = state
        elif frame.letter == LETTERS["starts"]:
            begun[frame.place] = frame.payload
        elif frame.letter == LETTERS["records"]:
            last_seq = max(last_seq, frame.place & SEQ)
    for message in messages_of(journal):
        if message.kind in BEGINNINGS:
            begun.setdefault(message.number, message.payload)
    for number, payload in begun.items():
        _, kind, content = unpacked(payload)
        runs.setdefault(number, begun_by(kind, content))
    last_seq = max([last_seq, head.seq if head else 0, *(run.settled for run in runs.values())])
    return Content(
        head,
        head.server if head else _server_by_intake(journal),
        _rows_by_frames(journal, runs, begun, last_seq),
        messages_of(journal, last_seq),
        last_seq,
    )


def messages_of(journal: Path, after: int = 0) -> Iterator[Message]:
    """Yield the undamaged messages of a journal's intake after a sequence number."""
    for path in files_by_generation(journal.with_suffix("")).values():
        with suppress(OSError):
            for message in read_messages(path, after):
                after = message.seq
                yield message


def _server_by_intake(journal: Path) -> str | None:
    for path in files_by_generation(journal.with_suffix("")).values():
        with suppress(OSError):
            server = read_server(path)
            if server is not None:
                return server
    return None


def batches(table: str, rows: Iterable[Row]) -> Iterator[Batch]:
    """Yield the rows of a table in lists. Each row is an id and the payload of its frame."""
    rest = iter(rows)
    while batch := [*islice(rest, _ROWS_AT_ONCE)]:
        yield table, batch


def _rows_by_sqlite(db: sqlite3.Connection) -> Iterator[Batch]:
    try:
        for table in _TABLES:
            rows = db.execute(f"SELECT id, frame FROM {table}")  # noqa: S608 - our tables
            checked = ((place, _checked(frame, table, place)) for place, frame in rows)
            yield from batches(table, checked)
    finally:
        db.close()


def _checked(frame: object, table: str, place: int) -> bytes:
    payload = frames.unpack(frame, LETTERS[table], place)
    if payload is None:
        raise Damaged
    return payload


def _rows_by_frames(
    journal: Path, runs: Mapping[int, RunState], begun: Mapping[int, bytes], last_seq: int
) -> Iterator[Batch]:
    yield from batches("runs", ((number, run.packed_state()) for number, run in runs.items()))
    yield from batches("starts", begun.items())
    # Records that the database has lost may still be in the intake.
    taken = (
        (record_id(message.number, message.seq), message.payload)
        for message in messages_of(journal)
        if message.kind != "join" and message.seq <= last_seq
    )
    found = chain(_stored_rows(journal, "records"), taken)
    yield from batches("records", _once(row for row in found if not _is_settled(row[0], runs)))
    yield from batches("refused", _once(_stored_rows(journal, "refused")))


def _stored_rows(journal: Path, table: str) -> Iterator[Row]:
    for frame in _stored_frames(journal):
        if frame.letter == LETTERS[table]:
            yield frame.place, frame.payload


def _once(rows: Iterable[Row]) -> Iterator[Row]:
    """Skip the copies that SQLite leaves behind when it moves a row."""
    seen: set[int] = set()
    for place, payload in rows:
        if place not in seen:
            seen.add(place)
            yield place, payload


def _is_settled(place: int, runs: Mapping[int, RunState]) -> bool:
    """Return whether a record was deleted, although its bytes are still in the file."""
    run = runs.get(run_number(place))
    return run is not None and place & SEQ <= run.settled


def _stored_frames(journal: Path) -> Iterator[frames.Frame]:
    """Yield the undamaged frames in the files of a database."""
    for path in (journal, Path(f"{journal}-wal")):
        with suppress(OSError), path.open("rb") as file:

            def read(offset: int, size: int, file: BinaryIO = file) -> bytes:
                return os.pread(file.fileno(), size, offset)

            pieces = partial(_in_pieces, read) if path == journal else None
            yield from frames.find(read, 0, path.stat().st_size, pieces)


def _in_pieces(read: frames.Reader, offset: int, size: int) -> bytes:
    """Read a frame that begins in a row of a table and may continue in overflow pages.

    A row contains only an id and a frame. The sizes are explained at
    https://www.sqlite.org/fileformat2.html#b_tree_pages.
    """
    serial_type, header = 2 * size + 12, 3
    while serial_type >= 128:
        serial_type, header = serial_type >> 7, header + 1
    whole = header + size
    here = whole
    if whole > PAGE_BYTES - 35:
        least = (PAGE_BYTES - 12) * 32 // 255 - 23
        here = least + (whole - least) % (PAGE_BYTES - 4)
        here = here if here <= PAGE_BYTES - 35 else least
    if here == whole:
        return read(offset, size)
    piece = read(offset, here - header + 4)
    found, next_page = [piece[:-4]], piece[-4:]
    left = size - (here - header)
    while left > 0 and len(next_page) == 4:
        page = read(max(0, int.from_bytes(next_page, "big") - 1) * PAGE_BYTES, PAGE_BYTES)
        next_page, piece = page[:4], page[4 : 4 + left]
        found.append(piece)
        left -= len(piece) or left
    return b"".join(found)
