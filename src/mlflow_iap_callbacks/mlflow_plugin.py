"""MLflow's seam: IAP for every request that MLflow makes in this process.

MLflow loads this module while it is being imported itself, in every process that imports it, so
nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from mlflow.tracking.request_auth.abstract_request_auth_provider import RequestAuthProvider
from requests.auth import AuthBase

if TYPE_CHECKING:
    import requests

    from .credentials import IAPCredentials
    from .iap_auth import IAPAuth
    from .retry import RetryPolicy

NAME = "iap"

_auths: dict[str, IAPAuth] = {}


class IAPRequestAuthProvider(RequestAuthProvider):
    """MLflow's ``request_auth_provider`` named ``iap``: chosen by MLFLOW_TRACKING_AUTH=iap."""

    def get_name(self) -> str:
        return NAME

    def get_auth(self) -> AuthBase:
        for uri in _mlflow_uris():
            auth_for(uri)
        _take_over_transport()
        return _by_origin


def auth_for(
    uri: str, credentials: IAPCredentials | None = None, retry: RetryPolicy | None = None
) -> IAPAuth:
    """The process's one authentication for the server at ``uri``; what is given is set on it."""
    from .iap_auth import IAPAuth, origin_of

    origin = origin_of(uri)
    if origin not in _auths:
        _auths.setdefault(origin, IAPAuth(origin))
    _auths[origin].configure(credentials, retry)
    return _auths[origin]


class _ByOrigin(AuthBase):
    """Leaves requests alone that go neither to a configured server nor to MLflow's own URIs."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        from .iap_auth import origin_of

        auth = _auths.get(origin_of(request.url or ""))
        return request if auth is None else auth(request)


_by_origin = _ByOrigin()


def _mlflow_uris() -> list[str]:
    import mlflow

    uris = {mlflow.get_tracking_uri(), mlflow.get_registry_uri()}
    return [uri for uri in uris if uri.startswith(("http://", "https://"))]


def _take_over_transport() -> None:
    """Mount our transport on the session that MLflow is about to use.

    MLflow's own retries (urllib3, seven, POSTs included) would send ``runs/create`` again after a
    lost answer and wait as long as any Retry-After says. There is no public way around them: with
    the session that MLflow's settings lead to, requests' public one, a transport for an origin, can
    be gone. Without it (another MLflow) the token still works and MLflow's retries stay.
    """
    from mlflow import environment_variables as env
    from mlflow.utils import request_utils

    from .iap_auth import IAPTransport

    try:
        session: Any = request_utils._get_request_session(
            env.MLFLOW_HTTP_REQUEST_MAX_RETRIES.get(),
            env.MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR.get(),
            env.MLFLOW_HTTP_REQUEST_BACKOFF_JITTER.get(),
            request_utils._TRANSIENT_FAILURE_RESPONSE_CODES,
            True,
            env.MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER.get(),
        )
    except (AttributeError, TypeError):
        return
    for origin, auth in list(_auths.items()):
        prefix = f"{origin}/"
        if prefix not in session.adapters:
            inner = copy.copy(session.get_adapter(prefix))
            session.mount(prefix, IAPTransport(auth, inner))
