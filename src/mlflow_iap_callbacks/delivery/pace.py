"""Finds out how long delivery has to pause so that it does not slow training down."""

from __future__ import annotations

from .clock import Clock

# Of the time: training waits while this package's threads run Python. A request with 1,000 points
# takes 4 to 8 ms, so there is one in three to five seconds.
_SHARE = 0.0015
# Of a processor, by other threads than those that deliver.
_BUSY = 0.5
_LONGEST_PAUSE = 5.0  # seconds
# Seconds that are looked at together. During one request, training may have had no chance to run.
_SHORTEST_LOOK = 0.25


class Pace:
    """Notes how busy this process is, apart from its delivery.

    Args:
        clock: tells the time and the processor time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since, self._process = clock.monotonic(), clock.process_time()
        self._own = 0.0
        self._is_busy = False

    def pause_after(self, seconds: float) -> float:
        """Return how many seconds to pause after a request.

        Args:
            seconds: processor time that the request took.
        """
        self._own += seconds
        now, process = self._clock.monotonic(), self._clock.process_time()
        if now - self._since >= _SHORTEST_LOOK:
            others = process - self._process - self._own
            self._is_busy = others > _BUSY * (now - self._since - self._own)
            self._since, self._process, self._own = now, process, 0.0
        return min(seconds / _SHARE, _LONGEST_PAUSE) if self._is_busy else 0.0
