"""Invites and knocks of our users to rooms that this server is not in.

RETENTION: a row goes when the invite is answered or taken back, when this server joins the room, or with the room.
"""

from __future__ import annotations

import msgspec

from ...database.statements import Transaction, maybe, none, one


class InviteRow(msgspec.Struct, frozen=True):
    """What a user who was invited to a room elsewhere, or knocks on it, is shown of it; and who can be asked."""

    stripped: bytes
    via: str


@none(
    "INSERT INTO invites (user_nid, room_nid, stripped, via) VALUES (:user_nid, :room_nid, :stripped, :via) "
    "ON CONFLICT (user_nid, room_nid) DO UPDATE SET stripped = excluded.stripped, via = excluded.via"
)
def put_invite(txn: Transaction, user_nid: int, room_nid: int, stripped: bytes, via: str) -> None: ...


@maybe(InviteRow, "SELECT stripped, via FROM invites WHERE user_nid = :user_nid AND room_nid = :room_nid")
def invite_of(txn: Transaction, user_nid: int, room_nid: int) -> None: ...


@one(int, "SELECT COUNT(*) FROM invites WHERE user_nid = :user_nid")
def count_invites(txn: Transaction, user_nid: int) -> None: ...


@none("DELETE FROM invites WHERE user_nid = :user_nid AND room_nid = :room_nid")
def delete_invite(txn: Transaction, user_nid: int, room_nid: int) -> None: ...


@none("DELETE FROM invites WHERE room_nid = :room_nid")
def delete_invites(txn: Transaction, room_nid: int) -> None: ...
