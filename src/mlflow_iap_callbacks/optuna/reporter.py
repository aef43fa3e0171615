"""The thread that logs the state of studies: every 30 seconds, and when the process exits."""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from functools import partial

from ..delivery.closing import Deadline
from ..delivery.lifecycle import LOCK, draw_at_exit, end_at_exit
from ..delivery.never_raising import never_raising
from ..plurals import counted
from .background_thread import BackgroundThread
from .plot_process import OutOfTime, PlotProcess
from .storage_errors import reading
from .study_run import StudyRun

_logger = logging.getLogger("mlflow_iap_callbacks")

# Seconds between two reports, between two drawings of the quick plots, and of all plots.
REPORT_EVERY, DRAW_QUICK_EVERY, DRAW_EVERY = 30.0, 60.0, 600.0
# Largest share of the time that each of them may take, no matter how many trials a study has.
MOST_SHARE = 0.02
# Drawing and sending plots takes a few seconds; with less time left, none are drawn.
_SECONDS_TO_DRAW, _SECONDS_TO_SEND_PLOTS = 7.0, 3.0
_MOST_SECONDS_TO_DRAW = 300.0


class Reporter(BackgroundThread):
    """Reports on the studies that have changed, in a thread that the first change starts.

    Args:
        now: monotonic clock, in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._report_at = self._draw_quick_at = self._draw_at = 0.0
        super().__init__("mlflow-iap-study", now)

    def changed(self, study_run: StudyRun) -> None:
        """Note that a trial of the study has ended."""
        if study_run.writer is None:
            return
        with LOCK:
            if self._pid != os.getpid():
                self._reset()
            for study_runs in (self._unreported, self._unsketched, self._undrawn):
                study_runs.pop(study_run, None)
                study_runs[study_run] = None
            if self._thread is None:
                self._report_at = self._now() + REPORT_EVERY
                self._draw_quick_at = self._now() + DRAW_QUICK_EVERY
                self._draw_at = self._now() + DRAW_EVERY
                self._start()

    def report(self, only: Sequence[StudyRun] | None = None) -> None:
        """Report on all studies, or only some, that have changed since their last report."""
        for study_run in _chosen(self._unreported, only):
            self._unreported.pop(study_run, None)
            _write(study_run, study_run.report)

    def tick(self) -> None:
        """Print new links; report and draw if it is time."""
        for study_run in list(self._undrawn):
            _write(study_run, study_run.show_link)
        if self._now() >= self._report_at:
            self._report_at = self._next_time(self.report, REPORT_EVERY)
        if self._now() >= self._draw_at:
            self._draw_at = self._next_time(self._draw, DRAW_EVERY)
        if self._now() >= self._draw_quick_at:
            draw = partial(self._draw, is_quick=True)
            self._draw_quick_at = self._next_time(draw, DRAW_QUICK_EVERY)

    def end(self, deadline: Deadline, only: Sequence[StudyRun] | None = None) -> None:
        """Report once more, in at most half of the time that is left."""
        if self._pid != os.getpid():
            self._reset()
        if _chosen(self._unreported, only):
            self._do_in_thread(partial(self.report, only), deadline, deadline.left / 2)

    def draw_in_time(self, deadline: Deadline, only: Sequence[StudyRun] | None = None) -> int:
        """Draw as many of the changed studies as there is time for.

        Returns:
            How many were not drawn.
        """
        # The workers of a sweep would all draw the same plots.
        if multiprocessing.parent_process() is not None:
            return 0

        def time_left() -> float:
            return deadline.left - _SECONDS_TO_SEND_PLOTS

        if _chosen(self._undrawn, only):
            draw = partial(self._draw, only, time_left)
            self._do_in_thread(draw, deadline, _SECONDS_TO_SEND_PLOTS)
        return len(_chosen(self._undrawn, only))

    def draw_at_close(self, deadline: Deadline, only: Sequence[StudyRun]) -> None:
        """Draw as many of these studies as there is time for, and report how many are left."""
        undrawn = self.draw_in_time(deadline, only)
        if undrawn:
            _logger.warning(
                "There was no time to draw all plots of %s. They are drawn when the callback is "
                "closed again or the process exits.",
                counted(undrawn, "study", "studies"),
            )

    def draw_at_exit(self, deadline: Deadline) -> None:
        """Draw as many studies as there is time for, and report how many are left."""
        undrawn = self.draw_in_time(deadline)
        if undrawn:
            _logger.warning(
                "The plots of %s were not updated, because the process is exiting. To give them "
                "more time, call the callback's `close()`.",
                counted(undrawn, "study", "studies"),
            )
        self._reset()

    def _reset(self) -> None:
        super()._reset()
        # In the order of their last changes.
        self._unreported: dict[StudyRun, None] = {}
        self._unsketched: dict[StudyRun, None] = {}  # without even the quick plots
        self._undrawn: dict[StudyRun, None] = {}

    def _draw(
        self,
        only: Sequence[StudyRun] | None = None,
        time_left: Callable[[], float] = lambda: math.inf,
        *,
        is_quick: bool = False,
    ) -> None:
        waiting = self._unsketched if is_quick else self._undrawn
        longest = Deadline(self._now, _MOST_SECONDS_TO_DRAW)

        def seconds() -> float:
            # Another thread may be waiting for this one.
            return 0.0 if self._requests else min(time_left(), longest.left)

        def draw(study_run: StudyRun) -> None:
            try:
                study_run.draw(process, seconds, is_quick=is_quick)
            except OutOfTime:
                waiting.setdefault(study_run)

        # The disk may have no room for its folder.
        with never_raising("the plots of studies"), PlotProcess() as process:
            for study_run in _chosen(waiting, only):
                if seconds() < _SECONDS_TO_DRAW:
                    return
                waiting.pop(study_run, None)
                self._unsketched.pop(study_run, None)
                _write(study_run, partial(draw, study_run))

    def _next_time(self, work: Callable[[], None], every: float) -> float:
        began = self._now()
        work()
        now = self._now()
        return now + max(every, (now - began) / MOST_SHARE)


def _chosen(
    study_runs: dict[StudyRun, None], only: Sequence[StudyRun] | None
) -> Sequence[StudyRun]:
    """The chosen studies, starting with the one that changed last."""
    return [each for each in reversed(list(study_runs)) if only is None or each in only]


def _write(study_run: StudyRun, write: Callable[[], None]) -> None:
    with reading(study_run.study):
        write()


reporter = Reporter()
end_at_exit.append(reporter.end)
draw_at_exit.append(reporter.draw_at_exit)
