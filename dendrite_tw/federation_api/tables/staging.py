"""What other servers sent: the answers that they were given, and the events that wait for their room."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ...database.statements import Transaction, each, many, maybe, none

RETENTION = (
    "A staged event goes when its room has taken or refused it. An answer goes after ANSWERS_KEPT_MS: prune deletes a "
    "few at a time; who repeats a transaction later than that repeats events, which is harmless."
)

ANSWERS_KEPT_MS = 24 * 3_600_000
PRUNED_AT_ONCE = 500


class StagedRow(msgspec.Struct, frozen=True):
    """An event as it came."""

    staged_id: int
    origin: str
    pdu: bytes


class WaitingRow(msgspec.Struct, frozen=True):
    """How many events of one server wait for a room."""

    room_id: str
    origin: str
    count: int


@maybe(bytes, "SELECT answer FROM received_transactions WHERE origin = :origin AND txn_id = :txn_id")
def answer_to(txn: Transaction, origin: str, txn_id: str) -> None: ...


@none(
    "INSERT INTO received_transactions (origin, txn_id, received_ts, answer) "
    "VALUES (:origin, :txn_id, :received_ts, :answer) ON CONFLICT (origin, txn_id) DO NOTHING"
)
def store_answer(txn: Transaction, origin: str, txn_id: str, received_ts: int, answer: bytes) -> None:
    """Changes nothing, and says so, where the transaction was answered before."""


@each("INSERT INTO staged_pdus (room_id, origin, pdu) VALUES (:room_id, :origin, :pdu)", row="room_id origin pdu")
def stage(txn: Transaction, rows: object) -> None: ...


@many(
    StagedRow,
    "SELECT staged_id, origin, pdu FROM staged_pdus WHERE room_id = :room_id ORDER BY staged_id LIMIT :count",
)
def staged_of_room(txn: Transaction, room_id: str, count: int) -> None: ...


@none("DELETE FROM staged_pdus WHERE staged_id = ANY(:staged_ids)")
def unstage(txn: Transaction, staged_ids: Sequence[int]) -> None: ...


@many(WaitingRow, "SELECT room_id, origin, COUNT(*) FROM staged_pdus GROUP BY room_id, origin ORDER BY MIN(staged_id)")
def waiting(txn: Transaction) -> None: ...


@none(
    "DELETE FROM received_transactions WHERE (origin, txn_id) IN (SELECT origin, txn_id FROM received_transactions "
    "WHERE received_ts < :before ORDER BY received_ts LIMIT :count)"
)
def prune_answers(txn: Transaction, before: int, count: int) -> None: ...
