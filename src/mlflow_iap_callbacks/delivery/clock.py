"""The clock of the delivery, which tests replace with one that they control."""

from __future__ import annotations

import threading
import time


class Clock:
    """Tells the time, and waits."""

    def monotonic(self) -> float:
        """Return seconds that never jump, to measure intervals."""
        return time.monotonic()

    def time(self) -> float:
        """Return seconds since 1970, for times that other processes read."""
        return time.time()

    def process_time(self) -> float:
        """Return the processor time of all threads of this process, in seconds."""
        return time.process_time()

    def thread_time(self) -> float:
        """Return the processor time of this thread, in seconds."""
        return time.thread_time()

    def wait(self, condition: threading.Condition, seconds: float) -> None:
        """Wait until the condition is notified or the time is over. The caller holds its lock."""
        condition.wait(seconds)


def now_ms() -> int:
    """Return the current time as MLflow stores it, in milliseconds since 1970, UTC."""
    return time.time_ns() // 1_000_000
