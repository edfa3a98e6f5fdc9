"""Where NATS servers are, as ``dendrite.yaml`` and the tools of NATS write it."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

import msgspec

DEFAULT_PORT = 4222


class Address(msgspec.Struct, frozen=True):
    """Where a server is, and who we are there."""

    host: str
    port: int
    tls: bool = False
    user: str = ""
    password: str = ""
    token: str = ""

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    __repr__ = __str__


def parse_address(text: str) -> Address:
    """An address such as ``nats://user:password@host:4222``, ``tls://host`` or ``host``; raises
    `ValueError`.
    """
    parts = urlsplit(text if "://" in text else f"nats://{text}")
    if parts.scheme not in ("nats", "tls") or not parts.hostname:
        raise ValueError("not the address of a NATS server")
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    is_token = bool(user) and parts.password is None
    return Address(
        host=parts.hostname,
        port=parts.port or DEFAULT_PORT,
        tls=parts.scheme == "tls",
        user="" if is_token else user,
        password=password,
        token=user if is_token else "",
    )


def parse_listen(text: str) -> tuple[str, int]:
    """Host and port of ``host:port``; without a host, this machine alone.  Raises `ValueError`."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise ValueError("not host:port")
    return host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    return host in ("localhost", "::1") or host.startswith("127.")
