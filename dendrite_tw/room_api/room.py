"""An active room in memory: where its history ends, what its state is, and what waits to be written.

A `Head` is a value: to accept an event is to make the next head.  The room
moves on to it when the event is on disk, so a write that fails leaves the
room as it was.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import NamedTuple
from weakref import WeakValueDictionary

import orjson
from twisted.internet.defer import Deferred, DeferredLock

from ..cache import Cache, CacheBudget
from ..database.engines import Database
from ..database.statements import Transaction
from ..matrix.errors import MatrixError
from ..matrix.events import Event
from ..matrix.room_versions import ROOM_VERSIONS, RoomVersion
from .api import PublicRoom
from .snapshots import EMPTY, NEW_CHAIN, Chain, Snapshots, StateMap
from .tables.rooms import RoomRow, member_counts, room_by_id


@dataclass(frozen=True)
class Draft:
    """An event that somebody wants to send, before it has a place in the room."""

    sender: str
    type: str
    content: dict[str, object]
    state_key: str | None = None
    redacts: str | None = None
    timestamp: int | None = None
    device_id: str | None = None
    transaction_id: str | None = None


@dataclass(frozen=True)
class Head:
    """The newest end of a room."""

    state: StateMap = EMPTY
    chain: Chain = NEW_CHAIN
    extremities: tuple[str, ...] = ()
    depth: int = 0
    joined: int = 0
    local: int = 0


Also = Callable[[Transaction, int], Awaitable[None]]
"""What shares the transaction of an event; it is given the room's number."""

Before = Callable[[list[Event]], Awaitable[None]]
"""What has to be done before events that were accepted are stored; what it raises refuses them."""


@dataclass
class Work:
    """Drafts that are accepted together or not at all; ``answer`` fires with their event IDs."""

    drafts: list[Draft]
    answer: Deferred[list[str]]
    also: Also | None = None
    before: Before | None = None


@dataclass(eq=False)
class Room:
    """A room and its single writer's queue; ``room_nid`` is 0 until its first event is on disk.

    ``summary`` remembers what the room shows of itself, with the number of the state that it was made from.
    ``stale`` says that a write failed in a way that leaves open what is on disk, so that the head has to be
    read again; ``closed`` that the room is being deleted and takes nothing more.
    """

    room_id: str
    version: RoomVersion
    room_nid: int = 0
    head: Head = field(default_factory=Head)
    waiting: list[Work] = field(default_factory=list)
    writing: bool = False
    summary: tuple[int, PublicRoom] | None = None
    stale: bool = False
    closed: bool = False


class _Loaded(NamedTuple):
    row: RoomRow
    head: Head


class Rooms:
    """The active rooms; a room is loaded when it is first asked for and forgotten when idle and old.

    There is never more than one `Room` for a room: while anybody still holds one that the cache
    has let go, that one is found again.
    """

    def __init__(self, database: Database, snapshots: Snapshots, budget: CacheBudget) -> None:
        self._database = database
        self._snapshots = snapshots
        self._lock = DeferredLock()
        self._alive: WeakValueDictionary[str, Room] = WeakValueDictionary()
        self._rooms: Cache[str, Room] = Cache(
            "rooms", budget, lambda room: 9000 + 200 * len(room.head.state), lambda room: not room.writing
        )

    async def get(self, room_id: str) -> Room:
        """The room; ``M_NOT_FOUND`` where this server knows none of that ID."""
        room = await self.find(room_id)
        if room is None:
            raise MatrixError(404, "M_NOT_FOUND", "This server does not know the room.")
        return room

    async def find(self, room_id: str) -> Room | None:
        """As `get`, but `None` where there is none."""
        room = self._active(room_id)
        if room is not None:
            return room
        async with self._lock:
            room = self._active(room_id)
            if room is None:
                loaded = await self._database.read(self._load, room_id)
                if loaded is None:
                    return None
                room = Room(room_id, ROOM_VERSIONS[loaded.row.version], loaded.row.room_nid, loaded.head)
                self.add(room)
        return room

    def _active(self, room_id: str) -> Room | None:
        room = self._rooms.get(room_id)
        if room is None and (room := self._alive.get(room_id)) is not None:
            self._rooms.put(room_id, room)
        return room

    async def refresh(self, room: Room) -> None:
        """Take up the head of a room as it is on disk."""
        loaded = await self._database.read(self._load, room.room_id)
        if loaded is None:
            room.room_nid, room.head = 0, Head()
        else:
            room.room_nid, room.head = loaded.row.room_nid, loaded.head
        room.stale = False

    async def _load(self, txn: Transaction, room_id: str) -> _Loaded | None:
        row = await room_by_id(txn, room_id)
        if row is None:
            return None
        chain, state = await self._snapshots.chain(txn, row.snapshot_nid)
        counts = await member_counts(txn, row.room_nid)
        extremities = tuple(orjson.loads(row.extremities))
        return _Loaded(row, Head(state, chain, extremities, row.depth, counts.joined, counts.local))

    def add(self, room: Room) -> None:
        """Take in a room whose first event is on its way to the disk."""
        self._alive[room.room_id] = room
        self._rooms.put(room.room_id, room)

    def forget(self, room: Room) -> None:
        """Leave out a room that came to nothing, or is deleted."""
        if self._alive.get(room.room_id) is room:
            del self._alive[room.room_id]
            self._rooms.pop(room.room_id)
