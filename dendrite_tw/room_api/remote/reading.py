"""What the parts of this folder ask of others."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from ...matrix.events import Event
from ..room import Room
from ..tables.names import Slot

CheckServer = Callable[[str, str], Awaitable[None]]
"""Raises ``M_FORBIDDEN`` where the ACL of a room keeps a server out."""

CheckInvited = Callable[[str], Awaitable[None]]
"""Raises `MatrixError` if a user of this server does not exist or wants no invites."""

Receive = Callable[[str, str, list[bytes]], Awaitable[dict[str, str]]]
"""`RoomAPI.receive`."""

ServersOf = Callable[[str], Awaitable[list[str]]]
"""The servers with members in a room, as far as they are known."""


class StateReader(Protocol):
    """The current state events of a room at some places, where set."""

    async def __call__(self, room: Room, *keys: Slot) -> dict[Slot, Event]: ...
