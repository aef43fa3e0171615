"""How much uvicorn keeps of a request that is not complete."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

pytest.importorskip("httptools")

from mlflow_iap_callbacks.server.http_protocol import MAX_UNREAD_BYTES, BoundedHeadersProtocol

_PIECE = 16 * 1024
_MOST = MAX_UNREAD_BYTES + 2 * _PIECE
_BEGIN = b"PUT / HTTP/1.1\r\nHost: a\r\n"
_CHUNKED = _BEGIN + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n"
_MIB = b"a" * 1024 * 1024


class Connection(asyncio.Transport):
    """A client's connection to a server that answers each request with the size of its body.

    Attributes:
        was_closed: whether the server closed it, and not the client at the end.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sent = 0
        self.answer = b""
        self.is_closed = self.was_closed = False
        self.protocol = BoundedHeadersProtocol(Config(_size), ServerState(), {})
        self.protocol.connection_made(self)

    def send(self, data: bytes) -> None:
        """Send data in pieces until the server closes the connection."""
        for start in range(0, len(data), _PIECE):
            if self.is_closed:
                return
            piece = data[start : start + _PIECE]
            self.protocol.data_received(piece)
            self.sent += len(piece)

    async def end_of_requests(self) -> None:
        if self.protocol.tasks:
            _, unfinished = await asyncio.wait(self.protocol.tasks, timeout=10)
            assert not unfinished

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.answer += data

    def close(self) -> None:
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


async def _size(scope: Any, receive: Any, send: Any) -> None:
    size, has_more = 0, True
    while has_more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size, has_more = size + len(message["body"]), message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": f"size {size}".encode()})


def _connection(*sent: bytes) -> Connection:
    async def talk() -> Connection:
        connection = Connection()
        for data in sent:
            connection.send(data)
            if not connection.is_closed:
                await connection.end_of_requests()
        connection.was_closed = connection.is_closed
        connection.protocol.connection_lost(None)
        await connection.end_of_requests()
        return connection

    return asyncio.run(talk())


@pytest.mark.parametrize(
    "endless",
    [
        pytest.param(_BEGIN + b"X: " + _MIB, id="one header"),
        pytest.param(_BEGIN + b"X: a\r\n" * 200_000, id="many headers"),
        pytest.param(_BEGIN + _MIB, id="the name of a header"),
        pytest.param(b"GET /" + _MIB, id="a path"),
        pytest.param(b"\r\n" * 500_000, id="empty lines before a request"),
    ],
)
def test_headers_without_an_end_are_refused_soon(endless: bytes) -> None:
    connection = _connection(endless)
    assert connection.was_closed
    assert connection.sent <= _MOST
    assert connection.answer.startswith(b"HTTP/1.1 400 ")
    assert connection.answer.endswith(b"The headers of this request are too large.")


def test_they_are_refused_after_another_request_too() -> None:
    connection = _connection(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", _BEGIN + b"X: " + _MIB)
    assert connection.was_closed
    assert connection.sent <= _MOST
    assert b"size 0" in connection.answer
    assert connection.answer.endswith(b"The headers of this request are too large.")


@pytest.mark.parametrize(
    "endless",
    [
        pytest.param(b"0\r\n" + b"X: a\r\n" * 200_000, id="trailers"),
        pytest.param(b"0\r\nX: " + _MIB, id="one trailer"),
        pytest.param(b"1;" + _MIB, id="an extension of a chunk"),
    ],
)
def test_what_follows_a_part_of_a_body_without_an_end_closes_the_connection(endless: bytes) -> None:
    connection = _connection(_CHUNKED + endless)
    assert connection.was_closed
    assert connection.sent <= _MOST
    assert connection.answer == b""  # its request has not been answered yet


def test_headers_that_are_almost_too_large_are_accepted_in_each_request() -> None:
    request = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * (MAX_UNREAD_BYTES - 100) + b"\r\n\r\n"
    connection = _connection(request, request, request)
    assert connection.answer.count(b"size 0") == 3
    assert not connection.was_closed


@pytest.mark.parametrize(
    "upload",
    [
        _BEGIN + b"Content-Length: %d\r\n\r\n%sEND" % (len(_MIB) + 3, _MIB),
        _CHUNKED + b"%x\r\n%s\r\n0\r\n\r\n" % (len(_MIB) + 2, _MIB + b"bc"),
    ],
    ids=["with a length", "in chunks"],
)
def test_a_body_may_be_larger(upload: bytes) -> None:
    connection = _connection(upload)
    assert b"size %d" % (len(_MIB) + 3) in connection.answer
    assert not connection.was_closed
