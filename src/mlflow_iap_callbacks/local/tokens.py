"""The tokens of the local Google Cloud: issuing, looking up and revoking them."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from .accounts import Account, Accounts
from .keys import RsaKey
from .request_log import IssuedToken, TokenKind, TokenSource, digest

ISSUER = "https://accounts.google.com"


@dataclass(frozen=True)
class AccessToken:
    """What an opaque access token stands for.

    Attributes:
        account: the account that it authenticates.
        scopes: the scopes that it is valid for.
        expires: when it expires by Google's clock, in seconds since the epoch.
        client_id: the OAuth client that a user signed in with; None for other accounts.
    """

    account: Account
    scopes: frozenset[str]
    expires: float
    client_id: str | None


@dataclass
class RefreshToken:
    """What a user's refresh token stands for."""

    account: Account
    client_id: str
    scopes: frozenset[str]
    revoked: bool = False


class Mint:
    """Issues tokens and remembers them.

    Args:
        accounts: the accounts whose keys sign JWTs.
        now: Google's clock, in seconds since the epoch.
        lifetime: how long a token issued now is valid, in seconds.
    """

    def __init__(
        self, accounts: Accounts, now: Callable[[], float], lifetime: Callable[[], float]
    ) -> None:
        self.google_key = RsaKey("federated-signon.system.gserviceaccount.com")
        self.issued: list[IssuedToken] = []
        self.refresh_tokens: dict[str, RefreshToken] = {}
        self._accounts = accounts
        self._now = now
        self._lifetime = lifetime
        self._access_tokens: dict[str, AccessToken] = {}
        self._issued_at: dict[str, float] = {}
        self._revoked: set[str] = set()
        self._revoked_before = 0.0

    def id_token(
        self,
        account: Account,
        audience: str,
        *,
        source: TokenSource,
        azp: str,
        email: bool = True,
    ) -> str:
        """Issue an OpenID Connect ID token of `account` for `audience`."""
        now = self._now()
        claims: dict[str, Any] = {
            "aud": audience,
            "azp": azp,
            # Rounded up, so that it is not valid for less than the lifetime.
            "exp": math.ceil(now + self._lifetime()),
            "iat": int(now),
            "iss": ISSUER,
            "sub": account.id,
            **({"email": account.name, "email_verified": True} if email else {}),
        }
        token = self.google_key.sign(claims)
        while digest(token) in self._revoked:
            claims["exp"] += 1  # or it would have the same text as the one that was revoked
            token = self.google_key.sign(claims)
        return self._note(token, "id_token", account, audience, source)

    def signed_jwt(self, account: Account, claims: Mapping[str, Any]) -> str:
        """Issue a JWT with `claims`, signed with a key that Google manages for `account`."""
        token = self._accounts.key_of(account).sign(claims)
        return self._note(token, "signed_jwt", account, str(claims.get("aud")), "signJwt")

    def access_token(
        self,
        account: Account,
        scopes: Collection[str],
        *,
        source: TokenSource,
        client_id: str | None = None,
        lifetime: float = math.inf,
    ) -> tuple[str, float]:
        """Issue an access token; return it and the seconds for which it is valid."""
        token = f"ya29.local-{secrets.token_urlsafe(24)}"
        seconds = min(lifetime, self._lifetime())
        self._access_tokens[digest(token)] = AccessToken(
            account, frozenset(scopes), self._now() + seconds, client_id
        )
        return self._note(token, "access_token", account, None, source), seconds

    def refresh_token(self, account: Account, client_id: str, scopes: Collection[str]) -> str:
        """Issue a refresh token, as for a user who signs in with `client_id`."""
        token = f"1//local-{secrets.token_urlsafe(24)}"
        self.refresh_tokens[token] = RefreshToken(account, client_id, frozenset(scopes))
        return token

    def find_access_token(self, token: str) -> AccessToken | None:
        """Return what an access token stands for, even if it has expired."""
        return self._access_tokens.get(digest(token))

    def live_access_token(self, token: str) -> AccessToken | None:
        """Return what an access token stands for, unless it has expired or been revoked."""
        found = self.find_access_token(token)
        if found is None or found.expires <= self._now() or self.is_revoked(token):
            return None
        return found

    def revoke(self, token: str) -> None:
        self._revoked.add(digest(token))

    def revoke_all(self) -> None:
        """Revoke every token issued or signed so far.

        Takes up to a second, because it waits for the next full second: a JWT that is signed twice
        within one second has the same text, so a client's next token could be the revoked one.
        """
        boundary = math.floor(time.time()) + 1.0
        while (missing := boundary - time.time()) > 0:
            time.sleep(missing)
        self._revoked_before = boundary

    def is_revoked(self, token: str, signed_at: float = math.inf) -> bool:
        """Whether a token was revoked.

        Args:
            token: its text.
            signed_at: the `iat` claim of a JWT that its owner signed; no endpoint issued it.
        """
        key = digest(token)
        made_at = self._issued_at.get(key, signed_at)
        return key in self._revoked or made_at < self._revoked_before

    def _note(
        self,
        token: str,
        kind: TokenKind,
        account: Account,
        audience: str | None,
        source: TokenSource,
    ) -> str:
        now = time.time()
        # A token that is issued again with the same text, within one second, is the later one.
        self._issued_at[digest(token)] = now
        self._revoked.discard(digest(token))
        self.issued.append(IssuedToken(now, kind, account.name, audience, source))
        return token
