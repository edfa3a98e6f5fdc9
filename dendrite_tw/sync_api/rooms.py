"""Rooms as sync keeps them in memory: current state, and the newest part of the timeline.

A `Room` is loaded once from the room component and then kept by the feed.  It
remembers what each change of state replaced, so that it can say what the state
was a while ago and what changed since, resolutions included.  What is older
than it remembers is asked of the room component.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from ..cache import Cache, CacheBudget
from ..database.engines import Unavailable
from ..matrix.errors import MatrixError
from ..room_api.api import OutputRoomEvent, RoomAPI, RoomEvent, RoomView
from .positions import Heard

log = Logger()

MEMBER = "m.room.member"

TIMELINE_LOADED = 32
"""Events that are asked for when a room is loaded: a common limit of clients, and some more."""

TIMELINE_KEPT = 100
CHANGES_KEPT = 1000
EVENT_OVERHEAD = 900
"""Bytes of an event in memory besides its JSON."""

CATCH_UP_SECONDS = 10.0

Slot = tuple[str, str]


class StateChange:
    """A change of the current state: what stands at `slot` since `position`, and what stood there before."""

    __slots__ = ("position", "previous", "slot")

    def __init__(self, position: int, slot: Slot, previous: RoomEvent | None) -> None:
        self.position = position
        self.slot = slot
        self.previous = previous


class Room:
    """A room in memory.

    ``members`` holds the member events of the current state by user, ``state``
    the rest.  Every live event after ``floor`` is in ``timeline``; every change
    of state after ``changes_floor`` is in ``changes``.  Both are lists, for an empty
    deque takes as much memory as two events.  ``stale`` names events
    that were redacted and have to be fetched again.  Members are still missing of a
    ``partial`` state; ``rewritten`` is where the state was last replaced as a whole.
    """

    def __init__(self, view: RoomView) -> None:
        self.room_id = view.room_id
        self.position = view.position
        self.members: dict[str, RoomEvent] = {}
        self.state: dict[Slot, RoomEvent] = {}
        self.timeline: list[RoomEvent] = list(view.timeline)
        self.floor = 0 if view.complete or not view.timeline else view.timeline[0].position - 1
        self.changes: list[StateChange] = []
        self.changes_floor = view.position
        self.joined_count = 0
        self.invited_count = 0
        self.stale: set[str] = set()
        self.partial = view.partial
        self.rewritten = view.rewritten
        self.size = 500
        self._heroes: list[str] | None = None
        for event in view.state:
            self._set((event.type, event.state_key or ""), event)
        for event in view.timeline:
            self.size += len(event.client) + EVENT_OVERHEAD

    # --- current state ---

    def get(self, slot: Slot) -> RoomEvent | None:
        return self.members.get(slot[1]) if slot[0] == MEMBER else self.state.get(slot)

    def _set(self, slot: Slot, event: RoomEvent | None) -> RoomEvent | None:
        """Put `event` (or nothing) at `slot`; returns what stood there."""
        previous: RoomEvent | None
        if slot[0] == MEMBER:
            previous = self.members.pop(slot[1], None)
            if event is not None:
                self.members[slot[1]] = event
            self._count(previous, -1)
            self._count(event, +1)
            self._heroes = None
        else:
            previous = self.state.pop(slot, None)
            if event is not None:
                self.state[slot] = event
        self.size += (len(event.client) + EVENT_OVERHEAD) if event is not None else 0
        self.size -= (len(previous.client) + EVENT_OVERHEAD) if previous is not None else 0
        return previous

    def _count(self, event: RoomEvent | None, step: int) -> None:
        if event is not None:
            self.joined_count += step * (event.membership == "join")
            self.invited_count += step * (event.membership == "invite")

    def all_state(self) -> Iterator[RoomEvent]:
        yield from self.state.values()
        yield from self.members.values()

    def heroes(self) -> list[str]:
        """Users to name the room after, first come first: those in it or, failing these, those who were.

        Six of them, so that five are left without the one who asks.
        """
        if self._heroes is None:
            present = [e for e in self.members.values() if e.membership in ("join", "invite")]
            if len(present) < 2:
                present += [e for e in self.members.values() if e.membership in ("leave", "ban")]
                present.sort(key=lambda e: e.membership in ("leave", "ban"))
            else:
                present.sort(key=lambda e: (e.position, e.depth))
            self._heroes = [event.state_key or "" for event in present[:6]]
        return self._heroes

    # --- the feed ---

    def apply(self, output: OutputRoomEvent) -> None:
        """Take in what the feed tells; what is known already changes nothing."""
        event = output.event
        if event.position <= self.position:
            return
        self.position = event.position
        self.timeline.append(event.sparing())
        self.size += len(event.client) + EVENT_OVERHEAD
        while len(self.timeline) > TIMELINE_KEPT:
            gone = self.timeline.pop(0)
            self.floor = gone.position
            self.size -= len(gone.client) + EVENT_OVERHEAD
        if output.state_changed and event.state_key is not None:
            self._change(event.position, (event.type, event.state_key), event)
        for other in output.also_replaced:
            self._change(event.position, (other.type, other.state_key or ""), other.sparing())
        for type_, key in output.also_removed:
            self._change(event.position, (type_, key), None)
        if output.redacts is not None:
            self._outdate(output.redacts)

    def _change(self, position: int, slot: Slot, event: RoomEvent | None) -> None:
        previous = self._set(slot, event)
        if (previous and previous.event_id) == (event and event.event_id):
            return
        self.changes.append(StateChange(position, slot, previous))
        while len(self.changes) > CHANGES_KEPT:
            self.changes_floor = self.changes.pop(0).position

    def _outdate(self, event_id: str) -> None:
        """The content of an event went; note who holds it: the event, and one that took its place in the state."""
        former = (change.previous for change in self.changes if change.previous is not None)
        for event in (*self.timeline, *self.all_state(), *former):
            if event_id in (event.event_id, event.replaces):
                self.stale.add(event.event_id)

    def refreshed(self, events: Iterable[RoomEvent]) -> None:
        """Put the newly fetched forms of `stale` events in place of the old ones."""
        fresh = {event.event_id: event for event in events}
        for index, event in enumerate(self.timeline):
            if event.event_id in fresh:
                self.timeline[index] = fresh[event.event_id]
        for event in fresh.values():
            slot = (event.type, event.state_key or "")
            current = self.get(slot) if event.state_key is not None else None
            if current is not None and current.event_id == event.event_id:
                self._set(slot, event)
        for change in self.changes:
            if change.previous is not None and change.previous.event_id in fresh:
                change.previous = fresh[change.previous.event_id]
        self.stale.difference_update(fresh)

    # --- looking back ---

    def changed_after(self, position: int) -> dict[Slot, RoomEvent | None] | None:
        """The slots that changed after `position`, each with what stood there then.

        `None` where the room does not remember that far back.
        """
        if position < self.changes_floor:
            return None
        before: dict[Slot, RoomEvent | None] = {}
        for change in reversed(self.changes):
            if change.position <= position:
                break
            before[change.slot] = change.previous
        return before

    def newest(
        self, after: int, upto: int, limit: int, wants: Callable[[RoomEvent], bool]
    ) -> tuple[list[RoomEvent], bool] | None:
        """The newest `limit` wanted events in (after, upto], oldest first, and whether older ones remain.

        Where events are missing before one, that is the end.  `None` where that cannot be told from memory.
        """
        found: list[RoomEvent] = []
        for event in reversed(self.timeline):
            position = event.position
            if position <= after:
                break
            if position > upto:
                continue
            wanted = wants(event)
            if wanted and len(found) == limit:
                found.reverse()
                return found, True
            if wanted:
                found.append(event)
            if event.gap:
                found.reverse()
                return found, True
        else:
            if self.floor > after:
                return None
        found.reverse()
        return found, False


_Load = tuple[list[OutputRoomEvent], list[Deferred[Room | None]]]
"""What is heard of a room that is being loaded, and who waits for it."""


class RoomCache:
    """The rooms in memory, the longest unused of which go when the budget is spent."""

    def __init__(self, rooms: RoomAPI, heard: Heard, budget: CacheBudget) -> None:
        self._rooms = rooms
        self._heard = heard
        self.cache: Cache[str, Room] = Cache("sync_rooms", budget, lambda room: room.size, fresh_bytes=8 << 20)
        self._loading: dict[str, _Load] = {}
        self._outdated: dict[str, int] = {}
        self._refreshing: dict[str, list[Deferred[None]]] = {}
        self._cleared = 0

    def peek(self, room_id: str) -> Room | None:
        """The room if it is in memory and can be used as it is."""
        room = self.cache.get(room_id)
        return None if room is None or room.stale else room

    async def get(self, room_id: str) -> Room:
        """The room, loaded if need be.  Use what is returned before waiting for anything else."""
        room = self.cache.get(room_id)
        while room is None or room.stale:
            if room is None:
                room = await self._load(room_id)
            else:
                await self._refresh(room)
                room = self.cache.get(room_id)
        return room

    def apply(self, output: OutputRoomEvent) -> None:
        """Pass what the feed tells on to the room, also to one that is being loaded."""
        room_id = output.event.room_id
        loading = self._loading.get(room_id)
        if loading is not None:
            loading[0].append(output)
        room = self.cache.peek(room_id)
        if room is not None:
            size = room.size
            room.apply(output)
            if room.size != size:
                self.cache.put(room_id, room)

    def rewritten(self, room_id: str, position: int) -> None:
        """The state of a room was replaced as a whole: it is loaded anew, also where it is being loaded."""
        if room_id in self._loading:
            self._outdated[room_id] = position
        self.cache.pop(room_id)

    def forget(self, room_id: str) -> None:
        """Leave out a room that was deleted."""
        self.cache.pop(room_id)

    def clear(self) -> None:
        """Forget all rooms, those being loaded too: for when the feed may have missed something."""
        self._cleared += 1
        while self.cache.evict_oldest():
            pass

    async def load(self, room_ids: Iterable[str]) -> None:
        """See to it that rooms are in memory, those that are not with one question; one that fails is left out."""
        wanted = [r for r in room_ids if self.cache.peek(r) is None and r not in self._loading]
        if len(wanted) < 2:
            return
        loads: dict[str, _Load] = {room_id: ([], []) for room_id in wanted}
        self._loading.update(loads)
        made: dict[str, Room] = {}
        cleared = self._cleared
        try:
            views = await self._rooms.room_views(wanted, TIMELINE_LOADED)
            if await self._heard.reach(max((view.position for view in views), default=0), 0, CATCH_UP_SECONDS):
                for view in views:
                    room = self._made(view, loads[view.room_id][0], cleared)
                    if room is not None:
                        made[view.room_id] = room
        except MatrixError as error:
            log.debug("rooms are loaded one by one: {error}", error=error.error)
        finally:
            for room_id, (_, waiters) in loads.items():
                del self._loading[room_id]
                self._outdated.pop(room_id, None)
                for each in list(waiters):
                    each.callback(made.get(room_id))

    def _made(self, view: RoomView, missed: list[OutputRoomEvent], cleared: int) -> Room | None:
        """A room of what was loaded, and of what was heard meanwhile; `None` where that is out of date already."""
        if cleared != self._cleared or view.rewritten < self._outdated.get(view.room_id, 0):
            return None
        room = Room(view)
        for output in missed:
            room.apply(output)
        self.cache.put(view.room_id, room)
        return room

    async def _load(self, room_id: str) -> Room | None:
        """Load a room, or wait for another who does; `None` where that came to nothing."""
        loading = self._loading.get(room_id)
        if loading is not None:
            waiter: Deferred[Room | None] = Deferred(loading[1].remove)
            loading[1].append(waiter)
            return await waiter
        missed: list[OutputRoomEvent] = []
        waiters: list[Deferred[Room | None]] = []
        self._loading[room_id] = (missed, waiters)
        room = None
        cleared = self._cleared
        try:
            view = await self._rooms.room_view(room_id, TIMELINE_LOADED)
            if not await self._heard.reach(view.position, 0, CATCH_UP_SECONDS):
                raise Unavailable("events are not being passed on")
            room = self._made(view, missed, cleared)
        finally:
            del self._loading[room_id]
            self._outdated.pop(room_id, None)
            for each in list(waiters):
                each.callback(room)
        return room

    async def _refresh(self, room: Room) -> None:
        waiters = self._refreshing.get(room.room_id)
        if waiters is not None:
            waiter: Deferred[None] = Deferred(waiters.remove)
            waiters.append(waiter)
            await waiter
            return
        waiters = self._refreshing[room.room_id] = []
        try:
            wanted = list(room.stale)
            fresh = await self._rooms.events(wanted)
            room.refreshed(fresh)
            if room.stale.intersection(wanted):
                self.cache.pop(room.room_id)
        except BaseException:
            self.cache.pop(room.room_id)
            raise
        finally:
            del self._refreshing[room.room_id]
            for waiter in list(waiters):
                waiter.callback(None)
