"""Webhooks: requests to URLs that users choose, on hosts that an administrator lists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from .mlflow_body import Body


class HostNotAllowedError(Exception):
    """A webhook's URL, given as argument, is on a host that no administrator has allowed."""


def urls(body: Body) -> Iterator[Any]:
    """Yield the URLs in the body of a request that creates or changes a webhook."""
    if "url" in body:
        yield body["url"]


def require_host(url: Any, hosts: Sequence[str]) -> None:
    """Check a webhook's URL.

    Raises:
        HostNotAllowedError: unless it is an https URL of one of the hosts.
    """
    if not isinstance(url, str) or not url.isprintable() or "\\" in url:
        raise HostNotAllowedError(url)
    try:
        parts = urlsplit(url)
        is_usual = parts.scheme == "https" and parts.port in (None, 443) and "@" not in parts.netloc
    except ValueError:
        raise HostNotAllowedError(url) from None
    if not is_usual or parts.hostname not in hosts:
        raise HostNotAllowedError(url)
