"""Rooms, their events and their state."""

from __future__ import annotations

from ..config.key_files import signing_key
from ..room_api.api import RoomAPI
from ..room_api.component import RoomComponent
from ..web.routes import Route
from .basis import Basis, Living


class RoomPart:
    """Answers `RoomAPI`."""

    def __init__(self, basis: Basis) -> None:
        self.rooms = rooms_of(basis)
        basis.ways.here(RoomAPI, self.rooms)
        basis.relays.add(self.rooms.outbox, basis.leases("room_server"))
        self.life: list[Living] = [self.rooms]
        self.later: list[Living] = []
        self.prepare = self.rooms.prepare

    def rows(self) -> list[Route]:
        """What is served of rooms is in the client API and in that of other servers."""
        return []


def rooms_of(basis: Basis) -> RoomComponent:
    return RoomComponent(
        database=basis.database("room_server"),
        users=basis.users,
        federation=basis.others,
        world=basis.world,
        budget=basis.budget,
        server_name=basis.server_name,
        key=signing_key(basis.config),
        default_room_version=basis.config.room_server.default_room_version,
        rooms=basis.rooms,
        leases=basis.leases("room_server"),
        echoes=basis.ways.echoes,
    )
