"""Events as other servers sent them are read, and their signatures checked.

Steps 1 to 3 of "Checks performed on receipt of a PDU" (Server-Server API).
"""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from ..federation_api.api import FederationAPI, KeysWanted
from ..matrix.admission import Keys, VerifyKey, check_signatures, key_requests
from ..matrix.event_format import EventFormatError
from ..matrix.events import ReceivedEvent, receive_event
from ..matrix.signing import SignatureError
from ..world import Clock
from .adoption import is_storable
from .room import Room

AT_ONCE = 50
"""Events that are read or checked before the reactor may do something else."""


class Verifying:
    """Reads what is sent."""

    def __init__(self, federation: FederationAPI, clock: Clock, time: IReactorTime) -> None:
        self._federation = federation
        self._clock = clock
        self._time = time

    async def read(
        self, room: Room, pdus: Sequence[bytes], refused: dict[str, str], *, limited: bool = True
    ) -> list[ReceivedEvent]:
        """The events among `pdus` that are of the room and signed as they must be, each once, in their order.

        Why others are dropped is put into `refused`, by ID where it can be told.  All keys are asked for at once.
        ``limited`` as of `receive_event`.
        """
        return await self._signed(await self.parse(room, pdus, refused, limited=limited), refused)

    async def parse(
        self, room: Room, pdus: Sequence[bytes], refused: dict[str, str], *, limited: bool = True
    ) -> list[ReceivedEvent]:
        """As `read`, without a look at the signatures."""
        received: dict[str, ReceivedEvent] = {}
        for index, pdu in enumerate(pdus):
            await self.pause(index)
            try:
                one = receive_event(pdu, room.version, limited=limited)
            except EventFormatError as error:
                refused[f"#{index}"] = str(error)
                continue
            if one.event.room_id != room.room_id:
                refused[one.event.event_id] = "the event belongs to another room"
            elif not is_storable(one.event):
                refused[one.event.event_id] = "the event has NUL characters where no database takes them"
            else:
                received.setdefault(one.event.event_id, one)
        return list(received.values())

    async def _signed(self, received: list[ReceivedEvent], refused: dict[str, str]) -> list[ReceivedEvent]:
        keys = await self._keys(received)
        now, signed = self._clock.now_ms(), []
        for index, one in enumerate(received):
            await self.pause(index)
            try:
                check_signatures(one, keys, now_ms=now)
            except SignatureError as error:
                refused[one.event.event_id] = str(error)
            else:
                signed.append(one)
        return signed

    async def _keys(self, received: list[ReceivedEvent]) -> Keys:
        question = key_requests(received)
        if question is None:
            return {}
        wanted = [KeysWanted(one.server_name, list(one.key_ids), one.ts) for one in question.requests]
        found = await self._federation.fetch_keys(wanted)
        return {(one.server_name, one.key_id): VerifyKey(one.key, one.valid_until_ts, one.expired_ts) for one in found}

    async def pause(self, index: int) -> None:
        """Let others have the reactor, before the work goes on at `index`."""
        if index and not index % AT_ONCE:
            await deferLater(self._time, 0, lambda: None)
