"""What events refer to and is not here.

RETENTION: a row goes when what it names arrives as part of the timeline, or with the room.
"""

from __future__ import annotations

from collections.abc import Sequence

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
