"""A thread that works on studies at intervals, or at once if another thread waits for it."""

from __future__ import annotations

import os
import threading
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable

from ..delivery.closing import Deadline
from ..delivery.thread_signals import start_without_signals

_TICK = 0.5  # seconds


class _Request:
    """Work that another thread waits for."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.work = work
        self.is_done = threading.Event()


class BackgroundThread:
    """A daemon thread that calls ``tick`` twice a second, once it is started.

    Args:
        name: name of the thread.
        now: monotonic clock, in seconds.
    """

    def __init__(self, name: str, now: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._now = now
        self._reset()

    @abstractmethod
    def tick(self) -> None:
        """Do what is due."""

    def _reset(self) -> None:
        """Forget everything, as in a forked process, which has no thread yet."""
        self._pid = os.getpid()
        self._thread: threading.Thread | None = None
        self._requests: deque[_Request] = deque()
        self._wake = threading.Event()

    def _do_in_thread(self, work: Callable[[], None], deadline: Deadline, seconds: float) -> None:
        """Have the thread do the work; wait until it is done or only ``seconds`` are left.

        A storage may block for a long time, and the caller must go on.
        """
        request = _Request(work)
        self._requests.append(request)
        self._wake.set()
        while deadline.left > seconds and not request.is_done.wait(
            min(deadline.left - seconds, _TICK)
        ):
            pass

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
        start_without_signals(self._thread)

    def _work(self) -> None:
        while threading.current_thread() is self._thread:
            self._wake.wait(_TICK)
            self._wake.clear()
            while self._requests:
                request = self._requests.popleft()
                request.work()
                request.is_done.set()
            self.tick()
