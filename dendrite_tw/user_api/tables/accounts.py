"""The table ``accounts``: who exists on this server, and what they may do.

An account is never deleted: its name must not pass to somebody else.
"""

from __future__ import annotations

import msgspec

from ...database.statements import Transaction, many, maybe, none

RETENTION = "for ever: a name that was used is not given away again"


class AccountRow(msgspec.Struct, frozen=True):
    """An account as it is stored; flags are 0 or 1."""

    user_id: str
    account_type: int
    password_hash: str | None
    created_ts: int
    appservice_id: str | None
    deactivated: int
    erased: int
    locked: int
    suspended: int


_COLUMNS = "user_id, account_type, password_hash, created_ts, appservice_id, deactivated, erased, locked, suspended"


@maybe(AccountRow, f"SELECT {_COLUMNS} FROM accounts WHERE user_id = :user_id")
def account(txn: Transaction, user_id: str) -> None: ...


@none(
    "INSERT INTO accounts (user_id, account_type, password_hash, created_ts, appservice_id) "
    "VALUES (:user_id, :account_type, :password_hash, :created_ts, :appservice_id) ON CONFLICT DO NOTHING"
)
def insert(
    txn: Transaction,
    user_id: str,
    account_type: int,
    password_hash: str | None,
    created_ts: int,
    appservice_id: str | None,
) -> None:
    """Touches no row where the name is taken."""


@none(
    "UPDATE accounts SET account_type = :account_type, password_hash = :password_hash "
    "WHERE user_id = :user_id AND account_type = :old_type AND deactivated = 0"
)
def change_type(
    txn: Transaction, user_id: str, old_type: int, account_type: int, password_hash: str | None
) -> None: ...


@none("UPDATE accounts SET password_hash = :password_hash WHERE user_id = :user_id AND deactivated = 0")
def set_password(txn: Transaction, user_id: str, password_hash: str) -> None: ...


@none(
    "UPDATE accounts SET deactivated = 1, erased = :erased, password_hash = NULL, must_leave = 1 "
    "WHERE user_id = :user_id AND deactivated = 0"
)
def deactivate(txn: Transaction, user_id: str, erased: int) -> None: ...


@none("UPDATE accounts SET must_leave = 0 WHERE user_id = :user_id")
def has_left(txn: Transaction, user_id: str) -> None: ...


@many(str, "SELECT user_id FROM accounts WHERE must_leave = 1")
def still_leaving(txn: Transaction) -> None:
    """Deactivated users who may still be members of rooms."""


@none("UPDATE accounts SET must_show = 1 WHERE user_id = :user_id AND must_show = 0")
def must_show(txn: Transaction, user_id: str) -> None:
    """The profile is another one than rooms show."""


@none("UPDATE accounts SET must_show = 0 WHERE user_id = :user_id AND must_show = 1")
def is_shown(txn: Transaction, user_id: str) -> None: ...


@many(str, "SELECT user_id FROM accounts WHERE must_show = 1")
def still_to_show(txn: Transaction) -> None:
    """Users whose rooms may show an older profile."""


@none("UPDATE accounts SET locked = :locked WHERE user_id = :user_id AND deactivated = 0")
def set_locked(txn: Transaction, user_id: str, locked: int) -> None: ...


@none("UPDATE accounts SET suspended = :suspended WHERE user_id = :user_id AND deactivated = 0")
def set_suspended(txn: Transaction, user_id: str, suspended: int) -> None: ...
