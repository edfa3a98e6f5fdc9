"""Users of the simulated servers: each has a client that syncs all the time, and repeats what was not answered."""

from __future__ import annotations

import hashlib
import hmac
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import orjson
from twisted.internet.defer import Deferred

from tests.simulation.host import SECRET, Host
from tests.simulation.network import Request, Response
from tests.simulation.trace import Trace

CLIENT = "/_matrix/client/v3"
PASSWORD = "wonderland"
RETRY_SECONDS = 0.7
POLL_MS = 30_000
FILTER = quote('{"room":{"timeline":{"limit":10}},"presence":{"types":[]}}')

Slot = tuple[str, str]


@dataclass
class View:
    """A room as a client shows it: stretches of timeline without gaps, and the state."""

    stretches: list[list[str]] = field(default_factory=list)
    shown: set[str] = field(default_factory=set)
    state: dict[Slot, str] = field(default_factory=dict)
    joined: bool = False


@dataclass(frozen=True)
class Said:
    """An event that a server answered 200 for."""

    room: str
    event_id: str
    text: str


class Person:
    """A user with one device."""

    def __init__(self, host: Host, name: str, trace: Trace, seed: str) -> None:
        self.host = host
        self.name = name
        self.user_id = f"@{name}:{host.name}"
        self.trace = trace
        self.chance = random.Random(f"{seed} {name}")
        self.rooms: dict[str, View] = {}
        self.invited: dict[str, str] = {}
        """Rooms that this person is invited to, with a server to join through."""
        self.said: list[Said] = []
        self.redactions: dict[str, str] = {}
        """What was redacted, by the event that did it."""
        self.notes_sent: list[tuple[str, str]] = []
        """To-device messages: to whom, and the text."""
        self.notes: list[tuple[str, str]] = []
        """Those that came: from whom, and the text."""
        self.since = ""
        self.gone = False
        self._token = ""
        self._transactions = 0

    def __repr__(self) -> str:
        return self.user_id

    # --- requests ---

    async def attempt(self, method: str, path: str, body: Any = None) -> Response | None:
        """The answer to a request, or `None` if the connection was lost."""
        data = None if body is None else orjson.dumps(body)
        headers = [("Authorization", f"Bearer {self._token}")] if self._token else []
        answered: Deferred[Response | None] = Deferred()
        path = path if path.startswith("/_") else CLIENT + path
        self.host.serve(Request(method, path, headers, data), answered.callback)
        return await answered

    async def ask(self, method: str, path: str, body: Any = None) -> Response:
        """The same, repeated until there is an answer."""
        while True:
            response = await self.attempt(method, path, body)
            if response is not None:
                return response
            await self.host.clock.sleep(RETRY_SECONDS)

    async def do(self, what: str, method: str, path: str, body: Any = None) -> Response:
        """Something that others may see, noted in the trace; whatever is refused is refused."""
        response = await self.ask(method, path, body if body is not None or method == "GET" else {})
        told = response.json if response.body else {}
        result = told.get("event_id") or told.get("room_id") or told.get("errcode", "")
        reason = f" ({told['error']})" if "error" in told else ""
        self.trace.note(self.name, f"{what}: {response.status} {result}{reason}")
        return response

    def transaction(self) -> str:
        self._transactions += 1
        return f"t{self._transactions}"

    async def register(self) -> None:
        """A new account."""
        path = "/_synapse/admin/v1/register"
        nonce = (await self.ask("GET", path)).json["nonce"]
        text = "\0".join((nonce, self.name, PASSWORD, "notadmin"))
        mac = hmac.new(SECRET.encode(), text.encode(), hashlib.sha1).hexdigest()
        body = {"nonce": nonce, "username": self.name, "password": PASSWORD, "admin": False, "mac": mac}
        told = (await self.ask("POST", path, body)).json
        self._token, self.device_id = told["access_token"], told["device_id"]

    # --- actions ---

    async def say(self, room: str, text: str) -> None:
        path = f"/rooms/{quote(room)}/send/m.room.message/{self.transaction()}"
        response = await self.do(f"says {text} in {room}", "PUT", path, {"msgtype": "m.text", "body": text})
        if response.status == 200:
            self.said.append(Said(room, response.json["event_id"], text))

    async def set_state(self, room: str, type_: str, content: dict[str, Any], key: str = "", what: str = "") -> None:
        path = f"/rooms/{quote(room)}/state/{type_}/{quote(key)}"
        response = await self.do(f"{what or f'sets {type_}'} in {room}", "PUT", path, content)
        if response.status == 200:
            self.said.append(Said(room, response.json["event_id"], ""))

    async def join(self, room: str, via: str) -> None:
        await self.do(f"joins {room} via {via}", "POST", f"/join/{quote(room)}?via={via}&server_name={via}")

    async def leave(self, room: str) -> None:
        await self.do(f"leaves {room}", "POST", f"/rooms/{quote(room)}/leave")

    async def change(self, room: str, action: str, user_id: str) -> None:
        """Invite, kick, ban or unban somebody."""
        await self.do(f"{action}s {user_id} in {room}", "POST", f"/rooms/{quote(room)}/{action}", {"user_id": user_id})

    async def redact(self, room: str, event_id: str) -> None:
        path = f"/rooms/{quote(room)}/redact/{quote(event_id)}/{self.transaction()}"
        response = await self.do(f"redacts {event_id} in {room}", "PUT", path, {"reason": "no"})
        if response.status == 200:
            self.redactions[response.json["event_id"]] = event_id

    async def write_to(self, others: Sequence[Person], text: str) -> None:
        """A message between devices."""
        body = {"messages": {other.user_id: {"*": {"text": text}} for other in others}}
        path = f"/sendToDevice/org.example.note/{self.transaction()}"
        whom = ", ".join(other.name for other in others)
        response = await self.do(f"writes {text} to {whom}", "PUT", path, body)
        if response.status == 200:
            self.notes_sent += [(other.user_id, text) for other in others]

    # --- looking ---

    async def content(self, room: str, type_: str, key: str = "") -> Any:
        """The content of a state event; an empty one if there is none or it is not shown."""
        response = await self.ask("GET", f"/rooms/{quote(room)}/state/{type_}/{quote(key)}")
        return response.json if response.status == 200 else {}

    async def read_back(self, room: str) -> None:
        """Page through the whole history, which makes a server fetch what it lacks."""
        start = ""
        for _ in range(200):
            page = (await self.ask("GET", f"/rooms/{quote(room)}/messages?dir=b&limit=50{start}")).json
            if "end" not in page:
                return
            start = f"&from={quote(page['end'])}"
        self.trace.problem(self.name, f"comes to no end of the history of {room}")

    async def watch(self) -> None:
        """Sync without end."""
        while not self.gone:
            since = f"&since={quote(self.since)}" if self.since else ""
            path = f"/sync?timeout={POLL_MS}&use_state_after=true&filter={FILTER}{since}"
            response = await self.attempt("GET", path)
            if response is None:
                await self.host.clock.sleep(RETRY_SECONDS)
            elif response.status == 200:
                self.take(response.json)
            else:
                self.trace.problem(self.name, f"sync: {response.status} {response.body[:200]!r}")
                return

    def take(self, told: Any) -> None:
        """Show what a sync brought."""
        self.since = told["next_batch"]
        for message in told.get("to_device", {}).get("events", ()):
            self.notes.append((message["sender"], message["content"]["text"]))
        rooms = told.get("rooms", {})
        for room, update in rooms.get("join", {}).items():
            self.invited.pop(room, None)
            self._show(room, update)
        for room, update in rooms.get("invite", {}).items():
            events = update["invite_state"]["events"]
            own = [event for event in events if event.get("state_key") == self.user_id]
            if own:
                self.invited[room] = own[0]["sender"].partition(":")[2]
        for room in rooms.get("leave", {}):
            self.invited.pop(room, None)
            if room in self.rooms:
                self.rooms[room].joined = False

    def _show(self, room: str, update: Any) -> None:
        view = self.rooms.get(room)
        timeline = update.get("timeline", {})
        state = (update.get("state_after") or update.get("state") or {}).get("events", ())
        # A room whose whole state comes is begun anew: the person was out of it meanwhile, be it for a moment.
        is_whole = bool(timeline.get("limited")) and any(event["type"] == "m.room.create" for event in state)
        if view is None or not view.joined or is_whole:
            view = self.rooms[room] = View(joined=True)
        if timeline.get("limited") or not view.stretches:
            view.stretches.append([])
        for event in timeline.get("events", ()):
            event_id = event["event_id"]
            if event_id in view.shown:
                self.trace.problem(self.name, f"is shown {event_id} twice in {room}")
            view.shown.add(event_id)
            view.stretches[-1].append(event_id)
        for event in state:
            view.state[event["type"], event["state_key"]] = event["event_id"]
