"""An Optuna study as one MLflow run, whoever works on it: the parent of its trials' runs."""

from __future__ import annotations

import logging
import math
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import requests
from mlflow.exceptions import MlflowException
from tqdm import tqdm

from ..delivery.run_creation import Mode
from ..delivery.run_writer import RunWriter
from ..delivery.server_uri import server_uri
from ..tags import STUDY_TAG
from .plots import draw
from .trials import Naming, constraints_of, is_shared, to_ms

if TYPE_CHECKING:
    import optuna
    from mlflow import MlflowClient
    from optuna.trial import FrozenTrial

_logger = logging.getLogger(__name__)

_STATES = ("COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING")


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
        self.claim = Mode.CLAIMED if self.is_shared else Mode.NEW
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
                mode=Mode.SHARED if self.is_shared else Mode.RESUMED,
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
        self.link = f"{server_uri(uri)}/#/experiments/{experiment}/runs/{run_id}"
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
