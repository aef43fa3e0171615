"""What clients write, under the name of who sent it."""

from __future__ import annotations

import asyncio
import json

from starlette.types import ASGIApp, Receive, Scope, Send

from .error_response import refuse
from .gate import visitor
from .ownership import (
    MalformedError,
    OwnerIsFixedError,
    Rule,
    parse,
    rule_for,
)
from .request_body import (
    BodyTooLargeError,
    ClientGoneError,
    read_body,
    with_body,
)
from .routed_path import routed_path

# MLflow's largest, a full `log_batch`, is about 1 MB; records of a dataset may be more.
LARGEST_BODY = 8 * 1024 * 1024
# Larger ones are parsed beside the event loop.
_QUICK = 128 * 1024


class Identity:
    """Gives what is written the verified name of its writer, and passes all else as it comes.

    Only the bodies of requests that can name somebody are read; uploads never are.

    Args:
        app: all of MLflow, behind the gate.
        static_prefix: under which MLflow serves; empty for none.
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
                scope, receive = await _signed(rule, scope, receive)
        except ClientGoneError:
            return
        except OwnerIsFixedError:
            sentence = "The owner of a record is who made it, and cannot be taken away."
            await refuse(scope, send, 403, "PERMISSION_DENIED", sentence)
        except BodyTooLargeError:
            sentence = f"The body of this request is larger than {LARGEST_BODY} bytes: send less."
            await refuse(scope, send, 413, "REQUEST_LIMIT_EXCEEDED", sentence)
        except MalformedError as reason:
            sentence = f"The body of this request cannot be read: {reason}."
            await refuse(scope, send, 400, "INVALID_PARAMETER_VALUE", sentence)
        else:
            await self._app(scope, receive, send)


async def _signed(rule: Rule, scope: Scope, receive: Receive) -> tuple[Scope, Receive]:
    for name, value in scope["headers"]:
        # MLflow itself would read such a body as none, and make a record without an owner.
        if name.lower() == b"content-encoding" and value.strip().lower() != b"identity":
            raise MalformedError(f"its content encoding is {value.decode('latin-1')}")
    body = await read_body(receive, LARGEST_BODY)
    if len(body) > _QUICK:
        body = await asyncio.to_thread(_rewrite, rule, body, visitor.get())
    else:
        body = _rewrite(rule, body, visitor.get())
    return with_body(scope, receive, body)


def _rewrite(rule: Rule, body: bytes, email: str) -> bytes:
    content = parse(body)
    rule(content, email)
    return json.dumps(content).encode()
