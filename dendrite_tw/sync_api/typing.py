"""Who is typing where: in memory only, and forgotten when the time is over.

A position is the sequence number of the newest message heard, shifted to leave
room for counting the times that ran out since.  Client-Server API, "Typing
Notifications".
"""

from __future__ import annotations

from collections.abc import Callable

import orjson
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from ..world import Clock
from .api import Typing

EXPIRY_BITS = 10
TIMEOUT_LIMIT_MS = 120_000
ROOMS_KEPT = 50_000
USERS_KEPT = 500
"""Users who can be typing in one room."""

SILENCE_TOLD_MS = 10_000
"""For how long after the last one stopped it is told to clients that begin anew, too, that nobody types: they may show
somebody from before."""


class TypingRoom:
    """The users who type in a room, each with the time when that ends, and when the list last changed."""

    __slots__ = ("changed", "changed_at", "event", "until")

    def __init__(self) -> None:
        self.until: dict[str, int] = {}
        self.changed = 0
        self.changed_at = 0
        self.event: bytes | None = None

    def json(self) -> bytes:
        """The ``m.typing`` event, made once for all who see it."""
        if self.event is None:
            self.event = orjson.dumps({"type": "m.typing", "content": {"user_ids": list(self.until)}})
        return self.event


class TypingBoard:
    """All typing of this moment; ``changed(room_id, position)`` is called when a list changes."""

    def __init__(self, time: IReactorTime, clock: Clock, changed: Callable[[str, int], None]) -> None:
        self.position = 0
        self._time = time
        self._clock = clock
        self._changed = changed
        self._rooms: dict[str, TypingRoom] = {}
        self._timer: IDelayedCall | None = None

    def hear(self, typing: Typing, sequence: int) -> None:
        """Take in a message of the stream, whose number is `sequence`."""
        self.position = max(self.position + 1, sequence << EXPIRY_BITS)
        now = self._clock.now_ms()
        left = min(typing.timeout_ms, TIMEOUT_LIMIT_MS) - max(0, now - (typing.ts or now))
        room = self._rooms.get(typing.room_id)
        before = list(room.until) if room is not None else []
        if typing.typing and left > 0:
            if room is None:
                room = self._room(typing.room_id)
            if typing.user_id in room.until or len(room.until) < USERS_KEPT:
                room.until[typing.user_id] = now + left
                self._expire_by(now + left)
        elif room is not None:
            room.until.pop(typing.user_id, None)
        if room is not None and list(room.until) != before:
            self._tell(typing.room_id, room)

    def _room(self, room_id: str) -> TypingRoom:
        """A new list; the room that was silent for longest makes way where there are too many."""
        if len(self._rooms) >= ROOMS_KEPT:
            quiet = next((key for key, room in self._rooms.items() if not room.until), next(iter(self._rooms)))
            del self._rooms[quiet]
        room = self._rooms[room_id] = TypingRoom()
        return room

    def _tell(self, room_id: str, room: TypingRoom) -> None:
        room.changed = self.position
        room.changed_at = self._clock.now_ms()
        room.event = None
        self._changed(room_id, self.position)

    def _expire_by(self, end: int) -> None:
        """See to it that the timer runs out at `end` (milliseconds) at the latest."""
        seconds = max(0.0, (end - self._clock.now_ms()) / 1000)
        if self._timer is not None and self._timer.active():
            if self._timer.getTime() <= self._time.seconds() + seconds:
                return
            self._timer.cancel()
        self._timer = self._time.callLater(seconds, self._expire)

    def _expire(self) -> None:
        now = self._clock.now_ms()
        for room_id, room in list(self._rooms.items()):
            over = [user for user, end in room.until.items() if end <= now]
            if over:
                for user in over:
                    del room.until[user]
                self.position += 1
                self._tell(room_id, room)
        ends = [end for room in self._rooms.values() for end in room.until.values()]
        if ends:
            self._expire_by(min(ends))

    def since(self, room_id: str, after: int) -> bytes | None:
        """The ``m.typing`` event of a room if its list changed after `after`.

        0 asks for one that is not empty, or became so only just now.
        """
        room = self._rooms.get(room_id)
        if room is None or room.changed <= after:
            return None
        if after == 0 and not room.until and room.changed_at + SILENCE_TOLD_MS < self._clock.now_ms():
            return None
        return room.json()

    def stop(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
