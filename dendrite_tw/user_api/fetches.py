"""Lists of devices that other servers are being asked for, and what is heard of them until the answer is stored.

An answer may be older than what was told while it was on its way, so it is held against that.  Transactions run in
the order in which they were begun, so what is noted in memory before one is begun is not overtaken.  Processes that
share a database note it there, in the transaction that what was told leads to, for each may hear of any list; a
`Fetch` in memory then only says who waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from twisted.internet.defer import Deferred

from ..database.engines import Database
from ..database.statements import Transaction
from ..world import Clock, Random
from .tables import remote_fetches as table

Heard = dict[str, int]
"""Users who still share rooms to up to which stream ID something was told of their lists; -1 where nothing was."""


class Fetch:
    """Lists that another server is asked for, and what is heard of them meanwhile."""

    def __init__(self, id: str, user_ids: Iterable[str]) -> None:
        self.id = id
        self.user_ids = frozenset(user_ids)
        self.newest: dict[str, int] = {}
        """Users of whom something was told: up to which stream ID."""
        self.ended: set[str] = set()
        """Users who ceased to share rooms."""
        self._waiting: list[Deferred[None]] = []

    def heard(self, user_ids: Iterable[str]) -> Heard:
        return {user_id: self.newest.get(user_id, -1) for user_id in user_ids if user_id not in self.ended}

    def finished(self) -> Deferred[None]:
        """Fires when the answer is stored, or there is none."""
        waiting: Deferred[None] = Deferred()
        self._waiting.append(waiting)
        return waiting

    def finish(self) -> None:
        for waiting in self._waiting:
            waiting.callback(None)


class Fetches:
    """All that are under way in this process."""

    def __init__(self, database: Database, clock: Clock, random: Random) -> None:
        self._database = database
        self._clock = clock
        self._random = random
        self._under_way: set[Fetch] = set()

    async def begin(self, user_ids: Iterable[str]) -> Fetch:
        """Note what happens to these lists from now on, until `finish`."""
        fetch = Fetch(self._random.token(20) if self._database.shared else "", user_ids)
        if self._database.shared and fetch.user_ids:
            now = self._clock.now_ms()
            rows = [(fetch.id, user_id, now) for user_id in sorted(fetch.user_ids)]
            await self._database.write(table.begin, rows)
        self._under_way.add(fetch)
        return fetch

    async def finish(self, fetch: Fetch) -> None:
        self._under_way.discard(fetch)
        try:
            if self._database.shared and fetch.user_ids:
                await self._database.write(table.finish, sorted(fetch.user_ids), fetch.id)
        finally:
            fetch.finish()

    def of(self, user_ids: set[str]) -> list[Fetch]:
        """Who asks in this process for lists of any of these users now."""
        return [fetch for fetch in self._under_way if not fetch.user_ids.isdisjoint(user_ids)]

    # --- what is told meanwhile: before the transaction that it leads to, and in it ---

    def note(self, user_id: str, stream_id: int) -> None:
        for fetch in self._under_way:
            if user_id in fetch.user_ids:
                fetch.newest[user_id] = max(stream_id, fetch.newest.get(user_id, 0))

    def note_end(self, user_ids: Iterable[str]) -> None:
        for fetch in self._under_way:
            fetch.ended.update(fetch.user_ids.intersection(user_ids))

    async def store(self, txn: Transaction, user_id: str, stream_id: int) -> None:
        if self._database.shared:
            await table.told(txn, user_id, stream_id)

    async def store_end(self, txn: Transaction, user_ids: Sequence[str]) -> None:
        if self._database.shared:
            await table.end(txn, user_ids)

    # --- and what was told, when the answer is to be stored ---

    async def heard(self, txn: Transaction, fetch: Fetch, noted: Heard) -> Heard:
        """What was told of the lists of the users in `noted`, which is what was noted of it in memory."""
        if not self._database.shared:
            return noted
        rows = await table.heard(txn, fetch.id, sorted(noted))
        return {row.user_id: row.newest for row in rows if not row.ended}

    async def fetched(self, txn: Transaction, user_ids: Sequence[str]) -> list[str]:
        """Those of these users whose lists any process asks for."""
        if self._database.shared:
            return await table.fetched(txn, user_ids)
        return []

    def fetched_here(self, user_ids: Sequence[str]) -> set[str]:
        """Those of these users whose lists this process asks for."""
        return {user_id for fetch in self._under_way for user_id in fetch.user_ids.intersection(user_ids)}

    async def prune(self) -> None:
        """Forget those of processes that are gone."""
        if self._database.shared:
            await self._database.write(table.prune, self._clock.now_ms() - table.LIFETIME_MS)
