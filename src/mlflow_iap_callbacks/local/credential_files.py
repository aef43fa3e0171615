"""Credential files for google-auth, for accounts of the local Google Cloud."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Literal

from .accounts import (
    DESKTOP_CLIENT_ID,
    GCLOUD_CLIENT_ID,
    PROJECT_ID,
    TRAINER,
    USER,
    WORKLOAD,
    WORKLOAD_POOL,
)
from .private_files import write_private
from .state import CloudState
from .token_endpoint import CLOUD_PLATFORM

_EMAIL_SCOPES = ["openid", "https://www.googleapis.com/auth/userinfo.email"]
_PROVIDER = f"//iam.googleapis.com/{WORKLOAD_POOL}/providers/local-provider"
_SUBJECT_TOKEN_LIFETIME = 30 * 24 * 3600  # seconds: longer than any test or training


class CredentialFiles:
    """Writes credential files that only their owner can read.

    Args:
        state: the cloud.
        folder: where they are written.
        google_url: origin of the token endpoint.
    """

    def __init__(self, state: CloudState, folder: Path, google_url: str) -> None:
        self._state = state
        self._folder = folder
        self._google_url = google_url

    def key(self, account: str) -> Path:
        return self._write(f"key-{account}.json", self._key_info(account))

    def impersonated(self, target: str, source: Literal["user", "service_account"]) -> Path:
        if source not in ("user", "service_account"):
            raise ValueError(f"source={source!r}: give 'user' or 'service_account'")
        info = {
            "type": "impersonated_service_account",
            "service_account_impersonation_url": _impersonation_url(target),
            "delegates": [],
            "source_credentials": (
                self._gcloud_info() if source == "user" else self._key_info(TRAINER)
            ),
        }
        self._state.accounts.service_account(target)
        return self._write(f"impersonated-{source}-{target}.json", info)

    def user(self) -> Path:
        return self._write("user.json", self._gcloud_info())

    def desktop(self, *, allowlisted: bool) -> Path:
        if allowlisted:
            self._state.programmatic_clients.add(DESKTOP_CLIENT_ID)
        else:
            self._state.programmatic_clients.discard(DESKTOP_CLIENT_ID)
        info = self._user_info(DESKTOP_CLIENT_ID, _EMAIL_SCOPES)
        return self._write("desktop.json", {**info, "scopes": _EMAIL_SCOPES})

    def federation(self, impersonate: str | None) -> Path:
        now = int(time.time())
        key = self._state.accounts.key_of(self._state.accounts[WORKLOAD])
        subject_token = key.sign(
            {
                "iss": "https://identity.example",
                "sub": "local-workload",
                "aud": _PROVIDER,
                "iat": now,
                "exp": now + _SUBJECT_TOKEN_LIFETIME,
            }
        )
        token_file = write_private(self._folder / "subject-token", subject_token.encode())
        info: dict[str, Any] = {
            "type": "external_account",
            "universe_domain": "googleapis.com",
            "audience": _PROVIDER,
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "token_url": "https://sts.googleapis.com/v1/token",
            "credential_source": {"file": str(token_file), "format": {"type": "text"}},
        }
        if impersonate is not None:
            self._state.accounts.service_account(impersonate)
            info["service_account_impersonation_url"] = _impersonation_url(impersonate)
        return self._write(f"federation-{impersonate}.json", info)

    def _key_info(self, email: str) -> dict[str, Any]:
        account = self._state.accounts.service_account(email)
        key = self._state.accounts.key_of(account)
        return {
            "type": "service_account",
            "project_id": PROJECT_ID,
            "private_key_id": key.id,
            "private_key": key.private_pem,
            "client_email": email,
            "client_id": account.id,
            "auth_uri": "https://accounts.google.com/o/oauth2/auth",
            "token_uri": f"{self._google_url}/token",
            "auth_provider_x509_cert_url": f"{self._google_url}/oauth2/v1/certs",
            "client_x509_cert_url": f"{self._google_url}/robot/v1/metadata/x509/{email}",
            "universe_domain": "googleapis.com",
        }

    def _gcloud_info(self) -> dict[str, Any]:
        return self._user_info(GCLOUD_CLIENT_ID, [*_EMAIL_SCOPES, CLOUD_PLATFORM])

    def _user_info(self, client_id: str, scopes: list[str]) -> dict[str, Any]:
        user = self._state.accounts[USER]
        return {
            "type": "authorized_user",
            "account": "",
            "client_id": client_id,
            "client_secret": "not-secret-on-this-machine",
            "refresh_token": self._state.mint.refresh_token(user, client_id, scopes),
            "universe_domain": "googleapis.com",
        }

    def _write(self, name: str, info: dict[str, Any]) -> Path:
        return write_private(self._folder / name, json.dumps(info, indent=2).encode())


def _impersonation_url(target: str) -> str:
    return (
        "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/"
        f"{target}:generateAccessToken"
    )
