"""IAP's bearer token on the requests to one origin, and on no others."""

from __future__ import annotations

import ipaddress
import logging
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.auth import AuthBase

from ..errors import IAPConfigurationError, IAPCredentialsError, IAPError
from .credentials import IAPCredentials
from .exchange import Answered, Exchange, Send, set_bearer
from .retry import RetryPolicy
from .transport import IAPTransport

_logger = logging.getLogger(__name__)


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
        self._has_own = credentials is not None
        self.credentials = (credentials or IAPCredentials()).for_origin(self.origin)
        self.retry = retry or RetryPolicy()

    def configure(self, credentials: IAPCredentials | None, retry: RetryPolicy | None) -> None:
        """Use other credentials, another policy, or both from the next request on.

        With None for credentials those that were given stay; those of the environment are looked
        for again if it has changed.
        """
        self._has_own = self._has_own or credentials is not None
        if credentials is None and not self._has_own:
            credentials = IAPCredentials()
        if credentials is not None:
            credentials = credentials.for_origin(self.origin)
            # The same again keeps its token.
            if not self.credentials.is_like(credentials):
                self.credentials = credentials
        if retry is not None:
            self.retry = retry

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if origin_of(request.url or "") == self.origin:
            token = None
            if self.is_asked:
                # What is wrong with the credentials is told by the exchange.
                with suppress(IAPCredentialsError):
                    token = self.credentials.token()
                    set_bearer(token, request)
            request.register_hook("response", partial(self._settle, token))
        return request

    def session(self) -> requests.Session:
        """A session whose requests to the origin are sent as MLflow's are; to be closed."""
        session = requests.Session()
        transport = IAPTransport(self.exchange, requests.adapters.HTTPAdapter())
        session.mount(f"{self.origin}/", transport)
        session.auth = self
        return session

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
        first: Answered | None = None,
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
        # MLflow drops what stopped a download and tells its user to check the path.
        is_download = request.method == "GET" and "/mlflow-artifacts/" in (request.url or "")
        try:
            response = self.retry(Exchange(self, request, send, first).attempt)
        except IAPError as error:
            if is_download:
                _logger.warning("%s", error.message)
            raise
        if is_download and response.status_code >= 400:
            _logger.warning("%s: %d, %.500s", response.url, response.status_code, response.text)
        return response

    def __getstate__(self) -> dict[str, Any]:
        return {"origin": self.origin, "credentials": self.credentials, "retry": self.retry}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def _is_loopback(origin: str) -> bool:
    host = urlsplit(origin).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
