"""What an event refers to and is not here is fetched from other servers.

Server-Server API, "Backfilling and retrieving missing events", "Retrieving event authorisation information".
First the events between those that are here and the new one are asked for, a bounded number of them.  If that does
not reach what is here, the state before an event is taken from another server's word, and a gap stays before it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from twisted.internet.defer import Deferred, gatherResults

from ..database.engines import Database
from ..matrix.admission import KnownEvent, auth_keys, judge_apart
from ..matrix.auth_rules import AuthError, check_auth
from ..matrix.events import Event, ReceivedEvent
from ..matrix.ordering import oldest_first
from ..matrix.state_res import auth_order
from .adoption import Adoption
from .peers import MISSING_LIMIT, Deadline, Peers, StateIds
from .room import Room
from .snapshots import StateMap
from .states import States
from .steps import Batch
from .store import FEW, EventStore, Standing
from .tables import events as event_table
from .tables.events import ASIDE, REJECTED
from .verifying import Verifying

ROUNDS = 5
"""How often one server is asked for what comes before the events that it gave."""

LATEST = 20
EARLIEST = 50
"""How many events one question for missing ones names."""

ONE_BY_ONE = 30
"""State events that are asked for one at a time; if more are missing, the whole state is."""

AT_ONCE = 6
"""Questions for single events that are under way at the same time."""

CHAIN_ROUNDS = 10
CHAIN_EVENTS = 200
"""How far the authority of an event is followed, one event at a time."""

READ_AT_ONCE = 1000
JUDGED_AT_ONCE = 100


class Untold(Exception):
    """A server does not give the events that an event refers to."""


class _Told(NamedTuple):
    """A state by another server's word, and whether it is whole: nothing in it was missing or rejected here."""

    state: StateMap
    is_whole: bool


class Missing:
    """Fetches events for rooms."""

    def __init__(
        self,
        *,
        database: Database,
        store: EventStore,
        states: States,
        adoption: Adoption,
        peers: Peers,
        verifying: Verifying,
    ) -> None:
        self._database = database
        self._states = states
        self._store = store
        self._adoption = adoption
        self._peers = peers
        self._verifying = verifying

    # --- earlier events ---

    async def earlier(
        self, room: Room, server: str, received: ReceivedEvent, deadline: Deadline
    ) -> list[ReceivedEvent]:
        """Events before one whose ``prev_events`` are not all here, oldest first; none that is here.

        The first of them may themselves refer to what is not here.  `Untold` if the server answers, and not with what
        the event itself refers to.
        """
        found: dict[str, ReceivedEvent] = {}
        latest = [received]
        for number in range(ROUNDS):
            ids = [one.event.event_id for one in latest][:LATEST]
            earliest = list(room.head.extremities[-EARLIEST:])
            pdus = await self._peers.missing_events(server, room.room_id, earliest, ids, deadline)
            fresh = [
                one
                for one in await self._verifying.read(room, pdus or [], {})
                if one.event.event_id not in found and one.event.event_id != received.event.event_id
            ]
            for one in fresh:
                if not await self.is_here(room, one.event.event_id):
                    found[one.event.event_id] = one
            latest = await self.loose(room, [received, *found.values()])
            if number == 0 and pdus is not None and any(one is received for one in latest):
                raise Untold
            # An answer that has room for more says that there is no more to be had.
            if not latest or not fresh or len(pdus or ()) < MISSING_LIMIT:
                break
        wanted = self._before(received, found)
        return oldest_first(found[event_id] for event_id in wanted)

    def _before(self, received: ReceivedEvent, found: dict[str, ReceivedEvent]) -> set[str]:
        """Those of the events found which really come before one."""
        wanted: set[str] = set()
        waiting = list(received.event.prev_events)
        while waiting:
            event_id = waiting.pop()
            if event_id in found and event_id not in wanted:
                wanted.add(event_id)
                waiting += found[event_id].event.prev_events
        return wanted

    async def loose(self, room: Room, received: Sequence[ReceivedEvent]) -> list[ReceivedEvent]:
        """Those of some events that refer to what is neither here nor among them."""
        among = {one.event.event_id for one in received}
        among |= await self._here(room, {prev for one in received for prev in one.event.prev_events} - among)
        return [one for one in received if not among.issuperset(one.event.prev_events)]

    async def is_here(self, room: Room, event_id: str) -> bool:
        """Whether an event is part of the room's timeline here."""
        return bool(await self._here(room, [event_id]))

    async def _here(self, room: Room, event_ids: Collection[str]) -> set[str]:
        """Those of some events that are part of the room's timeline here."""
        here = {event_id for event_id in event_ids if event_id in room.placed or event_id in room.head.extremities}
        wanted = [event_id for event_id in event_ids if event_id not in here]
        read = self._database.read if len(wanted) <= FEW else self._database.read_long
        for start in range(0, len(wanted), READ_AT_ONCE):
            here.update(await read(event_table.placed_of, wanted[start : start + READ_AT_ONCE], room.room_nid))
        return here

    # --- authority ---

    async def authority(
        self, room: Room, server: str, event: Event, deadline: Deadline, among: Collection[str] = ()
    ) -> bool:
        """Fetch the auth events of an event, with all that authorises them; whether they are here now.

        Those `among` come by themselves.
        """
        wanted = await self._absent([event_id for event_id in event.auth_events if event_id not in among])
        if wanted:
            pdus = await self._peers.event_auth(server, room.room_id, event.event_id, deadline)
            await self.store_apart(room, await self._state_events(room, pdus or []))
            wanted = await self._absent(wanted)
        if wanted:
            await self._follow(room, server, wanted, deadline)
            wanted = await self._absent(wanted)
        return not wanted

    async def _follow(self, room: Room, server: str, wanted: Collection[str], deadline: Deadline) -> None:
        """Fetch events one at a time, and then what authorises them."""
        found: dict[str, Event] = {}
        for _ in range(CHAIN_ROUNDS):
            if not wanted or len(found) + len(wanted) > CHAIN_EVENTS:
                break
            pdus = await self._single_events(server, wanted, deadline)
            fresh = {event.event_id: event for event in await self._state_events(room, pdus)}
            found.update(fresh)
            cited = {auth_id for event in fresh.values() for auth_id in event.auth_events}
            wanted = await self._absent(cited - found.keys())
        await self.store_apart(room, found.values())

    async def _absent(self, event_ids: Collection[str]) -> list[str]:
        known = await self._store.standings(event_ids)
        return [event_id for event_id in event_ids if event_id not in known]

    async def _single_events(self, server: str, event_ids: Collection[str], deadline: Deadline) -> list[bytes]:
        found: list[bytes] = []
        wanted = list(event_ids)
        for start in range(0, len(wanted), AT_ONCE):
            asked = [
                Deferred.fromCoroutine(self._peers.event(server, event_id, deadline))
                for event_id in wanted[start : start + AT_ONCE]
            ]
            found += [pdu for pdu in await gatherResults(asked, consumeErrors=True) if pdu is not None]
        return found

    async def _state_events(self, room: Room, pdus: Sequence[bytes]) -> list[Event]:
        received = await self._verifying.read(room, pdus, {})
        return [one.event for one in received if one.event.state_key is not None]

    async def store_apart(self, room: Room, events: Iterable[Event]) -> None:
        """Store state and auth events apart from the timeline; as rejected, those that theirs do not allow."""
        fresh = {event.event_id: event for event in events}
        for event_id in await self._standings(fresh):
            del fresh[event_id]
        if not fresh:
            return
        try:
            ordered = auth_order(fresh.values())
        except ValueError:
            return
        ordered.sort(key=lambda event: event.type != "m.room.create")
        cited = {auth_id for event in ordered for auth_id in event.auth_events}
        cited |= {"$" + room.room_id[1:]} - fresh.keys()
        standings = await self._standings(cited)
        by_nid = await self._store.by_nid([one.event_nid for one in standings.values()])
        known = {
            event_id: KnownEvent(by_nid[one.event_nid], one.rejected)
            for event_id, one in standings.items()
            if one.event_nid in by_nid
        }
        rejected: set[str] = set()
        for start in range(0, len(ordered), JUDGED_AT_ONCE):
            rejected.update(judge_apart(ordered[start : start + JUDGED_AT_ONCE], known))
            await self._verifying.pause(start)
        await self._adoption.store_outliers(room, ordered, rejected)

    async def _standings(self, event_ids: Iterable[str]) -> dict[str, Standing]:
        wanted, found = list(event_ids), dict[str, Standing]()
        for start in range(0, len(wanted), READ_AT_ONCE):
            found.update(await self._store.standings(wanted[start : start + READ_AT_ONCE]))
        return found

    # --- states ---

    async def absent_before(self, room: Room, event: Event) -> list[str]:
        """Those of the ``prev_events`` of an event that are not here."""
        here = await self._here(room, event.prev_events)
        return [event_id for event_id in event.prev_events if event_id not in here]

    async def state_after(self, room: Room, server: str, event_id: str, deadline: Deadline) -> StateMap | None:
        """The state after an event that is not here, as another server tells it; `None` if it does not.

        The event is kept apart from the timeline, and so is the state.
        """
        pdu = await self._peers.event(server, event_id, deadline)
        received = await self._verifying.read(room, [pdu], {}) if pdu is not None else []
        if not received or received[0].event.event_id != event_id:
            return None
        told = await self._state_told(room, server, event_id, deadline)
        event = received[0].event
        before = None if told is None else told.state
        if told is None or before is None or event.state_key is None:
            return before
        await self.authority(room, server, event, deadline)
        await self.store_apart(room, [event])
        rows = await self._database.read(event_table.slots_of, [event_id])
        if not rows or rows[0].slot_nid is None or rows[0].status in (REJECTED, ASIDE):
            return before
        if told.is_whole:
            # Without what was left out, the state says nothing about what it allowed.
            try:
                check_auth(event, await self._states.at(before, auth_keys(event), Batch(room, room.head)))
            except AuthError:
                return before
        return before.set(rows[0].slot_nid, rows[0].event_nid)

    async def state_before(self, room: Room, server: str, event_id: str, deadline: Deadline) -> StateMap | None:
        """The state before an event as another server tells it; `None` if it does not, or not enough of it."""
        told = await self._state_told(room, server, event_id, deadline)
        return None if told is None else told.state

    async def _state_told(self, room: Room, server: str, event_id: str, deadline: Deadline) -> _Told | None:
        ids = await self._peers.state_ids(server, room.room_id, event_id, deadline)
        if ids is None:
            return None
        if not await self._fetch_state(room, server, event_id, ids, deadline):
            return None
        return await self._state_of(room, ids.pdu_ids)

    async def _fetch_state(self, room: Room, server: str, event_id: str, ids: StateIds, deadline: Deadline) -> bool:
        """Store what of a state and its auth chain is not here; false if the server does not give all of it.

        A state with holes would be taken for one in which nothing was ever set there.
        """
        named = dict.fromkeys([*ids.auth_chain_ids, *ids.pdu_ids])
        known = await self._standings(named)
        absent = [one for one in named if one not in known]
        if len(absent) > ONE_BY_ONE:
            pdus = await self._peers.state(server, room.room_id, event_id, deadline)
        else:
            pdus = await self._single_events(server, absent, deadline)
        events = await self._state_events(room, pdus or [])
        await self.store_apart(room, [event for event in events if event.event_id in named])
        return pdus is not None and len(pdus) >= len(absent)

    async def _state_of(self, room: Room, event_ids: Sequence[str]) -> _Told | None:
        """The state that events make: those of the room that are here and were not rejected."""
        state: dict[int, int] = {}
        create_nid = None
        for start in range(0, len(event_ids), READ_AT_ONCE):
            rows = await self._database.read_long(event_table.slots_of, event_ids[start : start + READ_AT_ONCE])
            for row in rows:
                if row.room_nid != room.room_nid or row.slot_nid is None or row.status in (REJECTED, ASIDE):
                    continue
                if state.setdefault(row.slot_nid, row.event_nid) != row.event_nid:
                    return None
                if row.type == "m.room.create":
                    create_nid = row.event_nid
        return _Told(StateMap(state), len(state) == len(set(event_ids))) if create_nid is not None else None
