"""Creations without a key: what a request created is found by its content and time.

Those with a unique name may be requested again, and are looked up if they exist already. The others
are requested once, and again only if nothing was found.

MLflow shows the tags of these entities to people and compares them, so they get no key as a tag.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import requests

from .lookup_request import request_instead, search, was_created_since, with_content
from .retried_request import Send

_Body = Mapping[str, Any]


@dataclass(frozen=True)
class _Kind:
    create: str  # end of the path, as a pattern
    one: str | None  # name in the response; None if it is the response
    search: Callable[[str, _Body], tuple[str, _Body | None]]  # URL, and body of a POST
    many: str  # name in the response to the search
    created: str | None  # field with the server's time in milliseconds; None if the client sets one
    is_unique: bool = False  # whether it can exist only once
    asked: str | None = None  # name in the request, if it is not that in the response
    names: Mapping[str, str] = field(default_factory=dict)  # in the response, by those in a search


def _versions(url: str, body: _Body) -> tuple[str, None]:
    query = {"filter": f"name = '{body['name']}'", "order_by": "version_number DESC"}
    return f"{url.replace('/create', '/search')}?{urlencode({**query, 'max_results': 50})}", None


def _datasets(url: str, body: _Body) -> tuple[str, _Body]:
    return url.replace("/create", "/search"), {
        "experiment_ids": body.get("experiment_ids", []),
        "filter_string": f"name = '{body['name']}'",
        "order_by": ["created_time DESC"],
        "max_results": 50,
    }


def _webhooks(url: str, _: _Body) -> tuple[str, None]:
    return f"{url}?max_results=100", None


def _trace(url: str, _: _Body) -> tuple[str, None]:
    return url.rpartition("/")[0], None


def _in_experiment(url: str, body: _Body) -> tuple[str, _Body]:
    return f"{url}/search", {"experiment_id": body["experiment_id"]}


def _jobs(url: str, body: _Body) -> tuple[str, _Body]:
    return f"{url.rstrip('/')}/search", {name: body[name] for name in ("job_name", "params")}


def _attached(url: str, body: _Body) -> tuple[str, None]:
    query = urlencode({"endpoint_id": body["endpoint_id"]})
    return f"{url.removesuffix('models/attach')}get?{query}", None


def _mcp_server(url: str, body: _Body) -> tuple[str, None]:
    return f"{url}?{urlencode({'filter_string': 'name = ' + repr(body['name'])})}", None


def _all(url: str, _: _Body) -> tuple[str, None]:
    return f"{url}?max_results=1000", None


def _instead_of(last: str, other: str, *given: str) -> Callable[[str, _Body], tuple[str, None]]:
    """The request's path with another ending, and some of its fields as the query."""

    def search(url: str, body: _Body) -> tuple[str, None]:
        query = urlencode({name: body[name] for name in given if name in body})
        return f"{url.removesuffix(last)}{other}{'?' if query else ''}{query}", None

    return search


_list = _instead_of("create", "list")
_list_of_experiment = _instead_of("create", "list", "experiment_id")
_GATEWAY = "/mlflow/gateway/"
_KINDS = (
    _Kind(
        *(r"/mlflow/model-versions/create", "model_version", _versions),
        *("model_versions", "creation_timestamp"),
    ),
    _Kind(r"/mlflow/datasets/create", "dataset", _datasets, "datasets", "created_time"),
    _Kind(r"/mlflow/webhooks", "webhook", _webhooks, "webhooks", "creation_timestamp"),
    _Kind(r"/mlflow/traces/[^/]+/assessments", "assessment", _trace, "assessments", None),
    _Kind(
        *("/mlflow/scorers/register", None),
        _instead_of("register", "versions", "experiment_id", "name"),
        *("scorers", "creation_time"),
        names={"scorer_name": "name", "scorer_version": "version"},
    ),
    _Kind("/mlflow/issues", "issue", _in_experiment, "issues", "created_timestamp"),
    _Kind(
        *("/mlflow/prompt-optimization/jobs", "job", _in_experiment, "jobs"),
        "creation_timestamp_ms",
    ),
    _Kind(r"/\d\.0/jobs/?", None, _jobs, "jobs", "creation_time"),
    _Kind(
        *("/mlflow/mcp-servers/.+/endpoints", None, _all),
        *("mcp_access_endpoints", "creation_timestamp"),
    ),
    _Kind(
        *("/mlflow/mcp-servers", None, _mcp_server, "mcp_servers", "creation_timestamp"),
        is_unique=True,
    ),
    _Kind(
        *("/mlflow/mcp-servers/.+/versions", None, _all),
        *("mcp_server_versions", "creation_timestamp"),
        is_unique=True,
        asked="server_json",
    ),
    _Kind(f"{_GATEWAY}budgets/create", "budget_policy", _list, "budget_policies", "created_at"),
    _Kind(f"{_GATEWAY}guardrails/create", "guardrail", _list, "guardrails", "created_at"),
    _Kind(
        *(f"{_GATEWAY}endpoints/bindings/create", "binding"),
        _instead_of("create", "list", "endpoint_id", "resource_type", "resource_id"),
        *("bindings", "created_at"),
    ),
    _Kind(f"{_GATEWAY}secrets/create", "secret", _list, "secrets", "created_at", True),
    _Kind(f"{_GATEWAY}endpoints/create", "endpoint", _list, "endpoints", "created_at", True),
    _Kind(
        *(f"{_GATEWAY}model-definitions/create", "model_definition", _list),
        *("model_definitions", "created_at"),
        is_unique=True,
    ),
    _Kind(
        *(f"{_GATEWAY}endpoints/models/attach", "mapping", _attached),
        *("model_mappings", "created_at"),
        is_unique=True,
        asked="model_config",
    ),
    _Kind(
        *(f"{_GATEWAY}guardrails/add-to-endpoint", "config"),
        _instead_of("add-to-endpoint", "list-for-endpoint", "endpoint_id"),
        *("configs", "created_at"),
        is_unique=True,
    ),
    _Kind(
        *("/mlflow/label-schemas/create", "label_schema", _list_of_experiment),
        *("label_schemas", "created_at"),
        is_unique=True,
    ),
    _Kind(
        *("/mlflow/review-queues/create", "review_queue", _list_of_experiment),
        *("review_queues", "creation_time_ms"),
        is_unique=True,
    ),
)


class MatchedCreation:
    """A request that creates something without a key, and when it was first sent."""

    def __init__(
        self, kind: _Kind, request: requests.PreparedRequest, body: _Body, began: float
    ) -> None:
        self._kind, self._request = kind, request
        self._search = kind.search((request.url or "").partition("?")[0], body)
        self._wanted = _plain(body.get(str(kind.asked or kind.one), body))
        self._began = began

    def request(self, _: bool) -> requests.PreparedRequest:
        """The request, which is the same each time."""
        return self._request.copy()

    def found(self, send: Send) -> requests.Response | None:
        """The creation's response, rebuilt from a search; None if nothing was found.

        Raises:
            MlflowException: the search failed.
        """
        url, body = self._search
        method = "GET" if body is None else "POST"
        response = search(send, request_instead(self._request, method, url, body))
        one, names = self._kind.one, self._kind.names
        for each in _entities(response.json(), self._kind.many):
            entity = {names.get(name, name): value for name, value in each.items()}
            if self._is_like(entity, response):
                # Ids may be numbers in a search, and are in the response as they were given.
                given = {name: self._wanted.get(name, value) for name, value in entity.items()}
                return with_content(response, given if one is None else {one: entity})
        return None

    def _is_like(self, entity: _Body, response: requests.Response) -> bool:
        for name, value in self._wanted.items():
            if str(entity.get(name, value)) != str(value):
                return False
        created = self._kind.created
        return created is None or was_created_since(self._began, entity[created], response)


def matched_creation_in(
    request: requests.PreparedRequest, *, is_unique: bool = False, began: float | None = None
) -> MatchedCreation | None:
    """The creation that a request asks for.

    Args:
        request: the request.
        is_unique: whether what the request creates can exist only once.
        began: when it was first sent, by ``time.monotonic``. Default: now.
    """
    path = (request.url or "").partition("?")[0]
    for kind in _KINDS:
        is_asked = request.method == "POST" and kind.is_unique == is_unique
        if is_asked and re.search(f"{kind.create}$", path):
            began = time.monotonic() if began is None else began
            try:
                return MatchedCreation(kind, request, json.loads(request.body or b""), began)
            except (ValueError, TypeError, LookupError, AttributeError):
                return None
    return None


def _plain(body: _Body) -> dict[str, Any]:
    """Fields that the server returns as given; it may add to dicts and tags, and hides secrets."""
    return {
        name: value
        for name, value in body.items()
        if isinstance(value, (str, int, float))
        and name not in ("tags", "secret", "last_update_time", "status")
    }


def _entities(found: Any, name: str) -> list[Any]:
    """What a search found, at any depth of its response."""
    if not isinstance(found, dict):
        return []
    if name in found:
        return list(found[name])
    return [each for inner in found.values() for each in _entities(inner, name)]
