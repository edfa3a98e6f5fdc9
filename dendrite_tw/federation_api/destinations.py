"""Which servers can be reached, and when those that cannot are tried again.

Dendrite's ``federation_api.send_max_retries``: after the n-th failure in a row a server is left in peace for 2^n
seconds; after that many it is given up until it is heard of.  Both survive a restart.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import msgspec

from ..database.engines import Database
from ..database.statements import Transaction
from ..world import Clock
from .api import BackingOff
from .tables.unreachable import (
    KEPT_MS,
    LOADED,
    UnreachableRow,
    forget_unreachable,
    store_reachable,
    store_unreachable,
    unreachable_servers,
)

LONGEST_WAIT_MS = 24 * 3_600_000
"""No wait between two attempts is longer, however many failed."""

ERROR_LIMIT = 300
"""Characters that are kept of what was wrong."""

REMEMBERED = LOADED
"""How many unreachable servers are kept in mind; those that failed first are forgotten first."""


class Destinations:
    """Remembers the servers that did not answer."""

    def __init__(self, database: Database, clock: Clock, max_retries: int) -> None:
        self._database = database
        self._clock = clock
        self._max_retries = max_retries
        self._failing: OrderedDict[str, UnreachableRow] = OrderedDict()
        self.on_reached: Callable[[str], None] = lambda server_name: None
        """Is told when a server that did not answer does, or is heard of: what waits for it may go out."""

    def prepare(self) -> None:
        """Read what is stored, before the reactor runs."""
        rows = self._database.prepare(unreachable_servers, LOADED)
        self._failing = OrderedDict((row.server_name, row) for row in reversed(rows))

    def __len__(self) -> int:
        """How many servers are known not to answer."""
        return len(self._failing)

    def check(self, server_name: str) -> None:
        """Raise `BackingOff` if the server is not to be tried now."""
        row = self._failing.get(server_name)
        if row is None:
            return
        if row.given_up:
            raise BackingOff(server_name, None)
        wait = row.retry_ts - self._clock.now_ms()
        if wait > 0:
            raise BackingOff(server_name, wait)

    def failures(self, server_name: str) -> int:
        """How many attempts failed in a row."""
        row = self._failing.get(server_name)
        return 0 if row is None else row.failures

    def is_given_up(self, server_name: str) -> bool:
        """Whether it is not tried any more until it is heard of."""
        row = self._failing.get(server_name)
        return row is not None and bool(row.given_up)

    def trouble(self, server_name: str) -> UnreachableRow | None:
        """What is remembered of a server that did not answer; `None` of one that did."""
        return self._failing.get(server_name)

    def failing(self) -> list[str]:
        """The servers that did not answer."""
        return list(self._failing)

    async def failed(self, server_name: str, error: str = "") -> None:
        """An attempt failed, `error` says how.  Of several that were under way together only the first counts."""
        now = self._clock.now_ms()
        before = self._failing.get(server_name)
        if before is not None and (before.given_up or now < before.retry_ts):
            return
        failures = (0 if before is None else before.failures) + 1
        wait = min(1000 << min(failures, 32), LONGEST_WAIT_MS)
        row = UnreachableRow(
            server_name, failures, now + wait, int(failures > self._max_retries), now, error[:ERROR_LIMIT]
        )
        self._failing[server_name] = row
        self._failing.move_to_end(server_name)
        forgotten = [self._failing.popitem(last=False)[0]] if len(self._failing) > REMEMBERED else []
        await self._database.write(_store_failure, row, forgotten)

    async def reached(self, server_name: str) -> None:
        """The server answered, or was heard of."""
        if self._failing.pop(server_name, None) is not None:
            self.on_reached(server_name)
            await self._database.write(store_reachable, [(server_name,)])

    async def forgive(self, server_name: str) -> None:
        """Forget that a server did not answer, though nothing was heard of it."""
        if self._failing.pop(server_name, None) is not None:
            await self._database.write(store_reachable, [(server_name,)])

    async def prune(self) -> None:
        """Forget servers that nobody tried for long."""
        before = self._clock.now_ms() - KEPT_MS
        for name in [name for name, row in self._failing.items() if row.failed_ts < before]:
            del self._failing[name]
        await self._database.write(forget_unreachable, before)


async def _store_failure(txn: Transaction, row: UnreachableRow, forgotten: list[str]) -> None:
    """Store that a server did not answer, and forget others: strangers can have any number of names tried."""
    await store_unreachable(txn, [msgspec.structs.astuple(row)])
    await store_reachable(txn, [(name,) for name in forgotten])
