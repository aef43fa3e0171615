"""The body of a request, read whole up to a limit, and given on."""

from __future__ import annotations

from starlette.types import Message, Receive, Scope


class BodyTooLargeError(Exception):
    """The body is larger than the limit; not all of it was read."""


class ClientGoneError(Exception):
    """The client hung up before its body had come."""


async def read_body(receive: Receive, limit: int) -> bytes:
    """Return the body, of at most `limit` bytes, sent in chunks or not.

    Raises:
        BodyTooLargeError, ClientGoneError: as they say.
    """
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > limit:
            raise BodyTooLargeError
        if not message.get("more_body", False):
            return b"".join(chunks)


def with_body(scope: Scope, receive: Receive, body: bytes) -> tuple[Scope, Receive]:
    """Return the request with another body in the place of the one that was read."""
    kept = [
        (name, value)
        for name, value in scope["headers"]
        if name.lower() not in (b"content-length", b"transfer-encoding")
    ]
    headers = [*kept, (b"content-length", str(len(body)).encode())]
    left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return left.pop() if left else await receive()

    return {**scope, "headers": headers}, replay
