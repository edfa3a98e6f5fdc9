"""Keys of this server's devices, for users of other servers.

Server-Server API, "Device Management" and "End-to-End Encryption".
"""

from __future__ import annotations

from typing import Any

import msgspec
import orjson

from ..matrix.errors import not_found
from ..matrix.identifiers import is_historical_user_id, server_name_of
from ..user_api.api import KeyAPI
from ..web.routes import Access, Route

V1 = "/_matrix/federation/v1"


class QueryBody(msgspec.Struct, frozen=True):
    """Devices by user; none named asks for all of a user's."""

    device_keys: dict[str, list[str]]


class ClaimBody(msgspec.Struct, frozen=True):
    """Algorithms by user and device."""

    one_time_keys: dict[str, dict[str, str]]


class DeviceRoutes:
    """Serves keys of this server's users."""

    def __init__(self, keys: KeyAPI, server_name: str) -> None:
        self._keys = keys
        self._server_name = server_name

    def routes(self) -> list[Route]:
        server = Access.SERVER
        return [
            Route("GET", f"{V1}/user/devices/{{user_id}}", self.devices, server, cors=False),
            Route("POST", f"{V1}/user/keys/query", self.query, server, cors=False),
            Route("POST", f"{V1}/user/keys/claim", self.claim, server, cors=False),
        ]

    def _is_ours(self, user_id: str) -> bool:
        return is_historical_user_id(user_id) and server_name_of(user_id) == self._server_name

    async def devices(self, user_id: str) -> dict[str, Any]:
        """All devices of a user that have keys."""
        if not self._is_ours(user_id):
            raise not_found("That is not a user of this server.")
        found = await self._keys.device_list(user_id)
        answer: dict[str, Any] = {
            "user_id": found.user_id,
            "stream_id": found.stream_id,
            "devices": [
                {
                    "device_id": one.device_id,
                    "keys": orjson.Fragment(one.keys),
                    **({"device_display_name": one.display_name} if one.display_name is not None else {}),
                }
                for one in found.devices
            ],
        }
        if found.master_key is not None:
            answer["master_key"] = orjson.Fragment(found.master_key)
        if found.self_signing_key is not None:
            answer["self_signing_key"] = orjson.Fragment(found.self_signing_key)
        return answer

    async def query(self, body: QueryBody) -> dict[str, Any]:
        """Keys of devices, and the cross-signing keys that are for others to see."""
        wanted = {user_id: devices for user_id, devices in body.device_keys.items() if self._is_ours(user_id)}
        found = await self._keys.query_keys("", wanted, 0, True)
        return {
            "device_keys": {user_id: _spliced(devices) for user_id, devices in found.device_keys.items()},
            "master_keys": _spliced(found.master_keys),
            "self_signing_keys": _spliced(found.self_signing_keys),
        }

    async def claim(self, body: ClaimBody) -> dict[str, Any]:
        """One-time keys, which are used up by this."""
        wanted = {user_id: devices for user_id, devices in body.one_time_keys.items() if self._is_ours(user_id)}
        claimed = await self._keys.claim_keys(wanted, 0, True)
        return {
            "one_time_keys": {
                user_id: {device_id: _spliced(keys) for device_id, keys in devices.items()}
                for user_id, devices in claimed.one_time_keys.items()
            }
        }


def _spliced(parts: dict[str, bytes]) -> dict[str, orjson.Fragment]:
    return {name: orjson.Fragment(part) for name, part in parts.items()}
