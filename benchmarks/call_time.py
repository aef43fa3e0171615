"""How long one call blocks training that logs 12 metrics, beside trackers that log to files.

python benchmarks/call_time.py --quick  # shows it; compare.py writes it
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import TextIO

from idle_server import idle_server
from logged_calls import CONTENDERS, NAMES
from part import Effort, Findings, Part, show_alone
from rich.console import Console
from tables import US, Table, short

_NOTE = """\
Each call logs 12 metrics at one step. The contenders take turns: each has a process of its own, \
and in each turn it makes a block of calls one straight after the other (*warm*), and a block in \
which ten megabytes of memory are read before each call (*cold*), as by training that fills the \
processor's caches. The ratio is the median of the ratios of medians in \
the same turn. This package sends to a server that does nothing, wandb and neptune-scale run \
offline. The last two rows are parts: the append to the journal alone, and in its place a row of \
a SQLite database in write-ahead mode."""

_CALLED = {
    "ours": "`IAPRun.log_metrics`",
    "wandb": "wandb, `run.log`",
    "neptune-scale": "neptune-scale, `run.log_metrics`",
    "append": "append to the journal",
    "SQLite": "row of a database",
}
_IN_DOCS = ("ours", "wandb", "neptune-scale")
_READ_BYTES = {"warm": 0, "cold": 10_000_000}
_PAUSE = 0.2  # seconds, in which a contender's background work ends before the next one's turn
_WORKER = Path(__file__).with_name("logged_calls.py")
_FOREIGN = ("MLFLOW_", "GOOGLE_", "WANDB_", "NEPTUNE_")


@dataclass(frozen=True)
class CallTimes:
    """The seconds of the calls of a contender, in each turn."""

    name: str
    caches: str
    turns: Sequence[Sequence[float]]

    def us(self, share: float) -> float:
        """Return a quantile over all turns, in microseconds."""
        seconds = [each for turn in self.turns for each in turn]
        return quantiles(seconds, n=100)[round(share * 100) - 1] * 1e6

    def ratio(self, other: CallTimes) -> float:
        """Return the median of the ratios to another contender in the same turn."""
        pairs = zip(self.turns, other.turns, strict=True)
        return median(median(own) / median(theirs) for own, theirs in pairs)


class _Worker:
    """A contender's process."""

    def __init__(self, name: str, process: subprocess.Popen[str], log: TextIO) -> None:
        self._name = name
        self._process = process
        self._log = log

    @classmethod
    @contextmanager
    def running(cls, name: str, url: str) -> Iterator[_Worker]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(_FOREIGN)}
        with (
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
            tempfile.TemporaryFile("w+") as log,
            subprocess.Popen(
                [sys.executable, str(_WORKER), name, folder, url],
                env={
                    **kept,
                    "HOME": folder,
                    "MLFLOW_DISABLE_TELEMETRY": "true",
                    "MLFLOW_IAP_OUTBOX": f"{folder}/outbox",
                    "WANDB_DISABLE_GIT": "true",
                    "WANDB_ERROR_REPORTING": "false",
                    "WANDB_MODE": "offline",
                    "WANDB_SILENT": "true",
                },
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=folder,
            ) as process,
        ):
            try:
                worker = cls(name, process, log)
                worker._read()
                yield worker
            finally:
                process.kill()

    def call(self, calls: int, read_bytes: int) -> list[float]:
        """Make a block of calls, and return the seconds that each took."""
        seconds: list[float] = json.loads(self._ask(f"{calls} {read_bytes}"))
        return seconds

    def end(self) -> tuple[int, int]:
        """Return how many calls were made, and how many are stored."""
        made, stored = json.loads(self._ask(""))
        return made, stored

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # then there is no answer either
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        return self._read()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise RuntimeError(f"{self._name} failed:\n{self._log.read()[-3000:]}")
        return line


def call_times(turns: int, calls: int) -> tuple[list[CallTimes], list[str]]:
    """Measure all contenders in turns; return their times, and what is not stored."""
    seconds: dict[tuple[str, str], list[list[float]]] = defaultdict(list)
    lost: list[str] = []
    with idle_server() as server, ExitStack() as running:
        workers = {
            name: running.enter_context(_Worker.running(name, server.url)) for name in CONTENDERS
        }
        for turn in range(turns):
            # In alternating order, so that none always follows the same one.
            for name in list(workers)[:: -1 if turn % 2 else 1]:
                for caches, read_bytes in _READ_BYTES.items():
                    seconds[name, caches].append(workers[name].call(calls, read_bytes))
                    time.sleep(_PAUSE)
        for name, worker in workers.items():
            made, stored = worker.end()
            if name == "ours":
                stored = server.points() // len(NAMES)
            if stored != made:
                lost.append(f"calls: {name} stored {stored:,} of {made:,} calls")
    return [CallTimes(*key, each) for key, each in seconds.items()], lost


def _measure(effort: Effort, console: Console) -> Findings:
    turns, calls = (2, 20) if effort.is_quick else (20, 100)
    times, lost = call_times(turns, calls)
    found = {(each.name, each.caches): each for each in times}
    title = f"{turns * calls:,} calls in {turns} turns"
    table = _table(title, found, list(CONTENDERS), (0.5, 0.99))
    docs = _table("", found, _IN_DOCS, (0.5,))
    return Findings([table], {"calls": docs.markdown()}, lost)


def _table(
    title: str,
    found: Mapping[tuple[str, str], CallTimes],
    names: Sequence[str],
    shares: Sequence[float],
) -> Table:
    labels = {0.5: "median", 0.99: "99 %"}
    heads = [
        f"{caches}, {label}"
        for caches in _READ_BYTES
        for label in (*(labels[share] for share in shares), "ratio")
    ]
    rows = []
    for name in names:
        cells = []
        for caches in _READ_BYTES:
            times = found[name, caches]
            cells += [f"{short(times.us(share))} {US}" for share in shares]
            cells.append(short(times.ratio(found["ours", caches])))
        rows.append([_CALLED[name], *cells])
    return Table(title, ["", *heads], rows, names=1)


PART = Part(
    "calls",
    "How long one call blocks training",
    _NOTE,
    ("mlflow", "wandb", "neptune-scale", "protobuf"),
    _measure,
)

if __name__ == "__main__":
    show_alone(PART)
