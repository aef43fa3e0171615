"""IAP's bearer token on the requests to one origin, and on no others.

An exchange is one request of MLflow's until its answer is settled: with a token if IAP asks for
one, again with another token if IAP rejects it, again after a while if the server is busy or away.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
from requests.auth import AuthBase
from requests.utils import rewind_body
from urllib3.exceptions import ConnectTimeoutError, MaxRetryError, NewConnectionError
from urllib3.util import Retry

from . import iap_answers
from .credentials import IAPCredentials
from .errors import (
    IAPConfigurationError,
    IAPCredentialsError,
    IAPRefusedError,
    IAPUnknownOutcomeError,
)
from .retry import RetryPolicy, TryAgain, seconds_left

_logger = logging.getLogger(__name__)

Send = Callable[[], requests.Response]

_LOST = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
_BUSY = frozenset({408, 429, 500, 502, 503, 504})
_NOT_DONE = frozenset({429})
_MOST_TOKENS = 5  # fetched for one request, within about four seconds
# POSTs of MLflow's REST API that leave the same when they are carried out twice.
_REPEATABLE = frozenset(
    {
        *("delete", "delete-tag", "restore", "set-experiment-tag", "set-tag", "update"),
        *("log-batch", "log-inputs", "log-metric", "log-model", "log-parameter", "outputs"),
        *("get-latest-versions", "query", "search", "search-datasets", "transition-stage"),
    }
)


def origin_of(url: str) -> str:
    """``scheme://host[:port]`` in lower case, without a scheme's default port.

    Raises:
        IAPConfigurationError: not an http or https URL.
    """
    parts = urlsplit(url)
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if parts.scheme not in ("http", "https") or not host:
        raise IAPConfigurationError(
            f"{url!r} is no URL of a server. Give it as https://HOST, as MLFLOW_TRACKING_URI."
        )
    host = f"[{host}]" if ":" in host else host
    default = {"http": 80, "https": 443}[parts.scheme]
    return f"{parts.scheme}://{host}" + (f":{port}" if port not in (None, default) else "")


class IAPAuth(AuthBase):
    """``requests`` authentication for one server behind IAP.

    The token is sent once IAP has asked for one, so a server without IAP sees none and is used as
    if this object were not there. It goes into ``Authorization``; where MLflow's own basic
    authentication holds that, into ``Proxy-Authorization``, which IAP reads as well.

    Args:
        origin: ``https://HOST[:PORT]``; plain http for loopback only.
        credentials: the identity. Default: ``IAPCredentials()``.
        retry: how often and how long. Default: ``RetryPolicy()``.

    Raises:
        IAPConfigurationError: not a URL, or plain http to a host that is not loopback.
    """

    def __init__(
        self,
        origin: str,
        credentials: IAPCredentials | None = None,
        retry: RetryPolicy | None = None,
    ) -> None:
        self.origin = origin_of(origin)
        if self.origin.startswith("http:") and not _is_loopback(self.origin):
            raise IAPConfigurationError(
                f"{self.origin} would carry tokens in plain text. Use https (plain http is for "
                "servers on this machine only)."
            )
        self.is_asked = False  # whether IAP has asked for a token
        self.configure(credentials or IAPCredentials(), retry or RetryPolicy())

    def configure(self, credentials: IAPCredentials | None, retry: RetryPolicy | None) -> None:
        """Use other credentials, another policy, or both from the next request on."""
        if credentials is not None:
            self.credentials = credentials.for_origin(self.origin)
        if retry is not None:
            self.retry = retry

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if origin_of(request.url or "") == self.origin:
            token = None
            if self.is_asked:
                # What is wrong with the credentials is told by the exchange.
                with suppress(IAPCredentialsError):
                    token = self.credentials.token()
                    self.put(token, request)
            request.register_hook("response", partial(self._settle, token))
        return request

    def put(self, token: str, request: requests.PreparedRequest) -> None:
        """Set ``token`` on a request to the origin."""
        taken = request.headers.get("Authorization", "").lower().startswith("basic ")
        name = "Proxy-Authorization" if taken else "Authorization"
        request.headers[name] = f"Bearer {token}"

    def _settle(
        self, token: str | None, response: requests.Response, **kwargs: Any
    ) -> requests.Response:
        """For sessions with a transport of their own, where the first answer is here already."""
        connection: Any = response.connection
        if isinstance(connection, IAPTransport) or origin_of(response.url) != self.origin:
            return response
        request = response.request
        send = partial(connection.send, request, **kwargs)
        return self.exchange(request, send, (response, token))

    def exchange(
        self,
        request: requests.PreparedRequest,
        send: Send,
        first: tuple[requests.Response, str | None] | None = None,
    ) -> requests.Response:
        """Send until the answer is MLflow's.

        Args:
            request: to the origin.
            send: sends it once.
            first: an answer that is here already, and the token that it was got with.

        Raises:
            IAPRefusedError: IAP lets the request through with no token.
            IAPCredentialsError: there is no token.
            IAPUnknownOutcomeError: the answer to a request was lost that must not be repeated.
            requests.RequestException: the server could not be reached in time.
        """
        try:
            return self.retry(_Exchange(self, request, send, first).attempt)
        except IAPRefusedError as error:
            if request.method == "GET" and "/mlflow-artifacts/" in (request.url or ""):
                # MLflow drops what stopped a download and tells its user to check the path.
                _logger.warning("%s", error.message)
            raise

    def __getstate__(self) -> dict[str, Any]:
        return {"origin": self.origin, "credentials": self.credentials, "retry": self.retry}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


class _Exchange:
    """One request until its answer is settled."""

    def __init__(
        self,
        auth: IAPAuth,
        request: requests.PreparedRequest,
        send: Send,
        first: tuple[requests.Response, str | None] | None,
    ) -> None:
        self._auth = auth
        self._request = request
        self._send = send
        self._first = first
        self._is_sent = False
        self._token: str | None = None
        self._rejected: str | None = None
        self._refetched = 0

    def attempt(self) -> requests.Response:
        response = self._answer()
        if iap_answers.is_from_iap(response):
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
        if not self._auth.is_asked:
            return
        try:
            self._token = self._auth.credentials.token(rejected=self._rejected)
        except IAPCredentialsError as error:
            if error.transient:
                raise TryAgain(error) from None
            raise
        self._auth.put(self._token, self._request)

    def _after_iap(self, response: requests.Response) -> Exception:
        response.content  # noqa: B018 - to its end, so that the connection can be used again
        refusal = self._refusal(response)
        if iap_answers.is_token_rejected(response):
            if self._token is None:
                self._auth.is_asked = True
                return TryAgain(refusal, after=0.0, is_free=True)
            # A token may end, or be revoked, between its fetch and its use, and so may the next;
            # any other reason holds for the next token as well.
            again = _MOST_TOKENS if iap_answers.is_token_expired(response) else 1
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
            return TryAgain(response, after=_retry_after(response))
        return IAPUnknownOutcomeError(
            f"{self._called} was answered {response.status_code} ({response.text[:300]!r}); "
            "whether it was carried out is not known, and it would be carried out twice if it were "
            "sent again. Look whether it was before you repeat it."
        )

    def _after_failure(self, error: requests.RequestException) -> Exception:
        if isinstance(error, requests.exceptions.SSLError):
            return error
        if _was_never_sent(error) or _is_repeatable(self._request):
            return TryAgain(error)
        return IAPUnknownOutcomeError(
            f"The answer to {self._called} was lost ({type(error).__name__}); whether it was "
            "carried out is not known, and it would be carried out twice if it were sent again. "
            "Look whether it was before you repeat it."
        )

    def _take_token_from_redirect(self, response: requests.Response) -> None:
        """requests follows a redirect with the headers of the request that it answers."""
        if not response.is_redirect or self._token is None:
            return
        target = urljoin(response.url, response.headers["Location"])
        if not target.startswith(f"{self._auth.origin}/"):
            for name in ("Authorization", "Proxy-Authorization"):
                if self._request.headers.get(name) == f"Bearer {self._token}":
                    del self._request.headers[name]

    def _refusal(self, response: requests.Response) -> Exception:
        return iap_answers.refusal(response, self._auth.origin, str(self._auth.credentials))

    @property
    def _called(self) -> str:
        return f"{self._request.method} {urlsplit(self._request.url or '').path}"


class IAPTransport(requests.adapters.BaseAdapter):
    """Transport of one origin's requests: every attempt of an exchange, and no retries below it.

    Args:
        auth: the origin's.
        inner: sends a request once.
    """

    def __init__(self, auth: IAPAuth, inner: requests.adapters.HTTPAdapter) -> None:
        super().__init__()
        inner.max_retries = Retry(0, read=False)
        self._auth = auth
        self._inner = inner

    def send(  # type: ignore[override]
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        **kwargs: Any,
    ) -> requests.Response:
        def once() -> requests.Response:
            response = self._inner.send(
                request, stream=stream, timeout=_within_deadline(timeout), **kwargs
            )
            response.connection = self  # type: ignore[assignment]
            if not stream:
                response.content  # noqa: B018 - a body that breaks off is an answer that is lost
            return response

        return self._auth.exchange(request, once)

    def close(self) -> None:
        self._inner.close()


def _within_deadline(timeout: Any) -> Any:
    left = max(1.0, seconds_left())
    if isinstance(timeout, (int, float)):
        return min(float(timeout), left)
    return left if timeout is None and left != float("inf") else timeout


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


def _is_loopback(origin: str) -> bool:
    host = urlsplit(origin).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
