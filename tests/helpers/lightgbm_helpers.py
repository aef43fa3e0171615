"""Reads what MLflow has of LightGBM runs through IAP, once everything is delivered."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightgbm as lgb
import numpy as np
from mlflow.entities import DatasetInput, LoggedModelOutput, Run

from mlflow_iap_callbacks import IAPMlflowClient
from mlflow_iap_callbacks.delivery import lifecycle

if TYPE_CHECKING:
    from lightgbm.callback import CallbackEnv

PARAMS: dict[str, Any] = {"objective": "binary", "verbosity": -1, "num_threads": 1, "seed": 1}
OWN = ("best-", "best_", "stopped_", "seconds_", "learning_rate")


def arrays(rows: int = 200, features: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Data from which a model learns something, but not for long."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, features))
    return x, (x[:, 0] + rng.normal(size=rows) > 0).astype(int)


def sets() -> tuple[lgb.Dataset, lgb.Dataset]:
    """A training and a validation set."""
    x, y = arrays()
    train = lgb.Dataset(x[:120], y[:120])
    return train, lgb.Dataset(x[120:], y[120:], reference=train)


def runs(experiment: str) -> list[Run]:
    """All runs in the experiment, oldest first."""
    client = IAPMlflowClient()
    assert lifecycle.sender_for(client).flush(60.0)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    order = ["attributes.start_time"]
    ids = [run.info.run_id for run in client.search_runs([found.experiment_id], order_by=order)]
    # A search has no outputs in MLflow's older versions.
    return [client.get_run(run_id) for run_id in ids]


def the_run(experiment: str) -> Run:
    """The only run in the experiment."""
    (run,) = runs(experiment)
    return run


def points(run: Run, metric: str) -> list[tuple[int, float]]:
    """Step and value of each point, by time."""
    history = IAPMlflowClient().get_metric_history(run.info.run_id, metric)
    assert [point.timestamp for point in history] == sorted(p.timestamp for p in history)
    return [(point.step, point.value) for point in history]


def models(run: Run) -> list[LoggedModelOutput]:
    """The models among the run's outputs."""
    assert run.outputs is not None
    return list(run.outputs.model_outputs)


def inputs(run: Run) -> list[DatasetInput]:
    """The data sets among the run's inputs."""
    assert run.inputs is not None
    return list(run.inputs.dataset_inputs)


def curves(run: Run) -> dict[str, list[tuple[int, float]]]:
    """The curves of the evaluations, by metric."""
    return {name: points(run, name) for name in run.data.metrics if not name.startswith(OWN)}


def expected(
    record: Mapping[str, Mapping[str, Sequence[float]]], first: int = 0
) -> dict[str, list[tuple[int, float]]]:
    """The same curves, from what ``lgb.record_evaluation`` kept."""
    return {
        f"{data}-{metric}": list(enumerate(values, start=first))
        for data, metrics in record.items()
        for metric, values in metrics.items()
    }


class Recorder:
    """Like ``lgb.record_evaluation``, but for training in any process.

    Args:
        folder: gets one file per training run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.order = 20
        self._file: Path | None = None

    def __call__(self, env: CallbackEnv) -> None:
        if env.iteration == env.begin_iteration or self._file is None:
            self._file = self.folder / f"{uuid.uuid4().hex}.jsonl"
        values = [[f"{item[0]}-{item[1]}", item[2]] for item in env.evaluation_result_list or ()]
        with self._file.open("a") as file:
            file.write(json.dumps([env.iteration, values]) + "\n")

    def curves(self) -> list[dict[str, list[tuple[int, float]]]]:
        """The records, one per training run."""
        found = []
        for file in self.folder.glob("*.jsonl"):
            curves: dict[str, list[tuple[int, float]]] = {}
            for line in file.read_text().splitlines():
                step, values = json.loads(line)
                for name, value in values:
                    curves.setdefault(name, []).append((step, value))
            found.append(curves)
        return found


def expected_of_cv(result: Mapping[str, Any]) -> dict[str, list[tuple[int, float]]]:
    """The same curves, from what ``lgb.cv`` returned."""
    found = {}
    for name, values in result.items():
        data, _, metric = name.partition(" ")
        # Up to LightGBM 4.5, names have no data set without eval_train_metric.
        full = f"{data}-{metric}".removesuffix("-mean")
        found[full] = list(enumerate(values))
    return found
