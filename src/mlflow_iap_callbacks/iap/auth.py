"""``IAPAuth``: adds IAP's token to the requests to one server, and to no others."""

from __future__ import annotations

import ipaddress
import logging
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase

from ..errors import IAPConfigurationError, IAPCredentialsError, IAPError
from .credentials import IAPCredentials
from .passwords import without_passwords
from .retried_request import Answered, RetriedRequest, Send, set_bearer
from .retry_policy import RetryPolicy
from .transport import IAPTransport

_logger = logging.getLogger("mlflow_iap_callbacks")


def origin_of(url: str) -> str:
    """``scheme://host[:port]`` of a URL, in lower case and without a default port.

    Raises:
        IAPConfigurationError: it is not an http or https URL.
    """
    parts = urlsplit(url)
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if parts.scheme not in ("http", "https") or not host:
        raise IAPConfigurationError(
            f"{without_passwords(url)!r} is not the URL of a server. Set MLFLOW_TRACKING_URI, or "
            "the argument, to https://HOST."
        )
    host = f"[{host}]" if ":" in host else host
    default = {"http": 80, "https": 443}[parts.scheme]
    return f"{parts.scheme}://{host}" + (f":{port}" if port not in (None, default) else "")


class IAPAuth(AuthBase):
    """``requests`` authentication for one server behind IAP.

    A token is sent only after IAP has asked for one, so a server without IAP never receives one.
    The token is in the header ``Authorization`` or, if MLflow's own basic authentication uses that
    header, in ``Proxy-Authorization``, which IAP reads as well.

    Args:
        origin: ``https://HOST[:PORT]``; plain http only for this machine.
        credentials: Google identity. Default: ``IAPCredentials()``.
        retry: how often and for how long a request is retried. Default: ``RetryPolicy()``.
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
                f"{self.origin} would send tokens in plain text. Use https; plain http is only for "
                "servers on this machine."
            )
        self.is_asked = False  # whether IAP has asked for a token
        self._has_own = credentials is not None
        self.credentials = (credentials or IAPCredentials()).for_origin(self.origin)
        self.retry = retry or RetryPolicy()

    def configure(self, credentials: IAPCredentials | None, retry: RetryPolicy | None) -> None:
        """Change the settings from the next request on; None keeps the current ones.

        Credentials from the environment are replaced if the environment has changed.
        """
        if credentials is not None or not self._has_own:
            self._has_own = credentials is not None
            credentials = (credentials or IAPCredentials()).for_origin(self.origin)
            if not self.credentials.is_like(credentials):  # otherwise the token is kept
                self.credentials = credentials
        self.retry = retry or self.retry

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if origin_of(request.url or "") == self.origin:
            token = None
            if self.is_asked:
                # The next attempt raises the error of the credentials.
                with suppress(IAPCredentialsError):
                    token = self.credentials.token()
                    set_bearer(token, request)
            request.register_hook("response", partial(self._settle, token))
        return request

    def session(self) -> requests.Session:
        """A session that sends requests to the server as MLflow does. The caller closes it."""
        session = requests.Session()
        session.mount(f"{self.origin}/", IAPTransport(self.send, HTTPAdapter()))
        session.auth = self
        return session

    def _settle(
        self, token: str | None, response: requests.Response, **kwargs: Any
    ) -> requests.Response:
        """Retry a request that a session without IAPTransport sent, given its first response."""
        connection: Any = response.connection
        if isinstance(connection, IAPTransport) or origin_of(response.url) != self.origin:
            return response
        request = response.request
        return self.send(request, partial(connection.send, request, **kwargs), (response, token))

    def send(
        self, request: requests.PreparedRequest, send: Send, first: Answered | None = None
    ) -> requests.Response:
        """Send a request until MLflow responds.

        Args:
            request: a request to the server.
            send: sends it once.
            first: a response that was already received, and the token that its request carried.

        Raises:
            IAPRefusedError: IAP rejects the request.
            IAPCredentialsError: no token can be obtained.
            IAPUnknownOutcomeError: the response was lost, and a repeated request could take effect
                twice.
            requests.RequestException: the server could not be reached in time.
        """
        # MLflow hides why a download failed, and suggests checking the path.
        is_download = request.method == "GET" and "/mlflow-artifacts/" in (request.url or "")
        try:
            response = self.retry(RetriedRequest(self, request, send, first).attempt)
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
