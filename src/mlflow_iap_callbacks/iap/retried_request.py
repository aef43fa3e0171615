"""One request, retried until its outcome is known.

It gets a token if IAP asks for one, and a new token if IAP rejects it. It is retried if the server
is busy or unreachable, unless a repeated request could take effect twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol
from urllib.parse import urlsplit

import requests
from requests.utils import rewind_body
from urllib3.exceptions import ConnectTimeoutError, MaxRetryError, NewConnectionError
from urllib3.util import Retry

from ..errors import IAPCredentialsError, IAPUnknownOutcomeError
from . import responses
from .credentials import IAPCredentials
from .retry_policy import BUSY, TryAgain

Send = Callable[[], requests.Response]
# A response, and the token that the request carried.
Answered = tuple[requests.Response, str | None]

_LOST = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
_MAX_REFETCHES = 5  # for expired tokens of one request, within about four seconds
# POSTs of MLflow's REST API that have the same effect no matter how often they are repeated. At
# worst, the response to a repeated one says that there is nothing left to delete.
_REPEATABLE = frozenset(
    {
        *("delete", "delete-tag", "restore", "set-experiment-tag", "set-tag", "update"),
        *("log-batch", "log-inputs", "log-metric", "log-parameter", "outputs"),
        *("get-latest-versions", "query", "search", "search-datasets", "transition-stage"),
    }
)


class Server(Protocol):
    """The server that a request goes to, and whether its IAP has asked for a token."""

    origin: str
    credentials: IAPCredentials
    is_asked: bool


class RetriedRequest:
    """A request to a server and the state of its attempts; arguments as for ``IAPAuth.send``."""

    def __init__(
        self,
        server: Server,
        request: requests.PreparedRequest,
        send: Send,
        first: Answered | None = None,
    ) -> None:
        self._server = server
        self._request = request
        self._send = send
        self._first = first
        self._path = urlsplit(request.url or "").path
        last = self._path.rstrip("/").rpartition("/")[2]
        self._is_repeatable = request.method != "POST" or last in _REPEATABLE
        self._is_sent = first is not None
        self._token: str | None = None
        self._rejected: str | None = None
        self._refetched = 0

    def attempt(self) -> requests.Response:
        """Send the request once. Raises TryAgain if another attempt may succeed."""
        response = self._response()
        if responses.is_from_iap(response):
            raise self._after_iap(response)
        if response.status_code in BUSY:
            raise self._after_busy(response)
        return response

    def _response(self) -> requests.Response:
        if self._first is not None:
            (response, self._token), self._first = self._first, None
            return response
        body = self._request.body
        if self._is_sent and body is not None and not isinstance(body, (bytes, str)):
            rewind_body(self._request)
        self._put_token()
        self._is_sent = True
        try:
            return self._send()
        except _LOST as error:
            raise self._after_failure(error) from None

    def _put_token(self) -> None:
        if not self._server.is_asked:
            return
        try:
            self._token = self._server.credentials.token(rejected=self._rejected)
        except IAPCredentialsError as error:
            raise (TryAgain(error) if error.transient else error) from None
        set_bearer(self._token, self._request)

    def _after_iap(self, response: requests.Response) -> Exception:
        response.content  # noqa: B018 - read to its end, so that the connection can be reused
        status, server = response.status_code, self._server
        error = responses.refused_error(response, server.origin, str(server.credentials))
        if self._token is None and status in (302, 401, 403):
            server.is_asked = True
            return TryAgain(error, after=0.0, is_free=True)
        if status in (302, 401):
            # A token, and even its replacement, may expire or be revoked before it is used.
            # Every other reason for a rejection applies to the next token as well.
            most = _MAX_REFETCHES if responses.is_token_expired(response) else 1
            if self._refetched < most:
                self._refetched += 1
                self._rejected = self._token
                return TryAgain(error, 0.0 if self._refetched == 1 else None, is_free=True)
        elif status in (429, 500, 503):
            return TryAgain(error, after=_retry_after(response))
        return error

    def _after_busy(self, response: requests.Response) -> Exception:
        response.content  # noqa: B018 - as in _after_iap
        status, after = response.status_code, _retry_after(response)
        if status == 429 or self._is_repeatable:  # 429: too many requests, not processed
            error = responses.unavailable_error(response, self._server.origin)
            return TryAgain(error or response, after)
        return _unknown_outcome(
            f"POST {self._path} returned status {status} ({response.text[:300]!r})",
            is_under_way=status in (408, 504),  # a front end stopped waiting for MLflow
            retry_after=after,
        )

    def _after_failure(self, error: requests.RequestException) -> Exception:
        if isinstance(error, requests.exceptions.SSLError):
            return error
        if _was_never_sent(error) or self._is_repeatable:
            return TryAgain(error)
        return _unknown_outcome(
            f"The response to POST {self._path} was lost ({type(error).__name__})",
            is_under_way=isinstance(error, requests.Timeout),
        )


def set_bearer(token: str, request: requests.PreparedRequest) -> None:
    """Set ``token`` on a request, beside its basic authentication if it has one."""
    taken = request.headers.get("Authorization", "").lower().startswith("basic ")
    name = "Proxy-Authorization" if taken else "Authorization"
    request.headers[name] = f"Bearer {token}"


def _unknown_outcome(what: str, **details: Any) -> IAPUnknownOutcomeError:
    return IAPUnknownOutcomeError(
        f"{what}, so it is not known whether it took effect. If it is sent again, it may take "
        "effect twice: check the server before you repeat it.",
        **details,
    )


def _was_never_sent(error: requests.RequestException) -> bool:
    cause = error.args[0] if error.args else None
    reason = cause.reason if isinstance(cause, MaxRetryError) else cause
    return isinstance(reason, (NewConnectionError, ConnectTimeoutError))


def _retry_after(response: requests.Response) -> float | None:
    try:
        return Retry().parse_retry_after(response.headers["Retry-After"])
    except (KeyError, ValueError, requests.exceptions.InvalidHeader):
        return None
