"""Sends to each destination what waits for it: one transaction at a time, in order, until each was answered.

Server-Server API, "Transactions".  A destination with something to send waits for its turn; a turn is one
transaction, so that one with much to send does not keep others waiting.  Turns are limited in number, in two lanes:
servers that answered the last time, and those that did not, so that however many of these hang, the others have their
turns.  Whoever is slow gives its turn back and goes on without.

After a failure a destination is left in peace (`Destinations`); the same transaction is sent again when the time has
come, or at once when the server is heard of.

Where several processes share the work (`spread`), there are queues here only of the servers that this one sends to.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import orjson
from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..database.engines import Unavailable
from ..matrix.transactions import MAX_EDUS, build_transaction
from ..room_api.api import RoomAPI
from ..world import Clock
from .api import BackingOff, RemoteRefused, Unreachable
from .destinations import Destinations
from .post import EVENTS_KEPT, Batch, Parcel, Post
from .queue import Moment, Numbers, PresenceMoment, Queue, time_of

if TYPE_CHECKING:
    from .spread import Spread

log = Logger()

TURNS = 96
DOUBTFUL_TURNS = 32
"""How many transactions may be under way to servers that answered the last time, and to those that did not."""

SLOW_SECONDS = 5.0
"""After this time a transaction no longer counts among those."""

TRANSACTION_SECONDS = 60.0
"""How long a server may take for a transaction: older ones look into its events before they answer."""

BUSY_SECONDS = 5.0
"""The pause after a failure that is not the server's: the database's, or too many requests of ours to it."""

BROKEN_SECONDS = 60.0
"""The pause after a failure that nobody thought of."""

HEARD_SECONDS = 10.0
"""A server that is heard of but cannot be reached is tried no more often than this."""

STOP_SECONDS = 3.0

LEAVE_SECONDS = 1.0
"""How long a transaction may go on to a server that became another process's, before that one repeats it."""

SendTransaction = Callable[[str, str, bytes, float], Awaitable[RemoteRefused | None]]
"""`FederationClient.send_transaction`."""


class _Lane:
    """Destinations that wait for a turn, and how many have one."""

    def __init__(self, turns: int) -> None:
        self.turns = turns
        self.taken = 0
        self.waiting: deque[Queue] = deque()
        self.filling = False


class _Turn:
    """A turn in a lane; it can be given back early, and is given back once."""

    def __init__(self, lane: _Lane) -> None:
        self._lane = lane
        self._held = True
        lane.taken += 1

    def give_back(self) -> None:
        if self._held:
            self._held = False
            self._lane.taken -= 1


class Senders:
    """The queues of all destinations, and their turns."""

    def __init__(
        self,
        server_name: str,
        post: Post,
        destinations: Destinations,
        rooms: RoomAPI,
        numbers: Numbers,
        send: SendTransaction,
        time: IReactorTime,
        clock: Clock,
        turns: int = TURNS,
        doubtful_turns: int = DOUBTFUL_TURNS,
        spread: Spread | None = None,
    ) -> None:
        """`spread` says who else sends; `None` if nobody does."""
        self._server_name = server_name
        self._post = post
        self._destinations = destinations
        self._rooms = rooms
        self._numbers = numbers
        self._send = send
        self._time = time
        self._clock = clock
        self._sure, self._doubtful = _Lane(turns), _Lane(doubtful_turns)
        self._running: dict[Queue, Deferred[Any]] = {}
        self._started = False
        self._stopped: Deferred[None] | None = None
        self._spread = spread
        if spread is not None:
            spread.on_moment = self._add_moment

    def _is_mine(self, server: str) -> bool:
        return self._spread is None or self._spread.mine(server)

    # --- life ---

    def start(self) -> None:
        """Begin to send what was left over."""
        self._started = True
        self._destinations.on_reached = self.heard_of
        self._destinations.on_forgiven = self._try_now
        for queue in list(self._post.queues.values()):
            self.wake(queue.server)

    async def stop(self) -> None:
        """Begin no more transactions; those under way have a moment to end, and are repeated after the next start."""
        self._started = False
        for queue in self._post.queues.values():
            queue.cancel()
        if self._running:
            self._stopped = Deferred()
            timer = self._time.callLater(STOP_SECONDS, self._break_off)
            await self._stopped
            if timer.active():
                timer.cancel()

    def _break_off(self) -> None:
        for running in list(self._running.values()):
            running.cancel()

    async def leave(self, kept: bool) -> None:
        """Some servers are another process's now; with `kept` it has them once this returns."""
        for queue in [queue for queue in self._post.queues.values() if not self._is_mine(queue.server)]:
            queue.cancel()
            if not queue.busy:
                del self._post.queues[queue.server]
        running = [one for queue, one in self._running.items() if not self._is_mine(queue.server)]
        breaking = self._time.callLater(LEAVE_SECONDS if kept else 0, _cancel_all, running)
        await DeferredList([_end_of(one) for one in running])
        if breaking.active():
            breaking.cancel()

    # --- what is to be sent ---

    async def put(self, parcel: Parcel, consumer: str, position: int) -> None:
        """Store what a consumer has for others together with its position, and see to it that it is sent."""
        await self.arrived(await self._post.put(parcel, consumer, position))

    async def arrived(self, lingers: Mapping[str, float]) -> None:
        """There is more on disk for these servers, which may wait for company for so many seconds."""
        for server, linger in lingers.items():
            queue = self._post.queue(server)
            if queue.events > EVENTS_KEPT and not queue.busy:
                await self._post.collapse(queue)
            self.wake(server, linger)

    def add_moment(self, servers: Iterable[str], key: str, moment: Moment | PresenceMoment, linger: float = 0) -> None:
        """Tell servers of something now or never; those that do not answer are not told."""
        if self._spread is not None:
            servers = list(servers)
            others = [server for server in servers if not self._spread.mine(server)]
            if others:
                self._spread.tell_moment(others, key, moment, linger)
                servers = [server for server in servers if self._spread.mine(server)]
        self._add_moment(servers, key, moment, linger)

    def _add_moment(self, servers: Iterable[str], key: str, moment: Moment | PresenceMoment, linger: float = 0) -> None:
        if not self._started:
            return
        for server in servers:
            if not self._destinations.failures(server):
                self._post.queue(server).add_moment(key, moment)
                self.wake(server, linger)

    def wake(self, server: str, linger: float = 0.0) -> None:
        """There may be something for a destination, which may wait for a while for company."""
        queue = self._post.queues.get(server)
        if queue is None or queue.ready or not self._started or not self._is_mine(server):
            return
        if queue.busy:
            queue.again = True
            return
        seconds = max(linger, self._pause(queue))
        if seconds == _NEVER:
            queue.cancel()
        elif seconds > 0:
            self._wake_in(queue, seconds)
        else:
            self._want_turn(queue)

    def _pause(self, queue: Queue) -> float:
        """For how many seconds a destination is left in peace."""
        try:
            self._destinations.check(queue.server)
        except BackingOff as error:
            return _NEVER if error.retry_after_ms is None else error.retry_after_ms / 1000
        return 0.0

    def _wake_in(self, queue: Queue, seconds: float) -> None:
        """Have a destination looked at after a time, unless that happens sooner anyway."""
        if queue.timer is not None and queue.timer.active():
            if queue.timer.getTime() <= self._time.seconds() + seconds:
                return
            queue.timer.cancel()
        queue.timer = self._time.callLater(seconds, self._timed, queue)

    def _timed(self, queue: Queue) -> None:
        queue.timer = None
        self.wake(queue.server)

    def heard_of(self, server: str) -> None:
        """A server answered or asked something: what waits for it goes out now."""
        queue = self._post.queues.get(server)
        if queue is None or queue.busy or queue.ready or not self._is_mine(server):
            return
        now = self._time.seconds()
        since = now - queue.heard
        queue.cancel()
        if queue.heard and since < HEARD_SECONDS:
            self._wake_in(queue, HEARD_SECONDS - since)
        else:
            queue.heard = now
            self.wake(server)

    async def retry(self, server: str) -> bool:
        """Try a destination now, whatever is known of it; false if nothing waits for it here."""
        await self._destinations.forgive(server)
        return self._try_now(server)

    def _try_now(self, server: str) -> bool:
        queue = self._post.queues.get(server)
        if queue is None:
            return False
        queue.cancel()
        self.wake(server)
        return True

    # --- turns ---

    def _want_turn(self, queue: Queue) -> None:
        queue.cancel()
        queue.ready = True
        lane = self._doubtful if self._destinations.failures(queue.server) else self._sure
        lane.waiting.append(queue)
        self._fill(lane)

    def _fill(self, lane: _Lane) -> None:
        """Give turns to those who wait for one, as many as there are."""
        if lane.filling:
            return
        lane.filling = True
        while lane.waiting and lane.taken < lane.turns and self._started:
            queue = lane.waiting.popleft()
            if self._post.queues.get(queue.server) is queue:
                self._begin(queue, lane)
        lane.filling = False

    def _begin(self, queue: Queue, lane: _Lane) -> None:
        queue.ready, queue.busy, queue.again = False, True, False
        turn = _Turn(lane)
        slow = self._time.callLater(SLOW_SECONDS, self._too_slow, turn, lane)
        running = self._running[queue] = Deferred.fromCoroutine(self._one_transaction(queue))
        running.addErrback(_broken, queue.server)
        running.addCallback(self._ended, queue, turn, lane, slow)

    def _too_slow(self, turn: _Turn, lane: _Lane) -> None:
        turn.give_back()
        self._fill(lane)

    def _ended(self, pause: float | None, queue: Queue, turn: _Turn, lane: _Lane, slow: IDelayedCall) -> None:
        if slow.active():
            slow.cancel()
        turn.give_back()
        queue.busy = False
        del self._running[queue]
        if self._stopped is not None and not self._running:
            stopped, self._stopped = self._stopped, None
            stopped.callback(None)
        self._next(queue, pause)
        self._fill(lane)

    def _next(self, queue: Queue, pause: float | None) -> None:
        """After a turn: the next one, a pause (in seconds), or nothing more (`None`)."""
        if not self._is_mine(queue.server):
            if self._post.queues.get(queue.server) is queue:
                del self._post.queues[queue.server]
            return
        if not self._started:
            return
        if pause is None and not (queue.moments or queue.again):
            if queue.idle and self._post.queues.get(queue.server) is queue:
                del self._post.queues[queue.server]
        elif not pause:
            self.wake(queue.server)
        elif pause != _NEVER:
            self._wake_in(queue, pause)

    async def _one_transaction(self, queue: Queue) -> float | None:
        """Send the next transaction; returns the pause after it, `None` where there was nothing to be sent."""
        try:
            batch = await self._post.take(queue)
            now = self._clock.now_ms()
            moments = queue.take_moments(MAX_EDUS - (len(batch.edus) if batch else 0), now)
            if batch is None:
                if not moments:
                    return None
                batch = Batch(self._numbers.next(), [], [])
            body = await self._body(batch, moments)
            refusal = None
            if body is not None:
                refusal = await self._send(queue.server, f"{batch.number:x}", body, TRANSACTION_SECONDS)
            if refusal is not None:
                _log_refusal(queue.server, batch, refusal)
            await self._post.answered(queue, batch)
        except CancelledError:
            return BUSY_SECONDS
        except Unreachable as error:
            if not isinstance(error, BackingOff):
                queue.trouble = error.reason
            await self._failed(queue)
            return self._pause(queue) or BUSY_SECONDS
        except Unavailable as error:
            queue.trouble = str(error)
            return BUSY_SECONDS
        queue.trouble = "" if refusal is None else f"it refused a transaction: {refusal.remote_error}"
        queue.sent_ts = self._clock.now_ms()
        if queue.events > EVENTS_KEPT:
            await self._post.collapse(queue)
        return None if queue.empty else 0.0

    async def _body(self, batch: Batch, moments: list[Moment]) -> bytes | None:
        """The transaction; `None` if there is nothing in it, as when its rooms were deleted meanwhile."""
        pdus = await self._rooms.pdus([event.event_id for event in batch.events]) if batch.events else {}
        edus = [_edu(edu.edu_type, edu.content) for edu in batch.edus]
        edus += [_edu(moment.edu_type, moment.content) for moment in moments]
        bodies = [pdus[event.event_id] for event in batch.events if event.event_id in pdus]
        if not bodies and not edus:
            return None
        return build_transaction(self._server_name, time_of(batch.number), bodies, edus)

    async def _failed(self, queue: Queue) -> None:
        """An attempt failed: what is of the moment is over, and one that is away for good is kept less."""
        queue.moments.clear()
        if queue.events > EVENTS_KEPT or self._destinations.is_given_up(queue.server):
            await self._post.collapse(queue)

    # --- what there is to see ---

    @property
    def running(self) -> int:
        """Destinations to which a transaction is under way."""
        return len(self._running)

    @property
    def total(self) -> int:
        """Destinations for which something waits."""
        return len(self._post.queues)

    @property
    def backing_off(self) -> int:
        """Destinations for which something waits that are left in peace for now, or given up."""
        return sum(1 for queue in self._post.queues.values() if self._destinations.failures(queue.server))


_NEVER = float("inf")


def _edu(edu_type: str, content: bytes) -> dict[str, Any]:
    return {"edu_type": edu_type, "content": orjson.Fragment(content)}


def _log_refusal(server: str, batch: Batch, refusal: RemoteRefused) -> None:
    log.warn(
        "{server} refused a transaction of {events} events and {edus} messages: {status} {errcode} {error}",
        server=server,
        events=len(batch.events),
        edus=len(batch.edus),
        status=refusal.remote_status,
        errcode=refusal.remote_errcode,
        error=refusal.remote_error,
    )


def _cancel_all(running: Iterable[Deferred[Any]]) -> None:
    for one in running:
        one.cancel()


def _end_of(running: Deferred[Any]) -> Deferred[None]:
    """Fires when a transaction has ended in whatever way."""
    end: Deferred[None] = Deferred()

    def ended(result: Any) -> Any:
        end.callback(None)
        return result

    running.addBoth(ended)
    return end


def _broken(failure: Failure, server: str) -> float:
    log.failure("a transaction for {server} failed", failure, server=server)
    return BROKEN_SECONDS
