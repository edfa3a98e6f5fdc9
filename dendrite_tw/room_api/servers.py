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

STATES_REMEMBERED = 10_000

READS = 3
"""How often members are read anew because some changed meanwhile; what is read last is used and not kept."""


class Servers:
    """Remembers the servers of rooms; the room's writer keeps it up with changes of members."""

    def __init__(self, database: Database, budget: CacheBudget, shared: bool = False) -> None:
        self._database = database
        self._shared = shared
        self._rooms: Cache[int, Counts] = Cache("room_servers", budget, lambda counts: 300 + 120 * len(counts))
        self._unseen = 0
        self._states: dict[int, room_table.StateRow] = {}
        """Where other processes write too: the state of a room for which what is remembered holds."""

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
        if self._shared:
            return await self._counts_of(room_nid)
        known = self._rooms.get(room_nid)
        for _ in range(READS):
            if known is not None:
                break
            unseen = self._unseen
            counted = await self._counted(room_nid)
            known = self._rooms.get(room_nid)
            if known is None and unseen == self._unseen:
                known = counted
                self._rooms.put(room_nid, known)
        return counted if known is None else known

    async def _counted(self, room_nid: int) -> Counts:
        users = await self._database.read_long(room_table.joined_users, room_nid)
        counted = Counter(server_name_of(user_id) for user_id in users if ":" in user_id)
        partial = await self._database.read(room_table.partial_room, room_nid)
        if partial is not None:
            counted.update(dict.fromkeys(orjson.loads(partial.servers), UNTOLD))
        return counted

    async def _counts_of(self, room_nid: int) -> Counts:
        """As `_counts`, where what is remembered holds for one state of the room, and others may have changed that."""
        row = await self._database.read(room_table.state_of, room_nid)
        if row is None:
            return Counter()
        known = self._rooms.get(room_nid)
        if known is None or self._states.get(room_nid) != row:
            # What is read later is at least of this state; if it is of a newer one it is read again next time.
            known = await self._counted(room_nid)
            if len(self._states) > STATES_REMEMBERED:
                self._states.clear()
            self._rooms.put(room_nid, known)
            self._states[room_nid] = row
        return known

    def changed(self, room_nid: int, changes: Iterable[Change], before_nid: int, after_nid: int) -> None:
        """Members of a room have changed from one state to the next, by their numbers; called when that is on disk."""
        known = self._rooms.peek(room_nid)
        if self._shared and not self._follows(room_nid, before_nid, after_nid):
            known = None
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

    def _follows(self, room_nid: int, before_nid: int, after_nid: int) -> bool:
        """Whether what is remembered is of the state before, and so will be of the one after it."""
        row = self._states.get(room_nid)
        if row is None or row.snapshot_nid != before_nid:
            return False
        self._states[room_nid] = row._replace(snapshot_nid=after_nid)
        return True

    def forget(self, room_nid: int) -> None:
        """Count anew when it is next asked for."""
        self._rooms.pop(room_nid)
