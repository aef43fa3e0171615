"""Creations without a key, when responses are lost."""

from __future__ import annotations

import json
import time
from email.utils import formatdate
from typing import Any, NamedTuple

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


_BINDING = {"endpoint_id": "e", "resource_type": "scorer", "resource_id": "r"}
_SCORER = {"experiment_id": "7", "name": "n", "serialized_scorer": "{}"}
_JOB = {"job_name": "j", "params": {"a": 1}}
_OPTIMIZATION = {"experiment_id": "7", "source_prompt_uri": "prompts:/p/1", "config": {"a": "b"}}
_ATTACHED = {"endpoint_id": "e", "model_config": {"model_definition_id": "d", "weight": 1}}
_GUARDED = {"endpoint_id": "e", "guardrail_id": "g"}


class _Case(NamedTuple):
    path: str
    body: dict[str, Any]
    search: str  # path and query
    many: str  # name of the list that the search finds
    created: str  # field with the time
    one: str | None  # name in the response
    exists: str = "RESOURCE_ALREADY_EXISTS"  # code of the error if it exists already


_MCP = "mcp-servers/a%2Fb/endpoints"
_BINDINGS = "gateway/endpoints/bindings"
_BINDING_QUERY = "endpoint_id=e&resource_type=scorer&resource_id=r"
_VERSIONS = "scorers/versions?experiment_id=7&name=n"
_OF_EXPERIMENT = {"name": "n", "experiment_id": "7"}
_SECRET = {"secret_name": "n", "secret_value": {"key": "s"}}
_DEFINITIONS = "gateway/model-definitions"
_GUARDRAILS = "gateway/guardrails"
_REPEATED_ONCE = [
    _Case("scorers/register", _SCORER, _VERSIONS, "scorers", "creation_time", None),
    _Case("issues", _OF_EXPERIMENT, "issues/search", "issues", "created_timestamp", "issue"),
    _Case(
        "prompt-optimization/jobs",
        _OPTIMIZATION,
        "prompt-optimization/jobs/search",
        "jobs",
        "creation_timestamp_ms",
        "job",
    ),
    _Case("../jobs/", _JOB, "../jobs/search", "jobs", "creation_time", None),
    _Case(
        _MCP,
        {"url": "https://u.example"},
        f"{_MCP}?max_results=1000",
        "mcp_access_endpoints",
        "creation_timestamp",
        None,
    ),
    _Case(
        "gateway/budgets/create",
        {"budget_amount": 1.5, "target_scope": "GLOBAL"},
        "gateway/budgets/list",
        "budget_policies",
        "created_at",
        "budget_policy",
    ),
    _Case(
        f"{_GUARDRAILS}/create",
        {"name": "n"},
        f"{_GUARDRAILS}/list",
        "guardrails",
        "created_at",
        "guardrail",
    ),
    _Case(
        f"{_BINDINGS}/create",
        _BINDING,
        f"{_BINDINGS}/list?{_BINDING_QUERY}",
        "bindings",
        "created_at",
        "binding",
    ),
]
_UNIQUE = [
    _Case(
        "mcp-servers",
        {"name": "a.example/b"},
        "mcp-servers?filter_string=name+%3D+%27a.example%2Fb%27",
        "mcp_servers",
        "creation_timestamp",
        None,
    ),
    _Case(
        "mcp-servers/a.example%2Fb/versions",
        {"server_json": {"name": "a.example/b", "version": "1.0"}},
        "mcp-servers/a.example%2Fb/versions?max_results=1000",
        "mcp_server_versions",
        "creation_timestamp",
        None,
    ),
    _Case(
        "gateway/secrets/create",
        _SECRET,
        "gateway/secrets/list",
        "secrets",
        "created_at",
        "secret",
    ),
    _Case(
        "gateway/endpoints/create",
        {"name": "n"},
        "gateway/endpoints/list",
        "endpoints",
        "created_at",
        "endpoint",
        "BAD_REQUEST",
    ),
    _Case(
        f"{_DEFINITIONS}/create",
        {"name": "n"},
        f"{_DEFINITIONS}/list",
        "model_definitions",
        "created_at",
        "model_definition",
    ),
    _Case(
        "gateway/endpoints/models/attach",
        _ATTACHED,
        "gateway/endpoints/get?endpoint_id=e",
        "model_mappings",
        "created_at",
        "mapping",
    ),
    _Case(
        f"{_GUARDRAILS}/add-to-endpoint",
        _GUARDED,
        f"{_GUARDRAILS}/list-for-endpoint?endpoint_id=e",
        "configs",
        "created_at",
        "config",
    ),
    _Case(
        "label-schemas/create",
        _OF_EXPERIMENT,
        "label-schemas/list?experiment_id=7",
        "label_schemas",
        "created_at",
        "label_schema",
    ),
    _Case(
        "review-queues/create",
        _OF_EXPERIMENT,
        "review-queues/list?experiment_id=7",
        "review_queues",
        "creation_time_ms",
        "review_queue",
    ),
]
_EACH_CASE = pytest.mark.parametrize(
    "case", [*_REPEATED_ONCE, *_UNIQUE], ids=lambda case: case.path
)


def _created(case: _Case, *found: dict[str, Any], status: int = 200) -> tuple[int, Any, int]:
    """Status, content and number of creations, the first of which is lost; and a search finds."""
    create, look = (f"{_API}/{each}".replace("/mlflow/..", "") for each in (case.path, case.search))
    exists = case in _UNIQUE
    created = 0

    def send(request: requests.PreparedRequest) -> requests.Response:
        nonlocal created
        response = requests.Response()
        response.headers["Date"] = formatdate(usegmt=True)
        content: Any = {case.many: found}
        if request.url == create and request.method == "POST":
            created += 1
            response.status_code = 503 if created == 1 else 400 if exists else 200
            content = {"error_code": case.exists} if exists else {"is": "second"}
        else:
            assert request.url == look
            response.status_code = status
            content = content if status == 200 else {"error_code": "RESOURCE_DOES_NOT_EXIST"}
        response._content = json.dumps(content).encode()
        return response

    request = requests.Request("POST", create, json=case.body).prepare()
    response = IAPAuth(_API, retry=VirtualTime().policy()).send(request, send)
    return response.status_code, response.json(), created


def _entity(case: _Case, age: float = 0.0) -> dict[str, Any]:
    nested = [value for value in case.body.values() if isinstance(value, dict)]
    fields = {name: value for part in (case.body, *nested) for name, value in part.items()}
    entity = {name: value for name, value in fields.items() if isinstance(value, (str, float, int))}
    if case.path.startswith("scorers"):
        entity |= {"scorer_name": entity.pop("name"), "scorer_version": 3, "experiment_id": 7}
    return {**entity, "is": "first", case.created: int((time.time() - age) * 1000)}


@_EACH_CASE
def test_an_entity_of_another_endpoint_is_found_after_a_lost_response(case: _Case) -> None:
    status, content, count = _created(case, _entity(case))
    assert (status, count) == (200, 2 if case in _UNIQUE else 1)
    found = content if case.one is None else content[case.one]
    assert found["is"] == "first"
    if case.path.startswith("scorers"):
        assert (found["name"], found["version"], found["experiment_id"]) == ("n", 3, "7")


@_EACH_CASE
def test_an_older_or_different_entity_of_another_endpoint_is_not_taken_for_it(case: _Case) -> None:
    other = dict.fromkeys(_entity(case), "other") | {case.created: time.time() * 1000}
    status, content, count = _created(case, _entity(case, age=3600.0), other)
    assert count == 2
    assert (status == 400) if case in _UNIQUE else content == {"is": "second"}


def test_what_is_in_nothing_that_exists_is_requested_again() -> None:
    case = next(case for case in _REPEATED_ONCE if case.one is None)  # as the first of its name
    assert _created(case, status=404) == (200, {"is": "second"}, 2)


def test_an_endpoint_whose_entities_cannot_be_found_is_requested_once() -> None:
    server = _Server("webhooks/1/test", "none", "webhook", True)
    server.lost = ["+503"]
    with pytest.raises(IAPUnknownOutcomeError, match="test"):
        _create(server, "webhooks/1/test", {})
    assert server.created == 1
