"""The gate in front of MLflow: admits only requests with a valid assertion."""

from __future__ import annotations

import re
from collections.abc import Collection
from contextvars import ContextVar
from typing import Any

from mlflow.version import VERSION
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .access_log import AccessLog
from .assertion import InvalidAssertionError, Verifier
from .error_response import send_error
from .public_keys import KeysUnavailableError
from .routes import has_control_characters, route_of, routed_path
from .stand_ins import stand_in_for

ASSERTION_HEADER = b"x-goog-iap-jwt-assertion"

# For the load balancer's health checks, which have no assertion. They do not reach MLflow.
_OPEN = {"/health": "OK", "/version": VERSION}
# Matched with `_` replaced by `-`, because WSGI does not distinguish them: Flask would read
# `X_Forwarded_User` as X-Forwarded-User.
_IDENTITY_HEADER = re.compile(
    rb"x-goog-.*|(proxy-)?authorization|remote-user"
    rb"|x-(forwarded|auth-request|remote|mlflow)-(user|email|preferred-username|groups?)"
)

# Refusals by MLflow, or by the rules for bodies, and why.
_REFUSALS = {
    401: "MLflow does not know this user.",
    403: "This user may not do this.",
    408: "The body arrived too slowly.",
    413: "The body is too large.",
}
_MAX_HEADER_BYTES = 64 * 1024  # in all, and more than Google's front end passes on

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
        features: those that routes may need and that are on.
        log: logs sign-ins and refusals.
    """

    def __init__(
        self,
        app: ASGIApp,
        verifier: Verifier,
        *,
        static_prefix: str = "",
        features: Collection[str] = (),
        log: AccessLog | None = None,
    ) -> None:
        self._app = app
        self._verifier = verifier
        self._static_prefix = static_prefix
        self._features = features
        self._log = log or AccessLog()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif _is_open(scope):
            await PlainTextResponse(_OPEN[scope["path"]])(scope, receive, send)
        else:
            await self._check(scope, receive, send)

    async def _check(self, scope: Scope, receive: Receive, send: Send) -> None:
        email = ""
        try:
            _require_short_headers(scope)
            email = await self._verifier.email(_assertion(scope))
            self._log.signed_in(scope, email)
            answer = self._require_served(scope)
        except _RefusedError as refusal:
            self._log.refused(scope, refusal.status, refusal.message, email)
            await send_error(scope, send, refusal.status, refusal.code, refusal.message)
            return
        except InvalidAssertionError as reason:
            self._log.refused(scope, 401, str(reason), "")
            message = (
                "This request has no valid assertion of Identity-Aware Proxy: use the address that "
                "Identity-Aware Proxy protects."
            )
            await send_error(scope, send, 401, "UNAUTHENTICATED", message)
            return
        except KeysUnavailableError:
            message = (
                "The assertion of this request cannot be verified at the moment, because this "
                "server does not have its key among the public keys of Identity-Aware Proxy: try "
                "again in a few seconds."
            )
            self._log.refused(scope, 503, message, "")
            await send_error(scope, send, 503, "TEMPORARILY_UNAVAILABLE", message)
            return
        if answer is not None:
            await JSONResponse(answer)(scope, receive, send)
            return
        token = visitor.set(email)
        try:
            await self._app(_without_identity(scope), receive, self._logged(scope, send, email))
        finally:
            visitor.reset(token)

    def _require_served(self, scope: Scope) -> Any:
        """Check that a route is served; return the answer to give in place of MLflow's, if any."""
        if has_control_characters(scope["path"]):
            message = "The path of this request contains a control character."
            raise _RefusedError(400, "INVALID_PARAMETER_VALUE", message)
        method, path = scope.get("method", "GET"), routed_path(scope, self._static_prefix)
        route = route_of(method, path)
        if route is not None and (not route.needs or route.needs in self._features):
            return None
        answer = stand_in_for(method, path) if scope["type"] == "http" else None
        if answer is None:
            message = "This server does not serve this part of MLflow."
            raise _RefusedError(404, "ENDPOINT_NOT_FOUND", message)
        return answer

    def _logged(self, scope: Scope, send: Send, email: str) -> Send:
        async def send_logged(message: Message) -> None:
            status = message.get("status")
            if message["type"] == "http.response.start" and status in _REFUSALS:
                self._log.refused(scope, status, _REFUSALS[status], email)
            await send(message)

        return send_logged


class _RefusedError(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


def _require_short_headers(scope: Scope) -> None:
    size = sum(len(name) + len(value) for name, value in scope["headers"])
    size += len(scope.get("raw_path") or b"") + len(scope.get("query_string", b""))
    if size > _MAX_HEADER_BYTES:
        message = f"The headers of this request are larger than {_MAX_HEADER_BYTES} bytes."
        raise _RefusedError(431, "REQUEST_LIMIT_EXCEEDED", message)


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
