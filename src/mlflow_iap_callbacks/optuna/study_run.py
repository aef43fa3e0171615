"""An Optuna study as one MLflow run, whoever works on it: the parent of its trials' runs."""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import requests
from mlflow.exceptions import MlflowException
from tqdm import tqdm

from ..delivery.lifecycle import before_drain, lasting_uri
from ..delivery.run_creation import Start
from ..delivery.run_writer import RunWriter
from .plots import draw
from .trials import STUDY_TAG, Naming, constraints_of, is_shared, to_ms

if TYPE_CHECKING:
    import optuna
    from mlflow import MlflowClient
    from optuna.trial import FrozenTrial

_logger = logging.getLogger(__name__)

_STATES = ("COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING")
# Seconds between two reports, and between two sets of pictures.
REPORT_EVERY, DRAW_EVERY = 30.0, 600.0
_TICK = 0.5
# A report takes at most this share of the time, however many trials there are.
MOST_SHARE = 0.02
# What is left of the end of a process is not spent on pictures if it is less.
_SECONDS_TO_DRAW = 20.0


class StudyLog:
    """What is known of a study, and its run.

    Args:
        study: the study; it has a trial.
        key: by which it is known.
        client: to deliver with.
        experiment: of the runs.
        metric_name: as the callback's.
        tags: of the run, beside its own.
        has_run: whether the study has a run.
    """

    def __init__(
        self,
        study: optuna.Study,
        key: str,
        client: MlflowClient,
        experiment: str,
        *,
        metric_name: str | Sequence[str] | None,
        tags: dict[str, Any],
        has_run: bool,
    ) -> None:
        self.study = study
        self.key = key
        self.experiment = experiment
        self.is_shared = is_shared(study)
        # How a trial's run is begun by the process that runs the trial.
        self.claim = Start.CLAIMED if self.is_shared else Start.NEW
        self.directions = [direction.name for direction in study.directions]
        self.naming = Naming(metric_name, study.metric_names)
        self.logged: set[int] = set()  # numbers of trials
        self._in_curve: set[int] = set()
        self._lock = threading.Lock()
        self.link: str | None = None
        self.run: RunWriter | None = None
        if has_run:
            self.run = RunWriter(
                client,
                experiment,
                run_name=study.study_name,
                tags={**tags, **_about(study), STUDY_TAG: self.key},
                key=self.key,
                mode=Start.SHARED if self.is_shared else Start.RESUMED,
            )
            self.run.finish_at_exit("FINISHED")

    def report(self) -> None:
        """Log the study's state as its storage has it."""
        # Another thread may be at it; in a fork it may have been.
        if self.run is None or not self._lock.acquire(blocking=False):
            return
        try:
            trials = self.study.get_trials(deepcopy=False)
            finished = [trial for trial in trials if trial.state.is_finished()]
            counts = Counter(trial.state.name for trial in trials)
            metrics = {f"trials.{state.lower()}": float(counts[state]) for state in _STATES}
            if len(self.directions) == 1:
                metrics |= self._log_curve(finished)
            else:
                numbers = [trial.number for trial in self.study.best_trials]
                metrics["trials.pareto"] = len(numbers)
                self.run.set_tags({"best_trials": numbers})
            self.run.log_metrics(metrics, step=len(finished))
            self.run.set_tags(self.study.user_attrs)
            self.run.reopen()
            self.run.finish_at_exit("FINISHED")  # where it is one that was closed before, too
        finally:
            self._lock.release()

    def _log_curve(self, finished: Sequence[FrozenTrial]) -> dict[str, float]:
        """A point for each complete trial: the best value at the time, its step the number."""
        assert self.run is not None  # noqa: S101
        best: FrozenTrial | None = None
        names = self.naming.of(1)[0]
        for trial in _in_time(finished):
            if best is None or _is_better(trial, best, self.directions[0]):
                best = trial
            if trial.number not in self._in_curve:
                self._in_curve.add(trial.number)
                value = {f"best_{names}_so_far": best.value}
                moment = to_ms(trial.datetime_complete)
                self.run.log_metrics(value, step=trial.number, timestamp=moment)  # type: ignore[arg-type]
        if best is None:
            return {}
        params = {f"best_params.{name}": value for name, value in best.params.items()}
        self.run.set_tags({"best_trial": best.number, **params})
        return {f"best_{names}": best.value}  # type: ignore[dict-item]

    def draw(self) -> None:
        """Log the pictures and the table of trials."""
        if self.run is not None:
            with draw(self.study, self.naming) as folder:
                for path in sorted(folder.iterdir()):
                    self.run.log_artifact(path, "study")

    def show_link(self) -> None:
        """Tell once where the run is, if that is known."""
        if self.run is None or self.link is not None:
            return
        uri, run_id = self.run.client.tracking_uri, self.run.known_id
        if run_id is None or not uri.startswith("http"):
            return
        try:
            experiment = self.run.client.get_run(run_id).info.experiment_id
        except (MlflowException, requests.RequestException):
            return  # the sender tells what is the matter
        self.link = f"{lasting_uri(uri)}/#/experiments/{experiment}/runs/{run_id}"
        # Above the bar that Optuna may show.
        tqdm.write(f"Study {self.study.study_name}: {self.link}", file=sys.stderr)

    def counts(self) -> dict[str, int]:
        """Trials by state."""
        states = Counter(trial.state.name for trial in self.study.get_trials(deepcopy=False))
        return {state: states[state] for state in _STATES if states[state]}

    def best(self) -> str:
        """The best trial or trials, in words; empty where there is none yet."""
        trials = [trial for trial in self.study.best_trials if trial.values]
        if len(self.directions) > 1 or not trials:
            return f"{len(trials)} trials on the Pareto front" if trials else ""
        return f"trial {trials[0].number}: {self.naming.of(1)[0]} {trials[0].value:g}"

    def close(self) -> None:
        """End the run; it is opened again by whoever goes on with the study."""
        if self.run is not None:
            self.run.finish()


class _Reporter:
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


reporter = _Reporter()
before_drain.append(reporter.at_end)


def _about(study: optuna.Study) -> dict[str, Any]:
    import optuna

    directions = [direction.name for direction in study.directions]
    return {
        "study_name": study.study_name,
        "direction": directions[0] if len(directions) == 1 else directions,
        "sampler": type(study.sampler).__name__,
        "pruner": type(study.pruner).__name__,
        "storage": _described(getattr(study, "_storage", None)),
        "optuna_version": optuna.__version__,
    }


def _described(storage: Any) -> str:
    """Its kind, and its URL without what may be secret."""
    inner = getattr(storage, "_backend", storage)
    url = getattr(inner, "url", None)
    if not isinstance(url, str):
        return type(inner).__name__
    from sqlalchemy.engine import make_url

    return make_url(url).set(query={}).render_as_string(hide_password=True)


def _in_time(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    complete = [
        trial
        for trial in trials
        if trial.state.name == "COMPLETE" and all(v <= 0 for v in constraints_of(trial).values())
    ]
    return sorted(complete, key=lambda trial: (to_ms(trial.datetime_complete) or 0, trial.number))


def _is_better(trial: FrozenTrial, best: FrozenTrial, direction: str) -> bool:
    value, other = trial.value, best.value
    if value is None or other is None or math.isnan(value):
        return False
    return value > other if direction == "MAXIMIZE" else value < other
