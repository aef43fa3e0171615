"""Waits for an event, such as a server's first response, up to a time limit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import requests


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    """Return as soon as ``condition`` holds.

    Raises:
        TimeoutError: ``what`` has not happened after ``seconds``.
    """
    ends = time.monotonic() + seconds
    tick = threading.Event()
    while not condition():
        if time.monotonic() > ends:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        tick.wait(0.01)


def answers(url: str) -> bool:
    """Whether a server on this machine responds that it is healthy, without using a proxy."""
    with requests.Session() as session:
        session.trust_env = False
        try:
            return session.get(url, timeout=5).ok
        except requests.RequestException:
            return False
