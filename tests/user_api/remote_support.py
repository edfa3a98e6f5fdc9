"""Carol of another server, who has devices; what her server says and answers is the test's to say."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import msgspec
import orjson

from dendrite_tw.user_api.api import OUTPUT_KEY_CHANGE_EVENT, DeviceListUpdate, KeyChange, QueriedKeys
from dendrite_tw.user_api.remote_checks import device
from tests.user_api.keys_support import ALICE, BOB, CAROL, Device, KeysCase

ROOM = "!room:test"
FEDERATION = "/_matrix/federation/v1"
QUERY = f"{FEDERATION}/user/keys/query"
CLAIM = f"{FEDERATION}/user/keys/claim"


def devices_path(user_id: str) -> str:
    return f"{FEDERATION}/user/devices/{quote(user_id, safe='')}"


class RemoteCase(KeysCase):
    """Alice and Carol share a room."""

    def setUp(self) -> None:
        super().setUp()
        self.clock = self.memory.clock
        self.laptop, self.phone = Device(CAROL, "LAPTOP"), Device(CAROL, "PHONE")
        for user_id in (ALICE, CAROL):
            self.rooms.put(ROOM, user_id)

    def answer_list(self, stream_id: int, *devices: Device, user_id: str = CAROL, **more: Any) -> None:
        """What ``/user/devices`` answers from now on."""
        self.federation.answers[user_id.partition(":")[2], devices_path(user_id)] = {
            "user_id": user_id,
            "stream_id": stream_id,
            "devices": [{"device_id": one.device_id, "keys": one.keys()} for one in devices],
            **more,
        }

    def answer_query(self, *devices: Device, **more: Any) -> None:
        """What ``/user/keys/query`` answers from now on."""
        users: dict[str, Any] = {}
        for one in devices:
            users.setdefault(one.user_id, {})[one.device_id] = one.keys()
        server_name = devices[0].user_id.partition(":")[2] if devices else "elsewhere"
        self.federation.answers[server_name, QUERY] = {"device_keys": users or {CAROL: {}}, **more}

    def update(self, device: Device, stream_id: int, *prev_id: int, origin: str = "elsewhere", **changes: Any) -> None:
        """A device list update arrives."""
        update = DeviceListUpdate(
            user_id=device.user_id,
            device_id=device.device_id,
            stream_id=stream_id,
            prev_id=list(prev_id),
            keys=device.keys(),
        )
        self.get(self.keys.device_list_update(origin, msgspec.structs.replace(update, **changes)))

    def query(self, *user_ids: str, requester: str = ALICE, timeout_ms: int = 10_000) -> QueriedKeys:
        wanted: dict[str, list[str]] = {user_id: [] for user_id in user_ids or (CAROL,)}
        return self.get(self.keys.query_keys(requester, wanted, timeout_ms))

    def shown(self, user_id: str = CAROL) -> dict[str, Any]:
        """The devices of a user as Alice sees them."""
        devices = self.query(user_id).device_keys.get(user_id, {})
        return {device_id: orjson.loads(keys) for device_id, keys in devices.items()}

    def asked(self) -> list[str]:
        """The ends of the paths that were asked for since the last time."""
        paths, self.federation.asked = self.federation.paths(), []
        return paths

    def key_changes(self) -> list[KeyChange]:
        rows = [row for row in self.told if row.stream == OUTPUT_KEY_CHANGE_EVENT]
        return [msgspec.msgpack.decode(row.payload, type=KeyChange) for row in rows]

    def told_users(self) -> list[str]:
        """Of whom changes were told since the last time."""
        changes = self.key_changes()
        self.told.clear()
        for change in changes:
            self.assertEqual((change.device_id, change.deleted), ("", False))
        return [change.user_id for change in changes]

    def restart(self) -> None:
        """Stop, and start anew on what is on disk."""
        self.get(self.keys.stop())
        self.keys = self.make()
        self.get(self.keys.start())


__all__ = ["ALICE", "BOB", "CAROL", "CLAIM", "QUERY", "ROOM", "Device", "RemoteCase", "device", "devices_path"]
