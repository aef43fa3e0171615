"""The transport adapter that sends every request to a server with retries and a deadline."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import requests
from urllib3.util import Retry

from .retried_request import Send
from .retry_policy import seconds_left


class IAPTransport(requests.adapters.BaseAdapter):
    """Sends requests to one server with its ``IAPAuth.send``, and each attempt with ``inner``."""

    def __init__(
        self,
        send_with_retries: Callable[[requests.PreparedRequest, Send], requests.Response],
        inner: requests.adapters.HTTPAdapter,
    ) -> None:
        super().__init__()
        inner.max_retries = Retry(0, read=False)
        self._send_with_retries = send_with_retries
        self._inner = inner

    def send(  # type: ignore[override]
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        **kwargs: Any,
    ) -> requests.Response:
        # The deadline limits retries, not the server's work: the first attempt has all the time
        # that MLflow, or a policy around this call, allows.
        around, is_first = seconds_left(), True

        def once() -> requests.Response:
            nonlocal is_first
            seconds, is_first = around if is_first else seconds_left(), False
            within = timeout
            if seconds != math.inf:
                within = max(1.0, min(seconds, timeout or math.inf))
            response = self._inner.send(request, stream=stream, timeout=within, **kwargs)
            response.connection = self  # type: ignore[assignment]
            if not stream:
                response.content  # noqa: B018 - an incomplete body is a lost response
            return response

        return self._send_with_retries(request, once)

    def close(self) -> None:
        self._inner.close()
