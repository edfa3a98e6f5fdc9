"""Who may do what: the levels that a room's power-levels event and its creators imply.

Specification: Client-Server API, ``m.room.power_levels``; Server-Server API,
"Definitions"; the power-level sections of the room versions.

The content is read where it is asked for instead of being converted as a whole: a
room may list thousands of users, of whom one check concerns two.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final

from dendrite_tw.matrix.events import Event
from dendrite_tw.matrix.room_versions import RoomVersion

CREATOR_LEVEL: Final = 2**63 - 1
"""The infinite power of creators (room version 12): more than any level an event can state."""

StateMap = Mapping[tuple[str, str], Event]
"""The state of a room, or the part of it that a check needs, by type and state key."""

_STRING_LEVEL = re.compile(r"\s*[+-]?[0-9]{1,100}\s*\Z")


def parse_level(value: object, version: RoomVersion) -> int | None:
    """The integer that a power level means, or `None` if it is not one in this room version.

    Before room version 10 also decimal strings count, and floats where the version's JSON has
    them, cut off at the point.
    """
    if type(value) is int:
        return value
    if version.integer_power_levels:
        return None
    if isinstance(value, str) and _STRING_LEVEL.match(value):
        return int(value)
    if isinstance(value, float) and not version.strict_canonical_json and math.isfinite(value):
        return math.trunc(value)
    return None


def room_creators(create: Event) -> frozenset[str]:
    """The users whom the room counts as its creators."""
    content = create.content
    if not create.version.implicit_room_creator:
        creator = content.get("creator")
        return frozenset((creator,)) if isinstance(creator, str) else frozenset()
    additional = content.get("additional_creators") if create.version.privileged_creators else None
    if not isinstance(additional, list):
        return frozenset((create.sender,))
    return frozenset((create.sender, *(user for user in additional if isinstance(user, str))))


class PowerLevels:
    """The power levels of a room at one point.

    Made from the create event and the current power-levels event, if there is one; good for as long as
    these are the same.  Levels that are malformed count as absent, and what is absent has its default.
    """

    __slots__ = (
        "_events",
        "_notifications",
        "_users",
        "ban",
        "content",
        "creators",
        "events_default",
        "invite",
        "kick",
        "redact",
        "state_default",
        "users_default",
        "version",
    )

    def __init__(self, create: Event, event: Event | None) -> None:
        self.version: RoomVersion = create.version
        self.creators: frozenset[str] = room_creators(create)
        self.content: Mapping[str, Any] = {} if event is None else event.content
        self._users = self._object("users")
        if event is None and not self.version.privileged_creators:
            self._users = dict.fromkeys(self.creators, 100)
        self._events = self._object("events")
        self._notifications = self._object("notifications")
        self.users_default: int = self._level("users_default", 0)
        self.events_default: int = self._level("events_default", 0)
        self.state_default: int = self._level("state_default", 50)
        self.ban: int = self._level("ban", 50)
        self.kick: int = self._level("kick", 50)
        self.redact: int = self._level("redact", 50)
        self.invite: int = self._level("invite", 0)

    def _object(self, key: str) -> Mapping[str, Any]:
        value = self.content.get(key)
        return value if isinstance(value, dict) else {}

    def _level(self, key: str, default: int) -> int:
        value = self.content.get(key)
        if value is None:
            return default
        level = parse_level(value, self.version)
        return default if level is None else level

    def user_level(self, user_id: str) -> int:
        """The power of a user; `CREATOR_LEVEL` for creators where these are privileged."""
        if self.version.privileged_creators and user_id in self.creators:
            return CREATOR_LEVEL
        level = parse_level(self._users.get(user_id), self.version)
        return self.users_default if level is None else level

    @property
    def named(self) -> list[str]:
        """The users that have a level of their own: creators, and those whom the event lists."""
        return [*sorted(self.creators), *(user for user in self._users if user not in self.creators)]

    def event_level(self, event_type: str, is_state: bool) -> int:
        """The power that sending an event of this type requires."""
        level = parse_level(self._events.get(event_type), self.version)
        if level is not None:
            return level
        return self.state_default if is_state else self.events_default

    def notification_level(self, key: str) -> int:
        """The power that a notification of this kind requires, as ``room`` for ``@room``."""
        level = parse_level(self._notifications.get(key), self.version)
        return 50 if level is None else level


def power_levels(state: StateMap) -> PowerLevels:
    """The power levels in a state, which must hold the create event (`KeyError`)."""
    return PowerLevels(state["m.room.create", ""], state.get(("m.room.power_levels", "")))
