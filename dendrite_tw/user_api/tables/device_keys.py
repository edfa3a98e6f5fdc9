"""Identity keys of devices: one JSON object for each device, with the signatures that everybody may see."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ...database.statements import Transaction, many, maybe, none

RETENTION = "One row for a device; deleted with the device (`delete`) or the account (`delete_of_user`)."


class DeviceKeysRow(msgspec.Struct, frozen=True):
    """A device's keys as JSON without ``unsigned``."""

    user_id: str
    device_id: str
    content: bytes


@many(DeviceKeysRow, "SELECT user_id, device_id, content FROM device_keys WHERE user_id = ANY(:user_ids)")
def of_users(txn: Transaction, user_ids: Sequence[str]) -> None:
    """The keys of all devices of these users, in no order."""


class DeviceName(msgspec.Struct, frozen=True):
    """A device and how its user calls it."""

    user_id: str
    device_id: str
    display_name: str | None


@many(DeviceName, "SELECT user_id, device_id, display_name FROM devices WHERE user_id = ANY(:user_ids)")
def names_of_users(txn: Transaction, user_ids: Sequence[str]) -> None:
    """All devices of these users, out of the table that sessions keep."""


@maybe(bytes, "SELECT content FROM device_keys WHERE user_id = :user_id AND device_id = :device_id")
def of_device(txn: Transaction, user_id: str, device_id: str) -> None: ...


@none(
    """
    INSERT INTO device_keys (user_id, device_id, content) VALUES (:user_id, :device_id, :content)
    ON CONFLICT (user_id, device_id) DO UPDATE SET content = excluded.content
    """
)
def store(txn: Transaction, user_id: str, device_id: str, content: bytes) -> None: ...


@none("DELETE FROM device_keys WHERE user_id = :user_id AND device_id = :device_id")
def delete(txn: Transaction, user_id: str, device_id: str) -> None: ...


@none("DELETE FROM device_keys WHERE user_id = :user_id")
def delete_of_user(txn: Transaction, user_id: str) -> None: ...
