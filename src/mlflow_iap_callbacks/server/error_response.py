"""The answers that do not come from MLflow, in its form."""

from __future__ import annotations

import json
import re

from starlette.types import Scope, Send

_API = re.compile("/(ajax-)?api/")


async def refuse(scope: Scope, send: Send, status: int, error_code: str, sentence: str) -> None:
    """Answer with one plain sentence, as JSON like MLflow's errors on the paths of its API.

    A WebSocket is closed before it opens, which a client sees as status 403.
    """
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    if _API.search(scope["path"]):
        body = json.dumps({"error_code": error_code, "message": sentence}).encode()
        kind = b"application/json"
    else:
        body, kind = sentence.encode() + b"\n", b"text/plain; charset=utf-8"
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
