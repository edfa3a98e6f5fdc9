"""The tables behind unread counts: the log of each room, and what is different for single users.

``unread_log`` has the events that notify everybody with the default rules;
``unread_personal`` those whose outcome for one user is another;
``read_marks`` how far a user has read each thread; ``unread_spans`` the part
of the log that counts for a user who changed push rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ...database.statements import Transaction, each, many, maybe, none

RETENTION = (
    "unread_log: the newest `settings.LOG_LIMIT` of a room, for `settings.NOTIFICATION_DAYS` days; unread_personal: "
    "as many days; read_marks: one row for each user, room and thread with such a mark; unread_spans: one row for "
    "each user and room of a rule; all of a room's go with the room (`prune`, `delete_room`)"
)


class LogRow(msgspec.Struct, frozen=True):
    room_id: str
    position: int
    thread_id: str
    event_id: str
    sender: str
    ts: int
    highlight: int


class PersonalRow(msgspec.Struct, frozen=True):
    """``logged``: 1 if the event is in the log, too, 2 if it highlights there; ``actions`` is JSON."""

    user_id: str
    room_id: str
    position: int
    thread_id: str
    event_id: str
    ts: int
    notify: int
    highlight: int
    logged: int
    actions: bytes


class MarkRow(msgspec.Struct, frozen=True):
    user_id: str
    room_id: str
    thread_id: str
    event_position: int


class SpanRow(msgspec.Struct, frozen=True):
    user_id: str
    room_id: str
    after_position: int
    upto_position: int


_LOG = "room_id, position, thread_id, event_id, sender, ts, highlight"
_PERSONAL = "user_id, room_id, position, thread_id, event_id, ts, notify, highlight, logged, actions"


@many(LogRow, f"SELECT {_LOG} FROM unread_log WHERE room_id = ANY(:room_ids) ORDER BY position")
def logs(txn: Transaction, room_ids: Sequence[str]) -> None: ...


@each(
    f"INSERT INTO unread_log ({_LOG}) VALUES "
    "(:room_id, :position, :thread_id, :event_id, :sender, :ts, :highlight) ON CONFLICT DO NOTHING",
    row=_LOG.replace(",", ""),
)
def insert_log(txn: Transaction, rows: Sequence[Sequence[Any]]) -> None: ...


@none("DELETE FROM unread_log WHERE room_id = :room_id AND position <= :upto")
def trim_log(txn: Transaction, room_id: str, upto: int) -> None: ...


@none("DELETE FROM unread_log WHERE room_id = :room_id AND position = :position")
def delete_logged(txn: Transaction, room_id: str, position: int) -> None: ...


@many(
    LogRow,
    f"SELECT {_LOG} FROM unread_log WHERE room_id = ANY(:room_ids) AND position < :before AND sender <> :user_id "
    "AND highlight >= :highlight ORDER BY position DESC LIMIT :count",
)
def newest_logged(
    txn: Transaction, room_ids: Sequence[str], before: int, user_id: str, highlight: int, count: int
) -> None: ...


@many(
    PersonalRow,
    f"SELECT {_PERSONAL} FROM ("
    f"SELECT {_PERSONAL}, ROW_NUMBER() OVER (PARTITION BY room_id ORDER BY position DESC) AS place "
    "FROM unread_personal p WHERE user_id = :user_id AND room_id = ANY(:room_ids) AND position > COALESCE("
    "(SELECT event_position FROM read_marks m WHERE m.user_id = p.user_id AND m.room_id = p.room_id "
    "AND m.thread_id = ''), 0)) AS unread WHERE place <= :count ORDER BY position",
)
def personal(txn: Transaction, user_id: str, room_ids: Sequence[str], count: int) -> None:
    """The newest `count` of each room that are behind the mark of all threads, in order."""


@many(
    PersonalRow,
    f"SELECT {_PERSONAL} FROM unread_personal WHERE user_id = :user_id AND position < :before "
    "AND highlight >= :highlight ORDER BY position DESC LIMIT :count",
)
def newest_personal(txn: Transaction, user_id: str, before: int, highlight: int, count: int) -> None: ...


@each(
    f"INSERT INTO unread_personal ({_PERSONAL}) VALUES (:user_id, :room_id, :position, :thread_id, :event_id, :ts, "
    ":notify, :highlight, :logged, :actions) ON CONFLICT DO NOTHING",
    row=_PERSONAL.replace(",", ""),
)
def insert_personal(txn: Transaction, rows: Sequence[Sequence[Any]]) -> None: ...


@many(str, "SELECT user_id FROM unread_personal WHERE room_id = :room_id AND position = :position")
def users_of_event(txn: Transaction, room_id: str, position: int) -> None: ...


@many(
    str,
    "SELECT user_id FROM unread_personal WHERE room_id = :room_id "
    "UNION SELECT user_id FROM read_marks WHERE room_id = :room_id",
)
def users_of_room(txn: Transaction, room_id: str) -> None: ...


@none("DELETE FROM unread_personal WHERE room_id = :room_id AND position = :position")
def delete_personal(txn: Transaction, room_id: str, position: int) -> None: ...


@many(
    MarkRow,
    "SELECT user_id, room_id, thread_id, event_position FROM read_marks "
    "WHERE user_id = :user_id AND room_id = ANY(:room_ids)",
)
def marks(txn: Transaction, user_id: str, room_ids: Sequence[str]) -> None: ...


@each(
    "INSERT INTO read_marks (user_id, room_id, thread_id, event_position) "
    "VALUES (:user_id, :room_id, :thread_id, :event_position) "
    "ON CONFLICT (user_id, room_id, thread_id) DO UPDATE SET event_position = excluded.event_position "
    "WHERE read_marks.event_position < excluded.event_position",
    row="user_id room_id thread_id event_position",
)
def raise_marks(txn: Transaction, rows: Sequence[Sequence[Any]]) -> None: ...


@none(
    "DELETE FROM read_marks WHERE user_id = :user_id AND room_id = :room_id AND thread_id <> '' "
    "AND event_position <= :upto"
)
def delete_marks_upto(txn: Transaction, user_id: str, room_id: str, upto: int) -> None:
    """The marks of threads that a mark of all threads has overtaken."""


@many(SpanRow, "SELECT user_id, room_id, after_position, upto_position FROM unread_spans WHERE user_id = :user_id")
def spans(txn: Transaction, user_id: str) -> None: ...


@each(
    "INSERT INTO unread_spans (user_id, room_id, after_position, upto_position) "
    "VALUES (:user_id, :room_id, :after_position, :upto_position) "
    "ON CONFLICT (user_id, room_id) DO UPDATE SET after_position = excluded.after_position, "
    "upto_position = excluded.upto_position",
    row="user_id room_id after_position upto_position",
)
def put_spans(txn: Transaction, rows: Sequence[Sequence[Any]]) -> None: ...


@maybe(int, "SELECT position FROM consumer_positions WHERE consumer = :consumer")
def consumer_position(txn: Transaction, consumer: str) -> None: ...


@none(
    "INSERT INTO consumer_positions (consumer, position) VALUES (:consumer, :position) "
    "ON CONFLICT (consumer) DO UPDATE SET position = excluded.position"
)
def put_consumer_position(txn: Transaction, consumer: str, position: int) -> None: ...


@none("DELETE FROM unread_log WHERE ts < :before")
def delete_old_log(txn: Transaction, before: int) -> None: ...


@none("DELETE FROM unread_personal WHERE ts < :before")
def delete_old_personal(txn: Transaction, before: int) -> None: ...


async def prune(txn: Transaction, before: int) -> int:
    """Forget events older than `before`, in milliseconds; returns how many."""
    return await delete_old_log(txn, before) + await delete_old_personal(txn, before)


@none("DELETE FROM unread_log WHERE room_id = :room_id")
def delete_log(txn: Transaction, room_id: str) -> None: ...


@none("DELETE FROM unread_personal WHERE room_id = :room_id")
def delete_room_personal(txn: Transaction, room_id: str) -> None: ...


@none("DELETE FROM read_marks WHERE room_id = :room_id")
def delete_room_marks(txn: Transaction, room_id: str) -> None: ...


async def delete_room(txn: Transaction, room_id: str) -> int:
    """Forget a room; returns the number of rows that went."""
    return (
        await delete_log(txn, room_id)
        + await delete_room_personal(txn, room_id)
        + await delete_room_marks(txn, room_id)
    )
