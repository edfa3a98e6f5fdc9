"""May this event stand on that state?  The authorisation rules, with the reason for each refusal.

Specification: "Authorisation rules" of the room versions; Server-Server API,
"Auth events selection" and "Rejection".  All versions follow one order of rules;
where they differ, a trait of `RoomVersion` decides.

Two rules are not judged here.  Whether a ``join_authorised_via_users_server`` has
signed is seen when signatures are checked (`signing.required_signers`), and that
the create event of a hashed room has no ``room_id`` is part of its format
(`events.parse_event`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from dendrite_tw.matrix import canonical_json, signing
from dendrite_tw.matrix.events import Event
from dendrite_tw.matrix.identifiers import is_historical_user_id, server_name_of
from dendrite_tw.matrix.power_levels import (
    CREATOR_LEVEL,
    PowerLevels,
    StateMap,
    parse_level,
    power_levels,
    room_creators,
)
from dendrite_tw.matrix.room_versions import ROOM_VERSIONS, RoomVersion

__all__ = [
    "CREATOR_LEVEL",
    "AuthError",
    "MalformedError",
    "PowerLevels",
    "StateMap",
    "auth_event_keys",
    "auth_state",
    "check_auth",
    "check_event_auth_events",
    "power_levels",
    "redaction_applies",
    "room_creators",
]

MAX_THIRD_PARTY_KEYS = 10
MAX_THIRD_PARTY_SIGNATURES = 10
"""How many keys and signatures of a third-party invite are tried with each other."""

_CREATE = ("m.room.create", "")
_POWER_LEVELS = ("m.room.power_levels", "")
_JOIN_RULES = ("m.room.join_rules", "")

_NAMED_LEVELS = (
    "users_default",
    "events_default",
    "state_default",
    "ban",
    "redact",
    "kick",
    "invite",
)


class AuthError(ValueError):
    """The event is not authorised; the text is the reason."""


class MalformedError(AuthError):
    """The event is not authorised whoever sends it, for what it says cannot be."""


# --- which events authorise -------------------------------------------------------------------------


def auth_event_keys(
    *, version: RoomVersion, type: str, sender: str, state_key: str | None, content: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """The parts of the state that belong among the ``auth_events`` of such an event, where they exist."""
    if type == "m.room.create":
        return []
    keys = [_CREATE] if version.create_event_in_auth_events else []
    keys += [_POWER_LEVELS, ("m.room.member", sender)]
    if type != "m.room.member" or state_key is None:
        return keys
    if state_key != sender:
        keys.append(("m.room.member", state_key))
    membership = content.get("membership")
    if membership in ("join", "invite", "knock"):
        keys.append(_JOIN_RULES)
    if membership == "invite":
        token = _third_party_signed(content).get("token")
        if isinstance(token, str):
            keys.append(("m.room.third_party_invite", token))
    if membership == "join" and version.restricted_joins:
        authoriser = content.get("join_authorised_via_users_server")
        if isinstance(authoriser, str) and ("m.room.member", authoriser) not in keys:
            keys.append(("m.room.member", authoriser))
    return keys


def _third_party_signed(content: Mapping[str, Any]) -> Mapping[str, Any]:
    invite = content.get("third_party_invite")
    signed = invite.get("signed") if isinstance(invite, dict) else None
    return signed if isinstance(signed, dict) else {}


def auth_state(auth_events: Iterable[Event], create: Event | None = None) -> dict[tuple[str, str], Event]:
    """The auth events of an event as a state to check it against.

    ``create`` is the create event of the room, for versions that leave it out of ``auth_events``.
    """
    state = {(event.type, event.state_key): event for event in auth_events if event.state_key is not None}
    if create is not None:
        state[_CREATE] = create
    return state


def check_event_auth_events(event: Event, auth_events: Sequence[Event], *, rejected: Collection[str] = ()) -> None:
    """Check what ``event.auth_events`` names; raises `AuthError`.

    ``auth_events`` are those events, all of them; ``rejected`` the ids of those which were themselves
    rejected.  A create event has no use for any and passes.
    """
    if event.type == "m.room.create":
        return
    expected = auth_event_keys(
        version=event.version,
        type=event.type,
        sender=event.sender,
        state_key=event.state_key,
        content=event.content,
    )
    seen: set[tuple[str, str | None]] = set()
    for authority in auth_events:
        key = (authority.type, authority.state_key)
        if key in seen:
            raise AuthError(f"two auth events for {key}")
        seen.add(key)
        if key not in expected:
            raise AuthError(f"{key} is not to be among the auth events")
        if authority.event_id in rejected:
            raise AuthError(f"auth event {authority.event_id} was rejected")
        if authority.room_id != event.room_id:
            raise AuthError(f"auth event {authority.event_id} belongs to another room")
    if event.version.create_event_in_auth_events and _CREATE not in seen:
        raise AuthError("no create event among the auth events")


# --- the rules --------------------------------------------------------------------------------------


def check_auth(event: Event, state: StateMap, *, power_levels: PowerLevels | None = None) -> None:
    """Raise `AuthError` unless ``state`` allows ``event``.

    ``state`` needs no more than what `auth_event_keys` names, and the create event in any version.
    ``power_levels`` are those of this state, if the caller has them already.
    """
    if event.type == "m.room.create":
        _check_create(event)
        return
    create = state.get(_CREATE)
    if create is None:
        raise AuthError("the room has no create event")
    if create.room_id != event.room_id:
        raise AuthError("the event is not of the room that the create event made")
    _check_federate(event, create)
    if event.type == "m.room.aliases" and event.version.special_case_aliases_auth:
        _check_aliases(event)
        return
    levels = power_levels or PowerLevels(create, state.get(_POWER_LEVELS))
    if event.type == "m.room.member":
        _check_member(event, state, create, levels)
        return
    if _membership(state, event.sender) != "join":
        raise AuthError("the sender is not in the room")
    _check_sending(event, state, levels)


def _check_sending(event: Event, state: StateMap, levels: PowerLevels) -> None:
    """The rules for a joined sender, of any type but membership."""
    power = levels.user_level(event.sender)
    if event.type == "m.room.third_party_invite":
        if power < levels.invite:
            raise AuthError("the sender may not invite")
        return
    if power < levels.event_level(event.type, event.is_state):
        raise AuthError(f"the sender may not send {event.type}")
    if event.state_key is not None and event.state_key[:1] == "@" and event.state_key != event.sender:
        raise AuthError("the state key is another user")
    if event.type == "m.room.power_levels":
        _check_power_levels(event, state, levels)
    if event.type == "m.room.redaction" and event.version.redaction_in_auth_rules:
        _check_redaction(event, power, levels)


def _check_create(event: Event) -> None:
    version, content = event.version, event.content
    if event.prev_events:
        raise AuthError("a create event has no previous events")
    if not version.room_ids_as_hashes and server_name_of(event.room_id) != server_name_of(event.sender):
        raise AuthError("the room id is of another server than the sender")
    if "room_version" in content:
        named = content["room_version"]
        if not isinstance(named, str) or named not in ROOM_VERSIONS:
            raise AuthError("the room version is unknown")
    if not version.implicit_room_creator and "creator" not in content:
        raise AuthError("the create event names no creator")
    if version.privileged_creators and "additional_creators" in content:
        additional = content["additional_creators"]
        if not isinstance(additional, list) or not all(map(is_historical_user_id, additional)):
            raise AuthError("additional_creators is not a list of user ids")


def _check_federate(event: Event, create: Event) -> None:
    if create.content.get("m.federate") is not False:
        return
    if server_name_of(event.sender) != server_name_of(create.sender):
        raise AuthError("the room is closed to other servers")


def _check_aliases(event: Event) -> None:
    if event.state_key is None:
        raise AuthError("aliases have a state key")
    if event.state_key != server_name_of(event.sender):
        raise AuthError("aliases are set by their own server")


def _check_redaction(event: Event, power: int, levels: PowerLevels) -> None:
    if power < levels.redact and not _same_event_id_server(event):
        raise AuthError("the sender may not redact events of other servers")


def _same_event_id_server(redaction: Event) -> bool:
    if redaction.redacts is None:
        return False
    _, _, target_server = redaction.redacts.partition(":")
    return target_server == server_name_of(redaction.event_id)


# --- membership -------------------------------------------------------------------------------------


def _membership(state: StateMap, user_id: str) -> str | None:
    event = state.get(("m.room.member", user_id))
    return None if event is None else event.membership


def _join_rule(state: StateMap) -> object:
    event = state.get(_JOIN_RULES)
    return "invite" if event is None else event.content.get("join_rule", "invite")


def _check_member(event: Event, state: StateMap, create: Event, levels: PowerLevels) -> None:
    if event.state_key is None:
        raise AuthError("a membership has a state key")
    if "membership" not in event.content:
        raise MalformedError("the event states no membership")
    if not is_historical_user_id(event.state_key):
        raise MalformedError("the state key is not a user id")
    membership = event.membership
    if membership == "join":
        _check_join(event, event.state_key, state, create, levels)
    elif membership == "invite":
        _check_invite(event, event.state_key, state, levels)
    elif membership == "leave":
        _check_leave(event, event.state_key, state, levels)
    elif membership == "ban":
        _check_ban(event, event.state_key, state, levels)
    elif membership == "knock" and event.version.knocking:
        _check_knock(event, event.state_key, state)
    else:
        raise MalformedError("the membership is unknown")


def _check_join(event: Event, target: str, state: StateMap, create: Event, levels: PowerLevels) -> None:
    version = event.version
    if event.prev_events == (create.event_id,) and target == _first_member(create):
        return
    if event.sender != target:
        raise AuthError("nobody can make another user join")
    current = _membership(state, target)
    if current == "ban":
        raise AuthError("the user is banned")
    rule = _join_rule(state)
    if rule == "public":
        return
    by_invitation = rule == "invite" or (rule == "knock" and version.knocking)
    restricted = (rule == "restricted" and version.restricted_joins) or (
        rule == "knock_restricted" and version.knock_restricted
    )
    if not by_invitation and not restricted:
        raise AuthError("the join rule does not allow to join")
    if current in ("join", "invite"):
        return
    if by_invitation:
        raise AuthError("the user is not invited")
    authoriser = event.content.get("join_authorised_via_users_server")
    if not isinstance(authoriser, str) or _membership(state, authoriser) != "join":
        raise AuthError("the join is not authorised by a member")
    if levels.user_level(authoriser) < levels.invite:
        raise AuthError("the join is authorised by a member who may not invite")


def _first_member(create: Event) -> object:
    """Who may follow the create event with a join: the creator whom it names, or else its sender."""
    return create.sender if create.version.implicit_room_creator else create.content.get("creator")


def _check_invite(event: Event, target: str, state: StateMap, levels: PowerLevels) -> None:
    if "third_party_invite" in event.content:
        _check_third_party_invite(event, target, state)
        return
    if _membership(state, event.sender) != "join":
        raise AuthError("the sender is not in the room")
    if _membership(state, target) in ("join", "ban"):
        raise AuthError("the user is joined or banned")
    if levels.user_level(event.sender) < levels.invite:
        raise AuthError("the sender may not invite")


def _check_third_party_invite(event: Event, target: str, state: StateMap) -> None:
    if _membership(state, target) == "ban":
        raise AuthError("the user is banned")
    signed = _third_party_signed(event.content)
    token = signed.get("token")
    if not isinstance(token, str) or not isinstance(signed.get("mxid"), str):
        raise AuthError("the third-party invite is not signed")
    if signed["mxid"] != target:
        raise AuthError("the third-party invite is for another user")
    invite = state.get(("m.room.third_party_invite", token))
    if invite is None:
        raise AuthError("the room has no such third-party invite")
    if invite.sender != event.sender:
        raise AuthError("the third-party invite has another sender")
    if not _signed_by_any(signed, _third_party_keys(invite), event.version):
        raise AuthError("the third-party invite is not signed by its keys")


def _third_party_keys(invite: Event) -> list[bytes]:
    entries = invite.content.get("public_keys")
    candidates = [invite.content.get("public_key")]
    if isinstance(entries, list):
        candidates += [entry.get("public_key") for entry in entries if isinstance(entry, dict)]
    keys = []
    for candidate in candidates[:MAX_THIRD_PARTY_KEYS]:
        if isinstance(candidate, str):
            try:
                keys.append(signing.decode_base64_either(candidate))
            except ValueError:
                continue
    return keys


def _signed_by_any(signed: Mapping[str, Any], keys: Collection[bytes], version: RoomVersion) -> bool:
    by_server = signed.get("signatures")
    if not isinstance(by_server, dict):
        return False
    signatures = [
        signature
        for by_key in by_server.values()
        if isinstance(by_key, dict)
        for key_id, signature in by_key.items()
        if key_id.startswith("ed25519:") and isinstance(signature, str)
    ]
    try:
        payload = signing.signed_payload(signed, lenient=not version.strict_canonical_json)
    except canonical_json.CanonicalJSONError:
        return False
    for signature in signatures[:MAX_THIRD_PARTY_SIGNATURES]:
        for key in keys:
            try:
                signing.verify_bytes(payload, signature, key)
            except signing.SignatureError:
                continue
            return True
    return False


def _check_leave(event: Event, target: str, state: StateMap, levels: PowerLevels) -> None:
    current = _membership(state, target)
    if event.sender == target:
        if current in ("invite", "join") or (current == "knock" and event.version.knocking):
            return
        raise AuthError("the user has nothing to leave")
    if _membership(state, event.sender) != "join":
        raise AuthError("the sender is not in the room")
    power = levels.user_level(event.sender)
    if current == "ban" and power < levels.ban:
        raise AuthError("the sender may not lift a ban")
    if power < levels.kick:
        raise AuthError("the sender may not kick")
    if levels.user_level(target) >= power:
        raise AuthError("the user has no less power than the sender")


def _check_ban(event: Event, target: str, state: StateMap, levels: PowerLevels) -> None:
    if _membership(state, event.sender) != "join":
        raise AuthError("the sender is not in the room")
    power = levels.user_level(event.sender)
    if power < levels.ban:
        raise AuthError("the sender may not ban")
    if levels.user_level(target) >= power:
        raise AuthError("the user has no less power than the sender")


def _check_knock(event: Event, target: str, state: StateMap) -> None:
    rule = _join_rule(state)
    if rule != "knock" and not (rule == "knock_restricted" and event.version.knock_restricted):
        raise AuthError("the join rule does not allow to knock")
    if event.sender != target:
        raise AuthError("nobody can knock for another user")
    if _membership(state, target) in ("ban", "invite", "join"):
        raise AuthError("the user is banned, invited or joined")


# --- power levels -----------------------------------------------------------------------------------


def _check_power_levels(event: Event, state: StateMap, levels: PowerLevels) -> None:
    version = event.version
    new = event.content
    _check_levels_well_formed(new, version)
    if version.privileged_creators and not levels.creators.isdisjoint(new.get("users", {})):
        raise MalformedError("creators do not appear among the users of power levels")
    previous = state.get(_POWER_LEVELS)
    if previous is None:
        return
    power, old = levels.user_level(event.sender), previous.content
    _check_changes(_named_levels(old), _named_levels(new), power, version)
    _check_changes(_entries(old, "events"), _entries(new, "events"), power, version)
    if version.limit_notifications_power_levels:
        _check_changes(_entries(old, "notifications"), _entries(new, "notifications"), power, version)
    _check_changes(_entries(old, "users"), _entries(new, "users"), power, version, users=True, own=event.sender)


def _check_levels_well_formed(content: Mapping[str, Any], version: RoomVersion) -> None:
    """Refuse what is not a level in a place where levels are compared.

    The rules before room version 10 name only ``users``.  There is no comparing other things
    either, so no server can take them for levels.
    """
    for key in _NAMED_LEVELS:
        if key in content and parse_level(content[key], version) is None:
            raise MalformedError(f"{key} is not a power level")
    objects = ["events", "users"]
    if version.limit_notifications_power_levels:
        objects.append("notifications")
    for key in objects:
        entries = content.get(key, {})
        if not isinstance(entries, dict):
            raise MalformedError(f"{key} is not an object")
        if any(parse_level(value, version) is None for value in entries.values()):
            raise MalformedError(f"{key} holds something that is not a power level")
    if not all(map(is_historical_user_id, content.get("users", {}))):
        raise MalformedError("users holds something that is not a user id")


def _named_levels(content: Mapping[str, Any]) -> Mapping[str, Any]:
    return {key: content[key] for key in _NAMED_LEVELS if key in content}


def _entries(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    entries = content.get(key)
    return entries if isinstance(entries, dict) else {}


def _check_changes(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    power: int,
    version: RoomVersion,
    *,
    users: bool = False,
    own: str | None = None,
) -> None:
    """What is above the sender's own power, the sender may neither change nor grant.

    Other ``users`` must even be below it to be changed.
    """
    for key in {**old, **new}:
        before = parse_level(old.get(key), version)
        after = parse_level(new.get(key), version)
        if before == after:
            continue
        if before is not None and (before > power or (users and key != own and before == power)):
            raise AuthError(f"the sender may not change the level of {key}")
        if after is not None and after > power:
            raise AuthError(f"the sender may not raise the level of {key} so high")


# --- redactions -------------------------------------------------------------------------------------


def redaction_applies(redaction: Event, target: Event, levels: PowerLevels) -> bool:
    """Whether an accepted redaction is to be carried out, now that its target is known.

    Room version 3, "Handling redactions"; in the versions before it is the same question that the
    authorisation rules ask.
    """
    if redaction.redacts != target.event_id or redaction.room_id != target.room_id:
        return False
    if levels.user_level(redaction.sender) >= levels.redact:
        return True
    if redaction.version.redaction_in_auth_rules:
        return _same_event_id_server(redaction)
    return server_name_of(redaction.sender) == server_name_of(target.sender)
