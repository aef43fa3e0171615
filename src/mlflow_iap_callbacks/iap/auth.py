"""``IAPAuth``: IAP's token on the requests to one server, and on no others."""

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
        IAPConfigurationError: not an http or https URL.
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

    A token is sent only after IAP has asked for one, so a server without IAP never receives it. Its
    header is ``Authorization``, or ``Proxy-Authorization``, which IAP reads as well, if MLflow's
    own basic authentication uses the former.

    Args:
        origin: ``https://HOST[:PORT]``; plain http for this machine only.
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
        """Change the settings from the next request on; None keeps those that were given before.

        Credentials from the environment are replaced if the environment has changed.
        """
        if credentials is not None or not self._has_own:
            self._has_own = credentials is not None
            credentials = (credentials or IAPCredentials()).for_origin(self.origin)
            if not self.credentials.is_like(credentials):  # else the token is kept
                self.credentials = credentials
        self.retry = retry or self.retry

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if origin_of(request.url or "") == self.origin:
            token = None
            if self.is_asked:
                # The attempt that follows raises what is wrong with the credentials.
                with suppress(IAPCredentialsError):
                    token = self.credentials.token()
                    set_bearer(token, request)
            request.register_hook("response", partial(self._settle, token))
        return request

    def session(self) -> requests.Session:
        """A session that sends requests to the server as MLflow does. To be closed."""
        session = requests.Session()
        session.mount(f"{self.origin}/", IAPTransport(self.send, HTTPAdapter()))
        session.auth = self
        return session

    def _settle(
        self, token: str | None, response: requests.Response, **kwargs: Any
    ) -> requests.Response:
        """Retry the request of a session that has no IAPTransport: its first response is here."""
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
            first: a response that was received before, and the token that its request carried.

        Raises:
            IAPRefusedError: IAP rejects the request.
            IAPCredentialsError: there is no token.
            IAPUnknownOutcomeError: the response was lost, and repeating the request could do its
                work twice.
            requests.RequestException: the server could not be reached in time.
        """
        # MLflow drops what stopped a download and suggests to check the path.
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
