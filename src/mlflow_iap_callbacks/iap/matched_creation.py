"""Creations without a key, each made once: what was created is found by its content and time.

MLflow shows the tags of these entities to people and compares them, so they get no key as a tag.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import requests

from .lookup_request import request_instead, search, was_created_since, with_content
from .retried_request import Send

_Body = Mapping[str, Any]


@dataclass(frozen=True)
class _Kind:
    create: str  # end of the path, as a pattern
    one: str  # name in the response
    search: Callable[[str, _Body], tuple[str, _Body | None]]  # URL, and body of a POST
    many: str  # name in the response to the search
    created: str | None  # field with the server's time in milliseconds; None if the client sets one


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


_KINDS = (
    _Kind(
        *(r"/mlflow/model-versions/create", "model_version", _versions),
        *("model_versions", "creation_timestamp"),
    ),
    _Kind(r"/mlflow/datasets/create", "dataset", _datasets, "datasets", "created_time"),
    _Kind(r"/mlflow/webhooks", "webhook", _webhooks, "webhooks", "creation_timestamp"),
    _Kind(r"/mlflow/traces/[^/]+/assessments", "assessment", _trace, "assessments", None),
)


class MatchedCreation:
    """A request that creates something without a key."""

    def __init__(self, kind: _Kind, request: requests.PreparedRequest, body: _Body) -> None:
        self._kind, self._request = kind, request
        self._search = kind.search(request.url or "", body)
        self._wanted = _plain(body.get(kind.one, body))
        self._began = time.monotonic()

    def request(self, _: bool) -> requests.PreparedRequest:
        """The request, which is the same each time."""
        return self._request.copy()

    def found(self, send: Send) -> requests.Response | None:
        """The response to the creation, from a search for what it created; None if there is none.

        Raises:
            MlflowException: the search failed.
        """
        url, body = self._search
        method = "GET" if body is None else "POST"
        response = search(send, request_instead(self._request, method, url, body))
        for each in _entities(response.json(), self._kind.many):
            if self._is_like(each, response):
                return with_content(response, {self._kind.one: each})
        return None

    def _is_like(self, entity: _Body, response: requests.Response) -> bool:
        if any(entity.get(name, value) != value for name, value in self._wanted.items()):
            return False
        created = self._kind.created
        return created is None or was_created_since(self._began, entity[created], response)


def matched_creation_in(request: requests.PreparedRequest) -> MatchedCreation | None:
    """The creation that a request asks for."""
    path = (request.url or "").partition("?")[0]
    for kind in _KINDS:
        if request.method == "POST" and re.search(f"{kind.create}$", path):
            try:
                return MatchedCreation(kind, request, json.loads(request.body or b""))
            except (ValueError, TypeError, LookupError, AttributeError):
                return None
    return None


def _plain(body: _Body) -> dict[str, Any]:
    """What the server returns as it was given; it may add to dicts and tags, and hides secrets."""
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
