"""A contender: its training, the wait for delivery, and the time in its callback."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

_WARM_UP = 4  # trials, rounds, points


@dataclass
class Contender:
    """A contender, and the times that are measured.

    Attributes:
        run: trains for a number of trials, rounds or points.
        deliver: waits until the server has everything.
        events: how long each call of the callback took, in seconds.
    """

    run: Callable[[int], None]
    deliver: Callable[[], None] = lambda: None
    events: list[float] = field(default_factory=list)

    def warm_up(self) -> None:
        """Do what is needed only once: imports, connections, tokens and the experiment."""
        self.run(_WARM_UP)


@dataclass
class Pairs(Contender):
    """Alternates two contenders; its events are the ratios of their times.

    Both are in one process, because two processes differ by more than a callback costs.

    Attributes:
        parts: the contenders, in the order in which they are warmed up.
    """

    parts: tuple[Contender, ...] = ()

    def warm_up(self) -> None:
        for part in self.parts:
            part.warm_up()


def paired(
    plain: Contender, ours: Contender, size: int, *, is_delivered_between: bool = False
) -> Contender:
    """Return pairs of two contenders of a size.

    With ``is_delivered_between``, no delivery goes on while the other one trains.
    """
    ratios: list[float] = []

    def seconds(of: Contender) -> float:
        start = time.perf_counter()
        of.run(size)
        took = time.perf_counter() - start
        if is_delivered_between:
            of.deliver()
        return took

    def run(pairs: int) -> None:
        for number in range(pairs):
            if number % 2:
                without = seconds(plain)
                ratios.append(seconds(ours) / without)
            else:
                ratios.append(seconds(ours) / seconds(plain))

    return Pairs(run, ours.deliver, ratios, (plain, ours))


class Timed:
    """A callback that records how long each call of another one takes."""

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
    """Wait until one of this package's callbacks has delivered.

    Raises:
        RuntimeError: if that takes more than `timeout` seconds.
    """
    if not callback.flush(timeout=timeout):
        raise RuntimeError(f"not delivered within {timeout:g} s")
