"""The table's rows, and the probes that fill them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .peer import Peer


@dataclass
class Answers:
    """A probe's cells by row, and observations that are too long for a cell."""

    cells: dict[str, str]
    seen: dict[str, str]

    def put(self, row: str, cell: str, seen: object = "") -> None:
        self.cells[row] = cell
        if seen:
            self.seen[row] = str(seen)


@dataclass(frozen=True)
class Probe:
    """One or more training runs, and the rows that they fill.

    Attributes:
        rows: labels by their keys.
        timeout: seconds after which the cells show that it did not end.
    """

    name: str
    section: str
    rows: dict[str, str]
    ask: Callable[[Peer, Answers], None]
    timeout: float


PROBES: dict[str, Probe] = {}


def probe(
    section: str, timeout: float = 120.0, **rows: str
) -> Callable[[Callable[[Peer, Answers], None]], Callable[[Peer, Answers], None]]:
    """Register a function that fills these rows."""

    def register(ask: Callable[[Peer, Answers], None]) -> Callable[[Peer, Answers], None]:
        PROBES[ask.__name__] = Probe(ask.__name__, section, rows, ask, timeout)
        return ask

    return register
