"""The MLflow server of the tests, forked from a process that has imported what it needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO, Any

import python_process
from mlflow_iap_callbacks.local import MlflowServer
from python_process import ForkedProcess

# `mlflow server` starts uvicorn in a process that imports everything again; here it becomes it.
_SERVE = """
import os, runpy, sys
import mlflow.server
from mlflow.cli import cli

def serve(command, extra_env, **_):
    os.environ.update(extra_env)
    sys.argv = command[2:]
    runpy.run_module("uvicorn", run_name="__main__", alter_sys=True)

mlflow.server._exec_cmd = serve
cli()
"""


class TrackingServer(MlflowServer):
    """`MlflowServer`, started by a fork, and on a copy of the tables that the first one made."""

    _tables: bytes | None = None

    def start(self) -> None:
        database = self._folder / "mlflow.db"
        if TrackingServer._tables is not None and not database.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            database.write_bytes(TrackingServer._tables)
        super().start()
        if TrackingServer._tables is None:
            TrackingServer._tables = database.read_bytes()  # nobody writes yet

    def _begin(self, command: list[str], environment: Mapping[str, str], log: IO[bytes]) -> Any:
        if not python_process.forks():
            return super()._begin(command, environment, log)
        return ForkedProcess(
            ["-c", _SERVE, *command[3:]],
            environment,
            stdin=python_process.DEVNULL,
            stdout=log,
            stderr=log,
            folder=self._folder,
            serves=True,
        )
