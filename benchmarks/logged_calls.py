"""The process of a contender that logs 12 metrics in each call, and measures the calls.

    python logged_calls.py CONTENDER FOLDER [URL]

Writes a line when it is ready. Then reads lines of a number of calls and of the bytes of memory
that are read before each of them, and writes the seconds that each call took, as JSON. On an empty
line, it writes the number of calls that are stored, and exits.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from idle_server import RUN_ID

NAMES = [
    f"{data} {metric}"
    for data in ("train", "valid", "test")
    for metric in ("auc", "average_precision", "binary_error", "binary_logloss")
]
_CACHE_LINE_BYTES = 64
_MEMORY_BYTES = 40_000_000
_UNMEASURED = 10  # calls before each block


@dataclass(frozen=True)
class _Logger:
    """Logs metrics at a step; `stored` waits, and returns how many calls are stored if it knows."""

    log: Callable[[dict[str, float], int], object]
    stored: Callable[[], int | None]


def _ours(folder: Path, url: str) -> _Logger:
    from mlflow_iap_callbacks import IAPRun

    run = IAPRun(RUN_ID, tracking_uri=url)
    if not run.flush():
        raise RuntimeError("The server does not answer.")

    def stored() -> None:
        if not run.flush(60.0):
            raise RuntimeError("Not everything was delivered.")

    return _Logger(lambda metrics, step: run.log_metrics(metrics, step=step), stored)


def _append(folder: Path, _: str) -> _Logger:
    from mlflow_iap_callbacks.outbox.intake import Intake

    intake = Intake(folder / "journal")
    return _Logger(
        lambda metrics, step: intake.append(3, "metrics", (step, _now(), metrics)), lambda: None
    )


def _sqlite(folder: Path, _: str) -> _Logger:
    import msgpack

    pack = msgpack.Packer().pack
    database = sqlite3.connect(folder / "rows.sqlite", isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = NORMAL")
    database.execute("CREATE TABLE records (id INTEGER PRIMARY KEY, payload BLOB)")
    insert = "INSERT INTO records (payload) VALUES (?)"
    return _Logger(
        lambda metrics, step: database.execute(insert, (pack((step, _now(), metrics)),)),
        lambda: int(database.execute("SELECT count(*) FROM records").fetchone()[0]),
    )


def _wandb(folder: Path, _: str) -> _Logger:
    import wandb
    from peers.record_log import records
    from wandb.proto import wandb_internal_pb2

    run = wandb.init(project="calls", mode="offline", dir=str(folder))

    def stored() -> int:
        run.finish()
        wandb.teardown()  # its service writes the file
        (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
        parsed = map(wandb_internal_pb2.Record.FromString, records(path))
        return sum(record.WhichOneof("record_type") == "history" for record in parsed)

    return _Logger(lambda metrics, step: run.log(metrics, step=step), stored)


def _neptune(folder: Path, _: str) -> _Logger:
    from neptune_scale import Run

    run = Run(
        project="calls/calls",
        mode="offline",
        log_directory=folder / "neptune",
        enable_console_log_capture=False,
        source_tracking_config=None,
    )

    def stored() -> int:
        run.close()
        (path,) = folder.glob("neptune/*/*.sqlite3")
        # The first one creates the run.
        query = "SELECT count(*) - 1 FROM run_operations"
        return int(sqlite3.connect(path).execute(query).fetchone()[0])

    return _Logger(lambda metrics, step: run.log_metrics(metrics, step=step), stored)


def _now() -> int:
    return int(time.time() * 1000)


CONTENDERS: dict[str, Callable[[Path, str], _Logger]] = {
    "ours": _ours,
    "wandb": _wandb,
    "neptune-scale": _neptune,
    "append": _append,
    "SQLite": _sqlite,
}


def main() -> None:
    # The parent must not read what libraries print.
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    name, folder, url = sys.argv[1:]
    logger = CONTENDERS[name](Path(folder), url)
    memory = bytearray(_MEMORY_BYTES)
    step = 0
    channel.write("\n")
    while asked := sys.stdin.readline().split():
        calls, read_bytes = map(int, asked)
        seconds = []
        for _ in range(_UNMEASURED + calls):
            metrics = {name: step / (7 + 2 * i) for i, name in enumerate(NAMES)}
            first = step * 997_000 % (_MEMORY_BYTES - read_bytes)
            sum(memory[first : first + read_bytes : _CACHE_LINE_BYTES])
            began = time.perf_counter()
            logger.log(metrics, step)
            seconds.append(time.perf_counter() - began)
            step += 1
        channel.write(json.dumps(seconds[_UNMEASURED:]) + "\n")
    stored = logger.stored()
    channel.write(json.dumps([step, step if stored is None else stored]) + "\n")


if __name__ == "__main__":
    main()
