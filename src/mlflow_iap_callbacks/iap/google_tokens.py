"""The kinds of token that IAP accepts, and which of them a Google identity can obtain.

https://cloud.google.com/iap/docs/authentication-howto describes the kinds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timezone
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

from google.auth import compute_engine, exceptions, jwt
from google.oauth2 import credentials as user_credentials
from google.oauth2 import service_account

from ..errors import IAPConfigurationError, IAPCredentialsError
from .google_errors import with_google_errors
from .google_identity import Identity, find_identity
from .google_logs import quiet_google_logs
from .google_requests import google_request
from .retry_policy import BUSY

Kind = Literal["id_token", "signed_jwt", "access_token"]
KIND_NAMES: dict[Kind, str] = {
    "id_token": "an OIDC ID token",
    "signed_jwt": "a service-account signed JWT",
    "access_token": "an OAuth access token",
}

CLIENT_ID_VARIABLE = "MLFLOW_IAP_CLIENT_ID"
IMPERSONATE_VARIABLE = "MLFLOW_IAP_IMPERSONATE"
LIFETIME = 3600.0  # seconds, the default for all of Google's tokens

# What IAP requires of an access token.
_SCOPES = ["openid", "https://www.googleapis.com/auth/userinfo.email"]
_IAM = "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/{}:{}"
_TIMEOUT = 20.0  # seconds for Google to respond; google-auth's default is three times 120


@dataclass(frozen=True)
class Configuration:
    """Settings of ``IAPCredentials``, and the host that the tokens are for.

    Until ``for_origin`` has decided which server the audience is for, ``is_from_environment`` says
    whether the environment set it, and ``server`` is the origin of MLFLOW_TRACKING_URI.
    """

    audience: str | None
    kind: Kind | None
    impersonate: str | None
    key_file: Path | None
    host: str | None = None
    is_from_environment: bool = False
    server: str | None = None

    def __str__(self) -> str:
        given = {"audience": self.audience, "kind": self.kind, "impersonate": self.impersonate}
        return ", ".join(f"{name}={value!r}" for name, value in given.items() if value)


@dataclass
class Issuer:
    """An identity's credentials for one kind of token."""

    kind: Kind
    found: str  # description of the place the identity was found
    account: str  # its e-mail; may be empty until the first token
    google: Any  # google-auth's credentials, or an object with their refresh, token and expiry

    @with_google_errors
    @quiet_google_logs()
    def issue(self) -> tuple[str, float | None]:
        """A new token, and its expiry (seconds since 1970; None if only the token contains it)."""
        self.google.refresh(partial(google_request(), timeout=_TIMEOUT))
        text, expiry = self.google.token, self.google.expiry
        if self.kind == "id_token" and isinstance(self.google, user_credentials.Credentials):
            text = self.google.id_token
            if text is None:
                raise IAPCredentialsError(
                    "Google sent no ID token for the user, who signed in without the scope "
                    "'openid'. Sign in again with `gcloud auth application-default login "
                    "--client-id-file=CLIENT.json --scopes=openid,"
                    "https://www.googleapis.com/auth/userinfo.email`, or set "
                    f"{IMPERSONATE_VARIABLE} to a service account."
                )
        text = text.decode() if isinstance(text, bytes) else text
        if not isinstance(text, str) or not text:
            raise exceptions.RefreshError("its response contains none")
        if not self.account:
            email = getattr(self.google, "service_account_email", "")
            id_token = getattr(self.google, "id_token", text)
            self.account = str(email or claims_of(id_token).get("email", ""))
        # google-auth's datetimes are naive and in UTC.
        return text, None if expiry is None else expiry.replace(tzinfo=timezone.utc).timestamp()


@with_google_errors
@quiet_google_logs()
def issuer_for(configuration: Configuration) -> Issuer:
    """Find an identity and prepare it to obtain the configured kind of token."""
    found = find_identity(configuration.key_file)
    if configuration.impersonate and found.account != configuration.impersonate:
        found = found.impersonating(configuration.impersonate)
    kind, audience = _kind_and_audience(configuration, found)
    return Issuer(kind, found.where, found.account, _credentials(found, kind, audience))


def claims_of(token: str | None) -> Mapping[str, Any]:
    """The claims of a JWT, not verified; empty for any other token."""
    try:
        return cast("Mapping[str, Any]", jwt.decode(token or "", verify=False))
    except ValueError:
        return {}


def _kind_and_audience(configuration: Configuration, found: Identity) -> tuple[Kind, str]:
    audience, kind = configuration.audience, configuration.kind
    # A desktop client's ID token can only be for that client.
    own_client = found.client_id if found.form == "user" and not found.is_gcloud else ""
    is_url = audience is not None and "://" in audience
    if kind is None:
        is_signed = is_url or (audience is None and not own_client)
        kind = "signed_jwt" if is_signed else "id_token"
    if kind == "signed_jwt" and not is_url:
        if configuration.host is None:
            raise IAPConfigurationError(
                "A signed JWT is valid for one server, and none was given. Use the credentials "
                "returned by for_origin('https://HOST'), or pass audience='https://HOST/*'."
            )
        audience = f"https://{configuration.host}/*"
    if kind == "id_token" and audience is None:
        if found.form != "user":
            raise IAPConfigurationError(
                "kind='id_token' needs the OAuth client id that the token is for, and none was "
                f"given. Set {CLIENT_ID_VARIABLE}, or omit kind to use a signed JWT, which needs "
                "no client id."
            )
        audience = own_client
    return kind, audience or ""


def _credentials(found: Identity, kind: Kind, audience: str) -> Any:
    form = found.form
    if kind == "access_token" and form != "federated":
        # A user's token has the scopes of the sign-in.
        return found.source if form == "user" else found.scoped(_SCOPES)
    if (form, kind) == ("key", "id_token"):
        return service_account.IDTokenCredentials.from_service_account_info(
            found.info, target_audience=audience
        )
    if (form, kind) == ("key", "signed_jwt"):
        return jwt.Credentials.from_service_account_info(found.info, audience=audience)
    if (form, kind) == ("machine", "id_token"):
        return compute_engine.IDTokenCredentials(
            google_request(), audience, use_metadata_identity_endpoint=True
        )
    if (form, kind) == ("impersonated", "id_token"):
        body = {"audience": audience, "includeEmail": True}
        return _MadeByIam(found, "generateIdToken", "token", lambda _: body)
    if kind == "signed_jwt" and form in ("machine", "impersonated"):
        return _MadeByIam(found, "signJwt", "signedJwt", partial(_jwt_request, audience))
    if (form, kind) == ("user", "id_token") and found.client_id == audience:
        return found.source
    raise _cannot_obtain(found, kind, audience)


def _cannot_obtain(found: Identity, kind: Kind, audience: str) -> IAPCredentialsError:
    token = KIND_NAMES[kind]
    other = "sign in with a desktop OAuth client that is on IAP's allowlist (programmaticClients)"
    if found.form == "federated":
        why = "IAP accepts identities of other clouds only if they impersonate a service account"
        other = "create the configuration with --service-account=ACCOUNT"
    elif kind == "signed_jwt":
        why = "a person has no key to sign a JWT with"
    else:
        token += f" for {audience or 'an OAuth client of IAP'}"
        why = f"its tokens are for its own client, {found.client_id}"
        other += f" and set {CLIENT_ID_VARIABLE} to its id"
    return IAPCredentialsError(
        f"IAP needs {token}, which {found.where} cannot provide: {why}. Either set "
        f"{IMPERSONATE_VARIABLE} (or impersonate=) to a service account that this identity may "
        f"impersonate (roles/iam.serviceAccountTokenCreator), or {other}."
    )


class _MadeByIam:
    """A JWT for a service account, made by the IAM Credentials API.

    google-auth's own classes call the API with an AuthorizedSession, which also sends the caller's
    access token from another thread, where quiet_google_logs has no effect.
    """

    expiry = None

    def __init__(
        self, found: Identity, method: str, key: str, body: Callable[[str], dict[str, Any]]
    ) -> None:
        self._found, self._method, self._key, self._body = found, method, key, body
        self.token: str | None = None
        self.service_account_email = found.account

    def refresh(self, request: Any) -> None:
        source = self._found.source
        source.refresh(request)
        self.service_account_email = account = self._found.account or source.service_account_email
        headers = {"Content-Type": "application/json"}
        source.apply(headers)
        body = json.dumps({**self._body(account), "delegates": self._found.delegates}).encode()
        response = request(_IAM.format(account, self._method), "POST", body, headers)
        if response.status != 200:
            raise exceptions.RefreshError(
                f"{self._method} for {account} returned status {response.status}",
                response.data,
                retryable=response.status in BUSY,
            )
        self.token = json.loads(response.data)[self._key]


def _jwt_request(audience: str, account: str) -> dict[str, Any]:
    now = int(time.time())
    claims = {"iss": account, "sub": account, "aud": audience, "iat": now}
    return {"payload": json.dumps({**claims, "exp": now + int(LIFETIME)})}
