"""DVCLive's callback; reads its files."""

from __future__ import annotations

import contextlib
import csv
import inspect
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from dvclive import Live
from dvclive.lgbm import DVCLiveCallback

from .peer import Peer, Session, StoredRun


class DVCLive(Peer):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._numbers = itertools.count()

    @contextlib.contextmanager
    def run(self, **options: Any) -> Iterator[Session]:
        # The caller names the folder; one that is used again would be emptied.
        with Live(dir=str(self.folder / "dvclive" / str(next(self._numbers)))) as live:
            yield Session([DVCLiveCallback(live)])

    def stored(self) -> list[StoredRun]:
        return [_read(path) for path in sorted(self.folder.glob("dvclive/*"))]

    def options(self) -> set[str]:
        return {
            *inspect.signature(DVCLiveCallback).parameters,
            *inspect.signature(Live).parameters,
        }


def _read(folder: Path) -> StoredRun:
    run = StoredRun()
    metrics = folder / "plots" / "metrics"
    for path in metrics.rglob("*.tsv"):
        with path.open(newline="") as file:
            rows = list(csv.reader(file, delimiter="\t"))
        head = rows[0]
        step = head.index("step")
        # Two processes that write one file give it two headers.
        points = [(int(row[step]), float(row[1 - step])) for row in rows if row != head]
        run.curves[str(path.relative_to(metrics).with_suffix(""))] = points
    if (folder / "metrics.json").exists():
        run.values = json.loads((folder / "metrics.json").read_text())
    if (folder / "params.yaml").exists():
        params = yaml.safe_load((folder / "params.yaml").read_text())
        run.params = {name: str(value) for name, value in params.items()}
    paths = (path for path in folder.rglob("*") if path.is_file() and metrics not in path.parents)
    run.files = {str(path.relative_to(folder)): path for path in paths}
    return run
