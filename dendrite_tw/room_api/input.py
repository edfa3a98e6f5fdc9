"""One room's events in order: build, check, store, tell.

The writer takes all that waits for a room, makes each draft into an event on
top of the one before, checks it against the state there, and stores the whole
batch in one transaction; what arrives during that transaction is the next
batch.  A draft that is refused is answered with the reason and leaves no
trace.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import msgspec
import orjson
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..database.engines import Database
from ..database.outbox import Outbox
from ..database.statements import Transaction
from ..matrix.auth_rules import AuthError, MalformedError, auth_event_keys, check_auth, redaction_applies
from ..matrix.errors import MatrixError, bad_json, forbidden, invalid_param, not_found
from ..matrix.events import Event, EventFormatError, EventTooLargeError, build_event, redact_event, reference_hash
from ..matrix.identifiers import server_name_of
from ..matrix.keys import SigningKey
from ..matrix.power_levels import PowerLevels
from ..matrix.relations import relation_of
from ..matrix.signing import encode_base64
from ..world import Clock, Random
from .api import OUTPUT_ROOM_EVENT, OutputRoomEvent, RoomEvent
from .duties import GUESTS, TOMBSTONE, Duties
from .room import Also, Before, Draft, Head, Room, Rooms, Work
from .snapshots import Link, advance, encode_changes
from .store import EventStore, room_event, stored_event
from .tables import events as event_table
from .tables import rooms as room_table
from .tables.names import Names, Slot
from .tables.state import insert_snapshots
from .user_directory import UserDirectory

log = Logger()

BATCH = 64
"""How many pieces of work share one transaction of a room."""

NUMBERS = 1000
"""How many event and snapshot numbers are reserved at once."""

CREATE = ("m.room.create", "")
POWER_LEVELS = ("m.room.power_levels", "")

LEVELS_REMEMBERED = 300
"""Power levels, as they are of use, that are kept beside the events which set them."""

AUTHORITIES = frozenset(["m.room.create", "m.room.power_levels", "m.room.join_rules", "m.room.member"])
"""State that is asked for again with every event; the rest is read when it is wanted."""

NEVER_REDACTED = ("m.room.create", "m.room.server_acl")
"""State that would shut everybody out if its content were gone."""


@dataclass(frozen=True)
class Step:
    """An event with its place: what the transaction stores, and the head that follows."""

    draft: Draft
    event: Event
    event_nid: int
    before_nid: int
    slot_nid: int | None
    link: Link | None
    replaced_nid: int | None
    replaced: Event | None
    redacted_nid: int | None
    redacted: Event | None
    after: Head


Accepted = tuple[Work, list[Step]]


class Numbers:
    """Numbers for events and snapshots, reserved in blocks so that they are known before the transaction."""

    def __init__(self, database: Database, name: str) -> None:
        self._database = database
        self._name = name
        self._next = 0
        self._end = 0

    async def take(self, count: int) -> Iterator[int]:
        """`count` numbers in growing order, which nobody else is given."""
        while self._end - self._next < count:
            block = max(NUMBERS, count)
            self._next = await self._database.write(event_table.take_block, self._name, block)
            self._end = self._next + block
        first = self._next
        self._next += count
        return iter(range(first, self._next))


class RoomWriter:
    """The single writer of the rooms that this process owns."""

    def __init__(
        self,
        *,
        database: Database,
        outbox: Outbox,
        names: Names,
        rooms: Rooms,
        store: EventStore,
        clock: Clock,
        random: Random,
        server_name: str,
        key: SigningKey,
        duties: Duties,
        user_directory: UserDirectory,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._names = names
        self._rooms = rooms
        self._store = store
        self._clock = clock
        self._random = random
        self._server_name = server_name
        self._key = key
        self._duties = duties
        self._user_directory = user_directory
        self._event_numbers = Numbers(database, "event")
        self._snapshot_numbers = Numbers(database, "snapshot")
        self._levels: OrderedDict[tuple[str, str], PowerLevels] = OrderedDict()

    async def submit(
        self, room: Room, drafts: list[Draft], *, also: Also | None = None, before: Before | None = None
    ) -> list[str]:
        """Send `drafts` to a room, all or none; returns their event IDs once they are on disk.

        `also` runs in the same transaction, after the events; `before` once they are accepted, before it.
        Without drafts, `also` takes its turn among what else waits for the room.
        """
        if room.closed:
            raise not_found("This server does not know the room.")
        work = Work(drafts, Deferred(), also, before)
        room.waiting.append(work)
        if not room.writing:
            room.writing = True
            Deferred.fromCoroutine(self._write(room)).addErrback(self._defect, room)
        return await work.answer

    def _defect(self, failure: Failure, room: Room) -> None:
        log.failure("the writer of {room} failed", failure=failure, room=room.room_id)
        room.writing = False
        room.stale = True
        while room.waiting:
            _refuse(room.waiting.pop(0), _internal())

    async def _write(self, room: Room) -> None:
        """Write until nothing waits."""
        while room.waiting:
            works = room.waiting[:BATCH]
            del room.waiting[:BATCH]
            try:
                await self._write_batch(room, works)
            except Exception:
                for work in works:
                    _refuse(work, _internal())
                raise
        room.writing = False

    async def _write_batch(self, room: Room, works: list[Work]) -> None:
        if room.stale:
            try:
                await self._rooms.refresh(room)
            except MatrixError as error:
                for work in works:
                    _refuse(work, error)
                return
        accepted = await self._accept(room, works)
        if not accepted:
            return
        is_new = not room.room_nid
        if is_new:
            self._rooms.add(room)
        try:
            await self._database.write(self._store_works, room, accepted)
        except Exception as error:
            room.stale = True
            if is_new:
                room.closed = True
                self._rooms.forget(room)
            await self._take_apart(room, accepted, error)
            return
        for work, steps in accepted:
            if not work.answer.called:
                work.answer.callback([step.event.event_id for step in steps])

    async def _take_apart(self, room: Room, accepted: list[Accepted], error: Exception) -> None:
        """After a transaction that failed: tell all of them, or find out which one it was that cannot be stored."""
        again = [] if len(accepted) == 1 or isinstance(error, MatrixError) or room.closed else accepted
        for work, _ in accepted:
            if not again or work.before is not None:
                _refuse(work, error)
        for work, _ in again:
            if work.before is None:
                await self._write_batch(room, [work])

    async def _accept(self, room: Room, works: list[Work]) -> list[Accepted]:
        """Build and check what `works` want, each on top of the one before; answers those that are refused."""
        head = room.head
        accepted: list[Accepted] = []
        fresh: dict[int, Event] = {}
        for work in works:
            try:
                event_nids = await self._event_numbers.take(len(work.drafts))
                snapshot_nids = await self._snapshot_numbers.take(len(work.drafts))
                steps: list[Step] = []
                made: dict[int, Event] = {}
                after = head
                for draft in work.drafts:
                    known = fresh | made if made else fresh
                    step = await self._prepare(room, after, draft, known, next(event_nids), next(snapshot_nids))
                    steps.append(step)
                    made[step.event_nid] = step.event
                    if step.redacted_nid is not None and step.redacted is not None:
                        made[step.redacted_nid] = step.redacted
                    after = step.after
                if work.before is not None:
                    await work.before([step.event for step in steps])
            except Exception as error:
                _refuse(work, error)
                continue
            fresh.update(made)
            head = after
            accepted.append((work, steps))
        return accepted

    def _moved(self, room: Room, room_nid: int, steps: list[Step]) -> None:
        """The room goes on from `steps`, which are on disk."""
        room.room_nid = room_nid
        if steps:
            room.head = steps[-1].after
        for step in steps:
            if step.event.type in AUTHORITIES and step.slot_nid is not None:
                self._store.remember(step.event_nid, step.event)
            if step.redacted_nid is not None and step.redacted is not None:
                self._store.forget(step.redacted_nid)
                room.summary = None
                if (step.redacted.type, step.redacted.state_key) in (CREATE, POWER_LEVELS):
                    self._levels.clear()

    # --- building and checking ---

    async def _prepare(
        self, room: Room, head: Head, draft: Draft, fresh: dict[int, Event], event_nid: int, snapshot_nid: int
    ) -> Step:
        """Make a draft into an event on top of `head`; `MatrixError` where it is refused."""
        if "\0" in draft.type or "\0" in (draft.state_key or ""):
            raise bad_json("A type and a state key have no NUL characters.")
        keys = auth_event_keys(
            version=room.version,
            type=draft.type,
            sender=draft.sender,
            state_key=draft.state_key,
            content=draft.content,
        )
        wanted = keys if CREATE in keys or draft.type == "m.room.create" else [CREATE, *keys]
        authority = await self._state_events(head, wanted, fresh)
        event = await self._build(room, head, draft, [authority[key] for key in keys if key in authority], fresh)
        if not room.room_id:
            room.room_id = event.room_id
        self._authorise(event, authority)
        redacted_nid, redacted = await self._redaction_target(event, authority, fresh)
        slot_nid = replaced_nid = link = replaced = None
        chain, state, joined, local = head.chain, head.state, head.joined, head.local
        if event.state_key is not None:
            slot_nid = await self._slot_nid((event.type, event.state_key))
            replaced_nid = state.get(slot_nid)
            if replaced_nid is not None:
                replaced = (await self._events([replaced_nid], fresh))[replaced_nid]
            state = state.set(slot_nid, event_nid)
            chain, link = advance(chain, {slot_nid: event_nid}, state, snapshot_nid)
            change = (event.membership == "join") - (replaced is not None and replaced.membership == "join")
            joined += change
            local += change if self._is_local(event.state_key) else 0
        after = Head(state, chain, (event.event_id,), event.depth, joined, local)
        return Step(
            draft=draft,
            event=event,
            event_nid=event_nid,
            before_nid=head.chain.snapshot_nid,
            slot_nid=slot_nid,
            link=link,
            replaced_nid=replaced_nid,
            replaced=replaced,
            redacted_nid=redacted_nid,
            redacted=redacted,
            after=after,
        )

    async def _build(
        self, room: Room, head: Head, draft: Draft, authority: Sequence[Event], fresh: dict[int, Event]
    ) -> Event:
        hashes = None
        if room.version.event_format == "pairs":
            previous = [event for event in fresh.values() if event.event_id in head.extremities]
            stored = [stored_event(row) for row in await self._store.rows(head.extremities)]
            hashes = {
                event.event_id: encode_base64(reference_hash(event.pdu_dict(), room.version))
                for event in [*authority, *previous, *stored]
            }
        try:
            return build_event(
                room.version,
                room_id=room.room_id or None,
                sender=draft.sender,
                type=draft.type,
                content=draft.content,
                state_key=draft.state_key,
                prev_events=head.extremities,
                auth_events=[event.event_id for event in authority],
                depth=head.depth + 1,
                origin_server_ts=self._clock.now_ms() if draft.timestamp is None else draft.timestamp,
                redacts=draft.redacts,
                server_name=self._server_name,
                key_id=self._key.key_id,
                signing_key=self._key.seed,
                event_id=self._random.token(18) if room.version.event_id_format == "origin" else None,
                reference_hashes=hashes,
            )
        except EventTooLargeError as error:
            raise MatrixError(413, "M_TOO_LARGE", str(error)) from None
        except EventFormatError as error:
            raise bad_json(str(error)) from None

    def _authorise(self, event: Event, authority: dict[Slot, Event]) -> None:
        try:
            check_auth(event, authority, power_levels=self._power_levels(authority))
        except MalformedError as error:
            raise bad_json(f"No room takes this: {error}.") from None
        except AuthError as error:
            raise forbidden(f"The room does not allow this: {error}.") from None

    def _power_levels(self, authority: dict[Slot, Event]) -> PowerLevels | None:
        """The power levels of a state, made once for each power levels event."""
        create, levels = authority.get(CREATE), authority.get(POWER_LEVELS)
        if create is None:
            return None
        key = (create.event_id, levels.event_id if levels else "")
        known = self._levels.get(key)
        if known is None:
            known = self._levels[key] = PowerLevels(create, levels)
            if len(self._levels) > LEVELS_REMEMBERED:
                self._levels.popitem(last=False)
        return known

    async def _redaction_target(
        self, event: Event, authority: dict[Slot, Event], fresh: dict[int, Event]
    ) -> tuple[int | None, Event | None]:
        """The event that a redaction empties: its number and what is left of it."""
        if event.type != "m.room.redaction" or event.redacts is None:
            return None, None
        found = [(nid, other) for nid, other in fresh.items() if other.event_id == event.redacts]
        if found:
            nid, target = found[0]
        else:
            row = await self._store.row(event.redacts)
            if row is None:
                return None, None
            nid, target = row.event_nid, stored_event(row)
        if target.room_id != event.room_id:
            raise invalid_param("The event to be redacted is of another room.")
        if target.type in NEVER_REDACTED and target.state_key == "":
            raise forbidden(f"An event of type {target.type} is never redacted: the room could not be used any more.")
        levels = self._power_levels(authority)
        if levels is None or not redaction_applies(event, target, levels):
            raise forbidden("You may not redact this event.")
        if target.sender != event.sender and levels.user_level(event.sender) < levels.redact:
            # The rules between servers let a server speak for all its users; the server does not.
            raise forbidden("You may not redact the events of others.")
        return nid, redact_event(target)

    # --- reading what authorises ---

    async def _state_events(self, head: Head, keys: Sequence[Slot], fresh: dict[int, Event]) -> dict[Slot, Event]:
        """The state events at `keys`, where set."""
        nids = {}
        for key in keys:
            slot_nid = self._names.remembered_slot(key) or await self._database.read(self._names.find_slot, key)
            event_nid = head.state.get(slot_nid) if slot_nid else None
            if event_nid is not None:
                nids[key] = event_nid
        events = await self._events(nids.values(), fresh)
        return {key: events[nid] for key, nid in nids.items()}

    async def _events(self, nids: Iterable[int], fresh: dict[int, Event]) -> dict[int, Event]:
        wanted = list(nids)
        found = {nid: fresh[nid] for nid in wanted if nid in fresh}
        if len(found) < len(wanted):
            found.update(await self._store.by_nid(nid for nid in wanted if nid not in found))
        return found

    async def _slot_nid(self, slot: Slot) -> int:
        known = self._names.remembered_slot(slot) or await self._database.read(self._names.find_slot, slot)
        if not known:
            known = (await self._database.write(self._names.intern_slots, [slot]))[slot]
        return known

    def _is_local(self, user_id: str) -> bool:
        return ":" in user_id and server_name_of(user_id) == self._server_name

    # --- storing ---

    async def _store_works(self, txn: Transaction, room: Room, works: list[Accepted]) -> None:
        """Store a batch, with what shares its transaction."""
        steps = [step for _, steps in works for step in steps]
        room_nid = room.room_nid
        if not room_nid:
            room_nid = await room_table.insert_room(txn, room.room_id, room.version.identifier, b"[]")
        # Before anybody hears of the events: who then asks for the room finds it with them.
        txn.after_commit(lambda: self._moved(room, room_nid, steps))
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
        await self._store_consequences(txn, room_nid, steps, names)
        last = steps[-1].after
        await room_table.update_room(txn, room_nid, last.depth, orjson.dumps(last.extremities), last.chain.snapshot_nid)

    async def _store_consequences(
        self, txn: Transaction, room_nid: int, steps: list[Step], names: dict[str, int]
    ) -> None:
        """Memberships, relations and redactions, the user directory, and what remains to be done."""
        await room_table.upsert_memberships(
            txn,
            [
                (names[user_id], room_nid, step.event.membership, step.event_nid, int(self._is_local(user_id)))
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
            txn, room_nid, [(event, self._is_local(event.state_key or "")) for event in state], names
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


def _refuse(work: Work, error: Exception) -> None:
    if not work.answer.called:
        work.answer.errback(error)


def _internal() -> MatrixError:
    return MatrixError(500, "M_UNKNOWN", "Something went wrong in this server; it is logged.")


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
        event_table.ACCEPTED,
        step.replaced_nid,
        step.draft.device_id,
        step.draft.transaction_id,
        event.pdu,
    )
