"""Small rooms for tests: events of any version, with as little said as possible."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dendrite_tw.matrix import events
from dendrite_tw.matrix.events import Event
from dendrite_tw.matrix.keys import signing_key
from dendrite_tw.matrix.room_versions import RoomVersion
from dendrite_tw.matrix.signing import encode_base64

KEY = signing_key("ed25519:1", b"\7" * 32)
SERVER = "a.example"
ALICE = "@alice:a.example"
BOB = "@bob:b.example"
CAROL = "@carol:c.example"
DAVE = "@dave:a.example"


class RoomBuilder:
    """Makes events of one room.  ``state`` is what the room's state is: set it with `put`."""

    def __init__(self, version: RoomVersion, sender: str = ALICE, /, **create: Any) -> None:
        self.version = version
        self.count = 0
        self.state: dict[tuple[str, str], Event] = {}
        self.room_id: str | None = None if version.room_ids_as_hashes else "!room:a.example"
        content = {"room_version": version.identifier} | create
        if not version.implicit_room_creator:
            content.setdefault("creator", sender)
        self.create = self.put("m.room.create", sender, content, prev_events=[], auth_events=[])
        self.room_id = self.create.room_id

    def event(
        self,
        type: str,
        sender: str,
        content: Mapping[str, Any],
        state_key: str | None = None,
        prev_events: Iterable[Event] | None = None,
        auth_events: Iterable[Event] = (),
        **more: Any,
    ) -> Event:
        """An event that nothing has checked; without ``prev_events`` it follows one nobody knows."""
        self.count += 1
        parents, authorities = [] if prev_events is None else list(prev_events), list(auth_events)
        ids = [event.event_id for event in parents] if prev_events is not None else ["$elsewhere:x.example"]
        hashes = {"$elsewhere:x.example": "AAAA"}
        for known in (*parents, *authorities):
            hashes[known.event_id] = encode_base64(events.reference_hash(known.pdu_dict(), self.version))
        return events.build_event(
            self.version,
            room_id=more.pop("room_id", self.room_id),
            sender=sender,
            type=type,
            content=content,
            state_key=state_key,
            prev_events=ids,
            auth_events=[event.event_id for event in authorities],
            depth=self.count,
            origin_server_ts=1_700_000_000_000 + self.count,
            server_name=SERVER,
            key_id=KEY.key_id,
            signing_key=KEY.secret,
            event_id=more.pop("event_id", f"event{self.count}"),
            reference_hashes=hashes,
            **more,
        )

    def put(self, type: str, sender: str, content: Mapping[str, Any], state_key: str = "", **more: Any) -> Event:
        """Make a state event and let it be the state, unchecked."""
        event = self.event(type, sender, content, state_key, **more)
        self.state[type, state_key] = event
        return event

    def member(self, user_id: str, membership: str, sender: str | None = None, **content: Any) -> Event:
        """Let ``user_id`` have that membership, unchecked."""
        content = {"membership": membership} | content
        return self.put("m.room.member", sender or user_id, content, user_id)
