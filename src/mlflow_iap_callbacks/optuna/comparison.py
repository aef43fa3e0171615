"""Compares studies with MLflow in the background, and logs the trials that no callback saw.

A process may have died between the storage's commit and the callback. So each process compares a
study with MLflow when it joins the study, and again at the end.
"""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakMethod

from ..delivery.clock import Clock
from ..delivery.closing import Deadline
from ..delivery.lifecycle import LOCK, draw_at_exit, sender_for
from ..plurals import counted
from .background_thread import BackgroundThread
from .study_key import TrialId
from .study_run import StudyRun
from .sync import SECONDS_FOR_OWN_PROCESS, Lacking, compare, has_old_run, own_process_until

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from optuna.trial import FrozenTrial

_logger = logging.getLogger("mlflow_iap_callbacks")

# Pages of 1,000 runs, newest first. Each is 4 MB, and costs half a second of CPU time here.
_MOST_PAGES = 3
# A killed process loses a few trials at most. A study that lacks this many began without the
# callback, and each of its workers would log all of them.
MOST_TRIALS = 1000
_SECONDS_AFTER_AN_ERROR = 60.0
_LONGEST_PAUSE = 4.0

# Logs a trial that MLflow lacks, but not before a time in seconds since 1970.
Log = Callable[[StudyRun, Lacking, float], None]


@dataclass
class _Joined:
    """A study that this process has joined.

    Args:
        client: a client of its server.
        log: returns the method that logs a trial; None if the callback is gone.
        since: when its storage was first read.
        before: unlogged trials that had ended by then; None if it has not been read yet.
        due: when these are compared.
        has_old: whether another callback has logged its first trials; None if not looked up.
        lacks_too_many: whether so many trials are missing that they are left to ``sync``.
    """

    client: MlflowClient
    log: Callable[[], Log | None]
    since: float = 0.0
    before: dict[TrialId, FrozenTrial] | None = None
    due: float = -math.inf
    has_old: bool | None = None
    lacks_too_many: bool = False


class Comparer(BackgroundThread):
    """Compares the studies that this process joins, in a thread that the first study starts.

    Args:
        clock: tells the time.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or Clock()
        super().__init__("mlflow-iap-comparison", self._clock.monotonic)

    def joined(self, study_run: StudyRun, client: MlflowClient, log: Log) -> None:
        """Note that this process works on the study.

        Args:
            study_run: the study.
            client: a client of its server.
            log: a method that logs a trial; for a study in memory, its object is not kept alive.
        """
        if study_run.joined is self._shared and self._pid == os.getpid():
            return  # nearly always, because this is called for each trial
        with LOCK:
            if self._pid != os.getpid():
                self._reset()
            study_run.joined = self._shared
            if study_run.is_shared:
                self._shared[study_run] = _Joined(client, lambda: log)
            else:
                self._in_memory[study_run] = _Joined(client, WeakMethod(log))
            if self._thread is None:
                self._start()
            self._wake.set()  # at once: trials that end later may be this process's own

    def tick(self) -> None:
        """Read the ended trials of newly joined studies, and compare them 20 seconds later.

        By then the processes that ran these trials have logged them, if they are alive.
        """
        for study_run, joined in list(self._shared.items()):
            if joined.due <= self._now():
                _quietly(study_run, partial(self._look_or_compare, study_run, joined))

    def compare_in_time(self, deadline: Deadline, only: Sequence[StudyRun] | None = None) -> None:
        """Compare once more, for up to half of the time that is left."""
        if self._pid != os.getpid():
            self._reset()
        seconds = deadline.left / 2
        in_memory = [ref() for ref in self._in_memory.keyrefs()]
        study_runs = [
            study_run
            for study_run in [*self._shared, *filter(None, in_memory)]
            if only is None or study_run in only
        ]

        def time_left() -> float:
            return deadline.left - seconds

        def compare_all() -> None:
            for study_run in study_runs:
                joined = self._shared.get(study_run) or self._in_memory.get(study_run)
                if joined is not None and time_left() > 0:
                    _quietly(study_run, partial(self._compare_last, study_run, joined, time_left))

        if study_runs:
            self._do_in_thread(compare_all, deadline, seconds)

    def compare_at_exit(self, deadline: Deadline) -> None:
        """Compare all studies once more."""
        self.compare_in_time(deadline)
        self._reset()

    def _reset(self) -> None:
        super()._reset()
        self._shared: dict[StudyRun, _Joined] = {}
        # Studies in memory may be large, and are not kept alive here.
        self._in_memory: WeakKeyDictionary[StudyRun, _Joined] = WeakKeyDictionary()

    def _look_or_compare(self, study_run: StudyRun, joined: _Joined) -> None:
        joined.due = self._now() + SECONDS_FOR_OWN_PROCESS
        if joined.before is None:
            joined.before = {TrialId.of(trial): trial for trial in study_run.unlogged()}
            joined.since = self._now()
        elif not sender_for(joined.client).is_away:
            joined.due = self._now() + _SECONDS_AFTER_AN_ERROR
            self._compare(study_run, joined, list(joined.before.values()))
            joined.before = {}
        if not joined.before:
            joined.due = math.inf

    def _compare_last(
        self, study_run: StudyRun, joined: _Joined, time_left: Callable[[], float]
    ) -> None:
        trials, now = study_run.unlogged(), self._clock.time()
        if study_run.is_shared:
            fresh = {TrialId.of(t) for t in trials if own_process_until(t, now) > now}
            # Trials that ended just now, after joining, are left to their own processes.
            others = fresh - (joined.before or {}).keys()
            trials = [trial for trial in trials if TrialId.of(trial) not in others]
        self._compare(study_run, joined, trials, time_left)
        joined.before, joined.due = {}, math.inf

    def _compare(
        self,
        study_run: StudyRun,
        joined: _Joined,
        trials: Sequence[FrozenTrial],
        time_left: Callable[[], float] = lambda: math.inf,
    ) -> None:
        log = joined.log()
        trials = [trial for trial in trials if TrialId.of(trial) not in study_run.logged]
        pause = 1.0
        while trials and log is not None and not joined.lacks_too_many and time_left() > 0:
            found = compare(
                joined.client,
                study_run.experiment,
                study_run.key,
                trials,
                is_enough=lambda pages: pages >= _MOST_PAGES or time_left() <= 0,
            )
            study_run.logged |= found.logged
            lacking_trials = _without_old(study_run, joined, found.lacking)
            joined.lacks_too_many = len(lacking_trials) > MOST_TRIALS
            if joined.lacks_too_many:
                _warn_of_too_many(study_run, len(lacking_trials))
                return
            now = self._clock.time()
            # 20 seconds after the first read, whatever the clocks of other machines say.
            at_most = now + joined.since + SECONDS_FOR_OWN_PROCESS - self._now()
            trials = []
            for lacking in lacking_trials:
                until = min(own_process_until(lacking.trial, now), at_most)
                if not study_run.is_shared or until <= now:
                    log(study_run, lacking, 0.0)
                elif time_left() <= pause:
                    log(study_run, lacking, until)
                else:
                    trials.append(lacking.trial)
            if trials:  # living processes may be delivering them right now
                self._pause(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _pause(self, seconds: float) -> None:
        threading.Event().wait(seconds)


def _without_old(
    study_run: StudyRun, joined: _Joined, found: Sequence[Lacking]
) -> Sequence[Lacking]:
    """Leave out trials that another callback logged before this one replaced it."""
    if joined.has_old is None and found:
        oldest = min((lacking.trial for lacking in found), key=lambda trial: trial.number)
        joined.has_old = has_old_run(joined.client, study_run.experiment, oldest)
    first = min((number for number, _ in study_run.logged), default=math.inf)
    return [each for each in found if not joined.has_old or each.trial.number >= first]


def _warn_of_too_many(study_run: StudyRun, count: int) -> None:
    _logger.warning(
        "MLflow lacks %s of study %r. `callback.sync(study)` or `mlflow-iap sync --storage URL` "
        "logs what is missing.",
        counted(count, "ended trial"),
        study_run.study.study_name,
    )


def _quietly(study_run: StudyRun, work: Callable[[], None]) -> None:
    """Do work, and ignore errors: another process or ``sync`` can do it later.

    If the storage or the server does not respond, the code that needs it warns.
    """
    storage: Any = getattr(study_run.study, "_storage")  # noqa: B009
    try:
        work()
    except Exception as error:  # noqa: BLE001
        _logger.debug("Study %r was not compared: %s", study_run.study.study_name, error)
    finally:
        storage.remove_session()  # this thread may have opened one of its own


comparer = Comparer()
draw_at_exit.insert(0, comparer.compare_at_exit)  # before plots take the rest of the time
