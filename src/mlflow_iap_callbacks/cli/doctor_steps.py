"""The steps of ``mlflow-iap doctor``, from the environment variables to a request to MLflow."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

import requests
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import read_mlflow_creds

from ..errors import IAPError, IAPRefusedError
from ..iap import responses
from ..iap.auth import IAPAuth
from ..iap.client import IAPMlflowClient
from ..iap.credentials import IAPCredentials
from ..iap.passwords import holds_contents, shown
from ..iap.retry_policy import RetryPolicy
from ..iap.tls_session import TLSSession
from .doctor_errors import explain

_RETRY = RetryPolicy(max_attempts=3, deadline=20.0)
_TIMEOUT = 10.0  # seconds, of one request


class Finding(NamedTuple):
    """What a step found. If it is not good, requests to MLflow fail."""

    step: str
    saw: str
    is_good: bool = True


def examine(uri: str) -> Iterator[Finding]:
    """Yield the findings for a tracking URI, up to the first problem."""
    environment = _environment()
    yield environment
    if not environment.is_good:
        return
    try:
        auth = IAPAuth(uri, retry=_RETRY)
    except IAPError as error:
        yield Finding("address", error.message, is_good=False)
        return
    yield Finding("address", auth.origin)
    steps = {"server": _server, "credentials": _credentials, "token": _token, "MLflow": _mlflow}
    for name, step in steps.items():
        try:
            yield Finding(name, step(auth, uri.rstrip("/")))
        except (MlflowException, requests.RequestException) as error:
            yield Finding(name, explain(error, uri), is_good=False)
            return


def _environment() -> Finding:
    names = (
        *("MLFLOW_TRACKING_AUTH", "MLFLOW_IAP_CLIENT_ID", "MLFLOW_OAUTH2_CLIENT_ID"),
        *("MLFLOW_IAP_IMPERSONATE", "GOOGLE_APPLICATION_CREDENTIALS"),
    )
    saw = [f"{name}={_shown(os.environ[name])}" for name in names if os.environ.get(name)]
    if os.environ.get("MLFLOW_TRACKING_TOKEN"):
        saw.append("MLFLOW_TRACKING_TOKEN is set, but IAP's token is used instead")
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        saw.append("HTTPS_PROXY is set")  # its value may contain a password
    plugin = os.environ.get("MLFLOW_TRACKING_AUTH")
    if not plugin:
        saw.append(
            "MLFLOW_TRACKING_AUTH is not set: IAP will reject MLflow's own command and fluent API "
            "(but not IAPMlflowClient and the callbacks)"
        )
    elif plugin != "iap":
        saw.append(
            "MLFLOW_TRACKING_AUTH names another plugin, so no request gets IAP's token. Set it: "
            "`export MLFLOW_TRACKING_AUTH=iap`"
        )
    return Finding("environment", "\n".join(saw), is_good=plugin in (None, "", "iap"))


def _shown(value: str) -> str:
    return shown(value) if holds_contents(value) else value


def _server(auth: IAPAuth, uri: str) -> str:
    """Find out whether there is an IAP, and which OAuth client it uses for people."""
    with TLSSession() as session:
        response = session.get(
            uri, allow_redirects=False, timeout=_TIMEOUT, headers=_basic_authentication(uri)
        )
    if not responses.is_from_iap(response):
        return f"no IAP (it answered {response.status_code} to a request without a token)"
    auth.is_asked = True
    query = parse_qs(urlsplit(response.headers.get("Location", "")).query)
    client_id = query.get("client_id", ["no client"])[0]
    return f"IAP; its OAuth client is {client_id}, {_owner(auth, uri, client_id)}"


def _owner(auth: IAPAuth, uri: str, client_id: str) -> str:
    """Find out who manages an OAuth client: IAP accepts no ID tokens for Google-managed ones."""
    try:
        trial = IAPAuth(auth.origin, IAPCredentials(client_id, kind="id_token"), _RETRY)
        _get(trial, uri)
    except IAPRefusedError as error:
        if error.reason in ("audience", "allowlist"):
            return "Google-managed (IAP rejects ID tokens for it and accepts signed JWTs)"
        if error.reason != "role":
            return f"Google-managed or your own (IAP answered {error.answer!r} to an ID token)"
    except (IAPError, requests.RequestException):
        return "Google-managed or your own (no ID token could be obtained to find out)"
    return "your own"


def _credentials(auth: IAPAuth, _: str) -> str:
    if not auth.is_asked:
        return "not needed here"
    return "\n".join(f"{name}: {value}" for name, value in auth.credentials.describe().items())


def _token(auth: IAPAuth, uri: str) -> str:
    """Find out whether IAP accepts the token and the account has the role."""
    _get(auth, uri)
    if not auth.is_asked:
        return "not needed here"
    return "IAP accepts it, and the account has the role (IAP-secured Web App User)"


def _mlflow(auth: IAPAuth, uri: str) -> str:
    version = _get(auth, uri).text.strip()
    if "<" in version:  # a page
        raise MlflowException(f"{uri}/version is a web page, not a version.")
    client = IAPMlflowClient(uri, max_attempts=_RETRY.max_attempts, deadline=_RETRY.deadline)
    client.search_experiments(max_results=1)
    return f"version {version}; its experiments can be read"


def _get(auth: IAPAuth, uri: str) -> requests.Response:
    """Request the version from a server, with its token."""
    with auth.session() as session:
        response = session.get(
            f"{uri}/version", timeout=_TIMEOUT, headers=_basic_authentication(uri)
        )
    response.raise_for_status()
    return response


def _basic_authentication(uri: str) -> dict[str, str]:
    """Return the header for MLflow's own authentication, if it is configured."""
    user = read_mlflow_creds()
    if not user.username or not user.password:
        return {}
    request = requests.Request("GET", uri, auth=(user.username, user.password))
    return {"Authorization": request.prepare().headers["Authorization"]}
