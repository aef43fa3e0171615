"""Makes the verified sender the owner of what a client writes, by the rules in `ownership.py`."""

from __future__ import annotations

import asyncio
import json

from starlette.types import ASGIApp, Receive, Scope, Send

from .error_response import send_error
from .gate import visitor
from .ownership import MalformedError, OwnerIsFixedError, Rule, parse, rule_for
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


class OwnershipMiddleware:
    """Replaces the owner in requests with the sender, and passes on all other requests unchanged.

    It reads the body of a request only if that can name an owner. It never reads an upload.

    Args:
        app: MLflow's app, behind the gate.
        static_prefix: path prefix under which MLflow is served; empty for none.
    """

    def __init__(self, app: ASGIApp, *, static_prefix: str = "") -> None:
        self._app = app
        self._static_prefix = static_prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            rule = rule_for(scope["method"], routed_path(scope, self._static_prefix))
            if rule is not None:
                scope, receive = await _with_owner(rule, scope, receive)
        except ClientDisconnectedError:
            return
        except OwnerIsFixedError:
            message = "The owner of a record is the user who created it, and cannot be removed."
            await send_error(scope, send, 403, "PERMISSION_DENIED", message)
        except BodyTooLargeError:
            message = f"The body of this request is larger than {MAX_BODY_BYTES} bytes: send less."
            await send_error(scope, send, 413, "REQUEST_LIMIT_EXCEEDED", message)
        except MalformedError as reason:
            message = f"The body of this request cannot be read: {reason}."
            await send_error(scope, send, 400, "INVALID_PARAMETER_VALUE", message)
        else:
            await self._app(scope, receive, send)


async def _with_owner(rule: Rule, scope: Scope, receive: Receive) -> tuple[Scope, Receive]:
    for name, value in scope["headers"]:
        # MLflow itself would read such a body as empty, and create a record without an owner.
        if name.lower() == b"content-encoding" and value.strip().lower() != b"identity":
            raise MalformedError(f"its content encoding is {value.decode('latin-1')}")
    body = await read_body(receive)
    if len(body) > _QUICKLY_PARSED_BYTES:
        body = await asyncio.to_thread(_rewrite, rule, body, visitor.get())
    else:
        body = _rewrite(rule, body, visitor.get())
    return with_body(scope, receive, body)


def _rewrite(rule: Rule, body: bytes, email: str) -> bytes:
    content = parse(body)
    rule(content, email)
    return json.dumps(content).encode()
