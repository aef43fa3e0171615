"""Compares a run in MLflow with the trial that it may belong to."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from mlflow.entities import Run

from ..delivery.names import mlflow_name
from ..delivery.plain_values import as_texts
from ..iap.run_lookup import has_begun_at
from ..limits import MAX_PARAM_LENGTH
from ..tags import ENDED_TAG, FORMER_STATE_TAG, NAME_TAG, RUN_KEY_TAG, STATE_TAG
from .study_key import former_trial_key, trial_key
from .trial_run import INTERMEDIATE, STATUS, to_ms

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

# SQL databases store an infinite value as the largest number.
_LARGEST = 1.7976931348623157e308


class TrialsByRun:
    """Finds the trial of a run.

    Args:
        key: key of the study.
        trials: trials of the study.
    """

    def __init__(self, key: str, trials: Iterable[FrozenTrial]) -> None:
        self._trials = {trial_key(key, trial): trial for trial in trials}
        self._of_former_keys = {
            former_trial_key(key, trial.number): trial for trial in self._trials.values()
        }

    def trial_of(self, run: Run) -> FrozenTrial | None:
        """Return the trial that the run belongs to; None if it belongs to none of them.

        A run of version 0.1.0 has a key that trials of several studies share. It belongs to the
        trial with which it began, unless another trial was logged to it afterwards.
        """
        key = run.data.tags.get(RUN_KEY_TAG, "")
        trial = self._trials.get(key)
        former = self._of_former_keys.get(key)
        if trial is None and former is not None and has_begun_at(run, to_ms_of_start(former)):
            return None if _has_other_results(run, former) else former
        return trial


def is_complete(run: Run, trial: FrozenTrial) -> bool:
    """Whether the run has the results of its trial, and says how the trial ended."""
    return (
        _state(run) == trial.state.name
        and run.info.status == STATUS[trial.state.name]
        and ENDED_TAG not in run.data.tags  # its process died before it was complete
        and _has_params(run, trial)
        and _has_values(run, trial)
    )


def to_ms_of_start(trial: FrozenTrial) -> int:
    """Return when a trial began, in milliseconds since 1970, UTC; 0 if that is not known."""
    return to_ms(trial.datetime_start) or 0


def _state(run: Run) -> str | None:
    tags = run.data.tags
    return tags.get(STATE_TAG, tags.get(FORMER_STATE_TAG))


def _has_other_results(run: Run, trial: FrozenTrial) -> bool:
    if _state(run) is None:  # it has only what the user logged
        return False
    has_values = not run.data.metrics or _has_values(run, trial)
    return not (has_values and _has_params(run, trial, may_lack=True))


def _has_params(run: Run, trial: FrozenTrial, *, may_lack: bool = False) -> bool:
    """Whether the run has the trial's params, under their names or as ``suggested.NAME``."""
    tags = run.data.tags
    params = {
        tags.get(mlflow_name(f"{NAME_TAG}.{name}"), name): text
        for name, text in run.data.params.items()
    }
    for name, text in as_texts(trial.params, MAX_PARAM_LENGTH).items():
        logged = {params.get(each) for each in (name, f"suggested.{name}")} - {None}
        if text not in logged and (logged or not may_lack):
            return False
    return True


def _has_values(run: Run, trial: FrozenTrial) -> bool:
    """Whether the run has the trial's values, under any name.

    MLflow shows only a metric's last point. The user's own points may hide a value, if they have
    the same name and a later step.
    """
    latest: list[Any] = run.data._metric_objs
    if any(
        each.step > 0 and each.key != INTERMEDIATE and not each.key.startswith("system/")
        for each in latest
    ):
        return True
    return all(
        any(math.isclose(_finite(value), _finite(each.value)) for each in latest)
        for value in trial.values or ()
    )


def _finite(value: float) -> float:
    return min(max(value, -_LARGEST), _LARGEST)
