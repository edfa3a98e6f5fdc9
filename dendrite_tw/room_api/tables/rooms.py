"""Rooms, who is in them, their aliases, the directory, relations.

RETENTION: rows of a room go with the room.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from ...database.statements import Transaction, each, many, maybe, none, one


class RoomRow(msgspec.Struct, frozen=True):
    room_nid: int
    room_id: str
    version: str
    depth: int
    extremities: bytes
    snapshot_nid: int
    tape_nid: int
    standing: int
    rewritten: int


class RoomEnds(msgspec.Struct, frozen=True):
    """``extremities``: a JSON list of event IDs."""

    room_id: str
    extremities: bytes


RESIDENT, PARTIAL, ELSEWHERE = 0, 1, 2
"""Standings of this server in a room: it has the state; members are still missing; it is not in the room."""


class MembershipRow(msgspec.Struct, frozen=True):
    """A user's current membership: its event, and the stream position since which it is current."""

    room_nid: int
    room_id: str
    user_id: str
    membership: str
    event_nid: int
    event_id: str
    sender: str
    position: int
    forgotten: int


class AliasRow(msgspec.Struct, frozen=True):
    alias: str
    room_id: str
    creator: str


class RelationRow(msgspec.Struct, frozen=True):
    parent_id: str
    child_nid: int
    rel_type: str


@one(
    int,
    "INSERT INTO rooms (room_id, version, depth, extremities, snapshot_nid, standing) VALUES (:room_id, :version, 0, "
    ":extremities, 0, :standing) RETURNING room_nid",
)
def insert_room(txn: Transaction, room_id: str, version: str, extremities: bytes, standing: int) -> None: ...


_ROOM = "SELECT room_nid, room_id, version, depth, extremities, snapshot_nid, tape_nid, standing, rewritten FROM rooms"


@maybe(RoomRow, f"{_ROOM} WHERE room_id = :room_id")
def room_by_id(txn: Transaction, room_id: str) -> None: ...


@many(RoomRow, f"{_ROOM} WHERE room_id = ANY(:room_ids)")
def rooms_by_id(txn: Transaction, room_ids: Sequence[str]) -> None: ...


@maybe(RoomRow, f"{_ROOM} WHERE room_nid = :room_nid")
def room_by_nid(txn: Transaction, room_nid: int) -> None: ...


class StateRow(NamedTuple):
    """The number of a room's current state, and the position at which all states were last rewritten."""

    snapshot_nid: int
    rewritten: int


@maybe(StateRow, "SELECT snapshot_nid, rewritten FROM rooms WHERE room_nid = :room_nid")
def state_of(txn: Transaction, room_nid: int) -> None: ...


@none(
    "UPDATE rooms SET depth = :depth, extremities = :extremities, snapshot_nid = :snapshot_nid, tape_nid = :tape_nid "
    "WHERE room_nid = :room_nid"
)
def update_room(
    txn: Transaction, room_nid: int, depth: int, extremities: bytes, snapshot_nid: int, tape_nid: int
) -> None: ...


@none("UPDATE rooms SET rewritten = :position WHERE room_nid = :room_nid")
def set_rewritten(txn: Transaction, room_nid: int, position: int) -> None:
    """The state was replaced as a whole at a position."""


class PartialRow(msgspec.Struct, frozen=True):
    """A room of which members are still missing; ``servers`` is a JSON list."""

    room_id: str
    join_nid: int
    resident: str
    servers: bytes


_PARTIAL = (
    "SELECT r.room_id, p.join_nid, p.resident, p.servers FROM partial_rooms p JOIN rooms r ON r.room_nid = p.room_nid"
)


@many(PartialRow, f"{_PARTIAL} ORDER BY p.room_nid")
def partial_rooms(txn: Transaction) -> None: ...


@maybe(PartialRow, f"{_PARTIAL} WHERE p.room_nid = :room_nid")
def partial_room(txn: Transaction, room_nid: int) -> None: ...


@none(
    "INSERT INTO partial_rooms (room_nid, join_nid, resident, servers) "
    "SELECT :room_nid, event_nid, :resident, :servers FROM events WHERE event_id = :join_id "
    "ON CONFLICT (room_nid) DO UPDATE "
    "SET join_nid = excluded.join_nid, resident = excluded.resident, servers = excluded.servers"
)
def insert_partial(txn: Transaction, room_nid: int, join_id: str, resident: str, servers: bytes) -> None: ...


@none("DELETE FROM partial_rooms WHERE room_nid = :room_nid")
def delete_partial(txn: Transaction, room_nid: int) -> None: ...


@none("UPDATE rooms SET standing = :standing WHERE room_nid = :room_nid")
def set_standing(txn: Transaction, room_nid: int, standing: int) -> None: ...


class NewestRow(msgspec.Struct, frozen=True):
    room_id: str
    position: int
    rewritten: int


@many(
    NewestRow,
    "SELECT r.room_id, COALESCE((SELECT MAX(e.position) FROM events e WHERE e.room_nid = r.room_nid "
    "AND e.status = 0), 0), r.rewritten FROM rooms r WHERE r.room_id = ANY(:room_ids)",
)
def newest_positions(txn: Transaction, room_ids: Sequence[str]) -> None:
    """The position of the newest live event of each room, and where its state was last replaced as a whole."""


@many(RoomEnds, "SELECT room_id, extremities FROM rooms WHERE room_id = ANY(:room_ids)")
def extremities_of(txn: Transaction, room_ids: Sequence[str]) -> None: ...


# --- memberships ---


@each(
    "INSERT INTO memberships (user_nid, room_nid, membership, event_nid, position, local, forgotten) VALUES "
    "(:user_nid, :room_nid, :membership, :event_nid, :position, :local, 0) ON CONFLICT (user_nid, room_nid) DO UPDATE "
    "SET membership = excluded.membership, event_nid = excluded.event_nid, position = excluded.position, forgotten = 0",
    row="user_nid room_nid membership event_nid position local",
)
def upsert_memberships(txn: Transaction, rows: object) -> None: ...


@many(int, "SELECT room_nid FROM memberships WHERE user_nid = :user_nid AND membership = 'join'")
def joined_rooms(txn: Transaction, user_nid: int) -> None: ...


@each("DELETE FROM memberships WHERE user_nid = :user_nid AND room_nid = :room_nid", row="user_nid room_nid")
def delete_memberships(txn: Transaction, rows: object) -> None: ...


@each(
    "UPDATE memberships SET membership = 'leave', position = :position "
    "WHERE user_nid = :user_nid AND room_nid = :room_nid AND local = 1",
    row="user_nid room_nid position",
)
def remove_local_memberships(txn: Transaction, rows: object) -> None:
    """Of users of this server without a member event any more: they are out, which a sync has to tell them yet."""


@each(
    "DELETE FROM memberships WHERE user_nid = :user_nid AND room_nid = :room_nid AND local = 0",
    row="user_nid room_nid",
)
def delete_far_memberships(txn: Transaction, rows: object) -> None: ...


_MEMBERSHIP = (
    "SELECT m.room_nid, r.room_id, u.name, m.membership, m.event_nid, e.event_id, s.name, m.position, m.forgotten "
    "FROM memberships m JOIN rooms r ON r.room_nid = m.room_nid JOIN events e ON e.event_nid = m.event_nid "
    "JOIN names u ON u.name_nid = m.user_nid JOIN names s ON s.name_nid = e.sender_nid"
)


class JoinedRow(msgspec.Struct, frozen=True):
    user_id: str
    room_id: str


@many(
    JoinedRow,
    "SELECT u.name, r.room_id FROM names u JOIN memberships m ON m.user_nid = u.name_nid "
    "JOIN rooms r ON r.room_nid = m.room_nid WHERE u.name = ANY(:user_ids) AND m.membership = 'join'",
)
def rooms_joined(txn: Transaction, user_ids: Sequence[str]) -> None:
    """The rooms that users are joined to, in no order."""


@many(MembershipRow, f"{_MEMBERSHIP} WHERE m.user_nid = :user_nid ORDER BY m.room_nid")
def memberships_of(txn: Transaction, user_nid: int) -> None: ...


@maybe(MembershipRow, f"{_MEMBERSHIP} WHERE m.user_nid = :user_nid AND m.room_nid = :room_nid")
def membership_in(txn: Transaction, user_nid: int, room_nid: int) -> None: ...


@many(MembershipRow, f"{_MEMBERSHIP} WHERE m.room_nid = :room_nid AND m.local = 1 ORDER BY m.user_nid")
def local_memberships(txn: Transaction, room_nid: int) -> None:
    """The memberships of this server's users."""


class MemberEventRow(msgspec.Struct, frozen=True):
    depth: int
    position: int
    pdu: bytes


@many(
    MemberEventRow,
    "SELECT depth, position, pdu FROM events WHERE room_nid = :room_nid AND slot_nid = ANY(:slot_nids) AND status = 0 "
    "ORDER BY position DESC LIMIT 50",
)
def member_events_of(txn: Transaction, room_nid: int, slot_nids: Sequence[int]) -> None:
    """The newest values of some state slots in a room."""


class MemberSlot(msgspec.Struct, frozen=True):
    """A user with a membership in a room, and the place of the member events."""

    user_id: str
    membership: str
    slot_nid: int


@many(
    MemberSlot,
    "SELECT n.name, m.membership, s.slot_nid FROM memberships m JOIN names n ON n.name_nid = m.user_nid "
    "JOIN state_slots s ON s.type = 'm.room.member' AND s.state_key = n.name "
    "WHERE m.room_nid = :room_nid AND n.name LIKE :pattern ORDER BY m.position",
)
def member_slots(txn: Transaction, room_nid: int, pattern: str) -> None:
    """The users with a membership of any kind whose IDs fit a pattern, those of the longest standing first."""


@many(
    str,
    "SELECT n.name FROM memberships m JOIN names n ON n.name_nid = m.user_nid WHERE m.room_nid = :room_nid "
    "AND m.membership = 'join'",
)
def joined_users(txn: Transaction, room_nid: int) -> None: ...


@many(
    str,
    "SELECT n.name FROM memberships m JOIN names n ON n.name_nid = m.user_nid WHERE m.room_nid = :room_nid "
    "AND m.membership = 'join' LIMIT :count",
)
def some_joined_users(txn: Transaction, room_nid: int, count: int) -> None: ...


@many(
    str,
    "SELECT n.name FROM memberships m JOIN names n ON n.name_nid = m.user_nid WHERE m.room_nid = :room_nid "
    "AND m.local = 0 ORDER BY m.position DESC LIMIT :count",
)
def some_others(txn: Transaction, room_nid: int, count: int) -> None:
    """Users of other servers who have any membership, those first whose is the newest."""


@many(
    str,
    "SELECT n.name FROM memberships m JOIN names n ON n.name_nid = m.user_nid WHERE m.room_nid = :room_nid "
    "AND m.membership = 'join' AND m.local = 1 LIMIT :count",
)
def some_local_members(txn: Transaction, room_nid: int, count: int) -> None: ...


@many(
    str,
    "SELECT n.name FROM memberships m JOIN names n ON n.name_nid = m.user_nid WHERE m.room_nid = :room_nid "
    "AND m.membership = 'join' AND m.local = 1",
)
def local_members(txn: Transaction, room_nid: int) -> None:
    """The joined users of this server."""


@many(
    str,
    "SELECT n.name FROM memberships m JOIN names n ON n.name_nid = m.user_nid WHERE m.room_nid = :room_nid "
    "AND m.membership = ANY(:memberships) ORDER BY m.event_nid LIMIT :count",
)
def first_members(txn: Transaction, room_nid: int, memberships: Sequence[str], count: int) -> None:
    """Those who have one of the memberships, for the longest time first."""


@many(int, "SELECT event_nid FROM memberships WHERE room_nid = :room_nid AND membership = :membership")
def member_events_with(txn: Transaction, room_nid: int, membership: str) -> None:
    """The numbers of the current member events with a membership."""


@many(
    str,
    "SELECT r.room_id FROM rooms r WHERE NOT EXISTS (SELECT 1 FROM memberships m WHERE m.room_nid = r.room_nid "
    "AND m.membership = 'join' AND m.local = 1) ORDER BY r.room_nid",
)
def rooms_without_local_members(txn: Transaction) -> None: ...


@many(
    RoomRow,
    "SELECT r.room_nid, r.room_id, r.version, r.depth, r.extremities, r.snapshot_nid, r.tape_nid, r.standing, "
    "r.rewritten FROM memberships a JOIN memberships b ON b.room_nid = a.room_nid "
    "JOIN rooms r ON r.room_nid = a.room_nid "
    "WHERE a.user_nid = :user_nid AND a.membership = 'join' AND b.user_nid = :other_nid AND b.membership = 'join' "
    "AND r.room_nid > :after ORDER BY r.room_nid LIMIT :count",
)
def mutual_rooms(txn: Transaction, user_nid: int, other_nid: int, after: int, count: int) -> None:
    """Rooms to which both users are joined."""


@one(
    int,
    "SELECT COUNT(*) FROM memberships a JOIN memberships b ON b.room_nid = a.room_nid "
    "WHERE a.user_nid = :user_nid AND a.membership = 'join' AND b.user_nid = :other_nid AND b.membership = 'join'",
)
def mutual_count(txn: Transaction, user_nid: int, other_nid: int) -> None: ...


class Counts(msgspec.Struct, frozen=True):
    joined: int
    local: int


@one(
    Counts,
    "SELECT COUNT(*), COALESCE(SUM(local), 0) FROM memberships WHERE room_nid = :room_nid AND membership = 'join'",
)
def member_counts(txn: Transaction, room_nid: int) -> None: ...


@many(
    str,
    "SELECT DISTINCT n.name FROM memberships a JOIN memberships b ON b.room_nid = a.room_nid "
    "JOIN names n ON n.name_nid = b.user_nid WHERE a.user_nid = :user_nid AND a.membership = 'join' "
    "AND b.membership = 'join' AND b.user_nid = ANY(:others)",
)
def sharing_a_room(txn: Transaction, user_nid: int, others: Sequence[int]) -> None: ...


@none("UPDATE memberships SET forgotten = 1 WHERE user_nid = :user_nid AND room_nid = :room_nid")
def forget(txn: Transaction, user_nid: int, room_nid: int) -> None: ...


# --- aliases and the directory ---


@none(
    "INSERT INTO aliases (alias, room_nid, creator, created_ts) VALUES (:alias, :room_nid, :creator, :created_ts) "
    "ON CONFLICT DO NOTHING"
)
def insert_alias(txn: Transaction, alias: str, room_nid: int, creator: str, created_ts: int) -> None: ...


@maybe(
    AliasRow,
    "SELECT a.alias, r.room_id, a.creator FROM aliases a JOIN rooms r ON r.room_nid = a.room_nid "
    "WHERE a.alias = :alias",
)
def alias_row(txn: Transaction, alias: str) -> None: ...


@many(str, "SELECT alias FROM aliases WHERE room_nid = :room_nid ORDER BY created_ts, alias")
def aliases_of(txn: Transaction, room_nid: int) -> None: ...


@none("DELETE FROM aliases WHERE alias = :alias")
def delete_alias(txn: Transaction, alias: str) -> None: ...


@none("UPDATE aliases SET room_nid = :new_nid WHERE room_nid = :room_nid")
def move_aliases(txn: Transaction, room_nid: int, new_nid: int) -> None: ...


@none("INSERT INTO published (room_nid) VALUES (:room_nid) ON CONFLICT DO NOTHING")
def publish(txn: Transaction, room_nid: int) -> None: ...


@none("DELETE FROM published WHERE room_nid = :room_nid")
def unpublish(txn: Transaction, room_nid: int) -> None: ...


@maybe(int, "SELECT room_nid FROM published WHERE room_nid = :room_nid")
def is_published(txn: Transaction, room_nid: int) -> None: ...


class DirectoryRow(msgspec.Struct, frozen=True):
    room_nid: int
    room_id: str
    joined: int


@many(
    DirectoryRow,
    "SELECT p.room_nid, r.room_id, COUNT(m.user_nid) FROM published p JOIN rooms r ON r.room_nid = p.room_nid "
    "LEFT JOIN memberships m ON m.room_nid = p.room_nid AND m.membership = 'join' "
    "GROUP BY p.room_nid, r.room_id ORDER BY COUNT(m.user_nid) DESC, p.room_nid",
)
def directory(txn: Transaction) -> None:
    """The published rooms, the largest first."""


# --- relations ---


@each(
    "INSERT INTO relations (parent_id, child_nid, room_nid, rel_type) VALUES (:parent_id, :child_nid, :room_nid, "
    ":rel_type) ON CONFLICT DO NOTHING",
    row="parent_id child_nid room_nid rel_type",
)
def insert_relations(txn: Transaction, rows: object) -> None: ...


@none("DELETE FROM relations WHERE child_nid = :child_nid")
def delete_relation(txn: Transaction, child_nid: int) -> None: ...


@many(
    RelationRow,
    "SELECT parent_id, child_nid, rel_type FROM relations WHERE parent_id = ANY(:parent_ids) ORDER BY child_nid",
)
def relations_to(txn: Transaction, parent_ids: Sequence[str]) -> None: ...
