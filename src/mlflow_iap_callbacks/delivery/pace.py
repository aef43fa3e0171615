"""Finds out how long delivery has to pause so that it does not slow training down."""

from __future__ import annotations

from .clock import Clock

# Of the time: training waits while this package's threads run Python. A request with 1,000 points
# takes 4 to 8 ms, so there are one or two of them a second.
_SHARE = 0.01
# Of a processor, by other threads than the one that delivers.
_BUSY = 0.5
_LONGEST_PAUSE = 1.0  # seconds


class Pace:
    """The processor time of the thread that created it, and of all others.

    Args:
        clock: tells the time and the processor time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last = self._times()

    def pause(self) -> float:
        """Return the seconds to pause after the work since the last call; 0 if nobody trains."""
        before, self._last = self._last, self._times()
        now, process, own = (
            later - earlier for earlier, later in zip(before, self._last, strict=True)
        )
        return min(own / _SHARE, _LONGEST_PAUSE) if process - own > _BUSY * now else 0.0

    def _times(self) -> tuple[float, float, float]:
        return self._clock.monotonic(), self._clock.process_time(), self._clock.thread_time()
