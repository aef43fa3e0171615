"""Self-signed certificates: for public keys, and for TLS under Google's host names."""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from .private_files import write_private


def self_signed(
    common_name: str,
    private_key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey,
    host_names: tuple[str, ...] = (),
) -> bytes:
    """Return a certificate of a key as PEM.

    Args:
        common_name: name of its subject, cut to the 64 characters that X.509 allows.
        private_key: the key that it certifies, and that signs it.
        host_names: names under which a TLS server with this key is reached.
    """
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=365))
    )
    if host_names:
        names = x509.SubjectAlternativeName([x509.DNSName(name) for name in host_names])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(private_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def tls_context(folder: Path, host_names: tuple[str, ...]) -> tuple[ssl.SSLContext, Path]:
    """Return a TLS context for servers of `host_names`, and the file that makes clients trust it.

    Args:
        folder: where the certificate and the server's key are written.
        host_names: names of the servers; `*.` matches one label.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = self_signed(host_names[0], key, host_names)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(write_private(folder / "server.pem", pem + certificate))
    return context, write_private(folder / "ca.pem", certificate)
