"""The table's rows, each answered by one probe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .peer import Peer


@dataclass
class Answers:
    """A probe's cells by row, and what was seen that a cell has no room for."""

    cells: dict[str, str]
    seen: dict[str, str]

    def put(self, row: str, cell: str, seen: object = "") -> None:
        self.cells[row] = cell
        if seen:
            self.seen[row] = str(seen)


@dataclass(frozen=True)
class Probe:
    """One or a few trainings, and the rows that they answer.

    Attributes:
        rows: labels by their key.
        timeout: seconds after which the cells say that it did not end.
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
    """Register a function that answers these rows."""

    def register(ask: Callable[[Peer, Answers], None]) -> Callable[[Peer, Answers], None]:
        PROBES[ask.__name__] = Probe(ask.__name__, section, rows, ask, timeout)
        return ask

    return register
