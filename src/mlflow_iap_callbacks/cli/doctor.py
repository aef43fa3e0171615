"""From the environment to a real API call, one step at a time: what is there, what to do."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

import requests
from mlflow.exceptions import MlflowException

from ..errors import IAPError, IAPRefusedError
from ..iap import answers
from ..iap.auth import IAPAuth
from ..iap.client import IAPMlflowClient
from ..iap.credentials import IAPCredentials
from ..iap.retry import RetryPolicy

_ONCE = RetryPolicy(max_attempts=3, deadline=20.0)
_TIMEOUT = 10.0


@dataclass(frozen=True)
class Finding:
    """One step's result.

    Attributes:
        step: what was looked at.
        saw: what was found, in words.
        is_good: False when the step stops the way to MLflow.
    """

    step: str
    saw: str
    is_good: bool = True


def examine(uri: str) -> Iterator[Finding]:
    """Walk the way of a request; ends behind the first step that stops it.

    Args:
        uri: the tracking URI.
    """
    yield _environment()
    try:
        auth = IAPAuth(uri, retry=_ONCE)
    except IAPError as error:
        yield Finding("address", error.message, is_good=False)
        return
    yield Finding("address", auth.origin)
    steps: list[Callable[[IAPAuth, str], Finding]] = [_server, _credentials, _token, _mlflow]
    uri = uri.rstrip("/")
    for step in steps:
        try:
            finding = step(auth, uri)
        except (MlflowException, requests.RequestException) as error:
            finding = Finding(step.__name__.strip("_"), _one_line(error), is_good=False)
        yield finding
        if not finding.is_good:
            return


def _environment() -> Finding:
    names = (
        *("MLFLOW_TRACKING_AUTH", "MLFLOW_IAP_CLIENT_ID", "MLFLOW_OAUTH2_CLIENT_ID"),
        *("MLFLOW_IAP_IMPERSONATE", "GOOGLE_APPLICATION_CREDENTIALS"),
    )
    saw = [f"{name}={os.environ[name]}" for name in names if os.environ.get(name)]
    if os.environ.get("MLFLOW_TRACKING_TOKEN"):
        saw.append("MLFLOW_TRACKING_TOKEN is set too; IAP's token takes its place")
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        saw.append("HTTPS_PROXY is set")  # its value may hold a password
    if os.environ.get("MLFLOW_TRACKING_AUTH") != "iap":
        saw.append(
            "MLFLOW_TRACKING_AUTH is not iap: MLflow's own command and fluent API will not pass "
            "(IAPMlflowClient and the callbacks will)"
        )
    return Finding("environment", "\n".join(saw))


def _server(auth: IAPAuth, uri: str) -> Finding:
    """Is it IAP that answers, and whose OAuth client does it send people to?"""
    response = requests.get(uri, allow_redirects=False, timeout=_TIMEOUT)
    if not answers.is_from_iap(response):
        return Finding("server", f"no IAP: {response.status_code} without a token")
    auth.is_asked = True
    query = parse_qs(urlsplit(response.headers.get("Location", "")).query)
    client_id = query.get("client_id", ["no client"])[0]
    return Finding(
        "server", f"IAP; its OAuth client is {client_id}, {_whose(auth, uri, client_id)}"
    )


def _whose(auth: IAPAuth, uri: str, client_id: str) -> str:
    """IAP takes ID tokens for a project's own client, and none for a Google-managed one."""
    try:
        trial = IAPAuth(auth.origin, IAPCredentials(client_id, kind="id_token"), _ONCE)
        _get(trial, f"{uri}/version")
    except IAPRefusedError as error:
        if error.reason in ("audience", "allowlist"):
            return "Google-managed (it refuses ID tokens for it; signed JWTs pass)"
        if error.reason != "role":
            return f"Google-managed or your own (asked with an ID token IAP said {error.answer!r})"
    except (IAPError, requests.RequestException):
        return "Google-managed or your own (no ID token could be had to find out)"
    return "your own"


def _credentials(auth: IAPAuth, _: str) -> Finding:
    if not auth.is_asked:
        return Finding("credentials", "not needed here")
    described = auth.credentials.describe()
    return Finding("credentials", "\n".join(f"{name}: {v}" for name, v in described.items()))


def _token(auth: IAPAuth, uri: str) -> Finding:
    """Does the token pass, and has the account the role?"""
    _get(auth, f"{uri}/version")
    if not auth.is_asked:
        return Finding("token", "not needed here")
    return Finding("token", "IAP takes it, and the account has the role (IAP-secured Web App User)")


def _mlflow(auth: IAPAuth, uri: str) -> Finding:
    version = _get(auth, f"{uri}/version").text.strip()
    client = IAPMlflowClient(uri, max_attempts=_ONCE.max_attempts, deadline=_ONCE.deadline)
    found = client.search_experiments(max_results=1)
    return Finding("MLflow", f"version {version} answers; {len(found)} experiment read")


def _get(auth: IAPAuth, url: str) -> requests.Response:
    with auth.session() as session:
        response = session.get(url, timeout=_TIMEOUT)
    response.raise_for_status()
    return response


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
