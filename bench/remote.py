"""Another server, as far as a server under test can see: it has a name, a certificate and a key, joins and sends.

It answers what it must (its keys, transactions that come back) and nothing else. Events are built before they are sent,
so that what is measured is the server that takes them.
"""

from __future__ import annotations

import asyncio
import secrets
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import orjson

from bench.federating import Federating
from bench.http import Connection, Response
from bench.processes import free_port
from dendrite_tw.federation_api.xmatrix import sign_request
from dendrite_tw.matrix.events import Event, build_event, finish_event, parse_event
from dendrite_tw.matrix.keys import signing_key
from dendrite_tw.matrix.room_versions import ROOM_VERSIONS
from dendrite_tw.matrix.signing import sign_json

DOMAIN = "127.0.0.1"
VERSION = ROOM_VERSIONS["10"]
VALID_MS = 86_400_000
TEXT = "The quick brown fox jumps over the lazy dog, and then tells the whole room about it at some length."


def now_ms() -> int:
    return int(time.time() * 1000)


class RemoteRefusedError(Exception):
    """The server under test answered with another status than 200."""


@dataclass(slots=True)
class Seat:
    """A room that the remote server's user is in: what the next event refers to."""

    room_id: str
    auth: list[str]
    last: str
    depth: int


class Remote:
    """The other server, towards one server under test."""

    def __init__(self, server: Federating, folder: Path) -> None:
        self.server = server
        self.port = free_port()
        self.name = f"{DOMAIN}:{self.port}"
        self.user_id = f"@talker:{self.name}"
        self._key = signing_key("ed25519:bench", secrets.token_bytes(32))
        folder.mkdir(parents=True, exist_ok=True)
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(*server.authority.issue(DOMAIN, folder))
        self._listening: asyncio.Server | None = None
        trust = ssl.create_default_context(cafile=str(server.authority.file))
        self._connection = Connection(server.domain, server.federation_port, tls=trust)
        self._transactions = 0

    # --- what it answers ---

    async def __aenter__(self) -> Self:
        self._listening = await asyncio.start_server(self._talk, DOMAIN, self.port, ssl=self._tls)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._listening is not None
        self._listening.close()
        self._connection.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                lengths = [line.split(":")[1] for line in head if line.lower().startswith("content-length:")]
                await reader.readexactly(int(lengths[0]) if lengths else 0)
                body = orjson.dumps(self._answer(head[0].split(" ")[1]))
                start = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
                writer.write(start % len(body) + body)
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError, ConnectionError):
            writer.close()

    def _answer(self, path: str) -> dict[str, Any]:
        if path.startswith("/_matrix/key/v2/server"):
            document = {
                "server_name": self.name,
                "verify_keys": {self._key.key_id: {"key": self._key.verify_key_base64}},
                "old_verify_keys": {},
                "valid_until_ts": now_ms() + VALID_MS,
            }
            return sign_json(document, self.name, self._key.key_id, self._key.secret)
        return {"pdus": {}}

    # --- what it does ---

    async def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON of a signed request's answer. Raises :class:`RemoteRefusedError`."""
        content = None if body is None else orjson.dumps(body)
        response = await self.send(method, path, content)
        return response.json()

    async def send(self, method: str, path: str, content: bytes | None) -> Response:
        """A signed request with a body that is JSON already. Raises :class:`RemoteRefusedError`."""
        header = sign_request(self._key, self.name, self.server.server_name, method, path, content)
        response = await self._connection.request(method, path, content, {"Authorization": header})
        if response.status != 200:
            raise RemoteRefusedError(f"{method} {path}: {response.status} {response.body[:300]!r}")
        return response

    async def join(self, room_id: str) -> Seat:
        """Its user joins a room of the server under test."""
        place = f"{quote(room_id, safe='')}/{quote(self.user_id, safe='')}"
        made = await self.ask("GET", f"/_matrix/federation/v1/make_join/{place}?ver={VERSION.identifier}")
        join = finish_event(
            {**made["event"], "origin_server_ts": now_ms()},
            VERSION,
            server_name=self.name,
            key_id=self._key.key_id,
            signing_key=self._key.secret,
        )
        path = f"/_matrix/federation/v2/send_join/{quote(room_id, safe='')}/{quote(join.event_id, safe='')}"
        told = await self.ask("PUT", path, join.pdu_dict())
        state = {event.type: event.event_id for event in (parse_event(pdu, VERSION) for pdu in told["state"])}
        auth = [state["m.room.create"], state["m.room.power_levels"], join.event_id]
        return Seat(room_id, auth, join.event_id, join.depth)

    def messages(self, seat: Seat, count: int) -> list[Event]:
        """So many messages, each after the one before."""
        events = []
        for _ in range(count):
            event = build_event(
                VERSION,
                room_id=seat.room_id,
                sender=self.user_id,
                type="m.room.message",
                content={"msgtype": "m.text", "body": TEXT},
                prev_events=[seat.last],
                auth_events=seat.auth,
                depth=seat.depth + 1,
                origin_server_ts=now_ms(),
                server_name=self.name,
                key_id=self._key.key_id,
                signing_key=self._key.secret,
            )
            seat.last, seat.depth = event.event_id, event.depth
            events.append(event)
        return events

    async def transaction(self, events: Sequence[Event]) -> None:
        """Send events as a transaction, and wait for the answer."""
        self._transactions += 1
        body = b'{"origin":"%b","origin_server_ts":%d,"pdus":[%b]}' % (
            self.name.encode(),
            now_ms(),
            b",".join(bytes(event.pdu) for event in events),
        )
        told = await self.send("PUT", f"/_matrix/federation/v1/send/b{self._transactions}", body)
        refused = {event_id: result for event_id, result in told.json()["pdus"].items() if result}
        assert not refused, refused
