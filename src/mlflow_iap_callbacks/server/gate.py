"""The gate around all of MLflow: who comes in, and by which name."""

from __future__ import annotations

import logging
import re
from contextvars import ContextVar

from mlflow.version import VERSION
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from .assertion import InvalidAssertionError, Verifier
from .error_response import refuse
from .public_keys import KeysUnavailableError
from .routed_path import routed_path
from .routes import is_closed

ASSERTION_HEADER = b"x-goog-iap-jwt-assertion"

# The load balancer's probes carry no assertion; what they get to see is not MLflow itself.
_OPEN = {"/health": "OK", "/version": VERSION}
# WSGI does not tell `_` from `-`: `X_Forwarded_User` would reach Flask as X-Forwarded-User.
_IDENTITY_HEADER = re.compile(
    rb"x-goog-.*|(proxy-)?authorization|remote-user"
    rb"|x-(forwarded|auth-request|remote|mlflow)-(user|email|preferred-username|groups?)"
)

_logger = logging.getLogger(__name__)

visitor: ContextVar[str] = ContextVar("visitor")
"""E-mail of the sender of the request that is being answered; only the gate sets it."""


class Gate:
    """Lets requests through to `app` that carry a valid assertion, under its name.

    Only GET and HEAD of exactly /health and /version are answered without, as MLflow answers them.
    Headers by which a client could name itself are taken off every request.

    Args:
        app: all of MLflow.
        verifier: of this application's assertions.
        static_prefix: under which MLflow serves; empty for none.
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
            _logger.info("A request to %r was refused: %s.", scope["path"], reason)
            sentence = (
                "This request carries no valid assertion of Identity-Aware Proxy: call the "
                "service at the address that Identity-Aware Proxy protects."
            )
            await refuse(scope, send, 401, "UNAUTHENTICATED", sentence)
            return
        except KeysUnavailableError:
            sentence = (
                "The public keys of Identity-Aware Proxy cannot be fetched at the moment, so "
                "that nobody can be let in: try again in a few seconds."
            )
            await refuse(scope, send, 503, "TEMPORARILY_UNAVAILABLE", sentence)
            return
        if is_closed(routed_path(scope, self._static_prefix)):
            sentence = "This part of MLflow is not served here."
            await refuse(scope, send, 404, "ENDPOINT_NOT_FOUND", sentence)
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
        # As the client spelled it: nothing that is decoded to one of them.
        and scope.get("raw_path") in (None, scope["path"].encode())
    )


def _assertion(scope: Scope) -> str:
    found = [value for name, value in scope["headers"] if name.lower() == ASSERTION_HEADER]
    if not found:
        raise InvalidAssertionError("there is none")
    if len(found) > 1:
        raise InvalidAssertionError("there are several")
    assertion: str = found[0].decode("latin-1")
    return assertion


def _without_identity(scope: Scope) -> Scope:
    headers = [
        (name, value)
        for name, value in scope["headers"]
        if not _IDENTITY_HEADER.fullmatch(name.lower().replace(b"_", b"-"))
    ]
    return {**scope, "headers": headers}
