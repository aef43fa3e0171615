"""The MLflow run of an Optuna study, which all processes of the study share."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..delivery.progress import show_link
from ..delivery.run_creation import Mode
from ..delivery.run_writer import RunWriter
from ..tags import STUDY_TAG
from .plots import PlotProcess
from .study_key import is_shared
from .trial_run import constraints_of, metric_names, to_ms

if TYPE_CHECKING:
    import optuna
    from mlflow import MlflowClient
    from optuna.trial import FrozenTrial

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
        self.logged: set[int] = set()  # numbers of trials
        self._in_curve: set[int] = set()
        self._lock = threading.Lock()
        self.link: str | None = None
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
        return [t for t in trials if t.state.is_finished() and t.number not in self.logged]

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
            self.writer.reopen()
            self.writer.finish_at_exit("FINISHED")  # also if it was closed before
        finally:
            self._lock.release()

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
            if trial.number not in self._in_curve:
                self._in_curve.add(trial.number)
                value = {f"best_{name}_so_far": best.value}
                moment = to_ms(trial.datetime_complete)
                writer.log_metrics(value, step=trial.number, timestamp=moment)
        if best is None:
            return {}
        params = {f"best_params.{param}": value for param, value in best.params.items()}
        writer.set_tags({"best_trial": best.number, **params})
        return {f"best_{name}": best.value}

    def draw(self, process: PlotProcess, time_left: Callable[[], float]) -> None:
        """Log the plots and the table of trials.

        Args:
            process: draws them.
            time_left: returns the seconds that are left; called repeatedly.

        Raises:
            OutOfTime: no time is left, and nothing was logged.
        """
        if self.writer is not None:
            for path in sorted(process.draw(self.study, self.names, time_left).iterdir()):
                self.writer.log_artifact(path, "study")

    def show_link(self) -> None:
        """Print the URL of the run, once, as soon as it is known."""
        if self.writer is None or self.link is not None:
            return
        self.link = self.writer.url
        if self.link is not None:
            show_link(f"Study {self.study.study_name}", self.link)

    def counts(self) -> dict[str, int]:
        """Number of trials in each state that occurs."""
        states = Counter(trial.state.name for trial in self.study.get_trials(deepcopy=False))
        return {state: states[state] for state in _STATES if states[state]}

    def best(self) -> str:
        """Describe the best trial, or the Pareto front; empty if there is none yet."""
        trials = [trial for trial in self.study.best_trials if trial.values]
        if len(self.directions) > 1 or not trials:
            return f"{len(trials)} trials on the Pareto front" if trials else ""
        return f"trial {trials[0].number}: {self.names[0]} {trials[0].value:g}"

    def close(self) -> None:
        """End the run. The next report on the study reopens it."""
        if self.writer is not None:
            self.writer.finish()


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
