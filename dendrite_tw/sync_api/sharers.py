"""Who is to be told of a user: those who sync here and share a room with them.

Of a user who syncs here too, the rooms are known; of others the room component
is asked, about all of them together who come up while a question is under way.
"""

from __future__ import annotations

from collections.abc import Iterable

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from ..matrix.errors import MatrixError
from ..room_api.api import RoomAPI
from .notifier import Notifier, UserStream

ASKED_AT_ONCE = 200

log = Logger()


class Sharers:
    """Finds the streams of those who share a room with a user."""

    def __init__(self, rooms: RoomAPI, notifier: Notifier) -> None:
        self._rooms = rooms
        self._notifier = notifier
        self._wanted: dict[str, list[Deferred[list[str] | None]]] = {}
        self._asking = False

    def at_once(self, user_id: str) -> Iterable[UserStream] | None:
        """The streams, the user's own among them, where their rooms are known here."""
        own = self._notifier.active(user_id)
        if own is None or own.loading is not None:
            return None
        return self._listeners(user_id, own.joined)

    async def of(self, user_id: str) -> Iterable[UserStream]:
        """The streams; all that there are where it cannot be found out, for they look themselves."""
        found: Deferred[list[str] | None] = Deferred()
        self._wanted.setdefault(user_id, []).append(found)
        if not self._asking:
            Deferred.fromCoroutine(self._ask_all())
        room_ids = await found
        return self._notifier.all() if room_ids is None else self._listeners(user_id, room_ids)

    def _listeners(self, user_id: str, room_ids: Iterable[str]) -> Iterable[UserStream]:
        streams: dict[UserStream, None] = {}
        own = self._notifier.active(user_id)
        if own is not None:
            streams[own] = None
        for room_id in room_ids:
            streams.update(dict.fromkeys(self._notifier.listeners(room_id)))
        return streams

    async def _ask_all(self) -> None:
        self._asking = True
        try:
            while self._wanted:
                await self._ask(list(self._wanted)[:ASKED_AT_ONCE])
        finally:
            self._asking = False

    async def _ask(self, user_ids: list[str]) -> None:
        waiting = [(user_id, self._wanted.pop(user_id)) for user_id in user_ids]
        rooms: dict[str, list[str]] | None = None
        try:
            rooms = await self._rooms.rooms_joined(user_ids)
        except MatrixError as error:
            log.warn("it cannot be found out with whom users share rooms: {error}", error=error.error)
        except Exception:
            log.failure("it cannot be found out with whom users share rooms")
        for user_id, waiters in waiting:
            for waiter in waiters:
                waiter.callback(None if rooms is None else rooms.get(user_id, []))
