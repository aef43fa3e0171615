"""MLflow's seam: IAP for every request that MLflow makes in this process.

MLflow loads this module while it is being imported itself, in every process that imports it, so
nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import copy
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from mlflow.tracking.request_auth.abstract_request_auth_provider import RequestAuthProvider
from requests.auth import AuthBase

if TYPE_CHECKING:
    import requests

    from .auth import IAPAuth
    from .credentials import IAPCredentials
    from .retry import RetryPolicy

NAME = "iap"
# Bytes; App Engine and Cloud Run take no request above 32 MB. MLflow's own is 500 MB.
_LEAST_IN_PARTS = 32_000_000

_auths: dict[str, IAPAuth] = {}  # by origin
_prefixes: dict[str, str] = {}  # of URLs, as their tracking URI writes them, to origins
_is_chosen_by_user = True


class IAPRequestAuthProvider(RequestAuthProvider):
    """MLflow's ``request_auth_provider`` named ``iap``: chosen by MLFLOW_TRACKING_AUTH=iap."""

    def get_name(self) -> str:
        return NAME

    def get_auth(self) -> AuthBase:
        from ..errors import IAPConfigurationError

        for uri in _mlflow_uris():
            # A URI that cannot work is told by the requests to it, and is none of the others'.
            with suppress(IAPConfigurationError):
                auth_for(uri)
        _take_over_transport()
        _send_large_files_in_parts()
        return _by_origin


def auth_for(
    uri: str, credentials: IAPCredentials | None = None, retry: RetryPolicy | None = None
) -> IAPAuth:
    """The process's one authentication for the server at ``uri``; what is given is set on it.

    Raises:
        IAPConfigurationError: not a URL, or plain http to a host that is not loopback.
    """
    from .auth import IAPAuth, origin_of

    origin = origin_of(uri)
    if origin in _auths:
        _auths[origin].configure(credentials, retry)
    else:
        _auths.setdefault(origin, IAPAuth(origin, credentials, retry))
    scheme, _, rest = uri.partition("://")
    _prefixes[f"{scheme}://{rest.partition('/')[0]}/".lower()] = origin
    return _auths[origin]


def choose() -> str | None:
    """Choose IAP where MLflow's authentication is not chosen yet; return another choice."""
    global _is_chosen_by_user
    from mlflow.environment_variables import MLFLOW_TRACKING_AUTH

    chosen: str | None = MLFLOW_TRACKING_AUTH.get()
    if not chosen:
        _is_chosen_by_user = False
        MLFLOW_TRACKING_AUTH.set(NAME)
    return chosen if chosen != NAME else None


class _ByOrigin(AuthBase):
    """Leaves requests alone that go neither to a configured server nor to MLflow's own URIs."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        from .auth import origin_of

        origin = origin_of(request.url or "")
        if origin in _auths:
            return _auths[origin](request)
        # A server beside one that a client of ours is for may have no IAP, and be on plain http.
        if _is_chosen_by_user and any(
            uri.lower().startswith(f"{origin}/") or uri.lower() == origin for uri in _mlflow_uris()
        ):
            return auth_for(origin)(request)
        return request


_by_origin = _ByOrigin()


def _mlflow_uris() -> list[str]:
    import mlflow

    uris = {mlflow.get_tracking_uri(), mlflow.get_registry_uri()}
    return [uri for uri in uris if uri.startswith(("http://", "https://"))]


def _send_large_files_in_parts() -> None:
    """Straight to the bucket, where the server offers that; a choice made by variables stays."""
    from mlflow.environment_variables import (
        MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD,
        MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE,
    )

    if not MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD.is_set():
        MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD.set(True)
    if not MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE.is_set():
        MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE.set(_LEAST_IN_PARTS)


def _take_over_transport() -> None:
    """Mount our transport on the session that MLflow is about to use.

    MLflow's own retries (urllib3, seven, POSTs included) would send ``runs/create`` again after a
    lost answer and wait as long as any Retry-After says. There is no public way around them: with
    the session that MLflow's settings lead to, requests' public one, a transport for an origin, can
    be gone. Without it (another MLflow) the token still works and MLflow's retries stay.
    """
    from mlflow import environment_variables as env
    from mlflow.utils import request_utils

    from .transport import IAPTransport

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
    missing = _prefixes.keys() - session.adapters.keys()
    if missing:
        adapters = dict(session.adapters)
        for prefix in missing:
            inner = copy.copy(adapters[f"{prefix.partition('://')[0]}://"])
            adapters[prefix] = IAPTransport(_auths[_prefixes[prefix]].exchange, inner)
        # In one step, for other threads use the session meanwhile; requests takes the first that
        # fits.
        session.adapters = dict(sorted(adapters.items(), key=lambda item: -len(item[0])))
