"""IAPLightGBMCallback, with a real server behind a local IAP."""

from __future__ import annotations

import contextlib
import inspect
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlflow_iap_callbacks import IAPLightGBMCallback, IAPMlflowClient
from mlflow_iap_callbacks.local import LocalCloud

from .mlflow_store import stored_runs
from .peer import Peer, Session, StoredRun


class Ours(Peer):
    has_server = True

    def __init__(self, folder: Any) -> None:
        super().__init__(folder)
        self._experiment = f"ours-{uuid.uuid4().hex}"
        self._cloud: LocalCloud | None = None

    @contextlib.contextmanager
    def run(self, **options: Any) -> Iterator[Session]:
        known = {name: value for name, value in options.items() if name in self.options()}
        with IAPLightGBMCallback(experiment_name=self._experiment, **known) as callback:
            finish = getattr(callback, "finish", None)
            session = Session([callback])
            if finish is not None:
                takes_data = "X" in inspect.signature(finish).parameters
                session.finish = lambda model, x, y: (
                    finish(model, X=x, y=y) if takes_data and x is not None else finish(model)
                )
            yield session

    def stored(self) -> list[StoredRun]:
        # The next process, or this one, sends what killed workers of a pool left behind.
        command = [str(Path(sys.executable).with_name("mlflow-iap")), "sync"]
        subprocess.run(command, check=False, capture_output=True, timeout=60)
        return stored_runs(IAPMlflowClient(), self._experiment, self.folder / "read")

    def options(self) -> set[str]:
        return set(inspect.signature(IAPLightGBMCallback).parameters)

    def leave(self) -> None:
        self._cloud = LocalCloud(os.environ["PEERS_MLFLOW_URL"])
        self._cloud.start()
        self._cloud.fault("reset_before", times=0)
        os.environ.update(self._cloud.environment())

    def come_back(self) -> None:
        assert self._cloud is not None
        self._cloud.clear_faults()
