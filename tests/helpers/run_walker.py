"""Everything that MLflow stores of an experiment's runs, in a form that two runs can share."""

from __future__ import annotations

import hashlib
import re
import tempfile
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Metric, Run

# Differs between two runs of the same program: ids, times, and the folders of a temporary file.
_OWN = re.compile(
    r"\b(?:m-)?[0-9a-f]{32}\b|\b\d{13}\b|\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?"
    r"|registered-[\w-]+|script_[0-9a-f]{8}|\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d|/tmp/\S*?tmp\w+"
    r"|tfevents\.\S+|\"\w+_(?:runtime|per_second)\": [\d.]+|model_size_bytes: \d+"
)
_MADE_UP_NAME = re.compile(r"[a-z]+-[a-z]+-\d+")
_OWN_TAGS = ("mlflow_iap.", "_mlflow_iap.", "mlflow.source.")
# Files whose bytes differ between two runs: archives and pickles with times or ids in them.
_OPAQUE = (
    ".pkl",
    ".keras",
    ".joblib",
    ".parquet",
    ".xgb",
    ".ubj",
    ".pth",
    ".ckpt",
    "training_args.bin",
    "cv_results.csv",
    "estimator.html",
)
_DURATIONS = ("_fit_time", "_score_time", "_runtime", "_per_second")  # ends of metrics


def walk(client: MlflowClient, experiment_name: str) -> list[dict[str, Any]]:
    """Return all runs of an experiment, the oldest first."""
    experiment = client.get_experiment_by_name(experiment_name)
    assert experiment is not None
    place = experiment.experiment_id
    found = client.search_runs([place], order_by=["attributes.start_time ASC"])
    models = client.search_logged_models([place], max_results=100)
    names = {run.info.run_id: _name(str(run.info.run_name)) for run in found}
    walks = [_run(client, run, models, names, place) for run in found]
    return sorted(walks, key=lambda each: (each["name"], str(each["params"])))


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Return where two walks differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted(one.keys() | other.keys())
        pairs = [(key, one.get(key, "missing"), other.get(key, "missing")) for key in keys]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = [(str(number), *pair) for number, pair in enumerate(zip(one, other, strict=True))]
    else:
        return [] if one == other else [f"{path}: {one!r:.500} is not {other!r:.500}"]
    return [
        text for key, first, second in pairs for text in differences(first, second, f"{path}/{key}")
    ]


def _run(
    client: MlflowClient, run: Run, models: list[LoggedModel], names: dict[str, str], place: str
) -> dict[str, Any]:
    run_id = run.info.run_id
    inputs = run.inputs.dataset_inputs if run.inputs else []
    outputs = run.outputs.model_outputs if run.outputs else []
    steps = {output.model_id: output.step for output in outputs}
    return {
        "name": names[run_id],
        "status": (run.info.status, run.info.lifecycle_stage, run.info.end_time is not None),
        "params": run.data.params,
        "tags": {
            key: names.get(value, _name(_plain(value, place)))
            for key, value in run.data.tags.items()
            if not key.startswith(_OWN_TAGS)
        },
        "metrics": {
            key: sorted(
                (point.step, _value(point), point.model_id is not None, point.dataset_name)
                for point in client.get_metric_history(run_id, key)
            )
            for key in run.data.metrics
        },
        "inputs": sorted(
            _plain(f"{dict(each.dataset)} {sorted(map(dict, each.tags), key=str)}", place)
            for each in inputs
        ),
        "artifacts": _files(client, run_id, place),
        "models": [
            _model(model, steps.get(model.model_id), place)
            for model in sorted(models, key=lambda each: str(each.name))
            if model.source_run_id == run_id
        ],
    }


def _model(model: LoggedModel, step: int | None, place: str) -> dict[str, Any]:
    return {
        "name": model.name,
        "status": model.status,
        "params": model.params,
        "metrics": sorted((each.key, each.step, _value(each)) for each in model.metrics or ()),
        "tags": {
            key: _plain(str(value), place)
            for key, value in model.tags.items()
            if not key.startswith(_OWN_TAGS)
        },
        "step": step,
        "artifacts": _model_files(model.model_id, place),
    }


def _files(client: MlflowClient, run_id: str, place: str) -> dict[str, str]:
    if not client.list_artifacts(run_id):
        return {}
    with tempfile.TemporaryDirectory() as folder:
        return _content(Path(client.download_artifacts(run_id, "", folder)), place)


def _model_files(model_id: str, place: str) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        uri = f"models:/{model_id}"
        found = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=folder)
        return _content(Path(found), place)


def _content(folder: Path, place: str) -> dict[str, str]:
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = _plain(str(path.relative_to(folder)), place)
            found[name] = _digest(path, place)
    return found


def _digest(path: Path, place: str) -> str:
    if path.name.endswith(_OPAQUE) or path.name.startswith("events.out.tfevents"):
        return "present"
    data = path.read_bytes()
    try:
        text = _plain(data.decode(), place)
    except UnicodeDecodeError:
        return hashlib.sha256(data).hexdigest()
    return text if len(text) < 2000 else hashlib.sha256(text.encode()).hexdigest()


def _plain(text: str, place: str) -> str:
    return _OWN.sub("OWN", text.replace(f"/{place}/", "/EXPERIMENT/"))


def _name(name: str) -> str:
    return "MADE-UP" if _MADE_UP_NAME.fullmatch(name) else name


def _value(point: Metric) -> str:
    return "a duration" if point.key.endswith(_DURATIONS) else repr(point.value)
