"""Reading of damaged journals."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .database import files_of, record_id
from .intake import HEADER, Message, read_messages
from .records import Record

_MOST = 1 << 62
_Row = tuple[Any, ...]


@dataclass
class Remains:
    """The readable content of a damaged journal.

    Args:
        server: tracking URI of the server; None if unreadable.
        tables: rows of ``runs``, ``records`` and ``refused``.
        messages: messages that the database had not stored yet.
    """

    server: str | None = None
    tables: dict[str, Sequence[_Row]] = field(default_factory=dict)
    messages: list[Message] = field(default_factory=list)


def read_damaged(journal: Path) -> Remains:
    """Read all that can be read. Changes nothing."""
    remains = Remains()
    place = (0, 0)
    with closing(sqlite3.connect(journal)) as db:
        with suppress(sqlite3.Error):
            # Otherwise SQLite reads nothing of a file that was cut short.
            db.execute("PRAGMA writable_schema = ON")
        query = "SELECT server, generation, offset FROM journal"
        with suppress(sqlite3.Error, TypeError):
            remains.server, *place = db.execute(query).fetchone()
        runs = list(_rows(db, "runs", 0, _MOST))
        records = [
            row
            for number, *_ in runs
            for row in _rows(db, "records", record_id(number, 0), record_id(number + 1, 0))
            if _is_whole(row)
        ]
        refused = list(_rows(db, "refused", 0, _MOST))
    remains.tables = {"runs": runs, "records": records, "refused": refused}
    for message in messages_of(journal, place[0], place[1]):
        if message[1] == HEADER:
            remains.server = message[2]
        else:
            remains.messages.append(message)
    return remains


def messages_of(journal: Path, generation: int = 0, offset: int = 0) -> Iterator[Message]:
    """Yield the readable messages behind a place in a journal's intake."""
    files = [path for path in files_of(journal) if path.suffix == ".intake"]
    for number, path in sorted((int(path.suffixes[-2][1:]), path) for path in files):
        if number >= generation:
            yield from read_messages(path, offset if number == generation else 0)


def _rows(db: sqlite3.Connection, table: str, first: int, end: int) -> Iterator[_Row]:
    """Yield the readable rows from rowid ``first`` up to ``end``."""
    # One by one, because Python drops the row before one that cannot be read.
    query = f"SELECT rowid, * FROM {table} WHERE rowid >= ? AND rowid < ? ORDER BY rowid"  # noqa: S608
    leap = 0
    while first + leap < end:
        try:
            found = db.execute(f"{query} LIMIT 1", (first + leap, end)).fetchall()
        except sqlite3.Error:
            leap = leap * 2 or 1
            continue
        last = first + leap
        with suppress(sqlite3.Error):  # readable rows that the leap passed over
            while leapt := db.execute(f"{query} DESC LIMIT 1", (first, last)).fetchall():
                yield leapt[0][1:]
                last = leapt[0][0]
        if not found:
            return
        yield found[0][1:]
        first, leap = found[0][0] + 1, 0


def _is_whole(row: _Row) -> bool:
    try:
        Record(0, *row[1:]).content  # noqa: B018
    except Exception:  # noqa: BLE001 - whatever the bytes lead to
        return False
    return True
