"""Several servers in memory, as far as rooms are concerned, and the wires between them.

Each server is a room component.  What one asks of another is answered by the other's methods for
servers, as the routes of the federation component would; what a server tells its senders to
distribute is delivered by `Net.deliver`, when the test wants that.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import unquote

import msgspec
import orjson
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.cache import CacheBudget
from dendrite_tw.database.engines import SQLiteDatabase
from dendrite_tw.database.outbox import OutboxRow
from dendrite_tw.federation_api.api import (
    FederationRequest,
    KeysWanted,
    RawAnswer,
    RemoteRefused,
    ServerKey,
    SignatureCheck,
    Unreachable,
)
from dendrite_tw.matrix.errors import MatrixError
from dendrite_tw.matrix.events import Event, finish_event
from dendrite_tw.matrix.keys import SigningKey, signing_key
from dendrite_tw.matrix.room_versions import ROOM_VERSIONS
from dendrite_tw.room_api.api import MembershipChange, NewEvent, NewRoom, OutputRoomEvent
from dendrite_tw.room_api.component import RoomComponent
from tests.harness import Memory
from tests.room_api.story import PlainUsers

FAR_MS = 10**15

Answering = Callable[[FederationRequest], Any]
"""Instead of a server's own answer: a `RawAnswer`, a JSON value, or `None` for its own."""


class Users(PlainUsers):
    """Everybody has an account who was not said to have none."""

    def __init__(self) -> None:
        super().__init__()
        self.unknown: set[str] = set()

    async def is_local_account(self, user_id: str) -> bool:
        return user_id not in self.unknown


class Server:
    """One server: its database outlives its component."""

    def __init__(self, net: Net, name: str) -> None:
        self.net = net
        self.name = name
        self.key: SigningKey = signing_key("ed25519:1", name.encode().ljust(32, b"-")[:32])
        self.users = Users()
        self.told: list[OutputRoomEvent] = []
        self.others: list[dict[str, str]] = []
        """Headers of messages that are no events."""
        self.sent = 0
        self.answers: dict[str, Answering] = {}
        """By endpoint (``send_join``), what is answered instead."""
        self.asked: list[tuple[str, str]] = []
        """Who asked for which endpoint."""
        self.database: SQLiteDatabase = net.memory.database()
        self.rooms: Any = None
        self.begin()

    def begin(self) -> None:
        """Start on what is in the database."""
        component: Any = RoomComponent(
            database=self.database,
            users=self.users,  # type: ignore[arg-type]
            federation=Wires(self.net, self.name),
            world=self.net.memory.world,
            budget=CacheBudget(1 << 26),
            server_name=self.name,
            key=self.key,
            default_room_version="10",
        )
        component.prepare()
        component.outbox.on_commit = self._tell
        self.rooms = component
        self.net.do(component.start())

    def _tell(self, rows: list[OutboxRow]) -> None:
        for row in rows:
            headers = orjson.loads(row.headers)
            if "output_room_event_type" in headers:
                self.others.append(headers)
            else:
                self.told.append(msgspec.msgpack.decode(row.payload, type=OutputRoomEvent))

    # --- what users do ---

    def create(self, creator: str, **options: Any) -> str:
        return self.net.do(self.rooms.create_room(NewRoom(creator=creator, **options)))  # type: ignore[no-any-return]

    def change(self, room_id: str, sender: str, action: str, target: str | None = None, **options: Any) -> Any:
        return self.rooms.change_membership(
            MembershipChange(room_id=room_id, sender=sender, target=target or sender, action=action, **options)
        )

    def member(self, room_id: str, sender: str, action: str, target: str | None = None, **options: Any) -> None:
        self.net.do(self.change(room_id, sender, action, target, **options))

    def say(self, room_id: str, sender: str, body: str) -> str:
        event = NewEvent(room_id=room_id, sender=sender, type="m.room.message", content={"body": body})
        return self.net.do(self.rooms.send(event))  # type: ignore[no-any-return]

    def set_state(self, room_id: str, sender: str, type: str, content: dict[str, Any], key: str = "") -> str:
        event = NewEvent(room_id=room_id, sender=sender, type=type, content=content, state_key=key)
        return self.net.do(self.rooms.send(event))  # type: ignore[no-any-return]

    def signed(self, pdu: dict[str, Any], version: str) -> Event:
        """A PDU as this server would finish it."""
        fields = {key: value for key, value in pdu.items() if key != "origin"}
        return finish_event(
            fields,
            ROOM_VERSIONS[version],
            server_name=self.name,
            key_id=self.key.key_id,
            signing_key=self.key.secret,
        )

    # --- what is to be seen ---

    def membership(self, room_id: str, user_id: str) -> str | None:
        found = self.net.do(self.rooms.membership(room_id, user_id))
        return found.membership if found is not None else None

    def state(self, room_id: str, user_id: str) -> dict[tuple[str, str], str]:
        """The current state as a user sees it: event IDs by place."""
        events = self.net.do(self.rooms.current_state(room_id, user_id))
        return {(event.type, event.state_key or ""): event.event_id for event in events}

    def joined(self, room_id: str) -> list[str]:
        return sorted(self.net.do(self.rooms.joined_users(room_id)))

    def bodies(self, room_id: str, user_id: str) -> list[str]:
        page = self.net.do(self.rooms.messages(room_id, user_id, "b", None, None, 100, None, False))
        contents = [orjson.loads(event.client)["content"] for event in page.events]
        return [content["body"] for content in contents if "body" in content][::-1]


class Net:
    """All servers, and what is between them."""

    def __init__(self, test: SynchronousTestCase) -> None:
        self.test = test
        self.memory = Memory()
        self.servers: dict[str, Server] = {}
        self.cut: set[str] = set()
        """Servers that nobody reaches."""

    def add(self, name: str) -> Server:
        server = self.servers[name] = Server(self, name)
        self.test.addCleanup(server.database.close)
        return server

    def do(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """The result of what must be done by now, but for pauses."""
        waiting = Deferred.fromCoroutine(coroutine)
        self.pause()
        return self.test.successResultOf(waiting)

    def pause(self) -> None:
        """Let everybody go on who only let others have their turn."""
        clock = self.memory.clock
        while any(call.getTime() <= clock.seconds() for call in clock.getDelayedCalls()):
            clock.advance(0)

    def failure(self, coroutine: Coroutine[Any, Any, Any]) -> MatrixError:
        """Why something is refused."""
        waiting = Deferred.fromCoroutine(coroutine)
        self.pause()
        error: MatrixError = self.test.failureResultOf(waiting, MatrixError).value
        return error

    def refused(self, coroutine: Coroutine[Any, Any, Any], errcode: str, status: int) -> MatrixError:
        error = self.failure(coroutine)
        self.test.assertEqual((error.status, error.errcode), (status, errcode), error)
        return error

    def deliver(self) -> int:
        """Bring what servers distribute to the others in the room; returns how many events that were."""
        count = 0
        for server in self.servers.values():
            while server.sent < len(server.told):
                output = server.told[server.sent]
                server.sent += 1
                count += self._send(server, output)
        return count

    def _send(self, server: Server, output: OutputRoomEvent) -> bool:
        """Whether an event goes to others: to those in the room, and to the server of one who has to leave it."""
        event = output.event
        names: set[str] = set()
        if output.distribute:
            names.update(self.do(server.rooms.room_servers(event.room_id)))
        ends = event.membership in ("leave", "ban") and event.state_key is not None
        if ends and (output.distribute or event.sender.endswith(f":{server.name}")):
            names.add((event.state_key or "").partition(":")[2])
        names -= {server.name, event.sender.partition(":")[2], *self.cut}
        for name in names & self.servers.keys():
            (pdu,) = self.do(server.rooms.pdus([event.event_id])).values()
            try:
                self.do(self.servers[name].rooms.receive(server.name, event.room_id, [pdu]))
            except MatrixError as error:
                if error.status != 404:
                    raise
        return bool(names)

    # --- the wires ---

    async def answer(self, origin: str, request: FederationRequest) -> RawAnswer:
        if request.destination in self.cut or request.destination not in self.servers:
            raise Unreachable(f"{request.destination} does not answer")
        server = self.servers[request.destination]
        version, endpoint, *parts = (unquote(part) for part in request.path.split("/")[3:])
        server.asked.append((origin, endpoint))
        if endpoint in server.answers and (given := server.answers[endpoint](request)) is not None:
            return given if isinstance(given, RawAnswer) else RawAnswer(200, orjson.dumps(given))
        try:
            content = await _serve(server, origin, version, endpoint, parts, request)
        except MatrixError as error:
            return RawAnswer(
                error.status, orjson.dumps({"errcode": error.errcode, "error": error.error, **error.extra})
            )
        return RawAnswer(200, orjson.dumps(content))


class Wires:
    """`FederationAPI` of one server."""

    def __init__(self, net: Net, origin: str) -> None:
        self._net = net
        self._origin = origin

    async def ask(self, request: FederationRequest) -> RawAnswer:
        return await self._net.answer(self._origin, request)

    async def request(self, request: FederationRequest) -> dict[str, Any]:
        answer = await self.ask(request)
        content: dict[str, Any] = orjson.loads(answer.body)
        if answer.status != 200:
            raise RemoteRefused(answer.status, content["errcode"], content["error"])
        return content

    async def check_signatures(self, checks: list[SignatureCheck]) -> list[str | None]:
        raise NotImplementedError

    async def fetch_keys(self, wanted: list[KeysWanted]) -> list[ServerKey]:
        return [
            ServerKey(one.server_name, key_id, server.key.verify_key, FAR_MS)
            for one in wanted
            if (server := self._net.servers.get(one.server_name)) is not None
            for key_id in one.key_ids
            if key_id == server.key.key_id
        ]


async def _serve(
    server: Server, origin: str, version: str, endpoint: str, parts: list[str], request: FederationRequest
) -> Any:
    rooms, query = server.rooms, dict(request.query)
    kind = endpoint.removeprefix("make_").removeprefix("send_")
    if endpoint.startswith("make_"):
        versions = [value for key, value in request.query if key == "ver"]
        return await rooms.make_membership(kind, *parts, origin, versions)
    if endpoint.startswith("send_"):
        body = orjson.dumps(request.body)
        taken = await rooms.take_membership(kind, *parts, origin, body, query.get("omit_members") == "true")
        return await _taken(server, kind, taken)
    if endpoint == "invite":
        pdu = orjson.Fragment(await rooms.receive_invite(*parts, origin, request.body, version == "v1"))
        return [200, {"event": pdu}] if version == "v1" else {"event": pdu}
    if endpoint == "exchange_third_party_invite":
        await rooms.exchange_third_party_invite(*parts, origin, request.body)
        return {}
    if endpoint == "query":
        found = await rooms.resolve_alias(query["room_alias"])
        return {"room_id": found.room_id, "servers": found.servers}
    if endpoint == "hierarchy":
        return await rooms.hierarchy_for_server(origin, parts[0], query["suggested_only"] == "true")
    if endpoint == "event":
        found = await rooms.events_for_server(origin, parts)
        return {"pdus": [orjson.Fragment(pdu) for pdu in found.values()]}
    if endpoint == "event_auth":
        return {"auth_chain": await _bodies(server, await rooms.event_auth_for_server(origin, *parts))}
    if endpoint in ("state", "state_ids"):
        state, chain = await rooms.state_ids_for_server(origin, parts[0], query["event_id"])
        if endpoint == "state_ids":
            return {"pdu_ids": state, "auth_chain_ids": chain}
        return {"pdus": await _bodies(server, state), "auth_chain": await _bodies(server, chain)}
    if endpoint == "get_missing_events":
        asked: Any = request.body
        found = await rooms.missing_events_for_server(
            origin, *parts, asked["earliest_events"], asked["latest_events"], asked.get("limit", 10), 0
        )
        return {"events": [orjson.Fragment(pdu) for pdu in found]}
    raise MatrixError(404, "M_UNRECOGNIZED", "There is no such endpoint.")


async def _taken(server: Server, kind: str, taken: Any) -> Any:
    if kind == "knock":
        return {"knock_room_state": [orjson.Fragment(pdu) for pdu in taken.stripped]}
    if kind == "leave":
        return {}
    answer: dict[str, Any] = {
        "event": orjson.Fragment(taken.event),
        "state": await _bodies(server, taken.state),
        "auth_chain": await _bodies(server, taken.auth_chain),
    }
    if taken.members_omitted:
        answer |= {"members_omitted": True, "servers_in_room": taken.servers_in_room}
    return answer


async def _bodies(server: Server, event_ids: list[str]) -> list[Any]:
    found = await server.rooms.pdus(event_ids)
    return [orjson.Fragment(found[event_id]) for event_id in event_ids]
