"""Devices as their users see them (Client-Server API, "Device Management")."""

from __future__ import annotations

from ..database.engines import Database
from .api import Device
from .tables import sessions as table


class Devices:
    """Reads of the table that `tokens` writes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def devices(self, user_id: str) -> list[Device]:
        return [
            Device(
                device_id=row.device_id,
                display_name=row.display_name,
                last_seen_ip=row.last_seen_ip,
                last_seen_ts=row.last_seen_ts,
                user_agent=row.user_agent,
            )
            for row in await self._database.read(table.devices, user_id)
        ]
