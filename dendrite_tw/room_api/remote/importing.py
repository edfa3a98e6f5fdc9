"""A room that was joined through another server becomes one of this server's.

`Adoption` stores it, in pieces; what our users were invited to until then is now part of the room's state.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.logger import Logger

from ...database.statements import Transaction
from ...matrix.events import receive_event
from ...matrix.handshakes import Joined
from ...world import Clock
from ..adoption import Adoption, PartialJoin
from ..tables import elsewhere as table
from .stubs import Stubs

log = Logger()


class Importing:
    """Takes rooms over."""

    def __init__(self, *, adoption: Adoption, stubs: Stubs, clock: Clock, on_partial: Callable[[str], None]) -> None:
        self._adoption = adoption
        self._stubs = stubs
        self._clock = clock
        self._on_partial = on_partial

    async def take(self, joined: Joined) -> None:
        """Store the room, and have the rest of it fetched if members were left out."""
        started = self._clock.now_ms()
        join = joined.event
        room = await self._stubs.room(join.room_id, joined.version)
        state = dict(joined.state)
        if joined.partial:
            # Who authorises the join is a member now, though left out of the state.
            named = set(join.auth_events)
            for event in joined.events:
                if event.event_id in named and event.type == "m.room.member" and event.state_key is not None:
                    state.setdefault((event.type, event.state_key), event)

        async def settle(txn: Transaction, room_nid: int) -> None:
            await table.delete_invites(txn, room_nid)

        partial = PartialJoin(joined.resident, list(joined.servers_in_room)) if joined.partial else None
        await self._adoption.adopt(
            room, receive_event(join.pdu, joined.version), state, joined.events, partial=partial, also=settle
        )
        log.info(
            "joined {room} through {server}: {count} events stored in {seconds:.1f} seconds{rest}",
            room=join.room_id,
            server=joined.resident,
            count=len(joined.events),
            seconds=(self._clock.now_ms() - started) / 1000,
            rest=", members follow" if joined.partial else "",
        )
        if joined.partial:
            self._on_partial(join.room_id)
