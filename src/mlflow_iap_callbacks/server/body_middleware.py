"""Applies the rules for the bodies of requests: `ownership.py` and `locations.py`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from .error_response import send_error
from .gate import visitor
from .locations import not_allowed, require_allowed
from .mlflow_body import ForbiddenError, MalformedError, parse
from .ownership import require_kept
from .request_body import (
    BodyTooLargeError,
    BodyTooSlowError,
    ClientDisconnectedError,
    UnreadableEncodingError,
    encoding_of,
    read_body,
    unpack,
    with_body,
    with_deadline,
)
from .routes import MAX_RECORDS_BYTES, Route, route_of, routed_path
from .webhooks import require_host

# Larger bodies are parsed in a thread, to keep the event loop responsive, and few at once: one of
# 32 MB takes 200 MB.
_QUICKLY_PARSED_BYTES = 128 * 1024
_LARGE_AT_ONCE = 2
# Seconds for the body of a request that has to be read here, and for that of an upload.
_READ_SECONDS, _UPLOAD_SECONDS = 120.0, 900.0

_RUN_HEADER = b"x-mlflow-run-id"  # to which spans are linked

MayUse = Callable[[str, str, str], bool]


class BodyMiddleware:
    """Makes the sender the owner of what a request writes, and checks locations of artifacts.

    It reads the body of a request only if that can name an owner or a location, or has spans. It
    never reads an upload, and passes on all other requests unchanged.

    Args:
        app: MLflow's app, behind the gate.
        locations: URIs under which requests may name locations, besides the server's own artifacts.
        may_use: with permissions, tells whether a user may use a location of the server's own
            artifacts; its arguments are the user, the location, and the path of the request.
        webhook_hosts: hosts to which webhooks may send requests.
        static_prefix: path prefix under which MLflow is served; empty for none.
        seconds: time limit for a body that is read.
        upload_seconds: time limit for any other body.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        locations: Sequence[str] = (),
        may_use: MayUse | None = None,
        webhook_hosts: Sequence[str] = (),
        static_prefix: str = "",
        seconds: float = _READ_SECONDS,
        upload_seconds: float = _UPLOAD_SECONDS,
    ) -> None:
        self._app = app
        self._locations = locations
        self._may_use = may_use
        self._webhook_hosts = webhook_hosts
        self._static_prefix = static_prefix
        self._seconds = seconds
        self._upload_seconds = upload_seconds
        self._large = asyncio.Semaphore(_LARGE_AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            path = routed_path(scope, self._static_prefix)
            require_kept(scope["method"], path)
            route = route_of(scope["method"], path)
            if route is not None and route.has_rules:
                scope, receive = await self._with_rules(route, path, scope, receive)
            elif route is not None and route.has_spans:
                scope, receive = await self._spans(path, scope, receive)
            else:
                receive = with_deadline(receive, self._upload_seconds)
        except ClientDisconnectedError:
            return
        except ForbiddenError as reason:
            await send_error(scope, send, 403, "PERMISSION_DENIED", str(reason))
        except BodyTooLargeError as error:
            message = f"The body of this request is larger than {error} bytes: send less."
            await send_error(scope, send, 413, "REQUEST_LIMIT_EXCEEDED", message)
        except BodyTooSlowError:
            message = f"The body of this request has not arrived in {self._seconds:g} s: send less."
            await send_error(scope, send, 408, "REQUEST_LIMIT_EXCEEDED", message)
        except MalformedError as reason:
            message = f"The body of this request cannot be read: {reason}."
            await send_error(scope, send, 400, "INVALID_PARAMETER_VALUE", message)
        else:
            await self._app(scope, receive, send)

    async def _spans(self, path: str, scope: Scope, receive: Receive) -> tuple[Scope, Receive]:
        runs = [value for name, value in scope["headers"] if name.lower() == _RUN_HEADER]
        for run in runs if self._may_use else ():
            uri = f"runs:/{run.decode('latin-1')}/"
            await asyncio.to_thread(self._require_allowed, uri, visitor.get(), path)
        # MLflow would unpack them without a limit: 300 kB may become 600 MB.
        body = await self._read(receive, MAX_RECORDS_BYTES)
        if encoding := encoding_of(scope):
            try:
                async with self._large:
                    body = await asyncio.to_thread(unpack, body, encoding, MAX_RECORDS_BYTES)
            except UnreadableEncodingError:
                name = encoding.decode("latin-1")
                raise MalformedError(f"it cannot be unpacked as {name}") from None
        return with_body(scope, receive, body)

    async def _with_rules(
        self, route: Route, path: str, scope: Scope, receive: Receive
    ) -> tuple[Scope, Receive]:
        if encoding := encoding_of(scope):
            # MLflow itself would read such a body as empty, and create a record without an owner.
            raise MalformedError(f"its encoding {encoding.decode('latin-1')} is not supported")
        body = await self._read(receive, route.max_body)
        apply = partial(self._applied, route, path, body, visitor.get())
        if len(body) > _QUICKLY_PARSED_BYTES:
            async with self._large:
                return with_body(scope, receive, await asyncio.to_thread(apply))
        if route.named and self._may_use:  # asks the database
            return with_body(scope, receive, await asyncio.to_thread(apply))
        return with_body(scope, receive, apply())

    async def _read(self, receive: Receive, limit: int) -> bytes:
        return await read_body(receive, limit, self._seconds)

    def _applied(self, route: Route, path: str, body: bytes, email: str) -> bytes:
        content = parse(body)
        for location in route.named(content) if route.named else ():
            self._require_allowed(location, email, path)
        for url in route.urls(content) if route.urls else ():
            require_host(url, self._webhook_hosts)
        if route.owner is not None:
            route.owner(content, email)
        return json.dumps(content).encode()

    def _require_allowed(self, location: Any, email: str, path: str) -> None:
        require_allowed(location, self._locations)
        if location and self._may_use and not self._may_use(email, location, path):
            raise not_allowed(location)
