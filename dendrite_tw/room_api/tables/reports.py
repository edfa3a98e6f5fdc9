"""What users reported: an event, a room as a whole, or a user.

RETENTION: a report stays until an administrator deletes it; each user may have
a bounded number of them.
"""

from __future__ import annotations

import msgspec

from ...database.statements import Transaction, many, maybe, none, one


class ReportRow(msgspec.Struct, frozen=True):
    report_id: int
    room_id: str
    event_id: str
    user_id: str
    reporter: str
    reason: str | None
    score: int | None
    received_ts: int


_REPORT = "SELECT report_id, room_id, event_id, user_id, reporter, reason, score, received_ts FROM reports"
_CHOSEN = (
    "((:kind = 'event' AND event_id <> '') OR (:kind = 'user' AND user_id <> '') "
    "OR (:kind = 'room' AND event_id = '' AND user_id = '') OR :kind = '') "
    "AND (:reporter = '' OR reporter = :reporter) AND (:room_id = '' OR room_id = :room_id)"
)


@one(
    int,
    "INSERT INTO reports (room_id, event_id, user_id, reporter, reason, score, received_ts) VALUES (:room_id, "
    ":event_id, :user_id, :reporter, :reason, :score, :received_ts) RETURNING report_id",
)
def insert_report(
    txn: Transaction,
    room_id: str,
    event_id: str,
    user_id: str,
    reporter: str,
    reason: str | None,
    score: int | None,
    received_ts: int,
) -> None: ...


@one(int, "SELECT COUNT(*) FROM reports WHERE reporter = :reporter")
def reports_by(txn: Transaction, reporter: str) -> None: ...


@maybe(ReportRow, f"{_REPORT} WHERE report_id = :report_id")
def report(txn: Transaction, report_id: int) -> None: ...


@many(ReportRow, f"{_REPORT} WHERE {_CHOSEN} ORDER BY report_id DESC LIMIT :count OFFSET :start")
def newest_reports(txn: Transaction, kind: str, reporter: str, room_id: str, start: int, count: int) -> None: ...


@many(ReportRow, f"{_REPORT} WHERE {_CHOSEN} ORDER BY report_id LIMIT :count OFFSET :start")
def oldest_reports(txn: Transaction, kind: str, reporter: str, room_id: str, start: int, count: int) -> None: ...


@one(int, f"SELECT COUNT(*) FROM reports WHERE {_CHOSEN}")
def report_count(txn: Transaction, kind: str, reporter: str, room_id: str) -> None: ...


@none("DELETE FROM reports WHERE report_id = :report_id")
def delete_report(txn: Transaction, report_id: int) -> None: ...
