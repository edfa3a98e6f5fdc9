"""Messages from device to device.

Client-Server API, "Send-to-Device messaging".
"""

from __future__ import annotations

from typing import Any

from ..matrix.errors import bad_json, missing_param
from ..user_api.api import Caller, KeyAPI
from ..web.routes import Access, Route
from .keys import optional_object

BODY_LIMIT = 8 << 20


class ToDeviceRoutes:
    """``/sendToDevice``."""

    def __init__(self, keys: KeyAPI) -> None:
        self._keys = keys

    def routes(self) -> list[Route]:
        """The rows of this section."""
        path = "/_matrix/client/v3/sendToDevice/{event_type}/{txn_id}"
        return [Route("PUT", path, self.send, Access.GUEST, body_limit=BODY_LIMIT)]

    async def send(self, caller: Caller, event_type: str, txn_id: str, body: dict[str, Any]) -> None:
        """``PUT /sendToDevice``: once for each transaction ID of a device and type."""
        messages = optional_object(body, "messages")
        if messages is None:
            raise missing_param("messages is missing.")
        if not all(isinstance(by_device, dict) for by_device in messages.values()):
            raise bad_json("messages must map user IDs to maps of device IDs to contents.")
        await self._keys.send_to_device(caller.user_id, caller.device_id or "", event_type, txn_id, messages)
