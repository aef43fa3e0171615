"""The public keys of Identity-Aware Proxy, fetched when they are needed and never often."""

from __future__ import annotations

import asyncio
import logging
import time

import requests
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

FETCH_INTERVAL = 10.0  # seconds
FRESH_FOR = 3600.0  # seconds
_TIMEOUT = 5.0  # seconds

_logger = logging.getLogger(__name__)


class KeysUnavailableError(Exception):
    """No public key is known, and none could be fetched."""


class PublicKeys:
    """Google's keys by their id, of one process.

    They are fetched on the first request, again when a key is asked for that is not among them,
    and when they are older than `fresh_for`: then in the background, and a key that Google no
    longer publishes is forgotten. Between two fetches there are always `fetch_interval` seconds,
    so that a flood of invented key ids costs nothing. While Google cannot be reached, the keys
    known stay good.

    Args:
        url: of a JSON object that has PEM by key id.
        fetch_interval: in seconds.
        fresh_for: in seconds.
    """

    def __init__(
        self, url: str, *, fetch_interval: float = FETCH_INTERVAL, fresh_for: float = FRESH_FOR
    ) -> None:
        self._url = url
        self._fetch_interval = fetch_interval
        self._fresh_for = fresh_for
        self._keys: dict[str, str] = {}
        self._fetched = -float("inf")
        self._last_try = -float("inf")
        self._fetching: asyncio.Task[None] | None = None

    async def find(self, key_id: str) -> str | None:
        """Return a key's PEM; None where Google publishes no such key.

        Raises:
            KeysUnavailableError: if no key is known at all.
        """
        if key_id in self._keys:
            if time.monotonic() - self._fetched > self._fresh_for:
                self._begin_fetch()
            return self._keys[key_id]
        self._begin_fetch()
        if self._fetching is not None:
            # Shielded: it is also the others' who wait for it.
            await asyncio.shield(self._fetching)
        if not self._keys:
            raise KeysUnavailableError
        return self._keys.get(key_id)

    def _begin_fetch(self) -> None:
        if self._fetching is None and time.monotonic() - self._last_try >= self._fetch_interval:
            self._last_try = time.monotonic()
            self._fetching = asyncio.create_task(self._fetch())

    async def _fetch(self) -> None:
        try:
            self._keys = await asyncio.to_thread(_download, self._url)
            self._fetched = time.monotonic()
        except (requests.RequestException, ValueError) as error:
            _logger.warning(
                "The public keys of Identity-Aware Proxy could not be fetched from %s: %s. "
                "The %d known stay in use.",
                *(self._url, error, len(self._keys)),
            )
        finally:
            self._fetching = None


def _download(url: str) -> dict[str, str]:
    answer = requests.get(url, timeout=_TIMEOUT, allow_redirects=False)
    if answer.status_code != 200:
        raise ValueError(f"the answer's status is {answer.status_code}")
    published = answer.json()
    if not isinstance(published, dict):
        raise ValueError("the answer is no JSON object")
    keys = {key_id: pem for key_id, pem in published.items() if _is_p256(pem)}
    if not keys:
        raise ValueError("the answer has no key for ES256")
    return keys


def _is_p256(pem: object) -> bool:
    try:
        key = serialization.load_pem_public_key(str(pem).encode())
    except ValueError:
        return False
    # google-auth verifies by the key's own curve, whatever the token's header says.
    return isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)
