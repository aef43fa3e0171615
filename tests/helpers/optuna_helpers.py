"""Reads what MLflow has of a study through IAP, once everything is delivered."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import mlflow
import optuna
import pytest
from mlflow.entities import Run
from mlflow.tracking import fluent

from mlflow_iap_callbacks import IAPMlflowClient
from mlflow_iap_callbacks.delivery import lifecycle

STUDY_TAG, TRIAL_TAG = "mlflow_iap.study", "mlflow_iap.trial"
PARENT_TAG = "mlflow.parentRunId"
Direction = Literal["minimize", "maximize"]


def new_study(
    *directions: Direction,
    seed: int = 0,
    pruner: optuna.pruners.BasePruner | None = None,
) -> optuna.Study:
    """A study in memory, with a name that no other test has."""
    return optuna.create_study(
        study_name=uuid.uuid4().hex,
        directions=directions or ["minimize"],
        sampler=optuna.samplers.RandomSampler(seed=seed),
        pruner=pruner,
    )


def all_runs(experiment: str) -> list[Run]:
    """All runs in the experiment with this name; none if it does not exist."""
    client = IAPMlflowClient()
    assert lifecycle.sender_for(client).flush(60.0)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return []
    return list(client.search_runs([found.experiment_id], max_results=1000))


def trial_runs(experiment: str) -> dict[int, Run]:
    """The trials' runs by number, of which each trial has one."""
    found = [run for run in all_runs(experiment) if TRIAL_TAG in run.data.tags]
    by_number = {int(run.data.tags[TRIAL_TAG]): run for run in found}
    assert len(by_number) == len(found)
    return by_number


def study_run(experiment: str) -> Run:
    """The run of the study."""
    (run,) = [
        run
        for run in all_runs(experiment)
        if STUDY_TAG in run.data.tags and TRIAL_TAG not in run.data.tags
    ]
    return run


def trial_run(study: optuna.Study, number: int = 0) -> Run:
    """The run of one trial, in the experiment named after the study."""
    return trial_runs(study.study_name)[number]


def curve(run: Run, metric: str) -> list[tuple[int, float]]:
    """Step and value of each point."""
    history = IAPMlflowClient().get_metric_history(run.info.run_id, metric)
    return sorted((point.step, point.value) for point in history)


def artifacts(run: Run, folder: str | None = None) -> list[str]:
    """Paths of the files and folders in a folder of the run's artifacts."""
    return sorted(each.path for each in IAPMlflowClient().list_artifacts(run.info.run_id, folder))


def text_of(run: Run, artifact: str, folder: Path) -> str:
    """The content of a file among the run's artifacts, downloaded to ``folder``."""
    path = IAPMlflowClient().download_artifacts(run.info.run_id, artifact, str(folder))
    return Path(path).read_text(encoding="utf-8")


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Only the warnings of this package."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)


@contextmanager
def fluent_state_of_its_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """MLflow keeps the server, the experiment and the runs in use for the whole process."""
    monkeypatch.setattr(fluent, "_active_experiment_id", None)
    for name in ("MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        # Set first, so that what MLflow sets is undone too.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    yield
    while mlflow.active_run():
        mlflow.end_run()
    # While the server is running. Otherwise the next tests would retry, and log that it is down.
    lifecycle.exit_process(5.0)
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
