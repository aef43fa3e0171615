"""The thread that logs the state of studies: every 30 seconds, and when the process exits."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from ..delivery.lifecycle import LOCK, before_drain
from ..delivery.never_raising import never_raising
from .study_run import StudyRun

# Seconds between two reports, and between two sets of plots.
REPORT_EVERY, DRAW_EVERY = 30.0, 600.0
_TICK = 0.5  # seconds; a link is shown this soon
# Largest share of the time that either may take, no matter how many trials a study has.
MOST_SHARE = 0.02
# Plots are not drawn when the process exits with fewer seconds left than this.
_SECONDS_TO_DRAW = 20.0


class Reporter:
    """Reports on the studies that have changed, in a thread that the first change starts.

    Args:
        now: monotonic clock, in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._report_at = self._draw_at = 0.0
        self._reset()

    def changed(self, study_run: StudyRun) -> None:
        """Take note that a trial of the study has ended."""
        if study_run.writer is None:
            return
        with LOCK:
            if self._pid != os.getpid():
                self._reset()
            self._unreported[study_run] = self._undrawn[study_run] = None
            if self._thread is None:
                self._report_at = self._now() + REPORT_EVERY
                self._draw_at = self._now() + DRAW_EVERY
                self._start()

    def report(self, only: Sequence[StudyRun] | None = None) -> None:
        """Report on those studies, by default all, that have changed since their last report."""
        for study_run in _taken(self._unreported, only):
            _write(study_run, study_run.report)

    def draw(self, only: Sequence[StudyRun] | None = None) -> None:
        """Draw those studies, by default all, that have changed since they were drawn."""
        for study_run in _taken(self._undrawn, only):
            _write(study_run, study_run.draw)

    def tick(self) -> None:
        """Show the links that have become known; report and draw when it is time to."""
        for study_run in list(self._undrawn):
            _write(study_run, study_run.show_link)
        if self._now() >= self._report_at:
            self._report_at = self._next_time(self.report, REPORT_EVERY)
        if self._now() >= self._draw_at:
            self._draw_at = self._next_time(self.draw, DRAW_EVERY)

    def at_exit(self, seconds: float) -> None:
        """Report a last time, if any of the ``seconds`` before the exit are left."""
        if self._pid == os.getpid() and seconds > 0:
            self.report()
            # The workers of a sweep would all draw the same plots.
            is_worker = multiprocessing.parent_process() is not None
            if seconds >= _SECONDS_TO_DRAW and not is_worker:
                self.draw()
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._thread: threading.Thread | None = None
        # In the order of their changes.
        self._unreported: dict[StudyRun, None] = {}
        self._undrawn: dict[StudyRun, None] = {}

    def _next_time(self, work: Callable[[], None], every: float) -> float:
        began = self._now()
        work()
        now = self._now()
        return now + max(every, (now - began) / MOST_SHARE)

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._work, name="mlflow-iap-study", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        pause = threading.Event()
        while not pause.wait(_TICK) and threading.current_thread() is self._thread:
            self.tick()


def _taken(study_runs: dict[StudyRun, None], only: Sequence[StudyRun] | None) -> Iterator[StudyRun]:
    for study_run in list(study_runs):
        if only is None or study_run in only:
            study_runs.pop(study_run, None)
            yield study_run


def _write(study_run: StudyRun, write: Callable[[], None]) -> None:
    study = study_run.study
    with never_raising(f"the state of study {study.study_name!r}"):
        try:
            write()
        finally:
            # This thread may have opened a connection of its own to the storage.
            getattr(study, "_storage").remove_session()  # noqa: B009


reporter = Reporter()
before_drain.append(reporter.at_exit)
