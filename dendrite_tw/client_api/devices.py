"""One's own devices (Client-Server API, "Device Management")."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from ..matrix.errors import invalid_param, not_found
from ..user_api.api import Caller, Device, UserAPI
from ..web.resource import Exchange
from ..web.routes import Access, Response, Route
from .settings import ACCOUNT
from .uia import PASSWORD, InteractiveAuth

CLIENT = "/_matrix/client/v3"
DELETE_LIMIT = 1000
"""Devices that one request may delete."""


class NameBody(msgspec.Struct):
    display_name: str | None = None


class AuthBody(msgspec.Struct):
    auth: Any = None


class DeleteBody(msgspec.Struct, kw_only=True):
    devices: list[str]
    auth: Any = None


def shown(device: Device, user_id: str) -> dict[str, Any]:
    """A device as clients see it."""
    answer: dict[str, Any] = {"device_id": device.device_id, "user_id": user_id}
    if device.display_name is not None:
        answer["display_name"] = device.display_name
    if device.last_seen_ts:
        answer |= {"last_seen_ts": device.last_seen_ts, "last_seen_ip": device.last_seen_ip}
    return answer


class DevicesSection:
    """``/devices`` and ``/delete_devices``."""

    def __init__(self, users: UserAPI, auth: InteractiveAuth) -> None:
        self._users = users
        self._auth = auth

    def routes(self) -> list[Route]:
        one = f"{CLIENT}/devices/{{device_id}}"
        return [
            Route("GET", f"{CLIENT}/devices", self.devices, Access.GUEST),
            Route("GET", one, self.device, Access.GUEST),
            Route("PUT", one, self.put, Access.GUEST, ACCOUNT),
            Route("DELETE", one, self.delete, Access.USER, ACCOUNT),
            Route("POST", f"{CLIENT}/delete_devices", self.delete_several, Access.USER, ACCOUNT),
        ]

    async def devices(self, caller: Caller) -> dict[str, Any]:
        devices = await self._users.devices(caller.user_id)
        return {"devices": [shown(device, caller.user_id) for device in devices]}

    async def device(self, caller: Caller, device_id: str) -> dict[str, Any]:
        for device in await self._users.devices(caller.user_id):
            if device.device_id == device_id:
                return shown(device, caller.user_id)
        raise not_found("You have no such device.")

    async def put(self, caller: Caller, device_id: str, body: NameBody) -> Response:
        """Name a device; an application service may make one so."""
        may_create = caller.appservice_id is not None
        existed = not may_create or any(
            device.device_id == device_id for device in await self._users.devices(caller.user_id)
        )
        await self._users.put_device(caller.user_id, device_id, body.display_name, may_create)
        return Response(200 if existed else 201, b"{}")

    async def delete(self, caller: Caller, request: Exchange, device_id: str, body: AuthBody) -> None:
        await self._delete(caller, request, [device_id], body.auth)

    async def delete_several(self, caller: Caller, request: Exchange, body: DeleteBody) -> None:
        if len(body.devices) > DELETE_LIMIT:
            raise invalid_param(f"At most {DELETE_LIMIT} devices can be deleted at once.")
        await self._delete(caller, request, body.devices, body.auth)

    async def _delete(self, caller: Caller, request: Exchange, device_ids: list[str], auth: Any) -> None:
        if caller.appservice_id is None:
            await self._auth.require(request, deletion_of(device_ids), caller.user_id, auth, [[PASSWORD]])
        await self._users.delete_devices(caller.user_id, device_ids, None)


def deletion_of(device_ids: list[str]) -> str:
    """The purpose of an authentication to delete these devices, of any length in few characters."""
    digest = hashlib.sha256(msgspec.json.encode(sorted(device_ids)))
    return f"delete_devices {digest.hexdigest()}"
