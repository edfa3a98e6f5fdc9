"""The auth chains of state events.

RETENTION: a row can be made anew from the events; it goes with the room.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ...database.statements import Transaction, each, many


class ChainRow(msgspec.Struct, frozen=True):
    event_nid: int
    chain: bytes


@many(ChainRow, "SELECT event_nid, chain FROM auth_chains WHERE event_nid = ANY(:nids)")
def chains(txn: Transaction, nids: Sequence[int]) -> None: ...


@each(
    "INSERT INTO auth_chains (event_nid, room_nid, chain) VALUES (:event_nid, :room_nid, :chain) "
    "ON CONFLICT DO NOTHING",
    row="event_nid room_nid chain",
)
def insert_chains(txn: Transaction, rows: object) -> None: ...
