"""How much of a request's body is read, and for how long."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from typing import Any

import pytest

from asgi import Answer, Recorder, call
from mlflow_iap_callbacks.server.body_middleware import BodyMiddleware
from mlflow_iap_callbacks.server.gate import visitor

pytest.importorskip("flask_wtf", reason="the extra `server` is not installed")

_SPANS = b"\x0a\x02\x12\x00" * 1000
_GZIPPED = gzip.compress(_SPANS, mtime=0)  # so that each worker finds the same tests
_RECORDS = "/api/3.0/mlflow/datasets/d-1/records"
_MIB = 1024 * 1024


def _ask(
    path: str, body: bytes | list[bytes], *, method: str = "POST", **headers: str
) -> tuple[Answer, Recorder]:
    app = Recorder()

    async def ask() -> Answer:
        visitor.set("ada@example.com")
        return await call(BodyMiddleware(app), path, method, headers, body)

    return asyncio.run(ask()), app


def _encoded(encoding: str, body: bytes) -> tuple[Answer, Recorder]:
    return _ask("/v1/traces", body, **{"Content-Encoding": encoding})


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", _GZIPPED),
        ("GZIP ", _GZIPPED),
        ("deflate", zlib.compress(_SPANS)),
        ("deflate", zlib.compress(_SPANS)[2:-4]),
        ("identity", _SPANS),
        ("", _SPANS),
    ],
)
def test_compressed_spans_are_unpacked_before_mlflow_gets_them(encoding: str, body: bytes) -> None:
    answer, app = _encoded(encoding, body)
    assert (answer.status, app.body) == (200, _SPANS)
    assert "content-encoding" not in app.headers
    assert app.headers["content-length"] == str(len(_SPANS))


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_small_body_that_unpacks_to_more_than_the_limit_is_rejected(encoding: str) -> None:
    bomb = (gzip.compress if encoding == "gzip" else zlib.compress)(bytes(33 * _MIB))
    assert len(bomb) < 100_000
    answer, app = _encoded(encoding, bomb)
    assert (answer.status, app.calls) == (413, 0)


def test_spans_are_limited_under_each_spelling_of_their_route() -> None:
    bomb = gzip.compress(bytes(33 * _MIB), mtime=0)
    answer, app = _ask("//v1//traces", bomb, **{"Content-Encoding": "gzip"})
    assert (answer.status, app.calls) == (413, 0)


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", b"no gzip"),
        ("gzip", _GZIPPED[:-9]),
        ("gzip", _GZIPPED + b"more"),
        ("deflate", b"\xff\xff"),
        ("br", b""),
        ("gzip, gzip", gzip.compress(_GZIPPED, mtime=0)),
    ],
)
def test_an_unreadable_compressed_body_is_rejected(encoding: str, body: bytes) -> None:
    answer, app = _encoded(encoding, body)
    assert (answer.status, app.calls) == (400, 0)
    assert encoding.strip().encode() in answer.body


def test_records_of_a_dataset_may_be_as_large_as_a_request() -> None:
    records = json.dumps([{"inputs": {"q": "x" * _MIB}}] * 20)
    answer, app = _ask(_RECORDS, json.dumps({"records": records}).encode())
    assert answer.status == 200
    assert json.loads(json.loads(app.body)["records"]) == json.loads(records)
    answer, app = _ask(_RECORDS, [b" " * _MIB] * 33)
    assert (answer.status, app.calls) == (413, 0)


@pytest.mark.parametrize("path", [_RECORDS, "/api/2.0/mlflow/runs/create", "/v1/traces"])
def test_a_body_that_does_not_arrive_in_time_is_rejected(path: str) -> None:
    status, calls = asyncio.run(_unfinished(path))
    assert (status, calls) == (408, 0)


def test_an_upload_that_does_not_arrive_in_time_ends_as_if_its_client_were_gone() -> None:
    status, calls = asyncio.run(_unfinished("/api/2.0/mlflow-artifacts/artifacts/1/x"))
    assert (status, calls) == (0, 1)


async def _unfinished(path: str) -> tuple[int, int]:
    """Send a request whose body never ends, and return the status of its response, if any."""
    received: list[Any] = [{"type": "http.request", "body": b"{", "more_body": True}]
    statuses, calls = [0], 0

    async def receive() -> Any:
        if received:
            return received.pop()
        return await asyncio.Event().wait()

    async def send(message: Any) -> None:
        statuses.append(message.get("status", statuses[-1]))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal calls
        calls += 1
        while (await receive())["type"] != "http.disconnect":
            pass

    visitor.set("ada@example.com")
    method = "PUT" if "artifacts" in path else "POST"
    scope = {"type": "http", "method": method, "path": path, "headers": []}
    middleware = BodyMiddleware(app, seconds=0.01, upload_seconds=0.01)
    await middleware(scope, receive, send)
    return statuses[-1], calls
