"""The fields of requests that write: each has been decided on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor

from mlflow_iap_callbacks.server.routes import route_of

pytest.importorskip("flask_wtf", reason="the extra `server` is not installed")

# "MESSAGE: FIELD, FIELD", several lines for a long message.
_KNOWN = Path(__file__).with_name("known_fields.txt")


def _fields(message: Descriptor) -> Iterator[tuple[str, str]]:
    """Yield each field of a message and of those within it, with the name of its message."""
    left, seen = [message], {message.full_name}
    while left:
        each = left.pop()
        for field in each.fields:
            yield each.name, field.name
            inner = field.message_type
            if inner is None or inner.full_name in seen:
                continue
            seen.add(inner.full_name)
            if not inner.full_name.startswith("google."):
                left.append(inner)


def test_each_field_of_a_request_that_writes_has_been_decided_on() -> None:
    from mlflow.server.handlers import get_endpoints

    found: set[tuple[str, str]] = set()
    for path, message, methods in get_endpoints(lambda message: message):
        descriptor = getattr(message, "DESCRIPTOR", None)
        path = re.sub("<[^>]*>", "x", path)
        is_served = any(route_of(method, path) for method in methods if method != "GET")
        if isinstance(descriptor, Descriptor) and is_served:
            found.update(_fields(descriptor))
    lines = [line.partition(": ") for line in _KNOWN.read_text().splitlines()]
    known = {(name, field) for name, _, fields in lines for field in fields.split(", ")}
    assert len(found) > 300
    assert found - known == set(), "decide on them in routes.py, then add them to the file"
