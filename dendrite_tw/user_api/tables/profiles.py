"""The table ``profile_fields``: what local users tell of themselves, a JSON value for each field."""

from __future__ import annotations

import msgspec

from ...database.statements import Transaction, many, none

RETENTION = "until the user deletes the field or the account is deactivated"


class FieldRow(msgspec.Struct, frozen=True):
    field: str
    value: bytes


@many(FieldRow, "SELECT field, value FROM profile_fields WHERE user_id = :user_id ORDER BY field")
def fields(txn: Transaction, user_id: str) -> None: ...


@none(
    "INSERT INTO profile_fields (user_id, field, value) VALUES (:user_id, :field, :value) "
    "ON CONFLICT (user_id, field) DO UPDATE SET value = excluded.value"
)
def set_field(txn: Transaction, user_id: str, field: str, value: bytes) -> None: ...


@none("DELETE FROM profile_fields WHERE user_id = :user_id AND field = :field")
def delete_field(txn: Transaction, user_id: str, field: str) -> None: ...


@none("DELETE FROM profile_fields WHERE user_id = :user_id")
def delete_profile(txn: Transaction, user_id: str) -> None: ...
