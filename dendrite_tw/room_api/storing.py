"""The transaction of a batch: events and states, what follows from them, and what is told of them."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import orjson

from ..database.outbox import Outbox
from ..database.statements import Transaction
from ..matrix.events import Event
from ..matrix.relations import relation_of
from .api import OUTPUT_ROOM_EVENT, OutputRoomEvent, RoomEvent
from .drafts import is_local
from .duties import GUESTS, TOMBSTONE, Duties
from .room import Room
from .snapshots import encode_changes
from .steps import Accepted, Step
from .store import room_event
from .tables import events as event_table
from .tables import rooms as room_table
from .tables.names import Names
from .tables.state import insert_snapshots
from .user_directory import UserDirectory


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
        self, txn: Transaction, room: Room, works: list[Accepted], moved: Callable[[int, list[Step]], None]
    ) -> None:
        """Store a batch, with what shares its transaction; `moved` is told the room's number once it is on disk."""
        steps = [step for _, steps in works for step in steps]
        room_nid = room.room_nid
        if not room_nid:
            room_nid = await room_table.insert_room(txn, room.room_id, room.version.identifier, b"[]", room.standing)
        # Before anybody hears of the events: who then asks for the room finds it with them.
        txn.after_commit(lambda: moved(room_nid, steps))
        if steps:
            await self._store_steps(txn, room_nid, steps)
        for work, _ in works:
            if work.also is not None:
                await work.also(txn, room_nid)

    async def _store_steps(self, txn: Transaction, room_nid: int, steps: list[Step]) -> None:
        """Store events, state, what follows from them, and the outbox rows."""
        wanted = {name for step in steps for name in (step.event.sender, step.event.type)}
        wanted.update(step.event.state_key or "" for step in steps if step.event.membership is not None)
        names = await self._names.intern(txn, wanted)
        rows = []
        for step in steps:
            shown = room_event(
                step.event,
                position=0,
                replaced=step.replaced,
                txn_device=step.draft.device_id,
                txn_id=step.draft.transaction_id,
            )
            position = await self._outbox.append(
                txn,
                OUTPUT_ROOM_EVENT,
                lambda position, shown=shown, step=step: _message(shown, step, position),  # type: ignore[misc]
            )
            rows.append(_event_row(step, room_nid, names, position))
        await event_table.insert_events(txn, rows)
        await insert_snapshots(
            txn,
            [
                (link.snapshot_nid, room_nid, link.step, link.base_nid, encode_changes(link.changes))
                for step in steps
                if (link := step.link) is not None
            ],
        )
        await self._store_consequences(txn, room_nid, steps, names, {row[0]: row[7] for row in rows})
        last = steps[-1].after
        await room_table.update_room(
            txn, room_nid, last.depth, orjson.dumps(last.extremities), last.snapshot_nid, last.chain.snapshot_nid
        )

    async def _store_consequences(
        self, txn: Transaction, room_nid: int, steps: list[Step], names: dict[str, int], positions: dict[object, object]
    ) -> None:
        """Memberships, relations and redactions, the user directory, and what remains to be done."""
        await room_table.upsert_memberships(
            txn,
            [
                (
                    names[user_id],
                    room_nid,
                    step.event.membership,
                    step.event_nid,
                    positions[step.event_nid],
                    int(is_local(user_id, self._server_name)),
                )
                for step in steps
                if step.event.membership is not None and (user_id := step.event.state_key) is not None
            ],
        )
        await room_table.insert_relations(
            txn,
            [
                (relation.event_id, step.event_nid, room_nid, relation.rel_type)
                for step in steps
                if (relation := relation_of(step.event.content)) is not None
                and "\0" not in relation.event_id + relation.rel_type
            ],
        )
        state = [step.event for step in steps if step.event.state_key is not None]
        await self._user_directory.follow(
            txn, room_nid, [(event, is_local(event.state_key or "", self._server_name)) for event in state], names
        )
        for duty in filter(None, map(_duty, steps)):
            await self._duties.note(txn, duty, room_nid)
        for step in steps:
            if step.event.redacts is not None:
                row = (step.event.redacts, step.event_nid, room_nid, int(step.redacted is not None))
                await event_table.insert_redactions(txn, [row])
            if step.redacted is not None and step.redacted_nid is not None:
                await event_table.replace_redacted(txn, step.redacted_nid, step.redacted.pdu, step.event_nid)
                await room_table.delete_relation(txn, step.redacted_nid)


def _duty(step: Step) -> str | None:
    """The kind of what an event leaves to be done."""
    event, before = step.event, step.replaced
    if event.state_key != "":
        return None
    if event.type == "m.room.tombstone":
        return TOMBSTONE
    if event.type == "m.room.guest_access" and before is not None and _lets_guests_in(before):
        return None if _lets_guests_in(event) else GUESTS
    return None


def _lets_guests_in(event: Event) -> bool:
    return event.content.get("guest_access") == "can_join"


def _message(shown: RoomEvent, step: Step, position: int) -> bytes:
    return msgspec.msgpack.encode(
        OutputRoomEvent(
            event=msgspec.structs.replace(shown, position=position),
            state_changed=step.event.state_key is not None,
            joined_members=step.after.joined,
            local_members=step.after.local,
            room_version=step.event.version.identifier,
            redacts=step.redacted.event_id if step.redacted else None,
        )
    )


def _event_row(step: Step, room_nid: int, names: dict[str, int], position: int) -> tuple[object, ...]:
    event = step.event
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
        step.after.snapshot_nid,
        event_table.ACCEPTED,
        0,
        step.replaced_nid,
        None,
        step.draft.device_id,
        step.draft.transaction_id,
        event.pdu,
    )
