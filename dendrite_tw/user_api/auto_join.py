"""New users join the rooms of ``user_api.auto_join_rooms``; a missing one is created as a public room."""

from __future__ import annotations

from twisted.logger import Logger

from ..matrix.errors import MatrixError
from ..room_api.api import Alias, MembershipChange, NewRoom, RoomAPI
from .profiles import Profiles
from .settings import UserSettings

log = Logger()


class AutoJoin:
    """Joins users who have just registered."""

    def __init__(self, settings: UserSettings, rooms: RoomAPI, profiles: Profiles) -> None:
        self._settings = settings
        self._rooms = rooms
        self._profiles = profiles

    async def join(self, user_id: str) -> None:
        """Join the user to every room of the list; one that fails is logged and left out."""
        profile = await self._profiles.profile(user_id)
        for alias in self._settings.auto_join_rooms:
            try:
                await self._join(user_id, alias, profile)
            except MatrixError as error:
                log.warn("{user} could not join {alias}: {error}", user=user_id, alias=alias, error=error.error)

    async def _join(self, user_id: str, alias: str, profile: dict[str, str]) -> None:
        found = await self._resolve(alias)
        if found is None:
            localpart = alias[1:].split(":", 1)[0]
            room = NewRoom(
                creator=user_id,
                preset="public_chat",
                visibility="public",
                room_alias_name=localpart,
                name=localpart,
                creator_profile=profile,
            )
            try:
                await self._rooms.create_room(room)
                return
            except MatrixError as error:
                found = await self._resolve(alias) if error.errcode == "M_ROOM_IN_USE" else None
                if found is None:
                    raise
        change = MembershipChange(
            room_id=found.room_id, sender=user_id, target=user_id, action="join", profile=profile, via=found.servers
        )
        await self._rooms.change_membership(change)

    async def _resolve(self, alias: str) -> Alias | None:
        """The room of an alias; `None` for one of this server that does not exist."""
        try:
            return await self._rooms.resolve_alias(alias)
        except MatrixError as error:
            if error.status == 404 and alias.partition(":")[2] == self._settings.server_name:
                return None
            raise
