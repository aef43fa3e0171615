"""What a failed connection means: whether to try again, and whether anything was sent."""

from __future__ import annotations

import ssl
import traceback
from collections.abc import Iterator
from typing import Any

from urllib3.exceptions import ConnectTimeoutError, NewConnectionError, ProxyError

# Functions of the standard library that establish a connection, before anything is sent.
_PREPARING = {"do_handshake", "_tunnel"}


def chain_of(error: BaseException | None, seen: set[int] | None = None) -> Iterator[BaseException]:
    """Yield an error, and those that it contains or that led to it."""
    seen = set() if seen is None else seen
    todo: list[Any] = [error]
    while todo:
        each = todo.pop()
        if isinstance(each, BaseException) and id(each) not in seen:
            seen.add(id(each))
            yield each
            # urllib3's errors have the first error as their reason.
            reason = getattr(each, "reason", None)
            todo += [each.__cause__, each.__context__, reason, *each.args]


def is_certificate_invalid(error: BaseException) -> bool:
    """Whether the server's certificate was rejected, which another attempt cannot change."""
    return any(isinstance(each, ssl.SSLCertVerificationError) for each in chain_of(error))


def was_never_sent(error: BaseException) -> bool:
    """Whether the connection failed before the request was sent."""
    return any(
        isinstance(each, (NewConnectionError, ConnectTimeoutError, ProxyError))
        or not _PREPARING.isdisjoint(
            frame.name
            for frame in traceback.StackSummary.extract(
                traceback.walk_tb(each.__traceback__), lookup_lines=False
            )
        )
        for each in chain_of(error)
    )
