"""Slows delivery down while training keeps a processor busy."""

from __future__ import annotations

from .clock import Clock

# Of the time, so that training does not take noticeably longer: it waits while this package's
# threads run Python. A request of 1,000 points takes 5 to 8 ms, so this is a request a second.
_SHARE = 0.01
# Of a processor, by other threads than the one that delivers.
_BUSY = 0.5
_LONGEST_PAUSE = 1.0  # seconds
# Seconds after which records are sent without pauses, so that what is shown is not too old.
_LONGEST_DELAY = 30.0


class Pace:
    """Tells the thread that created it how long to pause between requests.

    Args:
        clock: tells the time and the processor time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began, self._process, self._thread = self._times()
        self._last = self._began

    def pause(self) -> float:
        """Return how many seconds to wait, given the work since the last call."""
        now, process, thread = self._times()
        own = thread - self._thread
        others = process - self._process - own
        is_busy = others > _BUSY * (now - self._last)
        self._last, self._process, self._thread = now, process, thread
        if not is_busy or now - self._began > _LONGEST_DELAY:
            return 0.0
        return min(own / _SHARE, _LONGEST_PAUSE)

    def _times(self) -> tuple[float, float, float]:
        return self._clock.monotonic(), self._clock.process_time(), self._clock.thread_time()
