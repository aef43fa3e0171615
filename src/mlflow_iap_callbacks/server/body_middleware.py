"""Applies the rules for the bodies of requests: `ownership.py` and `locations.py`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from functools import partial

from starlette.types import ASGIApp, Receive, Scope, Send

from .error_response import send_error
from .gate import visitor
from .locations import LocationNotAllowedError, Named, locations_of, require_allowed
from .mlflow_body import MalformedError, parse
from .ownership import OwnerIsFixedError, Rule, rule_for
from .request_body import (
    MAX_BODY_BYTES,
    BodyTooLargeError,
    ClientDisconnectedError,
    read_body,
    with_body,
)
from .routes import routed_path

# Larger bodies are parsed in a thread, to keep the event loop responsive.
_QUICKLY_PARSED_BYTES = 128 * 1024


class BodyMiddleware:
    """Makes the sender the owner of what a request writes, and checks locations of artifacts.

    It reads the body of a request only if that can name an owner or a location. It never reads an
    upload, and passes on all other requests unchanged.

    Args:
        app: MLflow's app, behind the gate.
        locations: URIs under which requests may name locations, besides the server's own artifacts.
        static_prefix: path prefix under which MLflow is served; empty for none.
    """

    def __init__(
        self, app: ASGIApp, *, locations: Sequence[str] = (), static_prefix: str = ""
    ) -> None:
        self._app = app
        self._locations = locations
        self._static_prefix = static_prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            method, path = scope["method"], routed_path(scope, self._static_prefix)
            rule, named = rule_for(method, path), locations_of(method, path)
            if rule is not None or named is not None:
                scope, receive = await self._with_rules(rule, named, scope, receive)
        except ClientDisconnectedError:
            return
        except OwnerIsFixedError:
            message = "The owner of a record is the user who created it, and cannot be removed."
            await send_error(scope, send, 403, "PERMISSION_DENIED", message)
        except LocationNotAllowedError:
            message = (
                "This request names a location of artifacts that is not allowed: omit it, or use "
                "one that begins with mlflow-artifacts:/, runs:/ or models:/. An administrator can "
                "allow others with MLFLOW_IAP_LOCATIONS."
            )
            await send_error(scope, send, 403, "PERMISSION_DENIED", message)
        except BodyTooLargeError:
            message = f"The body of this request is larger than {MAX_BODY_BYTES} bytes: send less."
            await send_error(scope, send, 413, "REQUEST_LIMIT_EXCEEDED", message)
        except MalformedError as reason:
            message = f"The body of this request cannot be read: {reason}."
            await send_error(scope, send, 400, "INVALID_PARAMETER_VALUE", message)
        else:
            await self._app(scope, receive, send)

    async def _with_rules(
        self, rule: Rule | None, named: Named | None, scope: Scope, receive: Receive
    ) -> tuple[Scope, Receive]:
        for name, value in scope["headers"]:
            # MLflow itself would read such a body as empty, and create a record without an owner.
            if name.lower() == b"content-encoding" and value.strip().lower() != b"identity":
                raise MalformedError(f"its content encoding is {value.decode('latin-1')}")
        body = await read_body(receive)
        apply = partial(self._applied, rule, named, body, visitor.get())
        is_long = len(body) > _QUICKLY_PARSED_BYTES
        return with_body(scope, receive, await asyncio.to_thread(apply) if is_long else apply())

    def _applied(self, rule: Rule | None, named: Named | None, body: bytes, email: str) -> bytes:
        content = parse(body)
        for location in named(content) if named else ():
            require_allowed(location, self._locations)
        if rule is not None:
            rule(content, email)
        return json.dumps(content).encode()
