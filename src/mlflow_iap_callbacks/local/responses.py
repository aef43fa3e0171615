"""The responses of Google's front ends, word for word."""

from __future__ import annotations

import email.utils
import json
from typing import Any

from aiohttp import web

from .faults import Fault
from .iap_authentication import EXPIRED, NO_OAUTH_CLIENT, PROBLEM

_FRONT_END_PAGE = """\
<html><head>
<meta http-equiv="content-type" content="text/html;charset=utf-8">
<title>{status} Server Error</title>
</head>
<body text=#000000 bgcolor=#ffffff>
<h1>Error: Server Error</h1>
<h2>The server encountered {kind} error and could not complete your request.<p>Please try again \
in 30 seconds.</h2>
<h2></h2>
</body></html>
"""
_TOO_LARGE_PAGE = """\
<html>
<head><title>413 Request Entity Too Large</title></head>
<body>
<center><h1>413 Request Entity Too Large</h1></center>
<hr><center>nginx</center>
</body>
</html>
"""
_ACCESS_DENIED = "MLflow: Access denied. For user {user}."  # begins with the application's name
_FROM_IAP = {
    401: EXPIRED,
    403: _ACCESS_DENIED,
    429: "Quota exceeded. Error code 429",
    502: NO_OAUTH_CLIENT,
}
_FROM_THE_APPLICATION = {
    401: "You are not authenticated. Please see "
    "https://www.mlflow.org/docs/latest/auth/index.html#authenticating-to-mlflow on how to "
    "authenticate.",
    403: "Permission denied",
    429: "Rate exceeded.",
}
_GOOGLE_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
}


def iap_response(status: int, text: str, headers: dict[str, str] | None = None) -> web.Response:
    """Return a response of Identity-Aware Proxy itself: a plain sentence, declared as HTML."""
    marked = {"X-Goog-IAP-Generated-Response": "true", "Alt-Svc": "clear", **(headers or {})}
    return web.Response(
        status=status, text=text, content_type="text/html", charset="UTF-8", headers=marked
    )


def access_denied(user: str) -> web.Response:
    """Return what Identity-Aware Proxy says to an account without its role."""
    return iap_response(403, _ACCESS_DENIED.format(user=user))


def front_end_error(status: int) -> web.Response:
    """Return the error page of a Google front end whose backend is unavailable."""
    kind = "a temporary" if status >= 502 else "an"
    return _html(status, _FRONT_END_PAGE.format(status=status, kind=kind))


def too_large() -> web.Response:
    """Return App Engine's response to a request of more than 32 MiB."""
    return _html(413, _TOO_LARGE_PAGE)


def fault_response(fault: Fault, *, user: str = "") -> web.Response:
    """Return a fault's response: its body, or the real service's text for its status."""
    if fault.from_iap:
        text = _FROM_IAP.get(fault.status, PROBLEM.format(code=9))
        response = iap_response(fault.status, fault.body or text.format(user=user))
    elif fault.body is not None:
        response = _html(fault.status, fault.body)
    elif fault.where == "google":
        response = google_error(fault.status, "The service is currently unavailable.")
    elif fault.status in _FROM_THE_APPLICATION:
        response = web.Response(status=fault.status, text=_FROM_THE_APPLICATION[fault.status])
    else:
        response = front_end_error(fault.status)
    if fault.retry_after is not None:
        response.headers["Retry-After"] = f"{fault.retry_after:g}"
    return response


def google_error(
    status: int, message: str, details: list[dict[str, Any]] | None = None
) -> web.Response:
    """Return an error in the format of Google's APIs."""
    error: dict[str, Any] = {
        "code": status,
        "message": message,
        "status": _GOOGLE_STATUS.get(status, "UNKNOWN"),
    }
    if details:
        error["details"] = details
    return web.Response(
        status=status,
        text=json.dumps({"error": error}, indent=2),
        content_type="application/json",
        charset="UTF-8",
    )


def http_date(timestamp: float) -> str:
    return email.utils.formatdate(timestamp, usegmt=True)


def _html(status: int, page: str) -> web.Response:
    return web.Response(status=status, text=page, content_type="text/html", charset="UTF-8")
