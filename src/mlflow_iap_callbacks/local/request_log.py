"""What the local Google Cloud records about requests and issued tokens, without their secrets."""

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
    """A request, logged before the first byte of its response is sent.

    Attributes:
        time: when it arrived by this machine's clock, in seconds since the epoch.
        method: GET, POST, ...
        path: the path, including the query.
        status: status of the response; 0 if the connection was reset instead.
        account: the authenticated sender; None if there is none.
        token_kind: kind of the sender's token; None without a sender and for a browser's session.
        credential_header: lower-case name of the header with that token.
        iap_answer: whether Identity-Aware Proxy itself responded.
        reached_upstream: whether the application was called.
        body_bytes: how many bytes of the request's body were read.
        headers: headers by lower-case name; credentials are replaced by a digest.
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
    """A token that a Google endpoint issued, without its text.

    Attributes:
        time: when it was issued by this machine's clock, in seconds since the epoch.
        kind: kind of the token.
        account: the account that it authenticates.
        audience: its `aud` claim; None for an access token.
        source: the endpoint that issued it.
    """

    time: float
    kind: TokenKind
    account: str
    audience: str | None
    source: TokenSource


def digest(token: str) -> str:
    """Return 12 hexadecimal digits that identify a token and do not reveal it."""
    return hashlib.sha256(token.encode()).hexdigest()[:12]


def without_secrets(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return headers under lower-case names, with each credential replaced by its digest."""
    return {name.lower(): _redact(name.lower(), value) for name, value in headers}


def _redact(name: str, value: str) -> str:
    if name not in _SECRET_HEADERS:
        return value
    scheme, separator, token = value.partition(" ")
    if name.endswith("authorization") and separator:
        return f"{scheme} <token sha256:{digest(token)}>"
    return f"<token sha256:{digest(value)}>"
