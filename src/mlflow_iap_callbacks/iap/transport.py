"""The transport of requests to one server: every attempt of an exchange passes through it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import requests
from urllib3.util import Retry

from .exchange import Send
from .retry import seconds_left


class IAPTransport(requests.adapters.BaseAdapter):
    """Transport of one origin's requests: every attempt of an exchange, and no retries below it.

    Args:
        exchange: ``IAPAuth.exchange`` of the server.
        inner: sends a request once.
    """

    def __init__(
        self,
        exchange: Callable[[requests.PreparedRequest, Send], requests.Response],
        inner: requests.adapters.HTTPAdapter,
    ) -> None:
        super().__init__()
        inner.max_retries = Retry(0, read=False)
        self._exchange = exchange
        self._inner = inner

    def send(  # type: ignore[override]
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        **kwargs: Any,
    ) -> requests.Response:
        # The deadline is for attempts, not for the server's work: the first has all the time that
        # MLflow, or a policy around this call, gives it.
        around, is_first = seconds_left(), True

        def once() -> requests.Response:
            nonlocal is_first
            within = _at_most(around if is_first else seconds_left(), timeout)
            is_first = False
            response = self._inner.send(request, stream=stream, timeout=within, **kwargs)
            response.connection = self  # type: ignore[assignment]
            if not stream:
                response.content  # noqa: B018 - a body that breaks off is an answer that is lost
            return response

        return self._exchange(request, once)

    def close(self) -> None:
        self._inner.close()


def _at_most(seconds: float, timeout: Any) -> Any:
    if seconds == float("inf") or not isinstance(timeout, (int, float, type(None))):
        return timeout
    return max(1.0, seconds if timeout is None else min(float(timeout), seconds))
