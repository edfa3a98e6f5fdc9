"""A certificate authority that lives as long as the tests do; its certificates are for this machine."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

VALID = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Authority:
    """Who signs the certificates of servers that are to trust each other; ``file`` has its own, as PEM."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    file: Path

    @classmethod
    def make(cls, folder: Path) -> Authority:
        """A new one, whose certificate is written to `folder`."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = _named("Authority of the tests")
        certificate = _certificate(name, name, key, key, is_authority=True)
        file = folder / "authority.pem"
        file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return cls(certificate, key, file)

    def issue(self, host: str, folder: Path) -> tuple[Path, Path]:
        """The files of a certificate for `host`, a DNS name or an address, and of its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(_named(host), self.certificate.subject, key, self.key, host=host)
        chain, secret = folder / "tls.crt", folder / "tls.key"
        chain.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        secret.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return chain, secret


def _named(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer_key: ec.EllipticCurvePrivateKey,
    host: str = "",
    is_authority: bool = False,
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - VALID)
        .not_valid_after(now + VALID)
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
    )
    if host:
        builder = builder.add_extension(x509.SubjectAlternativeName([_general(host)]), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
