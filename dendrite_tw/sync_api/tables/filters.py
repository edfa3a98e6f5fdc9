"""Filters that clients have uploaded.

RETENTION: a user keeps `FILTERS_OF_A_USER` filters; `delete_oldest` removes
those uploaded longest ago when another comes.
"""

from __future__ import annotations

from ...database.statements import Transaction, maybe, none

RETENTION = "the newest 100 filters of a user"
FILTERS_OF_A_USER = 100


@none(
    "INSERT INTO sync_filters (user_id, filter_id, content, used) VALUES (:user_id, :filter_id, :content, :used) "
    "ON CONFLICT (user_id, filter_id) DO UPDATE SET used = excluded.used"
)
def put_filter(txn: Transaction, user_id: str, filter_id: str, content: bytes, used: int) -> None:
    """Store a filter, or note that one was uploaded again at `used` (milliseconds)."""


@maybe(bytes, "SELECT content FROM sync_filters WHERE user_id = :user_id AND filter_id = :filter_id")
def filter_content(txn: Transaction, user_id: str, filter_id: str) -> None:
    """The JSON of a user's filter."""


@none(
    "DELETE FROM sync_filters WHERE user_id = :user_id AND filter_id IN (SELECT filter_id FROM sync_filters "
    "WHERE user_id = :user_id ORDER BY used DESC, filter_id LIMIT 1000000 OFFSET :kept)"
)
def delete_oldest(txn: Transaction, user_id: str, kept: int) -> None:
    """Remove all but the `kept` newest filters of a user."""
