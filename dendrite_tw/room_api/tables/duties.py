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


@each(
    "INSERT INTO duties (kind, room_nid, subject) VALUES (:kind, :room_nid, :subject)",
    row="kind room_nid subject",
)
def insert_duties(txn: Transaction, rows: object) -> None: ...


@many(
    DutyRow,
    "SELECT duty_id, kind, room_nid, subject FROM duties WHERE duty_id > :after ORDER BY duty_id LIMIT :count",
)
def duties_after(txn: Transaction, after: int, count: int) -> None: ...


@many(int, "SELECT duty_id FROM duties WHERE kind = :kind AND subject = :subject")
def duties_about(txn: Transaction, kind: str, subject: str) -> None: ...


@none("DELETE FROM duties WHERE duty_id = :duty_id")
def delete_duty(txn: Transaction, duty_id: int) -> None: ...
