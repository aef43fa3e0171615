"""MLflow's entry point for IAP: a token and retries for the requests of this process.

MLflow loads this module while MLflow itself is being imported, in every process that sends a
request to any server. So heavy modules are imported inside the functions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from mlflow.tracking.request_auth.abstract_request_auth_provider import RequestAuthProvider

if TYPE_CHECKING:
    import requests

    from .auth import IAPAuth
    from .credentials import IAPCredentials
    from .retry_policy import RetryPolicy

NAME = "iap"
# Bytes; App Engine and Cloud Run accept requests up to 32 MB. MLflow's default is 500 MB.
_MULTIPART_MINIMUM = 32_000_000

_auths: dict[str, IAPAuth] = {}  # by origin
_prefixes: dict[str, str] = {}  # origins by URL prefix, as written in the tracking URI
_home = ""  # the origin that the environment's client id is for: that of the first server
_is_chosen_by_user = True


class IAPRequestAuthProvider(RequestAuthProvider):
    """MLflow's ``request_auth_provider`` for MLFLOW_TRACKING_AUTH=iap."""

    def get_name(self) -> str:
        return NAME

    def get_auth(self) -> Callable[[requests.PreparedRequest], requests.PreparedRequest]:
        from ..errors import IAPConfigurationError

        for uri in _mlflow_uris():
            # Requests to a URI that cannot work raise the error; others still work.
            with suppress(IAPConfigurationError):
                auth_for(uri)
        _take_over_transport()
        _send_large_files_in_parts()
        return _authenticate


def auth_for(
    uri: str, credentials: IAPCredentials | None = None, retry: RetryPolicy | None = None
) -> IAPAuth:
    """This process's only authentication for the server at ``uri``, with the given settings."""
    from .auth import IAPAuth
    from .origins import origin_of, tracking_origin

    global _home
    origin = origin_of(uri)
    if not _auths:
        _home = tracking_origin() or origin
    if origin in _auths:
        _auths[origin].configure(credentials, retry)
    else:
        _auths.setdefault(origin, IAPAuth(origin, credentials, retry, home=_home))
    scheme, _, rest = uri.partition("://")
    _prefixes[f"{scheme}://{rest.partition('/')[0]}/".lower()] = origin
    return _auths[origin]


def choose() -> None:
    """Select IAP as MLflow's authentication in this process.

    Raises:
        IAPConfigurationError: the user selected another one, or MLflow cannot find this one.
    """
    global _is_chosen_by_user
    from mlflow.environment_variables import MLFLOW_TRACKING_AUTH
    from mlflow.tracking.request_auth.registry import fetch_auth

    from ..errors import IAPConfigurationError

    chosen = MLFLOW_TRACKING_AUTH.get()
    if not chosen:
        _is_chosen_by_user = False
        MLFLOW_TRACKING_AUTH.set(NAME)
    elif chosen != NAME:
        raise IAPConfigurationError(
            f"MLFLOW_TRACKING_AUTH is {chosen!r}, which selects another authentication method. "
            f"Unset it, or set it to {NAME!r}."
        )
    if fetch_auth(NAME) is None:
        raise IAPConfigurationError(
            f"MLflow cannot find the authentication method {NAME!r}: this package can be imported "
            "but is not installed. Install it: `pip install mlflow-iap-callbacks`."
        )


def _authenticate(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Authenticate requests to the servers that clients or MLflow's URIs name, and no others."""
    from .origins import origin_of

    origin = origin_of(request.url or "")
    if origin in _auths:
        return _auths[origin](request)
    # If a client chose IAP, MLflow's own server may be another one, without IAP.
    if _is_chosen_by_user and any(
        f"{uri}/".lower().startswith(f"{origin}/") for uri in _mlflow_uris()
    ):
        return auth_for(origin)(request)
    return request


def _mlflow_uris() -> list[str]:
    import mlflow

    uris = {mlflow.get_tracking_uri(), mlflow.get_registry_uri()}
    return [uri for uri in uris if uri.startswith(("http://", "https://"))]


def _send_large_files_in_parts() -> None:
    """Upload large files directly to the bucket, unless a variable or the server disables it."""
    from mlflow import environment_variables as env

    if not env.MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD.is_set():
        env.MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD.set(True)
    if not env.MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE.is_set():
        env.MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE.set(_MULTIPART_MINIMUM)


def _take_over_transport() -> None:
    """Mount an IAPTransport for each server on the session that MLflow is about to use.

    MLflow's own retries (urllib3, seven times, POSTs included) would send ``runs/create`` again
    after a lost response, and wait as long as any Retry-After says. There is no public way to
    replace them. If MLflow's function for sessions has changed, its retries remain active.
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
            adapters[prefix] = IAPTransport(_auths[_prefixes[prefix]].send, inner)
        # One assignment, because other threads use the session. requests takes the first match.
        session.adapters = dict(sorted(adapters.items(), key=lambda item: -len(item[0])))
