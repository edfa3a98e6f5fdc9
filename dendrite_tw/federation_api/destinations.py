"""Which servers can be reached, and when those that cannot are tried again.

Dendrite's ``federation_api.send_max_retries``: after the n-th failure in a row a server is left in peace for 2^n
seconds; after that many it is given up until it is heard of.  Both survive a restart.

Where several processes share the database each knows what all of them found out: it is told by an echo after it was
stored.  Who missed one leaves a server in peace that is there, or asks one that is not, and no more than that.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from ..database.engines import Database
from ..database.statements import Transaction
from ..links.echoes import Echoes, NoEchoes
from ..matrix.errors import MatrixError
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

log = Logger()

LONGEST_WAIT_MS = 24 * 3_600_000
"""No wait between two attempts is longer, however many failed."""

ERROR_LIMIT = 300
"""Characters that are kept of what was wrong."""

REMEMBERED = LOADED
"""How many unreachable servers are kept in mind; those that failed first are forgotten first."""

REACH = "federation_reach"
"""The topic by which processes tell each other `_Told`."""


class _Told(msgspec.Struct, frozen=True, array_like=True):
    """A server did not answer (``row`` says more), or is thought to; ``now``: an administrator wants it tried."""

    server_name: str
    row: UnreachableRow | None = None
    now: bool = False


_TOLD = msgspec.msgpack.Decoder(_Told)


class Destinations:
    """Remembers the servers that did not answer."""

    def __init__(self, database: Database, clock: Clock, max_retries: int, echoes: Echoes | None = None) -> None:
        self._database = database
        self._clock = clock
        self._max_retries = max_retries
        self._failing: OrderedDict[str, UnreachableRow] = OrderedDict()
        self.on_reached: Callable[[str], None] = lambda server_name: None
        """Is told when a server that did not answer does, or is heard of: what waits for it may go out."""
        self.on_forgiven: Callable[[str], object] = lambda server_name: None
        """Is told when another process was asked to have a server tried."""
        self._echoes: Echoes = echoes or NoEchoes()
        self._changes: dict[str, UnreachableRow | None] | None = None
        """What changed since `load` began, where it is under way."""
        self._echoes.hear(REACH, self._heard)
        self._echoes.on_missed(self._missed)

    def prepare(self) -> None:
        """Read what is stored, before the reactor runs."""
        self._failing = _by_name(self._database.prepare(unreachable_servers, LOADED))

    async def load(self) -> None:
        """Read again what is stored, where other processes change it."""
        if not self._database.shared or self._changes is not None:
            return
        self._changes = {}
        try:
            rows = await self._database.read_long(unreachable_servers, LOADED)
        except MatrixError as error:
            log.info("what other processes know of unreachable servers cannot be read: {error}", error=error.error)
            rows = None
        changes, self._changes = self._changes, None
        if rows is not None:
            self._failing = _by_name(rows)
            for server_name, row in changes.items():
                self._note(server_name, row)

    def _missed(self) -> None:
        """Perhaps not all was heard that others told."""
        if self._echoes.hearing:
            Deferred.fromCoroutine(self.load())

    def _heard(self, payload: bytes) -> None:
        told = _TOLD.decode(payload)
        was_failing = told.server_name in self._failing
        self._note(told.server_name, told.row)
        if told.now:
            self.on_forgiven(told.server_name)
        elif told.row is None and was_failing:
            self.on_reached(told.server_name)

    def _note(self, server_name: str, row: UnreachableRow | None) -> list[str]:
        """Keep in mind what is known of a server now; returns the names of those that had to make room."""
        if self._changes is not None:
            self._changes[server_name] = row
        if row is None:
            self._failing.pop(server_name, None)
            return []
        self._failing[server_name] = row
        self._failing.move_to_end(server_name)
        return [self._failing.popitem(last=False)[0]] if len(self._failing) > REMEMBERED else []

    def _tell(self, told: _Told) -> None:
        self._echoes.tell(REACH, msgspec.msgpack.encode(told))

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
        await self._database.write(_store_failure, row, self._note(server_name, row))
        self._tell(_Told(server_name, row))

    async def reached(self, server_name: str) -> None:
        """The server answered, or was heard of."""
        if server_name in self._failing:
            self._note(server_name, None)
            self.on_reached(server_name)
            await self._database.write(store_reachable, [(server_name,)])
            self._tell(_Told(server_name))

    async def forgive(self, server_name: str) -> None:
        """Forget that a server did not answer, though nothing was heard of it."""
        if server_name in self._failing:
            self._note(server_name, None)
            await self._database.write(store_reachable, [(server_name,)])
        self._tell(_Told(server_name, now=True))

    async def prune(self) -> None:
        """Forget servers that nobody tried for long."""
        before = self._clock.now_ms() - KEPT_MS
        for name in [name for name, row in self._failing.items() if row.failed_ts < before]:
            del self._failing[name]
        await self._database.write(forget_unreachable, before)


def _by_name(rows: Sequence[UnreachableRow]) -> OrderedDict[str, UnreachableRow]:
    """Rows with the newest failure first, as they are kept: the oldest failure first."""
    return OrderedDict((row.server_name, row) for row in reversed(rows))


async def _store_failure(txn: Transaction, row: UnreachableRow, forgotten: list[str]) -> None:
    """Store that a server did not answer, and forget others: strangers can have any number of names tried."""
    await store_unreachable(txn, [msgspec.structs.astuple(row)])
    await store_reachable(txn, [(name,) for name in forgotten])
