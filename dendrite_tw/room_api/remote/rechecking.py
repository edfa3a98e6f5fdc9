"""What was taken into a room while members were missing is judged again when they are there.

An event of a user about whom nothing was known was believed on the member event that it named itself
(`Arrivals`).  If the state says otherwise, that the user was banned, say, other servers have rejected the event;
so it is taken out of the timeline and of all states, and with it what stands on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import orjson
from twisted.logger import Logger

from ...database.engines import Database
from ...database.outbox import Outbox
from ...database.statements import Transaction
from ...matrix.auth_rules import AuthError, auth_event_keys, check_auth
from ...matrix.events import Event
from ..api import OUTPUT_ROOM_EVENT, STATE_COMPLETE, StateComplete
from ..input import RoomWriter
from ..room import Room
from ..servers import Servers
from ..snapshots import Snapshots, decode_changes, encode_changes
from ..store import EventStore, RoomEvents, stored_event
from ..tables import events as event_table
from ..tables import rooms as room_table
from ..tables import state as state_table
from ..tables.events import EventRow
from ..tables.names import Names, Slot

log = Logger()

PIECE = 100
"""Events that are read at once."""

CREATE = ("m.room.create", "")


class Wrong(msgspec.Struct):
    """Events that do not hold after all: for each number the event, and what was in its place in the state, or 0."""

    rows: dict[int, EventRow] = {}
    before: dict[int, int] = {}
    ids: set[str] = set()


class Rechecking:
    """Judges again."""

    def __init__(
        self,
        *,
        database: Database,
        outbox: Outbox,
        names: Names,
        snapshots: Snapshots,
        store: EventStore,
        shown: RoomEvents,
        servers: Servers,
        writer: RoomWriter,
        server_name: str,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._names = names
        self._snapshots = snapshots
        self._store = store
        self._shown = shown
        self._servers = servers
        self._writer = writer
        self._server_name = server_name

    async def recheck(self, room: Room, join_nid: int) -> int:
        """Look at all live events since a join, whose states are complete by now; returns how many were wrong."""
        [join] = await self._database.read(event_table.events_by_nid, [join_nid])
        wrong = Wrong(rows={}, before={}, ids=set())
        after = join.position
        while rows := await self._database.read_long(event_table.live_after, room.room_nid, after, PIECE):
            for row in rows:
                after = row.position
                await self._judge(row, wrong)
        if wrong.rows:
            await self._writer.submit(room, [], also=lambda txn, _: self._take_out(txn, room, join, wrong))
            await self._writer.submit(room, [])
        return len(wrong.rows)

    async def _judge(self, row: EventRow, wrong: Wrong) -> None:
        event = stored_event(row)
        keys = auth_event_keys(
            version=event.version,
            type=event.type,
            sender=event.sender,
            state_key=event.state_key,
            content=event.content,
        )
        own = [] if event.state_key is None else [(event.type, event.state_key)]
        found = await self._database.read(self._look_up, row.snapshot_nid, [CREATE, *keys, *own])
        nids = {key: nid for key, held in found.items() if (nid := _corrected(held, wrong.before))}
        events = await self._store.by_nid(nids.values())
        try:
            if wrong.ids.intersection(event.auth_events):
                raise AuthError("what authorises it does not hold")
            check_auth(event, {key: events[nid] for key, nid in nids.items() if key in keys or key == CREATE})
        except AuthError as error:
            log.info("{event} in {room} is rejected: {error}", event=event.event_id, room=event.room_id, error=error)
            wrong.rows[row.event_nid] = row
            wrong.before[row.event_nid] = nids.get(own[0], 0) if own else 0
            wrong.ids.add(event.event_id)

    async def _look_up(self, txn: Transaction, snapshot_nid: int, keys: Sequence[Slot]) -> dict[Slot, int]:
        slots = {key: slot for key in keys if (slot := await self._names.find_slot(txn, key)) is not None}
        found = await self._snapshots.look_up(txn, snapshot_nid, slots.values())
        return {key: found[slot] for key, slot in slots.items() if slot in found}

    # --- taking out ---

    async def _take_out(self, txn: Transaction, room: Room, join: EventRow, wrong: Wrong) -> None:
        rewritten = await self._rewrite(txn, room, join, wrong.before)
        for row in wrong.rows.values():
            place = (
                0,
                row.snapshot_nid,
                0,
                event_table.REJECTED,
                row.gap,
                row.replaces_nid,
                row.redacted_by_nid,
                row.pdu,
            )
            await event_table.give_place(txn, row.event_nid, *place)
        now = await room_table.room_by_nid(txn, room.room_nid)
        assert now is not None
        ends = orjson.dumps(_ends(orjson.loads(now.extremities), wrong, join))
        await room_table.update_room(txn, room.room_nid, now.depth, ends, now.snapshot_nid, now.tape_nid)
        position = await self._outbox.append(
            txn,
            OUTPUT_ROOM_EVENT,
            lambda position: msgspec.msgpack.encode(StateComplete(room_id=room.room_id, position=position)),
            headers={"output_room_event_type": STATE_COMPLETE, "room_id": room.room_id},
        )
        await self._restore_members(txn, room, wrong, position)
        await room_table.set_rewritten(txn, room.room_nid, position)
        txn.after_commit(lambda: self._taken_out(room, rewritten, wrong))

    async def _rewrite(self, txn: Transaction, room: Room, join: EventRow, before: Mapping[int, int]) -> list[int]:
        """Put what was there before in the place of wrong events, in all states since the join."""
        first = await state_table.snapshot(txn, join.snapshot_nid)
        assert first is not None
        rewritten = []
        for row in await state_table.since(txn, room.room_nid, first.step):
            changes = decode_changes(row.delta)
            corrected = {slot: _corrected(nid, before) for slot, nid in changes.items()}
            if corrected != changes:
                await state_table.replace_delta(txn, row.snapshot_nid, encode_changes(corrected))
                rewritten.append(row.snapshot_nid)
        return rewritten

    async def _restore_members(self, txn: Transaction, room: Room, wrong: Wrong, position: int) -> None:
        """The memberships that wrong events had set are again those of before."""
        for nid, row in wrong.rows.items():
            event = stored_event(row)
            if event.membership is None or event.state_key is None:
                continue
            user_nid = (await self._names.intern(txn, [event.state_key]))[event.state_key]
            current = await room_table.membership_in(txn, user_nid, room.room_nid)
            if current is None or current.event_nid != nid:
                continue
            kept = await event_table.events_by_nid(txn, [_corrected(nid, wrong.before)])
            if kept:
                local = int(event.state_key.endswith(f":{self._server_name}"))
                member = stored_event(kept[0])
                restored = (user_nid, room.room_nid, member.membership, kept[0].event_nid, position, local)
                await room_table.upsert_memberships(txn, [restored])
            else:
                await room_table.delete_memberships(txn, [(user_nid, room.room_nid)])

    def _taken_out(self, room: Room, snapshot_nids: list[int], wrong: Wrong) -> None:
        self._snapshots.forget(snapshot_nids)
        self._servers.forget(room.room_nid)
        for nid in wrong.rows:
            self._shown.forget(nid)
        room.forget_states()
        room.summary = None
        room.stale = True


def _corrected(nid: int, before: Mapping[int, int]) -> int:
    """What is in the place of an event: itself, if it holds."""
    while nid in before:
        nid = before[nid]
    return nid


def _ends(extremities: Sequence[str], wrong: Wrong, join: EventRow) -> list[str]:
    """The ends of the timeline without wrong events: those before them, where nothing else follows them."""
    by_id: dict[str, Event] = {event.event_id: event for event in map(stored_event, wrong.rows.values())}
    ends: dict[str, None] = {}
    waiting = list(extremities)
    while waiting:
        event_id = waiting.pop()
        if event_id in by_id:
            waiting += by_id[event_id].prev_events
        else:
            ends[event_id] = None
    return list(ends) or [join.event_id]
