"""Runs a test or a program in a forked child, whose effects on the process do not reach the runner.

The child has what this process has imported, MLflow above all, which takes seconds to import.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from typing import Any

import pytest


def in_forked_child(test: Callable[..., object], arguments: dict[str, Any]) -> None:
    """Call a test in a child of this process, and fail if it fails there."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        said = b""
        try:
            test(**arguments)
        except BaseException:  # noqa: BLE001 - raised again in the parent
            said = traceback.format_exc().encode()
        os.write(writing, said[-60_000:])  # the minimum that a pipe can hold
        os._exit(1 if said else 0)
    os.close(writing)
    try:
        with open(reading, "rb") as pipe:
            said = pipe.read()
        _, status = os.waitpid(child, 0)
        child = 0
    finally:
        if child:  # the test took too long
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    if status:
        ended = f"The child ended with {os.waitstatus_to_exitcode(status)}."
        pytest.fail(said.decode() or ended, pytrace=False)


def run_forked(script: str, environment: Mapping[str, str], again: tuple[str, ...]) -> str:
    """Run Python code in a child of this process; return what it prints.

    Args:
        script: the code.
        environment: environment of the child.
        again: packages that the code imports again, because an import has effects or reads the
            environment.
    """
    with tempfile.TemporaryFile("w+") as out:

        def program() -> None:
            os.environ.clear()
            os.environ.update(environment)
            for name in [*sys.modules]:
                if f"{name}.".startswith(tuple(f"{package}." for package in again)):
                    del sys.modules[name]
            with redirect_stdout(out):
                exec(compile(script, "<string>", "exec"), {"__name__": "__main__"})
            out.flush()

        in_forked_child(program, {})
        out.seek(0)
        return out.read()
