"""Our users invite those of other servers, whose server signs the invite before it is part of the room.

Server-Server API, "Inviting to a room".  That takes as long as the other server likes, so the invite
is made apart from the room's writer, which goes on meanwhile, and handed to it when it has come back.
"""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import Deferred, DeferredSemaphore, gatherResults
from twisted.logger import Logger

from ...matrix.errors import MatrixError
from ...matrix.events import receive_event
from ...matrix.handshakes import invite
from ...sharing.leases import NotMine
from ...world import Clock
from ..api import NewEvent, RoomAPI
from ..current import STRIPPED_STATE
from ..input import RoomWriter
from ..room import Arrival, Draft, Room
from .driver import Driver
from .reading import StateReader

log = Logger()

AT_ONCE = 5
"""Invites into one new room that are under way together."""


class Inviting:
    """Has invites signed."""

    def __init__(
        self, *, writer: RoomWriter, state: StateReader, driver: Driver, everywhere: RoomAPI, clock: Clock
    ) -> None:
        self._writer = writer
        self._everywhere = everywhere
        self._state = state
        self._driver = driver
        self._clock = clock

    async def invite(self, room: Room, draft: Draft) -> str:
        """Make an invite that another server signs, and send it to the room; returns its event's ID.

        Raises `MatrixError`: as the room does not allow it, as the other server refuses, or 502.
        """
        event = await self._writer.compose(room, draft)
        shown = await self._state(room, *STRIPPED_STATE, ("m.room.member", draft.sender))
        signed = await self._driver.run(invite(event, list(shown.values()), now_ms=self._clock.now_ms()))
        received = receive_event(signed.pdu, room.version)
        await self._writer.take(room, [Arrival(received, strict=True, distribute=True)])
        return event.event_id

    async def invite_all(self, room: Room, drafts: Sequence[Draft]) -> None:
        """Invite many into a new room, which is there even if some of them cannot be."""
        turns = DeferredSemaphore(AT_ONCE)

        async def one(draft: Draft) -> None:
            async with turns:
                try:
                    await self._invite_anywhere(room, draft)
                except MatrixError as error:
                    log.info("{user} could not be invited: {error}", user=draft.state_key, error=error.error)

        await gatherResults([Deferred.fromCoroutine(one(draft)) for draft in drafts], consumeErrors=True)

    async def _invite_anywhere(self, room: Room, draft: Draft) -> None:
        """As `invite`, though another process may have been given the room meanwhile."""
        try:
            await self.invite(room, draft)
        except NotMine:
            event = NewEvent(
                room_id=room.room_id,
                sender=draft.sender,
                type=draft.type,
                content=draft.content,
                state_key=draft.state_key,
            )
            await self._everywhere.send(event)
