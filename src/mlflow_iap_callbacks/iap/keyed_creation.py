"""Runs and logged models that MLflow's fluent API creates: each once, even if responses are lost.

They get a key as a tag, unless their request has one: then the caller looks for them itself.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import Any

import requests

from ..tags import ASKED_TWICE_TAG, MODEL_KEY_TAG, RUN_KEY_TAG
from .lookup_request import request_instead, search, with_content
from .retried_request import Send


@dataclass(frozen=True)
class _Kind:
    key_tag: str
    create: str  # end of the path
    search: str
    one: str  # name in a response
    many: str
    options: dict[str, Any]  # of the search
    again: str | None  # tag for a second request


_KINDS = (
    _Kind(
        *(RUN_KEY_TAG, "/mlflow/runs/create", "/mlflow/runs/search", "run", "runs"),
        {"run_view_type": "ALL", "order_by": ["attributes.start_time DESC"]},
        ASKED_TWICE_TAG,
    ),
    _Kind(
        *(MODEL_KEY_TAG, "/mlflow/logged-models", "/mlflow/logged-models/search"),
        *("model", "models"),
        {"order_by": [{"field_name": "creation_timestamp", "ascending": False}]},
        None,
    ),
)


class KeyedCreation:
    """A request that creates a run or a logged model, and its key."""

    def __init__(
        self, kind: _Kind, request: requests.PreparedRequest, body: dict[str, Any]
    ) -> None:
        self._kind, self._request, self._body = kind, request, body
        self._key = uuid.uuid4().hex

    def request(self, is_again: bool) -> requests.PreparedRequest:
        """The request, with the key."""
        tags = [*self._body.get("tags", []), {"key": self._kind.key_tag, "value": self._key}]
        if is_again and self._kind.again:
            tags.append({"key": self._kind.again, "value": "true"})
        return self._instead(self._request.url, {**self._body, "tags": tags})

    def found(self, send: Send) -> requests.Response | None:
        """The creation's response, rebuilt from a search; None if nothing was found.

        Raises:
            MlflowException: the search failed.
        """
        kind = self._kind
        url = (self._request.url or "").replace(kind.create, kind.search)
        body = {"experiment_ids": [self._body["experiment_id"]], "max_results": 50, **kind.options}
        response = search(send, self._instead(url, body))
        for each in response.json().get(kind.many, []):
            tags = {**each["info"], **each.get("data", {})}.get("tags", [])
            if {"key": kind.key_tag, "value": self._key} in tags:
                return with_content(response, {kind.one: each})
        return None

    def _instead(self, url: str | None, body: dict[str, Any]) -> requests.PreparedRequest:
        return request_instead(self._request, self._request.method, url, body)


def creation_in(request: requests.PreparedRequest) -> KeyedCreation | None:
    """The creation that a request asks for, unless it has a key already."""
    path = (request.url or "").partition("?")[0]
    for kind in _KINDS:
        if request.method == "POST" and path.endswith(kind.create):
            try:
                body = json.loads(request.body or b"")
                keys = {tag["key"] for tag in body.get("tags", [])}
            except (ValueError, TypeError, LookupError, AttributeError):
                return None
            if kind.key_tag not in keys and "experiment_id" in body:
                return KeyedCreation(kind, request, body)
    return None
