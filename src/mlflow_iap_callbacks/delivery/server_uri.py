"""A tracking URI as journals store it."""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit, urlunsplit

_PASSWORD = re.compile(r"(?<=://)[^/\s?#]+@")


def without_passwords(text: str) -> str:
    """Return the text without the user and password of each URI."""
    return _PASSWORD.sub("", text)


def server_uri(uri: str) -> str:
    """Return a tracking URI as journals store it: without a password, and with an absolute path."""
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])).rstrip("/")
    if uri.startswith("sqlite:///"):
        return f"sqlite:///{os.path.abspath(uri.removeprefix('sqlite:///'))}"
    return uri if parts.scheme else os.path.abspath(uri)
