"""The thread that reports on studies, now and then and at the end of the process."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ..delivery.lifecycle import before_drain
from .study_run import StudyLog

_logger = logging.getLogger(__name__)

# Seconds between two reports, and between two sets of pictures.
REPORT_EVERY, DRAW_EVERY = 30.0, 600.0
_TICK = 0.5
# A report takes at most this share of the time, however many trials there are.
MOST_SHARE = 0.02
# What is left of the end of a process is not spent on pictures if it is less.
_SECONDS_TO_DRAW = 20.0


class Reporter:
    """Reports on studies now and then, in a thread of its own, and a last time at the end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._thread: threading.Thread | None = None
        # In the order of their changes.
        self._unreported: dict[StudyLog, None] = {}
        self._undrawn: dict[StudyLog, None] = {}

    def changed(self, log: StudyLog) -> None:
        """A trial of the study has ended."""
        if log.run is None:
            return
        with self._lock:
            if self._pid != os.getpid():
                self._reset()
            self._unreported[log] = self._undrawn[log] = None
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._work, args=(self._pid,), name="mlflow-iap-study", daemon=True
                )
                self._thread.start()

    def report(self, *, with_pictures: bool, only: Sequence[StudyLog] | None = None) -> None:
        """Report on what has changed since it was reported, in pictures too where asked."""
        for logs, write in (
            (self._unreported, StudyLog.report),
            *([(self._undrawn, StudyLog.draw)] if with_pictures else []),
        ):
            for log in list(logs):
                if only is None or log in only:
                    logs.pop(log, None)
                    with _telling(log):
                        write(log)

    def at_end(self, seconds: float) -> None:
        """Report a last time, if there is time for it."""
        if self._pid == os.getpid() and seconds > 0:
            # Of many workers that end, none draws: it would be the same picture.
            is_worker = multiprocessing.parent_process() is not None
            self.report(with_pictures=seconds >= _SECONDS_TO_DRAW and not is_worker)
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._thread = None
        self._unreported, self._undrawn = {}, {}

    def _show_links(self) -> None:
        for log in list(self._undrawn):
            with _telling(log):
                log.show_link()

    def _work(self, pid: int) -> None:
        tick = threading.Event()
        report_at = time.monotonic() + REPORT_EVERY
        draw_at = time.monotonic() + DRAW_EVERY
        while threading.current_thread() is self._thread and pid == os.getpid():
            tick.wait(_TICK)
            self._show_links()
            began = time.monotonic()
            if began < report_at:
                continue
            is_time_to_draw = began >= draw_at
            self.report(with_pictures=is_time_to_draw)
            now = time.monotonic()
            rest = (now - began) / MOST_SHARE
            if is_time_to_draw:
                draw_at = now + max(DRAW_EVERY, rest)
                rest = 0.0
            report_at = now + max(REPORT_EVERY, rest)


@contextmanager
def _telling(log: StudyLog) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001 - no sweep ends because of its log
        _logger.warning("Study %r was not reported on: %s", log.study.study_name, error)
    finally:
        # A thread of ours may have made a connection of its own to the storage.
        getattr(log.study, "_storage").remove_session()  # noqa: B009


reporter = Reporter()
before_drain.append(reporter.at_end)
