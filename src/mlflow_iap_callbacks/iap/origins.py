"""Origins of servers: a token for one is never sent to another."""

from __future__ import annotations

import ipaddress
import os
from urllib.parse import urlsplit

from ..errors import IAPConfigurationError
from .passwords import shown, without_passwords


def is_remote(uri: str) -> bool:
    """Whether a URI of MLflow names a server, and not a database or a folder."""
    return uri.lower().startswith(("http://", "https://"))


def origin_of(url: str) -> str:
    """``scheme://host[:port]`` of a URL, in lower case and without a default port.

    Raises:
        IAPConfigurationError: it is no http or https URL, or is a page's URL in a browser.
    """
    parts = urlsplit(url)
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if parts.scheme not in ("http", "https") or not host:
        raise IAPConfigurationError(
            f"{shown(url)} is not the URL of a server. Set MLFLOW_TRACKING_URI, or the argument, "
            "to https://HOST."
        )
    if parts.fragment:
        raise IAPConfigurationError(
            f"{shown(url)} is the address of a page in a browser. Use the part before the #: "
            f"{without_passwords(url).partition('#')[0].rstrip('/')}"
        )
    host = f"[{host}]" if ":" in host else host
    default = {"http": 80, "https": 443}[parts.scheme]
    return f"{parts.scheme}://{host}" + (f":{port}" if port not in (None, default) else "")


def tracking_origin() -> str | None:
    """The origin of MLFLOW_TRACKING_URI; None if it names no server."""
    try:
        return origin_of(os.environ.get("MLFLOW_TRACKING_URI", ""))
    except IAPConfigurationError:
        return None


def is_loopback(origin: str) -> bool:
    host = urlsplit(origin).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
