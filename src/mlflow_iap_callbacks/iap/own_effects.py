"""Errors that a request gets because an earlier attempt, whose response was lost, had its effect.

Then what it creates exists already, and what it deletes or renames does not exist any more.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode

import requests
from mlflow.exceptions import MlflowException

from .lookup_request import error_code, request_instead, was_created_since, with_content
from .matched_creation import matched_creation_in
from .retried_request import Send

_REMOVAL = re.compile(r"/(?:delete|detach|restore|delete(?:-\w+)?-tag|delete-traces)$")
_RENAMES_MODEL, _RENAMES_EXPERIMENT = (
    "/mlflow/registered-models/rename",
    "/mlflow/experiments/update",
)
# By the end of the path: the path that finds what has a name, the name of its parameter, the name
# in the response, and the field with the time.
_NAMED = {
    "/mlflow/experiments/create": (
        *("experiments/get-by-name", "experiment_name"),
        *("experiment", "creation_time"),
    ),
    "/mlflow/registered-models/create": (
        *("registered-models/get", "name"),
        *("registered_model", "creation_timestamp"),
    ),
}


def despite_own_effect(
    request: requests.PreparedRequest,
    response: requests.Response,
    began: float,
    send: Send,
) -> requests.Response:
    """Return the response that an earlier attempt lost, if its effect caused this error.

    Args:
        request: the request.
        response: the response to its last attempt.
        began: when its first attempt began, by ``time.monotonic``.
        send: sends another request, until its outcome is known.
    """
    code = error_code(response)
    path = (request.url or "").partition("?")[0]
    if code == "RESOURCE_DOES_NOT_EXIST" and (request.method == "DELETE" or _REMOVAL.search(path)):
        return with_content(response, {})
    found = None
    if code == "RESOURCE_DOES_NOT_EXIST" and path.endswith(_RENAMES_MODEL):
        found = _own_new_name(request, path, began, send)
    if code == "RESOURCE_ALREADY_EXISTS":
        for end, named in _NAMED.items():
            if path.endswith(end):
                found = _own_creation(request, path.removesuffix(end), named, began, send)
        if path.endswith(_RENAMES_EXPERIMENT):
            found = _own_new_name_of_experiment(request, path, send)
    # MLflow has several codes for what exists already.
    unique = matched_creation_in(request, is_unique=True, began=began) if code else None
    if unique is not None:
        with suppress(MlflowException):  # the search failed
            found = unique.found(send)
    return found or response


def _own_new_name(
    request: requests.PreparedRequest, path: str, began: float, send: Send
) -> requests.Response | None:
    """The response to the renaming of a model; None if another request gave it its name."""
    api = path.removesuffix(_RENAMES_MODEL)
    query = urlencode({"name": json.loads(request.body or b"")["new_name"]})
    url = f"{api}/mlflow/registered-models/get?{query}"
    found, model = _get(request, url, "registered_model", send)
    if not model or not was_created_since(began, model["last_updated_timestamp"], found):
        return None
    return with_content(found, {"registered_model": model})


def _own_new_name_of_experiment(
    request: requests.PreparedRequest, path: str, send: Send
) -> requests.Response | None:
    """The response to the renaming of an experiment; None if another one has the name."""
    api, body = path.removesuffix(_RENAMES_EXPERIMENT), json.loads(request.body or b"")
    query = urlencode({"experiment_id": body["experiment_id"]})
    url = f"{api}/mlflow/experiments/get?{query}"
    found, experiment = _get(request, url, "experiment", send)
    if not experiment or experiment["name"] != body["new_name"]:
        return None
    return with_content(found, {})


def _own_creation(
    request: requests.PreparedRequest,
    api: str,
    named: tuple[str, str, str, str],
    began: float,
    send: Send,
) -> requests.Response | None:
    """The response to a creation; None if something else took the name."""
    finds, parameter, one, created = named
    body = json.loads(request.body or b"")
    url = f"{api}/mlflow/{finds}?{urlencode({parameter: body['name']})}"
    found, entity = _get(request, url, one, send)
    if (
        not entity
        or _description(entity) != _description(body)
        or not was_created_since(began, entity[created], found)
    ):
        return None
    is_experiment = one == "experiment"
    return with_content(
        found, {"experiment_id": entity["experiment_id"]} if is_experiment else {one: entity}
    )


def _get(
    request: requests.PreparedRequest, url: str, one: str, send: Send
) -> tuple[requests.Response, Any]:
    """The response to a GET, and what it has under a name; None if it failed."""
    found = send(request_instead(request, "GET", url))
    return found, found.json().get(one) if found.status_code == 200 else None


def _description(entity: dict[str, Any]) -> Any:
    tags = {tag["key"]: tag.get("value") for tag in entity.get("tags", [])}
    own = {key: value for key, value in tags.items() if not key.startswith("mlflow.")}
    return entity.get("description") or "", own
