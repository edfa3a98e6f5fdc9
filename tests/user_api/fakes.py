"""Rooms and a queue that stand in for the real ones: they hold what a test tells them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from twisted.internet.defer import Deferred

from dendrite_tw.federation_api.api import FederationRequest, NoFederation, Unreachable
from dendrite_tw.matrix.errors import MatrixError, not_found
from dendrite_tw.room_api.api import Alias, Membership, MembershipChange, NewRoom, OutputRoomEvent, RoomEvent


def room_event(
    room_id: str,
    position: int,
    sender: str,
    type: str = "m.room.message",
    content: dict[str, Any] | None = None,
    state_key: str | None = None,
) -> RoomEvent:
    """An event named after its room and position."""
    content = {"msgtype": "m.text", "body": "hello"} if content is None else content
    event_id = f"${room_id[1:].split(':')[0]}{position}"
    relation = content.get("m.relates_to", {})
    client = {
        "event_id": event_id,
        "type": type,
        "sender": sender,
        "content": content,
        "origin_server_ts": 1000 + position,
    }
    if state_key is not None:
        client["state_key"] = state_key
    return RoomEvent(
        event_id=event_id,
        room_id=room_id,
        sender=sender,
        type=type,
        state_key=state_key,
        origin_server_ts=1000 + position,
        position=position,
        depth=position,
        client=orjson.dumps(client),
        membership=content.get("membership") if type == "m.room.member" else None,
        rel_type=relation.get("rel_type"),
        relates_to=relation.get("event_id"),
    )


class FakeRooms:
    """The part of `RoomAPI` that the user component asks."""

    def __init__(self) -> None:
        self.members: dict[str, dict[str, str]] = {}
        self.stored: dict[str, RoomEvent] = {}
        self.state: dict[tuple[str, str, str], RoomEvent] = {}
        self.aliases_known: dict[str, Alias] = {}
        self.changes: list[MembershipChange] = []
        self.profiles: list[tuple[str, dict[str, str]]] = []
        self.created: list[NewRoom] = []
        self.asked: list[str] = []

    def put(self, room_id: str, user_id: str, membership: str = "join") -> None:
        self.members.setdefault(room_id, {})[user_id] = membership

    async def create_room(self, room: NewRoom) -> str:
        self.created.append(room)
        alias = f"#{room.room_alias_name}:{room.creator.partition(':')[2]}"
        self.aliases_known[alias] = Alias(alias, "!made:test", ["test"])
        return "!made:test"

    async def resolve_alias(self, alias: str) -> Alias:
        if alias not in self.aliases_known:
            raise not_found("There is no such alias.")
        return self.aliases_known[alias]

    async def change_membership(self, change: MembershipChange) -> str:
        self.changes.append(change)
        self.put(change.room_id, change.target, "leave" if change.action == "leave" else "join")
        return change.room_id

    async def update_profile(self, user_id: str, profile: dict[str, str]) -> None:
        self.profiles.append((user_id, profile))

    def _membership(self, room_id: str, user_id: str) -> Membership | None:
        standing = self.members.get(room_id, {}).get(user_id)
        if standing is None:
            return None
        return Membership(
            room_id=room_id, user_id=user_id, membership=standing, event_id="$m", sender=user_id, position=1
        )

    async def membership(self, room_id: str, user_id: str) -> Membership | None:
        self.asked.append("membership")
        return self._membership(room_id, user_id)

    async def memberships(self, user_id: str) -> list[Membership]:
        found = [self._membership(room_id, user_id) for room_id in self.members]
        return [membership for membership in found if membership is not None]

    async def joined_users(self, room_id: str) -> list[str]:
        self.asked.append("joined_users")
        return [user for user, standing in self.members.get(room_id, {}).items() if standing == "join"]

    async def room_servers(self, room_id: str) -> list[str]:
        return sorted({user.partition(":")[2] for user in await self.joined_users(room_id)})

    async def servers_of_user(self, user_id: str) -> list[str]:
        rooms = [room_id for room_id, members in self.members.items() if members.get(user_id) == "join"]
        return sorted({server for room_id in rooms for server in await self.room_servers(room_id)})

    async def shares_room(self, user_id: str, others: list[str]) -> list[str]:
        rooms = [members for members in self.members.values() if members.get(user_id) == "join"]
        return [other for other in others if any(members.get(other) == "join" for members in rooms)]

    async def events(self, event_ids: list[str]) -> list[RoomEvent]:
        self.asked.append("events")
        return [self.stored[event_id] for event_id in event_ids if event_id in self.stored]

    async def visible(self, user_id: str, events: list[RoomEvent]) -> list[RoomEvent]:
        return list(events)

    async def state_event(self, room_id: str, user_id: str, type: str, state_key: str) -> RoomEvent:
        self.asked.append("state_event")
        if (room_id, type, state_key) not in self.state:
            raise MatrixError(404, "M_NOT_FOUND", "There is no such state.")
        return self.state[room_id, type, state_key]

    async def position(self) -> int:
        return max((event.position for event in self.stored.values()), default=0)

    def output(self, event: RoomEvent, version: str = "11") -> OutputRoomEvent:
        """Store `event`, and what the stream tells of it."""
        self.stored[event.event_id] = event
        if event.state_key is not None:
            self.state[event.room_id, event.type, event.state_key] = event
            if event.membership is not None:
                self.put(event.room_id, event.state_key, event.membership)
        joined = [user for user, standing in self.members.get(event.room_id, {}).items() if standing == "join"]
        return OutputRoomEvent(
            event=event,
            state_changed=event.state_key is not None,
            joined_members=len(joined),
            local_members=sum(user.endswith(":test") for user in joined),
            room_version=version,
        )


class FakeFederation(NoFederation):
    """Other servers: what each answers to a path, or the exception that it is; without one it cannot be reached.

    ``held`` paths are answered when the test says so (`release`), with what was to be said when they were asked for.
    """

    def __init__(self) -> None:
        self.answers: dict[tuple[str, str], Any] = {}
        self.asked: list[FederationRequest] = []
        self.held: dict[str, list[Deferred[None]]] = {}

    def paths(self) -> list[str]:
        """The last parts of the paths that were asked for."""
        return [request.path.rsplit("/", 1)[-1] for request in self.asked]

    def hold(self, path: str) -> None:
        self.held[path] = []

    def release(self, path: str) -> None:
        """Answer what is held, and from now on at once."""
        for held in self.held.pop(path):
            held.callback(None)

    async def request(self, request: FederationRequest) -> dict[str, Any]:
        self.asked.append(request)
        answer = self.answers.get((request.destination, request.path), Unreachable("it is far away"))
        answer = answer(request) if callable(answer) else answer
        if request.path in self.held:
            held: Deferred[None] = Deferred()
            self.held[request.path].append(held)
            await held
        if isinstance(answer, Exception):
            raise answer
        return orjson.loads(orjson.dumps(answer))  # type: ignore[no-any-return]


class FakeMessage:
    """A message as consumers are given it."""

    def __init__(self, payload: bytes, stream_seq: int, headers: dict[str, str]) -> None:
        self.subject = "test"
        self.payload = payload
        self.stream_seq = stream_seq
        self.headers = headers


class FakeQueue:
    """Streams without storage: `listeners` are told at once, `consumers` when the test says so."""

    def __init__(self) -> None:
        self.published: list[tuple[str, bytes, dict[str, str]]] = []
        self.listeners: dict[str, list[Callable[[Any], None]]] = {}
        self.consumers: dict[str, Callable[[list[Any]], Awaitable[None]]] = {}

    async def publish(
        self,
        stream: str,
        payload: bytes,
        *,
        subject_suffix: str = "",
        headers: dict[str, str] | None = None,
        msg_id: str | None = None,
    ) -> None:
        self.published.append((stream, payload, dict(headers or {})))

    def consume(
        self, stream: str, durable: str, handler: Callable[[list[Any]], Awaitable[None]], *, batch: int = 64
    ) -> Any:
        self.consumers[stream] = handler
        return self

    def listen(self, stream: str, handler: Callable[[Any], None]) -> Any:
        self.listeners.setdefault(stream, []).append(handler)
        return self

    async def stop(self) -> None:
        self.consumers.clear()
        self.listeners.clear()
