"""How the public keys of Identity-Aware Proxy are fetched."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest

from mlflow_iap_callbacks.local import LocalCloud
from mlflow_iap_callbacks.local.keys import parse_jwt
from mlflow_iap_callbacks.server.public_keys import KeysUnavailableError, PublicKeys

KEYS_PATH = "/iap/verify/public_key"
# The second one has the object identifier of GOST R 34.10-2012, which cryptography does not know.
_PEMS = {
    "ed25519": (
        "-----BEGIN PUBLIC KEY-----\n"
        "MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n"
        "-----END PUBLIC KEY-----\n"
    ),
    "another algorithm": (
        "-----BEGIN PUBLIC KEY-----\n"
        "MFAwCgYIKoUDBwEBAQEDQgAEERERERERERERERERERERERERERERERERERERERER\n"
        "EREREREREREREREREREREREREREREREREREREREREREREQ==\n"
        "-----END PUBLIC KEY-----\n"
    ),
}


@pytest.fixture
def cloud() -> Iterator[LocalCloud]:
    with LocalCloud() as running:
        yield running


def key_id(cloud: LocalCloud) -> str:
    return str(parse_jwt(cloud.assertion())[0]["kid"])


def fetches(cloud: LocalCloud) -> int:
    return sum(seen.path == KEYS_PATH for seen in cloud.google_requests)


def outage(cloud: LocalCloud, **answer: object) -> None:
    cloud.fault("answer", path=KEYS_PATH, times=0, where="google", **answer)  # type: ignore[arg-type]


def test_keys_are_fetched_once_for_concurrent_and_later_requests(cloud: LocalCloud) -> None:
    keys = PublicKeys(cloud.assertion_keys_url)
    known = key_id(cloud)

    async def ask() -> list[str | None]:
        return await asyncio.gather(*(keys.find(known) for _ in range(50)))

    assert all(pem and "PUBLIC KEY" in pem for pem in asyncio.run(ask()) + asyncio.run(ask()))
    assert fetches(cloud) == 1


def test_a_flood_of_invented_key_ids_causes_one_fetch_in_the_interval(cloud: LocalCloud) -> None:
    keys = PublicKeys(cloud.assertion_keys_url)

    async def flood() -> list[str | BaseException | None]:
        invented = (keys.find(f"invented-{number}") for number in range(500))
        return await asyncio.gather(keys.find(key_id(cloud)), *invented)

    assert set(asyncio.run(flood())[1:]) == {None}
    assert fetches(cloud) == 1


def test_a_key_that_cannot_be_fetched_yet_is_neither_known_nor_unknown(cloud: LocalCloud) -> None:
    keys = PublicKeys(cloud.assertion_keys_url)
    assert asyncio.run(keys.find(key_id(cloud)))
    cloud.rotate_assertion_key()
    with pytest.raises(KeysUnavailableError):
        asyncio.run(keys.find(key_id(cloud)))
    assert fetches(cloud) == 1


@pytest.mark.parametrize("other", ["ed25519", "another algorithm", "not a PEM", None, 5, ["x"]])
def test_a_key_of_another_kind_does_not_affect_the_others(cloud: LocalCloud, other: object) -> None:
    known = key_id(cloud)
    pem = asyncio.run(PublicKeys(cloud.assertion_keys_url).find(known))
    published = {known: pem, "other": _PEMS.get(other, other) if isinstance(other, str) else other}
    outage(cloud, status=200, body=json.dumps(published))
    keys = PublicKeys(cloud.assertion_keys_url)

    async def find() -> list[str | None]:
        return [*await asyncio.gather(keys.find(known), keys.find("other"))]

    assert asyncio.run(find()) == [pem, None]


def test_a_new_key_is_fetched_for_the_first_request_that_needs_it(cloud: LocalCloud) -> None:
    keys = PublicKeys(cloud.assertion_keys_url, fetch_interval=0.0)
    old = key_id(cloud)
    assert asyncio.run(keys.find(old))
    cloud.rotate_assertion_key()
    assert key_id(cloud) != old
    assert asyncio.run(keys.find(key_id(cloud)))
    assert asyncio.run(keys.find(old))
    assert fetches(cloud) == 2


def test_a_key_that_is_no_longer_published_is_forgotten(cloud: LocalCloud) -> None:
    with LocalCloud() as other:
        keys = PublicKeys(other.assertion_keys_url, fetch_interval=0.0, fresh_for=0.0)
        old = key_id(other)
        assert asyncio.run(keys.find(old))
        pem = asyncio.run(PublicKeys(cloud.assertion_keys_url).find(key_id(cloud)))
        outage(other, status=200, body=json.dumps({"new": pem}))

        async def until_forgotten() -> None:
            while await keys.find(old):
                await asyncio.sleep(0)
            assert await keys.find("new")

        asyncio.run(asyncio.wait_for(until_forgotten(), 10))


@pytest.mark.parametrize(
    "answer",
    [
        {"status": 503},
        {"status": 302},
        {"status": 200, "body": "<html>"},
        {"status": 200, "body": "[]"},
        {"status": 200, "body": "{}"},
        {"status": 200, "body": '{"a": "no key", "b": null}'},
    ],
)
def test_known_keys_stay_in_use_while_fetching_fails(
    cloud: LocalCloud, answer: dict[str, object]
) -> None:
    keys = PublicKeys(cloud.assertion_keys_url, fetch_interval=0.0, fresh_for=0.0)
    known = key_id(cloud)
    assert asyncio.run(keys.find(known))
    outage(cloud, **answer)

    async def ask() -> None:
        assert await keys.find(known)
        with pytest.raises(KeysUnavailableError):
            await keys.find("another")
        assert await keys.find(known)

    asyncio.run(ask())
    assert fetches(cloud) >= 2


def test_without_known_keys_an_error_is_raised_until_a_fetch_succeeds(cloud: LocalCloud) -> None:
    keys = PublicKeys(cloud.assertion_keys_url, fetch_interval=0.0)
    outage(cloud)
    with pytest.raises(KeysUnavailableError):
        asyncio.run(keys.find(key_id(cloud)))
    cloud.clear_faults()
    assert asyncio.run(keys.find(key_id(cloud)))


def test_an_unreachable_url_is_tried_once_in_the_interval(
    cloud: LocalCloud,
) -> None:
    keys = PublicKeys(cloud.assertion_keys_url)
    outage(cloud)
    for _ in range(20):
        with pytest.raises(KeysUnavailableError):
            asyncio.run(keys.find("any"))
    assert fetches(cloud) == 1
