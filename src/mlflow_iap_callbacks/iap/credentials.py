"""``IAPCredentials``: one valid token for all threads, replaced before it expires."""

from __future__ import annotations

import os
import threading
import time
import weakref
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

from ..errors import IAPConfigurationError, IAPCredentialsError
from .arguments import checked
from .google_errors import with_google_errors
from .google_identity import credentials_file, stamp_of
from .google_tokens import (
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
from .origins import tracking_origin
from .passwords import holds_contents, shown
from .secret_removal import without_secrets

# The last part of a token's life, in which it is not used: 72 s of an hour, because a clock may be
# off and a request takes time to arrive.
_EARLY = 0.02


class IAPCredentials:
    """A Google identity that IAP accepts, with a token that is always valid.

    The identity comes from Application Default Credentials: the file that
    GOOGLE_APPLICATION_CREDENTIALS names, then gcloud's own file, then the metadata server of the
    VM, pod or container. Nothing is read or requested before the first token is needed.

    An object can be shared between threads, pickled, and used after a fork. A pickle contains the
    settings, but never a token or a key.

    Args:
        audience: OAuth client id that IAP accepts, for an ID token; or ``https://HOST/*``, for a
            signed JWT. Default: MLFLOW_IAP_CLIENT_ID, then MLFLOW_OAUTH2_CLIENT_ID, then the host
            of the request. Use the host for IAP's Google-managed OAuth client, the default since
            2025: IAP rejects ID tokens for that client, but accepts signed JWTs.
        kind: ``id_token``, ``signed_jwt`` or ``access_token``. Default: the kind that fits
            ``audience``.
        impersonate: e-mail of a service account that the identity acts as. Default:
            MLFLOW_IAP_IMPERSONATE, or no impersonation.
        key_file: path of a credentials file of any of Google's types, to use instead of Application
            Default Credentials.

    Raises:
        IAPConfigurationError: ``audience`` is empty, ``impersonate`` is not an e-mail, or ``kind``
            is unknown.

    Examples:
        ```python
        credentials = IAPCredentials(impersonate="trainer@my-project.iam.gserviceaccount.com")
        client = IAPMlflowClient("https://mlflow.example.com", credentials=credentials)
        ```
    """

    @checked
    def __init__(
        self,
        audience: str | None = None,
        *,
        kind: Kind | None = None,
        impersonate: str | None = None,
        key_file: str | os.PathLike[str] | None = None,
    ) -> None:
        for name, value in {"audience": audience, "key_file": key_file}.items():
            if value is not None and holds_contents(os.fspath(value)):
                raise IAPConfigurationError(
                    f"{name} is {shown(os.fspath(value))}: it seems to hold credentials "
                    "themselves. Write them to a file that only you can read, and pass its path "
                    "as key_file."
                )
        if audience is not None and not audience.strip():
            raise IAPConfigurationError(
                "The audience is empty. Pass the OAuth client id that IAP accepts, or omit the "
                "argument to sign a JWT for the host."
            )
        if impersonate is None:
            impersonate = _variable(IMPERSONATE_VARIABLE)
        if impersonate is not None and ("@" not in impersonate or holds_contents(impersonate)):
            raise IAPConfigurationError(
                f"impersonate={shown(impersonate)} is not the e-mail of a service account. Write "
                f"it, or {IMPERSONATE_VARIABLE}, as NAME@PROJECT.iam.gserviceaccount.com."
            )
        if kind is not None and kind not in get_args(Kind):
            raise IAPConfigurationError(
                f"kind={shown(str(kind))} is unknown. Use one of {', '.join(get_args(Kind))}."
            )
        client_id = _variable(CLIENT_ID_VARIABLE) or _variable("MLFLOW_OAUTH2_CLIENT_ID")
        if client_id is not None and holds_contents(client_id):
            raise IAPConfigurationError(
                f"{CLIENT_ID_VARIABLE} is {shown(client_id)}, not the id of an OAuth client. Set "
                "it to NUMBER-NAME.apps.googleusercontent.com, or unset it to sign a JWT."
            )
        self._configuration = Configuration(
            audience=audience or client_id,
            kind=kind,
            impersonate=impersonate,
            key_file=None if key_file is None else Path(key_file).absolute(),
            is_from_environment=audience is None and client_id is not None,
            server=tracking_origin(),
        )
        self._reset()

    def for_origin(self, origin: str, *, home: str | None = None) -> IAPCredentials:
        """Return the same identity, with tokens for one server.

        A client id from the environment is used for one server only, because any other server could
        ask for an ID token and use it there. Other servers get a signed JWT, which is valid for
        them alone.

        Args:
            origin: ``https://HOST[:PORT]``, the audience of signed JWTs if no other was given.
            home: the server that the environment's client id is for. Default: that of
                MLFLOW_TRACKING_URI, or any if it is not set.
        """
        settings = self._configuration
        home = home or settings.server or origin
        is_foreign = settings.is_from_environment and home != origin
        bound = copy(self)  # without the token, like a pickle
        bound._configuration = replace(
            settings,
            audience=None if is_foreign else settings.audience,
            is_from_environment=False,
            server=None,
            host=origin.partition("://")[2],
        )
        return bound

    def is_like(self, other: IAPCredentials) -> bool:
        """Whether ``other`` finds the same identity and gets the same tokens."""
        return self._configuration == other._configuration

    @without_secrets
    def token(self, *, rejected: str | None = None) -> str:
        """Return a valid token; fetch or sign one only if there is none.

        Args:
            rejected: a token that IAP rejected. If several threads pass it, one of them replaces it
                and the others get the replacement.

        Raises:
            IAPCredentialsError: there is no identity, it cannot obtain this kind of token, or
                Google rejected the request or could not be reached.
            IAPConfigurationError: an ID token has no audience, or a signed JWT has no server
                (see ``for_origin``).
        """
        return self._valid_token(rejected)[0].text

    @without_secrets
    def describe(self) -> dict[str, str]:
        """Describe the token without showing it: source, kind, account, audience, lifetime left.

        Raises the same errors as ``token``.
        """
        token, issuer = self._valid_token()
        claims = claims_of(token.text)
        return {
            "source": issuer.found,
            "kind": issuer.kind,
            "account": str(claims.get("email") or claims.get("sub") or issuer.account),
            "audience": str(claims.get("aud") or "none: an access token has no audience"),
            "lifetime": f"{max(0.0, token.ends - time.time()):.0f} s",
        }

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._issuer: Issuer | None = None
        self._token: _Token | None = None
        self._stamp = stamp_of(credentials_file(self._configuration.key_file))
        _living.add(self)

    def _valid_token(self, rejected: str | None = None) -> tuple[_Token, Issuer]:
        with self._lock:
            issuer = self._current_issuer()
            token = self._token
            if token is None or not token.is_valid(rejected):
                token = self._token = with_google_errors(_Token.of)(*issuer.issue(), rejected)
            return token, issuer

    def _current_issuer(self) -> Issuer:
        """The issuer for the credentials file as it is now, after a new sign-in or key."""
        stamp = stamp_of(credentials_file(self._configuration.key_file))
        if self._issuer is None or stamp != self._stamp:
            try:
                self._issuer, self._token = issuer_for(self._configuration), None
                self._stamp = stamp
            except IAPCredentialsError:
                # A file that is being written may be incomplete.
                if self._issuer is None:
                    raise
        return self._issuer

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
    # In the child, a lock that another thread held during the fork stays locked forever.
    for each in list(_living):
        each._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@dataclass(frozen=True)
class _Token:
    text: str = field(repr=False)
    made: float  # seconds since 1970, by this machine's clock
    ends: float
    replaces: str | None = field(repr=False)

    def is_valid(self, rejected: str | None) -> bool:
        now = time.time()
        if now >= self.ends - _EARLY * (self.ends - self.made):
            return False
        # JWTs that are signed within the same second are identical, so one is enough.
        return self.text != rejected or (rejected == self.replaces and int(now) == int(self.made))

    @classmethod
    def of(cls, text: str, expiry: float | None, replaces: str | None) -> _Token:
        now = time.time()
        claims = claims_of(text)
        ends = float(claims.get("exp") or expiry or now + LIFETIME)
        lifetime = ends - float(claims["iat"]) if "iat" in claims else LIFETIME
        # If this machine's clock is off, a token's lifetime is still right, but its dates are not.
        ends = min(ends, now + lifetime)
        return cls(text, now, ends if ends > now else now + lifetime, replaces)


def _variable(name: str) -> str | None:
    return os.environ.get(name, "").strip() or None
