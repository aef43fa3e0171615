"""The clock of the delivery, which tests replace with one that they control."""

from __future__ import annotations

import threading
import time


class Clock:
    """Tells the time, and waits."""

    def monotonic(self) -> float:
        """Return seconds that never jump; for intervals."""
        return time.monotonic()

    def time(self) -> float:
        """Return seconds since 1970; for moments that other processes read."""
        return time.time()

    def wait(self, condition: threading.Condition, seconds: float) -> None:
        """Wait until the condition, which is held, is notified, or the seconds are over."""
        condition.wait(seconds)
