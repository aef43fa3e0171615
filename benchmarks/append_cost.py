"""What an append costs while training keeps filling the processor's caches.

    python benchmarks/append_cost.py

Between two appends, ten megabytes of memory are read. The contenders take turns in one run: the
intake's append (a frame with a checksum), the same record without frame and checksum, and a row of
a SQLite database in write-ahead mode.
"""

from __future__ import annotations

import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgpack

from mlflow_iap_callbacks.outbox.intake import Intake

_APPENDS = 3_000
_READ_BYTES = 10_000_000
_CACHE_LINE_BYTES = 64


def _contenders(folder: Path) -> dict[str, Callable[[int], object]]:
    intake = Intake(folder / "journal")
    bare = os.open(folder / "bare", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    pack = msgpack.Packer().pack
    database = sqlite3.connect(folder / "rows.sqlite", isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = NORMAL")
    database.execute("CREATE TABLE records (id INTEGER PRIMARY KEY, payload BLOB)")
    insert = "INSERT INTO records (payload) VALUES (?)"
    return {
        "intake": lambda n: intake.append(3, "metrics", _metrics(n)),
        "without checksum": lambda n: os.write(bare, pack((3, "metrics", _metrics(n)))),
        "SQLite": lambda n: database.execute(insert, (pack((3, "metrics", _metrics(n))),)),
    }


def _metrics(n: int) -> tuple[int, int, dict[str, float]]:
    return n, 1_700_000_000_000 + n, {"training l2": n / 7, "valid l2": n / 9}


def main() -> None:
    """Print the median and the 99th percentile of each contender, in microseconds."""
    memory = bytearray(4 * _READ_BYTES)
    with tempfile.TemporaryDirectory() as folder:
        contenders = _contenders(Path(folder))
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for n in range(_APPENDS):
            for name, append in contenders.items():
                first = (n * 997_000) % (3 * _READ_BYTES)
                sum(memory[first : first + _READ_BYTES : _CACHE_LINE_BYTES])
                began = time.perf_counter()
                append(n)
                seconds[name].append(time.perf_counter() - began)
    for name, each in seconds.items():
        percentiles = statistics.quantiles(each, n=100)
        print(f"{name:17} {percentiles[49] * 1e6:7.1f} {percentiles[98] * 1e6:9.1f}")


if __name__ == "__main__":
    main()
