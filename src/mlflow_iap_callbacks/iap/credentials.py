"""Which token, from where, and for how long: one for all threads, fetched anew in time."""

from __future__ import annotations

import os
import threading
import time
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from ..errors import IAPConfigurationError
from .google_errors import with_google_errors
from .google_identity import (
    CLIENT_ID_VARIABLE,
    IMPERSONATE_VARIABLE,
    KIND_NAMES,
    LIFETIME,
    Configuration,
    Issuer,
    Kind,
    claims_of,
    issuer_for,
)

_CLIENT_ID_VARIABLES = (CLIENT_ID_VARIABLE, "MLFLOW_OAUTH2_CLIENT_ID")
# 72 s of an hour: ahead of its end, yet a token is used for nearly all of its life.
_EARLY = 0.02


class IAPCredentials:
    """A Google identity that IAP accepts, always with a token that is still good.

    The identity is looked for where all of Google's libraries look (Application Default
    Credentials): the file named by GOOGLE_APPLICATION_CREDENTIALS, then gcloud's own file, then
    the metadata server of the VM, pod or container. Nothing is read or asked before the first
    token is needed.

    One object serves any number of threads with one refresh at a time. It can be pickled (what
    travels is the configuration, never a token or a key) and goes on working after a fork.

    Args:
        audience: an OAuth client id that IAP accepts (then the kind is an ID token), or
            ``https://HOST/*`` (then it is a signed JWT). Default: MLFLOW_IAP_CLIENT_ID, else
            MLFLOW_OAUTH2_CLIENT_ID, else the host that is called: since 2025 IAP comes with a
            Google-managed client, whose ID tokens it refuses and beside which the signed JWT works.
        kind: ``id_token``, ``signed_jwt`` or ``access_token``. Default: what ``audience`` asks for.
        impersonate: e-mail of a service account to act as, over whatever identity was found.
            Default: MLFLOW_IAP_IMPERSONATE, else nobody.
        key_file: path of a credentials file of any of Google's types, instead of the search.

    Raises:
        IAPConfigurationError: ``audience`` or ``impersonate`` is empty, or ``kind`` is unknown.
    """

    _issuer: Issuer | None
    _token: _Token | None

    def __init__(
        self,
        audience: str | None = None,
        *,
        kind: Kind | None = None,
        impersonate: str | None = None,
        key_file: str | os.PathLike[str] | None = None,
    ) -> None:
        if audience is not None and not audience.strip():
            raise IAPConfigurationError(
                "The audience is empty. Give the OAuth client id that IAP accepts, or leave the "
                "argument out to sign a JWT for the host itself."
            )
        if impersonate is None:
            impersonate = _first_set(IMPERSONATE_VARIABLE)
        if impersonate is not None and "@" not in impersonate:
            raise IAPConfigurationError(
                f"impersonate={impersonate!r} is no service account's e-mail. Give it, or "
                f"{IMPERSONATE_VARIABLE}, as NAME@PROJECT.iam.gserviceaccount.com."
            )
        if kind is not None and kind not in get_args(Kind):
            raise IAPConfigurationError(
                f"kind={kind!r} is unknown. Give one of {', '.join(get_args(Kind))}."
            )
        self._configuration = Configuration(
            audience=audience or _first_set(*_CLIENT_ID_VARIABLES),
            kind=kind,
            impersonate=impersonate,
            key_file=None if key_file is None else Path(key_file),
        )
        self._reset()

    def for_origin(self, origin: str) -> IAPCredentials:
        """The same identity with tokens meant for one server.

        Args:
            origin: ``https://HOST[:PORT]``; a signed JWT without an audience of its own is made
                for all paths there.
        """
        bound = object.__new__(IAPCredentials)
        host = origin.partition("://")[2]
        bound._configuration = self._configuration.with_host(host)
        bound._reset()
        return bound

    def is_like(self, other: IAPCredentials) -> bool:
        """Whether both find the same identity and make the same tokens of it."""
        return (self._configuration, self._named) == (other._configuration, other._named)

    def token(self, *, rejected: str | None = None) -> str:
        """A token that is good now; fetched, or signed, only when there is none.

        Args:
            rejected: a token that IAP has refused. Of all the threads that hold it one fetches
                the next, the others get that.

        Raises:
            IAPCredentialsError: no identity, or one that cannot have this kind of token, or
                Google refused or could not be reached.
            IAPConfigurationError: an ID token without its audience, or a signed JWT without one
                by credentials that are for no server (see ``for_origin``).
        """
        with self._lock:
            current = self._token
            if current is None or not current.is_good(rejected):
                self._token = current = self._fetch(rejected)
            return current.text

    def describe(self) -> dict[str, str]:
        """``source``, ``kind``, ``account``, ``audience`` of the token in use and ``lifetime``,
        what is left of it in seconds; the token itself is not in it.

        Raises:
            IAPCredentialsError, IAPConfigurationError: as ``token``.
        """
        with self._lock:
            claims = claims_of(self.token())
            assert self._issuer is not None  # noqa: S101
            assert self._token is not None  # noqa: S101
            return {
                "source": self._issuer.found,
                "kind": self._issuer.kind,
                "account": str(claims.get("email") or claims.get("sub") or self._issuer.account),
                "audience": str(claims.get("aud") or "none: an access token has no audience"),
                "lifetime": f"{max(0.0, self._token.ends - time.time()):.0f} s",
            }

    def _fetch(self, rejected: str | None) -> _Token:
        if self._issuer is None:
            self._issuer = issuer_for(self._configuration)
        text, expiry = self._issuer.issue()
        return with_google_errors(_Token.of)(text, expiry, rejected)

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._issuer = None
        self._token = None
        self._named = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
        _living.add(self)

    def __getstate__(self) -> Configuration:
        return self._configuration

    def __setstate__(self, state: Configuration) -> None:
        self._configuration = state
        self._reset()

    def __str__(self) -> str:
        if self._issuer is None:
            return "no token yet"
        account = self._issuer.account or "this account"
        return f"{KIND_NAMES[self._issuer.kind]} of {account}, from {self._issuer.found}"

    def __repr__(self) -> str:
        return f"IAPCredentials({self._configuration})"


_living: weakref.WeakSet[IAPCredentials] = weakref.WeakSet()


def _after_fork() -> None:
    # A lock that another thread held at the fork stays locked for ever in the child.
    for each in list(_living):
        each._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@dataclass(frozen=True)
class _Token:
    text: str = field(repr=False)
    made: float  # seconds since 1970, this machine's clock
    ends: float
    replaces: str | None = field(repr=False)

    def is_good(self, rejected: str | None) -> bool:
        now = time.time()
        if now >= self.ends - _EARLY * (self.ends - self.made):
            return False
        # A JWT that is made twice within one second is the same text: once is enough.
        return self.text != rejected or (rejected == self.replaces and int(now) == int(self.made))

    @classmethod
    def of(cls, text: str, expiry: float | None, replaces: str | None) -> _Token:
        now = time.time()
        claims = claims_of(text)
        ends = float(claims.get("exp") or expiry or now + LIFETIME)
        lifetime = ends - float(claims["iat"]) if "iat" in claims else LIFETIME
        # Where this machine's clock is off, believe the token's length of life, not its dates.
        ends = min(ends, now + lifetime)
        return cls(text, now, ends if ends > now else now + lifetime, replaces)


def _first_set(*names: str) -> str | None:
    return next((value for name in names if (value := os.environ.get(name, "").strip())), None)
