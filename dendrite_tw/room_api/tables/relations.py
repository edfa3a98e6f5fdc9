"""Which events relate to which.

RETENTION: a row goes with its child event: redacted, purged or with the room.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ...database.statements import Transaction, many
from .events import COLUMNS, EventRow


class ChildRow(msgspec.Struct, frozen=True):
    """A child of an event, as far as summaries need it."""

    parent_id: str
    rel_type: str
    event_nid: int
    event_id: str
    sender: str
    type: str
    origin_server_ts: int


class ThreadRow(msgspec.Struct, frozen=True):
    """A thread: its root, and the position of its latest event; below 0 where all of it was fetched later."""

    parent_id: str
    latest: int


@many(
    ChildRow,
    "SELECT x.parent_id, x.rel_type, e.event_nid, e.event_id, s.name, t.name, e.origin_server_ts FROM relations x "
    "JOIN events e ON e.event_nid = x.child_nid JOIN names s ON s.name_nid = e.sender_nid "
    "JOIN names t ON t.name_nid = e.type_nid WHERE x.parent_id = ANY(:parent_ids) AND x.room_nid = :room_nid "
    "AND x.rel_type <> 'm.annotation' AND e.status = 0 AND e.position <> 0 "
    "ORDER BY e.depth DESC, e.position DESC LIMIT :count",
)
def children(txn: Transaction, parent_ids: Sequence[str], room_nid: int, count: int) -> None:
    """The newest children of events, those that summaries count."""


@many(
    str,
    "SELECT e.event_id FROM relations x JOIN events e ON e.event_nid = x.child_nid "
    "WHERE x.parent_id = ANY(:parent_ids) AND x.room_nid = :room_nid LIMIT :count",
)
def child_ids(txn: Transaction, parent_ids: Sequence[str], room_nid: int, count: int) -> None: ...


@many(
    int,
    "SELECT x.child_nid FROM relations x JOIN events e ON e.event_nid = x.child_nid WHERE x.parent_id = :parent_id "
    "AND x.room_nid = :room_nid AND x.rel_type = 'm.annotation' AND e.sender_nid = :sender_nid "
    "AND e.type_nid = :type_nid LIMIT 1000",
)
def annotations_by(txn: Transaction, parent_id: str, room_nid: int, sender_nid: int, type_nid: int) -> None:
    """The annotations of an event by one sender, of one type."""


_RELATED = (
    f"SELECT {COLUMNS} FROM relations x JOIN events e ON e.event_nid = x.child_nid "
    "JOIN rooms r ON r.room_nid = e.room_nid JOIN names t ON t.name_nid = e.type_nid "
    "WHERE x.parent_id = ANY(:parent_ids) AND x.room_nid = :room_nid AND e.status = 0 "
    "AND (:rel_type = '' OR x.rel_type = :rel_type) AND (:event_type = '' OR t.name = :event_type)"
)


@many(
    EventRow,
    f"{_RELATED} AND (e.depth < :depth OR (e.depth = :depth AND e.position <= :position)) "
    "ORDER BY e.depth DESC, e.position DESC LIMIT :count",
)
def related_back(
    txn: Transaction,
    parent_ids: Sequence[str],
    room_nid: int,
    rel_type: str,
    event_type: str,
    depth: int,
    position: int,
    count: int,
) -> None: ...


@many(
    EventRow,
    f"{_RELATED} AND (e.depth > :depth OR (e.depth = :depth AND e.position > :position)) "
    "ORDER BY e.depth, e.position LIMIT :count",
)
def related_on(
    txn: Transaction,
    parent_ids: Sequence[str],
    room_nid: int,
    rel_type: str,
    event_type: str,
    depth: int,
    position: int,
    count: int,
) -> None: ...


@many(
    ThreadRow,
    "SELECT x.parent_id, MAX(c.position) FROM relations x JOIN events c ON c.event_nid = x.child_nid "
    "WHERE x.room_nid = :room_nid AND x.rel_type = 'm.thread' AND c.position <> 0 "
    "GROUP BY x.parent_id HAVING MAX(c.position) < :before ORDER BY MAX(c.position) DESC LIMIT :count",
)
def threads(txn: Transaction, room_nid: int, before: int, count: int) -> None: ...


@many(
    ThreadRow,
    "SELECT x.parent_id, MAX(c.position) FROM relations x LEFT JOIN events p ON p.event_id = x.parent_id "
    "JOIN events c ON c.event_nid = x.child_nid WHERE x.room_nid = :room_nid AND x.rel_type = 'm.thread' "
    "AND c.position <> 0 GROUP BY x.parent_id HAVING MAX(c.position) < :before "
    "AND (MAX(CASE WHEN p.sender_nid = :user_nid THEN 1 ELSE 0 END) = 1 "
    "OR MAX(CASE WHEN c.sender_nid = :user_nid THEN 1 ELSE 0 END) = 1) ORDER BY MAX(c.position) DESC LIMIT :count",
)
def threads_with(txn: Transaction, room_nid: int, user_nid: int, before: int, count: int) -> None:
    """Threads in which a user took part."""
