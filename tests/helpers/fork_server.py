"""A process that has imported slow modules, and forks for each program that it is asked to run.

Only third-party modules are imported here, and no thread is started, so a program begins as in an
interpreter that has just imported them. Modules that read environment variables when they are
imported (google-auth) are left to the program. `python_process` runs this file, with the number of
the socket for requests, and the modules.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import tempfile
import time
import types
import warnings
from pathlib import Path
from typing import Any

# Modules of this package, of the programs and of MLflow's server, except those that read the
# environment. They are the same for all, because it takes 10 s of CPU to import them.
FOR_PROGRAMS = (
    *("mlflow", "mlflow.pyfunc", "optuna", "lightgbm", "numpy", "pandas", "sklearn"),
    *("joblib", "sqlite3", "sqlalchemy", "alembic", "cryptography.x509", "requests", "urllib3"),
    *("click", "msgpack", "platformdirs", "rich.console", "rich.progress", "rich.table"),
    *("tenacity", "tqdm", "aiohttp", "concurrent.futures", "multiprocessing.pool"),
    *("uvicorn.main", "fastapi", "flask_cors", "mlflow.store.tracking.sqlalchemy_store"),
    *("mlflow.store.model_registry.sqlalchemy_store", "mlflow.pyfunc.scoring_server"),
    *("mlflow.genai.scorers.online", "mlflow.cli"),
)
# What it imports turns on warnings that programs without it do not show.
_CHANGES_WARNINGS = ("mlflow.cli",)
# Enough for programs that use the outbox alone, and for those of google-auth.
FOR_OUTBOXES = (
    *("msgpack", "platformdirs", "sqlite3", "dataclasses", "hashlib", "importlib.resources"),
    *("inspect", "logging", "platform", "uuid"),
)
FOR_GOOGLE_AUTH = (
    *("requests", "asyncio", "cryptography.x509", "cryptography.hazmat.backends"),
    *("cryptography.hazmat.primitives.serialization", "pyasn1_modules.rfc5208"),
)
LARGEST = 200_000  # bytes of a request


def _import_modules(names: list[str]) -> None:
    # MLflow imports Polars where it is installed. Polars 1.44 and 2.0, the last ones for Python
    # 3.10, wait at exit for a thread of theirs, which a forked process lacks.
    sys.modules["polars"] = None  # type: ignore[assignment]
    for name in names:
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.suppress(ImportError))  # of another Python version
            if name in _CHANGES_WARNINGS:
                stack.enter_context(warnings.catch_warnings())
            importlib.import_module(name)
    del sys.modules["polars"]
    gc.collect()
    gc.freeze()  # the garbage collector skips what all programs share


class _Children:
    """The running programs, each with the socket on which its end is reported."""

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests
        self._selector = selectors.DefaultSelector()
        self._selector.register(requests, selectors.EVENT_READ)
        self._running: dict[int, tuple[int, socket.socket]] = {}

    def next_program(self) -> dict[str, Any] | None:
        """Return the program to run, in a new child; or None, in this process, at its end."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is not self._requests:
                    self._tell_end(key.data)
                    continue
                # At most: the standard streams, and the socket for responses.
                request, handed, _, _ = socket.recv_fds(self._requests, LARGEST, 4)
                if not request:
                    self._kill_all()
                    return None
                if self._fork(*handed):
                    program: dict[str, Any] = json.loads(request)
                    return program

    def _fork(self, answers: int, *streams: int) -> bool:
        """Return whether this is the child."""
        pid = os.fork()
        if pid == 0:
            self._forget_all()
            os.close(answers)
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
        for stream in streams:
            os.close(stream)
        if pid == 0:
            return True
        end = os.pidfd_open(pid)
        answer_to = socket.socket(fileno=answers)
        self._running[pid] = end, answer_to
        self._selector.register(end, selectors.EVENT_READ, pid)
        with contextlib.suppress(OSError):
            answer_to.send(str(pid).encode())
        return False

    def _tell_end(self, pid: int) -> None:
        end, answer_to = self._running.pop(pid)
        self._selector.unregister(end)
        os.close(end)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with answer_to, contextlib.suppress(OSError):  # the requester may have closed its socket
            answer_to.send(str(status).encode())

    def _kill_all(self) -> None:
        for pid in self._running:
            os.kill(pid, signal.SIGKILL)

    def _forget_all(self) -> None:
        self._selector.close()
        self._requests.close()
        for end, answer_to in self._running.values():
            os.close(end)
            answer_to.close()


def _become(program: dict[str, Any], installed: list[str]) -> None:
    """Set what an interpreter reads from its environment and command line, and run a program.

    Args:
        program: the requested program.
        installed: where an interpreter finds modules without PYTHONPATH.
    """
    arguments, environment = program["arguments"], program["environment"]
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(program["folder"])
    if program["starts_session"]:
        os.setsid()
    tempfile.tempdir = None
    time.tzset()
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    given = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = __builtins__
    if arguments[0] == "-c":
        path, text = "", arguments.pop(1)
    elif arguments[0] == "-m":
        path, text = os.getcwd(), ""
        del arguments[0]
    else:
        main.__file__ = arguments[0]
        path, text = str(Path(arguments[0]).resolve().parent), Path(arguments[0]).read_text()
    sys.path[:] = [path, *given, *installed]
    sys.argv = arguments
    if text:
        exec(compile(text, getattr(main, "__file__", "<string>"), "exec"), main.__dict__)
    else:
        runpy._run_module_as_main(arguments[0])  # type: ignore[attr-defined]


if __name__ == "__main__":
    _import_modules(sys.argv[2:])
    _pythonpath = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    _installed = [entry for entry in sys.path[1:] if entry not in _pythonpath]
    with socket.socket(fileno=int(sys.argv[1])) as _requests:
        _program = _Children(_requests).next_program()
    if _program is not None:
        _become(_program, _installed)
