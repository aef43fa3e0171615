"""MLflow's entry point for IAP: a token and retries for the requests of this process.

MLflow loads this module while MLflow itself is being imported, in every process that sends a
request to any server. So heavy modules are imported inside the functions.
"""

from __future__ import annotations

import copy
import re
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
_API = re.compile(r"/api/\d\.\d/?mlflow/")

_auths: dict[str, IAPAuth] = {}  # by origin
_prefixes: dict[str, IAPAuth] = {}  # by URL prefix, as written in the tracking URI
_home = ""  # the origin that the environment's client id is for: that of the first server
_is_chosen_by_user = True


class IAPRequestAuthProvider(RequestAuthProvider):
    """MLflow's ``request_auth_provider`` for MLFLOW_TRACKING_AUTH=iap."""

    def get_name(self) -> str:
        return NAME

    def get_auth(self) -> Callable[[requests.PreparedRequest], requests.PreparedRequest]:
        from ..errors import IAPConfigurationError
        from .large_files import prepare_mlflow

        for uri in _mlflow_uris():
            # Requests to a URI that cannot work raise the error; others still work.
            with suppress(IAPConfigurationError):
                auth_for(uri)
        _take_over_transport()
        prepare_mlflow()
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
    auth = _auths.get(origin)
    if auth is not None:
        auth.configure(credentials, retry)
    else:
        auth = _auths.setdefault(origin, IAPAuth(origin, credentials, retry, home=_home))
    scheme, _, rest = uri.lower().partition("://")
    for prefix in (f"{scheme}://{rest.partition('/')[0]}/", f"{origin}/"):
        _prefixes[prefix] = auth
    return auth


def known_auth(uri: str) -> IAPAuth | None:
    """Return this process's authentication for the server at ``uri``; None if there is none yet."""
    from .origins import origin_of

    return _auths.get(origin_of(uri))


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
    """Authenticate requests to servers that a client, MLflow's URIs or the user has named."""
    from ..errors import IAPConfigurationError
    from .auth import reject_sign_in
    from .origins import origin_of

    origin = origin_of(request.url or "")
    # Only the user names the server of such a path, as in MlflowClient(uri). If a client chose IAP,
    # MLflow's own server may be another one, without IAP.
    if origin not in _auths and _is_chosen_by_user and _API.search(request.url or ""):
        # Plain http to another machine is an error only if it asks for a token.
        with suppress(IAPConfigurationError):
            auth_for(origin)
            _take_over_transport()
    if origin in _auths:
        return _auths[origin](request)
    request.register_hook("response", reject_sign_in)
    return request


def _mlflow_uris() -> list[str]:
    import mlflow

    from .origins import is_remote

    return [*filter(is_remote, {mlflow.get_tracking_uri(), mlflow.get_registry_uri()})]


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
            adapters[prefix] = IAPTransport(_prefixes[prefix].send, inner)
        # One assignment, because other threads use the session. requests takes the first match.
        session.adapters = dict(sorted(adapters.items(), key=lambda item: -len(item[0])))
