"""The transaction of a batch: events and states, what follows from them, and what is told of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec
import orjson

from ..database.outbox import Outbox
from ..database.statements import Transaction
from ..matrix.events import Event, client_json
from ..matrix.relations import relation_of
from .api import OUTPUT_ROOM_EVENT, OutputRoomEvent, RoomEvent
from .duties import GUESTS, TOMBSTONE, Duties
from .room import Room, Way
from .snapshots import encode_changes
from .steps import Accepted, Change, Step, is_local
from .store import room_event
from .tables import edges as edge_table
from .tables import events as event_table
from .tables import rooms as room_table
from .tables.names import Names, Slot
from .tables.state import insert_snapshots
from .user_directory import UserDirectory

ALSO_LIMIT = 500
ALSO_BYTES = 256 << 10
"""Other changes of the state that are told one by one with an event, and the bytes of their events."""


class Storing:
    """Stores what the writer has accepted."""

    def __init__(
        self, *, outbox: Outbox, names: Names, duties: Duties, user_directory: UserDirectory, server_name: str
    ) -> None:
        self._outbox = outbox
        self._names = names
        self._duties = duties
        self._user_directory = user_directory
        self._server_name = server_name

    async def store_works(
        self, txn: Transaction, room: Room, works: list[Accepted], moved: Callable[[int], None]
    ) -> None:
        """Store a batch, with what shares its transaction; `moved` is told the room's number once it is on disk."""
        steps = [step for work in works for step in work.steps]
        room_nid = room.room_nid
        if not room_nid:
            room_nid = await room_table.insert_room(txn, room.room_id, room.version.identifier, b"[]", room.standing)
        # Before anybody hears of the events: who then asks for the room finds it with them.
        txn.after_commit(lambda: moved(room_nid))
        if steps:
            await self._store_steps(txn, room_nid, steps)
        for accepted in works:
            if accepted.work.also is not None:
                await accepted.work.also(txn, room_nid)

    async def _store_steps(self, txn: Transaction, room_nid: int, steps: list[Step]) -> None:
        """Store events, state, what follows from them, and the outbox rows."""
        names = await self._names.intern(txn, _names_of(steps))
        positions: dict[int, int] = {}
        rows = []
        for step in steps:
            position = step.position
            if position is None:
                position = await self._tell(txn, step)
            positions[step.event_nid] = position
            placed_at = 0 if step.way is Way.ASIDE else position
            if step.known:
                await self._give_place(txn, step, placed_at)
            else:
                rows.append(_event_row(step, room_nid, names, placed_at))
        await event_table.insert_events(txn, rows)
        await insert_snapshots(
            txn,
            [
                (link.snapshot_nid, room_nid, link.step, link.base_nid, encode_changes(link.changes))
                for step in steps
                for link in step.links
            ],
        )
        if any(step.changes or step.way is Way.ASIDE for step in steps):
            await self._store_members(txn, room_nid, steps, names, positions)
        await self._store_consequences(txn, room_nid, steps, names)
        for step in steps:
            if step.missing or step.awaited or step.event.redacts is not None or step.redaction is not None:
                await self._store_references(txn, room_nid, step)
        for step in steps:
            if positions[step.event_nid] > 0 and _rewrites(step):
                await room_table.set_rewritten(txn, room_nid, positions[step.event_nid])
        last = steps[-1].after
        await room_table.update_room(
            txn, room_nid, last.depth, orjson.dumps(last.extremities), last.snapshot_nid, last.tape.chain.snapshot_nid
        )

    async def _tell(self, txn: Transaction, step: Step) -> int:
        """Put a live event into the outbox; returns its position."""
        draft = step.draft
        shown = room_event(
            step.event,
            position=0,
            replaced=step.replaced,
            txn_device=draft.device_id if draft else None,
            txn_id=draft.transaction_id if draft else None,
            redacted_by=client_json(step.redaction) if step.redaction else None,
            gap=step.gap,
        )
        is_current = step.way is Way.ASIDE
        also_replaced: list[RoomEvent] = []
        also_removed: list[Slot] = []
        if step.changes:
            is_current = any(change.event_nid == step.event_nid for change in step.changes)
            others = [change for change in step.changes if change.event_nid != step.event_nid]
            if step.way is not Way.TAKEOVER and _rewrites(step):
                also_removed = [change.slot for change in others if _is_departure(change)][:ALSO_LIMIT]
            elif step.way is not Way.TAKEOVER and others:
                also_replaced = await self._also_replaced(txn, others)
                also_removed = [change.slot for change in others if change.event is None]
        return await self._outbox.append(
            txn,
            OUTPUT_ROOM_EVENT,
            lambda position: _message(shown, step, position, is_current, also_replaced, also_removed),
        )

    async def _also_replaced(self, txn: Transaction, changes: list[Change]) -> list[RoomEvent]:
        """Other state that an event made current, as it is shown."""
        places = {
            row.event_nid: row.position
            for row in await event_table.positions_of(txn, [change.event_nid for change in changes])
        }
        return [
            room_event(change.event, position=places.get(change.event_nid, 0), replaced=change.replaced)
            for change in changes
            if change.event is not None
        ]

    async def _give_place(self, txn: Transaction, step: Step, position: int) -> None:
        if step.way is Way.ASIDE:
            return
        if step.aside_nid is not None:
            await event_table.renumber(txn, step.aside_nid, step.event_nid, step.status)
        await event_table.give_place(
            txn,
            step.event_nid,
            position,
            step.before_nid,
            step.current_nid,
            step.status,
            int(step.gap),
            step.replaced_nid,
            step.redaction_nid,
            step.event.pdu,
        )

    async def _store_members(
        self, txn: Transaction, room_nid: int, steps: list[Step], names: dict[str, int], positions: dict[int, int]
    ) -> None:
        """Who is in the room, by the current state; and whom our users are invited by elsewhere."""
        rows: dict[int, tuple[object, ...]] = {}
        removed: dict[int, int] = {}
        for step in steps:
            position = positions[step.event_nid]
            for user_id, nid, event in _members(step):
                user_nid = names[user_id]
                rows.pop(user_nid, None)
                removed.pop(user_nid, None)
                if event is not None and event.membership is not None:
                    local = int(is_local(user_id, self._server_name))
                    rows[user_nid] = (user_nid, room_nid, event.membership, nid, position, local)
                else:
                    removed[user_nid] = position
        await room_table.upsert_memberships(txn, list(rows.values()))
        if removed:
            await room_table.remove_local_memberships(
                txn, [(user_nid, room_nid, position) for user_nid, position in removed.items()]
            )
            await room_table.delete_far_memberships(txn, [(user_nid, room_nid) for user_nid in removed])

    async def _store_consequences(
        self, txn: Transaction, room_nid: int, steps: list[Step], names: dict[str, int]
    ) -> None:
        """Relations, the user directory, and what remains to be done."""
        await room_table.insert_relations(
            txn,
            [
                (relation.event_id, step.event_nid, room_nid, relation.rel_type)
                for step in steps
                if step.status == event_table.ACCEPTED
                and (relation := relation_of(step.event.content)) is not None
                and "\0" not in relation.event_id + relation.rel_type
            ],
        )
        changes = [change for step in steps for change in step.changes]
        if not changes:
            return
        await self._user_directory.follow(
            txn,
            room_nid,
            [(change.slot, change.event, is_local(change.slot[1], self._server_name)) for change in changes],
            names,
        )
        for duty in filter(None, map(_duty, changes)):
            await self._duties.note(txn, duty, room_nid)

    async def _store_references(self, txn: Transaction, room_nid: int, step: Step) -> None:
        """What refers to what: redactions, and what comes before an event and is not here."""
        if step.missing:
            await edge_table.insert_edges(txn, [(prev_id, step.event_nid, room_nid) for prev_id in step.missing])
        if step.awaited:
            referring = await edge_table.referring(txn, step.event.event_id)
            await edge_table.delete_edges(txn, step.event.event_id)
            await edge_table.close_gaps(txn, referring)
        if step.redaction_nid is not None:
            await event_table.redaction_applied(txn, step.event.event_id, step.redaction_nid)
        if step.event.redacts is not None and step.status == event_table.ACCEPTED:
            row = (step.event.redacts, step.event_nid, room_nid, int(step.redacted is not None))
            await event_table.insert_redactions(txn, [row])
        if step.redacted is not None and step.redacted_nid is not None:
            await event_table.replace_redacted(txn, step.redacted_nid, step.redacted.pdu, step.event_nid)
            await room_table.delete_relation(txn, step.redacted_nid)


def _names_of(steps: list[Step]) -> set[str]:
    """The names that rows of events and members refer to."""
    wanted: set[str] = set()
    for step in steps:
        event = step.event
        wanted.add(event.sender)
        wanted.add(event.type)
        for change in step.changes:
            if change.slot[0] == "m.room.member":
                wanted.add(change.slot[1])
        if step.way is Way.ASIDE and event.state_key is not None:
            wanted.add(event.state_key)
    return wanted


def _members(step: Step) -> Iterator[tuple[str, int, Event | None]]:
    """Whose membership is another after an event: the user, and the member event with its number."""
    if step.way is Way.ASIDE and step.event.state_key is not None:
        yield step.event.state_key, step.event_nid, step.event
    for change in step.changes:
        if change.slot[0] == "m.room.member":
            yield change.slot[1], change.event_nid, change.event


def _duty(change: Change) -> str | None:
    """The kind of what a change of the state leaves to be done."""
    event, before = change.event, change.replaced
    if event is None or change.slot[1] != "":
        return None
    if event.type == "m.room.tombstone":
        return TOMBSTONE
    if event.type == "m.room.guest_access" and before is not None and _lets_guests_in(before):
        return None if _lets_guests_in(event) else GUESTS
    return None


def _lets_guests_in(event: Event) -> bool:
    return event.content.get("guest_access") == "can_join"


def _rewrites(step: Step) -> bool:
    """Whether so much of the state is another with an event that it is told of as a whole: no queue takes all of it."""
    if step.way is Way.TAKEOVER or len(step.changes) < 2:
        return step.way is Way.TAKEOVER
    events = [event for change in step.changes for event in (change.event, change.replaced) if event is not None]
    return len(step.changes) > ALSO_LIMIT or sum(len(event.pdu) for event in events) > ALSO_BYTES


def _is_departure(change: Change) -> bool:
    """Whether a user is joined no more by a change."""
    joined = (event is not None and event.membership == "join" for event in (change.replaced, change.event))
    return change.slot[0] == "m.room.member" and tuple(joined) == (True, False)


def _message(
    shown: RoomEvent,
    step: Step,
    position: int,
    is_current: bool,
    also_replaced: list[RoomEvent],
    also_removed: list[Slot],
) -> bytes:
    return msgspec.msgpack.encode(
        OutputRoomEvent(
            event=msgspec.structs.replace(shown, position=position),
            state_changed=is_current,
            joined_members=step.after.joined,
            local_members=step.after.local,
            room_version=step.event.version.identifier,
            redacts=step.redacted.event_id if step.redacted else None,
            also_replaced=also_replaced,
            also_removed=also_removed,
            rewrites_state=_rewrites(step),
            distribute=step.distribute,
        )
    )


def _event_row(step: Step, room_nid: int, names: dict[str, int], position: int) -> tuple[object, ...]:
    event, draft = step.event, step.draft
    return (
        step.event_nid,
        event.event_id,
        room_nid,
        names[event.type],
        step.slot_nid,
        names[event.sender],
        event.depth,
        position,
        event.origin_server_ts,
        step.before_nid,
        step.current_nid,
        step.status,
        int(step.gap),
        step.replaced_nid,
        step.redaction_nid,
        draft.device_id if draft else None,
        draft.transaction_id if draft else None,
        event.pdu,
    )
