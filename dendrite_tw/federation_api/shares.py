"""What part of the work this process does, where several processes share the database of the federation component.

Rooms whose events wait, and servers that something waits for, are cut into `SHARES` parts.  Each part is leased to one
process; a process that has the database to itself does all.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from ..sharing.leases import Leases
from ..sharing.shares import share_of as room_share_of

SHARES = 16
"""In how many parts; every process of a deployment must count alike, so it never changes."""


def share_of(key: str) -> int:
    """The part that a room or a server belongs to: 0 to `SHARES` - 1."""
    return room_share_of(key) % SHARES


class Shares:
    """The parts of one kind, leased under the names ``{kind}0`` to ``{kind}15``."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._held: frozenset[int] | None = None
        """`None`: all, for there are no others."""

    def lease(
        self, leases: Leases, gained: Callable[[], Awaitable[None]], lost: Callable[[bool], Awaitable[None]]
    ) -> None:
        """Hold only what is leased from now on.

        `gained` is awaited when there is more to do.  `lost` when there is less: with `True` it finishes, quickly,
        what is under way of what is no longer `mine`; with `False` it breaks it off.
        """
        self._held = frozenset()

        async def take(name: str) -> None:
            self._held = (self._held or frozenset()) | {self._number(name)}
            await gained()

        async def leave(name: str, kept: bool) -> None:
            self._held = (self._held or frozenset()) - {self._number(name)}
            await lost(kept)

        leases.want([f"{self._kind}{number}" for number in range(SHARES)], take, leave)

    def _number(self, name: str) -> int:
        return int(name.removeprefix(self._kind))

    def mine(self, key: str) -> bool:
        """Whether what belongs to a room or a server is this process's to do."""
        return self._held is None or share_of(key) in self._held
