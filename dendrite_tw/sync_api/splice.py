"""Events as clients are shown them, by joining bytes that exist already.

A `RoomEvent` carries its client form without ``unsigned`` and ``room_id``.
What is the same for everybody is put before it once and kept; the age, and
what is personal, is added at the end.  Client-Server API, "Room event format".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import orjson

from ..cache import Cache, CacheBudget
from ..matrix.filters import FieldProjection
from ..room_api.api import RoomEvent
from ..user_api.api import Caller

HEAD_OVERHEAD = 1500
"""Bytes of a remembered beginning besides its own, the event that it belongs to among them."""


class Renderer:
    """Makes the JSON of events; ``now`` is in milliseconds."""

    def __init__(self, budget: CacheBudget) -> None:
        self._heads: Cache[str, tuple[RoomEvent, bytes]] = Cache(
            "sync_events", budget, lambda known: len(known[1]) + HEAD_OVERHEAD
        )

    def head(self, event: RoomEvent) -> bytes:
        """The event's JSON up to the value of ``unsigned.age``, the same for all who see it."""
        known = self._heads.get(event.event_id)
        if known is not None and known[0] is event:
            return known[1]
        return self._make_head(event)

    def heads(self, events: Sequence[RoomEvent]) -> list[bytes]:
        """As `head` for each of `events`."""
        known = self._heads.get_many(event.event_id for event in events)
        return [
            found[1] if found is not None and found[0] is event else self._make_head(event)
            for found, event in zip(known, events, strict=True)
        ]

    def _make_head(self, event: RoomEvent) -> bytes:
        made = event.client[:-1] + b',"unsigned":{' + shared_unsigned(event) + b'"age":'
        self._heads.put(event.event_id, (event, made))
        return made

    def render(
        self,
        event: RoomEvent,
        now: int,
        caller: Caller,
        membership: str | None = None,
        relations: bytes | None = None,
    ) -> bytes:
        """An event as /sync shows it: no ``room_id``.

        ``membership`` is the caller's at the event, ``relations`` the JSON of ``m.relations``.
        """
        personal = _personal(event, caller, membership, relations)
        return b"%b%d%b}}" % (self.head(event), now - event.origin_server_ts, personal)

    def render_full(
        self,
        events: Sequence[RoomEvent],
        now: int,
        caller: Caller,
        memberships: Mapping[str, str],
        relations: Mapping[str, bytes],
    ) -> list[bytes]:
        """Events as they are shown outside of /sync: with their ``room_id``.

        ``memberships`` and ``relations`` are as of `render`, by event ID.
        """
        rooms = {room_id: orjson.dumps(room_id) for room_id in {event.room_id for event in events}}
        return [
            b'%b%d%b},"room_id":%b}'
            % (
                head,
                now - event.origin_server_ts,
                _personal(event, caller, memberships.get(event.event_id), relations.get(event.event_id)),
                rooms[event.room_id],
            )
            for head, event in zip(self.heads(events), events, strict=True)
        ]


def _personal(event: RoomEvent, caller: Caller, membership: str | None, relations: bytes | None) -> bytes:
    """The end of ``unsigned``: what is for this caller only."""
    personal = b""
    if membership is not None:
        personal = b',"membership":"join"' if membership == "join" else b',"membership":' + orjson.dumps(membership)
    if event.transaction_id is not None and is_own_transaction(event, caller):
        personal += b',"transaction_id":' + orjson.dumps(event.transaction_id)
    if relations is not None:
        personal += b',"m.relations":' + relations
    return personal


def shared_unsigned(event: RoomEvent) -> bytes:
    """The members of ``unsigned`` that do not depend on who asks, each with a comma after it."""
    parts: list[bytes] = []
    if event.replaces is not None:
        parts.append(b'"replaces_state":' + orjson.dumps(event.replaces) + b",")
    if event.prev_content is not None:
        parts.append(b'"prev_content":' + event.prev_content + b",")
    if event.prev_sender is not None:
        parts.append(b'"prev_sender":' + orjson.dumps(event.prev_sender) + b",")
    if event.redacted_by is not None:
        # The name alone is older than the specification; clients still look for it.
        redaction_id = orjson.dumps(orjson.loads(event.redacted_by).get("event_id"))
        parts.append(b'"redacted_by":' + redaction_id + b',"redacted_because":' + event.redacted_by + b",")
    return b"".join(parts)


def is_own_transaction(event: RoomEvent, caller: Caller) -> bool:
    """Whether the caller's device sent the event, so that it knows it by its transaction ID."""
    return event.sender == caller.user_id and event.transaction_device == caller.device_id


def project(event: bytes, projection: FieldProjection | None) -> bytes:
    """The fields of an event that a filter's ``event_fields`` ask for."""
    return event if projection is None else orjson.dumps(projection.apply(orjson.loads(event)))


def content_of(event: RoomEvent) -> dict[str, object]:
    """The content of an event, decoded."""
    content = orjson.loads(event.client).get("content")
    return content if isinstance(content, dict) else {}


def previous_membership(event: RoomEvent) -> str:
    """The membership that a member event took the place of; ``leave`` where there was none."""
    if event.prev_content is None:
        return "leave"
    content = orjson.loads(event.prev_content)
    membership = content.get("membership") if isinstance(content, dict) else None
    return membership if isinstance(membership, str) else "leave"


def array(parts: Iterable[bytes]) -> bytes:
    """A JSON list of values that are JSON already."""
    return b"[" + b",".join(parts) + b"]"


def events_object(parts: Iterable[bytes]) -> bytes:
    """The ``{"events": [...]}`` that most parts of a sync are."""
    return b'{"events":[' + b",".join(parts) + b"]}"


def mapping(parts: Iterable[tuple[str, bytes]]) -> bytes:
    """A JSON object of values that are JSON already."""
    return b"{" + b",".join(orjson.dumps(key) + b":" + value for key, value in parts) + b"}"
