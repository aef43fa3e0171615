"""Logged models: how MLflow finds them, and that repeated delivery adds nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from fake_mlflow import FakeClient, FakeMlflow
from mlflow_iap_callbacks.delivery.models import log_model


@pytest.fixture
def server() -> FakeMlflow:
    return FakeMlflow()


def _input(name: str, context: str) -> DatasetInput:
    tags = [InputTag(MLFLOW_DATASET_CONTEXT, context)]
    return DatasetInput(Dataset(name, f"digest of {name}", "code", "{}"), tags)


def _saved(folder: Path) -> str:
    (folder / "MLmodel").write_text("flavors: {}")
    return str(folder)


def _log(server: FakeMlflow, folder: Path, *inputs: DatasetInput, **points: Any) -> Any:
    client = FakeClient(server)
    run = server.runs[client.create_run("0").info.run_id]
    run.points = {(name, step, 7, value): None for name, step, value in points["points"]}
    if inputs:
        client.log_inputs(run.run_id, inputs)
    content = {"key": "k", "name": "model", "registered_name": None}
    for _ in range(2):
        log_model(client, run.run_id, _saved(folder), content)
    return run


def test_a_model_has_the_last_value_of_each_metric(server: FakeMlflow, tmp_path: Path) -> None:
    points = [("valid-auc", 0, 0.5), ("valid-auc", 1, 0.75), ("seconds", 1, 2.0)]
    run = _log(server, tmp_path, points=points)
    ((_, metrics),) = server.model_metrics.items()
    found = {(each.key, each.step, each.timestamp, each.value) for each in metrics}
    assert found == {("valid-auc", 1, 7, 0.75), ("seconds", 1, 7, 2.0)}
    assert len(run.points) == 3
    assert {each.dataset_name for each in metrics} == {None}


def test_a_metric_belongs_to_the_data_set_that_it_is_named_after(
    server: FakeMlflow, tmp_path: Path
) -> None:
    inputs = [_input("b", "validation"), _input("b-c", "validation"), _input("a", "training")]
    names = ("a-auc", "b-auc", "best-b-auc", "b-c-auc", "ab-auc", "best_iteration")
    _log(server, tmp_path, *inputs, points=[(name, 0, 1.0) for name in names])
    ((_, metrics),) = server.model_metrics.items()
    found = {each.key: each.dataset_name for each in metrics}
    assert [found[name] for name in names] == ["a", "b", "b", "b-c", "a", "a"]
    assert {each.dataset_digest for each in metrics} == {
        f"digest of {n}" for n in ("a", "b", "b-c")
    }


def test_more_metrics_than_fit_into_a_request_are_sent_in_several(
    server: FakeMlflow, tmp_path: Path
) -> None:
    _log(server, tmp_path, points=[(f"m{number}", 0, 1.0) for number in range(1001)])
    ((_, metrics),) = server.model_metrics.items()
    assert len({each.key for each in metrics}) == 1001
    assert server.calls.count("log_batch") == 4  # two for each delivery


def test_a_model_of_a_run_without_metrics_has_none(server: FakeMlflow, tmp_path: Path) -> None:
    _log(server, tmp_path, points=[])
    assert len(server.models) == 1
    assert server.model_metrics == {}
