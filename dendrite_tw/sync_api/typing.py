"""Who is typing where: in memory only, and forgotten when the time is over.

A position is the time of the newest message heard, in microseconds by the
queue's clock, so it is the same in all processes.  A process that is alone
counts on where somebody's time is over; where there are several, that is told on
the stream too, by which all lists change in the same order.  Client-Server API, "Typing
Notifications".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import orjson
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from ..world import Clock
from .api import RoomTyping, Typing

TIMEOUT_LIMIT_MS = 120_000
ROOMS_KEPT = 50_000
USERS_KEPT = 500
"""Users who can be typing in one room."""

ROOMS_TOLD = 10_000
"""Rooms of which another process is told at once."""

SILENCE_TOLD_MS = 10_000
"""For how long after the last one stopped it is told to clients that begin anew, too, that nobody types: they may show
somebody from before."""

TOLD_AGAIN_MS = 5_000
"""How soon it is told again that somebody's time is over where that was not heard."""

TellOver = Callable[[Typing], None]
"""Tells on the stream that somebody's time is over."""


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

    def __init__(
        self,
        time: IReactorTime,
        clock: Clock,
        changed: Callable[[str, int], None],
        tell_over: TellOver | None = None,
    ) -> None:
        """Without `tell_over` this is the only process, and nobody has to be told."""
        self.position = 0
        self._time = time
        self._clock = clock
        self._changed = changed
        self._tell_over = tell_over
        self._rooms: dict[str, TypingRoom] = {}
        self._timer: IDelayedCall | None = None

    def hear(self, typing: Typing, position: int) -> None:
        """Take in a message of the stream."""
        self.position = max(self.position + 1, position)
        now = self._clock.now_ms()
        end = min((typing.ts or now) + min(typing.timeout_ms, TIMEOUT_LIMIT_MS), now + TIMEOUT_LIMIT_MS)
        room = self._rooms.get(typing.room_id)
        before = list(room.until) if room is not None else []
        if typing.typing and end > now:
            if room is None:
                room = self._room(typing.room_id)
            if typing.user_id in room.until or len(room.until) < USERS_KEPT:
                room.until[typing.user_id] = end
                self._expire_by(end)
        elif room is not None and (not typing.ended or room.until.get(typing.user_id, 0) <= typing.ended):
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
            over = {user: end for user, end in room.until.items() if end <= now}
            if not over:
                continue
            if self._tell_over is not None:
                for user, end in over.items():
                    self._tell_over(Typing(room_id=room_id, user_id=user, typing=False, ended=end))
                continue
            for user in over:
                del room.until[user]
            self.position += 1
            self._tell(room_id, room)
        ends = [end for room in self._rooms.values() for end in room.until.values()]
        if ends:
            self._expire_by(min(end if end > now else now + TOLD_AGAIN_MS for end in ends))

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

    # --- for other processes ---

    def now(self) -> list[RoomTyping]:
        """The lists that are not empty, or became so only just now; those that changed last if there are too many."""
        silent = self._clock.now_ms() - TIMEOUT_LIMIT_MS
        known = [
            RoomTyping(room_id=room_id, until=dict(room.until), changed=room.changed, changed_at=room.changed_at)
            for room_id, room in self._rooms.items()
            if room.until or room.changed_at >= silent
        ]
        known.sort(key=lambda room: room.changed)
        return known[-ROOMS_TOLD:]

    def take(self, known: Iterable[RoomTyping]) -> None:
        """Take up what another process knows, where it heard of a later change than this one."""
        for theirs in known:
            room = self._rooms.get(theirs.room_id)
            if room is not None and room.changed >= theirs.changed:
                continue
            if room is None:
                room = self._room(theirs.room_id)
            room.until = dict(list(theirs.until.items())[:USERS_KEPT])
            room.changed, room.changed_at, room.event = theirs.changed, theirs.changed_at, None
            self.position = max(self.position, theirs.changed)
            if room.until:
                self._expire_by(min(room.until.values()))

    def stop(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
