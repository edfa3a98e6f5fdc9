"""The table ``push_rule_changes``: users whose push rules changed, until whoever counts what is unread takes them up.

``content`` are the rules from before, by which events are judged until then, as ``m.push_rules`` stores them.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ...database.statements import Transaction, many, none

RETENTION = "one row for each such user; deleted when the new rules are taken up"


class ChangeRow(msgspec.Struct, frozen=True):
    """``content``: the old rules; ``stored``: the new ones, `None` for the defaults."""

    user_id: str
    content: bytes
    stored: bytes | None


@many(
    ChangeRow,
    "SELECT c.user_id, c.content, a.content FROM push_rule_changes c LEFT JOIN account_data a "
    "ON a.user_id = c.user_id AND a.room_id = '' AND a.type = 'm.push_rules' ORDER BY c.user_id",
)
def changes(txn: Transaction) -> None: ...


@none("INSERT INTO push_rule_changes (user_id, content) VALUES (:user_id, :content) ON CONFLICT (user_id) DO NOTHING")
def note(txn: Transaction, user_id: str, content: bytes) -> None:
    """Rules change; those before the first change count that was not taken up."""


@none("DELETE FROM push_rule_changes WHERE user_id = ANY(:user_ids)")
def delete(txn: Transaction, user_ids: Sequence[str]) -> None: ...
