"""Room components of several servers in memory, and the network between them.

A `Server` is one room component; `Network` lets them ask each other.  What a server answers is read from its database
here, not by the component, so that it can also be made to keep silent, or to lie.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any
from urllib.parse import unquote

import msgspec
import orjson
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.cache import CacheBudget
from dendrite_tw.database.outbox import OutboxRow
from dendrite_tw.database.statements import Transaction
from dendrite_tw.federation_api.api import FederationRequest, KeysWanted, RawAnswer, ServerKey, Unreachable
from dendrite_tw.matrix.auth_rules import auth_event_keys
from dendrite_tw.matrix.events import Event, build_event, receive_event, reference_hash
from dendrite_tw.matrix.keys import signing_key
from dendrite_tw.matrix.room_versions import RoomVersion
from dendrite_tw.matrix.signing import encode_base64
from dendrite_tw.room_api.api import MembershipChange, NewEvent, NewRoom, OutputRoomEvent
from dendrite_tw.room_api.component import RoomComponent
from dendrite_tw.room_api.room import Arrival, Outcome, Room, Way
from dendrite_tw.room_api.store import stored_event
from dendrite_tw.room_api.tables.events import EventRow, event_by_id
from tests.harness import Memory
from tests.room_api.story import PlainUsers

FAR_FUTURE = 2**52
TURNS = 100

State = dict[tuple[str, str], str]


class Network:
    """Lets servers ask each other.  ``asked`` are the questions so far; ``answers`` may stand in for a server."""

    def __init__(self, test: SynchronousTestCase) -> None:
        self.test = test
        self.memory = Memory()
        self.servers: dict[str, Server] = {}
        self.deaf: set[str] = set()
        self.asked: list[tuple[str, str, str]] = []
        self.answers: dict[tuple[str, str], Callable[[FederationRequest], Any]] = {}

    def server(self, name: str) -> Server:
        server = self.servers[name] = Server(self, name)
        return server

    async def answer(self, origin: str, request: FederationRequest) -> RawAnswer:
        endpoint, *parts = request.path.split("/")[4:]
        self.asked.append((origin, request.destination, endpoint))
        own = self.answers.get((request.destination, endpoint))
        if own is not None:
            answer = own(request)
            return answer if isinstance(answer, RawAnswer) else RawAnswer(200, orjson.dumps(answer))
        server = self.servers.get(request.destination)
        if server is None or request.destination in self.deaf:
            raise Unreachable("nobody is there")
        fields = dict(request.query)
        found = getattr(server, f"answer_{endpoint}")(*map(unquote, parts), **fields, **(request.body or {}))
        if found is None:
            return RawAnswer(404, b'{"errcode":"M_NOT_FOUND","error":"no"}')
        return RawAnswer(200, orjson.dumps(found))


class Link:
    """`FederationAPI` of one server."""

    def __init__(self, network: Network, origin: str) -> None:
        self._network = network
        self._origin = origin

    async def ask(self, request: FederationRequest) -> RawAnswer:
        return await self._network.answer(self._origin, request)

    async def request(self, request: FederationRequest) -> dict[str, Any]:
        return orjson.loads((await self.ask(request)).body)  # type: ignore[no-any-return]

    async def check_signatures(self, checks: list[Any]) -> list[str | None]:
        raise NotImplementedError("rooms check signatures themselves")

    async def fetch_keys(self, wanted: list[KeysWanted]) -> list[ServerKey]:
        found = []
        for one in wanted:
            server = self._network.servers.get(one.server_name)
            if server is not None and server.key.key_id in one.key_ids:
                found.append(ServerKey(one.server_name, server.key.key_id, server.key.verify_key, FAR_FUTURE))
        return found


class Server:
    """One server's rooms."""

    def __init__(self, network: Network, name: str) -> None:
        self.network = network
        self.test = network.test
        self.name = name
        self.database = network.memory.database()
        self.test.addCleanup(self.database.close)
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
            federation=Link(self.network, self.name),
            world=self.network.memory.world,
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
        """The result of a coroutine that needs no more time than a reactor's turns."""
        done = Deferred.fromCoroutine(coroutine)
        for _ in range(TURNS):
            if done.called:
                break
            self.network.memory.clock.advance(0)
        return self.test.successResultOf(done)

    # --- what its users do ---

    def create(self, creator: str, **options: Any) -> str:
        return self.do(self.rooms.create_room(NewRoom(creator=creator, **options)))  # type: ignore[no-any-return]

    def send(
        self, room_id: str, sender: str, type: str, content: dict[str, Any], state_key: str | None = None, **more: Any
    ) -> str:
        event = NewEvent(room_id=room_id, sender=sender, type=type, content=content, state_key=state_key, **more)
        return self.do(self.rooms.send(event))  # type: ignore[no-any-return]

    def say(self, room_id: str, sender: str, body: str) -> str:
        return self.send(room_id, sender, "m.room.message", {"msgtype": "m.text", "body": body})

    def change(self, room_id: str, sender: str, action: str, target: str | None = None) -> str:
        """Change a membership; returns the event's ID."""
        change = MembershipChange(room_id=room_id, sender=sender, target=target or sender, action=action)
        self.do(self.rooms.change_membership(change))
        return self.state(room_id)["m.room.member", target or sender]

    # --- what it has ---

    def room(self, room_id: str) -> Room:
        return self.do(self.rooms.rooms.get(room_id))  # type: ignore[no-any-return]

    def row(self, event_id: str) -> EventRow | None:
        return self.database.prepare(event_by_id, event_id)

    def event(self, event_id: str) -> Event:
        """A stored event."""
        row = self.row(event_id)
        assert row is not None, f"{event_id} is not on {self.name}"
        return stored_event(row)

    def status(self, event_id: str) -> int | None:
        row = self.row(event_id)
        return None if row is None else row.status

    def state(self, room_id: str) -> State:
        """The current state."""
        view = self.do(self.rooms.room_view(room_id, 1))
        return {(event.type, event.state_key): event.event_id for event in view.state}

    def content(self, room_id: str, type: str, state_key: str = "") -> Any:
        """The content of a current state event."""
        return self.event(self.state(room_id)[type, state_key]).content

    def timeline(self, room_id: str) -> list[str]:
        """The newest live events, oldest first."""
        return [event.event_id for event in self.do(self.rooms.room_view(room_id, 1000)).timeline]

    def bodies(self, room_id: str) -> list[str]:
        """The texts of the timeline, oldest first."""
        contents = [self.event(event_id).content for event_id in self.timeline(room_id)]
        return [content["body"] for content in contents if "body" in content]

    # --- events between servers ---

    def make(
        self,
        version: RoomVersion,
        room_id: str,
        sender: str,
        type: str,
        content: dict[str, Any],
        state_key: str | None = None,
        *,
        prev: Sequence[Event],
        state: Iterable[Event],
        **more: Any,
    ) -> Event:
        """An event of this server that nothing has checked, after `prev` and by the authority of `state`."""
        keys = auth_event_keys(version=version, type=type, sender=sender, state_key=state_key, content=content)
        authority = [event for event in state if (event.type, event.state_key) in keys]
        given = {
            "room_id": room_id,
            "depth": max((event.depth for event in prev), default=0) + 1,
            "origin_server_ts": self.network.memory.world.clock.now_ms(),
            "event_id": self.network.memory.world.random.token(18),
            "prev_events": [event.event_id for event in prev],
            "auth_events": [event.event_id for event in authority],
            "reference_hashes": {
                event.event_id: encode_base64(reference_hash(event.pdu_dict(), version))
                for event in (*prev, *authority)
            },
        }
        return build_event(
            version,
            sender=sender,
            type=type,
            content=content,
            state_key=state_key,
            server_name=self.name,
            key_id=self.key.key_id,
            signing_key=self.key.seed,
            **{**given, **more},
        )

    def make_on(
        self,
        other: Server,
        room_id: str,
        sender: str,
        type: str,
        content: dict[str, Any],
        state_key: str | None = None,
        **more: Any,
    ) -> Event:
        """As `make`, on top of what another server has."""
        room = other.room(room_id)
        given = {
            "prev": [other.event(event_id) for event_id in room.head.extremities],
            "state": [other.event(event_id) for event_id in other.state(room_id).values()],
        }
        return self.make(room.version, room_id, sender, type, content, state_key, **{**given, **more})

    def receive(self, origin: Server | str, room_id: str, events: Iterable[Event | str]) -> dict[str, str]:
        """Receive events from another server; returns why some were not accepted."""
        name = origin if isinstance(origin, str) else origin.name
        pdus = [
            (event if isinstance(event, Event) else self.network.servers[name].event(event)).pdu for event in events
        ]
        return self.do(self.rooms.receive(name, room_id, pdus))  # type: ignore[no-any-return]

    def take(self, room_id: str, events: Iterable[Event], way: Way = Way.LIVE, **options: Any) -> list[Outcome]:
        """Hand events to the writer."""
        room = self.room(room_id)
        arrivals = [Arrival(receive_event(event.pdu, room.version), way, **options) for event in events]
        return self.do(self.rooms.writer.take(room, arrivals))  # type: ignore[no-any-return]

    def let_join(self, other: Server, room_id: str, user: str) -> str:
        """A user of `other` joins through this server: what handshakes come to, without asking."""
        room = self.room(room_id)
        state = [self.event(event_id) for event_id in self.state(room_id).values()]
        join = other.make_on(self, room_id, user, "m.room.member", {"membership": "join"}, user)
        chain = self.chain([*state, join])
        [outcome] = self.take(room_id, [join], distribute=True, strict=True)
        self.test.assertEqual(outcome.verdict, "accepted")
        adopted = other.do(other.rooms.adoption.stub(room_id, room.version))
        before = {(event.type, event.state_key): event for event in state}
        other.do(other.rooms.adoption.adopt(adopted, receive_event(join.pdu, room.version), before, chain))
        return join.event_id

    def chain(self, events: Iterable[Event]) -> list[Event]:
        """The auth chain of events."""
        found: dict[str, Event] = {}
        waiting = [auth_id for event in events for auth_id in event.auth_events]
        while waiting:
            event_id = waiting.pop()
            if event_id not in found:
                found[event_id] = self.event(event_id)
                waiting += found[event_id].auth_events
        return list(found.values())

    # --- what it answers ---

    def answer_event(self, event_id: str) -> Any:
        row = self.row(event_id)
        return None if row is None else {"pdus": [orjson.loads(row.pdu)]}

    def answer_backfill(self, room_id: str, v: str, limit: str) -> Any:
        """Nothing: history is asked for in `tests.room_api.history`."""
        return None

    def answer_get_missing_events(
        self, room_id: str, earliest_events: list[str], latest_events: list[str], limit: int, min_depth: int
    ) -> Any:
        found: list[str] = []
        waiting = list(latest_events)
        while waiting and len(found) < limit:
            row = self.row(waiting.pop(0))
            for event_id in stored_event(row).prev_events if row is not None else ():
                if event_id not in earliest_events and event_id not in found and self.row(event_id) is not None:
                    found.append(event_id)
                    waiting.append(event_id)
        return {"events": [orjson.loads(self.event(event_id).pdu) for event_id in found[:limit]]}

    def state_before(self, event_id: str) -> list[Event]:
        return [self.event(one.event_id) for one in self.do(self.rooms.state_before(event_id))]

    def answer_state_ids(self, room_id: str, event_id: str) -> Any:
        if self.row(event_id) is None:
            return None
        state = self.state_before(event_id)
        chain = self.chain(state)
        return {"pdu_ids": [one.event_id for one in state], "auth_chain_ids": [one.event_id for one in chain]}

    def answer_state(self, room_id: str, event_id: str) -> Any:
        if self.row(event_id) is None:
            return None
        state = self.state_before(event_id)
        return {
            "pdus": [orjson.loads(one.pdu) for one in state],
            "auth_chain": [orjson.loads(one.pdu) for one in self.chain(state)],
        }

    def answer_event_auth(self, room_id: str, event_id: str) -> Any:
        if self.row(event_id) is None:
            return None
        return {"auth_chain": [orjson.loads(one.pdu) for one in self.chain([self.event(event_id)])]}


async def count(txn: Transaction, table: str) -> int:
    [(number,)] = await txn.fetch(f"SELECT COUNT(*) FROM {table}", ())
    return int(number)
