"""The MLflow run of an Optuna study, which all processes of the study share."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..delivery.progress import show_link
from ..delivery.run_creation import Mode
from ..delivery.run_writer import RunWriter
from ..plurals import counted
from ..tags import DESCRIPTION_TAG, STUDY_TAG
from .plot_process import PlotProcess
from .study_key import TrialId, is_shared
from .study_page import description, view_tags
from .trial_run import constraints_of, metric_names, to_ms

if TYPE_CHECKING:
    import optuna
    from mlflow import MlflowClient
    from optuna.trial import FrozenTrial

_logger = logging.getLogger("mlflow_iap_callbacks")

_STATES = ("COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING")
_SECONDS_TO_WAIT = 5.0  # for a report in another thread


class StudyRun:
    """A study that has a trial, and its run.

    ``experiment``, ``metric_name`` and ``tags`` are for the trials' runs too. Without ``has_run``,
    the study has no run of its own, and ``writer`` is None.
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
        # How the process that runs a trial creates its run.
        self.claim = Mode.CLAIMED if self.is_shared else Mode.NEW
        self.directions = [direction.name for direction in study.directions]
        self.names = metric_names(metric_name, study)
        self.joined: object = None  # what the comparer has joined it in
        self.logged: set[TrialId] = set()
        self._in_curve: set[TrialId] = set()
        self._lock = threading.Lock()
        self.link: str | None = None
        self._given_description = tags.get(DESCRIPTION_TAG)
        self._description = ""
        self._view: dict[str, str] = {}
        # Names of the files in its artifacts, and sentences on what is missing there.
        self._files: set[str] = set()
        self._problems: dict[str, None] = {}
        self.writer: RunWriter | None = None
        if has_run:
            self.writer = RunWriter(
                client,
                experiment,
                run_name=study.study_name,
                tags={**tags, **_tags_of(study), STUDY_TAG: key},
                key=key,
                mode=Mode.SHARED if self.is_shared else Mode.RESUMED,
            )
            self.writer.finish_at_exit("FINISHED")

    def unlogged(self) -> list[FrozenTrial]:
        """Trials that have ended, and that this process has neither logged nor found in MLflow."""
        trials = self.study.get_trials(deepcopy=False)
        return [t for t in trials if t.state.is_finished() and TrialId.of(t) not in self.logged]

    def report(self) -> None:
        """Log the current state of the study."""
        # In a forked process the lock may be held forever, by a thread that only the parent has.
        if self.writer is None or not self._lock.acquire(timeout=_SECONDS_TO_WAIT):
            return
        try:
            trials = self.study.get_trials(deepcopy=False)
            finished = [trial for trial in trials if trial.state.is_finished()]
            counts = Counter(trial.state.name for trial in trials)
            metrics = {f"trials.{state.lower()}": float(counts[state]) for state in _STATES}
            if len(self.directions) == 1:
                metrics |= self._log_best_so_far(self.writer, finished)
            else:
                numbers = [trial.number for trial in self.study.best_trials]
                metrics["trials.pareto"] = len(numbers)
                self.writer.set_tags({"best_trials": numbers})
            self.writer.log_metrics(metrics, step=len(finished))
            self.writer.set_tags(self.study.user_attrs)
            self._describe(self.writer, trials)
            self._share_view(self.writer, trials)
            self.reopen()
        finally:
            self._lock.release()

    def reopen(self) -> None:
        """Set the run to RUNNING again if it has ended; it ends when the process exits."""
        if self.writer is not None:
            self.writer.reopen()
            self.writer.finish_at_exit("FINISHED")

    def _describe(self, writer: RunWriter, trials: Sequence[FrozenTrial]) -> None:
        text = description(
            study_name=self.study.study_name,
            names=self.names,
            directions=self.directions,
            counts=_counts(trials),
            best=self._best_trials(trials),
            key=self.key,
            run_id=writer.known_id,
            experiment_id=writer.known_experiment_id,
            files=self._files,
            problems=self._problems,
        )
        if self._given_description is not None:
            text = f"{self._given_description}\n\n{text}"
        # Set only when it changes, because somebody may have edited it meanwhile.
        if text != self._description:
            self._description = text
            writer.set_tags({DESCRIPTION_TAG: text})

    def _share_view(self, writer: RunWriter, trials: Sequence[FrozenTrial]) -> None:
        params = dict.fromkeys(name for trial in trials for name in trial.params)
        is_maximized = self.directions[0] == "MAXIMIZE"
        view = view_tags(self.key, self.names, params, is_maximized=is_maximized)
        if view != self._view:
            self._view = view
            writer.set_experiment_tags(view)

    def _best_trials(self, trials: Sequence[FrozenTrial]) -> Sequence[FrozenTrial]:
        """The best trial, or those on the Pareto front; none if there is none yet."""
        if len(self.directions) > 1:
            return [trial for trial in self.study.best_trials if trial.values]
        sign = -1 if self.directions[0] == "MAXIMIZE" else 1
        feasible = _feasible_by_time(trials)
        return [min(feasible, key=lambda trial: sign * trial.value)] if feasible else []

    def _log_best_so_far(
        self, writer: RunWriter, finished: Sequence[FrozenTrial]
    ) -> dict[str, float]:
        """Log the best value after each complete trial, with the trial's number as the step."""
        best: Any = None
        sign = -1 if self.directions[0] == "MAXIMIZE" else 1
        name = self.names[0]
        for trial in _feasible_by_time(finished):
            if best is None or sign * trial.value < sign * best.value:
                best = trial
            if TrialId.of(trial) not in self._in_curve:
                self._in_curve.add(TrialId.of(trial))
                value = {f"best_{name}_so_far": best.value}
                moment = to_ms(trial.datetime_complete)
                writer.log_metrics(value, step=trial.number, timestamp=moment)
        if best is None:
            return {}
        params = {f"best_params.{param}": value for param, value in best.params.items()}
        writer.set_tags({"best_trial": best.number, **params})
        return {f"best_{name}": best.value}

    def draw(
        self, process: PlotProcess, time_left: Callable[[], float], *, is_quick: bool = False
    ) -> None:
        """Log the plots, the table of trials and the study itself.

        Args:
            process: draws them.
            time_left: returns the seconds that are left; called repeatedly.
            is_quick: whether to draw only the plots that take little time.

        Raises:
            OutOfTime: no time is left, and only some were logged.
        """
        if self.writer is None:
            return
        trials = self.study.get_trials(deepcopy=False)  # once, because that may take a while
        for found in process.draw(self.study, self.names, time_left, is_quick=is_quick):
            if isinstance(found, Path):
                self.writer.log_artifact(found, "study")
                self._files.add(found.name)
            elif found not in self._problems:
                self._problems[found] = None
                _logger.warning("The files of study %r: %s", self.study.study_name, found)
            # Each time, because the process may end before everything is drawn.
            self._describe(self.writer, trials)

    def show_link(self) -> None:
        """Print the URL of the run, once, as soon as it is known."""
        if self.writer is None or self.link is not None:
            return
        self.link = self.writer.url
        if self.link is not None:
            show_link(f"Study {self.study.study_name}", self.link)

    def counts(self) -> dict[str, int]:
        """Number of trials in each state that occurs."""
        return _counts(self.study.get_trials(deepcopy=False))

    def best(self) -> str:
        """Describe the best trial, or the Pareto front; empty if there is none yet."""
        trials = self._best_trials(self.study.get_trials(deepcopy=False))
        if len(self.directions) > 1 or not trials:
            return f"{counted(len(trials), 'trial')} on the Pareto front" if trials else ""
        return f"trial {trials[0].number}: {self.names[0]} {trials[0].value:g}"

    def close(self) -> None:
        """End the run. The next report on the study reopens it."""
        if self.writer is not None:
            self.writer.finish()


def _counts(trials: Sequence[FrozenTrial]) -> dict[str, int]:
    states = Counter(trial.state.name for trial in trials)
    return {state: states[state] for state in _STATES if states[state]}


def _tags_of(study: optuna.Study) -> dict[str, Any]:
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
    """URL of a storage without its secrets, or its kind."""
    inner = getattr(storage, "_backend", storage)
    url = getattr(inner, "url", None)
    if not isinstance(url, str):
        return type(inner).__name__
    from sqlalchemy.engine import make_url

    return make_url(url).set(query={}).render_as_string(hide_password=True)


def _feasible_by_time(trials: Sequence[FrozenTrial]) -> list[Any]:
    feasible = [
        trial
        for trial in trials
        if trial.state.name == "COMPLETE" and all(v <= 0 for v in constraints_of(trial).values())
    ]
    return sorted(feasible, key=lambda trial: (to_ms(trial.datetime_complete) or 0, trial.number))
