"""The format of a PDU: which keys it has, of which types, within which limits.

Specification: "Event format" of each room version; Client-Server API, "Size
limits".  What these checks refuse is dropped, as if it had never been sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dendrite_tw.matrix import canonical_json, identifiers
from dendrite_tw.matrix.canonical_json import CanonicalJSONError
from dendrite_tw.matrix.room_versions import RoomVersion

MAX_PDU_BYTES = 65_536
MAX_PREV_EVENTS = 20
MAX_AUTH_EVENTS = 10

MAX_UNSIGNED_BYTES = 262_144
"""More ``unsigned`` than this is forgotten.  It holds the stripped state of an invite, as whole PDUs."""

_INT64 = 2**63 - 1
_UNLIMITED = 2**16
"""More references than fit in an event."""


class EventFormatError(ValueError):
    """The PDU does not have the format of its room version; the text says where."""


class EventTooLargeError(EventFormatError):
    """The event, or one of its limited fields, is longer than the specification allows."""


def _text(pdu: Mapping[str, Any], key: str) -> str:
    value = pdu.get(key)
    if not isinstance(value, str):
        raise EventFormatError(f"{key} is missing or not a string")
    if not identifiers.within_limit(value):
        raise EventTooLargeError(f"{key} is longer than 255 bytes")
    return value


def _integer(pdu: Mapping[str, Any], key: str, low: int, high: int) -> int:
    value = pdu.get(key)
    if type(value) is not int:
        raise EventFormatError(f"{key} is missing or not an integer")
    if not low <= value <= high:
        raise EventFormatError(f"{key} is out of range")
    return value


def _object(pdu: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = pdu.get(key)
    if not isinstance(value, dict):
        raise EventFormatError(f"{key} is missing or not an object")
    return value


def _event_references(pdu: Mapping[str, Any], key: str, limit: int, version: RoomVersion) -> tuple[str, ...]:
    value = pdu.get(key)
    if not isinstance(value, list):
        raise EventFormatError(f"{key} is missing or not a list")
    if len(value) > limit:
        raise EventFormatError(f"{key} has more than {limit} entries")
    if version.event_format == "pairs":
        if not all(isinstance(pair, list) and len(pair) == 2 and isinstance(pair[1], dict) for pair in value):
            raise EventFormatError(f"{key} must be a list of pairs of event id and hashes")
        value = [pair[0] for pair in value]
    if not all(map(identifiers.is_event_id, value)):
        raise EventFormatError(f"{key} holds something that is not an event id")
    return tuple(value)


def _room_id(pdu: Mapping[str, Any], event_type: str, version: RoomVersion) -> str | None:
    """The room id of the PDU; `None` for a create event whose id is to become the room id."""
    if not version.room_ids_as_hashes:
        room_id = _text(pdu, "room_id")
        if not identifiers.is_domain_room_id(room_id):
            raise EventFormatError("room_id is not a room id of this room version")
        return room_id
    if event_type == "m.room.create":
        if "room_id" in pdu:
            raise EventFormatError("the create event of this room version has no room_id")
        return None
    room_id = _text(pdu, "room_id")
    if not identifiers.is_hash_room_id(room_id):
        raise EventFormatError("room_id is not a room id of this room version")
    return room_id


def check_hashes_and_signatures(pdu: Mapping[str, Any]) -> None:
    """Raise `EventFormatError` unless ``hashes`` and ``signatures`` have the shape that later steps need."""
    if not isinstance(_object(pdu, "hashes").get("sha256"), str):
        raise EventFormatError("hashes has no sha256")
    for by_key in _object(pdu, "signatures").values():
        if not isinstance(by_key, dict) or not all(isinstance(value, str) for value in by_key.values()):
            raise EventFormatError("signatures must map servers to signatures by key id")


def redacts_of(pdu: Mapping[str, Any], event_type: str, version: RoomVersion) -> str | None:
    """The target that a redaction names, if it is an event id; `None` for other types."""
    if event_type != "m.room.redaction":
        return None
    redacts = (pdu["content"] if version.redacts_in_content else pdu).get("redacts")
    return redacts if identifiers.is_event_id(redacts) else None


def bounded_unsigned(unsigned: object) -> dict[str, Any]:
    """``unsigned`` itself, or nothing if it is too large or too deep to be passed on.

    No signature covers it, so a server on the way could else make an event unacceptable.
    Raises `EventFormatError` if it is no object.
    """
    if not isinstance(unsigned, dict):
        raise EventFormatError("unsigned is not an object")
    if not unsigned:
        return unsigned
    try:
        small = len(canonical_json.encode_lenient(unsigned)) <= MAX_UNSIGNED_BYTES
    except CanonicalJSONError:
        small = False
    return unsigned if small else {}


def check_fields(pdu: Mapping[str, Any], version: RoomVersion, *, limited: bool = True) -> None:
    """Raise `EventFormatError` unless the keys that all events of the version have are right.

    ``hashes`` and ``signatures`` are left to `check_hashes_and_signatures`: an event that is still
    being built has none.  Without ``limited``, an event may refer to any number of others, as old events do.
    """
    event_type = _text(pdu, "type")
    _room_id(pdu, event_type, version)
    if not identifiers.is_historical_user_id(_text(pdu, "sender")):
        raise EventFormatError("sender is not a user id")
    if "state_key" in pdu:
        _text(pdu, "state_key")
    _object(pdu, "content")
    _integer(pdu, "origin_server_ts", -_INT64, _INT64)
    _integer(pdu, "depth", 0, version.max_depth)
    _event_references(pdu, "prev_events", MAX_PREV_EVENTS if limited else _UNLIMITED, version)
    _event_references(pdu, "auth_events", MAX_AUTH_EVENTS if limited else _UNLIMITED, version)
    if version.event_id_format == "origin" and not identifiers.is_domain_event_id(_text(pdu, "event_id")):
        raise EventFormatError("event_id is not an event id of this room version")
