"""What may run in a process of its own, how it is called, and where such a process listens.

A *section* of ``dendrite.yaml`` is what operators know: ``key_server`` and ``app_service_api`` were components of
their own in Dendrite, and deployments that start a process for each still may.  Keys are the business of `user_api`
here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

if TYPE_CHECKING:
    from .config import Config

COMPONENTS = ("client_api", "federation_api", "media_api", "sync_api", "room_server", "user_api")

SECTIONS = {name: name for name in COMPONENTS} | {"key_server": "user_api", "app_service_api": ""}
"""Section of the configuration -> the component that does its work, if any."""

WORDS = {
    "appservice": "app_service_api",
    "clientapi": "client_api",
    "federationapi": "federation_api",
    "keyserver": "key_server",
    "mediaapi": "media_api",
    "roomserver": "room_server",
    "syncapi": "sync_api",
    "userapi": "user_api",
}
"""The words of ``dendrite-polylith-multi`` -> sections."""

EXTERNAL = ("client_api", "federation_api", "media_api", "sync_api")
"""Those that have rows of their own for clients and servers, and so an `external_api`."""

_ALIASES = WORDS | {"roomapi": "room_server", "appserviceapi": "app_service_api"}


class Address(msgspec.Struct, frozen=True):
    """``host:port`` or ``:port`` (everywhere), and the key of the file that says so."""

    key: str
    address: str


def section_named(word: str) -> str:
    """The section that is meant by ``client_api``, ``client-api``, ``clientapi`` …; `ValueError` with a sentence."""
    section = _ALIASES.get(word.strip().lower().replace("_", "").replace("-", ""))
    if section is None:
        raise ValueError(f"There is no component {word[:40]!r}; there are {', '.join(COMPONENTS)}.")
    return section


def sections_named(words: Iterable[str]) -> tuple[str, ...]:
    """The sections that are meant, each word perhaps several with commas; `ValueError` with a sentence."""
    found = [section_named(word) for text in words for word in text.split(",") if word.strip()]
    return tuple(dict.fromkeys(found))


def run_by(sections: Iterable[str]) -> frozenset[str]:
    """The components that a process runs which is started for these sections."""
    return frozenset(SECTIONS[section] for section in sections if SECTIONS[section])


def addresses(config: Config, sections: Iterable[str]) -> list[Address]:
    """Where the file says that a process for these sections listens; `ConfigError` where that cannot be.

    A process that has something to say to clients and servers needs an address.  The one for other components is
    served too, where the file has it: it shows the health and the figures of processes that have no other.
    """
    found: dict[str, Address] = {}
    for section in sections:
        for key in (f"{section}.external_api.listen", f"{section}.internal_api.listen"):
            wanted = _listen(config, key)
            if wanted:
                address = host_and_port(wanted)
                if not address:
                    text = f"{wanted[:80]!r} is no address to listen on."
                    raise config.error(key, text, "Write http://host:port, or http://[::]:port for all addresses.")
                found.setdefault(address, Address(key, address))
            elif key.endswith("external_api.listen") and section in EXTERNAL:
                text = "This process answers clients or servers, but has no address to do it on."
                raise config.error(key, text, "Set it to http://127.0.0.1:port, or start with --http-bind-address.")
    return list(found.values())


def _listen(config: Config, key: str) -> str:
    """The value of the key; empty where the section has none such."""
    section, api, _ = key.split(".")
    part = getattr(getattr(config, section), api, None)
    return part.listen if part is not None else ""


def host_and_port(url: str) -> str:
    """``127.0.0.1:8071`` of ``http://127.0.0.1:8071``, ``:8071`` of ``http://[::]:8071``, as Go listens on all
    addresses for that; empty if it is nothing of the kind.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return ""
    if parts.scheme != "http" or port is None or parts.path not in ("", "/") or parts.username is not None:
        return ""
    host = parts.hostname or ""
    if host == "::":
        host = ""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
