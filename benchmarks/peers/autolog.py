"""mlflow.lightgbm.autolog, with a real server without IAP."""

from __future__ import annotations

import contextlib
import inspect
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import mlflow

from .mlflow_store import stored_runs
from .peer import Peer, Session, StoredRun


class Autolog(Peer):
    has_server = True

    def __init__(self, folder: Any) -> None:
        super().__init__(folder)
        self._experiment = f"autolog-{uuid.uuid4().hex}"
        self._url = os.environ["PEERS_MLFLOW_URL"]
        self._is_on = False
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def run(self, **options: Any) -> Iterator[Session]:
        with self._lock:
            self._turn_on(options.get("registered_model_name"))
        yield Session()

    def _turn_on(self, registered_model_name: str | None) -> None:
        if not self._is_on:
            mlflow.set_tracking_uri(self._url)
            os.environ["MLFLOW_EXPERIMENT_NAME"] = self._experiment
            mlflow.lightgbm.autolog(
                log_input_examples=True, registered_model_name=registered_model_name
            )
            self._is_on = True

    def stored(self) -> list[StoredRun]:
        mlflow.flush_async_logging()
        client = mlflow.MlflowClient(self._url)
        return stored_runs(client, self._experiment, self.folder / "read")

    def options(self) -> set[str]:
        return set(inspect.signature(mlflow.lightgbm.autolog).parameters)

    def leave(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._url = f"http://127.0.0.1:{free.getsockname()[1]}"

    def come_back(self) -> None:
        server = urlsplit(os.environ["PEERS_MLFLOW_URL"])
        listener = socket.create_server(("127.0.0.1", urlsplit(self._url).port or 0))
        address = (server.hostname or "", server.port or 0)
        threading.Thread(target=_forward, args=(listener, address), daemon=True).start()


def _forward(listener: socket.socket, address: tuple[str, int]) -> None:
    while True:
        near, _ = listener.accept()
        far = socket.create_connection(address)
        for pair in ((near, far), (far, near)):
            threading.Thread(target=_copy, args=pair, daemon=True).start()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
