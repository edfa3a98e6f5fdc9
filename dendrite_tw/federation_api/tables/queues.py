"""What other servers are to be told; see ``0003_queues.sql``."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ...database.statements import Transaction, each, many, maybe, none, one
from ..queue import UNNAMED

RETENTION = (
    "Rows go with the answer of their server. Of one that is far behind or given up, a row for each room is kept "
    "(collapsed), and of EDUs that replace each other the last; all rows of one that could not be reached for "
    "KEPT_MS are deleted by forget_destination. prune_edus deletes the EDUs that no queue holds any more."
)

KEPT_MS = 80 * 86_400_000
"""Less than the time for which it is known that a server does not answer."""

PRUNED_AT_ONCE = 5_000


class QueuedEvent(msgspec.Struct, frozen=True):
    """An event on its way; ``position`` is that in its room's server, 0 for one of another server."""

    position: int
    room_id: str
    event_id: str


class QueuedEdu(msgspec.Struct, frozen=True):
    edu_type: str
    content: bytes


class PlacedEvent(msgspec.Struct, frozen=True):
    """A queued event and its place."""

    batch: int
    number: int
    position: int
    room_id: str
    event_id: str


class PlacedEdu(msgspec.Struct, frozen=True):
    """A queued EDU and its place."""

    batch: int
    number: int
    edu_type: str
    content: bytes
    collapse_key: str


class ServerCount(msgspec.Struct, frozen=True):
    """A server and how many rows wait for it."""

    destination: str
    rows: int


# --- the start ---


@many(ServerCount, "SELECT destination, COUNT(*) FROM destination_events GROUP BY destination")
def event_counts(txn: Transaction) -> None: ...


@many(ServerCount, "SELECT destination, COUNT(*) FROM destination_edus GROUP BY destination")
def edu_counts(txn: Transaction) -> None: ...


@many(ServerCount, "SELECT destination, COUNT(*) FROM destination_rooms GROUP BY destination")
def room_counts(txn: Transaction) -> None: ...


_NUMBER = f"CASE WHEN batch < {UNNAMED} THEN batch ELSE batch - {UNNAMED} END"


@one(
    int,
    f"SELECT COALESCE(MAX(highest), 0) FROM (SELECT MAX({_NUMBER}) AS highest FROM destination_events UNION ALL "
    f"SELECT MAX({_NUMBER}) FROM destination_edus UNION ALL SELECT MAX(edu_id) FROM outgoing_edus) AS numbers",
)
def highest_number(txn: Transaction) -> None:
    """The highest number that was given to a batch or an EDU that is still stored."""


@none(f"UPDATE destination_events SET batch = batch - {UNNAMED} WHERE batch >= {UNNAMED}")
def name_all_events(txn: Transaction) -> None: ...


@none(f"UPDATE destination_edus SET batch = batch - {UNNAMED} WHERE batch >= {UNNAMED}")
def name_all_edus(txn: Transaction) -> None: ...


@many(
    str,
    "SELECT destination FROM destination_events UNION SELECT destination FROM destination_edus "
    "UNION SELECT destination FROM destination_rooms",
)
def destinations_waiting(txn: Transaction) -> None:
    """The servers for which anything waits."""


# --- putting in ---


@each(
    "INSERT INTO destination_events (destination, batch, number, position, room_id, event_id) "
    "VALUES (:destination, :batch, :number, :position, :room_id, :event_id)",
    row="destination batch number position room_id event_id",
)
def add_events(txn: Transaction, rows: object) -> None: ...


@each(
    "INSERT INTO destination_rooms (destination, room_id, position, event_id) "
    "VALUES (:destination, :room_id, :position, :event_id) ON CONFLICT (destination, room_id) DO UPDATE SET "
    "position = excluded.position, event_id = excluded.event_id "
    "WHERE excluded.position > destination_rooms.position",
    row="destination room_id position event_id",
)
def put_rooms(txn: Transaction, rows: object) -> None:
    """Remember the newest event of rooms."""


@each(
    "INSERT INTO outgoing_edus (edu_id, edu_type, content) VALUES (:edu_id, :edu_type, :content)",
    row="edu_id edu_type content",
)
def add_edus(txn: Transaction, rows: object) -> None: ...


@each(
    "INSERT INTO destination_edus (destination, batch, number, edu_id, collapse_key) "
    "VALUES (:destination, :batch, :number, :edu_id, :collapse_key) "
    "ON CONFLICT (destination, batch, number) DO UPDATE SET edu_id = excluded.edu_id",
    row="destination batch number edu_id collapse_key",
)
def queue_edus(txn: Transaction, rows: object) -> None: ...


@each(
    "DELETE FROM destination_edus WHERE destination = :destination AND collapse_key = :collapse_key",
    row="destination collapse_key",
)
def drop_replaced(txn: Transaction, rows: Sequence[tuple[str, str]]) -> None: ...


@each(
    "DELETE FROM destination_edus WHERE destination = :destination AND collapse_key = :collapse_key "
    f"AND batch >= {UNNAMED}",
    row="destination collapse_key",
)
def drop_replaced_unnamed(txn: Transaction, rows: Sequence[tuple[str, str]]) -> None: ...


@maybe(int, "SELECT position FROM federation_positions WHERE consumer = :consumer")
def consumer_position(txn: Transaction, consumer: str) -> None: ...


@none(
    "INSERT INTO federation_positions (consumer, position) VALUES (:consumer, :position) "
    "ON CONFLICT (consumer) DO UPDATE SET position = excluded.position "
    "WHERE excluded.position > federation_positions.position"
)
def put_consumer_position(txn: Transaction, consumer: str, position: int) -> None: ...


# --- taking out ---


@maybe(
    int,
    "SELECT MIN(batch) FROM (SELECT MIN(batch) AS batch FROM destination_events WHERE destination = :destination "
    "UNION ALL SELECT MIN(batch) FROM destination_edus WHERE destination = :destination) AS batches",
)
def first_batch(txn: Transaction, destination: str) -> None:
    """The number of the oldest batch; `None` where there is none."""


@many(
    QueuedEvent,
    "SELECT position, room_id, event_id FROM destination_events "
    "WHERE destination = :destination AND batch = :batch ORDER BY number",
)
def events_of(txn: Transaction, destination: str, batch: int) -> None: ...


@many(
    QueuedEdu,
    "SELECT e.edu_type, e.content FROM destination_edus d JOIN outgoing_edus e ON e.edu_id = d.edu_id "
    "WHERE d.destination = :destination AND d.batch = :batch ORDER BY d.number",
)
def edus_of(txn: Transaction, destination: str, batch: int) -> None: ...


@many(
    PlacedEvent,
    "SELECT batch, number, position, room_id, event_id FROM destination_events "
    "WHERE destination = :destination ORDER BY batch, number LIMIT :count",
)
def oldest_events(txn: Transaction, destination: str, count: int) -> None: ...


@many(
    PlacedEdu,
    "SELECT d.batch, d.number, e.edu_type, e.content, d.collapse_key FROM destination_edus d "
    "JOIN outgoing_edus e ON e.edu_id = d.edu_id WHERE d.destination = :destination "
    "ORDER BY d.batch, d.number LIMIT :count",
)
def oldest_edus(txn: Transaction, destination: str, count: int) -> None: ...


@each(
    "UPDATE destination_events SET batch = :name, number = number + :shift "
    "WHERE destination = :destination AND batch = :batch AND number <= :upto",
    row="name shift destination batch upto",
)
def name_events(txn: Transaction, rows: Sequence[tuple[int, int, str, int, int]]) -> None:
    """Put the first ``upto`` places of batches that have no name into the one of this name, behind ``shift`` others."""


@each(
    "UPDATE destination_edus SET batch = :name, number = number + :shift "
    "WHERE destination = :destination AND batch = :batch AND number <= :upto",
    row="name shift destination batch upto",
)
def name_edus(txn: Transaction, rows: Sequence[tuple[int, int, str, int, int]]) -> None: ...


@each(
    "DELETE FROM destination_edus WHERE destination = :destination AND batch = :batch AND number = :number",
    row="destination batch number",
)
def delete_places(txn: Transaction, rows: Sequence[tuple[str, int, int]]) -> None: ...


@none("DELETE FROM destination_events WHERE destination = :destination AND batch = :batch")
def delete_events(txn: Transaction, destination: str, batch: int) -> None: ...


@none("DELETE FROM destination_edus WHERE destination = :destination AND batch = :batch")
def delete_edus(txn: Transaction, destination: str, batch: int) -> None: ...


# --- far behind ---


@many(
    QueuedEvent,
    "SELECT position, room_id, event_id FROM destination_events WHERE destination = :destination "
    "ORDER BY batch, number",
)
def all_events_of(txn: Transaction, destination: str) -> None: ...


@none("DELETE FROM destination_events WHERE destination = :destination")
def delete_all_events(txn: Transaction, destination: str) -> None: ...


@none(
    "DELETE FROM destination_edus WHERE destination = :destination AND collapse_key <> '' AND EXISTS ("
    "SELECT 1 FROM destination_edus later WHERE later.destination = destination_edus.destination "
    "AND later.collapse_key = destination_edus.collapse_key AND (later.batch > destination_edus.batch "
    "OR (later.batch = destination_edus.batch AND later.number > destination_edus.number)))"
)
def collapse_edus(txn: Transaction, destination: str) -> None:
    """Keep the newest EDU of each key."""


@none(
    "DELETE FROM destination_edus WHERE destination = :destination AND edu_id IN ("
    "SELECT edu_id FROM outgoing_edus WHERE edu_type = :edu_type) AND collapse_key <> ''"
)
def drop_edus_of_type(txn: Transaction, destination: str, edu_type: str) -> None: ...


@many(
    QueuedEvent,
    "SELECT position, room_id, event_id FROM destination_rooms WHERE destination = :destination "
    "ORDER BY position, room_id LIMIT :count",
)
def oldest_rooms(txn: Transaction, destination: str, count: int) -> None: ...


@none("DELETE FROM destination_rooms WHERE destination = :destination AND room_id = :room_id AND position = :position")
def delete_room(txn: Transaction, destination: str, room_id: str, position: int) -> None: ...


@maybe(int, "SELECT 1 FROM destination_rooms WHERE destination = :destination LIMIT 1")
def any_room(txn: Transaction, destination: str) -> None: ...


# --- looking and forgetting ---


@one(int, "SELECT COUNT(*) FROM destination_events WHERE destination = :destination")
def count_events(txn: Transaction, destination: str) -> None: ...


@one(int, "SELECT COUNT(*) FROM destination_edus WHERE destination = :destination")
def count_edus(txn: Transaction, destination: str) -> None: ...


@one(int, "SELECT COUNT(*) FROM destination_rooms WHERE destination = :destination")
def count_rooms(txn: Transaction, destination: str) -> None: ...


@many(
    QueuedEvent,
    "SELECT MAX(position), room_id, MAX(event_id) FROM (SELECT position, room_id, event_id FROM destination_events "
    "WHERE destination = :destination UNION ALL SELECT position, room_id, event_id FROM destination_rooms "
    "WHERE destination = :destination) AS waiting GROUP BY room_id ORDER BY room_id LIMIT :count OFFSET :start",
)
def rooms_waiting(txn: Transaction, destination: str, start: int, count: int) -> None:
    """The rooms of which something waits, each with the newest position."""


@one(
    int,
    "SELECT COUNT(*) FROM (SELECT room_id FROM destination_events WHERE destination = :destination "
    "UNION SELECT room_id FROM destination_rooms WHERE destination = :destination) AS waiting",
)
def count_rooms_waiting(txn: Transaction, destination: str) -> None: ...


@none(
    "DELETE FROM outgoing_edus WHERE edu_id IN (SELECT e.edu_id FROM outgoing_edus e WHERE "
    "NOT EXISTS (SELECT 1 FROM destination_edus d WHERE d.edu_id = e.edu_id) ORDER BY e.edu_id LIMIT :count)"
)
def prune_edus(txn: Transaction, count: int) -> None: ...


@none("DELETE FROM destination_edus WHERE destination = :destination")
def delete_all_edus(txn: Transaction, destination: str) -> None: ...


@none("DELETE FROM destination_rooms WHERE destination = :destination")
def delete_all_rooms(txn: Transaction, destination: str) -> None: ...


async def forget_destination(txn: Transaction, destination: str) -> int:
    """Delete all that waits for a server; returns how many rows went."""
    rows = await delete_all_events(txn, destination)
    rows += await delete_all_edus(txn, destination)
    return rows + await delete_all_rooms(txn, destination)


@each("DELETE FROM destination_events WHERE room_id = :room_id", row="room_id")
def delete_events_of_room(txn: Transaction, rows: Sequence[tuple[str]]) -> None: ...


@each("DELETE FROM destination_rooms WHERE room_id = :room_id", row="room_id")
def delete_rooms_of_room(txn: Transaction, rows: Sequence[tuple[str]]) -> None: ...
