"""Finds the ended trials of a study that are missing in MLflow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from mlflow.entities import Run, ViewType

from ..delivery.run_creation import CLAIM_SECONDS
from ..tags import ENDED_TAG, STATE_TAG, STUDY_TAG, TRIAL_TAG
from .study_run import StudyRun
from .trial_run import STATUS, to_ms

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from optuna.trial import FrozenTrial

_SECONDS_FOR_OWN_PROCESS = CLAIM_SECONDS + 15.0


def missing_trials(
    client: MlflowClient, study_run: StudyRun, trials: Iterable[FrozenTrial]
) -> Iterator[FrozenTrial]:
    """Yield the ended trials that have no run, or whose run does not say how they ended.

    Raises:
        MlflowException: the runs in MLflow cannot be read.
    """
    found = _runs_by_trial(client, study_run)
    for trial in trials:
        if (
            trial.state.is_finished()
            and trial.number not in study_run.logged
            and not _is_logged(found.get(trial.number), trial)
        ):
            yield trial


def own_process_until(trial: FrozenTrial) -> float:
    """Return the time until which a trial's own process creates its run, in seconds since 1970."""
    return (to_ms(trial.datetime_complete) or 0) / 1000 + _SECONDS_FOR_OWN_PROCESS


def _runs_by_trial(client: MlflowClient, study_run: StudyRun) -> dict[int, Run]:
    kind, _, text = study_run.experiment.partition(":")
    if kind == "name":
        experiment = client.get_experiment_by_name(text)
        if experiment is None:
            return {}
        text = experiment.experiment_id
    query = f"tags.`{STUDY_TAG}` = '{study_run.key}'"
    found: dict[int, Run] = {}
    token = None
    while True:
        page = client.search_runs([text], query, ViewType.ALL, max_results=1000, page_token=token)
        tagged = [run for run in page if TRIAL_TAG in run.data.tags]
        found |= {int(run.data.tags[TRIAL_TAG]): run for run in tagged}
        token = page.token
        if not token:
            return found


def _is_logged(run: Run | None, trial: FrozenTrial) -> bool:
    return (
        run is not None
        and run.data.tags.get(STATE_TAG) == trial.state.name
        and run.info.status == STATUS[trial.state.name]
        and ENDED_TAG not in run.data.tags  # its process died before it was complete
    )
