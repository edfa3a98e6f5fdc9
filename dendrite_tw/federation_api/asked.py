"""What federation asks of rooms and keys beyond what others ask of them."""

from __future__ import annotations

from typing import Any, Protocol

from ..room_api.api import RoomAPI, TakenMembership

__all__ = ["Rooms", "TakenMembership"]


class Rooms(RoomAPI, Protocol):
    async def events_for_server(self, origin: str, event_ids: list[str]) -> dict[str, bytes]: ...

    async def state_ids_for_server(self, origin: str, room_id: str, event_id: str) -> tuple[list[str], list[str]]: ...

    async def event_auth_for_server(self, origin: str, room_id: str, event_id: str) -> list[str]: ...

    async def missing_events_for_server(
        self, origin: str, room_id: str, earliest: list[str], latest: list[str], limit: int, min_depth: int
    ) -> list[bytes]: ...

    async def backfill_for_server(self, origin: str, room_id: str, event_ids: list[str], limit: int) -> list[bytes]: ...

    async def timestamp_to_event_for_server(
        self, origin: str, room_id: str, ts: int, direction: str
    ) -> tuple[str, int]: ...

    async def hierarchy_for_server(self, origin: str, room_id: str, suggested_only: bool) -> dict[str, Any]: ...
