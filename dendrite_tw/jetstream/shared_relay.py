"""One relay for the outbox of a component that several processes write to.

The process with the lease ``relay`` publishes for all.  The others hand it their rows when these are committed and
what follows from them in memory is done, on a subject that only the holder listens to.  Rows of several processes
come in no order; each names the one before it, so they are put in order again (`Ordering`).

Messages may be lost, and a process may die between its commit and its message.  A row that is missing for `PATIENCE`
seconds although a later one was told, and a tail that was on disk when `SharedRelay` last looked, are read from the
database.

How far durable consumers have come is told to all processes (`Positions`), for each of them may be given
the relay: until it hears of a consumer a relay publishes what that one may have seen already, and deletes nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, Final, Protocol

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from ..database.engines import Unavailable
from ..links.echoes import Echoes
from .client import Handle, QueueClient
from .errors import UnavailableError
from .outbox import OutboxRelay, OutboxRow
from .wire import Msg

PATIENCE: Final = 0.5
LOOKING: Final = 1.0
RETELLING: Final = 10.0
"""How often positions of consumers are told again, for processes that have come since."""

AHEAD: Final = 1000
"""Rows that may wait for one before them; what is more is read from the database in its turn."""
BATCH_BYTES: Final = 200_000
"""How much of rows goes into one message; what is larger is told without its content."""

log = Logger()


class Row(Protocol):
    """A committed row of the outbox, and the id of the one before it."""

    @property
    def id(self) -> int: ...
    @property
    def previous(self) -> int: ...
    @property
    def stream(self) -> str: ...
    @property
    def subject_suffix(self) -> str: ...
    @property
    def headers(self) -> bytes: ...
    @property
    def payload(self) -> bytes: ...


class SharedOutbox(Protocol):
    """The outbox of a component, as one process has it."""

    name: str
    on_commit: Callable[[Any], None]

    async def newest(self) -> int: ...

    async def read_after(self, after: int, count: int, upto: int | None = None) -> Any: ...

    async def delete_upto(self, upto: int) -> None: ...


class Told(msgspec.Struct, array_like=True):
    """A row on its way to the relay; without ``row`` it is to be read from the database."""

    id: int
    previous: int
    row: OutboxRow | None = None


class Consumed(msgspec.Struct, array_like=True):
    """How far a durable consumer has come in the outbox of a component."""

    outbox: str
    durable: str
    upto: int


CONSUMED: Final = "consumed"


class Positions:
    """How far the durable consumers of an outbox have come, in whatever process each of them is."""

    def __init__(self, outbox: str, echoes: Echoes, time: IReactorTime) -> None:
        self.reached: dict[str, int] = {}
        self.on_reached: Callable[[str, int], None] = lambda durable, upto: None
        self._outbox = outbox
        self._echoes = echoes
        self._time = time
        self._own: dict[str, int] = {}
        """Those that this process has told of."""
        self._retelling: IDelayedCall | None = None
        echoes.hear(CONSUMED, self._hear)

    def tell(self, durable: str, upto: int) -> None:
        """A durable consumer, which is in this process, has stored this position with its effects."""
        if upto <= self._own.get(durable, -1):
            return
        self._own[durable] = upto
        self._reach(durable, upto)
        self._echoes.tell(CONSUMED, msgspec.msgpack.encode(Consumed(self._outbox, durable, upto)))
        if self._retelling is None:
            self._retelling = self._time.callLater(RETELLING, self._retell)

    def _retell(self) -> None:
        self._retelling = self._time.callLater(RETELLING, self._retell)
        for durable, upto in self._own.items():
            self._echoes.tell(CONSUMED, msgspec.msgpack.encode(Consumed(self._outbox, durable, upto)))

    def _hear(self, payload: bytes) -> None:
        told = msgspec.msgpack.decode(payload, type=Consumed)
        if told.outbox == self._outbox:
            self._reach(told.durable, told.upto)

    def _reach(self, durable: str, upto: int) -> None:
        if upto > self.reached.get(durable, -1):
            self.reached[durable] = upto
            self.on_reached(durable, upto)

    def stop(self) -> None:
        """Tell nothing more."""
        if self._retelling is not None:
            self._retelling.cancel()
            self._retelling = None


class Ordering:
    """Puts the rows of several processes in order.

    ``position`` is the id up to which all rows may be published.  ``give`` gets the next rows of those that came
    whole, in order; where rows are to be read first it gets none, and knows by `position` how far to read.
    """

    def __init__(self, time: IReactorTime, give: Callable[[list[OutboxRow]], None], position: int = 0) -> None:
        self.position = position
        self._give = give
        self._time = time
        self._ahead: dict[int, Told] = {}
        """What came before the row that it follows, by the id of that one."""
        self._timer: IDelayedCall | None = None

    def hear(self, told: Iterable[Told]) -> None:
        """Rows are committed."""
        for one in sorted(told, key=lambda one: one.id):
            if one.id <= self.position:
                continue
            if one.previous > self.position:
                if len(self._ahead) < AHEAD:
                    self._ahead[one.previous] = one
                continue
            self._next(one)
        self._wait()

    def reach(self, upto: int) -> None:
        """Everything up to this id has been on disk for a while, whoever was to tell of it."""
        if upto <= self.position:
            return
        self.position = upto
        for previous in [previous for previous in self._ahead if self._ahead[previous].id <= upto]:
            del self._ahead[previous]
        self._give([])
        following = min((one.previous for one in self._ahead.values()), default=None)
        if following is not None and following <= upto:
            self._next(self._ahead.pop(following))
        self._wait()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _next(self, told: Told | None) -> None:
        """This one follows, and perhaps some that waited for it."""
        rows: list[OutboxRow] = []
        while told is not None:
            self.position = told.id
            if told.row is None:
                if rows:
                    self._give(rows)
                rows = []
                self._give(rows)
            else:
                rows.append(told.row)
            told = self._ahead.pop(self.position, None)
        if rows:
            self._give(rows)

    def _wait(self) -> None:
        """While something waits for a row that does not come, the time runs."""
        if not self._ahead:
            self.stop()
        elif self._timer is None:
            self._timer = self._time.callLater(PATIENCE, self._give_up, min(self._ahead))

    def _give_up(self, upto: int) -> None:
        """What was missing when the time began to run is on disk, for something follows it."""
        self._timer = None
        self.reach(upto)
        self._wait()


class SharedRelay:
    """The relay of one component, as each of its processes has it; holds the lease of the name ``relay``."""

    def __init__(
        self,
        outbox: SharedOutbox,
        client: QueueClient,
        echoes: Echoes,
        time: IReactorTime,
        durables: Mapping[str, Iterable[str]],
    ) -> None:
        self._outbox = outbox
        self._client = client
        self._time = time
        self.positions = Positions(outbox.name, echoes, time)
        self.positions.on_reached = self._reached
        self._durables = durables
        self._subject = client.subject("Outbox", outbox.name)
        self._untold: list[Told] = []
        self._telling: IDelayedCall | None = None
        self._relay: OutboxRelay | None = None
        self._ordering: Ordering | None = None
        self._listening: Handle | None = None
        self._heard: Callable[[list[Told]], None] = lambda told: None
        self._seen = 0
        self._timers: list[IDelayedCall] = []
        outbox.on_commit = self.committed

    # --- what this process writes ---

    def committed(self, rows: Iterable[Row]) -> None:
        """Rows of this process are on disk."""
        told = [
            Told(row.id, row.previous, OutboxRow(row.id, row.stream, row.subject_suffix, row.headers, row.payload))
            for row in rows
        ]
        if self._ordering is not None:
            self._ordering.hear(told)
            return
        self._untold += told
        if self._telling is None:
            self._telling = self._time.callLater(0, self._tell)

    def _tell(self) -> None:
        """Hand what was committed to whoever has the relay; what is lost on the way is found on disk."""
        self._telling = None
        told, self._untold = self._untold, []
        if self._ordering is not None:
            self._ordering.hear(told)
            return
        batch: list[Told] = []
        size = 0
        for one in told:
            assert one.row is not None
            length = len(one.row.payload) + len(one.row.headers)
            if length > BATCH_BYTES:
                one, length = Told(one.id, one.previous), 0
            if size + length > BATCH_BYTES:
                self._client.tell(self._subject, msgspec.msgpack.encode(batch))
                batch, size = [], 0
            batch.append(one)
            size += length
        if batch:
            self._client.tell(self._subject, msgspec.msgpack.encode(batch))

    # --- the lease ---

    async def gained(self, name: str) -> None:
        """Publish for all from now on."""
        try:
            await self._take_up()
        except BaseException:
            await self.lost(name, False)
            raise

    async def _take_up(self) -> None:
        self._relay = relay = OutboxRelay(
            self._outbox.name, self._read, self._outbox.delete_upto, self._client, self._time, self._durables
        )
        for durable, upto in self.positions.reached.items():
            relay.consumed(durable, upto)
        heard: list[Told] = []
        self._heard = heard.extend
        self._listening = self._client.subscribe(self._subject, self._hear)
        with suppress(UnavailableError):
            await self._client.settled()
        # What is committed from here on is told to this process.
        self._seen = await self._outbox.newest()
        self._ordering = Ordering(self._time, self._offer, self._seen)
        self._heard = self._ordering.hear
        await relay.start()
        self._ordering.hear(heard)
        self._look_later()

    async def lost(self, name: str, kept: bool) -> None:
        """Publish no more.  What was under way may still arrive: the next one publishes it again, by the same id."""
        if self._listening is not None:
            self._client.unsubscribe(self._listening)
        if self._ordering is not None:
            self._ordering.stop()
        if self._relay is not None:
            self._relay.stop()
        for timer in self._timers:
            if timer.active():
                timer.cancel()
        self._listening = self._ordering = self._relay = None
        self._timers.clear()

    async def _read(self, after: int, count: int) -> list[OutboxRow]:
        ordering = self._ordering
        if ordering is None:
            return []
        rows: list[OutboxRow] = await self._outbox.read_after(after, count, ordering.position)
        return rows

    def _offer(self, rows: list[OutboxRow]) -> None:
        if self._relay is not None and self._ordering is not None:
            if rows:
                self._relay.offer(rows)
            else:
                self._relay.notify(self._ordering.position)

    def _hear(self, op: Msg) -> None:
        self._heard(msgspec.msgpack.decode(op.payload, type=list[Told]))

    def _look_later(self) -> None:
        self._timers = [self._time.callLater(LOOKING, self._look)]

    def _look(self) -> None:
        if self._ordering is not None:
            self._look_later()
            _detach(self._look_now(self._ordering), self._outbox.name)

    async def _look_now(self, ordering: Ordering) -> None:
        """What was on disk at the last look, and nobody has told of, is published."""
        try:
            newest = await self._outbox.newest()
        except Unavailable:
            return
        if ordering is self._ordering:
            ordering.reach(self._seen)
            self._seen = newest

    def _reached(self, durable: str, upto: int) -> None:
        if self._relay is not None:
            self._relay.consumed(durable, upto)

    def stop(self) -> None:
        """Tell nothing more; what waits to be told is told now."""
        if self._telling is not None:
            self._telling.cancel()
            self._tell()
        self.positions.stop()


def _detach(work: Awaitable[None], name: str) -> None:
    async def run() -> None:
        await work

    Deferred.fromCoroutine(run()).addErrback(
        lambda failure: log.failure("The tail of outbox {name} cannot be read", failure, name=name)
    )
