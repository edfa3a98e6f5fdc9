"""Which servers a room keeps out: ``m.room.server_acl``.

Specification: Client-Server API, "Server Access Control Lists (ACLs) for rooms";
Server-Server API, of the same name.  The list acts on requests and not on the graph: events of
a server that is kept out stay where they are.

The lists are strangers' work and may be long; they are compiled once for each
event, and a verdict is remembered for each server.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dendrite_tw.matrix.discovery import parse_server_name
from dendrite_tw.matrix.errors import MatrixError, forbidden
from dendrite_tw.matrix.globs import Glob, compile_glob

MAX_REMEMBERED = 1024
"""How many verdicts one list remembers."""


class ServerACL:
    """The content of an ``m.room.server_acl`` event, ready to be asked."""

    __slots__ = ("_allow", "_allow_ip_literals", "_deny", "_verdicts")

    def __init__(self, content: Mapping[str, Any]) -> None:
        self._allow_ip_literals = content.get("allow_ip_literals") is not False
        self._allow = _Patterns(content.get("allow"))
        self._deny = _Patterns(content.get("deny"))
        self._verdicts: dict[str, bool] = {}

    def allows(self, server_name: str) -> bool:
        """Whether that server may take part.  Its port does not matter; a malformed name is not allowed."""
        verdict = self._verdicts.get(server_name)
        if verdict is None:
            if len(self._verdicts) >= MAX_REMEMBERED:
                self._verdicts.clear()
            verdict = self._verdicts[server_name] = self._judge(server_name)
        return verdict

    def _judge(self, server_name: str) -> bool:
        try:
            name = parse_server_name(server_name)
        except ValueError:
            return False
        if name.literal and not self._allow_ip_literals:
            return False
        # Brackets belong to the name of an IPv6 literal; lists write them.
        host = f"[{name.host}]" if ":" in name.host else name.host
        return not self._deny.match(host) and self._allow.match(host)

    def check(self, server_name: str) -> None:
        """Raise the 403 with which a server that is kept out is answered."""
        if not self.allows(server_name):
            raise denied()


class _Patterns:
    """A list of globs; names without wildcards are looked up instead of tried."""

    __slots__ = ("_globs", "_literals")

    def __init__(self, entries: object) -> None:
        patterns = [entry for entry in entries if isinstance(entry, str)] if isinstance(entries, list) else []
        self._literals: set[str] = set()
        self._globs: list[Glob] = []
        for pattern in patterns:
            glob = compile_glob(pattern)
            if glob.literal is not None:
                self._literals.add(glob.literal)
            else:
                self._globs.append(glob)

    def match(self, host: str) -> bool:
        return host.lower() in self._literals or any(glob.matches(host) for glob in self._globs)


def denied() -> MatrixError:
    """The answer to a server that the room's list keeps out."""
    return forbidden("This server is kept out of the room by its access control list.")


PROTECTED = frozenset(
    {
        "make_join",
        "make_leave",
        "make_knock",
        "send_join",
        "send_leave",
        "send_knock",
        "invite",
        "state",
        "state_ids",
        "backfill",
        "event_auth",
        "get_missing_events",
    }
)
"""The federation endpoints, by the word behind the version, that a server kept out of the room may not ask."""
