"""The members of rooms that were joined without them are fetched in the background.

Server-Server API, ``omit_members`` of ``PUT /send_join`` and ``GET /state``.  The user is in the room at once; the
state before the join is then asked of the server that helped, and of others in the room, until one gives it: after a
failure again later, and after a restart anew.  What cannot be answered without all members waits for them a while.
"""

from __future__ import annotations

import msgspec
import orjson
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from ...database.engines import Database
from ...matrix.auth_rules import AuthError, check_auth
from ...matrix.errors import MALFORMED, MatrixError
from ...matrix.handshakes import Described, HandshakeError, Pile, Reply, Request, check_room
from ...matrix.handshakes.messages import path
from ...matrix.identifiers import is_server_name
from ...sharing.leases import NotMine
from ...sharing.shares import share_of
from ...world import Clock, Random
from ..adoption import Adoption
from ..input import RoomWriter
from ..room import Room, Rooms
from ..store import stored_event
from ..tables import events as event_table
from ..tables import rooms as room_table
from ..tables.rooms import PARTIAL, PartialRow
from .driver import Driver, Progress
from .reading import StateReader

log = Logger()

SERVERS_TRIED = 5
"""Servers that are asked one after the other before it is left for later."""

FIRST_RETRY_SECONDS = 15.0
LAST_RETRY_SECONDS = 900.0
"""Between two tries; the time doubles from the one to the other."""

WAIT_SECONDS = 25.0
"""How long a request waits for the members of a room."""

PROGRESS_MS = 2000

CREATE = ("m.room.create", "")


class Completing:
    """Completes rooms."""

    def __init__(
        self,
        *,
        database: Database,
        rooms: Rooms,
        state: StateReader,
        writer: RoomWriter,
        adoption: Adoption,
        driver: Driver,
        time: IReactorTime,
        clock: Clock,
        random: Random,
        server_name: str,
    ) -> None:
        self._database = database
        self._rooms = rooms
        self._state = state
        self._writer = writer
        self._adoption = adoption
        self._driver = driver
        self._time = time
        self._clock = clock
        self._random = random
        self._server_name = server_name
        self._running: dict[str, Deferred[None]] = {}
        self._sleeping: dict[str, Deferred[None]] = {}
        self._waiting: dict[str, list[Deferred[None]]] = {}
        self._stopped = False

    async def start(self) -> None:
        """Go on with the rooms that are incomplete, those that this process has."""
        for row in await self._database.read(room_table.partial_rooms):
            self.begin(row.room_id)

    def lose(self, share: int) -> None:
        """Leave the rooms of a share to the process that has them from now on."""
        for room_id in [room_id for room_id in self._running if share_of(room_id) == share]:
            self._running[room_id].cancel()
        for room_id in [room_id for room_id in self._waiting if share_of(room_id) == share]:
            for waiting in self._waiting.pop(room_id):
                if not waiting.called:
                    waiting.errback(NotMine())

    def stop(self) -> None:
        """Ask for nothing more; the next start goes on."""
        self._stopped = True
        for running in list(self._running.values()):
            running.cancel()

    def begin(self, room_id: str) -> None:
        """A room has members missing, since now."""
        sleeping = self._sleeping.get(room_id)
        if sleeping is not None:
            sleeping.callback(None)
        if room_id in self._running or self._stopped or not self._rooms.ownership.holds(room_id):
            return
        running = self._running[room_id] = Deferred.fromCoroutine(self._complete(room_id))
        running.addErrback(self._defect, room_id)
        running.addBoth(lambda _: self._running.pop(room_id, None))

    def _defect(self, failure: Failure, room_id: str) -> None:
        if failure.check(CancelledError) is None:
            log.error("the members of {room} are not fetched any more: {failure}", room=room_id, failure=failure)

    async def whole(self, room: Room) -> None:
        """Wait until all members of a room are known; 503 with a time to try again if that takes too long."""
        if room.standing != PARTIAL:
            return
        self._rooms.require(room)
        if room.room_id not in self._running:
            self.begin(room.room_id)
            if room.standing != PARTIAL:
                return
        waiting: Deferred[None] = Deferred()
        self._waiting.setdefault(room.room_id, []).append(waiting)
        try:
            await waiting.addTimeout(WAIT_SECONDS, self._time)
        except TimeoutError:
            raise MatrixError(
                503,
                "M_UNKNOWN",
                "This server has only just joined the room and does not know all of its members yet.",
                retry_after_ms=10_000,
            ) from None

    # --- fetching ---

    async def _complete(self, room_id: str) -> None:
        delay = FIRST_RETRY_SECONDS
        while True:
            room = await self._rooms.find(room_id)
            row = await self._database.read(room_table.partial_room, room.room_nid) if room is not None else None
            if room is None or row is None or not room.head.local:
                # Deleted, complete, or left again: whoever joins anew brings a new state.
                break
            try:
                done = await self._attempt(room, row)
            except MatrixError as error:
                log.warn("the state of {room} cannot be stored: {error}", room=room_id, error=error.error)
                done = False
            if done:
                log.info("the state of {room} is complete", room=room_id)
                break
            await self._sleep(room_id, delay * self._random.uniform(0.8, 1.2))
            delay = min(2 * delay, LAST_RETRY_SECONDS)
        for waiting in self._waiting.pop(room_id, ()):
            if not waiting.called:
                waiting.callback(None)

    async def _attempt(self, room: Room, row: PartialRow) -> bool:
        """Whether one of the servers gave the state, or it is not wanted any more."""
        for server in self._servers(row):
            try:
                described = await self._described(server, room, row)
            except HandshakeError as error:
                log.info(
                    "{server} does not give the state of {room}: {error}", server=server, room=room.room_id, error=error
                )
                continue
            if await self._database.read(room_table.partial_room, room.room_nid) != row:
                return False
            await self._adoption.complete(room, described.state, described.good.values())
            # The writer takes up what is on disk at its next turn.
            await self._writer.submit(room, [])
            return True
        return False

    def _servers(self, row: PartialRow) -> list[str]:
        """Whom to ask: first who helped to join, then others in no certain order."""
        told = orjson.loads(row.servers)
        others = [
            server for server in told if is_server_name(server) and server not in (row.resident, self._server_name)
        ]
        others.sort(key=lambda _: self._random.uniform(0, 1))
        return [row.resident, *others][:SERVERS_TRIED]

    async def _described(self, server: str, room: Room, row: PartialRow) -> Described:
        """The state before the join as a server describes it; `HandshakeError` if that cannot be believed."""
        join = stored_event((await self._database.read(event_table.events_by_nid, [row.join_nid]))[0])
        query = (("event_id", join.event_id),)
        # No name is kept for the answer, which is many times what is kept of it.
        pile = _pile(await self._driver.ask(Request(server, "GET", path("v1", "state", room.room_id), query)))
        described, _ = await self._driver.run(
            check_room(pile, room.version, room.room_id, now_ms=self._clock.now_ms()), self._progress(room.room_id)
        )
        own = (await self._state(room, CREATE)).get(CREATE)
        told = described.state.get(CREATE)
        if own is None or told is None or own.event_id != told.event_id:
            raise HandshakeError("it is the state of another room")
        try:
            check_auth(join, described.state)
        except AuthError as error:
            raise HandshakeError(f"the join is not allowed in it: {error}") from None
        return described

    async def _sleep(self, room_id: str, seconds: float) -> None:
        sleeping = self._sleeping[room_id] = Deferred()
        call = self._time.callLater(seconds, sleeping.callback, None)
        try:
            await sleeping
        finally:
            del self._sleeping[room_id]
            if call.active():
                call.cancel()

    def _progress(self, room_id: str) -> Progress:
        last = self._clock.now_ms()

        def tell(done: int, of: int) -> None:
            nonlocal last
            now = self._clock.now_ms()
            if now - last >= PROGRESS_MS:
                last = now
                log.info("members of {room}: {done} of {of} events checked", room=room_id, done=done, of=of)

        return tell


class _State(msgspec.Struct):
    pdus: list[msgspec.Raw]
    auth_chain: list[msgspec.Raw]


_state_answer = msgspec.json.Decoder(_State)


def _pile(reply: Reply | None) -> Pile:
    """The events of an answer to ``GET /state``; `HandshakeError` if it is none."""
    if reply is None or reply.status != 200:
        raise HandshakeError("there is no answer" if reply is None else f"the answer is {reply.status}")
    try:
        answer = _state_answer.decode(reply.body)
    except MALFORMED as error:
        raise HandshakeError(f"the answer is malformed: {error}") from None
    return Pile(answer.pdus, answer.auth_chain)
