"""What each contender is: a training, the wait for its delivery, and the time of its callback."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Contender:
    """One training and what is timed of it.

    Attributes:
        run: train for so many trials, rounds or points.
        deliver: wait until the server has all of it.
        events: seconds that each call of the callback took.
    """

    run: Callable[[int], None]
    deliver: Callable[[], None] = lambda: None
    events: list[float] = field(default_factory=list)


def paired(plain: Contender, ours: Contender, size: int) -> Contender:
    """Both trainings in turn; the events are how many times longer ours took.

    In one process, for two processes differ by more than a callback costs.
    """
    ratios: list[float] = []

    def seconds(of: Contender) -> float:
        start = time.perf_counter()
        of.run(size)
        return time.perf_counter() - start

    def run(pairs: int) -> None:
        for number in range(pairs):
            if number % 2:
                without = seconds(plain)
                ratios.append(seconds(ours) / without)
            else:
                ratios.append(seconds(ours) / seconds(plain))

    return Contender(run, ours.deliver, ratios)


class Timed:
    """A callback that notes how long each call of another takes."""

    def __init__(self, callback: Callable[..., None], events: list[float]) -> None:
        self.order = getattr(callback, "order", 50)  # LightGBM reads it
        self._callback = callback
        self._events = events

    def __call__(self, *event: Any) -> None:
        start = time.perf_counter()
        try:
            self._callback(*event)
        finally:
            self._events.append(time.perf_counter() - start)


def flush(callback: Any, timeout: float = 300.0) -> None:
    """Wait until a callback of ours has delivered.

    Raises:
        RuntimeError: if that takes more than `timeout` seconds.
    """
    if not callback.flush(timeout=timeout):
        raise RuntimeError(f"not delivered within {timeout:g} s")
