"""What this server tells others of, read from the streams of the components that it happens in.

A consumer stores its position together with what it puts into the queues, so a message that comes again changes
nothing.  Most messages concern nobody elsewhere: of those as little as possible is decoded, and the position is only
stored from time to time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, Protocol

import msgspec
import orjson
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger

from ..database.engines import Database, Unavailable
from ..matrix.errors import MatrixError
from ..matrix.identifiers import is_server_name
from ..room_api.api import OUTPUT_ROOM_EVENT, PURGE_ROOM, STATE_COMPLETE, RoomAPI, RoomPurged, StateComplete
from .introductions import Introductions
from .post import Parcel, Post, Progress
from .queue import OutgoingEvent
from .senders import Senders

log = Logger()

BATCH = 256
ROWS_AT_ONCE = 10_000
"""About how many rows one transaction stores: an event in a room of ten thousand servers."""

LINGER_SECONDS = 0.05
"""How long the next messages are let gather after some that concerned nobody: each acknowledgement costs as much as
three messages."""

STORE_SECONDS = 5.0
"""How often a position is stored that nothing was stored with."""


class Message(Protocol):
    """What the queue delivers."""

    @property
    def payload(self) -> bytes: ...
    @property
    def headers(self) -> Mapping[str, str]: ...


class Consumer:
    """Reads one stream from where it left off; a subclass says in `read` what follows from a message."""

    stream = ""
    name = ""

    def __init__(
        self,
        database: Database,
        senders: Senders,
        rooms: RoomAPI,
        server_name: str,
        time: IReactorTime,
        on_stored: Callable[[int], None] = lambda position: None,
    ) -> None:
        """`on_stored` is told up to which position all is stored: up to there the stream's source may forget."""
        self.progress = Progress(self.name, database, on_stored)
        self._time = time
        self._senders = senders
        self._rooms = rooms
        self._server_name = server_name
        self._storing = LoopingCall(lambda: Deferred.fromCoroutine(self._store()).addErrback(_unstored))
        self._storing.clock = time
        self._worker: Any = None

    async def start(self, queue: Any) -> None:
        """Go on from the position that is stored; also again after `stop`, when another process read on meanwhile."""
        await self.progress.load()
        self._worker = queue.consume(self.stream, self.name, self.consume, batch=BATCH)
        self._storing.start(STORE_SECONDS, now=False)

    async def stop(self) -> None:
        if self._storing.running:
            self._storing.stop()
        if self._worker is not None:
            await self._worker.stop()
            self._worker = None
        await self._store()

    async def _store(self) -> None:
        """Store how far it has read; what was not stored is read again."""
        try:
            await self.progress.store()
        except Unavailable as error:
            log.info("{consumer}: how far it has read is not stored: {error}", consumer=self.name, error=error.error)

    async def consume(self, messages: list[Message]) -> None:
        """Take messages in; when this returns, what follows from them is stored."""
        reached, parcel = self.progress.reached, Parcel()
        for message in messages:
            reached = max(reached, await self.read(message, reached, parcel))
            if parcel.rows >= ROWS_AT_ONCE:
                await self.finish(parcel)
                await self._put(parcel, reached)
                parcel = Parcel()
        await self.finish(parcel)
        if parcel.rows:
            await self._put(parcel, reached)
            return
        self.progress.reached = max(self.progress.reached, reached)
        if len(messages) < BATCH:
            await deferLater(self._time, LINGER_SECONDS)

    async def _put(self, parcel: Parcel, position: int) -> None:
        await self._senders.put(parcel, self.name, position)
        self.progress.stored(position)

    async def read(self, message: Message, after: int, parcel: Parcel) -> int:
        """Add to `parcel` what follows from a message; returns its position.

        Nothing follows from a message whose position is not above `after`: it came before.
        """
        raise NotImplementedError

    async def finish(self, parcel: Parcel) -> None:
        """Called before a parcel is stored: add what was held back to go together."""

    # --- help ---

    def is_local(self, user_id: str) -> bool:
        return server_of(user_id) == self._server_name

    async def servers_in(self, room_id: str) -> list[str]:
        """The other servers in a room; none where there is no such room any more."""
        return self.others(await _unless_gone(self._rooms.room_servers(room_id)))

    async def servers_of(self, user_id: str) -> list[str]:
        """The other servers that share a room with a user."""
        return self.others(await _unless_gone(self._rooms.servers_of_user(user_id)))

    def others(self, servers: Iterable[str]) -> list[str]:
        return others_of(servers, self._server_name)


def server_of(user_id: str) -> str:
    """The server of a user; empty for what is no user ID."""
    return user_id.partition(":")[2]


_can_be_asked = lru_cache(1 << 16)(is_server_name)


def others_of(servers: Iterable[str], own: str) -> list[str]:
    """Those of `servers` but our own that can be sent to, in an order that does not depend on chance."""
    return sorted(server for server in servers if server != own and _can_be_asked(server))


async def _unless_gone(question: Awaitable[list[str]]) -> list[str]:
    try:
        return await question
    except MatrixError as error:
        if error.status == 404:
            return []
        raise


def _unstored(failure: object) -> None:
    log.failure("how far a consumer has read could not be stored", failure)  # type: ignore[arg-type]


# --- events of rooms ---


class _ToldEvent(msgspec.Struct):
    event_id: str
    room_id: str
    sender: str
    type: str
    position: int
    state_key: str | None = None
    membership: str | None = None
    prev_content: bytes | None = None


class _Told(msgspec.Struct):
    """The part of an `OutputRoomEvent` that matters here."""

    event: _ToldEvent
    distribute: bool = False


_DECODER = msgspec.msgpack.Decoder(_Told)


class RoomConsumer(Consumer):
    """Events that this server sends to the others in their rooms.

    They go to the servers that are in the room when the event is read here, which is as good as when it was sent.
    Servers that the room's access list keeps out get them as well where they have members in the room: the list is for
    those who receive (Server-Server API, "Server Access Control Lists"), as Synapse and Dendrite have it, and a server
    that heard nothing any more would never learn that it is let in again.
    """

    stream = OUTPUT_ROOM_EVENT
    name = "FederationAPIRoomServerConsumer"

    def __init__(self, post: Post, introductions: Introductions, *needs: Any) -> None:
        super().__init__(*needs)
        self._post = post
        self._introductions = introductions

    async def read(self, message: Message, after: int, parcel: Parcel) -> int:
        try:
            told = _DECODER.decode(message.payload)
        except msgspec.ValidationError:
            kind = message.headers.get("output_room_event_type")
            if kind == STATE_COMPLETE:
                return msgspec.msgpack.decode(message.payload, type=StateComplete).position
            if kind != PURGE_ROOM:
                raise
            purged = msgspec.msgpack.decode(message.payload, type=RoomPurged)
            await self._post.forget_room(purged.room_id)
            return purged.position
        event = told.event
        if event.position > after and (told.distribute or event.type == "m.room.member"):
            servers = set(await self.servers_in(event.room_id)) if told.distribute else set()
            if told.distribute or self.is_local(event.sender):
                servers |= self.target_of(event)
            # A membership of another server's user came from there, by /send_join or its like.
            servers.discard(server_of(event.sender))
            parcel.add_event(OutgoingEvent(event.position, event.room_id, event.event_id, self.others(servers)))
            if event.membership == "join" and _membership_before(event) != "join":
                await self._introduce(event, parcel)
        return event.position

    async def _introduce(self, event: _ToldEvent, parcel: Parcel) -> None:
        """A user has come into a room."""
        user_id = event.state_key or ""
        if self.is_local(user_id):
            await self._introductions.joined(user_id, event.room_id, await self.servers_in(event.room_id), parcel)
        elif self.others([server_of(user_id)]):
            await self._introductions.met(server_of(user_id), event.room_id)

    def target_of(self, event: _ToldEvent) -> set[str]:
        """The server of a user who is no longer in the room by this event, or no longer invited to it."""
        if event.type != "m.room.member" or event.state_key is None:
            return set()
        return {server_of(event.state_key)} if _membership_before(event) in ("join", "invite", "knock") else set()


def _membership_before(event: _ToldEvent) -> str:
    """The membership that a membership took the place of; empty where there was none."""
    was = orjson.loads(event.prev_content).get("membership") if event.prev_content is not None else None
    return was if isinstance(was, str) else ""
