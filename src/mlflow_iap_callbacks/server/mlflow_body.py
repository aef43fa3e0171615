"""The bodies of requests to MLflow's API, as MLflow reads them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

Body = dict[str, Any]

_SHOWN = 200  # characters of a value in a message


class MalformedError(Exception):
    """MLflow could not read the body, for the reason in the message."""


class ForbiddenError(Exception):
    """The request is forbidden, to everyone or to this user, as the message says."""


def parse(body: bytes) -> Body:
    """Return a body as MLflow reads it.

    Raises:
        MalformedError: if it is not a JSON object.
    """
    try:
        content = json.loads(body) if body.strip() else {}
        if isinstance(content, str):  # old clients encode it twice
            content = json.loads(content)
    except (ValueError, RecursionError):
        raise MalformedError("it is not JSON") from None
    if not isinstance(content, dict):
        raise MalformedError("it is not a JSON object")
    return content


def shown(value: Any) -> str:
    """Return a value that a request names, for a message."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def name_in(body: Body, name: str) -> str:
    """Return the spelling of a field in a body.

    Raises:
        MalformedError: if there are two; protobuf would read the last one.
    """
    found = [each for each in spellings(name) if each in body]
    if len(found) > 1:
        raise MalformedError(f"it has both {' and '.join(found)}")
    return found[0] if found else name


def spellings(name: str) -> Iterable[str]:
    """Return the names of a field that protobuf accepts, such as `user_id` and `userId`."""
    first, *others = name.split("_")
    return dict.fromkeys((name, first + "".join(map(str.capitalize, others))))


def object_in(body: Body, name: str) -> Body:
    content = body.setdefault(name_in(body, name), {})
    if content is None:
        content = body[name_in(body, name)] = {}
    if not isinstance(content, dict):
        raise MalformedError(f"{name} is not a JSON object")
    return content


def list_in(body: Body, name: str) -> list[Body]:
    content = body.get(name_in(body, name)) or []
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise MalformedError(f"{name} is not a list of JSON objects")
    return content
