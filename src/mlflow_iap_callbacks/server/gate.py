"""The gate in front of MLflow: admits only requests with a valid assertion."""

from __future__ import annotations

import logging
import re
from contextvars import ContextVar

from mlflow.version import VERSION
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from .assertion import InvalidAssertionError, Verifier
from .error_response import send_error
from .public_keys import KeysUnavailableError
from .routes import has_control_characters, route_of, routed_path

ASSERTION_HEADER = b"x-goog-iap-jwt-assertion"

# For the load balancer's health checks, which have no assertion. They do not reach MLflow.
_OPEN = {"/health": "OK", "/version": VERSION}
# Matched with `_` replaced by `-`, because WSGI does not distinguish them: Flask would read
# `X_Forwarded_User` as X-Forwarded-User.
_IDENTITY_HEADER = re.compile(
    rb"x-goog-.*|(proxy-)?authorization|remote-user"
    rb"|x-(forwarded|auth-request|remote|mlflow)-(user|email|preferred-username|groups?)"
)

_logger = logging.getLogger(__name__)

visitor: ContextVar[str] = ContextVar("visitor")
"""E-mail of the sender of the current request; only the gate sets it."""


class Gate:
    """Passes requests with a valid assertion to `app`, and sets `visitor` to its e-mail.

    Without an assertion, only GET and HEAD of exactly /health and /version get a response, the same
    as MLflow's. Headers with which a client could claim an identity are removed.

    Args:
        app: MLflow's app.
        verifier: verifies assertions for this application.
        static_prefix: path prefix under which MLflow is served; empty for none.
    """

    def __init__(self, app: ASGIApp, verifier: Verifier, *, static_prefix: str = "") -> None:
        self._app = app
        self._verifier = verifier
        self._static_prefix = static_prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif _is_open(scope):
            await PlainTextResponse(_OPEN[scope["path"]])(scope, receive, send)
        else:
            await self._check(scope, receive, send)

    async def _check(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            email = await self._verifier.email(_assertion(scope))
        except InvalidAssertionError as reason:
            _logger.info("A request to %r was rejected: %s.", scope["path"], reason)
            message = (
                "This request has no valid assertion of Identity-Aware Proxy: use the address that "
                "Identity-Aware Proxy protects."
            )
            await send_error(scope, send, 401, "UNAUTHENTICATED", message)
            return
        except KeysUnavailableError:
            message = (
                "The public keys of Identity-Aware Proxy cannot be fetched at the moment, so no "
                "request can be authenticated: try again in a few seconds."
            )
            await send_error(scope, send, 503, "TEMPORARILY_UNAVAILABLE", message)
            return
        if has_control_characters(scope["path"]):
            message = "The path of this request contains a control character."
            await send_error(scope, send, 400, "INVALID_PARAMETER_VALUE", message)
            return
        if route_of(scope.get("method", "GET"), routed_path(scope, self._static_prefix)) is None:
            message = "This server does not serve this part of MLflow."
            await send_error(scope, send, 404, "ENDPOINT_NOT_FOUND", message)
            return
        token = visitor.set(email)
        try:
            await self._app(_without_identity(scope), receive, send)
        finally:
            visitor.reset(token)


def _is_open(scope: Scope) -> bool:
    return (
        scope["type"] == "http"
        and scope["method"] in ("GET", "HEAD")
        and scope["path"] in _OPEN
        # Only if the client spelled it like this, without percent-encoding.
        and scope.get("raw_path") in (None, scope["path"].encode())
    )


def _assertion(scope: Scope) -> str:
    found = [value for name, value in scope["headers"] if name.lower() == ASSERTION_HEADER]
    if not found:
        raise InvalidAssertionError("it has no assertion")
    if len(found) > 1:
        raise InvalidAssertionError("it has several assertions")
    assertion: str = found[0].decode("latin-1")
    return assertion


def _without_identity(scope: Scope) -> Scope:
    headers = [
        (name, value)
        for name, value in scope["headers"]
        if not _IDENTITY_HEADER.fullmatch(name.lower().replace(b"_", b"-"))
    ]
    return {**scope, "headers": headers}
