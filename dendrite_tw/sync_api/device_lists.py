"""Whose devices a client must look at again, and whose it may forget.

Changed: those whose keys changed or were signed by the user, and those with
whom a room is newly shared, or will be once they accept an invite: a message may have to be
encrypted for them before they join.
Left: those with whom none is shared any more.  Client-Server API,
"Extensions to /sync" of end-to-end encryption.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from ..room_api.api import RoomAPI
from ..user_api.api import KeyAPI
from .tokens import SyncToken


class DeviceLists(msgspec.Struct, frozen=True):
    """Sorted user IDs."""

    changed: list[str] = []
    left: list[str] = []

    def __bool__(self) -> bool:
        return bool(self.changed or self.left)


class DeviceListReader:
    """Answers for /sync and for ``/keys/changes``."""

    def __init__(self, rooms: RoomAPI, keys: KeyAPI) -> None:
        self._rooms = rooms
        self._keys = keys

    async def read(
        self,
        user_id: str,
        since: SyncToken,
        upto: SyncToken,
        keys_may_have_changed: bool,
        arrived: Iterable[str],
        departed: Iterable[str],
        invited: Iterable[str] = (),
    ) -> DeviceLists:
        """The lists for (since, upto].

        ``arrived`` and ``departed``: users who came into or went out of a room that the user is
        in, or whose room the user joined or left; they count only if it makes a difference.
        ``invited``: users who were invited to a room that the user is in.
        """
        changed: set[str] = set()
        signed: list[str] = []
        if keys_may_have_changed:
            changed.update(await self._keys.key_changes_since(since.user, upto.user))
            signed = await self._keys.signatures_since(user_id, since.user, upto.user)
        candidates = set(departed)
        asked = (changed | candidates | set(arrived)) - {user_id}
        coming = set(invited) - {user_id}
        if not (asked or coming or signed or user_id in changed):
            return DeviceLists()
        shared = set(await self._rooms.shares_room(user_id, sorted(asked))) if asked else set()
        told = (changed & shared) | (set(arrived) & shared) | coming | set(signed)
        if user_id in changed:
            told.add(user_id)
        return DeviceLists(sorted(told), sorted(candidates - shared - {user_id}))
