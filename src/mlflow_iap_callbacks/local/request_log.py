"""What the local Google Cloud saw and gave out, without a single secret in it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

TokenKind = Literal["id_token", "signed_jwt", "access_token"]
TokenSource = Literal[
    "token_uri",
    "refresh_token",
    "metadata",
    "generateIdToken",
    "generateAccessToken",
    "signJwt",
    "sts",
]

_SECRET_HEADERS = {"authorization", "proxy-authorization", "cookie", "x-goog-iap-jwt-assertion"}


@dataclass(frozen=True)
class SeenRequest:
    """One request, noted before the first byte of its answer leaves.

    Attributes:
        time: when it came in, in seconds since the epoch by this machine's clock.
        method: GET, POST, ...
        path: with the query.
        status: what the client got; 0 where the connection was reset instead.
        account: who was authenticated, None where nobody was.
        token_kind: by what, None for nobody and for a signed-in browser.
        credential_header: lower-case name of the header whose token authenticated the request.
        iap_answer: whether Identity-Aware Proxy itself gave the answer.
        reached_upstream: whether the application was called.
        body_bytes: how many bytes of the request's body were read.
        headers: lower-case names; values of credentials are replaced by a digest.
    """

    time: float
    method: str
    path: str
    status: int
    account: str | None
    token_kind: TokenKind | None
    credential_header: str | None
    iap_answer: bool
    reached_upstream: bool
    body_bytes: int
    headers: dict[str, str]


@dataclass(frozen=True)
class IssuedToken:
    """One token that a Google endpoint gave out; its text is not kept.

    Attributes:
        time: when, in seconds since the epoch by this machine's clock.
        kind: what it is.
        account: whom it stands for.
        audience: the `aud` claim, None for an access token.
        source: the endpoint.
    """

    time: float
    kind: TokenKind
    account: str
    audience: str | None
    source: TokenSource


def digest(token: str) -> str:
    """Return 12 hexadecimal digits that tell tokens apart and reveal none."""
    return hashlib.sha256(token.encode()).hexdigest()[:12]


def without_secrets(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return headers under lower-case names, each credential replaced by its digest."""
    return {name.lower(): _redact(name.lower(), value) for name, value in headers}


def _redact(name: str, value: str) -> str:
    if name not in _SECRET_HEADERS:
        return value
    scheme, separator, token = value.partition(" ")
    if name.endswith("authorization") and separator:
        return f"{scheme} <token sha256:{digest(token)}>"
    return f"<token sha256:{digest(value)}>"
