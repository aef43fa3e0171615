"""Logs and registers saved models once, no matter how often their delivery is retried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    LoggedModel,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Run,
)
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from ..limits import MAX_METRICS, MAX_MODEL_PARAMS
from ..tags import MODEL_KEY_TAG


def log_model(client: MlflowClient, run_id: str, folder: str, content: Mapping[str, Any]) -> None:
    """Log a saved model as an output of its run, with the run's last metrics.

    Args:
        client: any MlflowClient.
        run_id: run that the model comes from.
        folder: folder that ``mlflow.FLAVOR.save_model`` wrote.
        content: the model's ``key`` and ``name``, and ``registered_name``: the registered
            model to which it is added as a new version, or None.

    Raises:
        MlflowException, requests.RequestException: the model was not logged, or only partly.
            Calling this again creates no duplicates.
    """
    run = client.get_run(run_id)
    experiment_id = run.info.experiment_id
    found = find_model(client, experiment_id, run_id, content["key"]) or client.create_logged_model(
        experiment_id,
        content["name"],
        source_run_id=run_id,
        tags={**run.data.tags, MODEL_KEY_TAG: content["key"]},
        params=dict(list(run.data.params.items())[:MAX_MODEL_PARAMS]),
    )
    model_id = found.model_id
    if found.status != LoggedModelStatus.READY:
        _write_ids(Path(folder), run_id, found)
        client.log_model_artifacts(model_id, folder)
        client.finalize_logged_model(model_id, LoggedModelStatus.READY)
    outputs = run.outputs.model_outputs if run.outputs else []
    if model_id not in {output.model_id for output in outputs}:
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
    if content["registered_name"]:
        _register(client, run_id, model_id, content["registered_name"])
    _log_metrics(client, run, model_id)


def log_step_metrics(client: MlflowClient, run_id: str, *, model_id: str, step: int) -> None:
    """Repeat a run's points at one step for a model, as ``mlflow.FLAVOR.log_model`` does.

    Args:
        client: any MlflowClient.
        run_id: run of the model.
        model_id: MLflow's id of the model.
        step: step at which the model was logged.
    """
    points = [
        _of_model(point, model_id, point.dataset_name, point.dataset_digest)
        for name in client.get_run(run_id).data.metrics
        for point in client.get_metric_history(run_id, name)
        if point.step == step and point.model_id is None
    ]
    _log_points(client, run_id, points)


def _log_metrics(client: MlflowClient, run: Run, model_id: str) -> None:
    """Log the run's last metrics again, as the model's. The run gets no new points.

    MLflow finds a model by its metrics, and by the data set that a metric belongs to.
    """
    inputs = list(run.inputs.dataset_inputs) if run.inputs else []
    inputs.sort(key=lambda each: all("train" not in tag.value for tag in each.tags))
    datasets = [each.dataset for each in inputs]
    points = []
    for point in run.data.to_proto().metrics:
        dataset = _dataset_of(point.key, datasets)
        origin = (None, None) if dataset is None else (dataset.name, dataset.digest)
        points.append(_of_model(point, model_id, *origin))
    _log_points(client, run.info.run_id, points)


def _of_model(point: Any, model_id: str, dataset_name: str | None, digest: str | None) -> Metric:
    """Return a point of a run as a point of a model."""
    return Metric(
        *(point.key, point.value, point.timestamp, point.step),
        model_id=model_id,
        dataset_name=dataset_name,
        dataset_digest=digest,
    )


def _log_points(client: MlflowClient, run_id: str, points: Sequence[Metric]) -> None:
    for first in range(0, len(points), MAX_METRICS):
        client.log_batch(run_id, points[first : first + MAX_METRICS])


def _dataset_of(metric: str, datasets: Sequence[Dataset]) -> Dataset | None:
    """Return the data set that a metric's name has, as in ``valid-auc``; else the first one."""
    named = [each for each in datasets if f"-{each.name}-" in f"-{metric}-"]
    return max(named, key=lambda each: len(each.name), default=datasets[0] if datasets else None)


def find_model(
    client: MlflowClient, experiment_id: str, run_id: str, key: str
) -> LoggedModel | None:
    """Return the logged model of a run that has this key as a tag; None if there is none."""
    models = client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'")
    return next((model for model in models if model.tags.get(MODEL_KEY_TAG) == key), None)


def _write_ids(folder: Path, run_id: str, found: LoggedModel) -> None:
    """Write the run's id and the model's id into the model, as ``mlflow.FLAVOR.log_model`` does."""
    path = folder / "MLmodel"
    model = Model.load(path)
    model.run_id, model.model_id, model.model_uuid = run_id, found.model_id, found.model_id
    model.artifact_path = found.artifact_location
    model.save(path)


def _register(client: MlflowClient, run_id: str, model_id: str, name: str) -> None:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"models:/{model_id}"
    versions = client.search_model_versions(f"run_id = '{run_id}'")
    if not any(version.name == name and version.source == source for version in versions):
        client.create_model_version(name, source, run_id, model_id=model_id, await_creation_for=0)
