"""The gate's error responses, in MLflow's format."""

from __future__ import annotations

import json
import re

from starlette.types import Scope, Send

_API = re.compile("/(ajax-)?api/")


async def send_error(scope: Scope, send: Send, status: int, error_code: str, message: str) -> None:
    """Respond with an error: as JSON on the paths of MLflow's API, as plain text elsewhere.

    A WebSocket is closed before it opens; the client sees status 403.
    """
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    if _API.search(scope["path"]):
        body = json.dumps({"error_code": error_code, "message": message}).encode()
        kind = b"application/json"
    else:
        body, kind = message.encode() + b"\n", b"text/plain; charset=utf-8"
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
