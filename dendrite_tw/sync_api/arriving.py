"""Tokens that clients come with: any process's, so this one may not have heard so far yet.

It waits until it has, and answers nothing less than the token.  Only what lies
beyond all that exists, as after an older database was restored, is cut off.
"""

from __future__ import annotations

from ..room_api.api import RoomAPI
from ..user_api.api import UserAPI
from ..world import Clock
from .positions import Heard
from .tokens import SyncToken

CATCH_UP_SECONDS = 5.0
"""How long a token is waited for before it is looked at whether there is so much at all."""

CLOCKS_DIFFER_US = 60_000_000
"""How far a position that is a time may lie ahead of this machine's clock."""


class Arriving:
    """Makes tokens fit to answer from."""

    def __init__(self, heard: Heard, rooms: RoomAPI, users: UserAPI, clock: Clock) -> None:
        self._heard = heard
        self._rooms = rooms
        self._users = users
        self._clock = clock

    async def take(self, since: SyncToken, seconds: float = 0.0) -> tuple[SyncToken, bool]:
        """The token, and whether this process has heard all up to it, after `seconds` (or a few) at the most.

        503 where it cannot be found out whether there is so much.
        """
        heard = self._heard
        if heard.has(since.room, since.user):
            return self._moments(since), True
        if not await heard.reach(since.room, since.user, CATCH_UP_SECONDS):
            room, user = await self._rooms.position(), await self._users.position()
            since = since._replace(
                room=min(since.room, max(room, heard.room)), user=min(since.user, max(user, heard.user))
            )
            seconds = max(0.0, seconds - CATCH_UP_SECONDS)
            return self._moments(since), await heard.reach(since.room, since.user, seconds)
        return self._moments(since), True

    def _moments(self, since: SyncToken) -> SyncToken:
        """Without what says nothing of typing and presence: times that have not come yet."""
        heard, limit = self._heard, self._clock.now_ms() * 1000 + CLOCKS_DIFFER_US
        if since.typing <= max(heard.typing, limit) and since.presence <= max(heard.presence, limit):
            return since
        return since._replace(
            typing=since.typing if since.typing <= max(heard.typing, limit) else 0,
            presence=since.presence if since.presence <= max(heard.presence, limit) else 0,
        )
