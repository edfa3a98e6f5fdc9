"""Marking users as online because they sync.

Told on the stream ``OutputPresenceEvent`` when it makes a difference, and then
at most once a while; nothing where presence is switched off.  Client-Server
API, "Presence", and ``set_presence`` of ``GET /sync``.
"""

from __future__ import annotations

import msgspec

from ..user_api.api import Caller
from ..world import Clock
from .api import OUTPUT_PRESENCE_EVENT, Presence
from .feed import Queue
from .presence import PresenceBoard

REPEAT_MS = 60_000


class OnlineMarker:
    """Publishes the presence of users who sync, when ``enabled``."""

    def __init__(self, board: PresenceBoard, queue: Queue, clock: Clock, enabled: bool) -> None:
        self._board = board
        self._queue = queue
        self._clock = clock
        self._enabled = enabled

    async def mark(self, caller: Caller, state: str) -> None:
        """The caller syncs with ``set_presence`` `state`; ``offline`` leaves their presence as it is."""
        if not self._enabled or state == "offline":
            return
        now = self._clock.now_ms()
        known = self._board.get(caller.user_id)
        if known is not None and known.presence == state and now - known.last_active_ts < REPEAT_MS:
            return
        presence = Presence(
            user_id=caller.user_id,
            presence=state,
            last_active_ts=now,
            status_msg=known.status_msg if known is not None else None,
            currently_active=state == "online",
        )
        await self._queue.publish(OUTPUT_PRESENCE_EVENT, msgspec.msgpack.encode(presence))
