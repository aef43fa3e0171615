"""The tokens of the local Google Cloud: giving them out, knowing them again, revoking them."""

from __future__ import annotations

import math
import secrets
import threading
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
        account: its owner.
        scopes: what it is good for.
        expires: in seconds since the epoch by Google's clock.
        client_id: the OAuth client by which a user signed in, None for other accounts.
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
    """Gives out tokens and remembers them.

    Args:
        accounts: who exists.
        now: Google's clock, in seconds since the epoch.
        lifetime: how long a token given out now holds, in seconds.
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
        self._lock = threading.Lock()
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
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """Return an OpenID Connect ID token of `account` for `audience`."""
        now = self._now()
        claims = {
            "aud": audience,
            "azp": azp,
            # Rounded up, so that a token never lives shorter than asked for.
            "exp": math.ceil(now + self._lifetime()),
            "iat": int(now),
            "iss": ISSUER,
            "sub": account.id,
            **({"email": account.name, "email_verified": True} if email else {}),
            **(extra or {}),
        }
        return self._note(self.google_key.sign(claims), "id_token", account, audience, source)

    def signed_jwt(self, account: Account, claims: Mapping[str, Any]) -> str:
        """Return `claims` signed with the key that Google keeps for a service account."""
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
        """Return an access token and for how many seconds it holds, at most `lifetime`."""
        token = f"ya29.local-{secrets.token_urlsafe(24)}"
        seconds = min(lifetime, self._lifetime())
        with self._lock:
            self._access_tokens[digest(token)] = AccessToken(
                account, frozenset(scopes), self._now() + seconds, client_id
            )
        return self._note(token, "access_token", account, None, source), seconds

    def refresh_token(self, account: Account, client_id: str, scopes: Collection[str]) -> str:
        """Return a refresh token, as a user gets who signs in by `client_id`."""
        token = f"1//local-{secrets.token_urlsafe(24)}"
        self.refresh_tokens[token] = RefreshToken(account, client_id, frozenset(scopes))
        return token

    def find_access_token(self, token: str) -> AccessToken | None:
        """Return what an access token stands for, expired or not."""
        with self._lock:
            return self._access_tokens.get(digest(token))

    def live_access_token(self, token: str) -> AccessToken | None:
        """Return what an access token stands for while it holds."""
        found = self.find_access_token(token)
        if found is None or found.expires <= self._now() or self.is_revoked(token):
            return None
        return found

    def revoke(self, token: str) -> None:
        with self._lock:
            self._revoked.add(digest(token))

    def revoke_all(self) -> None:
        """Revoke every token given out or signed until now.

        Takes up to a second: a JWT signed twice within one second is the same text, so the next
        second is waited for. Otherwise a client's next token might be the revoked one again.
        """
        boundary = math.floor(time.time()) + 1.0
        while (missing := boundary - time.time()) > 0:
            time.sleep(missing)
        with self._lock:
            self._revoked_before = boundary

    def is_revoked(self, token: str, signed_at: float = math.inf) -> bool:
        """Whether a token was revoked.

        Args:
            token: its text.
            signed_at: for a JWT that its owner signed, its `iat` claim: nobody else knows when
                it was made.
        """
        key = digest(token)
        with self._lock:
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
        with self._lock:
            # The same text given out again within one second counts as the later token.
            self._issued_at[digest(token)] = now
            self._revoked.discard(digest(token))
        self.issued.append(IssuedToken(now, kind, account.name, audience, source))
        return token
