"""Logged models that MLflow creates later, and the records that contain their provisional ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fake_mlflow import FakeClient, FakeMlflow, FakeRun
from mlflow_iap_callbacks.delivery.provisional_models import (
    ProvisionalModels,
    new_provisional_id,
)
from mlflow_iap_callbacks.outbox import Record

_KEY = new_provisional_id()


@pytest.fixture
def server() -> FakeMlflow:
    return FakeMlflow()


@pytest.fixture
def client(server: FakeMlflow) -> FakeClient:
    return FakeClient(server)


@pytest.fixture
def run(server: FakeMlflow, client: FakeClient) -> FakeRun:
    return server.runs[client.create_run("0").info.run_id]


def _create(client: FakeClient, run: FakeRun, **params: str) -> ProvisionalModels:
    models = ProvisionalModels()
    content = {"key": _KEY, "experiment_id": "0", "name": "model", "tags": {}, "model_type": "t"}
    models.create(client, run.run_id, {**content, "params": params, "has_run_params": True})
    return models


def _sent(client: FakeClient, run: FakeRun, kind: str, content: Any, models: Any = None) -> Any:
    models = models or ProvisionalModels()
    return models.with_ids(client, run.run_id, Record(1, kind, content, 10)).content


def test_a_model_is_created_once_if_its_response_was_lost(
    server: FakeMlflow, client: FakeClient, run: FakeRun
) -> None:
    for _ in range(2):
        _create(client, run)
    (model,) = server.models.values()
    assert (model.name, model.model_type) == ("model", "t")


def test_a_model_gets_all_params_even_if_an_earlier_try_created_it_without_some(
    server: FakeMlflow, client: FakeClient, run: FakeRun
) -> None:
    run.params = {"rate": "1"}
    params = {f"p{number}": "x" for number in range(150)}
    server.drop("log_model_params")
    with pytest.raises(Exception, match="log_model_params"):
        _create(client, run, **params)
    _create(client, run, **params)
    (model,) = server.models.values()
    assert model.params == {**params, "rate": "1"}


@pytest.mark.parametrize("is_known", [False, True], ids=["another process", "this process"])
def test_records_are_sent_with_the_id_of_mlflow(
    server: FakeMlflow, client: FakeClient, run: FakeRun, is_known: bool
) -> None:
    created = _create(client, run)
    models = created if is_known else ProvisionalModels()
    (found,) = server.models
    assert _sent(client, run, "request", {"endpoint": f"/{_KEY}/tags", "body": None}, models) == {
        "endpoint": f"/{found}/tags",
        "body": None,
    }
    points = [["loss", 0.5, 7, 3], ["loss", 0.5, 7, 3, _KEY, None, None]]
    assert _sent(client, run, "points", points, models) == [
        points[0],
        ["loss", 0.5, 7, 3, found, None, None],
    ]
    assert _sent(client, run, "tags", {"uri": f"models:/{_KEY}"}) == {"uri": f"models:/{found}"}


def test_records_without_models_need_no_request(
    server: FakeMlflow, client: FakeClient, run: FakeRun
) -> None:
    server.is_away = True
    points = [["loss", 0.5, 7, 3], ["loss", 0.5, 7, 4, "m-1", None, None]]
    assert _sent(client, run, "points", points) == points
    assert _sent(client, run, "metrics", [3, 7, {_KEY: 0.5}]) == [3, 7, {_KEY: 0.5}]


def test_a_point_of_a_model_that_mlflow_rejected_stays_a_point_of_its_run(
    client: FakeClient, run: FakeRun
) -> None:
    points = [["loss", 0.5, 7, 3, _KEY, "data", "1"]]
    assert _sent(client, run, "points", points) == [["loss", 0.5, 7, 3, None, "data", "1"]]


def test_a_saved_model_gets_the_id_of_mlflow(
    server: FakeMlflow, client: FakeClient, run: FakeRun, tmp_path: Path
) -> None:
    models = _create(client, run)
    (found,) = server.models
    file = tmp_path / "MLmodel"
    file.write_text(f"artifact_path: x/models/{_KEY}/artifacts\nmodel_id: {_KEY}\n")
    for _ in range(2):
        models.write_ids(client, run.run_id, str(tmp_path))
    text = f"artifact_path: x/models/{found}/artifacts\nmodel_id: {found}\n"
    assert file.read_text() == text
