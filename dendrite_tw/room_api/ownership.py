"""Which rooms this process has: it alone writes to them, and may answer from what it remembers of them.

A process that has all rooms (`AllRooms`) need not ask.  Where several processes run, the rooms are shared under leases
(`shared_rooms.SharedRooms`); what is known of a room of another process is then held against the database each time,
and what is remembered of events and states is forgotten when another process tells that it has changed (`Changes`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Final, Protocol

import msgspec

from ..links.echoes import Echoes

TOLD_AT_ONCE: Final = 1000
"""Numbers that one echo names; if there are more, everything is forgotten."""


class Ownership(Protocol):
    """What the parts of the room component ask before they act."""

    shared: bool

    def holds(self, room_id: str) -> bool:
        """Whether this process has a room now."""

    def holds_any(self) -> bool:
        """Whether there are rooms that this process has, or could make."""

    def require(self, room_id: str) -> None:
        """Raise `NotMine` where this process does not have a room, so that the one that has it is asked."""

    def writing(self, room_id: str) -> AbstractContextManager[None]:
        """Around what is written because of what is known of a room: it is not given away meanwhile.

        `NotMine` where this process does not have it.  Within it little is waited for but the database.
        """


_NOTHING: Final = nullcontext()


class AllRooms:
    """A process that has all rooms."""

    shared = False

    def holds(self, room_id: str) -> bool:
        return True

    def holds_any(self) -> bool:
        return True

    def require(self, room_id: str) -> None:
        """It has it."""

    def writing(self, room_id: str) -> AbstractContextManager[None]:
        return _NOTHING


class Changes:
    """What processes tell each other of stored things that usually never change: events and states that did.

    ``kind`` names what changed; the numbers are those of the rows.  It is told after the commit and before the answer
    to whoever caused it, so nobody who has heard of the change is answered with what was before.
    """

    def __init__(
        self, kind: str, echoes: Echoes, forget: Callable[[Iterable[int]], None], forget_all: Callable[[], None]
    ) -> None:
        self._topic = f"rooms_{kind}"
        self._echoes = echoes
        self._forget = forget
        self._forget_all = forget_all
        echoes.hear(self._topic, self._hear)
        echoes.on_missed(forget_all)

    def tell(self, numbers: Iterable[int]) -> None:
        """These have changed, by this process."""
        told = list(numbers)
        self._echoes.tell(self._topic, msgspec.msgpack.encode(told if len(told) <= TOLD_AT_ONCE else None))

    def _hear(self, payload: bytes) -> None:
        told = msgspec.msgpack.decode(payload, type=list[int] | None)
        if told is None:
            self._forget_all()
        else:
            self._forget(told)
