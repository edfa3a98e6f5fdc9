"""What is left of a room that is deleted, a bounded number of rows at a time.

RETENTION: nothing is kept here; the tables are those of the other modules.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...database.statements import Transaction, many, none
from .user_directory import forget_unjoined


@none("DELETE FROM rooms WHERE room_nid = :room_nid")
def delete_room(txn: Transaction, room_nid: int) -> None: ...


@none("DELETE FROM aliases WHERE room_nid = :room_nid")
def delete_aliases(txn: Transaction, room_nid: int) -> None: ...


@none("DELETE FROM open_rooms WHERE room_nid = :room_nid")
def delete_open(txn: Transaction, room_nid: int) -> None: ...


@many(int, "SELECT user_nid FROM memberships WHERE room_nid = :room_nid LIMIT :count")
def some_members(txn: Transaction, room_nid: int, count: int) -> None: ...


@none("DELETE FROM memberships WHERE room_nid = :room_nid AND user_nid = ANY(:nids)")
def delete_members(txn: Transaction, room_nid: int, nids: Sequence[int]) -> None: ...


@none(
    "DELETE FROM relations WHERE room_nid = :room_nid AND child_nid IN "
    "(SELECT child_nid FROM relations WHERE room_nid = :room_nid LIMIT :count)"
)
def delete_relations(txn: Transaction, room_nid: int, count: int) -> None: ...


@none(
    "DELETE FROM redactions WHERE room_nid = :room_nid AND redaction_nid IN "
    "(SELECT redaction_nid FROM redactions WHERE room_nid = :room_nid LIMIT :count)"
)
def delete_redactions(txn: Transaction, room_nid: int, count: int) -> None: ...


@none("DELETE FROM events WHERE event_nid IN (SELECT event_nid FROM events WHERE room_nid = :room_nid LIMIT :count)")
def delete_events(txn: Transaction, room_nid: int, count: int) -> None: ...


@none(
    "DELETE FROM state_snapshots WHERE snapshot_nid IN "
    "(SELECT snapshot_nid FROM state_snapshots WHERE room_nid = :room_nid LIMIT :count)"
)
def delete_snapshots(txn: Transaction, room_nid: int, count: int) -> None: ...


@none("DELETE FROM invites WHERE room_nid = :room_nid")
def delete_invites(txn: Transaction, room_nid: int) -> None: ...


@none(
    "DELETE FROM backward_edges WHERE room_nid = :room_nid AND event_nid IN "
    "(SELECT event_nid FROM backward_edges WHERE room_nid = :room_nid LIMIT :count)"
)
def delete_edges(txn: Transaction, room_nid: int, count: int) -> None: ...


@none(
    "DELETE FROM auth_chains WHERE event_nid IN "
    "(SELECT event_nid FROM auth_chains WHERE room_nid = :room_nid LIMIT :count)"
)
def delete_chains(txn: Transaction, room_nid: int, count: int) -> None: ...


async def delete_some(txn: Transaction, room_nid: int, count: int) -> int:
    """Delete some rows of a room of which nobody knows any more; returns how many, 0 when there is none left."""
    members = await some_members(txn, room_nid, count)
    if members:
        await delete_members(txn, room_nid, members)
        await forget_unjoined(txn, members)
        return len(members)
    for delete in (delete_relations, delete_redactions, delete_edges, delete_chains, delete_events, delete_snapshots):
        done = await delete(txn, room_nid, count)
        if done:
            return done
    return 0
