"""``IAPAuth``: adds IAP's token to the requests to one server, and to no others."""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import partial
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from requests.utils import get_environ_proxies

from ..errors import IAPConfigurationError, IAPCredentialsError, IAPError
from .arguments import checked
from .create_once import create_once
from .credentials import IAPCredentials
from .keyed_creation import creation_in
from .large_files import send_file
from .matched_creation import matched_creation_in
from .origins import is_loopback, origin_of
from .own_effects import despite_own_effect
from .responses import is_from_iap
from .retried_request import RetriedRequest, Send
from .retry_policy import RetryPolicy
from .secret_removal import clean_response, pop_bearer, set_bearer, without_secrets
from .tls_session import TLSSession
from .transport import IAPTransport, without_proxies

_logger = logging.getLogger("mlflow_iap_callbacks")


def reject_sign_in(response: requests.Response, **_: Any) -> None:
    """Raise an error in place of IAP's sign-in page, for a server that gets no token."""
    if is_from_iap(response):
        origin = origin_of(response.url)
        IAPAuth(origin)  # raises an error for plain http to another machine
        raise IAPConfigurationError(
            f"{origin} is behind IAP and gets no token, because it is not MLflow's tracking "
            f"server. Set MLFLOW_TRACKING_URI={origin} and MLFLOW_TRACKING_AUTH=iap, or use "
            f"IAPMlflowClient({origin!r})."
        )


class IAPAuth(AuthBase):
    """``requests`` authentication for one server behind IAP.

    A token is sent only after IAP has asked for one, so a server without IAP never receives one.
    The token is in the header ``Authorization`` or, if MLflow's own basic authentication uses that
    header, in ``Proxy-Authorization``, which IAP reads as well.

    Args:
        origin: ``https://HOST[:PORT]``; plain http only for this machine.
        credentials: Google identity. Default: ``IAPCredentials()``.
        retry: how often and for how long a request is retried. Default: ``RetryPolicy()``.
        home: as for ``IAPCredentials.for_origin``.

    Raises:
        IAPConfigurationError: the origin is not a URL, or is plain http to another machine.

    Examples:
        ```python
        auth = IAPAuth("https://mlflow.example.com")
        with auth.session() as session:
            print(session.get("https://mlflow.example.com/version").text)
        ```
    """

    @checked
    def __init__(
        self,
        origin: str,
        credentials: IAPCredentials | None = None,
        retry: RetryPolicy | None = None,
        *,
        home: str | None = None,
    ) -> None:
        self.origin = origin_of(origin)
        self._is_http = self.origin.startswith("http:")
        if self._is_http and not is_loopback(self.origin):
            raise IAPConfigurationError(
                f"{self.origin} would send tokens in plain text. Use https; plain http is only for "
                "servers on this machine."
            )
        # The process that uses it, and the session for small requests.
        self.shared_session: tuple[int, requests.Session] | None = None
        self.is_asked = False  # whether IAP has asked for a token
        self._home = home
        self._has_own = credentials is not None
        self.credentials = (credentials or IAPCredentials()).for_origin(self.origin, home=home)
        self.retry = retry or RetryPolicy()

    def configure(self, credentials: IAPCredentials | None, retry: RetryPolicy | None) -> None:
        """Change the settings from the next request on; None keeps the current ones.

        Credentials from the environment are replaced if the environment has changed.
        """
        if credentials is not None or not self._has_own:
            self._has_own = credentials is not None
            credentials = credentials or IAPCredentials()
            credentials = credentials.for_origin(self.origin, home=self._home)
            if not self.credentials.is_like(credentials):  # otherwise the token is kept
                self.credentials = credentials
        self.retry = retry or self.retry

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if origin_of(request.url or "") == self.origin:
            # The first attempt may pass through the environment's proxy, which reads plain http.
            if self.is_asked and not (self._is_http and get_environ_proxies(self.origin)):
                # The next attempt raises the error of the credentials.
                with suppress(IAPCredentialsError):
                    set_bearer(self.credentials.token(), request)
            request.register_hook("response", self._on_response)
        return request

    def session(self) -> requests.Session:
        """A session that sends requests to the server as MLflow does. The caller closes it."""
        session = TLSSession()
        session.mount(f"{self.origin}/", IAPTransport(self.send, HTTPAdapter()))
        session.auth = self
        return session

    @without_secrets
    def _on_response(self, response: requests.Response, **kwargs: Any) -> requests.Response:
        """Retry a request that a session without IAPTransport sent, given its first response."""
        connection: Any = response.connection
        if isinstance(connection, IAPTransport):
            return response
        if origin_of(response.url) != self.origin:
            reject_sign_in(response)
            return response
        send = partial(connection.send, **without_proxies(kwargs, self.origin))
        return self.send(response.request, send, response)

    @without_secrets
    def send(
        self,
        request: requests.PreparedRequest,
        send: Send,
        first: requests.Response | None = None,
    ) -> requests.Response:
        """Send a request until MLflow responds.

        Args:
            request: a request to the server.
            send: sends it once.
            first: a response that was already received.

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
            response = self._send(request, send, first)
        except IAPError as error:
            if is_download:
                _logger.warning("%s", error.message)
            raise
        if is_download and response.status_code >= 400:
            _logger.warning("%s: %d, %.500s", response.url, response.status_code, response.text)
        return clean_response(response)

    def _send(
        self, request: requests.PreparedRequest, send: Send, first: requests.Response | None
    ) -> requests.Response:
        def send_until_known(
            request: requests.PreparedRequest, first: requests.Response | None = None
        ) -> requests.Response:
            attempts = RetriedRequest(self, request, send, first)
            response = self.retry(attempts.attempt)
            if attempts.may_have_worked:
                return despite_own_effect(request, response, attempts.began, send_until_known)
            return response

        if first is not None:
            return send_until_known(request, first)
        creation = creation_in(request) or matched_creation_in(request)
        if creation is None:
            return send_file(request, send_until_known)
        pop_bearer(request)
        return create_once(
            lambda is_again: send_until_known(creation.request(is_again)),
            lambda: creation.found(send_until_known),
            self.retry,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {"origin": self.origin, "credentials": self.credentials, "retry": self.retry}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]
