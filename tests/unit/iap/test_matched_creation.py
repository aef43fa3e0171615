"""Creations without a key, when responses are lost."""

from __future__ import annotations

import json
import time
from email.utils import formatdate
from typing import Any

import pytest
import requests

from mlflow_iap_callbacks import IAPUnknownOutcomeError
from mlflow_iap_callbacks.iap.auth import IAPAuth
from virtual_time import VirtualTime

_API = "https://mlflow.example/api/3.0/mlflow"
_VERSION = {"name": "n", "source": "s3://a/b", "tags": [{"key": "a", "value": "b"}]}
_DATASET = {"name": "n", "experiment_ids": ["1"], "tags": "{}"}
_WEBHOOK = {"name": "n", "url": "https://h.example", "secret": "s", "events": [{"entity": "RUN"}]}
_ASSESSMENT = {"assessment": {"assessment_name": "n", "create_time": "T", "feedback": {}}}
# The path of a creation, its body, the path of the search, the name of what it finds, and its time.
_CASES: list[Any] = [
    ("model-versions/create", _VERSION, "model-versions/search", "model_version", 1),
    ("datasets/create", _DATASET, "datasets/search", "dataset", 1),
    ("webhooks", _WEBHOOK, "webhooks", "webhook", 1),
    ("traces/tr-1/assessments", _ASSESSMENT, "traces/tr-1", "assessment", 0),
]
_EACH = pytest.mark.parametrize(("path", "body", "search", "one", "has_time"), _CASES)


class _Server:
    """Creates and finds something as MLflow's REST API does, and loses responses.

    Attributes:
        made: what was created.
        lost: statuses of the next creations, before ("-") or after ("+") they take effect.
        ahead: seconds that its clock is ahead.
    """

    def __init__(self, path: str, search: str, one: str, has_time: bool) -> None:
        self._create, self._search = f"{_API}/{path}", f"{_API}/{search}"
        self._one, self._has_time = one, has_time
        self.made: list[dict[str, Any]] = []
        self.lost: list[str] = []
        self.ahead = 1000.0
        self.created = 0

    def add(self, body: dict[str, Any], age: float = 0.0) -> None:
        entity = dict(body.get(self._one, body))
        entity.pop("secret", None)
        entity |= {"id": str(len(self.made)), "tags": [], "last_update_time": "later"}
        if self._has_time:
            now = int((time.time() + self.ahead - age) * 1000)
            entity |= {"creation_timestamp": now, "created_time": now}
        self.made.append(entity)

    def send(self, request: requests.PreparedRequest) -> requests.Response:
        url = (request.url or "").partition("?")[0]
        length = str(len(request.body)) if request.body else None
        assert request.headers.get("Content-Length") == length
        is_search = request.method == "GET" or self._search != self._create == url
        if url == self._create and request.method == "POST":
            self.created += 1
            lost = self.lost.pop(0) if self.lost else ""
            if not lost.startswith("-"):
                self.add(json.loads(request.body or b""))
            return self._response(int(lost[1:] or 200), {self._one: (self.made or [{}])[-1]})
        assert is_search or url == self._search
        found = {f"{self._one}s": self.made[::-1]}
        return self._response(200, {"trace": {"trace_info": found}} if "traces" in url else found)

    def _response(self, status: int, content: Any) -> requests.Response:
        response = requests.Response()
        response.status_code = status
        response.headers["Date"] = formatdate(time.time() + self.ahead, usegmt=True)
        response._content = json.dumps(content).encode()
        return response


def _create(server: _Server, path: str, body: Any) -> Any:
    request = requests.Request("POST", f"{_API}/{path}", json=body).prepare()
    auth = IAPAuth(_API, retry=VirtualTime().policy())
    return auth.send(request, server.send).json()


@_EACH
@pytest.mark.parametrize("status", [500, 503, 504])
def test_what_was_created_before_its_response_was_lost_is_found_whatever_the_server_s_clock_says(
    path: str, body: Any, search: str, one: str, has_time: bool, status: int
) -> None:
    server = _Server(path, search, one, has_time)
    server.lost = [f"+{status}"]
    assert _create(server, path, body) == {one: server.made[0]}
    assert (len(server.made), server.created) == (1, 1)


@_EACH
def test_what_was_not_created_is_requested_again(
    path: str, body: Any, search: str, one: str, has_time: bool
) -> None:
    server = _Server(path, search, one, has_time)
    server.lost = ["-503", "-503"]
    assert _create(server, path, body) == {one: server.made[0]}
    assert (len(server.made), server.created) == (1, 3)


@_EACH
def test_what_differs_or_is_older_is_not_taken_for_it(
    path: str, body: Any, search: str, one: str, has_time: bool
) -> None:
    server = _Server(path, search, one, has_time)
    other = {name: f"other {value}" for name, value in body.get(one, body).items()}
    server.add(other)
    if has_time:
        server.add(body, age=60.0)
    before = len(server.made)
    server.lost = ["-503"]
    assert _create(server, path, body) == {one: server.made[-1]}
    assert (len(server.made), server.created) == (before + 1, 2)


def test_an_endpoint_whose_entities_cannot_be_found_is_requested_once() -> None:
    server = _Server("webhooks/1/test", "none", "webhook", True)
    server.lost = ["+503"]
    with pytest.raises(IAPUnknownOutcomeError, match="test"):
        _create(server, "webhooks/1/test", {})
    assert server.created == 1
