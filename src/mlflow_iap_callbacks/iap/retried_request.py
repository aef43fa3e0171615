"""One request, retried until its outcome is known.

It gets a token if IAP asks for one, and a new token if IAP rejects it. It is retried if the server
is busy or unreachable, unless a repeated request could take effect twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol
from urllib.parse import urlsplit

import requests
from requests.utils import rewind_body
from urllib3.util import Retry

from ..errors import IAPCredentialsError, IAPUnknownOutcomeError
from . import responses
from .connection_errors import is_certificate_invalid, was_never_sent
from .credentials import IAPCredentials
from .endpoints import is_repeatable
from .retry_policy import BUSY, TryAgain
from .secret_removal import pop_bearer, set_bearer

Send = Callable[[requests.PreparedRequest], requests.Response]

_LOST = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
_MAX_REFETCHES = 5  # for expired tokens of one request, within about four seconds


class Server(Protocol):
    """The server that a request goes to, and whether its IAP has asked for a token."""

    origin: str
    credentials: IAPCredentials
    is_asked: bool


class RetriedRequest:
    """A request to a server and the state of its attempts; arguments as for ``IAPAuth.send``.

    Attributes:
        may_have_worked: whether an attempt whose response was lost may have taken effect.
        began: when the first attempt began, by ``time.monotonic``.
    """

    def __init__(
        self,
        server: Server,
        request: requests.PreparedRequest,
        send: Send,
        first: requests.Response | None = None,
    ) -> None:
        self._server = server
        # Errors and the caller keep the request, so the token is only on the copy that is sent.
        self._token = pop_bearer(request)
        self._request = request
        self._send = send
        self._first = first
        self._path = urlsplit(request.url or "").path
        self._is_repeatable = request.method != "POST" or is_repeatable(self._path)
        self._is_stream = not isinstance(request.body, (bytes, str, type(None)))
        self._is_sent = first is not None
        self._rejected: str | None = None
        self._refetched = 0
        self.may_have_worked = False
        self.began = time.monotonic()

    def attempt(self) -> requests.Response:
        """Send the request once. Raises TryAgain if another attempt may succeed."""
        try:
            return self._attempt()
        except TryAgain as again:
            again.is_upload = self._is_stream
            raise

    def _attempt(self) -> requests.Response:
        response = self._response()
        if responses.is_from_iap(response):
            raise self._after_iap(response)
        # A server that cannot sign URLs answers 500 to an upload in parts.
        is_refusal = response.status_code == 500 and "/mpu/create/" in self._path
        if response.status_code in BUSY and not is_refusal:
            raise self._after_busy(response)
        return response

    def _response(self) -> requests.Response:
        if self._first is not None:
            response, self._first = self._first, None
            return response
        if self._is_sent and self._is_stream:
            rewind_body(self._request)
        request = self._with_token()
        self._is_sent = True
        try:
            return self._send(request)
        except _LOST as error:
            raise self._after_failure(error) from None

    def _with_token(self) -> requests.PreparedRequest:
        request = self._request.copy()
        if self._server.is_asked:
            try:
                self._token = self._server.credentials.token(rejected=self._rejected)
            except IAPCredentialsError as error:
                raise (TryAgain(error) if error.transient else error) from None
            set_bearer(self._token, request)
        return request

    def _after_iap(self, response: requests.Response) -> Exception:
        response.content  # noqa: B018 - read to its end, so that the connection can be reused
        status, server = response.status_code, self._server
        error = responses.refused_error(response, server.origin, str(server.credentials))
        if self._token is None and (response.is_redirect or status in (401, 403)):
            server.is_asked = True
            return TryAgain(error, after=0.0, is_free=True)
        if response.is_redirect or status == 401:
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
        self.may_have_worked |= status != 429  # 429: too many requests, not processed
        if status == 429 or self._is_repeatable:
            error = responses.unavailable_error(response, self._server.origin)
            return TryAgain(error or response, after)
        return _unknown_outcome(
            f"POST {self._path} returned status {status} ({response.text[:300]!r})",
            is_under_way=status in (408, 504),  # a front end stopped waiting for MLflow
            retry_after=after,
        )

    def _after_failure(self, error: requests.RequestException) -> Exception:
        if is_certificate_invalid(error):
            return error
        if was_never_sent(error):
            return TryAgain(error)
        self.may_have_worked = True
        if self._is_repeatable:
            return TryAgain(error)
        return _unknown_outcome(
            f"The response to POST {self._path} was lost ({type(error).__name__})",
            is_under_way=isinstance(error, requests.Timeout),
        )


def _unknown_outcome(what: str, **details: Any) -> IAPUnknownOutcomeError:
    return IAPUnknownOutcomeError(
        f"{what}, so it is not known whether it took effect. If it is sent again, it may take "
        "effect twice: check the server before you repeat it.",
        **details,
    )


def _retry_after(response: requests.Response) -> float | None:
    try:
        return Retry().parse_retry_after(response.headers["Retry-After"])
    except (KeyError, ValueError, requests.exceptions.InvalidHeader):
        return None
