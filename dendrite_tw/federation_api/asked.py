"""What federation asks of rooms and keys beyond what others ask of them."""

from __future__ import annotations

from typing import Any, Protocol

from ..room_api.api import RoomAPI


class TakenMembership(Protocol):
    event: bytes
    state: list[str]
    auth_chain: list[str]
    members_omitted: bool
    servers_in_room: list[str]
    stripped: list[bytes]


class Rooms(RoomAPI, Protocol):
    async def make_membership(
        self, kind: str, room_id: str, user_id: str, origin: str, versions: list[str]
    ) -> dict[str, Any]: ...

    async def take_membership(
        self, kind: str, room_id: str, event_id: str, origin: str, pdu: bytes, omit_members: bool = False
    ) -> TakenMembership: ...

    async def receive_invite(
        self, room_id: str, event_id: str, origin: str, body: dict[str, Any], old: bool = False
    ) -> bytes: ...

    async def exchange_third_party_invite(self, room_id: str, origin: str, body: dict[str, Any]) -> None: ...

    async def third_party_bound(self, body: dict[str, Any]) -> None: ...

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
