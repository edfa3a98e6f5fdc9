"""A big room that the load generator has by itself: what a server that joins it may ask.

All members are users of the generator, and each joined by an event of their own, signed, one after the other.  The room
has no history to give but its state: whoever asks for earlier events is given none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import orjson

from bench.remote import V1, V2, VERSION, Remote, State, now_ms
from dendrite_tw.matrix.events import Event, parse_event

BASE: tuple[tuple[str, dict[str, Any]], ...] = (
    ("m.room.power_levels", {"users_default": 0}),
    ("m.room.join_rules", {"join_rule": "public"}),
    ("m.room.history_visibility", {"history_visibility": "shared"}),
    ("m.room.name", {"name": "A room of many"}),
)


@dataclass(slots=True)
class ResidentRoom:
    """The room, up to its newest event; and joins of others, which are taken as they come."""

    remote: Remote
    room_id: str
    state: State
    newest: Event
    omits: bool
    """Whether it answers a join without the members where it is asked to; servers need not."""
    _events: dict[str, Event] = field(default_factory=dict)

    @classmethod
    def make(cls, remote: Remote, members: int, omits: bool) -> ResidentRoom:
        """Make the room and its members, the creator among them."""
        room_id, creator = f"!big:{remote.name}", f"@member0:{remote.name}"
        content = {"creator": creator, "room_version": VERSION.identifier}
        create = remote.build(room_id, {}, creator, "m.room.create", content, after=[], depth=1, state_key="")
        room = cls(remote, room_id, {("m.room.create", ""): create}, create, omits)
        room._add("m.room.member", creator, {"membership": "join", "displayname": "Member 0"}, creator)
        for kind, content in BASE:
            users = {"users": {creator: 100}} if kind == "m.room.power_levels" else {}
            room._add(kind, creator, {**content, **users}, "")
        for number in range(1, members):
            user_id = f"@member{number}:{remote.name}"
            room._add("m.room.member", user_id, {"membership": "join", "displayname": f"Member {number}"}, user_id)
        room._events = {event.event_id: event for event in room.state.values()}
        return room

    def _add(self, kind: str, sender: str, content: dict[str, Any], state_key: str) -> None:
        """The next event, which is state."""
        self.newest = self.remote.build(
            self.room_id,
            self.state,
            sender,
            kind,
            content,
            after=[self.newest.event_id],
            depth=self.newest.depth + 1,
            state_key=state_key,
        )
        self.state[kind, state_key] = self.newest

    def answer(self, method: str, target: str, body: bytes) -> bytes | None:
        """What a server that joins is told."""
        url = urlsplit(target)
        name, *parts = [unquote(part) for part in url.path.removeprefix(V1).removeprefix(V2).strip("/").split("/")]
        query = parse_qs(url.query)
        match name:
            case "make_join":
                return self._template(parts[1])
            case "send_join":
                return self._joined(body, self.omits and query.get("omit_members") == ["true"])
            case "state":
                return self._lists("pdus", self.state.values(), "auth_chain", self._auth_chain())
            case "state_ids":
                chain = [event.event_id for event in self._auth_chain()]
                ids = [event.event_id for event in self.state.values()]
                return orjson.dumps({"pdu_ids": ids, "auth_chain_ids": chain})
            case "event":
                return self._one(parts[0])
            case "backfill":
                return orjson.dumps({"origin": self.remote.name, "origin_server_ts": now_ms(), "pdus": []})
            case "get_missing_events":
                return b'{"events":[]}'
        return None

    def _template(self, user_id: str) -> bytes:
        keys = (("m.room.create", ""), ("m.room.power_levels", ""), ("m.room.join_rules", ""))
        event = {
            "type": "m.room.member",
            "room_id": self.room_id,
            "sender": user_id,
            "state_key": user_id,
            "content": {"membership": "join"},
            "prev_events": [self.newest.event_id],
            "auth_events": [self.state[key].event_id for key in keys],
            "depth": self.newest.depth + 1,
            "origin": self.remote.name,
            "origin_server_ts": now_ms(),
        }
        return orjson.dumps({"room_version": VERSION.identifier, "event": event})

    def _joined(self, body: bytes, omit_members: bool) -> bytes:
        """The state before the join: all of it, or what is no membership."""
        join = parse_event(body, VERSION)
        self._events[join.event_id] = join
        told = [event for event in self.state.values() if not omit_members or event.type != "m.room.member"]
        head: dict[str, Any] = {
            "origin": self.remote.name,
            "event": orjson.Fragment(join.pdu),
            "members_omitted": omit_members,
        }
        if omit_members:
            head["servers_in_room"] = [self.remote.name]
        lists = self._lists("state", told, "auth_chain", self._auth_chain())
        return orjson.dumps(head)[:-1] + b"," + lists[1:]

    def _auth_chain(self) -> list[Event]:
        """What authorises the state: only the first events of the room do."""
        creator = ("m.room.member", f"@member0:{self.remote.name}")
        keys = (("m.room.create", ""), creator, ("m.room.power_levels", ""), ("m.room.join_rules", ""))
        return [self.state[key] for key in keys]

    def _one(self, event_id: str) -> bytes | None:
        event = self._events.get(event_id)
        if event is None:
            return None
        told = {"origin": self.remote.name, "origin_server_ts": now_ms(), "pdus": [orjson.Fragment(event.pdu)]}
        return orjson.dumps(told)

    @staticmethod
    def _lists(first: str, events: Iterable[Event], second: str, chain: Iterable[Event]) -> bytes:
        told = {
            first: [orjson.Fragment(event.pdu) for event in events],
            second: [orjson.Fragment(event.pdu) for event in chain],
        }
        return orjson.dumps(told)
