"""Keys that sign JSON Web Tokens, and a parser for such tokens."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from google.auth import crypt, jwt

from .certificates import self_signed


def parse_jwt(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return header and claims of a token, without verifying them.

    Raises:
        ValueError: if `token` is not a JSON Web Token.
    """
    header = jwt.decode_header(token)
    claims = jwt.decode(token, verify=False)
    return dict(header), dict(claims)


class RsaKey:
    """An RS256 key of a service account or of Google itself.

    Args:
        subject: common name of its self-signed certificate; Google publishes public keys as such
            certificates.
    """

    def __init__(self, subject: str) -> None:
        private_key = _new_rsa_key()
        self.id = _key_id(private_key.public_key(), length=40)
        self.private_pem = private_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode()
        self.certificate_pem = self_signed(subject, private_key).decode()
        self._signer = crypt.RSASigner(private_key, self.id)
        self._verifier = crypt.RSAVerifier(private_key.public_key())

    def sign(self, claims: Mapping[str, Any]) -> str:
        return _encode(self._signer, claims)

    def sign_bytes(self, message: bytes) -> bytes:
        signature: bytes = self._signer.sign(message)
        return signature

    def has_signed(self, token: str) -> bool:
        """Whether `token` is an RS256 token with this key's signature."""
        header, _ = parse_jwt(token)
        signed, _, signature = token.rpartition(".")
        return header.get("alg") == "RS256" and bool(
            self._verifier.verify(signed.encode(), _decode_segment(signature))
        )


def _new_rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


class EcKey:
    """An ES256 key of Identity-Aware Proxy."""

    def __init__(self) -> None:
        private_key = ec.generate_private_key(ec.SECP256R1())
        public_key = private_key.public_key()
        self.id = _key_id(public_key, length=6)
        self.public_pem = public_key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ).decode()
        numbers = public_key.public_numbers()
        self.jwk = {
            "kty": "EC",
            "crv": "P-256",
            "alg": "ES256",
            "use": "sig",
            "kid": self.id,
            "x": _encode_segment(numbers.x.to_bytes(32, "big")),
            "y": _encode_segment(numbers.y.to_bytes(32, "big")),
        }
        self._signer = crypt.ES256Signer(private_key, self.id)

    def sign(self, claims: Mapping[str, Any]) -> str:
        return _encode(self._signer, claims)

    def verify(self, token: str, *, audience: str) -> dict[str, Any]:
        """Return the claims of an unexpired token that this key signed for `audience`.

        Raises:
            ValueError: if `token` is anything else.
        """
        return dict(jwt.decode(token, certs={self.id: self.public_pem}, audience=audience))


def _encode(signer: crypt.Signer, claims: Mapping[str, Any]) -> str:
    token: bytes = jwt.encode(signer, claims)
    return token.decode()


def _encode_segment(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode_segment(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _key_id(public_key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey, *, length: int) -> str:
    der = public_key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(der).hexdigest()[:length]
