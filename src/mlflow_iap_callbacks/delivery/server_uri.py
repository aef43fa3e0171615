"""Converts a tracking URI to the form that journals store."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from urllib.parse import urlsplit, urlunsplit

from ..iap.passwords import HIDDEN_PARAMETER

_SECRET_PARAMETER = re.compile(HIDDEN_PARAMETER)


def server_uri(uri: str) -> str:
    """Return a tracking URI without a password, and with an absolute path."""
    url = _server_url(uri)
    if url is not None:
        return url
    parts = urlsplit(uri)
    if uri.startswith("sqlite:///"):
        return f"sqlite:///{os.path.abspath(uri.removeprefix('sqlite:///'))}"
    if not parts.scheme:
        return os.path.abspath(uri)
    # The user name is kept, because each user may see another database.
    user, is_given, host = parts.netloc.rpartition("@")
    query = "&".join(each for each in parts.query.split("&") if not _SECRET_PARAMETER.match(each))
    netloc = user.partition(":")[0] + is_given + host
    return urlunsplit(parts._replace(netloc=netloc, query=query)) if parts.netloc else uri


@lru_cache(maxsize=64)  # called for each trial
def _server_url(uri: str) -> str | None:
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return None
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])).rstrip("/")
