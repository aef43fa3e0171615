"""Logged models that MLflow creates later, and the records that contain their provisional ids."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from fake_mlflow import FakeClient, FakeMlflow, FakeRun
from mlflow_iap_callbacks.delivery.clock import Clock
from mlflow_iap_callbacks.delivery.provisional_models import (
    ProvisionalModels,
    new_provisional_id,
)
from mlflow_iap_callbacks.delivery.refusals import NotYet
from mlflow_iap_callbacks.delivery.run_writer import RunWriter
from mlflow_iap_callbacks.errors import IAPError
from mlflow_iap_callbacks.outbox import Record
from own_log import said_by_us
from virtual_process import VirtualClock, VirtualProcess

NewProcess = Callable[[], VirtualProcess]

_KEY = new_provisional_id()
_MODEL = {"key": _KEY, "experiment_id": "0", "name": "model", "tags": {}, "model_type": "t"}
_START = {**_MODEL, "params": {}, "has_run_params": False}
_POINT = ["loss", 0.5, 7, 3, _KEY, None, None]


@pytest.fixture
def client(server: FakeMlflow) -> FakeClient:
    return FakeClient(server)


@pytest.fixture
def run(server: FakeMlflow, client: FakeClient) -> FakeRun:
    return server.runs[client.create_run("0").info.run_id]


def _create(client: FakeClient, run: FakeRun, **params: str) -> ProvisionalModels:
    models = ProvisionalModels(Clock())
    models.create(client, run.run_id, {**_MODEL, "params": params, "has_run_params": True})
    return models


def _sent(client: FakeClient, run: FakeRun, kind: str, content: Any, models: Any = None) -> Any:
    models = models or ProvisionalModels(Clock())
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
    models = created if is_known else ProvisionalModels(Clock())
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


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("points", [_POINT]),
        ("tags", {"uri": f"models:/{_KEY}"}),
        ("request", {"endpoint": f"/{_KEY}/tags", "body": None}),
        ("model_files", {"model_id": _KEY, "path": "p", "to": None}),
        ("model_metrics", {"model_id": _KEY, "step": 3}),
    ],
)
def test_a_record_waits_until_another_process_creates_its_model(
    server: FakeMlflow,
    client: FakeClient,
    run: FakeRun,
    clock: VirtualClock,
    kind: str,
    content: Any,
) -> None:
    models = ProvisionalModels(clock)
    for _ in range(3):
        with pytest.raises(NotYet, match="another process is to create") as error:
            _sent(client, run, kind, content, models)
        assert error.value.after == 2.0
        clock.advance(50.0)
    _create(client, run)
    (found,) = server.models
    assert str(_sent(client, run, kind, content, models)) == str(content).replace(_KEY, found)


def test_a_record_does_not_wait_for_ever_for_a_model_that_nobody_creates(
    client: FakeClient, run: FakeRun, clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    models = ProvisionalModels(clock)
    with pytest.raises(NotYet):
        _sent(client, run, "points", [_POINT], models)
    clock.advance(179.5)
    with pytest.raises(NotYet) as error:
        _sent(client, run, "points", [_POINT], models)
    assert error.value.after == pytest.approx(0.5)
    assert said_by_us(caplog) == []
    clock.advance(0.5)
    for _ in range(2):
        assert _sent(client, run, "points", [_POINT], models) == [[*_POINT[:4], None, None, None]]
    (said,) = said_by_us(caplog)
    assert f"created the logged model {_KEY} within 180 s" in said


def test_a_look_during_an_outage_does_not_shorten_the_wait(
    server: FakeMlflow, client: FakeClient, run: FakeRun, clock: VirtualClock
) -> None:
    models = ProvisionalModels(clock)
    server.is_away = True
    with pytest.raises(IAPError):
        _sent(client, run, "points", [_POINT], models)
    clock.advance(1000.0)
    server.is_away = False
    with pytest.raises(NotYet):
        _sent(client, run, "points", [_POINT], models)


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


# --- processes that log to one run ---------------------------------------------------------------


def _join(process: VirtualProcess, run: FakeRun) -> RunWriter:
    process.enter()
    return RunWriter.existing(process.client, run.run_id)


def _log_points(run: RunWriter) -> None:
    run._append("points", [["loss", 1.5, 6, 2]])
    run._append("points", [_POINT])
    run._append("model_metrics", {"model_id": _KEY, "step": 2})


def _refuse(*_: Any, **__: Any) -> Any:
    raise MlflowException("no such type", 1000)  # INVALID_PARAMETER_VALUE


def _points(server: FakeMlflow) -> list[tuple[str, int, float]]:
    """Return the points of the only model."""
    (found,) = server.models
    points = server.model_metrics.get(found, [])
    return sorted((point.key, point.step, point.value) for point in points)


_ALL = [("loss", 2, 1.5), ("loss", 3, 0.5)]


def test_points_that_a_forked_process_delivers_first_get_their_model(
    server: FakeMlflow,
    run: FakeRun,
    new_process: NewProcess,
    caplog: pytest.LogCaptureFixture,
) -> None:
    parent, child = new_process(), new_process()
    _log_points(_join(child, run))
    child.deliver_for(60.0)
    assert [*run.points] == [("loss", 2, 6, 1.5)]  # what was logged before needs no model
    assert not child.sender.is_away
    assert not child.sender.is_stuck
    _join(parent, run)._append("model_start", _START)
    parent.deliver_for(10.0)
    child.deliver_for(10.0)
    assert _points(server) == _ALL
    assert len(run.points) == 2
    assert child.sender.waiting == 0
    assert said_by_us(caplog) == []


def test_points_that_arrive_after_their_model_do_not_wait(
    server: FakeMlflow, run: FakeRun, new_process: NewProcess
) -> None:
    parent, child = new_process(), new_process()
    _join(parent, run)._append("model_start", _START)
    parent.deliver_for(10.0)
    _log_points(_join(child, run))
    child.deliver_for(6.0)
    assert _points(server) == _ALL


def test_points_of_a_lost_model_are_delivered_to_their_run_in_the_end(
    server: FakeMlflow, run: FakeRun, new_process: NewProcess
) -> None:
    child = new_process()
    _log_points(_join(child, run))
    child.deliver_for(170.0)
    assert child.sender.waiting == 2
    child.deliver_for(30.0)
    assert (child.sender.waiting, child.sender.refused) == (0, 0)
    assert len(run.points) == 2
    assert server.model_metrics == {}


@pytest.mark.parametrize("is_parent_first", [False, True], ids=["child first", "parent first"])
def test_journals_of_dead_processes_are_delivered_in_either_order(
    server: FakeMlflow, run: FakeRun, new_process: NewProcess, is_parent_first: bool
) -> None:
    processes = [new_process(), new_process()]
    for is_parent in (is_parent_first, not is_parent_first):
        process = processes[is_parent]
        joined = _join(process, run)
        if is_parent:
            joined._append("model_start", _START)
        else:
            _log_points(joined)
        process.die()
    sync = new_process()
    sync.sender.adopt()
    sync.deliver_for(10.0)
    assert _points(server) == _ALL
    assert sync.sender.waiting == 0


def test_the_process_that_creates_the_model_need_not_wait_for_a_dead_one_that_waits_for_it(
    server: FakeMlflow, run: FakeRun, new_process: NewProcess
) -> None:
    parent, child = new_process(), new_process()
    _log_points(_join(child, run))
    child.die()
    parent.sender.adopt()
    parent.deliver_for(10.0)
    _join(parent, run)._append("model_start", _START)
    parent.deliver_for(10.0)
    assert _points(server) == _ALL


def test_nothing_waits_for_a_model_that_this_process_knows_to_be_rejected(
    server: FakeMlflow, run: FakeRun, new_process: NewProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = new_process()
    monkeypatch.setattr(FakeClient, "create_logged_model", _refuse)
    joined = _join(process, run)
    joined._append("model_start", _START)
    _log_points(joined)
    process.deliver_for(6.0)
    assert (process.sender.waiting, process.sender.refused) == (0, 1)
    assert len(run.points) == 2


def test_nothing_waits_for_a_model_that_was_rejected_before_its_process_died(
    server: FakeMlflow, run: FakeRun, new_process: NewProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = new_process()
    joined = _join(process, run)
    joined._append("model_start", _START)
    with monkeypatch.context() as patch:
        patch.setattr(FakeClient, "create_logged_model", _refuse)
        process.deliver_for(6.0)
    _log_points(joined)
    process.die()
    sync = new_process()
    sync.sender.adopt()
    sync.deliver_for(6.0)
    assert sync.sender.waiting == 0
    assert len(run.points) == 2


def test_another_run_does_not_wait(
    server: FakeMlflow, client: FakeClient, run: FakeRun, new_process: NewProcess
) -> None:
    other = server.runs[client.create_run("0").info.run_id]
    child = new_process()
    _log_points(_join(child, run))
    _join(child, other)._append("points", [["loss", 1.5, 6, 2]])
    child.deliver_for(6.0)
    assert len(other.points) == 1


def test_a_process_that_ends_leaves_what_waits_to_the_next_one(
    server: FakeMlflow, run: FakeRun, new_process: NewProcess
) -> None:
    child = new_process()
    _log_points(_join(child, run))
    assert not child.sender.flush(30.0)
    child.close()
    parent = new_process()
    _join(parent, run)._append("model_start", _START)
    parent.sender.adopt()
    parent.deliver_for(10.0)
    assert _points(server) == _ALL
