"""User, room, event and alias ids, server names: take them apart, say whether they are well formed.

Specification: appendices, "Identifier Grammar".  Lengths are counted in bytes of
UTF-8, as the grammar demands.  Nothing here raises on malformed input except the
functions that take an identifier apart and have no answer to give.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import NamedTuple, TypeGuard

MAX_IDENTIFIER_BYTES = 255
MAX_SERVER_NAME = 261
"""Characters of the longest server name: a name of 255 and a port."""

_LOCALPART = re.compile(r"[a-z0-9._=\-/+]+\Z")
_OPAQUE = re.compile(r"[0-9A-Za-z\-._~]{1,255}\Z")
_NAMESPACED = re.compile(r"[a-z][a-z0-9\-_.]{0,254}\Z")
_HASH_ID = re.compile(r"[!$][A-Za-z0-9_\-]{43}\Z")
_MEDIA_ID = re.compile(r"[A-Za-z0-9_\-]{1,255}\Z")
_SERVER_NAME = re.compile(
    r"""(?:
        (?P<v4>[0-9]{1,3}(?:\.[0-9]{1,3}){3})
      | \[(?P<v6>[0-9A-Fa-f:.]{2,45})\]
      | (?P<dns>[0-9A-Za-z.\-]{1,255})
    )
    (?: : (?P<port>[0-9]{1,5}) )? \Z""",
    re.VERBOSE,
)
_FORBIDDEN_IN_LOCALPART = re.compile("[\0\ud800-\udfff]")


def server_name_of(identifier: str) -> str:
    """The server name of a user id, alias or other ``&localpart:domain``.

    Raises `ValueError` where there is no domain, as in ids that are hashes.
    """
    _, colon, domain = identifier.partition(":")
    if not colon or not domain:
        raise ValueError("identifier has no server name")
    return domain


def localpart_of(identifier: str) -> str:
    """What stands between the sigil and the first colon; `ValueError` if there is no colon."""
    local, colon, _ = identifier.partition(":")
    if not colon or not local:
        raise ValueError("identifier has no localpart")
    return local[1:]


def within_limit(text: str, limit: int = MAX_IDENTIFIER_BYTES) -> bool:
    """Whether ``text`` takes at most ``limit`` bytes; text that UTF-8 cannot carry does not fit."""
    if len(text) > limit:
        return False
    if text.isascii():
        return True
    try:
        return len(text.encode()) <= limit
    except UnicodeEncodeError:
        return False


def is_server_name(name: object) -> TypeGuard[str]:
    """Whether ``name`` is ``hostname[:port]``: a DNS name, an IPv4 or a bracketed IPv6 literal."""
    if not isinstance(name, str) or len(name) > MAX_SERVER_NAME:
        return False
    return _names_a_server(name)


@lru_cache(1024)
def _names_a_server(name: str) -> bool:
    """Remembered, for the same few servers stand in most identifiers."""
    match = _SERVER_NAME.match(name)
    if match is None:
        return False
    v4, v6, _, port = match.groups()
    if port is not None and int(port) > 65535:
        return False
    if v4 is not None:
        return all(int(octet) <= 255 for octet in v4.split("."))
    if v6 is not None:
        try:
            ipaddress.IPv6Address(v6)
        except ValueError:
            return False
    return True


def _is_domain_identifier(identifier: object, sigil: str, *, empty_localpart: bool = False) -> TypeGuard[str]:
    if not isinstance(identifier, str) or identifier[:1] != sigil or not within_limit(identifier):
        return False
    local, colon, domain = identifier[1:].partition(":")
    if not colon or not (local or empty_localpart):
        return False
    return _FORBIDDEN_IN_LOCALPART.search(local) is None and is_server_name(domain)


def is_user_id(identifier: object) -> TypeGuard[str]:
    """Whether this is a user id by the present grammar: lower case, digits and ``._=-/+``."""
    if not isinstance(identifier, str) or identifier[:1] != "@" or not within_limit(identifier):
        return False
    local, _, domain = identifier[1:].partition(":")
    return _LOCALPART.match(local) is not None and is_server_name(domain)


def is_historical_user_id(identifier: object) -> TypeGuard[str]:
    """Whether this is a user id that events of other servers may carry.

    Older servers allowed any code point but ``:`` and NUL, and even an empty
    localpart ("Historical User IDs").
    """
    return _is_domain_identifier(identifier, "@", empty_localpart=True)


def is_valid_localpart_for_registration(localpart: object) -> TypeGuard[str]:
    """Whether a new account may have this localpart.

    The length of the whole user id is the caller's to check, who knows the server name.
    """
    return isinstance(localpart, str) and _LOCALPART.match(localpart) is not None


def is_hash_room_id(identifier: object) -> TypeGuard[str]:
    """A room id that is the hash of its create event (room version 12): ``!`` and 43 characters."""
    return isinstance(identifier, str) and identifier[:1] == "!" and _HASH_ID.match(identifier) is not None


def is_domain_room_id(identifier: object) -> TypeGuard[str]:
    """A room id of the form ``!opaque:domain`` (room versions 1 to 11)."""
    return _is_domain_identifier(identifier, "!")


def is_room_id(identifier: object) -> TypeGuard[str]:
    """A room id of either form."""
    return is_hash_room_id(identifier) or is_domain_room_id(identifier)


def is_room_alias(identifier: object) -> TypeGuard[str]:
    """A room alias, ``#name:domain``."""
    return _is_domain_identifier(identifier, "#")


def is_event_id(identifier: object) -> TypeGuard[str]:
    """An event id of any room version: ``$`` and something behind it, at most 255 bytes."""
    return (
        isinstance(identifier, str)
        and len(identifier) > 1
        and identifier[0] == "$"
        and within_limit(identifier)
        and _FORBIDDEN_IN_LOCALPART.search(identifier) is None
    )


def is_domain_event_id(identifier: object) -> TypeGuard[str]:
    """An event id that its server chose, ``$opaque:domain`` (room versions 1 and 2)."""
    return _is_domain_identifier(identifier, "$")


def is_opaque_identifier(identifier: object) -> TypeGuard[str]:
    """The opaque identifier grammar: 1 to 255 of ``0-9 A-Z a-z - . _ ~``."""
    return isinstance(identifier, str) and _OPAQUE.match(identifier) is not None


def is_namespaced_identifier(identifier: object) -> TypeGuard[str]:
    """The common namespaced identifier grammar, as of ``m.room.message`` or ``org.example.thing``."""
    return isinstance(identifier, str) and _NAMESPACED.match(identifier) is not None


class Mxc(NamedTuple):
    """A parsed ``mxc://server_name/media_id``."""

    server_name: str
    media_id: str


def parse_mxc(uri: str) -> Mxc:
    """Take an ``mxc://`` URI apart (Client-Server API, "Matrix Content (mxc://) URIs").

    Raises `ValueError` unless the server name is valid and the media id has only
    ``A-Z a-z 0-9 _ -``, which also keeps it harmless as part of a path.
    """
    if not uri.startswith("mxc://"):
        raise ValueError("not an mxc URI")
    server_name, _, media_id = uri[6:].partition("/")
    if not is_server_name(server_name) or _MEDIA_ID.match(media_id) is None:
        raise ValueError("malformed mxc URI")
    return Mxc(server_name, media_id)


def is_mxc_uri(uri: object) -> TypeGuard[str]:
    """Whether `parse_mxc` would accept this."""
    if not isinstance(uri, str):
        return False
    try:
        parse_mxc(uri)
    except ValueError:
        return False
    return True
