"""SwanLab's callback, offline; reads its file with its own record types."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import swanlab
import yaml
from swanlab.integration.lightgbm import SwanLabCallback
from swanlab.proto.swanlab.record.v1 import record_pb2
from swanlab.proto.swanlab.run.v1 import run_pb2

from .peer import Peer, Session, StoredRun
from .record_log import records

_STATUS = {
    "RUN_STATE_RUNNING": "running",
    "RUN_STATE_FINISHED": "finished",
    "RUN_STATE_CRASHED": "failed",
    "RUN_STATE_ABORTED": "killed",
}


class SwanLab(Peer):
    @contextlib.contextmanager
    def run(self, **options: Any) -> Iterator[Session]:
        with swanlab.init(project="peers", mode="offline", logdir=str(self.folder / "swanlog")):
            yield Session([SwanLabCallback()])

    def stored(self) -> list[StoredRun]:
        return [_read(path) for path in sorted(self.folder.glob("swanlog/run-*/run-*.swanlab"))]

    def options(self) -> set[str]:
        return set(inspect.signature(SwanLabCallback).parameters)


def _read(path: Path) -> StoredRun:
    run = StoredRun(status="running")
    for raw in records(path):
        record = record_pb2.Record()
        record.ParseFromString(raw)
        if record.HasField("scalar"):
            scalar = record.scalar
            run.curves.setdefault(scalar.key, []).append((scalar.step, scalar.value.number))
        elif record.HasField("finish"):
            run.status = _STATUS[run_pb2.RunState.Name(record.finish.state)]
        elif record.HasField("media"):
            run.charts.add(record.media.key)
    files = path.parent / "files"
    config = files / "config.yaml"
    if config.exists():
        content = yaml.safe_load(config.read_text()) or {}
        run.params = {name: str(entry["value"]) for name, entry in content.items()}
    run.files = {str(f.relative_to(files)): f for f in files.rglob("*") if f.is_file()}
    return run
