"""Commit, then speak: what a component's transactions left in its ``outbox`` table goes to the queue.

A row is written in the transaction that causes it.  The relay publishes rows in the order of their ids,
many at a time, and forgets a row only when every durable consumer of its stream has *stored* a position at
or beyond it.  So the queue holds nothing that is not also in a database: it may be deleted, and the relay
fills it again from the lowest position.

**Order.**  Consumers pass over ids at or below their position, so within a stream no row may overtake
another, not even if one publication fails and the next does not.  Each publication therefore names the
sequence that it expects the stream to be at (``Nats-Expected-Last-Sequence``): when one fails, those behind
it fail as well.  The relay then waits until nothing is under way, and starts again at the first row that is
not confirmed.

Between streams no such order can be had, for a failure of one stops none of the others.  Each message says
which row came before it (``Outbox-Previous``), so that who hears several streams can put them in order.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final

import msgspec
import orjson
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from dendrite_tw.database.engines import Unavailable
from dendrite_tw.jetstream.client import QueueClient
from dendrite_tw.jetstream.errors import ApiError, UnavailableError
from dendrite_tw.jetstream.messages import PubAck

WINDOW: Final = 512
"""Publications under way at a time."""
READ_ROWS: Final = 256
PRUNE_SECONDS: Final = 1.0
FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 10.0

log = Logger(namespace="dendrite_tw.jetstream.outbox")


class OutboxRow(msgspec.Struct, frozen=True):
    """A row of the ``outbox`` table; ``headers`` is a JSON object of strings, or empty."""

    id: int
    stream: str
    subject_suffix: str
    headers: bytes
    payload: bytes


class OutboxRelay:
    """Publishes one component's outbox.

    ``name`` names the outbox in message ids; it never changes.  ``durables`` says which durable consumers
    each stream has: their positions, told by `consumed`, decide what may be deleted.
    """

    def __init__(
        self,
        name: str,
        read_after: Callable[[int, int], Awaitable[list[OutboxRow]]],
        delete_upto: Callable[[int], Awaitable[None]],
        publish: QueueClient,
        clock: IReactorTime,
        durables: Mapping[str, Iterable[str]] | None = None,
        *,
        window: int = WINDOW,
    ) -> None:
        self.name = name
        self.pause_seconds = 0.0
        """The present pause after failures; 0 when all is well."""
        self._read_after = read_after
        self._delete_upto = delete_upto
        self._client = publish
        self._clock = clock
        self._window = window
        self._durables = {stream: tuple(names) for stream, names in (durables or {}).items()}
        self._positions = {name: 0 for names in self._durables.values() for name in names}
        self._newest: dict[str, int] = {}
        """The highest id that was published to each stream."""
        self._queued: dict[str, int] = {}
        """The highest id that each stream was seen to hold at the start."""
        self._next_seq: dict[str, int] = {}
        self._alone: set[str] = set()
        """Streams whose first publication is under way: its answer tells their sequence."""
        self._under_way: dict[int, None] = {}
        self._failed_at = 0
        self._cursor = 0
        """All rows up to this id have been taken up."""
        self._known = 0
        """The highest id that is known to be committed."""
        self._pruned = 0
        self._behind = True
        """Whether there may be rows after the cursor that nobody told of."""
        self._reading = False
        self._started = False
        self._surveyed = False
        self._stopped = False
        self._resume: IDelayedCall | None = None
        self._prune_timer: IDelayedCall | None = None
        self._pruning = False

    # --- life ---

    async def start(self) -> None:
        """Publish what is not in the queue yet.  The consumers' stored positions must have been told
        before.
        """
        self._started = True
        self._client.on_ready.append(self._reconnected)
        if self._client.ready:
            await self._survey()

    def stop(self) -> None:
        """Publish no more; what is under way may arrive."""
        self._stopped = True
        if self._reconnected in self._client.on_ready:
            self._client.on_ready.remove(self._reconnected)
        for timer in (self._resume, self._prune_timer):
            if timer is not None and timer.active():
                timer.cancel()
        self._resume = self._prune_timer = None

    def _reconnected(self) -> None:
        _detach(self._survey(), f"outbox {self.name} cannot be resumed")

    async def _survey(self) -> None:
        """Make sure of the consumers, see how far the queue already has this outbox, publish what is behind
        that.

        Without its consumers a stream would drop what is published to it.
        """
        self._surveyed = False
        self._behind = True
        self._queued.clear()
        self._next_seq.clear()
        try:
            for stream, names in self._durables.items():
                for name in names:
                    await self._client.declare_consumer(stream, name)
                await self._look_at(stream)
        except (UnavailableError, ApiError) as error:
            log.warn("Outbox {name} waits: {error}", name=self.name, error=str(error))
            if not self._stopped and self._client.ready:
                self._resume = self._clock.callLater(LONGEST_PAUSE, self._reconnected)
            return
        self._surveyed = True
        if not self._under_way and not self._stopped:
            self._cursor = self._pruned
            await self._read()

    async def _look_at(self, stream: str) -> None:
        message = await self._client.last_message(stream)
        origin, _, number = (message.headers.get("Nats-Msg-Id", "") if message else "").rpartition(":")
        if origin == self.name and number.isdecimal():
            self._queued[stream] = int(number)

    # --- what the component says ---

    def notify(self, upto: int) -> None:
        """Rows up to this id are committed."""
        if upto > self._known:
            self._known = upto
            self._go_on()

    def offer(self, rows: list[OutboxRow]) -> None:
        """These rows, the next after those offered before, are committed: they need not be read back.

        What was read back before it was offered is passed over: a read sees a commit at once, its offer comes later.
        """
        rows = [row for row in rows if row.id > self._cursor]
        if not rows:
            return
        is_next = self._cursor >= self._known and not (self._behind or self._failed_at)
        self._known = max(self._known, rows[-1].id)
        if is_next and self._is_open() and self._may_send(rows):
            for row in rows:
                self._publish(row)
        else:
            self._go_on()

    def _is_open(self) -> bool:
        return self._surveyed and not self._stopped and self._client.ready

    def _may_send(self, rows: list[OutboxRow]) -> bool:
        if len(self._under_way) + len(rows) > self._window or self._alone:
            return False
        return len(rows) == 1 or all(row.stream in self._next_seq for row in rows)

    def knows(self, durable: str) -> bool:
        """Whether a durable consumer is one of those that hold back the pruning here."""
        return durable in self._positions

    def consumed(self, durable: str, upto: int) -> None:
        """A durable consumer has stored this position with its effects."""
        if upto > self._positions.get(durable, -1):
            self._positions[durable] = upto
            self._want_prune()

    # --- publishing ---

    def _go_on(self) -> None:
        if (
            self._is_open()
            and not self._reading
            and not self._failed_at
            and (self._behind or self._cursor < self._known)
            and not self._alone
            and len(self._under_way) <= self._window // 2
        ):
            _detach(self._read(), f"outbox {self.name} cannot be read")

    async def _read(self) -> None:
        """Read rows back and publish them, as long as there are any and there is room."""
        if self._reading or self._stopped:
            return
        self._reading = self._behind = True
        try:
            while not (self._failed_at or self._alone) and len(self._under_way) < self._window:
                known = self._known
                rows = await self._read_after(self._cursor, READ_ROWS)
                if not rows:
                    self._cursor = max(self._cursor, known)
                    self._behind = self._known > self._cursor
                    if self._behind:
                        continue
                    break
                for row in rows:
                    if self._failed_at or self._stopped or self._alone:
                        break
                    self._publish(row)
        except Unavailable as error:
            log.warn("Outbox {name} cannot be read: {error}", name=self.name, error=str(error))
            self._fail(self._cursor + 1)
        except Exception:
            log.failure("Outbox {name} cannot be read", name=self.name)
            self._fail(self._cursor + 1)
        self._reading = False
        if self._failed_at:
            self._settled()

    def _is_needed(self, row: OutboxRow) -> bool:
        """Whether some durable consumer may not have seen the row, and the queue does not hold it."""
        if row.id <= self._queued.get(row.stream, 0):
            return False
        names = self._durables.get(row.stream)
        return not names or any(self._positions[name] < row.id for name in names)

    def _publish(self, row: OutboxRow) -> None:
        previous, self._cursor = self._cursor, row.id
        self._known = max(self._known, row.id)
        self._newest[row.stream] = row.id
        if not self._is_needed(row):
            self._want_prune()
            return
        headers: dict[str, str] = orjson.loads(row.headers) if row.headers else {}
        headers["Outbox-Id"] = str(row.id)
        headers["Outbox-Previous"] = str(previous)
        expected = self._next_seq.get(row.stream)
        if expected is None:
            self._alone.add(row.stream)
        else:
            headers["Nats-Expected-Last-Sequence"] = str(expected - 1)
            self._next_seq[row.stream] = expected + 1
        self._under_way[row.id] = None
        self._client.send(
            row.stream,
            row.payload,
            subject_suffix=row.subject_suffix,
            headers=headers,
            msg_id=f"{self.name}:{row.id}",
        ).addCallbacks(self._confirmed, self._refused, (row,), errbackArgs=(row,))

    def _confirmed(self, ack: PubAck, row: OutboxRow) -> None:
        self._under_way.pop(row.id, None)
        if row.stream in self._alone:
            self._alone.discard(row.stream)
            if not ack.duplicate:
                self._next_seq[row.stream] = ack.seq + 1
        elif ack.duplicate:
            # The stream did not move: those behind this one expect too much, and will say so.
            self._next_seq.pop(row.stream, None)
        if not self._failed_at:
            self.pause_seconds = 0.0
        self._want_prune()
        self._settled()

    def _refused(self, failure: Failure, row: OutboxRow) -> None:
        self._under_way.pop(row.id, None)
        self._alone.discard(row.stream)
        if not self._failed_at and not isinstance(failure.value, ApiError | UnavailableError):
            log.failure("Outbox {name}: row {id} cannot be published", failure, name=self.name, id=row.id)
        self._fail(row.id)
        self._settled()

    def _fail(self, row_id: int) -> None:
        self._failed_at = min(self._failed_at or row_id, row_id)
        self._behind = True
        self._next_seq.clear()

    def _settled(self) -> None:
        """One publication less is under way."""
        if self._stopped:
            return
        if not self._failed_at:
            self._go_on()
        elif not self._under_way and self._resume is None:
            self.pause_seconds = min(max(self.pause_seconds * 2, FIRST_PAUSE), LONGEST_PAUSE)
            self._resume = self._clock.callLater(self.pause_seconds, self._start_again)

    def _start_again(self) -> None:
        self._resume = None
        self._cursor = min(self._cursor, self._failed_at - 1)
        self._failed_at = 0
        if self._is_open():
            # Otherwise the next survey goes on from here.
            _detach(self._read(), f"outbox {self.name} cannot be read")

    # --- forgetting ---

    @property
    def low_water(self) -> int:
        """All rows up to this id may be deleted: published, and consumed by all who are to consume them."""
        low = self._cursor
        if self._under_way:
            low = min(low, next(iter(self._under_way)) - 1)
        if self._failed_at:
            low = min(low, self._failed_at - 1)
        for stream, newest in self._newest.items():
            for name in self._durables.get(stream, ()):
                position = self._positions[name]
                if position < newest:
                    low = min(low, position)
        return low

    def _want_prune(self) -> None:
        if self._prune_timer is None and not self._stopped and self._started:
            self._prune_timer = self._clock.callLater(PRUNE_SECONDS, self._prune_now)

    def _prune_now(self) -> None:
        self._prune_timer = None
        if not self._pruning:
            _detach(self._prune(), f"outbox {self.name} cannot be pruned")

    async def _prune(self) -> None:
        low = self.low_water
        if low <= self._pruned:
            return
        self._pruning = True
        try:
            await self._delete_upto(low)
            self._pruned = low
        except Unavailable as error:
            log.warn("Outbox {name} cannot be pruned: {error}", name=self.name, error=str(error))
        finally:
            self._pruning = False


def _detach(work: Awaitable[None], what: str) -> None:
    """Let it go on by itself; a failure is logged."""

    async def run() -> None:
        await work

    Deferred.fromCoroutine(run()).addErrback(lambda failure: log.failure("{what}", failure, what=what))
