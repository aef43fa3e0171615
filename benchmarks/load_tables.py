"""Formats the results of servers under load as tables and as Markdown."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from functools import cached_property
from importlib.metadata import version
from statistics import median
from typing import TypeVar

from load_servers import Cell
from tables import Table, short

_Key = TypeVar("_Key")

_FIGURES = ("requests/s", "p50 ms", "p99 ms", "CPU ms", "MiB", "errors")
_NOTE = """\
The server, the database and the clients share the machine, so an instance with two processors \
of its own and a separate database handles more. Compare the rows with each other. All rows of a \
table were measured in one run, in alternating order. The database is MariaDB over a socket, \
with the binary log on and each commit on disk, as on Cloud SQL. A client keeps its connection \
and sends `runs/log-batch` with 10 points to its own run. All clients are in one process on \
plain sockets, which takes processor time from the server. *Chosen* is `python -m \
mlflow_iap_callbacks.server serve`, with a valid assertion on each request and no proxy in \
front; *MLflow's store* is the same with MLflow's own store of metrics. *MLflow's defaults* is \
`mlflow server` after `pip install mlflow pymysql`: 4 workers, asyncio's loop and h11, access log, \
job execution, no gate. *CPU ms* is the processor time of all of a server's processes per request, \
*MiB* their memory afterwards (shared memory is counted once), *errors* the number of responses \
other than 200. At the end, the database had exactly the points that were acknowledged."""
_TRAINERS = """\
A trainer is a sweep of LightGBM training runs that take 10 s. Every {period:.0f} s, the \
shortest interval at which the sender combines records, it sends a batch of {points} points (4 \
curves, 10 rounds a second); every second time, it also ends the run and begins the next one. \
Its p50 and p99 are measured from the moment when this was due until all of it had a response. A \
server handles a number of trainers if this takes at most {latest:.0f} s in 99 of 100 cases. \
Longer training runs send less often: once a minute after ten minutes."""
# Seconds within which a server must respond to a trainer.
_LATEST = 1.0


class Summary:
    """All loads of a server by the same number of clients, summed up."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self.cells = cells
        self._outcomes = [cell.outcome for cell in cells]

    @property
    def rate(self) -> float:
        """Requests per second."""
        seconds = sum(cell.load.seconds for cell in self.cells)
        return sum(outcome.requests for outcome in self._outcomes) / seconds

    @cached_property
    def _latencies(self) -> list[float]:
        return sorted(second for outcome in self._outcomes for second in outcome.latencies)

    def quantile_ms(self, share: float) -> float:
        return self._latencies[round(share * (len(self._latencies) - 1))] * 1000

    @property
    def cpu_ms(self) -> float:
        """The server's processor time per request, in milliseconds."""
        answered = sum(outcome.answered for outcome in self._outcomes)
        return sum(cell.cpu for cell in self.cells) / answered * 1000

    @property
    def memory_mib(self) -> float:
        return max(cell.memory_mib for cell in self.cells)

    @property
    def errors(self) -> str:
        """Number of responses other than 200."""
        errors = sum((Counter(outcome.errors) for outcome in self._outcomes), Counter[str]())
        return ", ".join(f"{count} {name}" for name, count in errors.items()) or "0"


def is_carried(cell: Cell) -> bool:
    """Whether a server keeps up with a number of trainers."""
    return not cell.outcome.errors and Summary([cell]).quantile_ms(0.99) <= _LATEST * 1000


def clients_table(cells: Iterable[Cell]) -> Table:
    rows = [
        [str(clients), server, *_figures(summary)]
        for (clients, server), summary in _by_clients(cells).items()
    ]
    title = "Concurrent clients, each sending the next request after each response"
    return Table(title, ["clients", "server", *_FIGURES], rows)


def settings_table(cells: Iterable[Cell], clients: int) -> Table:
    """Return a table with a row for each changed setting, below the chosen settings."""
    rows = []
    groups = _grouped(cells, lambda cell: cell.server)
    chosen, *_ = groups.values()
    for name, group in groups.items():
        pairs = zip(group, chosen, strict=True)
        ratio = median(cell.outcome.requests / beside.outcome.requests for cell, beside in pairs)
        rows.append([name, f"{ratio:.2f}", *_figures(Summary(group))])
    title = f"The chosen settings, each with one change, {clients} clients"
    return Table(title, ["server", "times the chosen", *_FIGURES], rows, names=1)


def trainers_table(cells: Iterable[Cell]) -> Table:
    rows = [
        [str(trainers), server, *_figures(summary)]
        for (trainers, server), summary in _by_clients(cells).items()
    ]
    return Table("Concurrent trainers", ["trainers", "server", *_FIGURES], rows)


def carried(cells: Sequence[Cell]) -> dict[str, int]:
    """Return the largest number of trainers, of those tried, that each server keeps up with."""
    most = dict.fromkeys((cell.server for cell in cells), 0)
    for cell in cells:
        if is_carried(cell):
            most[cell.server] = cell.load.clients
    return most


def markdown(tables: Sequence[Table], trainers: Sequence[Cell]) -> str:
    packages = ("mlflow", "uvicorn", "uvloop", "SQLAlchemy", "PyMySQL")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    machine = f"{os.cpu_count()} CPUs, {platform.system()} {platform.machine()}"
    day = datetime.now(timezone.utc).date()
    load = trainers[0].load
    parts = [
        "# The server under load",
        _NOTE,
        f"{day}; {machine}, Python {platform.python_version()}, {versions}.",
    ]
    for table in tables:
        parts += [f"## {table.title}", table.markdown()]
    most = ", ".join(f"{name}: **{number}**" for name, number in carried(trainers).items())
    parts += [
        _TRAINERS.format(points=load.points, period=load.period, latest=_LATEST),
        f"Largest number of trainers that one instance handles, of those tried: {most}.",
    ]
    return "\n\n".join(parts) + "\n"


def _figures(summary: Summary) -> list[str]:
    return [
        short(summary.rate),
        short(summary.quantile_ms(0.5)),
        short(summary.quantile_ms(0.99)),
        short(summary.cpu_ms),
        f"{summary.memory_mib:,.0f}",
        summary.errors,
    ]


def _by_clients(cells: Iterable[Cell]) -> dict[tuple[int, str], Summary]:
    groups = _grouped(cells, lambda cell: (cell.load.clients, cell.server))
    ordered = sorted(groups.items(), key=lambda item: item[0][0])
    return {place: Summary(group) for place, group in ordered}


def _grouped(cells: Iterable[Cell], key: Callable[[Cell], _Key]) -> dict[_Key, list[Cell]]:
    groups: dict[_Key, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(key(cell), []).append(cell)
    return groups
