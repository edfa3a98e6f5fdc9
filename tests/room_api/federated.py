"""Room components of several servers in memory, and the events that go between them."""

from __future__ import annotations

from collections.abc import Coroutine, Iterable
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.cache import CacheBudget
from dendrite_tw.database.outbox import OutboxRow
from dendrite_tw.federation_api.api import FederationAPI, NoFederation
from dendrite_tw.matrix.events import Event, parse_event, receive_event
from dendrite_tw.matrix.keys import signing_key
from dendrite_tw.matrix.room_versions import ROOM_VERSIONS
from dendrite_tw.room_api.api import NewEvent, NewRoom, OutputRoomEvent
from dendrite_tw.room_api.component import RoomComponent
from dendrite_tw.room_api.room import Arrival, Outcome, Way
from dendrite_tw.room_api.store import stored_event
from tests.harness import Memory
from tests.room_api.story import PlainUsers


class Server:
    """One server's rooms."""

    def __init__(
        self, test: SynchronousTestCase, name: str, memory: Memory, federation: FederationAPI | None = None
    ) -> None:
        self.test = test
        self.name = name
        self.memory = memory
        self.database = memory.database()
        test.addCleanup(self.database.close)
        self.federation = federation or NoFederation()
        self.users = PlainUsers()
        self.told: list[OutputRoomEvent] = []
        self.key = signing_key("ed25519:1", name.encode().ljust(32, b"k")[:32])
        self.rooms: Any = None
        self.restart()

    def restart(self) -> None:
        """A new process on the same database."""
        self.rooms = RoomComponent(
            database=self.database,
            users=self.users,  # type: ignore[arg-type]
            federation=self.federation,
            world=self.memory.world,
            budget=CacheBudget(1 << 24),
            server_name=self.name,
            key=self.key,
            default_room_version="12",
        )
        self.rooms.prepare()
        self.rooms.outbox.on_commit = self._tell

    def _tell(self, rows: list[OutboxRow]) -> None:
        for row in rows:
            if b"output_room_event_type" not in row.headers:
                self.told.append(msgspec.msgpack.decode(row.payload, type=OutputRoomEvent))

    def do(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.test.successResultOf(Deferred.fromCoroutine(coroutine))

    def user(self, name: str) -> str:
        return f"@{name}:{self.name}"

    def create(self, creator: str, **options: Any) -> str:
        return self.do(self.rooms.create_room(NewRoom(creator=creator, **options)))  # type: ignore[no-any-return]

    def send(
        self, room_id: str, sender: str, type: str, content: dict[str, Any], state_key: str | None = None, **more: Any
    ) -> str:
        event = NewEvent(room_id=room_id, sender=sender, type=type, content=content, state_key=state_key, **more)
        return self.do(self.rooms.send(event))  # type: ignore[no-any-return]

    def say(self, room_id: str, sender: str, body: str) -> str:
        return self.send(room_id, sender, "m.room.message", {"msgtype": "m.text", "body": body})

    def event(self, event_id: str) -> Event:
        """A stored event."""
        row = self.do(self.database.read(_row, event_id))
        self.test.assertIsNotNone(row, f"{event_id} is not on {self.name}")
        return stored_event(row)

    def state(self, room_id: str) -> dict[tuple[str, str], str]:
        """The current state: event IDs by type and state key."""
        view = self.do(self.rooms.room_view(room_id, 1))
        return {(event.type, event.state_key): event.event_id for event in view.state}

    def bodies(self, room_id: str) -> list[str]:
        """The texts of the timeline, oldest first."""
        view = self.do(self.rooms.room_view(room_id, 1000))
        contents = [msgspec.json.decode(event.client)["content"] for event in view.timeline]
        return [content["body"] for content in contents if "body" in content]

    # --- without a network ---

    def join(self, other: Server, room_id: str, user: str) -> str:
        """A user of `other` joins through this server: what handshakes would do, without asking."""
        room = self.do(self.rooms.rooms.get(room_id))
        content = {"membership": "join"}
        template = self.foreign(other, room_id, user, "m.room.member", content, user)
        state = {
            (event.type, event.state_key): event for event in map(self.event, self.state(room_id).values())
        }
        others = self.auth_chain(room_id, [*state.values(), template])
        [outcome] = self.take(room_id, [template], distribute=True)
        self.test.assertEqual(outcome.verdict, "accepted", outcome)
        adopted = other.do(other.rooms.adoption.stub(room_id, room.version))
        other.do(other.rooms.adoption.adopt(adopted, receive_event(template.pdu, room.version), state, others))
        return template.event_id

    def auth_chain(self, room_id: str, events: Iterable[Event]) -> list[Event]:
        found: dict[str, Event] = {}
        waiting = [auth_id for event in events for auth_id in event.auth_events]
        while waiting:
            event_id = waiting.pop()
            if event_id not in found:
                found[event_id] = self.event(event_id)
                waiting += found[event_id].auth_events
        return list(found.values())

    def foreign(
        self,
        other: Server,
        room_id: str,
        sender: str,
        type: str,
        content: dict[str, Any],
        state_key: str | None = None,
    ) -> Event:
        """An event of `other` on top of what this server has, by its state."""
        drafting = other.rooms.writer._drafting
        room = self.do(self.rooms.rooms.get(room_id))
        from dendrite_tw.matrix.auth_rules import auth_event_keys
        from dendrite_tw.room_api.room import Draft
        from dendrite_tw.room_api.steps import Batch

        keys = auth_event_keys(
            version=room.version, type=type, sender=sender, state_key=state_key, content=content
        )
        state = self.state(room_id)
        authority = [self.event(state[key]) for key in keys if key in state]
        batch = Batch(room, room.head)
        draft = Draft(sender, type, content, state_key)
        drafting._store = self.rooms.writer._store
        try:
            return self.do(drafting._build(batch, draft, room.head.extremities, authority))  # type: ignore[no-any-return]
        finally:
            drafting._store = other.rooms.writer._store

    def take(self, room_id: str, events: Iterable[Event], way: Way = Way.LIVE, **options: Any) -> list[Outcome]:
        """Let events of other servers come in."""
        room = self.do(self.rooms.rooms.get(room_id))
        arrivals = [Arrival(receive_event(event.pdu, room.version), way, **options) for event in events]
        return self.do(self.rooms.writer.take(room, arrivals))  # type: ignore[no-any-return]


async def _row(txn: Any, event_id: str) -> Any:
    from dendrite_tw.room_api.tables.events import event_by_id

    return await event_by_id(txn, event_id)


def reread(event: Event, version: str) -> Event:
    return parse_event(event.pdu, ROOM_VERSIONS[version])
