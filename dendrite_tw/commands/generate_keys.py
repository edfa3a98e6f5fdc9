"""``generate-keys``: the key that signs events, and certificates for TLS.

A signing key is never overwritten: with it the server would lose its identity among other servers.
Certificates are, since they are renewed.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import secrets
import string
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dendrite_tw.commands.goflags import FlagSet

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

_LIFETIME = datetime.timedelta(days=3650)
_PERMITTED_SIZES = range(1024, 16385)

_INTRODUCTION = "Makes the key files that a homeserver needs."


class _StopError(Exception):
    """Why no key could be made, for the user."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit code."""
    flags = FlagSet("generate-keys", _INTRODUCTION)
    private_key = flags.string("private-key", "", "File for a new Ed25519 key that signs events and requests")
    tls_cert = flags.string("tls-cert", "", "File for a new X.509 certificate for TLS")
    tls_key = flags.string("tls-key", "", "File for the RSA key of that certificate")
    authority_cert = flags.string("tls-authority-cert", "", "Certificate of the authority that signs it")
    authority_key = flags.string("tls-authority-key", "", "Key of that authority")
    server = flags.string("server", "", "Name in the certificate; localhost if not given")
    key_size = flags.integer("keysize", 4096, "Bits of the RSA key")
    flags.parse_only(sys.argv[1:] if arguments is None else arguments)
    if not (private_key.value or tls_cert.value or tls_key.value):
        flags.print_usage()
        return 0
    authority = (authority_cert.value, authority_key.value)
    try:
        if tls_cert.value or tls_key.value:
            write_certificate(tls_cert.value, tls_key.value, server.value, key_size.value, authority)
            print(f"Created TLS cert file:    {tls_cert.value}")
            print(f"Created TLS key file:     {tls_key.value}")
        if private_key.value:
            write_signing_key(private_key.value)
            print(f"Created private key file: {private_key.value}")
    except (_StopError, OSError) as error:
        print(f"generate-keys: {error}", file=sys.stderr)
        return 1
    return 0


def write_signing_key(path: str) -> None:
    """Write a new signing key in Dendrite's format; `_StopError` if the file exists."""
    from dendrite_tw.matrix.keys import signing_key, write_pem

    identifier = "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(6))
    text = write_pem(signing_key(f"ed25519:{identifier}", secrets.token_bytes(32)))
    try:
        _write_private(path, text.encode(), os.O_EXCL)
    except FileExistsError:
        raise _StopError(
            f"{path} exists and is left as it is, for a lost signing key cannot be replaced. "
            "Move it away first if you do want a new one."
        ) from None


def write_certificate(
    cert_path: str, key_path: str, server: str, key_size: int, authority: tuple[str, str] = ("", "")
) -> None:
    """Write a certificate for ``server`` and its key; signed by itself unless an authority is given."""
    if not (cert_path and key_path):
        raise _StopError("-tls-cert and -tls-key are only of use together.")
    if bool(authority[0]) != bool(authority[1]):
        raise _StopError("-tls-authority-cert and -tls-authority-key are only of use together.")
    if key_size not in _PERMITTED_SIZES:
        raise _StopError(f"-keysize must be from {_PERMITTED_SIZES[0]} to {_PERMITTED_SIZES[-1]}.")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=key_size)
    certificate = _certificate(key, server or "localhost", authority)
    _write_private(
        key_path,
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        ),
        os.O_TRUNC,
    )
    Path(cert_path).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _certificate(key: RSAPrivateKey, server: str, authority: tuple[str, str]) -> x509.Certificate:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    issuer_key = key
    subject = issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, server[:64])])
    if authority[0]:
        issuer_key, issuer = _authority(*authority)
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + _LIFETIME)
        .add_extension(x509.SubjectAlternativeName(_names(server)), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )


def _names(server: str) -> list[x509.GeneralName]:
    """What the certificate is for: the host of a server name, which may be an address and have a port."""
    from cryptography import x509

    host = server.rpartition("]")[0].lstrip("[") or server.partition(":")[0]
    try:
        return [x509.IPAddress(ipaddress.ip_address(host))]
    except ValueError:
        pass
    try:
        return [x509.DNSName(host)]
    except ValueError:
        raise _StopError(f"{server!r} cannot be a name in a certificate.") from None


def _authority(cert_path: str, key_path: str) -> tuple[RSAPrivateKey, x509.Name]:
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    try:
        certificate = x509.load_pem_x509_certificate(Path(cert_path).read_bytes())
    except ValueError:
        raise _StopError(f"{cert_path} is not a certificate in PEM format.") from None
    try:
        key = serialization.load_pem_private_key(Path(key_path).read_bytes(), password=None)
    except (ValueError, TypeError):
        raise _StopError(f"{key_path} is not an unencrypted RSA key in PEM format.") from None
    if not isinstance(key, RSAPrivateKey):
        raise _StopError(f"{key_path} is not an RSA key.")
    if key.public_key() != certificate.public_key():
        raise _StopError(f"{key_path} is not the key of {cert_path}.")
    return key, certificate.subject


def _write_private(path: str, data: bytes, flag: int) -> None:
    """Write a file that only its owner may read."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | flag, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
