"""How Identity-Aware Proxy authenticates a request, and how it rejects bad credentials."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .accounts import Account
from .keys import parse_jwt
from .request_log import TokenKind
from .state import CloudState

EMPTY_TOKEN = "Invalid IAP credentials: empty token"  # noqa: S105 - a sentence
UNPARSABLE = "Invalid IAP credentials: Unable to parse JWT"
BAD_SIGNATURE = "Invalid IAP credentials: JWT signature is invalid"
WRONG_CLIENT = "Invalid IAP credentials: Invalid bearer token. Invalid JWT audience."
WRONG_URL = "Invalid IAP credentials: Audience specified does not match requested endpoint"
NO_EMAIL = "Invalid IAP credentials: JWT 'email' claim isn't a string"
EXPIRED = "OpenID Connect token expired: JWT has expired"
NO_OAUTH_CLIENT = "Empty Google Account OAuth client ID(s)/secret(s)."
PROBLEM = (
    "There was a problem with your request. Please reference "
    "https://cloud.google.com/iap/docs/faq#error_codes. Error code {code}"
)
NOT_ALLOWLISTED = PROBLEM.format(code=900)
# Google documents no text for the next two.
WRONG_ISSUER = "Invalid IAP credentials: JWT 'iss' and 'sub' are not the e-mail of the key's owner"
TOO_LONG = "Invalid IAP credentials: JWT 'exp' is more than 3600 seconds after 'iat'"

EMAIL_SCOPES = {"email", "https://www.googleapis.com/auth/userinfo.email"}


@dataclass(frozen=True)
class Identity:
    """Who sent a request.

    Attributes:
        account: the sender.
        token_kind: kind of the sender's token; None for a browser's session.
        header: lower-case name of the header with the token; None for a browser's session.
        token: the token itself; empty for a browser's session.
        signed_at: the `iat` of a JWT that the account signed itself.
    """

    account: Account
    token_kind: TokenKind | None = None
    header: str | None = None
    token: str = ""
    signed_at: float = 0.0


class AuthenticationError(Exception):
    """The request has no valid credentials; the message is the body of the response."""


def identify(state: CloudState, headers: Mapping[str, str], host: str, path: str) -> Identity:
    """Return who sent a request, according to its tokens.

    A valid token in Proxy-Authorization takes precedence, and leaves Authorization to the
    application.

    Args:
        state: the cloud.
        headers: the request's headers, case-insensitive.
        host: the request's Host header, with the port.
        path: the request's path, without the query.

    Raises:
        AuthenticationError: if there are no valid credentials; has Identity-Aware Proxy's message.
    """
    failure = AuthenticationError(EMPTY_TOKEN)
    for header in ("proxy-authorization", "authorization"):
        scheme, _, token = headers.get(header, "").partition(" ")
        if scheme.lower() != "bearer":
            continue
        try:
            return _check(state, header, token.strip(), host, path)
        except AuthenticationError as error:
            failure = error
    raise failure


def _check(state: CloudState, header: str, token: str, host: str, path: str) -> Identity:
    if not token:
        raise AuthenticationError(EMPTY_TOKEN)
    if token.startswith("ya29."):
        return Identity(_check_access_token(state, token), "access_token", header, token)
    try:
        jwt_header, claims = parse_jwt(token)
        issued, expires = float(claims["iat"]), float(claims["exp"])
    except (ValueError, KeyError, TypeError):
        raise AuthenticationError(UNPARSABLE) from None
    if jwt_header.get("kid") == state.mint.google_key.id:
        account = _check_id_token(state, token, claims, expires)
        return Identity(account, "id_token", header, token)
    account = _check_signed_jwt(state, token, jwt_header.get("kid"), claims, issued, expires)
    if not _covers(claims.get("aud"), host, path):
        raise AuthenticationError(WRONG_URL)
    return Identity(account, "signed_jwt", header, token, issued)


def _check_access_token(state: CloudState, token: str) -> Account:
    found = state.mint.find_access_token(token)
    if found is None:
        raise AuthenticationError(UNPARSABLE)
    if found.expires <= state.now() or state.mint.is_revoked(token):
        raise AuthenticationError(EXPIRED)
    is_google_identity = found.account.kind != "workload"
    has_scopes = "openid" in found.scopes and bool(EMAIL_SCOPES & found.scopes)
    client_accepted = found.client_id is None or found.client_id in state.accepted_clients
    if not (is_google_identity and has_scopes and client_accepted):
        raise AuthenticationError(NOT_ALLOWLISTED)
    return found.account


def _check_id_token(
    state: CloudState, token: str, claims: Mapping[str, Any], expires: float
) -> Account:
    if not state.mint.google_key.has_signed(token):
        raise AuthenticationError(BAD_SIGNATURE)
    if expires <= state.now() or state.mint.is_revoked(token):
        raise AuthenticationError(EXPIRED)
    if claims.get("aud") not in state.accepted_clients:
        raise AuthenticationError(WRONG_CLIENT)
    email = claims.get("email")
    if not isinstance(email, str):
        raise AuthenticationError(NO_EMAIL)
    return state.accounts[email]


def _check_signed_jwt(
    state: CloudState,
    token: str,
    key_id: object,
    claims: Mapping[str, Any],
    issued: float,
    expires: float,
) -> Account:
    owner = state.accounts.owner_of_key(key_id)
    if owner is None or not owner[1].has_signed(token):
        raise AuthenticationError(BAD_SIGNATURE)
    account = owner[0]
    if not claims.get("iss") == claims.get("sub") == account.name:
        raise AuthenticationError(WRONG_ISSUER)
    if expires > issued + 3600:
        raise AuthenticationError(TOO_LONG)
    ends = min(expires, issued + state.token_lifetime)
    if ends <= state.now() or state.mint.is_revoked(token, signed_at=issued):
        raise AuthenticationError(EXPIRED)
    return account


def _covers(audience: object, host: str, path: str) -> bool:
    """Whether an audience (an exact URL, or a prefix that ends in `/*`) includes this URL."""
    if not isinstance(audience, str):
        return False
    # The real host is called with https, this one with http.
    urls = (f"http://{host}{path}", f"https://{host}{path}")
    if audience.endswith("/*"):
        return any(url.startswith(audience[:-1]) for url in urls)
    return audience in urls
