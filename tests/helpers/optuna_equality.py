"""Compares a study in MLflow with its storage, trial by trial."""

from __future__ import annotations

import math
from collections import Counter
from datetime import datetime
from typing import Any

import optuna
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType

from mlflow_iap_callbacks import IAPMlflowClient

_STUDY, _TRIAL, _PARENT = "mlflow_iap.study", "mlflow_iap.trial", "mlflow.parentRunId"
_ENDED = "mlflow_iap.ended"
_STATUS = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}


def runs_in(experiment: str, view: int = ViewType.ACTIVE_ONLY) -> list[Run]:
    """All runs of an experiment; none if it does not exist."""
    client = IAPMlflowClient()
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return []
    runs: list[Run] = []
    token = None
    while True:
        page = client.search_runs(
            [found.experiment_id], run_view_type=view, max_results=1000, page_token=token
        )
        runs += page
        token = page.token
        if not token:
            return runs


def is_of_a_study(run: Run) -> bool:
    """Whether it is a study's own run, the parent of its trials' runs."""
    return _STUDY in run.data.tags and _TRIAL not in run.data.tags


def assert_mlflow_equals_storage(study: optuna.Study, *, has_killed: bool = False) -> Counter[str]:
    """Check that MLflow has the same trials as the storage.

    Each ended trial has exactly one run, with what the storage says, below the study's only run.
    The study's experiment has no other runs.

    Args:
        study: the study.
        has_killed: whether trials of killed processes are RUNNING in the storage for ever. Their
            runs, if they have any, are failed.

    Returns:
        What was compared.

    """
    if study._storage.__class__.__name__ != "InMemoryStorage":
        # As it is stored: some databases keep only whole seconds.
        study = optuna.load_study(study_name=study.study_name, storage=_reopened(study._storage))
    trials = [trial for trial in study.get_trials() if trial.state.is_finished()]
    runs = runs_in(study.study_name)
    assert len({run.data.tags.get(_STUDY) for run in runs}) <= 1
    parents = [run for run in runs if is_of_a_study(run)]
    assert len(parents) == 1, _summary(parents)
    others = [run for run in runs if run is not parents[0]]
    if has_killed:
        running = {str(trial.number) for trial in study.get_trials() if trial not in trials}
        killed = [run for run in others if run.data.tags[_TRIAL] in running]
        assert all(run.info.status == "FAILED" and _ENDED in run.data.tags for run in killed)
        others = [run for run in others if run not in killed]
    by_number = {int(run.data.tags[_TRIAL]): run for run in others}
    assert sorted(int(run.data.tags[_TRIAL]) for run in others) == [t.number for t in trials]
    client = IAPMlflowClient()
    compared = Counter({"trials": len(trials)})
    for trial in trials:
        seen = _seen(client, by_number[trial.number], trial)
        stored = _stored(trial, str(parents[0].info.run_id))
        differences = {
            what: (seen[what], stored[what]) for what in stored if seen[what] != stored[what]
        }
        assert not differences, f"trial {trial.number}: {differences}"
        compared["points"] += sum(map(len, seen["metrics"].values()))
        compared["params"] += len(seen["params"])
    return compared


def _reopened(storage: Any) -> Any:
    """The storage without its cache."""
    backend = getattr(storage, "_backend", storage)
    url = getattr(backend, "url", None)
    return storage if url is None else str(url)


def _stored(trial: optuna.trial.FrozenTrial, parent: str) -> dict[str, Any]:
    values = trial.values or []
    names = ["value"] if len(values) == 1 else [f"value_{i}" for i in range(len(values))]
    curves = {name: [(0, value)] for name, value in zip(names, values, strict=True)}
    reported = sorted(trial.intermediate_values.items())
    if reported:
        curves["intermediate_value"] = [point for point in reported if not math.isnan(point[1])]
    return {
        "status": _STATUS[trial.state.name],
        "state": trial.state.name,
        "parent": parent,
        "params": {name: str(value) for name, value in trial.params.items()},
        "metrics": curves,
        "start": _ms(trial.datetime_start),
        "end": _ms(trial.datetime_complete),
        "user attributes": {name: str(value) for name, value in trial.user_attrs.items()},
    }


def _seen(client: MlflowClient, run: Run, trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
    tags = run.data.tags
    return {
        "status": run.info.status,
        "state": tags.get("_mlflow_iap.trial_state"),
        "parent": tags.get(_PARENT),
        "params": run.data.params,
        "metrics": {name: _curve(client, run, name) for name in run.data.metrics},
        "start": run.info.start_time,
        "end": run.info.end_time,
        "user attributes": {name: tags.get(name) for name in trial.user_attrs},
    }


def _curve(client: MlflowClient, run: Run, metric: str) -> list[tuple[int, float]]:
    history = client.get_metric_history(run.info.run_id, metric)
    return sorted((point.step, point.value) for point in history)


def _ms(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp() * 1000)


def _summary(runs: list[Run]) -> list[tuple[str, str, dict[str, str]]]:
    return [(run.info.run_id, run.info.run_name, run.data.tags) for run in runs]
