"""What this server is and can do: versions, capabilities, well-known files.

Client-Server API, "Server Discovery", "Capabilities negotiation";
Server-Server API, "Server discovery" for ``/.well-known/matrix/server``.
"""

from __future__ import annotations

from typing import Any

from ..matrix.errors import not_found
from ..user_api.api import TYPE_APPSERVICE, Caller, UserAPI
from ..web.routes import Access, Route
from .settings import ACCOUNT, ClientSettings

OLD_VERSIONS = ["r0.0.1", "r0.1.0", "r0.2.0", "r0.3.0", "r0.4.0", "r0.5.0", "r0.6.0", "r0.6.1"]
VERSIONS = [*OLD_VERSIONS, *(f"v1.{minor}" for minor in range(1, 20))]
"""The specification's versions that this server speaks."""

STABLE_FLAGS = {
    "org.matrix.e2e_cross_signing": True,
    "org.matrix.msc2285.stable": True,
    "org.matrix.msc3771": True,
    "org.matrix.msc3773": True,
    "org.matrix.msc3827.stable": True,
    "uk.tcpip.msc4133.stable": True,
}
"""Flags of features that are in the specification now, which older clients still look for."""


class DiscoverySection:
    """``/versions``, ``/capabilities`` and ``/.well-known/matrix``."""

    def __init__(self, users: UserAPI, settings: ClientSettings) -> None:
        self._users = users
        self._settings = settings

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/_matrix/client/versions", self.versions, Access.PUBLIC),
            Route("GET", "/_matrix/client/v3/capabilities", self.capabilities, Access.USER, ACCOUNT),
            Route("GET", "/.well-known/matrix/client", self.well_known_client, Access.PUBLIC),
            Route("GET", "/.well-known/matrix/server", self.well_known_server, Access.PUBLIC),
            Route("GET", "/.well-known/matrix/support", self.well_known_support, Access.PUBLIC),
        ]

    async def versions(self) -> dict[str, Any]:
        return {"versions": VERSIONS, "unstable_features": STABLE_FLAGS | self._settings.unstable_features}

    async def capabilities(self, caller: Caller) -> dict[str, Any]:
        account = await self._users.account(caller.user_id)
        has_password = account is not None and account.has_password and account.account_type != TYPE_APPSERVICE
        capabilities: dict[str, Any] = {
            "m.change_password": {"enabled": has_password},
            "m.room_versions": {
                "default": self._settings.default_room_version,
                "available": self._settings.room_versions,
            },
            "m.set_displayname": {"enabled": True},
            "m.set_avatar_url": {"enabled": True},
            "m.profile_fields": {"enabled": True},
            "m.3pid_changes": {"enabled": False},
            "m.get_login_token": {"enabled": has_password},
            "m.forget_forced_upon_leave": {"enabled": False},
        }
        if caller.is_admin:
            capabilities["m.account_moderation"] = {"suspend": True, "lock": True}
        return {"capabilities": capabilities}

    async def well_known_client(self) -> dict[str, Any]:
        base_url = self._settings.well_known_client_name
        if not base_url:
            raise not_found("This server tells clients nothing here.")
        answer: dict[str, Any] = {"m.homeserver": {"base_url": base_url}}
        if self._settings.well_known_sliding_sync_proxy:
            answer["org.matrix.msc3575.proxy"] = {"url": self._settings.well_known_sliding_sync_proxy}
        return answer

    async def well_known_server(self) -> dict[str, Any]:
        if not self._settings.well_known_server_name:
            raise not_found("This server delegates to no other name.")
        return {"m.server": self._settings.well_known_server_name}

    async def well_known_support(self) -> dict[str, Any]:
        if not self._settings.support:
            raise not_found("The administrators of this server have left no address.")
        return self._settings.support
