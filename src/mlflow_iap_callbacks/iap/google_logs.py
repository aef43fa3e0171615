"""google-auth's logs, without the tokens that its DEBUG records contain."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_is_fetching: ContextVar[bool] = ContextVar("is_fetching", default=False)


def _has_no_contents(record: logging.LogRecord) -> bool:
    """Whether to keep a log record; records from other uses of google-auth are kept."""
    has_contents = hasattr(record, "httpRequest") or hasattr(record, "httpResponse")
    return not (has_contents and _is_fetching.get())


# Its records of requests and responses carry their headers and bodies.
logging.getLogger("google.auth.transport.requests").addFilter(_has_no_contents)


@contextmanager
def quiet_google_logs() -> Iterator[None]:
    """Context manager that drops google-auth's log records of requests and responses."""
    mark = _is_fetching.set(True)
    try:
        yield
    finally:
        _is_fetching.reset(mark)
