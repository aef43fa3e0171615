"""Shared by the tests of credentials: a request through IAP, and separate processes."""

from __future__ import annotations

import os
from pathlib import Path

import requests

import mlflow_iap_callbacks
from forked_test import run_forked
from mlflow_iap_callbacks.iap.auth import IAPAuth
from mlflow_iap_callbacks.iap.credentials import IAPCredentials
from mlflow_iap_callbacks.iap.google_tokens import Kind
from mlflow_iap_callbacks.iap.retry_policy import RetryPolicy
from mlflow_iap_callbacks.local import LocalCloud

_PACKAGE = mlflow_iap_callbacks.__name__
KINDS: tuple[Kind, ...] = ("id_token", "signed_jwt", "access_token")
SWEEPER = "sweeper@local-project.iam.gserviceaccount.com"


def get(
    url: str, credentials: IAPCredentials, retry: RetryPolicy | None = None
) -> requests.Response:
    """GET a page behind IAP, as MLflow's requests are sent."""
    auth = IAPAuth(url, credentials, retry or RetryPolicy(deadline=20.0))
    with auth.session() as session:
        return session.get(f"{auth.origin}/page", timeout=20)


def revoke_issued(cloud: LocalCloud) -> None:
    """Revoke all tokens that Google issued. Unlike ``revoke_tokens``, it need not wait a second."""
    cloud.mint._revoked.update(cloud.mint._issued_at)


def run(script: str, home: Path, *environments: dict[str, str]) -> str:
    """Run Python code in a child process without this one's settings; return what it prints.

    google-auth reads the address of the metadata server when it is imported, so in that process.
    """
    kept = {name: os.environ[name] for name in ("PATH", "TMPDIR") if name in os.environ}
    environment = {
        **kept,
        "HOME": str(home),
        "CLOUDSDK_CONFIG": str(home / "gcloud"),
    }
    for each in environments:
        environment |= each
    return run_forked(script, environment, again=("google.auth", "google.oauth2", _PACKAGE))
