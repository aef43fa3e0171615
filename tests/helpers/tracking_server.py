"""The tests' MLflow server, forked from a process that has imported what it needs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import python_process
from mlflow_iap_callbacks.local import MlflowServer
from python_process import DEVNULL, ForkedProcess

# `mlflow server` starts uvicorn in a process that imports everything again, and uvicorn its
# workers; here it becomes uvicorn, and the workers are forks.
SERVE = """
import gc, multiprocessing, os, runpy, sys
import sqlalchemy
import mlflow.server, uvicorn._subprocess
from mlflow.cli import cli

uvicorn._subprocess.spawn = multiprocessing.get_context("fork")

def serve(command, extra_env, **_):
    os.environ.update(extra_env)
    sys.argv = command[2:]
    # The workers must not share connections of this process.
    for engine in [each for each in gc.get_objects() if isinstance(each, sqlalchemy.Engine)]:
        engine.dispose()
    runpy.run_module("uvicorn", run_name="__main__", alter_sys=True)

mlflow.server._exec_cmd = serve
cli()
"""


class TrackingServer(MlflowServer):
    """`MlflowServer`, started by a fork, with a copy of the tables that the first one created."""

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
        return begin(command[3:], environment, log, self._folder)


def forked_server(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    log: IO[bytes],
    folder: Path | None = None,
) -> ForkedProcess:
    """Fork a program that has imported what MLflow's server needs, in a new session."""
    return ForkedProcess(arguments, environment, DEVNULL, log, log, folder, starts_session=True)


def begin(
    arguments: Sequence[str], environment: Mapping[str, str], log: IO[bytes], folder: Path
) -> python_process.Process:
    """Start what ``python -m mlflow`` does with the arguments of ``server``, in a session."""
    if python_process.forks():
        given = ["-c", SERVE, *arguments]
        return forked_server(given, environment, log, folder)
    return subprocess.Popen(
        [sys.executable, "-m", "mlflow", *arguments],
        cwd=folder,
        env=environment,
        stdin=DEVNULL,
        stdout=log,
        stderr=log,
        text=True,
        start_new_session=True,
    )
