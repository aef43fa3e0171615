"""Neptune's callback and create_booster_summary, offline; reads its queue of operations."""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightgbm as lgb
import neptune
import numpy as np
from neptune.integrations.lightgbm import NeptuneCallback, create_booster_summary

from .peer import Peer, Session, StoredRun


class Neptune(Peer):
    @contextlib.contextmanager
    def run(self, **options: Any) -> Iterator[Session]:
        with neptune.init_run(mode="offline") as run:

            def finish(model: Any, x: Any, y: Any) -> None:
                is_classifier = y is not None and set(np.unique(y)) <= {0, 1}
                predicted = np.round(model.predict(x)) if is_classifier else None
                run["summary"] = create_booster_summary(
                    model,
                    list_trees=[0],
                    log_trees=True,
                    log_trees_as_dataframe=isinstance(model, lgb.Booster),
                    log_confusion_matrix=is_classifier,
                    y_true=y,
                    y_pred=predicted,
                )

            yield Session([NeptuneCallback(run=run)], finish)

    def stored(self) -> list[StoredRun]:
        return [_read(path) for path in sorted(self.folder.glob(".neptune/offline/run__*"))]

    def options(self) -> set[str]:
        return {
            *inspect.signature(NeptuneCallback).parameters,
            *inspect.signature(create_booster_summary).parameters,
        }


def _read(folder: Path) -> StoredRun:
    run = StoredRun()
    text = "".join(path.read_text() for path in sorted(folder.glob("data-*.log")))
    decoder, position = json.JSONDecoder(), 0
    while position < len(text):
        record, position = decoder.raw_decode(text, position)
        while position < len(text) and text[position].isspace():
            position += 1
        operation = record["obj"]
        kind, name = operation["type"], "/".join(operation["path"])
        if name.startswith(("monitoring/", "source_code/")):
            continue
        if kind == "LogFloats":
            points = [(int(each["step"]), each["value"]) for each in operation["values"]]
            run.curves.setdefault(name, []).extend(points)
        elif name.startswith("params/"):
            run.params[name.removeprefix("params/")] = str(operation.get("value"))
        elif "value" in operation:
            run.values[name] = operation["value"]
        elif kind == "LogImages":
            run.charts.add(name)
    # Neptune derives a run's end from its connection; offline, it stores failures only.
    run.status = "failed" if run.values.get("sys/failed") else "finished"
    run.files = {path.name: path for path in folder.glob("upload_path/*")}
    return run
