"""The client API: its sections, which ask the other components."""

from __future__ import annotations

from typing import Any

from ..client_api.keys import KeysRoutes, RequireUIA
from ..client_api.reports import ReportRoutes
from ..client_api.room_admin import RoomAdminRoutes
from ..client_api.room_keys import RoomKeysRoutes
from ..client_api.rooms import RoomRoutes
from ..client_api.routes import account_routes
from ..client_api.spaces import SpaceRoutes
from ..client_api.to_device import ToDeviceRoutes
from ..client_api.uia import PASSWORD, InteractiveAuth
from ..client_api.user_directory import UserDirectoryRoutes
from ..settings import captcha, client_settings
from ..user_api.api import Caller
from ..web.resource import Exchange
from ..web.routes import Route, client_paths
from .basis import Basis, Living


class ClientPart:
    """Serves what clients do, and what they read of themselves."""

    def __init__(self, basis: Basis) -> None:
        self._basis = basis
        self._settings = client_settings(basis.config)
        self._auth = InteractiveAuth(
            basis.users, basis.world, self._settings, captcha(self._settings, basis.world), basis.ways.several
        )
        self.life: list[Living] = []
        self.later: list[Living] = []

    def prepare(self) -> None:
        """There is no database of its own."""

    def rows(self) -> list[Route]:
        basis = self._basis
        rooms, users, keys = basis.rooms, basis.users, basis.keys
        sections: list[Any] = [
            RoomRoutes(rooms, users, basis.others, basis.world.clock, basis.server_name),
            RoomAdminRoutes(rooms),
            SpaceRoutes(rooms),
            UserDirectoryRoutes(rooms),
            ReportRoutes(rooms),
            KeysRoutes(keys, password_again(self._auth)),
            RoomKeysRoutes(keys),
            ToDeviceRoutes(keys),
        ]
        rows = [row for section in sections for row in section.routes()]
        return client_paths(rows) + account_routes(self._settings, users, rooms, basis.client, basis.world, self._auth)


def password_again(auth: InteractiveAuth) -> RequireUIA:
    """Asks a user for the password before their cross-signing keys are replaced."""

    async def require(caller: Caller, request: Exchange, body: dict[str, Any]) -> object:
        purpose = "POST /keys/device_signing/upload"
        return await auth.require(request, purpose, caller.user_id, body.get("auth"), [[PASSWORD]])

    return require
