"""What remains to be done.

RETENTION: a row goes when its duty is done.
"""

from __future__ import annotations

import msgspec

from ...database.statements import Transaction, each, many, none


class DutyRow(msgspec.Struct, frozen=True):
    duty_id: int
    kind: str
    room_nid: int
    subject: str
    room_id: str
    """Of a room that is deleted the subject."""


@each(
    "INSERT INTO duties (kind, room_nid, subject) VALUES (:kind, :room_nid, :subject)",
    row="kind room_nid subject",
)
def insert_duties(txn: Transaction, rows: object) -> None: ...


@many(
    DutyRow,
    "SELECT d.duty_id, d.kind, d.room_nid, d.subject, COALESCE(r.room_id, d.subject) "
    "FROM duties d LEFT JOIN rooms r ON r.room_nid = d.room_nid "
    "WHERE d.duty_id > :after ORDER BY d.duty_id LIMIT :count",
)
def duties_after(txn: Transaction, after: int, count: int) -> None: ...


@many(int, "SELECT duty_id FROM duties WHERE kind = :kind AND subject = :subject")
def duties_about(txn: Transaction, kind: str, subject: str) -> None: ...


@none("DELETE FROM duties WHERE duty_id = :duty_id")
def delete_duty(txn: Transaction, duty_id: int) -> None: ...
