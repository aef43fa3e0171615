"""Runs a test in a forked child, because its effects on the process must not reach the runner."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable
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
