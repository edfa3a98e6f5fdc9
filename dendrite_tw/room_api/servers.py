"""Which servers are in a room: those with joined users, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import orjson

from ..cache import Cache, CacheBudget
from ..database.engines import Database
from ..matrix.identifiers import server_name_of
from .steps import Change
from .tables import rooms as room_table

Counts = Counter[str]

UNTOLD = 1 << 30
"""Members that a server counts for where those are still missing: more than could leave until they are known."""

READS = 3
"""How often members are read anew because some changed meanwhile; what is read last is used and not kept."""


class Servers:
    """Remembers the servers of rooms; the room's writer keeps it up with changes of members."""

    def __init__(self, database: Database, budget: CacheBudget) -> None:
        self._database = database
        self._rooms: Cache[int, Counts] = Cache("room_servers", budget, lambda counts: 300 + 120 * len(counts))
        self._unseen = 0

    async def of(self, room_nid: int) -> list[str]:
        """The servers with joined users, this one among them; in no order."""
        return list(await self._counts(room_nid))

    async def largest(self, room_nid: int) -> list[str]:
        """The servers with joined users, those with the most of them first."""
        return [server for server, _ in (await self._counts(room_nid)).most_common()]

    async def has(self, room_nid: int, server_name: str) -> bool:
        """Whether a server has a joined user in the room."""
        return server_name in await self._counts(room_nid)

    async def _counts(self, room_nid: int) -> Counts:
        known = self._rooms.get(room_nid)
        for _ in range(READS):
            if known is not None:
                break
            unseen = self._unseen
            users = await self._database.read_long(room_table.joined_users, room_nid)
            counted = Counter(server_name_of(user_id) for user_id in users if ":" in user_id)
            partial = await self._database.read(room_table.partial_room, room_nid)
            if partial is not None:
                counted.update(dict.fromkeys(orjson.loads(partial.servers), UNTOLD))
            known = self._rooms.get(room_nid)
            if known is None and unseen == self._unseen:
                known = counted
                self._rooms.put(room_nid, known)
        return counted if known is None else known

    def changed(self, room_nid: int, changes: Iterable[Change]) -> None:
        """Members of a room have changed; called when that is on disk."""
        known = self._rooms.peek(room_nid)
        for change in changes:
            if change.slot[0] != "m.room.member" or ":" not in change.slot[1]:
                continue
            was = change.replaced is not None and change.replaced.membership == "join"
            now = change.event is not None and change.event.membership == "join"
            if was == now:
                continue
            if known is None:
                self._unseen += 1
                return
            server = server_name_of(change.slot[1])
            known[server] += now - was
            if known[server] <= 0:
                del known[server]

    def forget(self, room_nid: int) -> None:
        """Count anew when it is next asked for."""
        self._rooms.pop(room_nid)
