"""What the sync component is told by others, and what its processes ask each other.

Typing and presence live in memory only: whoever learns of one publishes it on
a stream, and the time at which the stream took the message is the typing or
presence part of a sync token.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from ..links.routing import routed

OUTPUT_TYPING_EVENT = "OutputTypingEvent"
OUTPUT_PRESENCE_EVENT = "OutputPresenceEvent"


class Typing(msgspec.Struct, frozen=True, kw_only=True):
    """A user began to type in a room, for ``timeout_ms`` from ``ts`` on, or stopped.

    With ``ended`` it tells that this time is over, of one that ends then (milliseconds) or earlier: sync processes tell
    each other, so that all agree on who types; servers of others see to it themselves.
    """

    room_id: str
    user_id: str
    typing: bool
    timeout_ms: int = 0
    ts: int = 0
    ended: int = 0


class Presence(msgspec.Struct, frozen=True, kw_only=True):
    """A user's presence: ``online``, ``unavailable`` or ``offline``; ``last_active_ts`` in milliseconds."""

    user_id: str
    presence: str
    last_active_ts: int
    status_msg: str | None = None
    currently_active: bool = False


class RoomTyping(msgspec.Struct, frozen=True, kw_only=True):
    """Who types in a room, each with the time when that ends, and the place and time of the last change."""

    room_id: str
    until: dict[str, int]
    changed: int
    changed_at: int


class NowKnown(msgspec.Struct, frozen=True, kw_only=True):
    """What the process named ``by`` knows of this moment; ``presences`` have their positions.

    One that is not ``settled`` has only just begun to listen, and may know less than others.
    """

    by: str
    settled: bool
    typing: list[RoomTyping] = []
    presences: list[tuple[int, Presence]] = []


class SyncAPI(Protocol):
    """What a sync process asks the others when it begins to listen: the streams keep nothing of before."""

    @routed(repeat=True)
    async def typing_now(self) -> NowKnown:
        """Who types where."""

    @routed(repeat=True)
    async def presences_after(self, position: int, limit: int) -> NowKnown:
        """The first `limit` of those whose presence changed after `position`, in the order of their positions."""
