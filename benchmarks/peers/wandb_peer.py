"""wandb's callback and log_summary, offline; reads its file with its own record types."""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import wandb
from wandb.integration.lightgbm import log_summary, wandb_callback
from wandb.proto import wandb_internal_pb2

from .peer import Peer, Session, StoredRun
from .record_log import records


class Wandb(Peer):
    @contextlib.contextmanager
    def run(self, **options: Any) -> Iterator[Session]:
        with wandb.init(project="peers", mode="offline", dir=str(self.folder)):
            yield Session([wandb_callback()], self._finish)

    @staticmethod
    def _finish(model: Any, *_: Any) -> None:
        log_summary(model, feature_importance=True, save_model_checkpoint=True)

    def stored(self) -> list[StoredRun]:
        wandb.teardown()  # its service writes the files
        paths = sorted(self.folder.glob("wandb/offline-run-*/run-*.wandb"))
        return [_read(path) for path in paths]

    def options(self) -> set[str]:
        return {
            *inspect.signature(wandb_callback).parameters,
            *inspect.signature(log_summary).parameters,
        }


def _read(path: Path) -> StoredRun:
    run = StoredRun(status="running")
    for raw in records(path):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(raw)
        kind = record.WhichOneof("record_type")
        if kind == "history":
            row = _items(record.history.item)
            # The callback logs LightGBM's iteration, to be used as the step.
            step = row.pop("iteration", row.pop("_step", record.history.step.num))
            for name, value in row.items():
                if isinstance(value, int | float):
                    run.curves.setdefault(name, []).append((int(step), float(value)))
        elif kind == "summary":
            run.values.update(_items(record.summary.update))
        elif kind in ("config", "run"):
            update = record.config.update if kind == "config" else record.run.config.update
            for name, value in _items(update).items():
                if not name.startswith("_wandb"):
                    run.params[name] = str(value)
        elif kind == "exit":
            run.status = "failed" if record.exit.exit_code else "finished"
    files = path.parent / "files"
    run.files = {str(f.relative_to(files)): f for f in files.rglob("*") if f.is_file()}
    # wandb draws its own charts from tables.
    run.charts |= {name for name in run.files if name.endswith(".table.json")}
    return run


def _items(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
