"""Keys of devices and cross-signing: upload, query, claim, sign.

Client-Server API, "End-to-End Encryption", "Key management API" and "Cross-signing".
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any

import msgspec
import orjson

from ..matrix.errors import bad_json, invalid_param
from ..user_api.api import Caller, KeyAPI
from ..web.resource import Exchange
from ..web.routes import Access, Route

UPLOAD_BODY_LIMIT = 4 << 20
SIGNATURES_BODY_LIMIT = 2 << 20
DEFAULT_TIMEOUT_MS = 10_000
"""How long other servers may take where the client does not say, or says 0."""

RequireUIA = Callable[[Caller, Exchange, dict[str, Any]], Awaitable[object]]
"""User-interactive authentication: returns once the caller has proven who they are, raises the 401 before."""

Milliseconds = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """An empty object, which some clients send for an empty list."""


class QueryBody(msgspec.Struct):
    device_keys: dict[str, list[str] | Nothing]
    timeout: Milliseconds | None = None


class ClaimBody(msgspec.Struct):
    one_time_keys: dict[str, dict[str, str]]
    timeout: Milliseconds | None = None


class KeysRoutes:
    """``/keys/…``, except for ``/keys/changes``, which is the sync's."""

    def __init__(self, keys: KeyAPI, require_uia: RequireUIA) -> None:
        self._keys = keys
        self._require_uia = require_uia

    def routes(self) -> list[Route]:
        """The rows of this section."""
        base, old = "/_matrix/client/v3/keys", "/_matrix/client/unstable/keys"
        return [
            Route("POST", f"{base}/upload", self.upload, Access.GUEST, body_limit=UPLOAD_BODY_LIMIT),
            Route("POST", f"{base}/query", self.query, Access.GUEST),
            Route("POST", f"{base}/claim", self.claim, Access.GUEST),
            Route("POST", "/_dendrite/admin/refreshDevices/{user_id}", self.refresh, Access.ADMIN),
            *[
                row
                for prefix in (base, old)
                for row in (
                    Route("POST", f"{prefix}/device_signing/upload", self.upload_cross_signing_keys),
                    Route(
                        "POST", f"{prefix}/signatures/upload", self.upload_signatures, body_limit=SIGNATURES_BODY_LIMIT
                    ),
                )
            ],
        ]

    async def upload(self, caller: Caller, body: dict[str, Any]) -> dict[str, Any]:
        """``POST /keys/upload``: identity, one-time and fallback keys of the caller's device."""
        counts = await self._keys.upload_keys(
            caller.user_id,
            device_of(caller),
            optional_object(body, "device_keys"),
            optional_object(body, "one_time_keys") or {},
            optional_object(body, "fallback_keys") or {},
        )
        return {"one_time_key_counts": counts.one_time_keys}

    async def query(self, caller: Caller, body: QueryBody) -> dict[str, Any]:
        """``POST /keys/query``: devices and cross-signing keys of users."""
        wanted = {user_id: ids if isinstance(ids, list) else [] for user_id, ids in body.device_keys.items()}
        found = await self._keys.query_keys(caller.user_id, wanted, body.timeout or DEFAULT_TIMEOUT_MS)
        return {
            "device_keys": {user_id: spliced(devices) for user_id, devices in found.device_keys.items()},
            "failures": found.failures,
            "master_keys": spliced(found.master_keys),
            "self_signing_keys": spliced(found.self_signing_keys),
            "user_signing_keys": spliced(found.user_signing_keys),
        }

    async def claim(self, caller: Caller, body: ClaimBody) -> dict[str, Any]:
        """``POST /keys/claim``: a one-time key for each device that is named."""
        claimed = await self._keys.claim_keys(body.one_time_keys, body.timeout or DEFAULT_TIMEOUT_MS)
        return {
            "failures": claimed.failures,
            "one_time_keys": {
                user_id: {device_id: spliced(keys) for device_id, keys in devices.items()}
                for user_id, devices in claimed.one_time_keys.items()
            },
        }

    async def upload_cross_signing_keys(self, caller: Caller, request: Exchange, body: dict[str, Any]) -> None:
        """``POST /keys/device_signing/upload``; keys that exist are replaced after authentication only."""
        keys = {
            usage: key
            for usage in ("master", "self_signing", "user_signing")
            if (key := optional_object(body, f"{usage}_key")) is not None
        }
        trusted = caller.appservice_id is not None
        if not await self._keys.upload_cross_signing_keys(caller.user_id, keys, trusted):
            await self._require_uia(caller, request, body)
            await self._keys.upload_cross_signing_keys(caller.user_id, keys, True)

    async def upload_signatures(self, caller: Caller, body: dict[str, Any]) -> dict[str, Any]:
        """``POST /keys/signatures/upload``: signatures of the caller's devices and of master keys."""
        if not all(isinstance(objects, dict) for objects in body.values()):
            raise bad_json("The body must map user IDs to maps of key IDs to signed objects.")
        return {"failures": await self._keys.upload_signatures(caller.user_id, body)}

    async def refresh(self, user_id: str) -> None:
        """``POST /_dendrite/admin/refreshDevices/{userID}``: fetch the devices of another server's user anew."""
        await self._keys.refresh_device_list(user_id)


def device_of(caller: Caller) -> str:
    """The caller's device; ``M_INVALID_PARAM`` for an application service that acts as none."""
    if caller.device_id is None:
        raise invalid_param("This needs a device; name one with device_id.")
    return caller.device_id


def optional_object(body: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """A part of `body` that must be an object where it is present; null counts as absent."""
    value = body.get(name)
    if value is not None and not isinstance(value, dict):
        raise bad_json(f"{name} must be an object.")
    return value


def spliced(parts: Mapping[str, bytes]) -> dict[str, orjson.Fragment]:
    """JSON values that are put into an answer as they are."""
    return {name: orjson.Fragment(part) for name, part in parts.items()}
