"""Where the server may read and write artifacts: locations in requests, and which are allowed.

MLflow itself would use all that the server's account can: any bucket, any file of the image.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

from .mlflow_body import Body, list_in, spellings
from .tag_keys import is_one_of

# Artifacts of this server, whatever its storage: `mlflow-artifacts://HOST/` names another one.
_OWN = re.compile(r"(mlflow-artifacts|runs|models):/(?!/)")
# What MLflow's client, pages and server name as the source of a prompt, which has no artifacts.
_OF_PROMPTS = ("dummy-source", "prompt-template")
TAGS = ("mlflow.artifactLocation", "mlflow.trace.archiveLocation")  # of traces

Named = Callable[[Body], Iterator[Any]]


class LocationNotAllowedError(Exception):
    """A request names a location, given as argument, where the server must not read or write."""


def require_allowed(location: Any, also: Sequence[str]) -> None:
    """Check a location.

    Args:
        location: the URI of a folder or file; None or an empty text if the server chooses.
        also: URIs under which an administrator allows locations, besides the server's own.

    Raises:
        LocationNotAllowedError: the server must not use it.
    """
    if location is None or location == "":
        return
    if not isinstance(location, str) or not _is_plain(location):
        raise LocationNotAllowedError(location)
    if not _OWN.match(location) and not any(_is_under(location, uri) for uri in also):
        raise LocationNotAllowedError(location)


def _is_plain(location: str) -> bool:
    """Whether all programs read it in the same way, and it does not leave its folder by ``..``."""
    decoded = location
    while (once_more := unquote(decoded)) != decoded:
        decoded = once_more
    is_odd = not decoded.isprintable() or any(each in decoded for each in "\\?#")
    return not (is_odd or "@" in urlsplit(location).netloc or ".." in decoded.split("/"))


def _is_under(location: str, uri: str) -> bool:
    return location == uri or location.startswith(uri.rstrip("/") + "/")


def artifact_location(body: Body) -> Iterator[Any]:
    return _values(body, "artifact_location")


def source(body: Body) -> Iterator[Any]:
    yield from (value for value in _values(body, "source") if value not in _OF_PROMPTS)


def workspace(body: Body) -> Iterator[Any]:
    yield from _values(body, "default_artifact_root")
    for config in _values(body, "trace_archival_config"):
        yield from _values(config, "location")


def new_trace(body: Body) -> Iterator[Any]:
    yield from tags_of_trace(body)  # MLflow 2
    for trace in _values(body, "trace"):
        for info in _values(trace, "trace_info"):
            yield from tags_of_trace(info)


def tags_of_trace(body: Body) -> Iterator[Any]:
    for name in ("tags", "request_metadata", "trace_metadata"):
        for tags in _values(body, name):
            if isinstance(tags, dict):
                yield from (value for key, value in tags.items() if _is_location(key))
            else:
                for each in list_in({"tags": tags}, "tags"):
                    yield from tag(each)


def tag(body: Body) -> Iterator[Any]:
    if _is_location(str(body.get("key"))):
        yield body.get("value")


def _is_location(key: str) -> bool:
    return is_one_of(key, TAGS)


def _values(body: Any, name: str) -> Iterator[Any]:
    """Yield a field under each of its spellings."""
    if isinstance(body, dict):
        yield from (body[each] for each in spellings(name) if each in body)
