"""Which servers take part in rooms, and which are kept out of them."""

from __future__ import annotations

from ..cache import Cache, CacheBudget
from ..database.engines import Database
from ..database.statements import Transaction
from ..matrix.acl import ServerACL
from ..matrix.events import Event
from .room import Rooms
from .servers import Servers
from .store import EventStore
from .tables import rooms as room_table
from .tables.names import Names

ACL = ("m.room.server_acl", "")


class Participation:
    """Answers the questions of `RoomAPI` about servers."""

    def __init__(
        self,
        *,
        database: Database,
        names: Names,
        rooms: Rooms,
        store: EventStore,
        servers: Servers,
        budget: CacheBudget,
    ) -> None:
        self._database = database
        self._names = names
        self._rooms = rooms
        self._store = store
        self._servers = servers
        self._lists: Cache[int, tuple[Event, ServerACL]] = Cache("server_acls", budget, lambda acl: 4000)

    async def room_servers(self, room_id: str) -> list[str]:
        """The servers with joined users; this one too if it is among them."""
        room = await self._rooms.known(room_id)
        return await self._servers.of(room.room_nid)

    async def servers_of_user(self, user_id: str) -> list[str]:
        """The servers that share a joined room with a user."""
        found: set[str] = set()
        for room_nid in await self._database.read(self._joined_rooms, user_id):
            found.update(await self._servers.of(room_nid))
        return list(found)

    async def _joined_rooms(self, txn: Transaction, user_id: str) -> list[int]:
        user_nid = await self._names.find(txn, user_id)
        return [] if user_nid is None else await room_table.joined_rooms(txn, user_nid)

    async def check_server(self, room_id: str, server: str) -> None:
        """Raise ``M_FORBIDDEN`` for a server that the room's list keeps out, ``M_NOT_FOUND`` for an unknown room."""
        room = await self._rooms.get(room_id)
        slot = self._names.remembered_slot(ACL)
        if slot is None:
            slot = await self._database.read(self._names.find_slot, ACL)
        event_nid = room.head.state.get(slot) if slot else None
        if event_nid is None:
            return
        event = (await self._store.by_nid([event_nid]))[event_nid]
        known = self._lists.get(event_nid)
        if known is None or known[0] is not event:
            # New, or the event has been redacted or was read anew.
            known = (event, ServerACL(event.content))
            self._lists.put(event_nid, known)
        known[1].check(server)
