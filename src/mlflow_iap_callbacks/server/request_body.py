"""Reads the body of a request, up to a limit, and replaces it."""

from __future__ import annotations

import asyncio
import time
import zlib

from starlette.types import Message, Receive, Scope

# With zlib's numbers for these formats. Some clients send `deflate` without its header.
_ENCODINGS = {b"gzip": (31,), b"deflate": (15, -15)}


class BodyTooLargeError(Exception):
    """The body has more bytes than the limit in ``args``; it was not read to its end."""


class BodyTooSlowError(Exception):
    """The body did not arrive in time."""


class UnreadableEncodingError(Exception):
    """The body is not compressed as its header says, or the header's encoding is unknown."""


class ClientDisconnectedError(Exception):
    """The client disconnected before it had sent its whole body."""


async def read_body(receive: Receive, limit: int, seconds: float) -> bytes:
    """Return a request's body.

    Raises:
        BodyTooLargeError: if it has more bytes than `limit`.
        BodyTooSlowError: if it has not arrived after this many seconds.
        ClientDisconnectedError: if the client disconnected.
    """
    try:
        return await asyncio.wait_for(_read(receive, limit), seconds)
    except asyncio.TimeoutError:
        raise BodyTooSlowError from None


async def _read(receive: Receive, limit: int) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnectedError
        body += message.get("body", b"")
        if len(body) > limit:
            raise BodyTooLargeError(limit)
        if not message.get("more_body", False):
            return bytes(body)


def encoding_of(scope: Scope) -> bytes:
    """Return the name of a body's compression, in lower case; empty if it has none."""
    names = (
        value.strip().lower()
        for name, value in scope["headers"]
        if name.lower() == b"content-encoding"
    )
    return b",".join(name for name in names if name not in (b"", b"identity"))


def unpack(body: bytes, encoding: bytes, limit: int) -> bytes:
    """Return a compressed body as it was before.

    Raises:
        UnreadableEncodingError: if it cannot be read.
        BodyTooLargeError: if it would have more bytes than `limit`.
    """
    for number in _ENCODINGS.get(encoding, ()):
        unpacker = zlib.decompressobj(number)
        try:
            content = unpacker.decompress(body, limit + 1)
        except zlib.error:
            continue
        if len(content) > limit:
            raise BodyTooLargeError(limit)
        if unpacker.eof and not unpacker.unused_data:
            return content
    raise UnreadableEncodingError


def with_body(scope: Scope, receive: Receive, body: bytes) -> tuple[Scope, Receive]:
    """Return the request with `body` in place of the body that was read."""
    replaced = (b"content-length", b"transfer-encoding", b"content-encoding")
    headers = [(name, value) for name, value in scope["headers"] if name.lower() not in replaced]
    headers.append((b"content-length", str(len(body)).encode()))
    unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return unread.pop() if unread else await receive()

    return {**scope, "headers": headers}, replay


def with_deadline(receive: Receive, seconds: float) -> Receive:
    """Make the client seem to disconnect if the body has not arrived in time."""
    ends = time.monotonic() + seconds
    has_more = True

    async def receive_in_time() -> Message:
        nonlocal has_more
        if not has_more:  # waits for the client to disconnect, as long as the response takes
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), max(0.0, ends - time.monotonic()))
        except asyncio.TimeoutError:
            has_more = False
            return {"type": "http.disconnect"}
        has_more = bool(message.get("more_body", False))
        return message

    return receive_in_time
