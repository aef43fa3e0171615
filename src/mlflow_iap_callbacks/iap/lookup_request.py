"""Finds out what a request with a lost response did, with other requests to the same server."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import requests
from mlflow.exceptions import MlflowException

from .retried_request import Send

# Seconds: servers update the time in their headers once per second.
_TOLERANCE = 3.0


def request_instead(
    request: requests.PreparedRequest,
    method: str | None,
    url: str | None,
    body: Mapping[str, Any] | None = None,
) -> requests.PreparedRequest:
    """Return another request, with the headers of a request to the same server."""
    other = request.copy()
    other.method, other.url = method, url
    for name in ("Content-Length", "Content-Type"):
        other.headers.pop(name, None)
    other.prepare_body(None, None, json=body)
    return other


def error_code(response: requests.Response) -> Any:
    """MLflow's error code, if a repeated request gets the same error; otherwise None."""
    if response.status_code not in (400, 404):
        return None
    try:
        return response.json().get("error_code")
    except (ValueError, AttributeError):
        return None


def search(send: Send, request: requests.PreparedRequest) -> requests.Response:
    """Send a search. A search in something that does not exist finds nothing.

    Raises:
        MlflowException: it failed.
    """
    response = send(request)
    if error_code(response) == "RESOURCE_DOES_NOT_EXIST":
        return with_content(response, {})
    if response.status_code != 200:
        raise MlflowException(f"The search returned status {response.status_code}.")
    return response


def with_content(response: requests.Response, content: Any) -> requests.Response:
    """Turn a response into one of status 200 with other JSON."""
    response.status_code, response.reason = 200, "OK"
    response._content = json.dumps(content).encode()
    return response


def was_created_since(began: float, created: float, response: requests.Response) -> bool:
    """Whether something was created after this process began to create it.

    Args:
        began: when it began, by ``time.monotonic``.
        created: when it was created, by the server's clock, in milliseconds since 1970.
        response: a response of the server that just arrived.
    """
    date = response.headers.get("Date")
    now = parsedate_to_datetime(date).timestamp() if date else time.time()
    return float(created) >= (now - (time.monotonic() - began) - _TOLERANCE) * 1000
