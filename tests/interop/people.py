"""Users of a homeserver, seen from a test: each call waits for its answer, and `eventually` waits for what follows."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

Value = TypeVar("Value")

CLIENT = "/_matrix/client/v3"
PATIENCE = 20.0
POLL_SECONDS = 0.04
REQUEST_SECONDS = 60.0
PASSWORD = "correct horse battery staple"


class Refused(AssertionError):
    """An answer other than 200."""

    def __init__(self, request: str, reply: Reply) -> None:
        super().__init__(f"{request}: {reply.status} {reply.body[:500].decode(errors='replace')}")
        self.status = reply.status


class NotYet(AssertionError):
    """What a test waited for did not happen in time."""


@dataclass(frozen=True)
class Reply:
    """Status and body of an answer."""

    status: int
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def eventually(look: Callable[[], Value], what: str = "", seconds: float = PATIENCE) -> Value:
    """The first value of `look` that is true; refused requests and absent keys count as not yet.

    Raises `NotYet` with what was seen last.
    """
    deadline = time.monotonic() + seconds
    while True:
        seen: object
        try:
            value = look()
        except (Refused, KeyError, IndexError) as error:
            seen = error
        else:
            if value:
                return value
            seen = value
        if time.monotonic() > deadline:
            raise NotYet(f"after {seconds:.0f} seconds not yet: {what}; last seen: {seen!r}"[:3000])
        time.sleep(POLL_SECONDS)


class Wire:
    """Requests to one server over a connection that is kept; dialled anew after the server was away."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._connection: http.client.HTTPConnection | None = None

    def request(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Reply:
        for attempt in (1, 2):
            connection = self._connection or http.client.HTTPConnection(self._host, self._port, REQUEST_SECONDS)
            kept, self._connection = self._connection is not None, connection
            try:
                connection.request(method, path, body, headers)
                answer = connection.getresponse()
                return Reply(answer.status, answer.read())
            except (http.client.RemoteDisconnected, ConnectionError):
                connection.close()
                self._connection = None
                if attempt == 2 or not kept:
                    raise
        raise AssertionError("unreachable")

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def registered(wire: Wire, secret: str, localpart: str) -> Person:
    """A new account, made with the shared secret."""
    path = "/_synapse/admin/v1/register"
    nonce = wire.request("GET", path, None, {}).json["nonce"]
    mac = hmac.new(secret.encode(), "\0".join((nonce, localpart, PASSWORD, "notadmin")).encode(), hashlib.sha1)
    body = {"nonce": nonce, "username": localpart, "password": PASSWORD, "admin": False, "mac": mac.hexdigest()}
    reply = wire.request("POST", path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    if reply.status != 200:
        raise Refused(f"POST {path}", reply)
    told = reply.json
    return Person(wire, told["user_id"], told["access_token"], told["device_id"])


class Person:
    """A user with one device."""

    _transactions = itertools.count(1)

    def __init__(self, wire: Wire, user_id: str, token: str, device_id: str) -> None:
        self.wire = wire
        self.user_id = user_id
        self.token = token
        self.device_id = device_id
        self.since = ""

    def __repr__(self) -> str:
        return self.user_id

    @property
    def localpart(self) -> str:
        return self.user_id[1:].partition(":")[0]

    @property
    def server_name(self) -> str:
        return self.user_id.partition(":")[2]

    def login(self) -> Person:
        """The same user on a new device."""
        identifier = {"type": "m.id.user", "user": self.user_id}
        told = self.post("/login", {"type": "m.login.password", "identifier": identifier, "password": PASSWORD})
        return Person(self.wire, told["user_id"], told["access_token"], told["device_id"])

    # --- requests ---

    def ask(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> Reply:
        """A request and its answer, whatever it is; paths that do not begin with ``/_`` are the client API's."""
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self.token}"}
        if data is not None:
            headers["Content-Type"] = content_type
        return self.wire.request(method, path if path.startswith("/_") else CLIENT + path, data, headers)

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON of an answer that has to be 200, else `Refused`."""
        reply = self.ask(method, path, body)
        if reply.status != 200:
            raise Refused(f"{self}: {method} {path}", reply)
        return reply.json

    def get(self, path: str, **query: str) -> Any:
        return self.call("GET", f"{path}?{urlencode(query)}" if query else path)

    def post(self, path: str, body: Any = None) -> Any:
        return self.call("POST", path, {} if body is None else body)

    def put(self, path: str, body: Any = None) -> Any:
        return self.call("PUT", path, {} if body is None else body)

    def refused(self, method: str, path: str, body: Any = None) -> Reply:
        """The answer to a request that has to be refused, in the 400s."""
        reply = self.ask(method, path, body)
        assert 400 <= reply.status < 500, f"{self}: {method} {path}: {reply}"
        return reply

    def failed(self, method: str, path: str, body: Any = None) -> Reply:
        """The answer to a request that cannot succeed, for lack of another server perhaps: not 200, and not 500."""
        reply = self.ask(method, path, body)
        assert reply.status not in (200, 500), f"{self}: {method} {path}: {reply}"
        return reply

    # --- rooms ---

    def create_room(self, version: str, **options: Any) -> str:
        """A public room unless the options say otherwise; its id."""
        body = {"preset": "public_chat", "room_version": version, **options}
        room_id: str = self.post("/createRoom", body)["room_id"]
        return room_id

    def join(self, room: str, via: str) -> str:
        """Join by id or alias; the room's id."""
        query = urlencode({"via": via, "server_name": via})
        room_id: str = self.post(f"/join/{quote(room)}?{query}")["room_id"]
        return room_id

    def knock(self, room: str, via: str) -> None:
        query = urlencode({"via": via, "server_name": via})
        self.post(f"/knock/{quote(room)}?{query}", {"reason": "please"})

    def invite(self, room: str, user: Person) -> None:
        self.post(f"/rooms/{quote(room)}/invite", {"user_id": user.user_id})

    def leave(self, room: str) -> None:
        self.post(f"/rooms/{quote(room)}/leave")

    def kick(self, room: str, user: Person) -> None:
        self.post(f"/rooms/{quote(room)}/kick", {"user_id": user.user_id, "reason": "out"})

    def ban(self, room: str, user: Person) -> None:
        self.post(f"/rooms/{quote(room)}/ban", {"user_id": user.user_id, "reason": "never again"})

    def unban(self, room: str, user: Person) -> None:
        self.post(f"/rooms/{quote(room)}/unban", {"user_id": user.user_id})

    def say(self, room: str, text: str) -> str:
        return self.send(room, "m.room.message", {"msgtype": "m.text", "body": text})

    def send(self, room: str, type_: str, content: dict[str, Any]) -> str:
        path = f"/rooms/{quote(room)}/send/{type_}/t{next(self._transactions)}"
        event_id: str = self.put(path, content)["event_id"]
        return event_id

    def redact(self, room: str, event_id: str) -> str:
        path = f"/rooms/{quote(room)}/redact/{quote(event_id)}/t{next(self._transactions)}"
        redaction: str = self.put(path, {"reason": "slip of the tongue"})["event_id"]
        return redaction

    def set_state(self, room: str, type_: str, content: dict[str, Any], key: str = "") -> str:
        event_id: str = self.put(f"/rooms/{quote(room)}/state/{type_}/{quote(key, safe='')}", content)["event_id"]
        return event_id

    # --- looking ---

    def state(self, room: str) -> dict[tuple[str, str], Any]:
        """The room's current state, by type and key."""
        events = self.get(f"/rooms/{quote(room)}/state")
        return {(event["type"], event["state_key"]): event for event in events}

    def state_ids(self, room: str) -> dict[tuple[str, str], str]:
        """The event ids of the current state."""
        return {slot: event["event_id"] for slot, event in self.state(room).items()}

    def content(self, room: str, type_: str, key: str = "") -> Any:
        """The content of a state event."""
        return self.get(f"/rooms/{quote(room)}/state/{type_}/{quote(key, safe='')}")

    def membership(self, room: str, user: Person) -> str:
        """The membership of `user` as this person sees it."""
        kind: str = self.content(room, "m.room.member", user.user_id)["membership"]
        return kind

    def event(self, room: str, event_id: str) -> Any:
        return self.get(f"/rooms/{quote(room)}/event/{quote(event_id)}")

    def text_of(self, room: str, event_id: str) -> str:
        """The text of a message; "" if it was redacted."""
        text: str = self.event(room, event_id)["content"].get("body", "")
        return text

    def history(self, room: str, limit: int = 100) -> list[Any]:
        """All events of a room that can be read, newest first, page by page."""
        events: list[Any] = []
        query = {"dir": "b", "limit": str(limit)}
        for _ in range(100):
            page = self.get(f"/rooms/{quote(room)}/messages", **query)
            events += page["chunk"]
            if "end" not in page or (not page["chunk"] and query.get("from") == page["end"]):
                return events
            query["from"] = page["end"]
        raise AssertionError("the history has no end")

    def texts(self, room: str) -> list[str]:
        """The texts of all messages, oldest first."""
        told = [event["content"].get("body") for event in self.history(room) if event["type"] == "m.room.message"]
        return told[::-1]

    def sync(self, timeout: int = 0, **query: str) -> Any:
        """What is new since the last one."""
        if self.since:
            query["since"] = self.since
        told = self.get("/sync", timeout=str(timeout), **query)
        self.since = told["next_batch"]
        return told

    def synced(self, pick: Callable[[Any], Value], what: str) -> Value:
        """The first thing that `pick` finds in one of the next answers to sync; an absent key is nothing."""

        def look() -> Value | None:
            try:
                return pick(self.sync(timeout=250)) or None
            except (KeyError, IndexError):
                return None

        return eventually(look, what)  # type: ignore[return-value]

    def sees(self, room: str, event_id: str) -> Any:
        """Wait until an event is there."""
        return eventually(lambda: self.event(room, event_id), f"{self} sees {event_id} in {room}")

    def sees_membership(self, room: str, user: Person, kind: str) -> None:
        """Wait until `user` is a member of such a kind."""
        eventually(lambda: self.membership(room, user) == kind, f"{self} sees that {user} is {kind} in {room}")
