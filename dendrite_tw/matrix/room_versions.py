"""The table of room versions, each told as its difference from the one before.

Specification: "Room Versions" (``content/rooms``).  Code elsewhere asks for a
trait by name and never for a version number, because versions are opaque names
without an order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal


@dataclass(frozen=True, eq=False)
class RoomVersion:
    """What sets the rooms of one version apart.  The defaults are room version 1.

    There is one object for each version: compare and hash by identity.
    """

    identifier: str
    """The name of the version, as in ``content.room_version`` of ``m.room.create``."""
    stable: bool = True
    """Whether the version is offered as stable in ``m.room_versions``."""

    event_format: Literal["pairs", "ids"] = "pairs"
    """Whether ``auth_events`` and ``prev_events`` are ``[id, hashes]`` pairs or plain ids."""
    event_id_format: Literal["origin", "hash", "urlsafe_hash"] = "origin"
    """Whether the event id is chosen by its server, or the reference hash, and in which base64."""
    max_depth: int = 2**63 - 1
    """The largest ``depth``; there it stays once a room has reached it."""
    strict_canonical_json: bool = False
    """Whether floats and integers beyond 53 bits make an event invalid."""
    enforce_key_validity: bool = False
    """Whether ``valid_until_ts`` of a signing key must reach ``origin_server_ts``."""

    state_resolution: Literal["v1", "v2", "v2.1"] = "v1"
    """The algorithm that resolves forks of the state."""

    redaction_in_auth_rules: bool = True
    """Whether the authorisation rules judge ``m.room.redaction``, by the domains of event ids."""
    special_case_aliases_auth: bool = True
    """Whether a server may set ``m.room.aliases`` for its own name without being a member."""
    limit_notifications_power_levels: bool = False
    """Whether changes of ``notifications`` in power levels are checked as those of ``events``."""
    knocking: bool = False
    """Whether ``knock`` is a membership and a join rule."""
    restricted_joins: bool = False
    """Whether the join rule ``restricted`` exists."""
    knock_restricted: bool = False
    """Whether the join rule ``knock_restricted`` exists."""
    integer_power_levels: bool = False
    """Whether power levels must be integers, rather than also strings (and floats)."""
    implicit_room_creator: bool = False
    """Whether the creator is the sender of ``m.room.create`` instead of its ``content.creator``."""
    privileged_creators: bool = False
    """Whether creators (also ``additional_creators``) have infinite power."""
    room_ids_as_hashes: bool = False
    """Whether the room id is the id of the create event, which has no ``room_id`` itself."""
    create_event_in_auth_events: bool = True
    """Whether ``m.room.create`` is among the auth events of every other event."""

    redaction_keeps_aliases: bool = True
    """Whether ``content.aliases`` of ``m.room.aliases`` survives redaction."""
    redaction_keeps_allow: bool = False
    """Whether ``content.allow`` of ``m.room.join_rules`` survives redaction."""
    redaction_keeps_join_authorised: bool = False
    """Whether ``join_authorised_via_users_server`` of ``m.room.member`` survives redaction."""
    updated_redaction_rules: bool = False
    """Whether redaction follows the revised lists: all of create, ``invite`` level, fewer top-level keys."""
    redacts_in_content: bool = False
    """Whether ``redacts`` of ``m.room.redaction`` stands in ``content`` instead of beside it."""

    def __repr__(self) -> str:
        return f"RoomVersion({self.identifier!r})"

    def __reduce__(self) -> tuple[Callable[[str], RoomVersion], tuple[Any, ...]]:
        # Identity must survive the way to a worker process.
        return room_version, (self.identifier,)


ROOM_V1 = RoomVersion("1")
ROOM_V2 = replace(ROOM_V1, identifier="2", state_resolution="v2")
ROOM_V3 = replace(ROOM_V2, identifier="3", event_format="ids", event_id_format="hash", redaction_in_auth_rules=False)
ROOM_V4 = replace(ROOM_V3, identifier="4", event_id_format="urlsafe_hash")
ROOM_V5 = replace(ROOM_V4, identifier="5", enforce_key_validity=True)
ROOM_V6 = replace(
    ROOM_V5,
    identifier="6",
    strict_canonical_json=True,
    max_depth=2**53 - 1,
    special_case_aliases_auth=False,
    redaction_keeps_aliases=False,
    limit_notifications_power_levels=True,
)
ROOM_V7 = replace(ROOM_V6, identifier="7", knocking=True)
ROOM_V8 = replace(ROOM_V7, identifier="8", restricted_joins=True, redaction_keeps_allow=True)
ROOM_V9 = replace(ROOM_V8, identifier="9", redaction_keeps_join_authorised=True)
ROOM_V10 = replace(ROOM_V9, identifier="10", knock_restricted=True, integer_power_levels=True)
ROOM_V11 = replace(
    ROOM_V10,
    identifier="11",
    implicit_room_creator=True,
    updated_redaction_rules=True,
    redacts_in_content=True,
)
ROOM_V12 = replace(
    ROOM_V11,
    identifier="12",
    state_resolution="v2.1",
    room_ids_as_hashes=True,
    privileged_creators=True,
    create_event_in_auth_events=False,
)

ROOM_VERSIONS: Mapping[str, RoomVersion] = MappingProxyType(
    {
        version.identifier: version
        for version in (
            ROOM_V1,
            ROOM_V2,
            ROOM_V3,
            ROOM_V4,
            ROOM_V5,
            ROOM_V6,
            ROOM_V7,
            ROOM_V8,
            ROOM_V9,
            ROOM_V10,
            ROOM_V11,
            ROOM_V12,
        )
    }
)
"""Every version this server knows, by name."""

DEFAULT_ROOM_VERSION = "12"
"""The version of new rooms, unless the configuration says otherwise."""


def room_version(identifier: str) -> RoomVersion:
    """The version of that name; `KeyError` if it is unknown."""
    return ROOM_VERSIONS[identifier]
