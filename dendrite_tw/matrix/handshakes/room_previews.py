"""The few state events that tell an invited or knocking user what room it is.

Specification: Server-Server API, ``invite_room_state`` and ``knock_room_state``;
Client-Server API, "Stripped state".  They come as whole events, which can be
checked; servers of rooms up to version 11 may still send stripped state, which
cannot, and which is shown as it is.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

import msgspec

from dendrite_tw.matrix.admission import FetchKeys, Keys, verify
from dendrite_tw.matrix.canonical_json import CanonicalJSONError, encode_lenient
from dendrite_tw.matrix.event_format import MAX_PDU_BYTES, EventFormatError
from dendrite_tw.matrix.events import ReceivedEvent, receive_event, stripped
from dendrite_tw.matrix.identifiers import is_historical_user_id, within_limit
from dendrite_tw.matrix.room_versions import RoomVersion

MAX_ENTRIES = 100

_STRIPPED_KEYS = ("content", "sender", "state_key", "type")


class Preview(msgspec.Struct, frozen=True):
    """What can be told about the room."""

    stripped: list[dict[str, Any]]
    faults: list[str]
    """What was wrong with the entries that were left out, or with the list."""
    must_refuse: bool
    """Whether an invite with such a list is to be refused in rooms of this version."""


def read_preview(
    entries: object, version: RoomVersion, room_id: str, *, now_ms: int
) -> Generator[FetchKeys, Keys, Preview]:
    """Read the list: events that are malformed, badly signed or of another room are left out.

    Room versions whose room ids are hashes must be told the create event, and only whole events.
    """
    strict = version.room_ids_as_hashes
    if not isinstance(entries, list):
        return Preview([], ["there is no list of state"], strict)
    faults: list[str] = []
    received: list[ReceivedEvent] = []
    plain: list[dict[str, Any]] = []
    for entry in entries[:MAX_ENTRIES]:
        try:
            received.append(_read_event(entry, version, room_id))
        except EventFormatError as error:
            shown = None if strict else _read_stripped(entry)
            if shown is None:
                faults.append(str(error))
            else:
                plain.append(shown)
    failed = yield from verify(received, now_ms=now_ms)
    faults += failed.values()
    events = [one.event for one in received if one.event.event_id not in failed]
    shown_all = [*map(stripped, events), *plain]
    if not any(one["type"] == "m.room.create" and one["state_key"] == "" for one in shown_all):
        faults.append("the create event is missing")
    return Preview(shown_all, faults, strict and bool(faults))


def _read_event(entry: object, version: RoomVersion, room_id: str) -> ReceivedEvent:
    if not isinstance(entry, Mapping):
        raise EventFormatError("not an event")
    received = receive_event(entry, version)
    if received.event.room_id != room_id:
        raise EventFormatError("the event is of another room")
    if received.event.state_key is None:
        raise EventFormatError("the event is no state")
    return received


def _read_stripped(entry: object) -> dict[str, Any] | None:
    """Stripped state that was sent as such; `None` if it is not that either."""
    if not isinstance(entry, Mapping) or "signatures" in entry or "hashes" in entry:
        return None
    content, sender, state_key, kind = (entry.get(key) for key in _STRIPPED_KEYS)
    if not isinstance(content, dict) or not is_historical_user_id(sender):
        return None
    if not isinstance(kind, str) or not isinstance(state_key, str):
        return None
    if not within_limit(kind) or not within_limit(state_key):
        return None
    try:
        if len(encode_lenient(content)) > MAX_PDU_BYTES:
            return None
    except CanonicalJSONError:
        return None
    return {"content": content, "sender": sender, "state_key": state_key, "type": kind}
