"""Reads the body of a request, up to a limit, and replaces it."""

from __future__ import annotations

from starlette.types import Message, Receive, Scope

# MLflow's largest JSON body, a full `log_batch`, is about 1 MB; records of a dataset may be more.
MAX_BODY_BYTES = 8 * 1024 * 1024


class BodyTooLargeError(Exception):
    """The body has more than MAX_BODY_BYTES; it was not read to its end."""


class ClientDisconnectedError(Exception):
    """The client disconnected before it had sent its whole body."""


async def read_body(receive: Receive) -> bytes:
    """Return a request's body.

    Raises:
        BodyTooLargeError: if it has more than MAX_BODY_BYTES.
        ClientDisconnectedError: if the client disconnected.
    """
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnectedError
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            raise BodyTooLargeError
        if not message.get("more_body", False):
            return bytes(body)


def with_body(scope: Scope, receive: Receive, body: bytes) -> tuple[Scope, Receive]:
    """Return the request with `body` in place of the body that was read."""
    headers = [
        (name, value)
        for name, value in scope["headers"]
        if name.lower() not in (b"content-length", b"transfer-encoding")
    ]
    headers.append((b"content-length", str(len(body)).encode()))
    unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return unread.pop() if unread else await receive()

    return {**scope, "headers": headers}, replay
