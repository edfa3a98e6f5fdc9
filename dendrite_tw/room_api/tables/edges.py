"""What events refer to and is not here.

RETENTION: a row goes when what it names arrives as part of the timeline, or with the room.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ...database.statements import Transaction, each, many, none


@each(
    "INSERT INTO backward_edges (prev_id, event_nid, room_nid) VALUES (:prev_id, :event_nid, :room_nid) "
    "ON CONFLICT DO NOTHING",
    row="prev_id event_nid room_nid",
)
def insert_edges(txn: Transaction, rows: object) -> None: ...


@many(int, "SELECT event_nid FROM backward_edges WHERE prev_id = :prev_id")
def referring(txn: Transaction, prev_id: str) -> None:
    """The events that refer to one that is not here."""


@many(
    int,
    "SELECT b.event_nid FROM backward_edges b JOIN events e ON e.event_nid = b.event_nid "
    "WHERE b.prev_id = :prev_id AND b.room_nid = :room_nid AND e.status = 0 LIMIT 1",
)
def accepted_referring(txn: Transaction, prev_id: str, room_nid: int) -> None:
    """As `referring`, an accepted event of the room if there is one."""


@none("DELETE FROM backward_edges WHERE prev_id = :prev_id")
def delete_edges(txn: Transaction, prev_id: str) -> None: ...


@none(
    "UPDATE events SET gap = 2 WHERE event_nid = ANY(:nids) AND gap = 1 AND NOT EXISTS "
    "(SELECT 1 FROM backward_edges b WHERE b.event_nid = events.event_nid)"
)
def close_gaps(txn: Transaction, nids: Sequence[int]) -> None:
    """Note that nothing is missing before events, where nothing is any more.

    What came is history: the live stream goes on to have a break before them.
    """


class GapRow(msgspec.Struct, frozen=True):
    """An event before which others are missing here: its place in the history, its sender, the state before it."""

    event_nid: int
    event_id: str
    depth: int
    position: int
    sender: str
    snapshot_nid: int


_GAPS = (
    "SELECT e.event_nid, e.event_id, e.depth, e.position, n.name, e.snapshot_nid FROM events e "
    "JOIN names n ON n.name_nid = e.sender_nid "
    "WHERE e.event_nid IN (SELECT b.event_nid FROM backward_edges b WHERE b.room_nid = :room_nid)"
)


@many(int, "SELECT event_nid FROM backward_edges WHERE room_nid = :room_nid LIMIT 1")
def any_edge(txn: Transaction, room_nid: int) -> None:
    """An event of a room before which others are missing, if there is one."""


@many(
    GapRow,
    f"{_GAPS} AND (e.depth < :depth OR (e.depth = :depth AND e.position <= :position)) "
    "ORDER BY e.depth DESC, e.position DESC LIMIT :count",
)
def gaps_back(txn: Transaction, room_nid: int, depth: int, position: int, count: int) -> None:
    """Gaps at or before a place, the latest first."""


@many(
    GapRow,
    f"{_GAPS} AND (e.depth > :depth OR (e.depth = :depth AND e.position > :position)) "
    "ORDER BY e.depth, e.position LIMIT :count",
)
def gaps_on(txn: Transaction, room_nid: int, depth: int, position: int, count: int) -> None:
    """Gaps after a place, the earliest first."""


@many(str, "SELECT prev_id FROM backward_edges WHERE event_nid = :event_nid ORDER BY prev_id LIMIT :count")
def missing_before(txn: Transaction, event_nid: int, count: int) -> None:
    """What an event refers to and is not here."""
