"""Webhooks: requests to URLs that users choose, on hosts that an administrator lists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from .mlflow_body import Body, ForbiddenError, shown


def urls(body: Body) -> Iterator[Any]:
    """Yield the URLs in the body of a request that creates or changes a webhook."""
    if "url" in body:
        yield body["url"]


def require_host(url: Any, hosts: Sequence[str]) -> None:
    """Check a webhook's URL.

    Raises:
        ForbiddenError: unless it is an https URL of one of the hosts.
    """
    if not _is_allowed(url, hosts):
        raise ForbiddenError(
            f"The webhook URL {shown(url)} is not allowed: use an https URL of a host that an "
            "administrator has listed in MLFLOW_IAP_WEBHOOK_HOSTS."
        )


def _is_allowed(url: Any, hosts: Sequence[str]) -> bool:
    if not isinstance(url, str) or not url.isprintable() or "\\" in url:
        return False
    try:
        parts = urlsplit(url)
        is_usual = parts.scheme == "https" and parts.port in (None, 443) and "@" not in parts.netloc
    except ValueError:
        return False
    return is_usual and parts.hostname in hosts
