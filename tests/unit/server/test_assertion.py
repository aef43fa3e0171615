"""Which assertions are accepted, and which are rejected."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.auth import crypt, jwt
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mlflow_iap_callbacks.local.keys import RsaKey
from mlflow_iap_callbacks.server.assertion import InvalidAssertionError, Verifier

AUDIENCE = "/projects/123456789012/apps/local-project"
KEY_ID = "abc123"


class KnownKeys:
    """Replaces the fetched keys."""

    def __init__(self, keys: dict[str, str]) -> None:
        self._keys = keys

    async def find(self, key_id: str) -> str | None:
        return self._keys.get(key_id)


def new_key() -> tuple[crypt.ES256Signer, str]:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return crypt.ES256Signer(key, KEY_ID), pem.decode()


SIGNER, PEM = new_key()
FOREIGN_SIGNER, _ = new_key()
VERIFIER = Verifier(KnownKeys({KEY_ID: PEM}), AUDIENCE)  # type: ignore[arg-type]


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    usual = {
        "iss": "https://cloud.google.com/iap",
        "aud": AUDIENCE,
        "email": "Ada@Example.com",
        "sub": "accounts.google.com:1",
        "iat": now,
        "exp": now + 600,
        **changes,
    }
    return {name: value for name, value in usual.items() if value is not None}


def sign(
    signer: crypt.Signer = SIGNER, header: dict[str, Any] | None = None, **changes: Any
) -> str:
    return str(jwt.encode(signer, claims(**changes), header=dict(header or {})).decode())


def email(assertion: str) -> str:
    return asyncio.run(VERIFIER.email(assertion))


def segment(content: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()


def unsigned(**header: Any) -> str:
    return f"{segment({'alg': 'none', 'kid': KEY_ID, **header})}.{segment(claims())}."


def with_public_key_as_secret() -> str:
    signed = f"{segment({'alg': 'HS256', 'kid': KEY_ID, 'typ': 'JWT'})}.{segment(claims())}"
    mac = hmac.new(PEM.encode(), signed.encode(), hashlib.sha256).digest()
    return f"{signed}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


def with_other_claims() -> str:
    header, _, signature = sign().split(".")
    return f"{header}.{segment(claims(email='eve@example.com'))}.{signature}"


def without_key_id() -> str:
    header = {"alg": "ES256", "typ": "JWT"}
    signed = f"{segment(header)}.{segment(claims())}"
    signature = base64.urlsafe_b64encode(SIGNER.sign(signed.encode())).rstrip(b"=").decode()
    return f"{signed}.{signature}"


def now() -> int:
    return int(time.time())


FORGERIES: dict[str, Callable[[], str]] = {
    "nothing": lambda: "",
    "text": lambda: "accounts.google.com:ada@example.com",
    "deeply nested": lambda: f"{'W1tb' * 3000}.e30.{'A' * 86}",
    "unsigned": unsigned,
    "unsigned, with a signature's length": lambda: unsigned() + "A" * 86,
    "HS256 with the public key as secret": with_public_key_as_secret,
    "RS256": lambda: RsaKey("iap").sign(claims()),
    "signed as ES384": lambda: sign(header={"alg": "ES384"}),
    "signed with another key under a known id": lambda: sign(FOREIGN_SIGNER),
    "with an unknown key id": lambda: sign(crypt.ES256Signer(SIGNER._key, "unknown")),
    "without a key id": without_key_id,
    "with a critical header": lambda: sign(header={"crit": ["x"], "x": 1}),
    "with other claims": with_other_claims,
    "for another application": lambda: sign(aud="/projects/123456789012/apps/another"),
    "for several audiences": lambda: sign(aud=[AUDIENCE]),
    "for no audience": lambda: sign(aud=None),
    "from another issuer": lambda: sign(iss="https://accounts.google.com"),
    "from no issuer": lambda: sign(iss=None),
    "expired": lambda: sign(iat=now() - 700, exp=now() - 60),
    "from the future": lambda: sign(iat=now() + 90, exp=now() + 600),
    "that never ends": lambda: sign(exp=None),
    "that ends at NaN": lambda: sign(exp=float("nan")),
    "that ends at infinity": lambda: sign(exp=float("inf")),
    "that ends at a string": lambda: sign(exp="9999999999"),
    "that was never issued": lambda: sign(iat=None),
    "without an e-mail": lambda: sign(email=None),
    "with a list of e-mails": lambda: sign(email=["ada@example.com"]),
    "with something else as e-mail": lambda: sign(email="ada"),
}


def test_returns_the_email_in_lower_case() -> None:
    assert email(sign()) == "ada@example.com"
    assert email(sign(email="Ada@EXAMPLE.com")) == "ada@example.com"


@pytest.mark.parametrize("address", ["\u212aate@example.com", "\u0130@example.com"])
def test_different_emails_stay_different(address: str) -> None:
    """Python's lower() makes a k of the Kelvin sign."""
    assert email(sign(email=address)) == address


@pytest.mark.parametrize("seconds", [-20, 20])
def test_thirty_seconds_of_leeway_on_both_ends(seconds: int) -> None:
    if seconds < 0:
        assert email(sign(iat=now() - 600, exp=now() + seconds))
    else:
        assert email(sign(iat=now() + seconds))


@pytest.mark.parametrize("kind", FORGERIES)
def test_rejects_a_forged_assertion(kind: str) -> None:
    with pytest.raises(InvalidAssertionError):
        email(FORGERIES[kind]())


def test_logs_both_audiences_if_google_signed_for_another_application(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(InvalidAssertionError):
        email(sign(aud="/projects/1/apps/another"))
    assert "/projects/1/apps/another" in caplog.text
    assert AUDIENCE in caplog.text


_VALID = sign(exp=now() + 3600)
_ANY_JSON: st.SearchStrategy[Any] = st.sampled_from(
    [
        *(None, True, False, 0, -1, 1, 2**63, 10**400, 0.5, 1e308, float("nan"), float("inf")),
        *(
            "",
            "x",
            KEY_ID,
            AUDIENCE,
            "ada@example.com",
            "9999999999",
            "\u0000",
            "ß",
            "../" + KEY_ID,
        ),
        *([], {}, [KEY_ID], [AUDIENCE], ["ada@example.com"], {"kid": KEY_ID}, [[[[]]]]),
    ]
)
_HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "alg": st.sampled_from(["ES256", "none", "None", "HS256", "RS256", "ES384"]) | _ANY_JSON,
        "kid": st.just(KEY_ID) | _ANY_JSON,
        "typ": _ANY_JSON,
        "crit": _ANY_JSON,
    },
)
_CHARACTERS = st.sampled_from(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.=+/ \t\n\x00é"
)
_SIGNATURES = (
    st.just("")
    | st.just(_VALID.rpartition(".")[2])
    | st.binary(min_size=64, max_size=64).map(
        lambda data: base64.urlsafe_b64encode(data).rstrip(b"=").decode()
    )
)


def _one_character_changed(position: int, character: str) -> str:
    position %= len(_VALID)
    return _VALID[:position] + character + _VALID[position + 1 :]


_FORGED = st.one_of(
    st.text(max_size=200),
    st.builds(_one_character_changed, st.integers(0, 10_000), _CHARACTERS),
    st.builds(lambda cut: _VALID[: cut % len(_VALID)], st.integers(0, 10_000)),
    st.builds(lambda more: _VALID + more, st.text(_CHARACTERS, min_size=1, max_size=4)),
    st.builds(
        lambda header, content, signature: f"{segment(header)}.{segment(content)}.{signature}",
        _HEADERS | _ANY_JSON,
        st.builds(claims, email=_ANY_JSON, exp=_ANY_JSON) | _ANY_JSON,
        _SIGNATURES,
    ),
    st.builds(
        lambda changes: sign(FOREIGN_SIGNER, **changes),
        st.dictionaries(st.sampled_from(["aud", "iss", "email", "exp", "iat"]), _ANY_JSON),
    ),
)


_MANY = settings(max_examples=200, database=None, suppress_health_check=list(HealthCheck))


@_MANY
@example(_VALID.rpartition(".")[0] + ".")
@given(_FORGED)
def test_rejects_generated_forgeries(forged: str) -> None:
    _assert_is_rejected(forged)


@pytest.mark.slow
@settings(_MANY, max_examples=10_000)
@given(_FORGED)
def test_rejects_ten_thousand_generated_forgeries(forged: str) -> None:
    _assert_is_rejected(forged)


def _assert_is_rejected(forged: str) -> None:
    if forged == _VALID:
        return
    verdict = VERIFIER.email(forged)
    # Without an event loop, which would take longer than everything else.
    with pytest.raises(InvalidAssertionError):
        verdict.send(None)
