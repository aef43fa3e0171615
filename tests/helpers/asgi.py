"""Sends requests to an ASGI application in this process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Headers = Mapping[str, str] | Iterable[tuple[str, str]]


@dataclass
class Answer:
    status: int = 0
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


async def call(
    app: Any,
    path: str,
    method: str = "GET",
    headers: Headers = (),
    body: bytes | list[bytes] = b"",
    **scope: Any,
) -> Answer:
    """Send a request, with its body in one piece or in the given pieces."""
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    pieces = list(body) if isinstance(body, list) else [body]
    messages = [
        {"type": "http.request", "body": piece, "more_body": number < len(pieces) - 1}
        for number, piece in enumerate(pieces)
    ]
    answer = Answer()

    async def receive() -> dict[str, Any]:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {
                name.decode().lower(): value.decode() for name, value in message["headers"]
            }
        elif message["type"] == "http.response.body":
            answer.body += message.get("body", b"")
        elif message["type"] == "websocket.close":
            answer.status = 403  # as uvicorn passes it on

    await app(
        {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(name.lower().encode(), value.encode()) for name, value in pairs],
            "server": ("127.0.0.1", 80),
            "client": ("127.0.0.1", 1),
            **scope,
        },
        receive,
        send,
    )
    return answer


class Recorder:
    """An application that keeps the last request."""

    def __init__(self) -> None:
        self.calls = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.pieces = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.calls += 1
        self.headers = {name.decode(): value.decode() for name, value in scope.get("headers", ())}
        self.body, self.pieces = b"", 0
        more = scope["type"] == "http"
        while more:
            message = await receive()
            self.body += message.get("body", b"")
            self.pieces += 1
            more = message.get("more_body", False)
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"in"})
