"""One request of MLflow's until its answer is settled.

With a token if IAP asks for one, again with another token if IAP rejects it, again after a while
if the server is busy or away; and never twice where that would do its work twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol
from urllib.parse import urljoin, urlsplit

import requests
from requests.utils import rewind_body
from urllib3.exceptions import ConnectTimeoutError, MaxRetryError, NewConnectionError
from urllib3.util import Retry

from ..errors import IAPCredentialsError, IAPUnknownOutcomeError
from . import answers
from .credentials import IAPCredentials
from .retry import TryAgain

Send = Callable[[], requests.Response]
Answered = tuple[requests.Response, str | None]

_LOST = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
_BUSY = frozenset({408, 429, 500, 502, 503, 504})
_NOT_DONE = frozenset({429})
_MOST_TOKENS = 5  # fetched for one request, within about four seconds
_SLOW = frozenset({408, 504})  # of a front end that stopped waiting for the server
# POSTs of MLflow's REST API that leave the same when they are carried out twice, if only with the
# answer that there is nothing left to delete.
_REPEATABLE = frozenset(
    {
        *("delete", "delete-tag", "restore", "set-experiment-tag", "set-tag", "update"),
        *("log-batch", "log-inputs", "log-metric", "log-parameter", "outputs"),
        *("get-latest-versions", "query", "search", "search-datasets", "transition-stage"),
    }
)


class Server(Protocol):
    """What an exchange knows of the server, and learns about it."""

    origin: str
    credentials: IAPCredentials
    is_asked: bool


class Exchange:
    """One request, attempt by attempt.

    Args:
        server: where the request goes, and as whom.
        request: to it.
        send: sends the request once.
        first: an answer that is here already, and the token that it was got with.
    """

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
        self._is_sent = False
        self._token: str | None = None
        self._rejected: str | None = None
        self._refetched = 0

    def attempt(self) -> requests.Response:
        """Send once.

        Raises:
            TryAgain: another attempt is worth making.
            IAPError: none is.
        """
        response = self._answer()
        if answers.is_from_iap(response):
            raise self._after_iap(response)
        if response.status_code in _BUSY:
            raise self._after_busy(response)
        self._take_token_from_redirect(response)
        return response

    def _answer(self) -> requests.Response:
        if self._first is not None:
            (response, self._token), self._first = self._first, None
            self._is_sent = True
            return response
        if self._is_sent:
            _rewind(self._request)
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
            if error.transient:
                raise TryAgain(error) from None
            raise
        set_bearer(self._token, self._request)

    def _after_iap(self, response: requests.Response) -> Exception:
        response.content  # noqa: B018 - to its end, so that the connection can be used again
        refusal = self._refusal(response)
        if self._token is None and response.status_code in (302, 401, 403):
            self._server.is_asked = True
            return TryAgain(refusal, after=0.0, is_free=True)
        if answers.is_token_rejected(response):
            # A token may end, or be revoked, between its fetch and its use, and so may the next;
            # any other reason holds for the next token as well.
            again = _MOST_TOKENS if answers.is_token_expired(response) else 1
            if self._refetched < again:
                self._refetched += 1
                self._rejected = self._token
                after = 0.0 if self._refetched == 1 else None
                return TryAgain(refusal, after, is_free=True)
        elif response.status_code in (429, 500, 503):
            return TryAgain(refusal, after=_retry_after(response))
        return refusal

    def _after_busy(self, response: requests.Response) -> Exception:
        response.content  # noqa: B018 - as above
        if response.status_code in _NOT_DONE or _is_repeatable(self._request):
            outcome = answers.unavailable_error(response, self._server.origin) or response
            return TryAgain(outcome, after=_retry_after(response))
        return IAPUnknownOutcomeError(
            f"{self._called} was answered {response.status_code} ({response.text[:300]!r}); "
            "whether it was carried out is not known, and it would be carried out twice if it were "
            "sent again. Look whether it was before you repeat it.",
            is_under_way=response.status_code in _SLOW,
            retry_after=_retry_after(response),
        )

    def _after_failure(self, error: requests.RequestException) -> Exception:
        if isinstance(error, requests.exceptions.SSLError):
            return error
        if _was_never_sent(error) or _is_repeatable(self._request):
            return TryAgain(error)
        return IAPUnknownOutcomeError(
            f"The answer to {self._called} was lost ({type(error).__name__}); whether it was "
            "carried out is not known, and it would be carried out twice if it were sent again. "
            "Look whether it was before you repeat it.",
            is_under_way=isinstance(error, requests.Timeout),
        )

    def _take_token_from_redirect(self, response: requests.Response) -> None:
        """requests follows a redirect with the headers of the request that it answers."""
        if not response.is_redirect or self._token is None:
            return
        target = urljoin(response.url, response.headers["Location"])
        if not target.startswith(f"{self._server.origin}/"):
            for name in ("Authorization", "Proxy-Authorization"):
                if self._request.headers.get(name) == f"Bearer {self._token}":
                    del self._request.headers[name]

    def _refusal(self, response: requests.Response) -> Exception:
        return answers.refused_error(response, self._server.origin, str(self._server.credentials))

    @property
    def _called(self) -> str:
        return f"{self._request.method} {urlsplit(self._request.url or '').path}"


def set_bearer(token: str, request: requests.PreparedRequest) -> None:
    """Set ``token`` on a request, beside a basic authentication where there is one."""
    taken = request.headers.get("Authorization", "").lower().startswith("basic ")
    name = "Proxy-Authorization" if taken else "Authorization"
    request.headers[name] = f"Bearer {token}"


def _rewind(request: requests.PreparedRequest) -> None:
    if request.body is not None and not isinstance(request.body, (bytes, str)):
        rewind_body(request)


def _is_repeatable(request: requests.PreparedRequest) -> bool:
    if request.method != "POST":
        return True
    return urlsplit(request.url or "").path.rstrip("/").rpartition("/")[2] in _REPEATABLE


def _was_never_sent(error: requests.RequestException) -> bool:
    cause = error.args[0] if error.args else None
    reason = cause.reason if isinstance(cause, MaxRetryError) else cause
    return isinstance(reason, (NewConnectionError, ConnectTimeoutError))


def _retry_after(response: requests.Response) -> float | None:
    try:
        return Retry().parse_retry_after(response.headers["Retry-After"])
    except (KeyError, ValueError, requests.exceptions.InvalidHeader):
        return None
