"""The bodies of requests to MLflow's API, as MLflow reads them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, TypeVar

Body = dict[str, Any]
_Rule = TypeVar("_Rule")
Rules = list[tuple[re.Pattern[str], frozenset[str], _Rule]]

_API = re.compile(r"/(ajax-)?api/\d+\.\d+/mlflow/(?P<call>.*?)/?", re.DOTALL)


class MalformedError(Exception):
    """MLflow could not read the body, for the reason in the message."""


def call_of(path: str) -> str | None:
    """Return the part of a path that names a call of MLflow's API, such as ``runs/create``."""
    found = _API.fullmatch(re.sub("/+", "/", path))
    return found and found["call"]


def rules(*rows: tuple[str, str, _Rule]) -> Rules[_Rule]:
    """Return a table of rules from the pattern of a call, its HTTP methods, and a rule."""
    return [
        (re.compile(pattern), frozenset(methods.split()), rule) for pattern, methods, rule in rows
    ]


def first_rule(table: Rules[_Rule], method: str, path: str) -> _Rule | None:
    """Return the first rule of a table for a request; None if there is none."""
    call, method = call_of(path), method.upper()  # as Flask does
    for pattern, methods, rule in table if call is not None else ():
        if method in methods and pattern.fullmatch(str(call)):
            return rule
    return None


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


def name_in(body: Body, name: str) -> str:
    """Return the spelling of a field in a body."""
    return next((each for each in spellings(name) if each in body), name)


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
