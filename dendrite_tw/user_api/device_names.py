"""Which devices users have, asked inside the transaction of whoever keeps more of them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ..database.statements import Transaction, many


class _Row(msgspec.Struct, frozen=True):
    user_id: str
    device_id: str
    display_name: str | None


@many(_Row, "SELECT user_id, device_id, display_name FROM devices WHERE user_id = ANY(:user_ids)")
def _devices(txn: Transaction, user_ids: Sequence[str]) -> None: ...


async def devices_of(txn: Transaction, user_ids: Sequence[str]) -> dict[str, dict[str, str | None]]:
    """Users to their devices, each with its display name; a user without devices is left out."""
    found: dict[str, dict[str, str | None]] = {}
    for row in await _devices(txn, user_ids):
        found.setdefault(row.user_id, {})[row.device_id] = row.display_name
    return found
