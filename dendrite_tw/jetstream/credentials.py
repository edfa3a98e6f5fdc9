"""NATS credentials: a ``.creds`` file with a JWT and the seed of the key that proves who shows it.

Reference: NATS documentation, "JWTs" and "NKeys".
"""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import Path
from typing import Final

import msgspec
from nacl.signing import SigningKey

_SECTION: Final = re.compile(r"-{3,}BEGIN ([A-Z ]+)-{3,}\s*([A-Za-z0-9_.=-]+)\s*-{3,}END [A-Z ]+-{3,}")
_USER_SEED: Final = b"\x92\x80"
"""The first bytes of a seed: what it is (a seed), and whose (a user's), five bits each."""


class CredentialsError(ValueError):
    """The file does not hold credentials of a user."""


class Credentials(msgspec.Struct, frozen=True):
    """A JWT and the 32 bytes of the seed."""

    jwt: str
    seed: bytes

    def sign(self, nonce: str) -> str:
        """The signature of the server's nonce, as CONNECT carries it."""
        signature = SigningKey(self.seed).sign(nonce.encode()).signature
        return base64.urlsafe_b64encode(signature).rstrip(b"=").decode()

    def __repr__(self) -> str:
        return "<Credentials>"


def decode_seed(text: str) -> bytes:
    """The key bytes of an encoded user seed (``SU…``); raises `CredentialsError`."""
    try:
        raw = base64.b32decode(text + "=" * (-len(text) % 8))
    except binascii.Error:
        raise CredentialsError("the seed is not base 32") from None
    if len(raw) != 36 or raw[0] & 0xF8 != _USER_SEED[0] & 0xF8:
        raise CredentialsError("not the seed of a user")
    if binascii.crc_hqx(raw[:-2], 0).to_bytes(2, "little") != raw[-2:]:
        raise CredentialsError("the seed's checksum is wrong")
    return raw[2:34]


def parse_credentials(text: str) -> Credentials:
    """The credentials in the text of a ``.creds`` file; raises `CredentialsError`."""
    sections = {name.strip(): body for name, body in _SECTION.findall(text)}
    try:
        return Credentials(sections["NATS USER JWT"], decode_seed(sections["USER NKEY SEED"]))
    except KeyError as missing:
        raise CredentialsError(f"there is no section {missing}") from None


def read_credentials(path: str | Path) -> Credentials:
    """The credentials in a file; raises `CredentialsError` or `OSError`."""
    return parse_credentials(Path(path).read_text(encoding="utf-8"))
