"""Users by the words of their names and IDs, and which rooms show their members to everybody.

RETENTION: a user's rows go when they are joined to no room any more (`forget_unjoined`), an open room's
with the room.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ...database.statements import Transaction, each, many, none


class FoundRow(msgspec.Struct, frozen=True):
    user_nid: int
    user_id: str
    display_name: str
    avatar_url: str


@each(
    "INSERT INTO directory_users (user_nid, display_name, avatar_url) VALUES (:user_nid, :display_name, :avatar_url) "
    "ON CONFLICT (user_nid) DO UPDATE SET display_name = excluded.display_name, avatar_url = excluded.avatar_url",
    row="user_nid display_name avatar_url",
)
def put_users(txn: Transaction, rows: object) -> None: ...


@many(int, "SELECT user_nid FROM directory_users WHERE user_nid = ANY(:nids)")
def known_users(txn: Transaction, nids: Sequence[int]) -> None: ...


@each(
    "INSERT INTO directory_words (word, user_nid) VALUES (:word, :user_nid) ON CONFLICT DO NOTHING",
    row="word user_nid",
)
def put_words(txn: Transaction, rows: object) -> None: ...


@none("DELETE FROM directory_words WHERE user_nid = ANY(:nids)")
def delete_words(txn: Transaction, nids: Sequence[int]) -> None: ...


@none("DELETE FROM directory_users WHERE user_nid = ANY(:nids)")
def delete_users(txn: Transaction, nids: Sequence[int]) -> None: ...


@many(
    int,
    "SELECT u.user_nid FROM directory_users u WHERE u.user_nid = ANY(:nids) AND NOT EXISTS "
    "(SELECT 1 FROM memberships m WHERE m.user_nid = u.user_nid AND m.membership = 'join')",
)
def unjoined(txn: Transaction, nids: Sequence[int]) -> None: ...


async def forget_unjoined(txn: Transaction, nids: Sequence[int]) -> None:
    """Leave out those of these users who are joined to no room."""
    gone = await unjoined(txn, nids)
    if gone:
        await delete_words(txn, gone)
        await delete_users(txn, gone)


@many(
    FoundRow,
    "SELECT d.user_nid, n.name, d.display_name, d.avatar_url FROM (SELECT DISTINCT w.user_nid FROM "
    "(SELECT user_nid FROM directory_words WHERE word >= :low AND word < :high ORDER BY word LIMIT :scanned) w) c "
    "JOIN directory_users d ON d.user_nid = c.user_nid JOIN names n ON n.name_nid = d.user_nid WHERE "
    "EXISTS (SELECT 1 FROM memberships m JOIN open_rooms o ON o.room_nid = m.room_nid "
    "WHERE m.user_nid = d.user_nid AND m.membership = 'join' AND EXISTS (SELECT 1 FROM memberships l "
    "WHERE l.room_nid = m.room_nid AND l.local = 1 AND l.membership = 'join')) "
    "OR (d.user_nid <> :asking AND EXISTS (SELECT 1 FROM memberships a JOIN memberships b ON b.room_nid = a.room_nid "
    "WHERE a.user_nid = :asking AND a.membership = 'join' AND b.user_nid = d.user_nid AND b.membership = 'join')) "
    "LIMIT :count",
)
def visible_with_word(txn: Transaction, low: bytes, high: bytes, scanned: int, asking: int, count: int) -> None:
    """Users with a word in [low, high) whom the one who asks may know of, among the first `scanned` of them.

    A room that nobody of this server is in any more shows nobody: who is in it now is not known.
    """


@each(
    "INSERT INTO open_rooms (room_nid, reason) VALUES (:room_nid, :reason) ON CONFLICT DO NOTHING",
    row="room_nid reason",
)
def open_rooms(txn: Transaction, rows: object) -> None: ...


@each("DELETE FROM open_rooms WHERE room_nid = :room_nid AND reason = :reason", row="room_nid reason")
def close_rooms(txn: Transaction, rows: object) -> None: ...
