"""Rooms that other servers have: a row for a room that this one is not in, state and auth events known apart from
the timeline, and the join with which a whole state comes in.

A big room is stored in many transactions: first what is known apart from the timeline, which is harmless by
itself, and at the end the join, with which all of it counts.  A crash in between leaves a room that this server
is not in; to join again finds what is stored already.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

import msgspec
import orjson

from ..database.engines import Database
from ..database.outbox import Outbox
from ..database.statements import Transaction
from ..matrix.errors import MatrixError, not_found
from ..matrix.events import Event, ReceivedEvent, redact_event
from ..matrix.room_versions import RoomVersion
from ..matrix.state_res import auth_order
from .api import OUTPUT_ROOM_EVENT, STATE_COMPLETE, StateComplete
from .duties import PURGE, RECHECK, Duties
from .input import RoomWriter
from .redactions import Redaction, Redactions
from .room import Also, Arrival, Room, Rooms, Way
from .servers import Servers
from .snapshots import Snapshots, StateMap, decode_changes, encode_changes
from .steps import Batch, is_local
from .tables import events as event_table
from .tables import rooms as room_table
from .tables import state as state_table
from .tables.duties import duties_about
from .tables.names import Names, Slot
from .user_directory import UserDirectory

CHUNK = 200
"""Events that are stored by one transaction."""


class PartialJoin(NamedTuple):
    """What is known of a room whose members were left out: who helped, and which servers are in it."""

    resident: str
    servers: list[str]


class Adoption:
    """Takes in rooms from other servers."""

    def __init__(
        self,
        *,
        database: Database,
        outbox: Outbox,
        names: Names,
        rooms: Rooms,
        writer: RoomWriter,
        snapshots: Snapshots,
        redactions: Redactions,
        servers: Servers,
        user_directory: UserDirectory,
        duties: Duties,
        server_name: str,
    ) -> None:
        self._database = database
        self._duties = duties
        self._outbox = outbox
        self._names = names
        self._rooms = rooms
        self._writer = writer
        self._snapshots = snapshots
        self._redactions = redactions
        self._servers = servers
        self._user_directory = user_directory
        self._server_name = server_name
        # The same as the writer's: numbers grow along the graph.
        self._numbers = writer.event_numbers

    async def stub(self, room_id: str, version: RoomVersion) -> Room:
        """The room; where it is not known, a new one that this server is not in."""

        async def insert(txn: Transaction) -> None:
            if await room_table.room_by_id(txn, room_id) is not None:
                return
            if await duties_about(txn, PURGE, room_id):
                raise MatrixError(
                    503, "M_UNKNOWN", "The room is being deleted here; try again later.", retry_after_ms=10_000
                )
            await room_table.insert_room(txn, room_id, version.identifier, b"[]", room_table.ELSEWHERE)

        room = await self._rooms.find(room_id)
        if room is None:
            with self._rooms.ownership.writing(room_id):
                await self._database.write(insert)
            room = await self._rooms.get(room_id)
        return room

    # --- events apart from the timeline ---

    async def store_outliers(
        self, room: Room, events: Iterable[Event], rejected: Collection[str] = ()
    ) -> dict[str, int]:
        """Store state and auth events apart from the timeline, in any order; returns their numbers by ID.

        Signatures and hashes were checked; ``rejected`` are the IDs of those that their auth events do not allow.
        Those that are known already keep what they have.  Left out are events whose auth events are neither here nor
        among them, and those that no database takes.  `ValueError` if they authorise each other in a circle.
        """
        ordered = list({event.event_id: event for event in events}.values())
        if not _is_in_order(ordered):
            ordered = auth_order(ordered)
            # Where the create event is implied, the order does not know that it authorises all others.
            ordered.sort(key=lambda event: event.type != "m.room.create")
        found: dict[str, int] = {}
        for start in range(0, len(ordered), CHUNK):
            chunk = [event for event in ordered[start : start + CHUNK] if is_storable(event)]
            waiting = await self._waiting(room, chunk)
            with self._rooms.writing(room):
                nids = list(await self._numbers.take(len(chunk)))
                store = self._database.write(self._store_chunk, room.room_nid, chunk, nids, rejected, waiting)
                found.update(await store)
        return found

    async def _waiting(self, room: Room, events: list[Event]) -> dict[str, Redaction]:
        """The redactions that came before some of these events."""
        batch = Batch(room, room.head)
        ids = await self._database.read(
            event_table.with_waiting_redactions, [event.event_id for event in events], room.room_nid
        )
        found = {}
        for event in events:
            if event.event_id in ids and (redaction := await self._redactions.waiting_for(batch, event)) is not None:
                found[event.event_id] = redaction
        return found

    async def _store_chunk(
        self,
        txn: Transaction,
        room_nid: int,
        events: list[Event],
        nids: list[int],
        rejected: Collection[str],
        waiting: Mapping[str, Redaction],
    ) -> dict[str, int]:
        cited = {one for event in events for one in (event.event_id, *_authorities(event))}
        if await room_table.room_by_nid(txn, room_nid) is None:
            # It was deleted meanwhile: nobody would ever delete what is stored now.
            raise not_found("This server does not know the room.")
        found = await event_table.known_events(txn, list(cited))
        elsewhere = {row.event_id for row in found if row.room_nid != room_nid}
        events = [event for event in events if event.event_id not in elsewhere]
        known = {row.event_id: row.event_nid for row in found if row.status != event_table.ASIDE}
        aside = {row.event_id: row.event_nid for row in found if row.status == event_table.ASIDE}
        names = await self._names.intern(txn, {name for event in events for name in (event.sender, event.type)})
        slots = await self._names.intern_slots(txn, {_slot(event) for event in events if event.state_key is not None})
        rows = []
        for event, nid in zip(events, nids, strict=False):
            authorities = [known.get(one) for one in _authorities(event)]
            if event.event_id in known or None in authorities:
                continue
            known[event.event_id] = nid
            status = event_table.REJECTED if event.event_id in rejected else event_table.ACCEPTED
            if event.event_id in aside:
                await event_table.renumber(txn, aside[event.event_id], nid, status)
                continue
            redaction = waiting.get(event.event_id)
            if redaction is not None:
                await event_table.redaction_applied(txn, event.event_id, redaction.event_nid)
            rows.append(
                (
                    nid,
                    event.event_id,
                    room_nid,
                    names[event.type],
                    slots[_slot(event)] if event.state_key is not None else None,
                    names[event.sender],
                    event.depth,
                    0,
                    event.origin_server_ts,
                    0,
                    0,
                    status,
                    0,
                    None,
                    redaction.event_nid if redaction else None,
                    None,
                    None,
                    (redact_event(event) if redaction else event).pdu,
                )
            )
        await event_table.insert_events(txn, rows)
        return {event.event_id: known[event.event_id] for event in events if event.event_id in known}

    # --- whole states ---

    async def state_map(self, room: Room, state: Mapping[Slot, Event]) -> StateMap:
        """A state as `Arrival.before` has it, once its events are stored by `store_outliers`.

        `LookupError` if one of them is not stored.
        """
        keys, slots = list(state), {}
        for start in range(0, len(keys), CHUNK):
            slots.update(await self._database.write(self._names.intern_slots, keys[start : start + CHUNK]))
        ids = [event.event_id for event in state.values()]
        rows = await self._database.read_long(event_table.known_events, ids)
        nids = {row.event_id: row.event_nid for row in rows}
        missing = next((one for one in ids if one not in nids), None)
        if missing is not None:
            raise LookupError(f"{missing} is not stored")
        return StateMap({slots[key]: nids[event.event_id] for key, event in state.items()})

    async def adopt(
        self,
        room: Room,
        join: ReceivedEvent,
        state: Mapping[Slot, Event],
        others: Iterable[Event] = (),
        *,
        partial: PartialJoin | None = None,
        also: Also | None = None,
    ) -> str:
        """Let a room take over a whole state, with the join of a local user as its next live event; returns its ID.

        `state` is that before the join, `others` are the rest of the auth chains, all checked
        (`matrix.handshakes.join_check`).  The room is one of `stub`, or one that all local users had left.
        With ``partial``, memberships are missing in the state, and `complete` is called later.  `also` shares the
        transaction of the join.  403 where the join is not allowed.
        """
        standing = room_table.RESIDENT if partial is None else room_table.PARTIAL

        async def settle(txn: Transaction, room_nid: int) -> None:
            await room_table.set_standing(txn, room_nid, standing)
            await room_table.delete_partial(txn, room_nid)
            if partial is not None:
                servers = orjson.dumps(partial.servers)
                await room_table.insert_partial(txn, room_nid, join.event.event_id, partial.resident, servers)
            if also is not None:
                await also(txn, room_nid)
            txn.after_commit(lambda: self._settled(room, standing))

        nids = await self.store_outliers(room, [*others, *state.values()])
        kept = {key: event for key, event in state.items() if event.event_id in nids}
        before = await self.state_map(room, kept)
        known = {nids[event.event_id]: event for event in kept.values()}
        arrival = Arrival(join, Way.TAKEOVER, before, strict=True, known=known)
        [outcome] = await self._writer.take(room, [arrival], also=settle)
        return outcome.event_id

    def _settled(self, room: Room, standing: int) -> None:
        room.standing = standing
        self._servers.forget(room.room_nid)

    async def complete(self, room: Room, state: Mapping[Slot, Event], others: Iterable[Event] = ()) -> None:
        """Bring in what was missing of the state that a room was taken over with.

        `state` is the whole state before the join, `others` the rest of the auth chains.  Every state since then is
        completed with what it lacks; what has changed since stays, and is looked at again as a duty.
        """
        row = await self._database.read(room_table.partial_room, room.room_nid)
        if row is None:
            return
        nids = await self.store_outliers(room, [*others, *state.values()])
        kept = {key: event for key, event in state.items() if event.event_id in nids}
        whole = await self.state_map(room, kept)

        async def complete(txn: Transaction, room_nid: int) -> None:
            await self._complete(txn, room, row.join_nid, whole, kept)

        await self._writer.submit(room, [], also=complete)

    async def _complete(
        self, txn: Transaction, room: Room, join_nid: int, whole: StateMap, state: Mapping[Slot, Event]
    ) -> None:
        """States are stored as what they change over another: those that stand on one from before the join, and are
        few, are given what was missing, and all others have it with them."""
        [join] = await event_table.events_by_nid(txn, [join_nid])
        first = await state_table.snapshot(txn, join.snapshot_nid)
        assert first is not None
        given = set(await self._snapshots.state(txn, join.snapshot_nid))
        now = await room_table.room_by_nid(txn, room.room_nid)
        assert now is not None
        current = await self._snapshots.state(txn, now.snapshot_nid)
        missing = {slot: nid for slot, nid in whole.items() if slot not in given}
        rewritten = []
        for row in await state_table.spanning(txn, room.room_nid, first.step):
            delta = encode_changes({**missing, **decode_changes(row.delta)})
            await state_table.replace_delta(txn, row.snapshot_nid, delta)
            rewritten.append(row.snapshot_nid)
        position = await self._outbox.append(
            txn,
            OUTPUT_ROOM_EVENT,
            lambda position: msgspec.msgpack.encode(StateComplete(room_id=room.room_id, position=position)),
            headers={"output_room_event_type": STATE_COMPLETE, "room_id": room.room_id},
        )
        fresh = {slot: nid for slot, nid in missing.items() if slot not in current}
        await self._add_members(txn, room.room_nid, fresh, state, position)
        await room_table.set_standing(txn, room.room_nid, room_table.RESIDENT)
        await room_table.set_rewritten(txn, room.room_nid, position)
        await room_table.delete_partial(txn, room.room_nid)
        txn.after_commit(lambda: self._completed(room, rewritten))
        await self._duties.note(txn, RECHECK, room.room_nid, str(join_nid))

    async def _add_members(
        self, txn: Transaction, room_nid: int, fresh: Mapping[int, int], state: Mapping[Slot, Event], position: int
    ) -> None:
        """Members who are now part of the current state; whom our users were invited by before counts no more."""
        members = {key[1]: event for key, event in state.items() if key[0] == "m.room.member"}
        slots = await self._names.intern_slots(txn, [("m.room.member", user_id) for user_id in members])
        names = await self._names.intern(txn, members)
        rows, changes = [], []
        for user_id, event in members.items():
            nid = fresh.get(slots["m.room.member", user_id])
            if nid is None or event.membership is None:
                continue
            local = is_local(user_id, self._server_name)
            rows.append((names[user_id], room_nid, event.membership, nid, position, int(local)))
            changes.append((("m.room.member", user_id), event, local))
        await room_table.upsert_memberships(txn, rows)
        await self._user_directory.follow(txn, room_nid, changes, names)

    def _completed(self, room: Room, snapshot_nids: list[int]) -> None:
        self._snapshots.forget(snapshot_nids)
        self._servers.forget(room.room_nid)
        room.forget_states()
        room.standing = room_table.RESIDENT
        room.summary = None
        # What is in memory lacks what was brought in.
        room.stale = True


def is_storable(event: Event) -> bool:
    """Whether every database takes the event: not all have NUL characters in text."""
    texts = (event.event_id, event.sender, event.type, event.state_key or "", event.redacts or "", *event.prev_events)
    return not any("\0" in text for text in texts)


def _is_in_order(events: Iterable[Event]) -> bool:
    """Whether no event comes before, or with, what authorises it; as what was checked as a whole already is."""
    waiting: set[str] = set()
    seen: set[str] = set()
    for event in events:
        seen.add(event.event_id)
        if event.event_id in waiting:
            return False
        waiting.update(one for one in _authorities(event) if one not in seen)
    return True


def _authorities(event: Event) -> list[str]:
    """The IDs of the events that authorise an event, the create event among them where it is implied."""
    if event.version.create_event_in_auth_events or event.type == "m.room.create":
        return list(event.auth_events)
    return [*event.auth_events, "$" + event.room_id[1:]]


def _slot(event: Event) -> Slot:
    return event.type, event.state_key or ""
