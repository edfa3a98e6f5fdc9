"""An active room in memory: where its history ends, what its state is, and what waits to be written.

A `Head` is a value: to accept an event is to make the next head.  The room
moves on to it when the event is on disk, so a write that fails leaves the
room as it was.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple
from weakref import WeakValueDictionary

import msgspec
import orjson
from twisted.internet.defer import Deferred, DeferredLock

from ..cache import Cache, CacheBudget
from ..database.engines import Database
from ..database.statements import Transaction
from ..matrix.admission import PolicyServer
from ..matrix.errors import MatrixError
from ..matrix.events import Event, ReceivedEvent
from ..matrix.room_versions import ROOM_VERSIONS, RoomVersion
from ..sharing.leases import NotMine
from ..sharing.shares import share_of
from .api import PublicRoom
from .ownership import Ownership
from .snapshots import EMPTY, NEW_TAPE, Snapshots, StateMap, Tape, overlaid
from .tables.rooms import ELSEWHERE, RESIDENT, RoomRow, member_counts, room_by_id, rooms_by_id


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


FOLLOWED = 100
"""How many events an old one may follow, if their states are to be resolved; new ones have a lower limit."""


class Way(Enum):
    """How an event that exists already comes into a room."""

    LIVE = "live"
    """It happens now: it joins the timeline and may change the current state."""
    HISTORY = "history"
    """It happened long ago: it goes to the timeline at a negative position and changes nothing."""
    TAKEOVER = "takeover"
    """The join by which this server comes in: the state before it becomes the room's, whatever was known before."""
    ASIDE = "aside"
    """It is of a room that this server is not in, and concerns one of its users, who is told: an invite, a knock."""


@dataclass(frozen=True)
class Arrival:
    """An event that exists already: signatures and hashes were checked, its auth events are stored.

    Its ``prev_events`` are stored with their states.  Where some are not, ``before`` is the state before it (slots to
    event numbers, as `Adoption.state_map` gives it), or ``branches`` are the states after those that are missing;
    either is resolved with the states after those that are here.  The event is then one with a gap before it.
    Of old events that follow more than `FOLLOWED` others, ``before`` is all that counts.

    ``strict``: an event that would not be accepted refuses the whole work with 403 and is not stored.
    ``distribute``: this server sends the event to the others in the room, as the first that took it.
    ``policy``: the policy server that was asked about the event, whatever it said.  ``known``: events of ``before``
    that are in memory and need not be read again.  ``draft`` is what an event of this server was made from.
    ``position`` is given by the writer.
    """

    received: ReceivedEvent
    way: Way = Way.LIVE
    before: StateMap | None = None
    branches: tuple[StateMap, ...] = ()
    strict: bool = False
    distribute: bool = False
    policy: PolicyServer | None = None
    known: Mapping[int, Event] = field(default_factory=dict)
    draft: Draft | None = None
    position: int = 0


class Outcome(msgspec.Struct, frozen=True):
    """What became of a draft or an arrival.

    ``verdict`` beyond those of `matrix.admission`: ``known``, it was here before; ``unasked``, the policy server named
    by the room has to be asked about it first.  ``missing``: events that it was dropped for, and which may yet come.
    """

    event_id: str
    verdict: str = "accepted"
    reason: str = ""
    missing: tuple[str, ...] = ()

    @property
    def is_settled(self) -> bool:
        """Whether nothing would be different if it came again."""
        return self.verdict != "unasked" and not self.missing


class State(NamedTuple):
    """A state of a room and the number of its snapshot, 0 if it is not stored."""

    slots: StateMap
    snapshot_nid: int


class Placed(NamedTuple):
    """An event of the timeline as those that refer to it see it; ``after`` is the state after it."""

    event_nid: int
    status: int
    prev_events: tuple[str, ...]
    after: State


class Head(msgspec.Struct, frozen=True):
    """The newest end of a room.

    ``state`` is the current state, stored as ``snapshot_nid``; ``extremities`` are the events that no other one
    refers to, in the order of their arrival; ``joined`` and ``local`` count members, all and those of this server.
    """

    state: StateMap = EMPTY
    snapshot_nid: int = 0
    tape: Tape = NEW_TAPE
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
    """Drafts that are accepted together or not at all, or arrivals; ``answer`` fires with what became of each."""

    items: Sequence[Draft | Arrival]
    answer: Deferred[list[Outcome]]
    also: Also | None = None
    before: Before | None = None


@dataclass(eq=False)
class Room:
    """A room and its single writer's queue; ``room_nid`` is 0 until its first event is on disk.

    ``standing`` is one of `tables.rooms`: whether this server is in the room.

    ``placed`` remembers events of the newest part of a timeline that other servers take part in, ``resolutions`` what
    the states of branches made together, by the numbers of their snapshots.
    ``summary`` remembers what the room shows of itself, with the number of the state that it was made from.
    ``stale`` says that a write failed in a way that leaves open what is on disk, so that the head has to be
    read again; ``closed`` that the room is being deleted and takes nothing more.  One that is not ``mine`` is written
    to by another process: it is as it was on disk when it was looked for, and takes nothing.
    """

    room_id: str
    version: RoomVersion
    room_nid: int = 0
    head: Head = field(default_factory=Head)
    standing: int = RESIDENT
    placed: OrderedDict[str, Placed] = field(default_factory=OrderedDict)
    resolutions: OrderedDict[tuple[int, ...], StateMap] = field(default_factory=OrderedDict)
    waiting: list[Work] = field(default_factory=list)
    writing: bool = False
    summary: tuple[int, PublicRoom] | None = None
    stale: bool = False
    closed: bool = False
    mine: bool = True

    def forget_states(self) -> None:
        """States are others on disk than they were: read them anew."""
        self.placed.clear()
        self.resolutions.clear()

    @property
    def is_here(self) -> bool:
        """Whether this server is in the room, and can speak for it: others that are in it would know better."""
        if self.standing == ELSEWHERE:
            return False
        return self.head.local > 0 or (self.head.joined == 0 and self.standing == RESIDENT)


class RoomPlace(NamedTuple):
    """A room on disk: its number, that of its current state, how it stands, and its version."""

    room_nid: int
    snapshot_nid: int
    standing: int
    version: str


class _Loaded(NamedTuple):
    row: RoomRow
    head: Head


class _OfOthers(NamedTuple):
    """A room of another process, and the row that it was made from: it is as it was while that is the same."""

    row: RoomRow
    room: Room


class Rooms:
    """The active rooms; a room is loaded when it is first asked for and forgotten when idle and old.

    There is never more than one `Room` for a room: while anybody still holds one that the cache
    has let go, that one is found again.
    """

    def __init__(self, database: Database, snapshots: Snapshots, budget: CacheBudget, ownership: Ownership) -> None:
        self._database = database
        self._snapshots = snapshots
        self.ownership = ownership
        self._lock = DeferredLock()
        self._lost = 0
        """How often rooms were given away: what was being read meanwhile may be out of date."""
        self._alive: WeakValueDictionary[str, Room] = WeakValueDictionary()
        self._rooms: Cache[str, Room] = Cache(
            "rooms", budget, lambda room: 9000 + 200 * len(room.head.state), lambda room: not room.writing
        )
        self._others: Cache[str, _OfOthers] | None = None
        if ownership.shared:
            self._others = Cache("rooms_of_others", budget, lambda known: 9000 + 200 * len(known.room.head.state))

    async def get(self, room_id: str) -> Room:
        """The room; ``M_NOT_FOUND`` where this server knows none of that ID."""
        room = await self.find(room_id)
        if room is None:
            raise _unknown()
        return room

    async def find(self, room_id: str) -> Room | None:
        """As `get`, but `None` where there is none."""
        if self._others is not None and not self.ownership.holds(room_id):
            return await self._of_others(room_id, self._others)
        room = self._active(room_id)
        if room is not None:
            return room
        async with self._lock:
            room = self._active(room_id)
            while room is None:
                lost = self._lost
                loaded = await self._database.read(self._load, room_id)
                if loaded is None:
                    return None
                if lost == self._lost:
                    room = _made(loaded)
                    self.add(room)
        return room

    async def _of_others(self, room_id: str, others: Cache[str, _OfOthers]) -> Room | None:
        """A room of another process, as it is on disk now; to be read."""
        row = await self._database.read(room_by_id, room_id)
        if row is None:
            others.pop(room_id)
            return None
        known = others.get(room_id)
        if known is not None and known.row == row:
            return known.room
        loaded = await self._database.read(self._load, room_id)
        if loaded is None:
            return None
        room = _made(loaded)
        room.mine = False
        others.put(room_id, _OfOthers(loaded.row, room))
        return room

    async def find_many(self, room_ids: Sequence[str]) -> dict[str, Room]:
        """Those of these rooms that there are, by ID."""
        rows: dict[str, RoomRow] = {}
        if self._others is not None:
            of_others = [room_id for room_id in room_ids if not self.ownership.holds(room_id)]
            rows = {row.room_id: row for row in await self._database.read_long(rooms_by_id, of_others)}
        found = {}
        for room_id in room_ids:
            known = self._others.get(room_id) if self._others is not None and room_id in rows else None
            same = known is not None and known.row == rows[room_id]
            room = known.room if known is not None and same else await self.find(room_id)
            if room is not None:
                found[room_id] = room
        return found

    async def place(self, room_id: str) -> RoomPlace | None:
        """Where a room is on disk and how it stands, `None` where there is none; costs less than `find`."""
        if self._others is not None and not self.ownership.holds(room_id):
            row = await self._database.read(room_by_id, room_id)
            return None if row is None else RoomPlace(row.room_nid, row.snapshot_nid, row.standing, row.version)
        room = await self.find(room_id)
        if room is None:
            return None
        return RoomPlace(room.room_nid, room.head.snapshot_nid, room.standing, room.version.identifier)

    async def known(self, room_id: str) -> RoomPlace:
        """As `place`; ``M_NOT_FOUND`` where there is none."""
        place = await self.place(room_id)
        if place is None:
            raise _unknown()
        return place

    def require(self, room: Room) -> None:
        """Raise `NotMine` unless this process writes to the room."""
        if not room.mine:
            raise NotMine
        if room.room_id:
            self.ownership.require(room.room_id)

    def writing(self, room: Room) -> AbstractContextManager[None]:
        """As `Ownership.writing`; a room that has no ID yet is known to nobody else."""
        if not room.mine:
            raise NotMine
        return self.ownership.writing(room.room_id) if room.room_id else nullcontext()

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
            room.forget_states()
        else:
            room.room_nid, room.head = loaded.row.room_nid, loaded.head
            room.standing = loaded.row.standing
        room.stale = False

    async def _load(self, txn: Transaction, room_id: str) -> _Loaded | None:
        row = await room_by_id(txn, room_id)
        if row is None:
            return None
        chain, state = await self._snapshots.chain(txn, row.tape_nid)
        tape = Tape(state, chain)
        if row.snapshot_nid != row.tape_nid:
            state = overlaid(state, await self._snapshots.state(txn, row.snapshot_nid))
        counts = await member_counts(txn, row.room_nid)
        extremities = tuple(orjson.loads(row.extremities))
        head = Head(state, row.snapshot_nid, tape, extremities, row.depth, counts.joined, counts.local)
        return _Loaded(row, head)

    def add(self, room: Room) -> None:
        """Take in a room whose first event is on its way to the disk."""
        if self._others is not None and not self.ownership.holds(room.room_id):
            room.mine = False
            return
        self._alive[room.room_id] = room
        self._rooms.put(room.room_id, room)

    def forget(self, room: Room) -> None:
        """Leave out a room that came to nothing, or is deleted."""
        if self._alive.get(room.room_id) is room:
            del self._alive[room.room_id]
            self._rooms.pop(room.room_id)

    def lose(self, share: int) -> None:
        """Forget the rooms of a share, which another process has from now on."""
        self._lost += 1
        for room_id, room in [*self._alive.items()]:
            if share_of(room_id) == share:
                room.mine = False
                self.forget(room)


def _made(loaded: _Loaded) -> Room:
    row = loaded.row
    return Room(row.room_id, ROOM_VERSIONS[row.version], row.room_nid, loaded.head, row.standing)


def _unknown() -> MatrixError:
    return MatrixError(404, "M_NOT_FOUND", "This server does not know the room.")
