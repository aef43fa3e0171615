"""Requests for every route that the gate serves, generated from its table and MLflow's protobuf."""

from __future__ import annotations

import importlib
import itertools
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import strategies as st
from mlflow.server.handlers import get_endpoints

from mlflow_iap_callbacks.server.routes import ROUTES

_parser: Any = importlib.import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")

_SEGMENT, _PATH = "{segment}", "{path}"
# Fields of requests that have no protobuf.
_OTHERS = (
    *("run_id", "run_uuid", "run_ids", "experiment_id", "experiment_ids", "name", "version"),
    *("path", "request_id", "trace_id", "metric_key", "model_id", "artifact_path", "username"),
    *("resource_type", "resource_id", "resource_pattern", "permission", "max_results"),
)
_VERSION = r"\d+\.\d+"
_DEPTH = 3
_TEXTS = {  # messages that are texts in JSON
    "google.protobuf.Timestamp": "2026-01-01T00:00:00Z",
    "google.protobuf.Duration": "1s",
    "google.protobuf.Value": "value",
}


class Request(NamedTuple):
    method: str
    path: str
    query: Sequence[tuple[str, str]]
    body: Mapping[str, Any] | None


@cache
def calls() -> list[tuple[str, str]]:
    """Return each method and path of the table; a path has placeholders for what varies."""
    return sorted(
        {
            (method, path)
            for route in ROUTES
            for method in route.methods
            for path in _paths(_parser.parse(route.path.pattern.replace(_VERSION, "VERSION")))
        }
    )


def requests(
    method: str, path: str, known: Mapping[str, Sequence[str]]
) -> st.SearchStrategy[Request]:
    """Generate requests of one of `calls` whose fields have known values.

    Args:
        method: the HTTP method.
        path: the path, with placeholders.
        known: the values of a field, by its name; those of "" are for any other field and for
            the segments of paths, and those of "path" for paths of artifacts.
    """

    messages = _messages().get((method, _pattern(path)))

    @st.composite
    def request(draw: st.DrawFn) -> Request:
        filled = path.replace("VERSION", draw(st.sampled_from(["3.0", "2.0"])))
        while _SEGMENT in filled:
            filled = filled.replace(_SEGMENT, draw(st.sampled_from(known[""])), 1)
        while _PATH in filled:
            filled = filled.replace(_PATH, draw(st.sampled_from(known["path"])), 1)
        message = draw(st.sampled_from(messages)) if messages else None
        content = draw(_content(message, known) if message else _other(known))
        if method != "GET":
            return Request(method, filled, (), content)
        query = [
            (name, str(value))
            for name, given in content.items()
            for value in (given if isinstance(given, list) else [given])
        ]
        return Request(method, filled, query, None)

    return request()


def _other(known: Mapping[str, Sequence[str]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional={name: _value(name, known) for name in _OTHERS})


def _content(
    message: Descriptor, known: Mapping[str, Sequence[str]], depth: int = 0
) -> st.SearchStrategy[dict[str, Any]]:
    fields: dict[str, st.SearchStrategy[Any]] = {}
    for field in message.fields:
        value = _field(field, known, depth)
        if value is not None:
            fields[field.name] = value
    # Mostly all, since MLflow rejects requests without what they need.
    everything = st.fixed_dictionaries(fields)
    few = st.fixed_dictionaries({}, optional=fields)
    if depth or not fields:
        return st.one_of(everything, few, few.map(_camel))
    odd = st.builds(_unreadable_first, everything, st.sampled_from(list(fields)))
    return st.one_of(everything, few, few.map(_camel), odd)


def _field(
    field: FieldDescriptor, known: Mapping[str, Sequence[str]], depth: int
) -> st.SearchStrategy[Any] | None:
    if field.message_type is not None and field.message_type.full_name in _TEXTS:
        value: st.SearchStrategy[Any] = st.just(_TEXTS[field.message_type.full_name])
    elif field.message_type is not None:
        if depth == _DEPTH or field.message_type.GetOptions().map_entry:
            return None
        value = _content(field.message_type, known, depth + 1)
    elif field.enum_type is not None:
        value = st.sampled_from([each.name for each in field.enum_type.values])
    elif field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        value = _value(field.name, known)
    elif field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        value = st.booleans()
    else:
        value = st.integers(0, 3)
    return st.lists(value, min_size=1, max_size=2) if field.is_repeated else value


def _value(name: str, known: Mapping[str, Sequence[str]]) -> st.SearchStrategy[str]:
    return st.sampled_from(known.get(name) or known.get(name.removesuffix("s")) or known[""])


def _unreadable_first(content: dict[str, Any], name: str) -> dict[str, Any]:
    """Give a field another type, and put it before those that MLflow must not ignore then."""
    value = [{"$": 0}] if isinstance(content[name], list) else {"$": 0}
    return {name: value, **{each: content[each] for each in content if each != name}}


def _camel(content: dict[str, Any]) -> dict[str, Any]:
    return {re.sub("_(.)", lambda found: found[1].upper(), name): content[name] for name in content}


@cache
def _messages() -> dict[tuple[str, str], list[Descriptor]]:
    """Return the messages of each call; different versions of MLflow's API have different ones."""
    found: dict[tuple[str, str], list[Descriptor]] = {}
    for path, message, methods in get_endpoints(lambda message: message):
        descriptor = getattr(message, "DESCRIPTOR", None)
        pattern = _pattern(re.sub("<[^>]*>", _SEGMENT, path))
        if isinstance(descriptor, Descriptor):
            for method in methods:
                found.setdefault((method, pattern), []).append(descriptor)
    return found


def _pattern(path: str) -> str:
    return re.sub(r"^/(ajax-)?api/[^/]+", "", path)


def _paths(parsed: Iterable[Any]) -> list[str]:
    """Return what a regular expression of the table matches, with placeholders."""
    parts = [_part(*each) for each in parsed]
    return ["".join(pieces) for pieces in itertools.product(*parts)]


def _part(kind: Any, value: Any) -> list[str]:
    if kind is _parser.LITERAL:
        return [chr(value)]
    if kind is _parser.SUBPATTERN:
        return _paths(value[-1])
    if kind is _parser.BRANCH:
        return [path for each in value[1] for path in _paths(each)]
    if kind is _parser.IN:
        return [chr(each) for _, each in value]
    assert kind is _parser.MAX_REPEAT, kind
    least, most, repeated = value
    if most == 1:
        found = _paths(repeated)
        return found if found == ["/"] and least else ["", *found] if found != ["/"] else [""]
    ((inner, _),) = repeated
    return [_PATH if inner is _parser.ANY else _SEGMENT]
