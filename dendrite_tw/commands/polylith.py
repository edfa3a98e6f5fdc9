"""``dendrite-sync-api`` and its like: one component in a process of its own.

``dendrite-polylith-multi --config dendrite.yaml syncapi`` is the same as Dendrite's last release with such processes
had it; the programs named after the components are those of its first ones.
"""

from __future__ import annotations

import sys

from dendrite_tw.commands.server import ServerFlags
from dendrite_tw.components import WORDS, section_named

_INTRODUCTION = """\
Serves one component of a homeserver, beside others that serve the rest, over NATS and PostgreSQL.
Any number of processes may serve the same component."""


def multi(arguments: list[str] | None = None) -> int:
    """``dendrite-polylith-multi [flags] WORD [flags]``; without a word that is known, a list of them and 1."""
    program = "dendrite-polylith-multi"
    flags = ServerFlags(program, f"{_INTRODUCTION}\nUsage: {program} [flags] COMPONENT, one of {_listed()}")
    rest = flags.set.parse(sys.argv[1:] if arguments is None else arguments)
    if flags.version.value:
        return flags.serve()
    section = WORDS.get(rest[0].lower()) if rest else None
    if section is None:
        print(f"Unknown component: {rest[0][:40]!r}." if rest else "No component is named.", file=sys.stderr)
        print(f"Valid components: {_listed()}", file=sys.stderr)
        return 1
    flags.set.parse_only(rest[1:])
    return flags.serve((section,))


def _listed() -> str:
    return ", ".join(sorted(WORDS))


def _one(word: str, arguments: list[str] | None) -> int:
    """The program of one component, which is known by the name that it was started as."""
    section = section_named(word)
    flags = ServerFlags(f"dendrite-{word}", _INTRODUCTION)
    flags.set.parse_only(sys.argv[1:] if arguments is None else arguments)
    return flags.serve((section,))


def client_api(arguments: list[str] | None = None) -> int:
    """What clients ask."""
    return _one("client-api", arguments)


def federation_api(arguments: list[str] | None = None) -> int:
    """Talk with other homeservers."""
    return _one("federation-api", arguments)


def media_api(arguments: list[str] | None = None) -> int:
    """Files and images."""
    return _one("media-api", arguments)


def sync_api(arguments: list[str] | None = None) -> int:
    """What clients are told."""
    return _one("sync-api", arguments)


def room_api(arguments: list[str] | None = None) -> int:
    """Rooms: their events and their state."""
    return _one("room-api", arguments)


def user_api(arguments: list[str] | None = None) -> int:
    """Accounts, devices and keys."""
    return _one("user-api", arguments)


def key_server(arguments: list[str] | None = None) -> int:
    """Of former versions: another process of the component that has the keys now."""
    return _one("key-server", arguments)


def appservice(arguments: list[str] | None = None) -> int:
    """Application services; it says that they are not served yet."""
    return _one("appservice", arguments)
