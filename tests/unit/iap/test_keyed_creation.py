"""Runs and logged models that are created without a key, when responses are lost."""

from __future__ import annotations

import json
from typing import Any

import pytest
import requests

from mlflow_iap_callbacks import IAPUnknownOutcomeError
from mlflow_iap_callbacks.iap.auth import IAPAuth
from mlflow_iap_callbacks.tags import ASKED_TWICE_TAG, MODEL_KEY_TAG, RUN_KEY_TAG
from virtual_time import VirtualTime

_API = "https://mlflow.example/api/2.0/mlflow"


class _Server:
    """Creates and finds runs or models as MLflow's REST API does, and loses responses.

    Attributes:
        made: what was created.
        seen: last part of each request's path.
        lost: statuses of the next creations, before ("-") or after ("+") they take effect.
    """

    def __init__(self, one: str) -> None:
        self.one = one
        self.made: list[dict[str, Any]] = []
        self.seen: list[str] = []
        self.lost: list[str] = []

    def send(self, request: requests.PreparedRequest) -> requests.Response:
        body = json.loads(request.body or b"")
        assert request.headers["Content-Length"] == str(len(request.body or b""))
        self.seen.append((request.url or "").rpartition("/")[2])
        if self.seen[-1] == "search":
            return self._response(200, {f"{self.one}s": self.made})
        lost = self.lost.pop(0) if self.lost else ""
        if not lost.startswith("-"):
            made = {"info": {"name": body.get("name")}, "data": {"tags": body.get("tags", [])}}
            if self.one == "model":
                made = {"info": {**made["info"], **made["data"]}}
            self.made.append(made)
        return self._response(int(lost[1:] or 200), {self.one: self.made[-1:]})

    def _response(self, status: int, content: Any) -> requests.Response:
        response = requests.Response()
        response.status_code = status
        response._content = json.dumps(content).encode()
        return response


@pytest.fixture
def time() -> VirtualTime:
    return VirtualTime()


_CASES = [("run", "/runs/create", RUN_KEY_TAG), ("model", "/logged-models", MODEL_KEY_TAG)]
_PLAIN = [("experiment_id", "0"), ("name", "n")]


def _create(server: _Server, path: str, time: VirtualTime, **body: Any) -> Any:
    request = requests.Request(
        "POST", f"{_API}{path}", json={**dict(_PLAIN), **body}, headers={"X-A": "b"}
    ).prepare()
    auth = IAPAuth(_API, retry=time.policy())
    return auth.send(request, server.send).json()


@pytest.mark.parametrize(("one", "path", "key"), _CASES)
@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_what_was_created_before_its_response_was_lost_is_found(
    time: VirtualTime, one: str, path: str, key: str, status: int
) -> None:
    server = _Server(one)
    server.made.append({"info": {"name": "n", "tags": [{"key": key, "value": "another"}]}})
    server.lost = [f"+{status}"]
    assert _create(server, path, time) == {one: server.made[1]}
    assert len(server.made) == 2
    assert key in str(server.made[1])


@pytest.mark.parametrize(("one", "path", "key"), _CASES)
def test_what_was_not_created_is_requested_again(
    time: VirtualTime, one: str, path: str, key: str
) -> None:
    server = _Server(one)
    server.lost = ["-503", "-503"]
    _create(server, path, time, tags=[{"key": "a", "value": "b"}])
    assert len(server.made) == 1
    assert server.seen.count(path.rpartition("/")[2]) == 3
    assert "{'key': 'a', 'value': 'b'}" in str(server.made)
    assert (ASKED_TWICE_TAG in str(server.made)) == (one == "run")


@pytest.mark.parametrize(("one", "path", "key"), _CASES)
def test_a_caller_with_a_key_looks_for_its_run_itself(
    time: VirtualTime, one: str, path: str, key: str
) -> None:
    server = _Server(one)
    server.lost = ["+503"]
    with pytest.raises(IAPUnknownOutcomeError):
        _create(server, path, time, tags=[{"key": key, "value": "k"}])
    assert len(server.seen) == 1


def test_a_creation_is_given_up_at_the_deadline(time: VirtualTime) -> None:
    server = _Server("run")
    server.lost = ["-503"] * 100
    began = time.now
    with pytest.raises(IAPUnknownOutcomeError, match="runs/create"):
        _create(server, "/runs/create", time)
    assert time.now - began <= 120.0


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"tags": 7}'])
def test_a_body_of_another_form_is_sent_as_it_is(time: VirtualTime, body: bytes) -> None:
    sent: list[Any] = []

    def send(request: requests.PreparedRequest) -> requests.Response:
        sent.append(request.body)
        response = requests.Response()
        response.status_code = 400
        return response

    request = requests.Request("POST", f"{_API}/runs/create", data=body).prepare()
    IAPAuth(_API, retry=time.policy()).send(request, send)
    assert sent == [body or None]
