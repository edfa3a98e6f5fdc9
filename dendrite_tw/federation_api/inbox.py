"""Events that other servers sent, on their way to their rooms.

An event that was answered for is on disk.  Each room has its turn apart from the others: its events are handed to the
room component in the order in which they came, a few at a time, and leave the disk when that has taken or refused
them.  A crash repeats the last few, which is harmless.  So many rooms are worked on at the same time; one that takes
long (its server fetches what is missing) gives up its place to others and goes on beside them.

Where several processes share the database, each takes what others send, and a room's events are handed over by the
process that has the room's share (`shares`).  That one is told of what another has stored, and looks every second for
what nobody told it of: somebody may have been killed.  The rows say in which order events came, wherever that was.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import Any

import msgspec
from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from ..database.engines import Database, Unavailable
from ..database.statements import Transaction
from ..links.echoes import Echoes, NoEchoes
from ..matrix.errors import MatrixError, limit_exceeded
from ..room_api.api import RoomAPI
from ..sharing.leases import Leases, Sole
from ..world import Clock
from .shares import Shares
from .tables.staging import (
    ANSWERS_KEPT_MS,
    PRUNED_AT_ONCE,
    StagedRow,
    answer_to,
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
"""How many events may wait on disk, and what servers share if there are more than fifty of them: whoever has more than
that is asked to come back.  So those who send least are served to the last.
"""

WAITING_AT_MOST = 200_000
"""With so many nobody is served: those with the least may be many, too."""

BUSY_MS = 10_000

STAGED = "federation_inbox"
"""The topic by which a process says that it stored events: of which server, and how many for which rooms."""

SURVEY_SECONDS = 1.0
SURVEY_PAUSE = 20
"""How often the table is looked through, and how many times as long as that took passes before the next time."""

DRAIN_SECONDS = 1.0
"""How long a room's turn may go on after the room became another process's; that one repeats it otherwise."""

ATTEMPTS = 3
"""How often an event is tried that makes the room component fail in a way that nobody foresaw."""

LONGEST_WAIT = 60.0
"""Seconds between two attempts."""


_TOLD = msgspec.msgpack.Decoder(tuple[str, dict[str, int]])


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
        echoes: Echoes | None = None,
        leases: Leases | None = None,
    ) -> None:
        """`observe` is told what became of how many events: ``accepted``, ``refused`` or ``dropped``.

        `leases` say which rooms are this process's, where the database is shared.
        """
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
        self._shares = Shares("i")
        self._elsewhere: Counter[str] = Counter()
        """How many events of each server waited for rooms of other processes when the table was last looked through."""
        self._echoes: Echoes = echoes or NoEchoes()
        self._survey_call: Any = None
        if database.shared:
            self._shares.lease(leases or Sole(), self._gained, self._lost)
            self._echoes.hear(STAGED, self._heard)

    @property
    def waiting(self) -> int:
        """How many events wait for rooms that are this process's."""
        return self._of_server.total()

    # --- in ---

    def check(self, origin: str) -> None:
        """Raise ``M_LIMIT_EXCEEDED`` if too much waits already."""
        servers = max(len(self._of_server), len(self._elsewhere)) + 1
        share = min(WAITING_OF_SERVER, WAITING_IN_ALL // servers)
        own = self._of_server[origin] + self._elsewhere[origin]
        if own >= max(1, share) or self.waiting + self._elsewhere.total() >= WAITING_AT_MOST:
            raise limit_exceeded(BUSY_MS)

    async def take(self, origin: str, txn_id: str, events: Sequence[Staged], answer: bytes) -> bytes:
        """Store events and the answer to their transaction, together; returns the answer.

        That is another one if the transaction, which its server repeated, was taken meanwhile by another process.
        Without events nothing is stored: who repeats such a transaction is answered alike, and may do so as often as
        they like without filling the disk.
        """
        if not events:
            return answer
        rows = [(event.room_id, origin, event.pdu) for event in events]
        counts = Counter(event.room_id for event in events)

        async def store(txn: Transaction) -> bytes:
            if not await store_answer(txn, origin, txn_id, self._clock.now_ms(), answer):
                return await answer_to(txn, origin, txn_id) or answer
            await stage(txn, rows)
            txn.after_commit(lambda: self._stored(origin, counts))
            return answer

        try:
            return await self._database.write(store)
        except Unavailable:
            # They may be on disk nevertheless: the rooms' turns will show.
            self._stored(origin, counts)
            raise

    def _stored(self, origin: str, counts: Mapping[str, int]) -> None:
        """These are on disk: see to them, or tell those who do."""
        others = {room_id: count for room_id, count in counts.items() if not self._shares.mine(room_id)}
        if others:
            self._elsewhere[origin] += sum(others.values())
            self._echoes.tell(STAGED, msgspec.msgpack.encode((origin, others)))
            counts = {room_id: count for room_id, count in counts.items() if room_id not in others}
        self._add(origin, counts)

    def _add(self, origin: str, counts: Mapping[str, int]) -> None:
        for room_id, count in counts.items():
            if room_id not in self._waiting:
                self._waiting[room_id] = Counter()
                self._ready.append(room_id)
            self._waiting[room_id][origin] += count
            self._of_server[origin] += count
        if counts:
            self._pump_soon()

    def _take_off(self, room_id: str, origin: str, count: int) -> None:
        """So many events wait no longer."""
        for counts in (self._waiting[room_id], self._of_server):
            counts[origin] -= count
            if counts[origin] <= 0:
                del counts[origin]

    # --- life ---

    async def start(self) -> None:
        """Go on with what an earlier run left, or another process."""
        self._running = True
        if self._database.shared:
            self._survey_in(SURVEY_SECONDS)
            return
        for row in await self._database.read_long(waiting):
            self._add(row.origin, {row.room_id: row.count})

    def stop(self) -> None:
        """Hand over no more; what was begun is begun again after the next start."""
        self._running = False
        if self._survey_call is not None and self._survey_call.active():
            self._survey_call.cancel()
        if self._pump_call is not None and self._pump_call.active():
            self._pump_call.cancel()
        for turn in list(self._turns.values()):
            turn.cancel()

    async def prune(self) -> None:
        """Forget old answers."""
        before = self._clock.now_ms() - ANSWERS_KEPT_MS
        while await self._database.write(prune_answers, before, PRUNED_AT_ONCE) >= PRUNED_AT_ONCE:
            pass

    # --- beside other processes ---

    def _heard(self, payload: bytes) -> None:
        """Another process stored events."""
        origin, counts = _TOLD.decode(payload)
        self._add(origin, {room_id: count for room_id, count in counts.items() if self._shares.mine(room_id)})

    async def _gained(self) -> None:
        """More rooms are this process's: see in a moment what waits for them, for there may be more of them yet."""
        if self._survey_call is not None and self._survey_call.active():
            self._survey_call.cancel()
        self._survey_in(0)

    def _survey_in(self, seconds: float) -> None:
        if self._running:
            self._survey_call = self._time.callLater(seconds, self._begin_survey)

    def _begin_survey(self) -> None:
        Deferred.fromCoroutine(self._survey()).addErrback(
            lambda failure: log.failure("it is not known which events of other servers wait", failure=failure)
        )

    async def _survey(self) -> None:
        """Look through all that waits: for what nobody told of, and how much others have."""
        begun, call = self._time.seconds(), self._survey_call
        try:
            rows = await self._database.read_long(waiting)
        except MatrixError as error:
            log.debug("it is not known which events of other servers wait: {error}", error=error.error)
            rows = None
        if self._survey_call is call:
            self._survey_in(max(SURVEY_SECONDS, SURVEY_PAUSE * (self._time.seconds() - begun)))
        if rows is None:
            return
        known, elsewhere = set(self._waiting), Counter[str]()
        for row in rows:
            if not self._shares.mine(row.room_id):
                elsewhere[row.origin] += row.count
            elif row.room_id not in known:
                self._add(row.origin, {row.room_id: row.count})
        self._elsewhere = elsewhere

    async def _lost(self, kept: bool) -> None:
        """Some rooms are another process's now; with `kept` it has them once this returns."""
        self._ready = deque(room_id for room_id in self._ready if self._shares.mine(room_id))
        left = [room_id for room_id in self._waiting if not self._shares.mine(room_id)]
        turns = [self._turns[room_id] for room_id in left if room_id in self._turns]
        for room_id in left:
            if room_id not in self._turns:
                self._drop(room_id)
        breaking = self._time.callLater(DRAIN_SECONDS if kept else 0, _cancel_all, turns)
        await DeferredList([turn.over for turn in turns])
        if breaking.active():
            breaking.cancel()

    def _drop(self, room_id: str) -> None:
        """Know no more of what waits for a room."""
        self._of_server.subtract(self._waiting.pop(room_id))
        self._of_server = +self._of_server

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
        if not self._shares.mine(room_id):
            self._drop(room_id)
        elif self._waiting[room_id]:
            self._ready.append(room_id)
        else:
            del self._waiting[room_id]
        self._pump_soon()

    async def _turn(self, room_id: str) -> None:
        """Hand a room some events, the first first; again and again if that fails for a reason that may pass."""
        attempt = 0
        while self._running and self._shares.mine(room_id):
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
        self.over: Deferred[None] = Deferred()
        """Fires when it has ended, or is broken off."""
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
        self.over.callback(None)

    def cancel(self) -> None:
        if self._working is not None:
            self._working.cancel()


def _cancel_all(turns: Sequence[_Turn]) -> None:
    for turn in turns:
        turn.cancel()


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
