"""The public keys of Identity-Aware Proxy, fetched when needed, but not too often."""

from __future__ import annotations

import asyncio
import logging
import time

import requests
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

_FETCH_INTERVAL = 10.0  # seconds
_FRESH_FOR = 3600.0  # seconds after which the keys are fetched again, to forget withdrawn ones
_TIMEOUT = 5.0  # seconds; requests with an unknown key wait for the fetch

_logger = logging.getLogger(__name__)


class KeysUnavailableError(Exception):
    """It is not known whether Google publishes a key: the keys could not be fetched just now."""


class PublicKeys:
    """This process's copy of Google's public keys.

    They are fetched for the first request, and again when a request needs an unknown key. When they
    are older than `fresh_for`, they are replaced in the background, so that keys that Google has
    withdrawn are forgotten. If Google is unreachable, the known keys stay in use.

    Args:
        url: URL of the keys, as a JSON object that has a PEM for each key id.
        fetch_interval: minimum time between two fetches, in seconds. Default: ten. This way, a
            flood of invented key ids costs little, and a new key is known soon.
        fresh_for: how long fetched keys are used before they are fetched again, in seconds.
    """

    def __init__(
        self, url: str, *, fetch_interval: float = _FETCH_INTERVAL, fresh_for: float = _FRESH_FOR
    ) -> None:
        self._url = url
        self._fetch_interval = fetch_interval
        self._fresh_for = fresh_for
        self._keys: dict[str, str] = {}
        self._fetched = -float("inf")
        self._last_try = -float("inf")
        self._fetching: asyncio.Task[bool] | None = None

    async def find(self, key_id: str) -> str | None:
        """Return a key's PEM, or None if Google publishes no such key.

        Raises:
            KeysUnavailableError: if the key is unknown, and the keys could not be fetched, or were
                fetched too recently to be fetched again.
        """
        if key_id in self._keys:
            if time.monotonic() - self._fetched > self._fresh_for:
                self._begin_fetch()
            return self._keys[key_id]
        self._begin_fetch()
        # Shielded, because other requests wait for the same fetch.
        if self._fetching is None or not await asyncio.shield(self._fetching):
            raise KeysUnavailableError
        return self._keys.get(key_id)

    def _begin_fetch(self) -> None:
        if self._fetching is None and time.monotonic() - self._last_try >= self._fetch_interval:
            self._last_try = time.monotonic()
            self._fetching = asyncio.create_task(self._fetch())

    async def _fetch(self) -> bool:
        try:
            self._keys = await asyncio.to_thread(_download, self._url)
            self._fetched = time.monotonic()
            return True
        except (requests.RequestException, ValueError) as error:
            _logger.warning(
                "mlflow-iap: The public keys of Identity-Aware Proxy could not be fetched from %s: "
                "%s. The %d known keys stay in use; check the network if this continues.",
                *(self._url, error, len(self._keys)),
            )
            return False
        finally:
            self._fetching = None


def _download(url: str) -> dict[str, str]:
    response = requests.get(url, timeout=_TIMEOUT, allow_redirects=False)
    if response.status_code != 200:
        raise ValueError(f"the response has status {response.status_code}")
    published = response.json()
    if not isinstance(published, dict):
        raise ValueError("the response is not a JSON object")
    keys = {key_id: pem for key_id, pem in published.items() if _is_p256(pem)}
    if not keys:
        raise ValueError("the response has no ES256 keys")
    return keys


def _is_p256(pem: object) -> bool:
    try:
        key = serialization.load_pem_public_key(str(pem).encode())
    except (ValueError, UnsupportedAlgorithm):
        return False
    # google-auth verifies with the key's own curve, no matter what the token's header says.
    return isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)
