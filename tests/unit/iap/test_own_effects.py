"""Errors of requests whose earlier attempt had its effect before its response was lost."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from email.utils import formatdate
from typing import Any

import pytest
import requests

from mlflow_iap_callbacks.iap.auth import IAPAuth
from virtual_time import VirtualTime

_API = "https://mlflow.example/api/2.0/mlflow"
_GONE = (404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "gone"})
_EXISTS = (400, {"error_code": "RESOURCE_ALREADY_EXISTS", "message": "exists"})
_LOST: tuple[int, Any] = (503, {})


def _answers(*answers: tuple[int, Any]) -> Iterator[requests.Response]:
    for status, content in answers:
        response = requests.Response()
        response.status_code = status
        response.headers["Date"] = formatdate(usegmt=True)
        response._content = json.dumps(content).encode()
        yield response


def _send(method: str, path: str, body: Any, *answers: tuple[int, Any]) -> requests.Response:
    responses = _answers(*answers)
    request = requests.Request(method, f"{_API}/{path}", json=body).prepare()

    def send(request: requests.PreparedRequest) -> requests.Response:
        assert request.method != "GET" or "Content-Length" not in request.headers
        return next(responses)

    response = IAPAuth(_API, retry=VirtualTime().policy()).send(request, send)
    assert next(responses, None) is None, "It has sent fewer requests."
    return response


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "registered-models/delete"),
        ("DELETE", "webhooks/1"),
        ("POST", "experiments/delete"),
        ("POST", "experiments/restore"),
        ("POST", "runs/delete-tag"),
        ("POST", "experiments/delete-experiment-tag"),
        ("POST", "gateway/endpoints/models/detach"),
    ],
)
def test_what_an_earlier_attempt_has_deleted_is_deleted(method: str, path: str) -> None:
    response = _send(method, path, {"id": "1"}, _LOST, _GONE)
    assert (response.status_code, response.json()) == (200, {})
    assert _send(method, path, {"id": "1"}, (429, {}), _GONE).status_code == 404
    assert _send(method, path, {"id": "1"}, _GONE).status_code == 404


def test_what_is_only_read_or_changed_and_does_not_exist_is_an_error() -> None:
    assert _send("GET", "runs/get", None, _LOST, _GONE).status_code == 404
    assert _send("POST", "runs/set-tag", {}, _LOST, _GONE).status_code == 404


def _found(one: str, field: str, age: float) -> tuple[int, Any]:
    entity = {"name": "n", "experiment_id": "7", field: (time.time() - age) * 1000}
    return 200, {one: entity}


@pytest.mark.parametrize(
    ("path", "one", "field"),
    [
        ("experiments/create", "experiment", "creation_time"),
        ("registered-models/create", "registered_model", "creation_timestamp"),
    ],
)
def test_what_an_earlier_attempt_has_created_is_returned_and_what_existed_before_is_an_error(
    path: str, one: str, field: str
) -> None:
    body = {"name": "a name"}
    new, old = _found(one, field, 0.0), _found(one, field, 60.0)
    expected = {"experiment_id": "7"} if one == "experiment" else new[1]
    assert _send("POST", path, body, _LOST, _EXISTS, new).json() == expected
    other = {**body, "tags": [{"key": "a", "value": "b"}]}
    assert _send("POST", path, other, _LOST, _EXISTS, new).status_code == 400
    assert _send("POST", path, body, _LOST, _EXISTS, old).status_code == 400
    assert _send("POST", path, body, _LOST, _EXISTS, _GONE).status_code == 400
    assert _send("POST", path, body, _EXISTS).status_code == 400


def test_a_model_that_an_earlier_attempt_has_renamed_is_returned() -> None:
    body = {"name": "old", "new_name": "new"}
    path = "registered-models/rename"
    new, old = (_found("registered_model", "last_updated_timestamp", age) for age in (0.0, 3600.0))
    assert _send("POST", path, body, _LOST, _GONE, new).json() == new[1]
    assert _send("POST", path, body, _LOST, _GONE, old).status_code == 404
    assert _send("POST", path, body, _LOST, _GONE, _GONE).status_code == 404
    assert _send("POST", path, body, _LOST, _EXISTS).status_code == 400
    assert _send("POST", path, body, _GONE).status_code == 404


def test_an_experiment_that_an_earlier_attempt_has_renamed_is_renamed() -> None:
    body = {"experiment_id": "7", "new_name": "n"}  # MLflow's file store rejects the repetition
    found = _found("experiment", "creation_time", 3600.0)
    assert _send("POST", "experiments/update", body, _LOST, _EXISTS, found).json() == {}
    other = {**body, "new_name": "other"}
    assert _send("POST", "experiments/update", other, _LOST, _EXISTS, found).status_code == 400
    assert _send("POST", "experiments/update", body, _EXISTS).status_code == 400
