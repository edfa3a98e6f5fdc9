"""Events: one row each, with what queries select by beside the PDU itself.

RETENTION: events live as long as their room; purging a room or its history
deletes them through the room's writer.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ...database.statements import Transaction, each, many, maybe, none

COLUMNS = (
    "e.event_nid, e.event_id, r.room_id, r.version, e.depth, e.position, e.snapshot_nid, e.status, "
    "e.txn_device, e.txn_id, e.pdu, e.replaces_nid, e.redacted_by_nid, e.room_nid, e.current_nid, e.gap, e.slot_nid"
)
FROM = "FROM events e JOIN rooms r ON r.room_nid = e.room_nid"

ACCEPTED, SOFT_FAILED, REJECTED, ASIDE = 0, 1, 2, 3
"""What was judged of an event.  `ASIDE`: nothing, for it is of a room that this server was not in; it authorises
nothing and is part of no state, and what it stands on need not be here."""


class EventRow(msgspec.Struct, frozen=True, gc=False):
    """An event as it is stored.

    ``position``: above 0 the place in the live stream, 0 for an event that is kept and not shown (state or an auth
    event known apart from the timeline; soft-failed; rejected; a redaction that is not carried out), below 0 history
    fetched later.  ``snapshot_nid`` is the state before the event, 0 also where that is not known; ``current_nid`` the
    room's current state once this live event was taken, of history the state after it.  ``gap``: 1 where events before
    this one are missing here, 2 where they were and came as history.
    """

    event_nid: int
    event_id: str
    room_id: str
    version: str
    depth: int
    position: int
    snapshot_nid: int
    status: int
    txn_device: str | None
    txn_id: str | None
    pdu: bytes
    replaces_nid: int | None
    redacted_by_nid: int | None
    room_nid: int
    current_nid: int
    gap: int
    slot_nid: int | None
    """Its place in the state; `None` for a message event."""


class PlacedRow(msgspec.Struct, frozen=True, gc=False):
    """An event as far as a page of history asks for it at first: fields as of `EventRow`."""

    event_nid: int
    room_nid: int
    depth: int
    position: int
    snapshot_nid: int
    slot_nid: int | None
    replaces_nid: int | None
    redacted_by_nid: int | None


class Place(msgspec.Struct, frozen=True):
    """Where an event stands in its room."""

    room_nid: int
    depth: int
    position: int
    snapshot_nid: int
    current_nid: int


@each(
    "INSERT INTO events (event_nid, event_id, room_nid, type_nid, slot_nid, sender_nid, depth, position, "
    "origin_server_ts, snapshot_nid, current_nid, status, gap, replaces_nid, redacted_by_nid, txn_device, txn_id, pdu) "
    "VALUES (:event_nid, :event_id, :room_nid, :type_nid, :slot_nid, :sender_nid, :depth, :position, "
    ":origin_server_ts, :snapshot_nid, :current_nid, :status, :gap, :replaces_nid, :redacted_by_nid, :txn_device, "
    ":txn_id, :pdu)",
    row="event_nid event_id room_nid type_nid slot_nid sender_nid depth position origin_server_ts snapshot_nid "
    "current_nid status gap replaces_nid redacted_by_nid txn_device txn_id pdu",
)
def insert_events(txn: Transaction, rows: object) -> None: ...


class IdRow(msgspec.Struct, frozen=True):
    event_nid: int
    event_id: str


@many(IdRow, "SELECT event_nid, event_id FROM events WHERE event_nid = ANY(:nids)")
def ids_of(txn: Transaction, nids: Sequence[int]) -> None: ...


class KnownRow(msgspec.Struct, frozen=True):
    """An event as far as those that refer to it as their authority ask."""

    event_nid: int
    event_id: str
    status: int
    position: int
    room_nid: int


@none(
    "UPDATE events SET position = :position, snapshot_nid = :snapshot_nid, current_nid = :current_nid, "
    "status = :status, gap = :gap, replaces_nid = :replaces_nid, redacted_by_nid = :redacted_by_nid, pdu = :pdu "
    "WHERE event_nid = :event_nid"
)
def give_place(
    txn: Transaction,
    event_nid: int,
    position: int,
    snapshot_nid: int,
    current_nid: int,
    status: int,
    gap: int,
    replaces_nid: int | None,
    redacted_by_nid: int | None,
    pdu: bytes,
) -> None:
    """An event that was known apart from the timeline becomes part of it."""


@many(KnownRow, "SELECT event_nid, event_id, status, position, room_nid FROM events WHERE event_id = ANY(:event_ids)")
def known_events(txn: Transaction, event_ids: Sequence[str]) -> None: ...


@many(
    str,
    "SELECT event_id FROM events WHERE event_id = ANY(:event_ids) AND room_nid = :room_nid "
    "AND (position <> 0 OR snapshot_nid <> 0)",
)
def placed_of(txn: Transaction, event_ids: Sequence[str], room_nid: int) -> None:
    """Those of some events that are part of the room's timeline, be they shown or not."""


class SlotOf(msgspec.Struct, frozen=True):
    """An event as part of a state."""

    event_nid: int
    room_nid: int
    slot_nid: int | None
    status: int
    type: str


@many(
    SlotOf,
    "SELECT e.event_nid, e.room_nid, e.slot_nid, e.status, n.name FROM events e "
    "JOIN names n ON n.name_nid = e.type_nid WHERE e.event_id = ANY(:event_ids)",
)
def slots_of(txn: Transaction, event_ids: Sequence[str]) -> None: ...


@none("UPDATE events SET event_nid = :new_nid, status = :status WHERE event_nid = :event_nid")
def _renumber_event(txn: Transaction, event_nid: int, new_nid: int, status: int) -> None: ...


@none("UPDATE memberships SET event_nid = :new_nid WHERE event_nid = :event_nid")
def _renumber_members(txn: Transaction, event_nid: int, new_nid: int) -> None: ...


@none("DELETE FROM auth_chains WHERE event_nid = :event_nid")
def _drop_chain(txn: Transaction, event_nid: int) -> None: ...


async def renumber(txn: Transaction, event_nid: int, new_nid: int, status: int) -> None:
    """Give another number to an event that was kept aside, once it is judged: numbers grow along the graph."""
    await _renumber_event(txn, event_nid, new_nid, status)
    await _renumber_members(txn, event_nid, new_nid)
    await _drop_chain(txn, event_nid)


class RoomOf(msgspec.Struct, frozen=True):
    event_nid: int
    room_nid: int


class PositionOf(msgspec.Struct, frozen=True):
    event_nid: int
    position: int


@many(PositionOf, "SELECT event_nid, position FROM events WHERE event_nid = ANY(:nids)")
def positions_of(txn: Transaction, nids: Sequence[int]) -> None: ...


@many(RoomOf, "SELECT event_nid, room_nid FROM events WHERE event_nid = ANY(:nids)")
def rooms_of(txn: Transaction, nids: Sequence[int]) -> None:
    """The rooms of events, of those that are on disk."""


@many(EventRow, f"SELECT {COLUMNS} {FROM} WHERE e.event_nid = ANY(:nids)")
def events_by_nid(txn: Transaction, nids: Sequence[int]) -> None: ...


@maybe(EventRow, f"SELECT {COLUMNS} {FROM} WHERE e.event_id = :event_id")
def event_by_id(txn: Transaction, event_id: str) -> None: ...


@many(EventRow, f"SELECT {COLUMNS} {FROM} WHERE e.event_id = ANY(:event_ids)")
def events_by_id(txn: Transaction, event_ids: Sequence[str]) -> None: ...


@maybe(Place, "SELECT room_nid, depth, position, snapshot_nid, current_nid FROM events WHERE event_id = :event_id")
def place_of(txn: Transaction, event_id: str) -> None: ...


@many(
    EventRow,
    f"SELECT {COLUMNS} {FROM} WHERE e.room_nid = :room_nid AND e.position > :after AND e.position <= :upto "
    "AND e.position > 0 AND e.status = 0 ORDER BY e.position DESC LIMIT :count",
)
def newest_live(txn: Transaction, room_nid: int, after: int, upto: int, count: int) -> None:
    """Live events in (after, upto], newest first."""


@many(
    EventRow,
    f"SELECT {COLUMNS} {FROM} WHERE e.room_nid = :room_nid AND e.position > :after AND e.position > 0 "
    "AND e.status = 0 ORDER BY e.position LIMIT :count",
)
def live_after(txn: Transaction, room_nid: int, after: int, count: int) -> None:
    """Live events after a position, oldest first."""


_PLACED = (
    "SELECT event_nid, room_nid, depth, position, snapshot_nid, slot_nid, replaces_nid, redacted_by_nid FROM events "
    "WHERE room_nid = :room_nid AND position <> 0 AND status = 0"
)


@many(
    PlacedRow,
    f"{_PLACED} AND (depth, position) <= (:depth, :position) ORDER BY depth DESC, position DESC LIMIT :count",
)
def history_back(txn: Transaction, room_nid: int, depth: int, position: int, count: int) -> None:
    """Events at or before a place, latest first."""


@many(PlacedRow, f"{_PLACED} AND (depth, position) > (:depth, :position) ORDER BY depth, position LIMIT :count")
def history_on(txn: Transaction, room_nid: int, depth: int, position: int, count: int) -> None:
    """Events after a place, earliest first."""


_PLACES = "SELECT room_nid, depth, position, snapshot_nid, current_nid FROM events WHERE room_nid = :room_nid"


@maybe(
    Place,
    f"{_PLACES} AND (depth < :depth OR (depth = :depth AND position <= :position)) AND position <> 0 AND status = 0 "
    "ORDER BY depth DESC, position DESC LIMIT 1 OFFSET :skipped",
)
def place_back(txn: Transaction, room_nid: int, depth: int, position: int, skipped: int) -> None:
    """The latest event at or before a place, or one of those before it."""


@maybe(
    Place,
    f"{_PLACES} AND (depth > :depth OR (depth = :depth AND position > :position)) AND position <> 0 AND status = 0 "
    "ORDER BY depth, position LIMIT 1 OFFSET :skipped",
)
def place_on(txn: Transaction, room_nid: int, depth: int, position: int, skipped: int) -> None:
    """The earliest event after a place, or one of those after it."""


@maybe(Place, f"{_PLACES} AND position > 0 AND position <= :position AND status = 0 ORDER BY position DESC LIMIT 1")
def last_live(txn: Transaction, room_nid: int, position: int) -> None:
    """The newest live event up to a stream position."""


@maybe(
    Place,
    f"SELECT * FROM ({_PLACES} AND position > 0 AND position <= :position AND status = 0 "
    "ORDER BY position DESC LIMIT :count) AS newest ORDER BY depth DESC, position DESC LIMIT 1",
)
def highest_live(txn: Transaction, room_nid: int, position: int, count: int) -> None:
    """The one of greatest depth among the newest live events up to a stream position."""


@maybe(Place, f"{_PLACES} AND position > 0 AND position > :position AND status = 0 ORDER BY position LIMIT 1")
def first_live(txn: Transaction, room_nid: int, position: int) -> None:
    """The first live event after a stream position."""


@maybe(
    Place,
    "SELECT room_nid, depth, position, snapshot_nid, current_nid FROM events WHERE room_nid = :room_nid "
    "AND position <= :position AND position <> 0 AND status = 0 ORDER BY position DESC LIMIT 1",
)
def last_place(txn: Transaction, room_nid: int, position: int) -> None:
    """The newest event up to a stream position."""


@many(
    EventRow,
    f"SELECT {COLUMNS} {FROM} WHERE e.room_nid = :room_nid AND e.origin_server_ts >= :ts AND e.position <> 0 "
    "AND e.status = 0 ORDER BY e.origin_server_ts, e.depth, e.position LIMIT :count",
)
def first_at_or_after(txn: Transaction, room_nid: int, ts: int, count: int) -> None:
    """Events of the timeline from a time on, the earliest first."""


@many(
    EventRow,
    f"SELECT {COLUMNS} {FROM} WHERE e.room_nid = :room_nid AND e.origin_server_ts <= :ts AND e.position <> 0 "
    "AND e.status = 0 ORDER BY e.origin_server_ts DESC, e.depth DESC, e.position DESC LIMIT :count",
)
def last_at_or_before(txn: Transaction, room_nid: int, ts: int, count: int) -> None:
    """Events of the timeline up to a time, the latest first."""


@maybe(
    int,
    "SELECT gap FROM events WHERE room_nid = :room_nid AND origin_server_ts > :ts AND position <> 0 AND status = 0 "
    "ORDER BY origin_server_ts, depth, position LIMIT 1",
)
def gap_after(txn: Transaction, room_nid: int, ts: int) -> None:
    """Whether events are missing before the first one after a time."""


@maybe(
    str,
    "SELECT event_id FROM events WHERE sender_nid = :sender_nid AND txn_device = :device AND txn_id = :txn_id "
    "AND room_nid = :room_nid AND type_nid = :type_nid",
)
def event_of_transaction(
    txn: Transaction, sender_nid: int, device: str, txn_id: str, room_nid: int, type_nid: int
) -> None:
    """The event that a client's transaction made."""


@none("UPDATE events SET pdu = :pdu, redacted_by_nid = :redaction_nid WHERE event_nid = :event_nid")
def replace_redacted(txn: Transaction, event_nid: int, pdu: bytes, redaction_nid: int) -> None: ...


@each(
    "INSERT INTO redactions (redacts_id, redaction_nid, room_nid, applied) VALUES (:redacts_id, :redaction_nid, "
    ":room_nid, :applied) ON CONFLICT DO NOTHING",
    row="redacts_id redaction_nid room_nid applied",
)
def insert_redactions(txn: Transaction, rows: object) -> None: ...


@many(
    int,
    "SELECT redaction_nid FROM redactions WHERE redacts_id = :event_id AND room_nid = :room_nid AND applied = 0 "
    "ORDER BY redaction_nid LIMIT 20",
)
def waiting_redactions(txn: Transaction, event_id: str, room_nid: int) -> None:
    """The redactions of an event that came before it."""


@many(
    str,
    "SELECT redacts_id FROM redactions WHERE redacts_id = ANY(:event_ids) AND room_nid = :room_nid AND applied = 0",
)
def with_waiting_redactions(txn: Transaction, event_ids: Sequence[str], room_nid: int) -> None:
    """Those of some events that redactions wait for."""


@none("UPDATE redactions SET applied = 1 WHERE redacts_id = :event_id AND redaction_nid = :redaction_nid")
def redaction_applied(txn: Transaction, event_id: str, redaction_nid: int) -> None: ...


@none("UPDATE counters SET next = next + :count WHERE name = :name")
def _advance(txn: Transaction, name: str, count: int) -> None: ...


@maybe(int, "SELECT next FROM counters WHERE name = :name")
def _next(txn: Transaction, name: str) -> None: ...


@none("INSERT INTO counters (name, next) VALUES (:name, 1) ON CONFLICT DO NOTHING")
def _begin(txn: Transaction, name: str) -> None: ...


async def take_block(txn: Transaction, name: str, count: int) -> int:
    """Reserve `count` numbers of a counter; returns the first."""
    await _begin(txn, name)
    await _advance(txn, name, count)
    following = await _next(txn, name)
    assert following is not None
    return following - count
