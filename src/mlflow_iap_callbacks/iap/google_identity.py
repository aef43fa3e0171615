"""What Google identity there is, and the kinds of token for IAP that it can give.

The only module of the delivery path that knows google-auth.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timezone
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, cast

import google.auth
from google.auth import (
    _cloud_sdk,
    aws,
    compute_engine,
    exceptions,
    external_account_authorized_user,
    identity_pool,
    impersonated_credentials,
    jwt,
    pluggable,
)
from google.auth.transport.requests import Request
from google.oauth2 import credentials as user_credentials
from google.oauth2 import service_account

from ..errors import IAPConfigurationError, IAPCredentialsError
from .google_errors import BUSY, MALFORMED, reason_of, with_google_errors

Kind = Literal["id_token", "signed_jwt", "access_token"]

CLIENT_ID_VARIABLE = "MLFLOW_IAP_CLIENT_ID"
IMPERSONATE_VARIABLE = "MLFLOW_IAP_IMPERSONATE"

_CLOUD_PLATFORM = ["https://www.googleapis.com/auth/cloud-platform"]
# What IAP wants of an access token: cloud.google.com/iap/docs/authentication-howto (2026).
_IDENTITY = ["openid", "https://www.googleapis.com/auth/userinfo.email"]
_IAM = "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/{}:{}"
# The clients that gcloud itself signs people in with: IAP has them on nobody's allowlist.
_GCLOUD_CLIENTS = ("764086051850-", "32555940559.")
_TIMEOUT = 20.0  # seconds for Google to answer; google-auth's own is 120, thrice
LIFETIME = 3600.0  # seconds; of all of Google's tokens by default

KIND_NAMES: dict[Kind, str] = {
    "id_token": "an OIDC ID token",
    "signed_jwt": "a service-account signed JWT",
    "access_token": "an OAuth access token",
}


@dataclass(frozen=True)
class Configuration:
    audience: str | None
    kind: Kind | None
    impersonate: str | None
    key_file: Path | None
    host: str | None = None

    def with_host(self, host: str) -> Configuration:
        return Configuration(self.audience, self.kind, self.impersonate, self.key_file, host)

    def __str__(self) -> str:
        given = {"audience": self.audience, "kind": self.kind, "impersonate": self.impersonate}
        return ", ".join(f"{name}={value!r}" for name, value in given.items() if value)


class _GoogleCredentials(Protocol):
    token: Any
    expiry: Any

    def refresh(self, request: Any) -> None: ...


@dataclass
class Issuer:
    """Google's credentials for one kind of token."""

    kind: Kind
    found: str
    account: str
    google: _GoogleCredentials

    @with_google_errors
    def issue(self) -> tuple[str, float | None]:
        """A new token, and its end in seconds since 1970 where it does not say so itself."""
        with quiet_google_logs():
            self.google.refresh(partial(Request(), timeout=_TIMEOUT))
            text, expiry = self.google.token, self.google.expiry
            text = text.decode() if isinstance(text, bytes) else text
            if not isinstance(text, str) or not text:
                raise exceptions.RefreshError("its answer holds none")
        self.account = self.account or _account_of(self.google)
        # google-auth's datetimes are naive and UTC.
        return text, None if expiry is None else expiry.replace(tzinfo=timezone.utc).timestamp()


@dataclass
class _Found:
    """An identity, brought to one of few forms.

    ``key`` a service account's key; ``machine`` the metadata server; ``impersonated`` a service
    account by way of ``source``; ``user`` a person's refresh token; ``federated`` an identity of
    another cloud that stands for no service account.
    """

    form: Literal["key", "machine", "impersonated", "user", "federated"]
    where: str
    info: Mapping[str, Any] = field(default_factory=dict)
    source: Any = None
    account: str = ""
    delegates: list[str] = field(default_factory=list)

    @property
    def itself(self) -> Any:
        """Google's credentials of this very identity, for all of Google Cloud."""
        if self.form == "impersonated":
            return _impersonate(self, _CLOUD_PLATFORM)
        return self.source

    def impersonating(self, account: str) -> _Found:
        where = f"{account} impersonated by {self.where}"
        return _Found("impersonated", where, source=self.itself, account=account)


@with_google_errors
def issuer_for(configuration: Configuration) -> Issuer:
    """Look for an identity and make it ready to give the kind of token that is configured.

    Raises:
        IAPCredentialsError: there is none, or it cannot give that kind.
        IAPConfigurationError: an ID token is configured without its audience, or a signed JWT
            without its audience for no server.
    """
    with quiet_google_logs():
        found = _find(configuration.key_file)
        if configuration.impersonate and found.account != configuration.impersonate:
            found = found.impersonating(configuration.impersonate)
        kind, audience = _kind_and_audience(configuration, found)
        make = _MAKERS.get((found.form, kind))
        if make is None:
            raise _cannot(found, kind)
        _refuse_wrong_user(found, kind, audience)
        return Issuer(kind, found.where, found.account, make(found, audience))


def _kind_and_audience(configuration: Configuration, found: _Found) -> tuple[Kind, str]:
    audience = configuration.audience
    kind = configuration.kind
    if kind is None:
        if audience is None and found.form == "user" and not _is_gcloud(found):
            kind = "id_token"  # a desktop client's: it can be of no other audience
        else:
            kind = "signed_jwt" if audience is None or "://" in audience else "id_token"
    if kind == "signed_jwt" and (audience is None or "://" not in audience):
        if configuration.host is None:
            raise IAPConfigurationError(
                "A signed JWT is good for one server, and none was named. Use the credentials of "
                "for_origin('https://HOST'), or give audience='https://HOST/*'."
            )
        audience = f"https://{configuration.host}/*"
    if kind == "id_token" and audience is None:
        if found.form != "user":
            raise IAPConfigurationError(
                "An ID token was asked for without the OAuth client id that it is meant for. Set "
                f"{CLIENT_ID_VARIABLE}, or leave kind= out to use a signed JWT, which needs "
                "none."
            )
        audience = "" if _is_gcloud(found) else str(found.info.get("client_id", ""))
    return kind, audience or ""


def _is_gcloud(found: _Found) -> bool:
    return str(found.info.get("client_id", "")).startswith(_GCLOUD_CLIENTS)


# --- what there is ---------------------------------------------------------------------------


def _find(key_file: Path | None) -> _Found:
    path, named_by = key_file, "key_file"
    if path is None and os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
        path = Path(os.environ["GOOGLE_APPLICATION_CREDENTIALS"])
        named_by = "GOOGLE_APPLICATION_CREDENTIALS"
    if path is None:
        path, named_by = Path(_cloud_sdk.get_application_default_credentials_path()), "gcloud"
        if not path.is_file():
            return _find_machine(path)
    return _read(path, named_by)


def _find_machine(gcloud_file: Path) -> _Found:
    try:
        google_credentials, _ = google.auth.default(scopes=_CLOUD_PLATFORM)
    except exceptions.DefaultCredentialsError:
        raise IAPCredentialsError(
            "No Google credentials were found: GOOGLE_APPLICATION_CREDENTIALS is not set, gcloud "
            f"has left none at {gcloud_file}, and no metadata server answers here. Set "
            "GOOGLE_APPLICATION_CREDENTIALS to a service account's key file, or run `gcloud auth "
            "application-default login --impersonate-service-account=ACCOUNT`."
        ) from None
    where = "the metadata server of this machine"
    return _Found("machine", where, source=google_credentials)


def _read(path: Path, named_by: str) -> _Found:
    remedy = "Point it at a readable JSON credentials file, or unset it to have others looked for."
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise IAPCredentialsError(
            f"The credentials file {path} ({named_by}) cannot be read: {error.strerror}. {remedy}"
        ) from None
    except ValueError:
        raise IAPCredentialsError(
            f"The credentials file {path} ({named_by}) is not JSON. {remedy}"
        ) from None
    if not isinstance(info, dict) or not isinstance(info.get("type"), str):
        raise IAPCredentialsError(
            f"The credentials file {path} ({named_by}) has no 'type', so it is none of Google's. "
            f"{remedy}"
        )
    where = f"{info['type']} file {path} ({named_by})"
    try:
        return _sort(info, where)
    except (*MALFORMED, OSError, exceptions.GoogleAuthError) as error:
        raise IAPCredentialsError(
            f"The {where} is broken: {reason_of(error)}. Download or create it anew."
        ) from None


def _sort(info: dict[str, Any], where: str) -> _Found:
    form = info["type"]
    if form == "service_account":
        key = service_account.Credentials.from_service_account_info(info, scopes=_CLOUD_PLATFORM)
        return _Found("key", where, info, key, key.service_account_email)
    if form == "authorized_user":
        user = user_credentials.Credentials.from_authorized_user_info(info)
        found = _Found("user", where, info, user)
        client = "gcloud's own" if _is_gcloud(found) else "a desktop"
        found.where = f"{where} of {client} OAuth client"
        return found
    if form == "impersonated_service_account":
        source = _sort(info["source_credentials"], where).itself
        account = _account_in(info["service_account_impersonation_url"])
        delegates = list(info.get("delegates") or [])
        return _Found("impersonated", where, info, source, account, delegates)
    if form == "external_account":
        # Without the impersonation that it may carry: the federated identity itself calls
        # generateIdToken and signJwt, an account that impersonates itself is refused.
        url = info.get("service_account_impersonation_url")
        source = _federated(
            {k: v for k, v in info.items() if not k.startswith("service_account_im")}
        )
        if url is None:
            return _Found("federated", where, info, source)
        return _Found("impersonated", where, info, source, _account_in(url))
    if form == "external_account_authorized_user":
        workforce = external_account_authorized_user.Credentials.from_info(info)
        return _Found("federated", where, info, workforce)
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


# --- what it can give ------------------------------------------------------------------------


def _impersonate(found: _Found, scopes: list[str]) -> impersonated_credentials.Credentials:
    return impersonated_credentials.Credentials(
        source_credentials=found.source,
        target_principal=found.account,
        target_scopes=scopes,
        delegates=found.delegates,
    )


class _MadeByIam:
    """A JWT that the IAM Credentials API makes for a service account.

    google-auth's own way there calls by AuthorizedSession, which sends the caller's access token
    from a thread of its own as well, where nothing keeps it out of the DEBUG logs.
    """

    method: ClassVar[str]
    answer: ClassVar[str]
    expiry = None

    def __init__(self, found: _Found, audience: str) -> None:
        self._found = found
        self._audience = audience
        self.token: str | None = None
        self.service_account_email = found.account

    def refresh(self, request: Any) -> None:
        source = self._found.source
        source.refresh(request)
        self.service_account_email = account = self._found.account or source.service_account_email
        headers = {"Content-Type": "application/json"}
        source.apply(headers)
        body = {**self.body(account), "delegates": self._found.delegates}
        response = request(
            _IAM.format(account, self.method), "POST", json.dumps(body).encode(), headers
        )
        if response.status != 200:
            raise exceptions.RefreshError(
                f"{self.method} for {account} was answered {response.status}",
                response.data,
                retryable=response.status in BUSY,
            )
        self.token = json.loads(response.data)[self.answer]

    def body(self, account: str) -> dict[str, Any]:
        raise NotImplementedError


class _GeneratedIdToken(_MadeByIam):
    method, answer = "generateIdToken", "token"

    def body(self, account: str) -> dict[str, Any]:
        return {"audience": self._audience, "includeEmail": True}


class _SignedByGoogle(_MadeByIam):
    method, answer = "signJwt", "signedJwt"

    def body(self, account: str) -> dict[str, Any]:
        now = int(time.time())
        payload = {"iss": account, "sub": account, "aud": self._audience}
        return {"payload": json.dumps({**payload, "iat": now, "exp": now + int(LIFETIME)})}


class _UserIdToken:
    """The ID token that comes with a user's refresh."""

    def __init__(self, user: user_credentials.Credentials) -> None:
        self._user = user
        self.token: str | None = None
        self.expiry = None

    def refresh(self, request: Any) -> None:
        self._user.refresh(request)
        self.token = self._user.id_token
        if self.token is None:
            raise IAPCredentialsError(
                "Google refreshed the user's credentials without an ID token, so they were made "
                "without the scope 'openid'. Sign in again with `gcloud auth application-default "
                "login --client-id-file=CLIENT.json --scopes=openid,"
                "https://www.googleapis.com/auth/userinfo.email`, or set "
                f"{IMPERSONATE_VARIABLE} to a service account."
            )


_Maker = Callable[[_Found, str], Any]
_MAKERS: dict[tuple[str, Kind], _Maker] = {
    ("key", "id_token"): lambda found, audience: (
        service_account.IDTokenCredentials.from_service_account_info(
            found.info, target_audience=audience
        )
    ),
    ("key", "signed_jwt"): lambda found, audience: jwt.Credentials.from_service_account_info(
        found.info, audience=audience
    ),
    ("key", "access_token"): lambda found, _: found.source.with_scopes(_IDENTITY),
    ("machine", "id_token"): lambda _, audience: compute_engine.IDTokenCredentials(
        Request(), audience, use_metadata_identity_endpoint=True
    ),
    ("machine", "signed_jwt"): _SignedByGoogle,
    ("machine", "access_token"): lambda found, _: found.source.with_scopes(_IDENTITY),
    ("impersonated", "id_token"): _GeneratedIdToken,
    ("impersonated", "signed_jwt"): _SignedByGoogle,
    ("impersonated", "access_token"): lambda found, _: _impersonate(found, _IDENTITY),
    ("user", "id_token"): lambda found, _: _UserIdToken(found.source),
    ("user", "access_token"): lambda found, _: found.source,
}


def _cannot(found: _Found, kind: Kind) -> IAPCredentialsError:
    if found.form == "user":
        why = "a person has no key to sign a JWT with"
        other = (
            "sign in with a desktop OAuth client that is on IAP's allowlist (programmaticClients)"
        )
    else:
        why = "IAP knows no identities of other clouds, only service accounts that they impersonate"
        other = "create the configuration with --service-account=ACCOUNT"
    impersonate = (
        f"set {IMPERSONATE_VARIABLE} (or impersonate=) to a service account that this identity "
        "may impersonate (roles/iam.serviceAccountTokenCreator)"
    )
    return IAPCredentialsError(
        f"IAP needs {KIND_NAMES[kind]}, and what was found, {found.where}, cannot give one: {why}. "
        f"Either {impersonate}, or {other}."
    )


def _refuse_wrong_user(found: _Found, kind: Kind, audience: str) -> None:
    if found.form != "user" or kind != "id_token":
        return
    client = str(found.info.get("client_id", ""))
    if client != audience:
        raise IAPCredentialsError(
            f"An ID token for {audience or 'an OAuth client of IAP'} is needed, and what was "
            f"found, {found.where}, gives them for its client {client} only. Either set "
            f"{IMPERSONATE_VARIABLE} (or impersonate=) to a service account that you may "
            "impersonate, or sign in with a desktop OAuth client that is on IAP's allowlist and "
            f"set {CLIENT_ID_VARIABLE} to its id."
        )


# --- what is known of it ---------------------------------------------------------------------


def claims_of(token: str | None) -> Mapping[str, Any]:
    """What a JWT says, unverified; nothing for any other token."""
    try:
        return cast("Mapping[str, Any]", jwt.decode(token or "", verify=False))
    except ValueError:
        return {}


def _account_of(google: Any) -> str:
    email = getattr(google, "service_account_email", "")
    return str(email or claims_of(getattr(google, "id_token", google.token)).get("email", ""))


_fetching: ContextVar[bool] = ContextVar("fetching", default=False)


class _WithoutContents(logging.Filter):
    """google-auth's DEBUG records carry headers and answers, tokens included."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (
            _fetching.get() and (hasattr(record, "httpRequest") or hasattr(record, "httpResponse"))
        )


logging.getLogger("google.auth.transport.requests").addFilter(_WithoutContents())


@contextmanager
def quiet_google_logs() -> Iterator[None]:
    mark = _fetching.set(True)
    try:
        yield
    finally:
        _fetching.reset(mark)
