"""What a server is told that meets a local user for the first time: their devices, and whether they are present.

Server-Server API, "Device Management": a list of devices is sent, too, "when that user joins a room which contains
servers which are not already receiving updates for that user's device list".  In a room of thousands of
servers these are told a few at a time, for each may answer by fetching the list.  "Presence" says nothing of the
kind, but who is there all the time would otherwise be thought away.  Of that a room with many local users makes
nothing known.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Protocol

import orjson

from ..matrix.edus import DeviceListUpdate, edu_content
from ..matrix.errors import MatrixError
from ..room_api.api import RoomAPI
from ..user_api.api import KeyAPI
from .post import Parcel
from .queue import OutgoingEdu

SERVERS_AT_ONCE = 100
PAUSE_SECONDS = 2.0
"""How many servers are told of the devices of one who joined, and for how long the next ones wait after them."""

PRESENT_LIMIT = 100
"""Local users in a room up to whom a server that comes is told who of them is present."""

MET_LIMIT = 10_000
"""Rooms with a server that came into them which are remembered, so that its second user changes nothing."""


class PresenceTold(Protocol):
    """Tells servers whether users are present."""

    def introduce(self, user_ids: Collection[str], servers: Sequence[str]) -> None: ...


class Introductions:
    """Says what follows from a join."""

    def __init__(self, rooms: RoomAPI, keys: KeyAPI, server_name: str, presence: PresenceTold | None) -> None:
        self._rooms = rooms
        self._keys = keys
        self._server_name = server_name
        self._presence = presence
        self._met: OrderedDict[tuple[str, str], None] = OrderedDict()

    async def joined(self, user_id: str, room_id: str, servers: Sequence[str], parcel: Parcel) -> None:
        """A local user joined a room in which the other servers `servers` are."""
        known: set[str] = set()
        for member in await self._rooms.memberships(user_id) if servers else ():
            if member.membership == "join" and member.room_id != room_id:
                known.update(await self._servers_in(member.room_id))
        strangers = [server for server in servers if server not in known]
        if strangers:
            await self._tell_devices(user_id, strangers, parcel)
            if self._presence is not None:
                self._presence.introduce([user_id], strangers)

    async def _servers_in(self, room_id: str) -> list[str]:
        try:
            return await self._rooms.room_servers(room_id)
        except MatrixError as error:
            if error.status == 404:
                return []
            raise

    async def _tell_devices(self, user_id: str, servers: Sequence[str], parcel: Parcel) -> None:
        """Tell of one device, as following an update that nobody can have who does not know the list."""
        try:
            listed = await self._keys.device_list(user_id)
        except MatrixError as error:
            if error.status == 404:
                return
            raise
        if not listed.devices:
            return
        device = listed.devices[-1]
        update = DeviceListUpdate(
            user_id=user_id,
            device_id=device.device_id,
            stream_id=listed.stream_id,
            prev_id=(listed.stream_id - 1,),
            device_display_name=device.display_name,
            keys=orjson.loads(device.keys),
        )
        content, key = edu_content(update), f"devices {user_id}"
        for number, start in enumerate(range(0, len(servers), SERVERS_AT_ONCE)):
            some = servers[start : start + SERVERS_AT_ONCE]
            parcel.add_edu(OutgoingEdu("m.device_list_update", content, some, key, number * PAUSE_SECONDS))

    async def met(self, server: str, room_id: str) -> None:
        """A user of another server joined a room."""
        if self._presence is None or (room_id, server) in self._met:
            return
        self._met[room_id, server] = None
        if len(self._met) > MET_LIMIT:
            self._met.popitem(last=False)
        members = await self._rooms.local_memberships(room_id)
        present = [member.user_id for member in members if member.membership == "join"]
        if len(present) <= PRESENT_LIMIT:
            self._presence.introduce(present, [server])
