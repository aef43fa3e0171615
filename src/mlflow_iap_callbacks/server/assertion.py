"""Verifies the assertion in which Identity-Aware Proxy says who sent a request."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from typing import Any

from google.auth import jwt

from .gate_settings import lower
from .public_keys import PublicKeys

ISSUER = "https://cloud.google.com/iap"
LEEWAY = 30  # seconds of clock skew, as Google's documentation recommends
_MAX_LENGTH = 16 * 1024

# The 64 bytes of an ES256 signature are 86 characters, of which the last one encodes only two bits.
_SHAPE = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]{85}[AQgw]")

_logger = logging.getLogger(__name__)


class InvalidAssertionError(Exception):
    """The assertion is not a valid one from Identity-Aware Proxy for this application."""


class Verifier:
    """Verifies assertions.

    Args:
        keys: public keys of Identity-Aware Proxy.
        audience: the audience that assertions must have.
    """

    def __init__(self, keys: PublicKeys, audience: str) -> None:
        self._keys = keys
        self._audience = audience

    async def email(self, assertion: str) -> str:
        """Return the sender's e-mail, in lower case.

        Raises:
            InvalidAssertionError: if the assertion is invalid; the message is for the log.
            KeysUnavailableError: if no public keys are available to verify it.
        """
        key_id = _key_id(assertion)
        pem = await self._keys.find(key_id)
        if pem is None:
            raise InvalidAssertionError("its key is not one of Google's")
        claims = _verified(assertion, {key_id: pem})
        if claims.get("iss") != ISSUER:
            raise InvalidAssertionError("its issuer is not Identity-Aware Proxy")
        if claims.get("aud") != self._audience:
            # Google did sign it, so either the setting is wrong or it is for another application.
            _logger.warning(
                "mlflow-iap: An assertion for the audience %r was rejected, because "
                "MLFLOW_IAP_AUDIENCE is %r. Set it to the first if that is this application's.",
                *(claims.get("aud"), self._audience),
            )
            raise InvalidAssertionError("it is for another application")
        email = claims.get("email")
        if not isinstance(email, str) or "@" not in email:
            raise InvalidAssertionError("it has no e-mail")
        return lower(email)


def _key_id(assertion: str) -> str:
    if len(assertion) > _MAX_LENGTH or not _SHAPE.fullmatch(assertion):
        raise InvalidAssertionError("it does not look like a JSON Web Token")
    try:
        header = jwt.decode_header(assertion)
    except (ValueError, RecursionError):
        raise InvalidAssertionError("it is not a JSON Web Token") from None
    # google-auth would also accept RS256 and ES384, and try all keys if there is no key id.
    if header.get("alg") != "ES256" or "crit" in header:
        raise InvalidAssertionError("it is not signed with ES256")
    key_id = header.get("kid")
    if not isinstance(key_id, str) or not key_id:
        raise InvalidAssertionError("it has no key id")
    return key_id


def _verified(assertion: str, keys: Mapping[str, str]) -> Mapping[str, Any]:
    try:
        claims: Mapping[str, Any] = jwt.decode(assertion, certs=keys, clock_skew_in_seconds=LEEWAY)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidAssertionError("its signature is wrong or it has expired") from error
    for name in ("iat", "exp"):
        # google-auth accepts NaN, with which each comparison is false.
        if type(claims[name]) not in (int, float) or not math.isfinite(claims[name]):
            raise InvalidAssertionError(f"its {name} is not a time")
    return claims
