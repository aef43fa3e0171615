"""Finds the Google identity of this process.

The search order is that of Application Default Credentials:
https://cloud.google.com/docs/authentication/application-default-credentials
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import google.auth
from google.auth import (
    _cloud_sdk,
    aws,
    exceptions,
    external_account_authorized_user,
    identity_pool,
    impersonated_credentials,
    pluggable,
)
from google.oauth2 import credentials as user_credentials
from google.oauth2 import service_account

from ..errors import IAPCredentialsError
from .google_errors import MALFORMED, reason_of
from .google_requests import google_request
from .passwords import holds_contents

_CLOUD_PLATFORM = ["https://www.googleapis.com/auth/cloud-platform"]
# gcloud's own OAuth clients, which are on no IAP allowlist.
_GCLOUD_CLIENTS = ("764086051850-", "32555940559.")
_seen: dict[str, Path] = {}  # absolute paths, by the relative ones in the environment


@dataclass
class Identity:
    """A Google identity, found in one of these forms.

    ``key``: a service account's key. ``machine``: the metadata server. ``impersonated``: a service
    account that ``source`` impersonates. ``user``: a person's refresh token. ``federated``: an
    identity of another cloud that impersonates no service account.
    """

    form: Literal["key", "machine", "impersonated", "user", "federated"]
    where: str  # description of the place it was found
    info: Mapping[str, Any] = field(default_factory=dict, repr=False)  # the credentials file
    source: Any = None  # google-auth's credentials
    account: str = ""  # of a service account, if known
    delegates: list[str] = field(default_factory=list)

    @property
    def client_id(self) -> str:
        """OAuth client that the user signed in with."""
        return str(self.info.get("client_id", ""))

    @property
    def is_gcloud(self) -> bool:
        """Whether the user signed in with gcloud's own OAuth client."""
        return self.client_id.startswith(_GCLOUD_CLIENTS)

    @property
    def credentials(self) -> Any:
        """google-auth's credentials of this identity, for all of Google Cloud."""
        return self.scoped(_CLOUD_PLATFORM) if self.form == "impersonated" else self.source

    def scoped(self, scopes: list[str]) -> Any:
        """google-auth's credentials of this identity, for the given OAuth scopes."""
        if self.form != "impersonated":
            return self.source.with_scopes(scopes)
        return impersonated_credentials.Credentials(
            source_credentials=self.source,
            target_principal=self.account,
            target_scopes=scopes,
            delegates=self.delegates,
        )

    def impersonating(self, account: str) -> Identity:
        where = f"{account} impersonated by {self.where}"
        return Identity("impersonated", where, source=self.credentials, account=account)


def credentials_file(key_file: Path | None) -> tuple[Path, str] | None:
    """The credentials file in use, and what names it: the first one in the search order.

    None if there is none, so that only the metadata server remains.
    """
    if key_file is not None:
        return key_file, "key_file"
    named = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    if named and not holds_contents(named):
        return _absolute(named), "GOOGLE_APPLICATION_CREDENTIALS"
    gcloud_file = _gcloud_file()
    # `Path.is_file` would raise an error inside a folder that this user cannot look into.
    return (gcloud_file, "gcloud") if os.path.isfile(gcloud_file) else None


def _gcloud_file() -> Path:
    return Path(_cloud_sdk.get_application_default_credentials_path())


def stamp_of(file: tuple[Path, str] | None) -> tuple[object, ...]:
    """Identify the current version of a file."""
    if file is None:
        return ()
    try:
        found = file[0].stat()
    except (OSError, ValueError):
        return file
    return (*file, found.st_mtime_ns, found.st_size, found.st_ino)


def _absolute(named: str) -> Path:
    """The absolute path when it was first seen: a program may change its working directory."""
    if named not in _seen or not os.path.exists(_seen[named]):
        _seen[named] = Path(named).absolute()
    return _seen[named]


def find_identity(key_file: Path | None) -> Identity:
    """Find the identity, in ``key_file`` if given, otherwise the first one in the search order."""
    named = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS", "")
    if key_file is None and holds_contents(named):
        raise IAPCredentialsError(
            "GOOGLE_APPLICATION_CREDENTIALS holds credentials themselves "
            f"({len(named)} characters, not shown) instead of the path of a file. Write them to a "
            "file that only you can read, and set the variable to its path."
        )
    file = credentials_file(key_file)
    if file is not None:
        return _read(*file)
    try:
        credentials, _ = google.auth.default(scopes=_CLOUD_PLATFORM, request=google_request())
    except exceptions.DefaultCredentialsError:
        raise IAPCredentialsError(
            "No Google credentials were found: GOOGLE_APPLICATION_CREDENTIALS is not set, gcloud "
            f"has no credentials at {_gcloud_file()}, and this machine has no metadata server. Set "
            "GOOGLE_APPLICATION_CREDENTIALS to a service account's key file, or run `gcloud auth "
            "application-default login --impersonate-service-account=ACCOUNT`.",
            # A pod may start before its metadata server.
            transient="GCE_METADATA_HOST" in os.environ,
        ) from None
    return Identity("machine", "the metadata server of this machine", source=credentials)


def _read(path: Path, named_by: str) -> Identity:
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        is_google = isinstance(info, dict) and isinstance(info.get("type"), str)
        problem = "" if is_google else "has no 'type', so it is not one of Google's"
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    except ValueError:
        problem = "is not JSON"
    if problem:
        raise IAPCredentialsError(
            f"The credentials file {path} ({named_by}) {problem}. Name a readable JSON "
            "credentials file, or none, to search elsewhere."
        )
    where = f"{info['type']} file {path} ({named_by})"
    try:
        return _identity_in(info, where)
    except (*MALFORMED, OSError, exceptions.GoogleAuthError) as error:
        raise IAPCredentialsError(
            f"The {where} is broken: {reason_of(error)}. Download it again, or create a new one."
        ) from None


def _identity_in(info: dict[str, Any], where: str) -> Identity:
    form = info["type"]
    if form == "service_account":
        key = service_account.Credentials.from_service_account_info(info, scopes=_CLOUD_PLATFORM)
        return Identity("key", where, info, key, key.service_account_email)
    if form == "authorized_user":
        user = user_credentials.Credentials.from_authorized_user_info(info)
        identity = Identity("user", where, info, user)
        client = "gcloud's own" if identity.is_gcloud else "a desktop"
        identity.where += f" of {client} OAuth client"
        return identity
    if form == "impersonated_service_account":
        source = _identity_in(info["source_credentials"], where).credentials
        account = _account_in(info["service_account_impersonation_url"])
        delegates = list(info.get("delegates") or [])
        return Identity("impersonated", where, info, source, account, delegates)
    if form == "external_account":
        # Without the impersonation that the file may contain: the federated identity itself calls
        # generateIdToken and signJwt, because an account that impersonates itself is rejected.
        url = info.get("service_account_impersonation_url")
        source = _federated({k: info[k] for k in info if not k.startswith("service_account_im")})
        if url is None:
            return Identity("federated", where, info, source)
        return Identity("impersonated", where, info, source, _account_in(url))
    if form == "external_account_authorized_user":
        workforce = external_account_authorized_user.Credentials.from_info(info)
        return Identity("federated", where, info, workforce)
    raise ValueError(f"its type {form!r} is unknown")


def _federated(info: Mapping[str, Any]) -> Any:
    maker: Any = identity_pool.Credentials
    if info.get("subject_token_type") == "urn:ietf:params:aws:token-type:aws4_request":
        maker = aws.Credentials
    elif "executable" in info["credential_source"]:
        maker = pluggable.Credentials
    return maker.from_info(info, scopes=_CLOUD_PLATFORM)


def _account_in(url: str) -> str:
    account = url.rpartition("/")[2].partition(":")[0]
    if "@" not in account:
        raise ValueError("its service_account_impersonation_url names no service account")
    return account
