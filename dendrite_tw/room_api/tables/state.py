"""State snapshots: deltas over a base, in chains of bounded length.

RETENTION: a snapshot lives while an event, a room or another snapshot refers
to it; `delete_unreferenced` frees the rest of a room's.
"""

from __future__ import annotations

import msgspec

from ...database.statements import Transaction, each, many, maybe, none


class SnapshotRow(msgspec.Struct, frozen=True):
    snapshot_nid: int
    room_nid: int
    step: int
    base_nid: int
    delta: bytes


@each(
    "INSERT INTO state_snapshots (snapshot_nid, room_nid, step, base_nid, delta) VALUES (:snapshot_nid, :room_nid, "
    ":step, :base_nid, :delta)",
    row="snapshot_nid room_nid step base_nid delta",
)
def insert_snapshots(txn: Transaction, rows: object) -> None: ...


@maybe(
    SnapshotRow,
    "SELECT snapshot_nid, room_nid, step, base_nid, delta FROM state_snapshots WHERE snapshot_nid = :snapshot_nid",
)
def snapshot(txn: Transaction, snapshot_nid: int) -> None: ...


@many(
    SnapshotRow,
    "SELECT s.snapshot_nid, s.room_nid, s.step, s.base_nid, s.delta FROM state_snapshots s "
    "LEFT JOIN state_snapshots b ON b.snapshot_nid = s.base_nid "
    "WHERE s.room_nid = :room_nid AND s.step >= :step AND COALESCE(b.step, 0) < :step",
)
def spanning(txn: Transaction, room_nid: int, step: int) -> None:
    """The snapshots from a step on that stand on one from before it."""


@many(
    SnapshotRow,
    "SELECT snapshot_nid, room_nid, step, base_nid, delta FROM state_snapshots WHERE room_nid = :room_nid "
    "AND step >= :step ORDER BY step",
)
def since(txn: Transaction, room_nid: int, step: int) -> None:
    """The snapshots from a step on."""


@none("UPDATE state_snapshots SET delta = :delta WHERE snapshot_nid = :snapshot_nid")
def replace_delta(txn: Transaction, snapshot_nid: int, delta: bytes) -> None: ...


@none(
    "DELETE FROM state_snapshots WHERE room_nid = :room_nid "
    "AND NOT EXISTS (SELECT 1 FROM events e WHERE e.snapshot_nid = state_snapshots.snapshot_nid) "
    "AND snapshot_nid NOT IN (SELECT e.current_nid FROM events e WHERE e.room_nid = :room_nid) "
    "AND NOT EXISTS (SELECT 1 FROM rooms r WHERE r.room_nid = :room_nid "
    "AND state_snapshots.snapshot_nid IN (r.snapshot_nid, r.tape_nid)) "
    "AND NOT EXISTS (SELECT 1 FROM state_snapshots s WHERE s.base_nid = state_snapshots.snapshot_nid)"
)
def delete_unreferenced(txn: Transaction, room_nid: int) -> None:
    """Free what nothing refers to; run again until it frees nothing, for a base is freed after what stood on it."""
