"""The first events of a room: what ``createRoom`` asks for, in the order of the specification.

Client-Server API, "Creation": the create event, the creator's join, power
levels, the canonical alias, the preset's rules, ``initial_state``, name and
topic, invitations.  Pure: a `NewRoom` in, drafts out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..matrix.errors import MatrixError, bad_json, invalid_param
from ..matrix.identifiers import is_user_id
from ..matrix.room_versions import RoomVersion
from .api import NewRoom
from .room import Draft

INVITE_LIMIT = 100
"""Users that one request may invite."""

STATE_LIMIT = 500
"""Events that ``initial_state`` may have."""


@dataclass(frozen=True)
class Preset:
    """The rules that a preset stands for."""

    join_rule: str
    guest_access: str
    invite_level: int
    trusted: bool = False


PRESETS = {
    "private_chat": Preset("invite", "can_join", 0),
    "trusted_private_chat": Preset("invite", "can_join", 0, trusted=True),
    "public_chat": Preset("public", "forbidden", 50),
}


def preset_of(room: NewRoom) -> Preset:
    """The preset asked for, or the one that the visibility implies."""
    if room.visibility not in ("public", "private"):
        raise invalid_param("visibility must be public or private.")
    name = room.preset or ("public_chat" if room.visibility == "public" else "private_chat")
    preset = PRESETS.get(name)
    if preset is None:
        raise invalid_param(f"There is no preset {name!r}.")
    return preset


def check(room: NewRoom) -> None:
    """Raise `MatrixError` for what can be seen to be wrong before anything is made."""
    if len(room.invite) > INVITE_LIMIT:
        raise invalid_param(f"At most {INVITE_LIMIT} users can be invited at once.")
    if len(room.initial_state) > STATE_LIMIT:
        raise invalid_param(f"initial_state may have {STATE_LIMIT} events at most.")
    for user_id in room.invite:
        if not is_user_id(user_id):
            raise invalid_param(f"{user_id!r} is not a user ID.")
    for event in room.initial_state:
        if not isinstance(event.get("type"), str) or not isinstance(event.get("content"), dict):
            raise bad_json("Each event of initial_state needs a type and a content.")
        if not isinstance(event.get("state_key", ""), str):
            raise bad_json("A state_key must be a string.")
    if "m.federate" in room.creation_content and not isinstance(room.creation_content["m.federate"], bool):
        raise bad_json("m.federate must be true or false.")


def first_events(
    room: NewRoom, version: RoomVersion, alias: str | None, predecessor: Mapping[str, Any] | None = None
) -> list[Draft]:
    """The drafts of a new room, in order; `alias` is its full alias."""
    preset = preset_of(room)
    creator = room.creator

    def state(type: str, content: dict[str, Any], state_key: str = "") -> Draft:
        return Draft(sender=creator, type=type, content=content, state_key=state_key)

    create = create_content(room, version, preset)
    if predecessor is not None:
        create["predecessor"] = dict(predecessor)
    events = [
        state("m.room.create", create),
        state("m.room.member", {"membership": "join", **room.creator_profile}, creator),
    ]
    given = {(event["type"], event.get("state_key", "")) for event in room.initial_state}
    if ("m.room.power_levels", "") not in given:
        events.append(state("m.room.power_levels", power_levels(room, version, preset)))
    if alias is not None and ("m.room.canonical_alias", "") not in given:
        events.append(state("m.room.canonical_alias", {"alias": alias}))
    rules: list[tuple[str, dict[str, Any]]] = [
        ("m.room.join_rules", {"join_rule": preset.join_rule}),
        ("m.room.history_visibility", {"history_visibility": "shared"}),
    ]
    if preset.guest_access != "forbidden":
        # Guests are forbidden to join where there is no such event.
        rules.append(("m.room.guest_access", {"guest_access": preset.guest_access}))
    events += [state(type, content) for type, content in rules if (type, "") not in given]
    events += [state(event["type"], event["content"], event.get("state_key", "")) for event in room.initial_state]
    if room.name is not None:
        events.append(state("m.room.name", {"name": room.name}))
    if room.topic is not None:
        events.append(state("m.room.topic", {"topic": room.topic, "m.topic": {"m.text": [{"body": room.topic}]}}))
    return events


def create_content(room: NewRoom, version: RoomVersion, preset: Preset) -> dict[str, Any]:
    """The content of ``m.room.create``."""
    content = dict(room.creation_content)
    content["room_version"] = version.identifier
    if version.implicit_room_creator:
        content.pop("creator", None)
    else:
        content["creator"] = room.creator
    if version.privileged_creators and preset.trusted:
        given = content.get("additional_creators", [])
        if isinstance(given, list):
            content["additional_creators"] = _unique([*given, *room.invite])
    return content


def power_levels(room: NewRoom, version: RoomVersion, preset: Preset) -> dict[str, Any]:
    """The content of the first ``m.room.power_levels``."""
    users = {} if version.privileged_creators else {room.creator: 100}
    if preset.trusted and not version.privileged_creators:
        users |= dict.fromkeys(room.invite, 100)
    content: dict[str, Any] = {
        "users": users,
        "users_default": 0,
        "events": {
            "m.room.name": 50,
            "m.room.power_levels": 100,
            "m.room.history_visibility": 100,
            "m.room.canonical_alias": 50,
            "m.room.avatar": 50,
            "m.room.tombstone": 150 if version.privileged_creators else 100,
            "m.room.server_acl": 100,
            "m.room.encryption": 100,
        },
        "events_default": 0,
        "state_default": 50,
        "ban": 50,
        "kick": 50,
        "redact": 50,
        "invite": preset.invite_level,
        "historical": 100,
    }
    content.update(room.power_level_content_override or {})
    return content


def invitations(room: NewRoom) -> Sequence[str]:
    """Whom to invite: each once, never the creator."""
    return [user_id for user_id in _unique(room.invite) if user_id != room.creator]


def unsupported_version(identifier: str) -> MatrixError:
    return MatrixError(400, "M_UNSUPPORTED_ROOM_VERSION", f"This server does not know room version {identifier!r}.")


def _unique(values: Sequence[Any]) -> list[Any]:
    return list(dict.fromkeys(value for value in values if isinstance(value, str)))
