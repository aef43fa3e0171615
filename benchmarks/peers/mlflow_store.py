"""Reads the runs of an experiment from an MLflow server."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from .peer import StoredRun

_DEADLINE = 20.0


def stored_runs(client: Any, experiment: str, folder: Path) -> list[StoredRun]:
    """Read an experiment's runs, after waiting some time for those that are still running."""
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return []
    deadline = time.monotonic() + _DEADLINE
    while True:
        runs = client.search_runs([found.experiment_id])
        if all(run.info.status != "RUNNING" for run in runs) or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    return [_stored(client, run, found.experiment_id, folder) for run in runs]


def _stored(client: Any, run: Any, experiment_id: str, folder: Path) -> StoredRun:
    run_id = run.info.run_id
    curves, values = {}, dict(run.data.tags)
    for name in run.data.metrics:
        points = [(m.step, m.value) for m in client.get_metric_history(run_id, name)]
        curves[name] = sorted(points, key=lambda point: point[0])
        values[name] = points[-1][1]
    models = client.search_logged_models([experiment_id], f"source_run_id='{run_id}'")
    return StoredRun(
        curves=curves,
        params=dict(run.data.params),
        values=values,
        files=_files(client, run_id, [model.model_id for model in models], folder / run_id),
        inputs=[json.dumps(each.dataset.to_dictionary()) for each in run.inputs.dataset_inputs],
        registered={
            version.name for version in client.search_model_versions() if version.run_id == run_id
        },
        status=run.info.status.lower(),
    )


def _files(client: Any, run_id: str, model_ids: list[str], folder: Path) -> dict[str, Path]:
    from mlflow import artifacts

    folder.mkdir(parents=True, exist_ok=True)
    for number, model_id in enumerate(model_ids):
        target = folder / f"model_{number}"
        artifacts.download_artifacts(artifact_uri=f"models:/{model_id}", dst_path=str(target))
    for item in client.list_artifacts(run_id):
        client.download_artifacts(run_id, item.path, str(folder))
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path for path in paths}
