"""The rooms are shared with other processes: which of them this one has, and how it gains and loses them.

A share is *open* from before its lease counts as held until it is to be given back.  What writes because of what it
knows of a room does so within `SharedRooms.writing`; a share is given back, and what is remembered of it forgotten,
once nobody is within it.  Where the lease was taken away the same is waited for: what is under way fails at the fence,
and nothing of it must be left when this process goes on under another name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from twisted.internet.defer import Deferred

from ..sharing.leases import Leases, NotMine
from ..sharing.shares import ROOM_LEASES, share_of


class SharedRooms:
    """`Ownership` of a process that shares the rooms with others.

    Who remembers something of rooms is told of a share by `on_gained` before it is held, and by `on_lost` once
    nothing of it is written any more.
    """

    shared = True

    def __init__(self, leases: Leases, on_gained: Callable[[int], None], on_lost: Callable[[int], None]) -> None:
        self._leases = leases
        self._on_gained = on_gained
        self._on_lost = on_lost
        self._open: set[int] = set()
        self._writing: Counter[int] = Counter()
        self._idle: dict[int, list[Deferred[None]]] = {}
        leases.want(ROOM_LEASES, self._gained, self._lost)

    def holds(self, room_id: str) -> bool:
        share = share_of(room_id)
        return share in self._open and self._leases.holds(ROOM_LEASES[share])

    def holds_any(self) -> bool:
        return any(self._leases.holds(ROOM_LEASES[share]) for share in self._open)

    def require(self, room_id: str) -> None:
        if share_of(room_id) not in self._open:
            raise NotMine

    @contextmanager
    def writing(self, room_id: str) -> Iterator[None]:
        share = share_of(room_id)
        if share not in self._open:
            raise NotMine
        self._writing[share] += 1
        try:
            yield
        finally:
            self._writing[share] -= 1
            if not self._writing[share]:
                for waiting in self._idle.pop(share, ()):
                    waiting.callback(None)

    async def _gained(self, name: str) -> None:
        share = ROOM_LEASES.index(name)
        self._on_gained(share)
        self._open.add(share)

    async def _lost(self, name: str, kept: bool) -> None:
        """Given back or taken away: what is under way ends first, by itself or by the fence."""
        share = ROOM_LEASES.index(name)
        self._open.discard(share)
        if self._writing[share]:
            waiting: Deferred[None] = Deferred()
            self._idle.setdefault(share, []).append(waiting)
            await waiting
        self._on_lost(share)
