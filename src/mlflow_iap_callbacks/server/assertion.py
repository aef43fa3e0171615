"""Who sent a request, by the assertion that Identity-Aware Proxy signs for each."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from typing import Any

from google.auth import jwt

from .public_keys import PublicKeys

ISSUER = "https://cloud.google.com/iap"
LEEWAY = 30  # seconds, by Google's documentation of the assertion
_LONGEST = 16 * 1024

# 86 characters are the 64 bytes of an ES256 signature; the last one has two bits to tell.
_SHAPE = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]{85}[AQgw]")

_logger = logging.getLogger(__name__)


class InvalidAssertionError(Exception):
    """The assertion is none of Identity-Aware Proxy's for this application and this moment."""


class Verifier:
    """Tells by an assertion who sent a request.

    Args:
        keys: of Identity-Aware Proxy.
        audience: the one that the assertion must name.
    """

    def __init__(self, keys: PublicKeys, audience: str) -> None:
        self._keys = keys
        self._audience = audience

    async def email(self, assertion: str) -> str:
        """Return the sender's e-mail, in lower case.

        Raises:
            InvalidAssertionError: if the assertion does not count; the reason is for the log.
            KeysUnavailableError: if that cannot be told, for want of any key.
        """
        key_id = _key_id(assertion)
        pem = await self._keys.find(key_id)
        if pem is None:
            raise InvalidAssertionError("its key is none of Google's")
        claims = _verified(assertion, {key_id: pem})
        if claims.get("iss") != ISSUER:
            raise InvalidAssertionError("its issuer is not Identity-Aware Proxy")
        if claims.get("aud") != self._audience:
            # Signed by Google, so this is the setting that is wrong, or another's application.
            _logger.warning(
                "An assertion for %r was refused: MLFLOW_IAP_AUDIENCE is %r.",
                *(claims.get("aud"), self._audience),
            )
            raise InvalidAssertionError("its audience is another application")
        email = claims.get("email")
        if not isinstance(email, str) or "@" not in email:
            raise InvalidAssertionError("it names no e-mail")
        return email.lower()


def _key_id(assertion: str) -> str:
    if len(assertion) > _LONGEST or not _SHAPE.fullmatch(assertion):
        raise InvalidAssertionError("it is no JSON Web Token of the right shape")
    try:
        header = jwt.decode_header(assertion)
    except (ValueError, RecursionError):
        raise InvalidAssertionError("it is no JSON Web Token") from None
    # Google-auth would also take RS256 and ES384, and no key id for any.
    if header.get("alg") != "ES256" or "crit" in header:
        raise InvalidAssertionError("it is not signed by ES256")
    key_id = header.get("kid")
    if not isinstance(key_id, str) or not key_id:
        raise InvalidAssertionError("it names no key")
    return key_id


def _verified(assertion: str, keys: Mapping[str, str]) -> Mapping[str, Any]:
    try:
        claims: Mapping[str, Any] = jwt.decode(assertion, certs=keys, clock_skew_in_seconds=LEEWAY)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidAssertionError("its signature or its time does not hold") from error
    for name in ("iat", "exp"):
        # A comparison with NaN is always false, so that google-auth lets it pass.
        if type(claims[name]) not in (int, float) or not math.isfinite(claims[name]):
            raise InvalidAssertionError(f"its {name} is no time")
    return claims
