"""The transport adapter that sends every request to a server with retries and a deadline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import requests
from urllib3.util import Retry

from .retried_request import Send

# A server that takes longer to accept a connection, TLS handshake included, is unreachable.
_SECONDS_TO_CONNECT = 10.0


def without_proxies(kwargs: dict[str, Any], url: str) -> dict[str, Any]:
    """Return an adapter's arguments. Plain http gets no proxies, which would read tokens."""
    return {**kwargs, "proxies": {}} if url.startswith("http:") else kwargs


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
        # A retry policy limits when attempts begin, not the server's work: a request that is under
        # way has all the time that MLflow allows.
        within = timeout
        if timeout is None or isinstance(timeout, (int, float)):
            within = (min(timeout or _SECONDS_TO_CONNECT, _SECONDS_TO_CONNECT), timeout)

        kwargs = without_proxies(kwargs, request.url or "")

        def once(request: requests.PreparedRequest) -> requests.Response:
            response = self._inner.send(request, stream=stream, timeout=within, **kwargs)
            if not stream:
                response.content  # noqa: B018 - an incomplete body is a lost response
            return response

        response = self._send_with_retries(request, once)
        response.connection = self  # type: ignore[assignment]
        return response

    def close(self) -> None:
        self._inner.close()
