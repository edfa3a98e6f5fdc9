"""Events that other servers sent, on their way to their rooms.

An event that was answered for is on disk.  Each room has its turn apart from the others: its events are handed to the
room component in the order in which they came, a few at a time, and leave the disk when that has taken or refused
them.  A crash repeats the last few, which is harmless.  So many rooms are worked on at the same time; one that takes
long (its server fetches what is missing) gives up its place to others and goes on beside them.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import Any

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from ..database.engines import Database, Unavailable
from ..database.statements import Transaction
from ..matrix.errors import MatrixError, limit_exceeded
from ..room_api.api import RoomAPI
from ..world import Clock
from .tables.staging import (
    ANSWERS_KEPT_MS,
    PRUNED_AT_ONCE,
    StagedRow,
    prune_answers,
    stage,
    staged_of_room,
    store_answer,
    unstage,
    waiting,
)

log = Logger()

BATCH = 50
BATCH_BYTES = 256 << 10
"""How many events, and bytes of them, a room is handed together."""

ROOMS_AT_ONCE = 32
SLOW_SECONDS = 5.0
"""After so long a room's turn no longer keeps others waiting."""

SLOW_ROOMS = 500
"""How many rooms may take long at the same time; beyond that the others wait for them."""

WAITING_OF_SERVER = 2_000
WAITING_IN_ALL = 100_000
"""How many events may wait on disk; servers that send more are asked to come back."""

BUSY_MS = 10_000

ATTEMPTS = 3
"""How often an event is tried that makes the room component fail in a way that nobody foresaw."""

LONGEST_WAIT = 60.0
"""Seconds between two attempts."""


class Staged(msgspec.Struct, frozen=True):
    """An event to be staged."""

    room_id: str
    pdu: bytes


class Inbox:
    """Keeps what came and hands it to the rooms."""

    def __init__(
        self,
        database: Database,
        rooms: RoomAPI,
        time: IReactorTime,
        clock: Clock,
        observe: Callable[[str, int], None] = lambda outcome, count: None,
    ) -> None:
        """`observe` is told what became of how many events: ``accepted``, ``refused`` or ``dropped``."""
        self._database = database
        self._rooms = rooms
        self._time = time
        self._clock = clock
        self._observe = observe
        self._waiting: dict[str, Counter[str]] = {}
        self._of_server: Counter[str] = Counter()
        self._ready: deque[str] = deque()
        self._turns: dict[str, _Turn] = {}
        self._pump_call: Any = None
        self._running = False

    @property
    def waiting(self) -> int:
        """How many events wait."""
        return self._of_server.total()

    # --- in ---

    def check(self, origin: str) -> None:
        """Raise ``M_LIMIT_EXCEEDED`` if too much waits already."""
        if self._of_server[origin] >= WAITING_OF_SERVER or self.waiting >= WAITING_IN_ALL:
            raise limit_exceeded(BUSY_MS)

    async def take(self, origin: str, txn_id: str, events: Sequence[Staged], answer: bytes) -> None:
        """Store events and the answer to their transaction, together.

        Without events nothing is stored: who repeats such a transaction is answered alike, and may do so as often as
        they like without filling the disk.
        """
        if not events:
            return
        rows = [(event.room_id, origin, event.pdu) for event in events]
        counts = Counter(event.room_id for event in events)

        async def store(txn: Transaction) -> None:
            await store_answer(txn, origin, txn_id, self._clock.now_ms(), answer)
            await stage(txn, rows)
            txn.after_commit(lambda: self._add(origin, counts))

        try:
            await self._database.write(store)
        except Unavailable:
            # They may be on disk nevertheless: the rooms' turns will show.
            self._add(origin, counts)
            raise

    def _add(self, origin: str, counts: Mapping[str, int]) -> None:
        for room_id, count in counts.items():
            if room_id not in self._waiting:
                self._waiting[room_id] = Counter()
                self._ready.append(room_id)
            self._waiting[room_id][origin] += count
            self._of_server[origin] += count
        self._pump_soon()

    def _take_off(self, room_id: str, origin: str, count: int) -> None:
        """So many events wait no longer."""
        for counts in (self._waiting[room_id], self._of_server):
            counts[origin] -= count
            if counts[origin] <= 0:
                del counts[origin]

    # --- life ---

    async def start(self) -> None:
        """Go on with what an earlier run left."""
        self._running = True
        for row in await self._database.read_long(waiting):
            self._add(row.origin, {row.room_id: row.count})
        self._pump_soon()

    def stop(self) -> None:
        """Hand over no more; what was begun is begun again after the next start."""
        self._running = False
        if self._pump_call is not None and self._pump_call.active():
            self._pump_call.cancel()
        for turn in list(self._turns.values()):
            turn.cancel()

    async def prune(self) -> None:
        """Forget old answers."""
        before = self._clock.now_ms() - ANSWERS_KEPT_MS
        while await self._database.write(prune_answers, before, PRUNED_AT_ONCE) >= PRUNED_AT_ONCE:
            pass

    # --- out ---

    def _pump_soon(self) -> None:
        if self._running and self._ready and (self._pump_call is None or not self._pump_call.active()):
            self._pump_call = self._time.callLater(0, self._pump)

    def _pump(self) -> None:
        slow = sum(turn.is_slow for turn in self._turns.values())
        free = ROOMS_AT_ONCE - (len(self._turns) - min(slow, SLOW_ROOMS))
        while free > 0 and self._ready and self._running:
            free -= 1
            room_id = self._ready.popleft()
            turn = self._turns[room_id] = _Turn(self._time, self._pump_soon)
            turn.begin(self._turn(room_id), lambda room_id=room_id: self._over(room_id))  # type: ignore[misc]

    def _over(self, room_id: str) -> None:
        """A room's turn is over; if more waits, it joins the end of the row."""
        del self._turns[room_id]
        if self._waiting[room_id]:
            self._ready.append(room_id)
        else:
            del self._waiting[room_id]
        self._pump_soon()

    async def _turn(self, room_id: str) -> None:
        """Hand a room some events, the first first; again and again if that fails for a reason that may pass."""
        attempt = 0
        while self._running:
            attempt += 1
            try:
                known = Counter(self._waiting[room_id])
                rows = _batch(await self._database.read(staged_of_room, room_id, 1 if attempt > 1 else BATCH))
                if rows:
                    await self._hand_over(room_id, rows, attempt)
                    await self._database.write(unstage, [row.staged_id for row in rows])
                self._settle(room_id, rows, known)
                return
            except MatrixError as error:
                log.info("events of {room_id} have to wait: {error}", room_id=room_id, error=error.error)
            except CancelledError:
                raise
            except Exception:
                log.failure("events of {room_id} could not be taken; they are tried again", room_id=room_id)
            await _pause(self._time, min(2.0**attempt, LONGEST_WAIT))

    async def _hand_over(self, room_id: str, rows: Sequence[StagedRow], attempt: int) -> None:
        """Raise what may pass: the server's own trouble, and at first also what nobody foresaw."""
        try:
            refused = await self._rooms.receive(rows[0].origin, room_id, [row.pdu for row in rows])
        except MatrixError as error:
            if error.status >= 500:
                raise
            self._observe("dropped", len(rows))
            log.debug("events of {room_id} are dropped: {error}", room_id=room_id, error=error.error)
        except CancelledError:
            raise
        except Exception:
            if attempt < ATTEMPTS:
                raise
            self._observe("dropped", len(rows))
            log.failure("an event of {room_id} is dropped after several attempts", room_id=room_id)
        else:
            self._observe("refused", len(refused))
            self._observe("accepted", max(0, len(rows) - len(refused)))

    def _settle(self, room_id: str, rows: Sequence[StagedRow], known: Mapping[str, int]) -> None:
        """These events are done with; where there were none, none wait of those that were `known` before."""
        if rows:
            self._take_off(room_id, rows[0].origin, len(rows))
            return
        for origin, count in known.items():
            self._take_off(room_id, origin, count)


class _Turn:
    """Work on one room, which may take long."""

    def __init__(self, time: IReactorTime, on_slow: Callable[[], None]) -> None:
        self.is_slow = False
        self._on_slow = on_slow
        self._timer: Any = time.callLater(SLOW_SECONDS, self._slow)
        self._working: Deferred[None] | None = None

    def begin(self, work: Any, on_end: Callable[[], None]) -> None:
        self._working = Deferred.fromCoroutine(work)
        self._working.addBoth(self._ended, on_end)

    def _slow(self) -> None:
        self.is_slow = True
        self._on_slow()

    def _ended(self, result: Any, on_end: Callable[[], None]) -> None:
        if self._timer.active():
            self._timer.cancel()
        on_end()

    def cancel(self) -> None:
        if self._working is not None:
            self._working.cancel()


def _batch(rows: Sequence[StagedRow]) -> list[StagedRow]:
    """The rows at the front that are of one server and not too many bytes; at least one."""
    size = 0

    def fits(row: StagedRow) -> bool:
        nonlocal size
        size += len(row.pdu)
        return row is rows[0] or (row.origin == rows[0].origin and size <= BATCH_BYTES)

    return list(takewhile(fits, rows))


def _pause(time: IReactorTime, seconds: float) -> Deferred[None]:
    pause: Deferred[None] = Deferred(lambda _: timer.cancel())
    timer: Any = time.callLater(seconds, pause.callback, None)
    return pause
