"""Logs who signs in and what is refused, as lines of JSON that Cloud Logging reads.

The lines have no token, no query and no body.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable
from typing import Any

from starlette.types import Scope

_REFUSALS, _PERIOD = 60, 60.0  # lines in this many seconds
_SIGN_IN_PERIOD = 3600.0  # seconds until another line for an account
_MOST_ACCOUNTS = 10_000
_MOST_CHARACTERS = 500  # of a path
_TRACE_ID = re.compile(rb"(?:00-)?([0-9a-f]{32})(?![0-9a-f])", re.IGNORECASE)
_TRACE_HEADERS = (b"traceparent", b"x-cloud-trace-context")


def _write(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


class AccessLog:
    """Writes a line for each refusal, up to a rate, and for each account that signs in.

    Args:
        write: gets each line.
        clock: the time, in seconds.
    """

    def __init__(
        self,
        write: Callable[[str], None] = _write,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write = write
        self._clock = clock
        self._seen: dict[str, float] = {}
        self._begins = -float("inf")
        self._written = 0
        self._left_out = 0

    def signed_in(self, scope: Scope, account: str) -> None:
        """Log an account's first request, and then at most one an hour."""
        now = self._clock()
        if now - self._seen.get(account, -float("inf")) < _SIGN_IN_PERIOD:
            return
        if len(self._seen) >= _MOST_ACCOUNTS:
            self._seen.clear()
        self._seen[account] = now
        self._line(scope, "INFO", f"{account} signed in.", account=account)

    def refused(self, scope: Scope, status: int, reason: str, account: str) -> None:
        """Log a refused request; `account` is the verified one, or empty."""
        now = self._clock()
        if now - self._begins >= _PERIOD:
            self._begins, self._written = now, 0
        if self._written >= _REFUSALS:
            self._left_out += 1
            return
        self._written += 1
        left_out, self._left_out = self._left_out, 0
        fields = {"status": status, "reason": reason, "account": account or None}
        if left_out:
            fields["left_out_before"] = left_out
        self._line(scope, "WARNING", f"A request was refused: {reason}", **fields)

    def _line(self, scope: Scope, severity: str, message: str, **fields: Any) -> None:
        content = {
            "severity": severity,
            "message": message,
            **fields,
            "method": scope.get("method", scope["type"])[:_MOST_CHARACTERS],
            "path": scope["path"][:_MOST_CHARACTERS],
        }
        if trace := _trace_id(scope):
            project = os.environ.get("GOOGLE_CLOUD_PROJECT")
            name = f"projects/{project}/traces/{trace}" if project else trace
            content["logging.googleapis.com/trace"] = name
        self._write(json.dumps(content))


def _trace_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        found = _TRACE_ID.match(value) if name.lower() in _TRACE_HEADERS else None
        if found:
            trace: str = found[1].decode().lower()
            return trace
    return ""
