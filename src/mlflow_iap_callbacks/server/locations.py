"""Where the server may read and write artifacts: locations in requests, and which are allowed.

MLflow itself would use all that the server's account can: any bucket, any file of the image.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

from .mlflow_body import Body, ForbiddenError, shown, spellings

# Artifacts of this server, whatever its storage: `mlflow-artifacts://HOST/` names another one.
_OWN = re.compile(r"(mlflow-artifacts|runs|models):/(?!/)")
# What MLflow's client, pages and server name as the source of a prompt, which has no artifacts.
_OF_PROMPTS = ("dummy-source", "prompt-template")

_MAX_LENGTH = 2000  # characters; more than MLflow's tables have

Named = Callable[[Body], Iterator[Any]]


def require_allowed(location: Any, also: Sequence[str]) -> None:
    """Check a location.

    Args:
        location: the URI of a folder or file; None or an empty text if the server chooses.
        also: URIs under which an administrator allows locations, besides the server's own.

    Raises:
        ForbiddenError: the server must not use it.
    """
    if location is None or location == "":
        return
    if not isinstance(location, str) or not is_plain(location):
        raise not_allowed(location)
    if not _OWN.match(location) and not any(_is_under(location, uri) for uri in also):
        raise not_allowed(location)


def not_allowed(location: Any) -> ForbiddenError:
    return ForbiddenError(
        f"The artifact location {shown(location)} is not allowed: omit it, or use one that "
        "you can access and that begins with mlflow-artifacts:/, runs:/ or models:/. An "
        "administrator can allow others with MLFLOW_IAP_LOCATIONS."
    )


def is_plain(location: str) -> bool:
    """Whether all programs read it in the same way, and it does not leave its folder by ``..``."""
    if len(location) > _MAX_LENGTH:  # decoding again and again would take hours
        return False
    decoded = location
    while (once_more := unquote(decoded)) != decoded:
        decoded = once_more
    is_odd = not decoded.isprintable() or any(each in decoded for each in "\\?#")
    try:
        host = urlsplit(location).netloc
    except ValueError:  # such as an unknown kind of address
        return False
    return not (is_odd or "@" in host or ".." in decoded.split("/"))


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


def _values(body: Any, name: str) -> Iterator[Any]:
    """Yield a field under each of its spellings."""
    if isinstance(body, dict):
        yield from (body[each] for each in spellings(name) if each in body)
