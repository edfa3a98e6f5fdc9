"""The load generator as a homeserver that others federate with: a name, a key, a certificate, and few answers.

It joins rooms of a server under test and sends events there, or has a room that a server under test joins.  It is
called ``127.0.0.1:PORT``, so that nothing need be looked up, and serves HTTPS with a certificate of the tests' own
authority.  It keeps no events but those that it is given to answer with.
"""

from __future__ import annotations

import asyncio
import secrets
import ssl
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import orjson

from bench.http import Connection, Response
from bench.processes import free_port
from dendrite_tw.federation_api.xmatrix import sign_request
from dendrite_tw.matrix.auth_rules import auth_event_keys
from dendrite_tw.matrix.events import Event, build_event, event_from_storage, finish_event, received_event_id
from dendrite_tw.matrix.keys import server_keys_document, signing_key
from dendrite_tw.matrix.room_versions import room_version
from tests.interop.authority import Authority
from tests.interop.homeservers import Homeserver

VERSION = room_version("10")
DAY_MS = 24 * 60 * 60 * 1000
V1 = "/_matrix/federation/v1"
V2 = "/_matrix/federation/v2"

State = dict[tuple[str, str], Event]
Answer = Callable[[str, str, bytes], bytes | None]
"""Method, path with query, and body of a request; the JSON that answers it, or None for 404."""


def now_ms() -> int:
    return int(time.time() * 1000)


class RefusedByServerError(Exception):
    """The server under test answered a server's request with another status than 200."""


class Remote:
    """The server; `answer` is asked what it does not know itself."""

    def __init__(self, authority: Authority) -> None:
        self.port = free_port()
        self.name = f"127.0.0.1:{self.port}"
        self.key = signing_key("ed25519:bench", secrets.token_bytes(32))
        self.answer: Answer = lambda method, target, body: None
        self.asked: Counter[str] = Counter()
        self._authority = authority
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Serve, until `stop`."""
        folder = self._authority.file.parent / "remote"
        folder.mkdir(exist_ok=True)
        chain, secret = self._authority.issue("127.0.0.1", folder)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(chain, secret)
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port, ssl=tls)

    async def stop(self) -> None:
        """Serve no more, and hang up."""
        if self._server is not None:
            self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    # --- answering ---

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                line, _, fields = head.partition("\r\n")
                method, target, _ = line.split(" ")
                headers = dict(field.lower().split(": ", 1) for field in fields.split("\r\n") if ": " in field)
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                found = self._known(method, target) or self.answer(method, target, body)
                status = "200 OK" if found is not None else "404 Not Found"
                content = found if found is not None else b'{"errcode":"M_NOT_FOUND","error":"not here"}'
                said = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
                writer.write(said.encode() + content)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _known(self, method: str, target: str) -> bytes | None:
        path = urlsplit(target).path
        self.asked["/".join(path.split("/")[2:5])] += 1
        if path.startswith("/_matrix/key/v2/server"):
            return orjson.dumps(server_keys_document(self.name, [self.key], [], now_ms() + DAY_MS))
        if path.startswith(f"{V1}/send/"):
            return b'{"pdus":{}}'
        if path.startswith(f"{V1}/query/profile"):
            return b"{}"
        if path.startswith(f"{V1}/user/devices/"):
            return orjson.dumps({"user_id": unquote(path.split("/")[-1]), "stream_id": 0, "devices": []})
        return None

    # --- events ---

    def build(
        self,
        room_id: str,
        state: Mapping[tuple[str, str], Event],
        sender: str,
        kind: str,
        content: dict[str, Any],
        *,
        after: Sequence[str],
        depth: int,
        state_key: str | None = None,
    ) -> Event:
        """An event, signed, which `state` authorises."""
        keys = auth_event_keys(version=VERSION, type=kind, sender=sender, state_key=state_key, content=content)
        return build_event(
            VERSION,
            room_id=room_id,
            sender=sender,
            type=kind,
            content=content,
            state_key=state_key,
            prev_events=after,
            auth_events=[state[key].event_id for key in keys if key in state],
            depth=depth,
            origin_server_ts=now_ms(),
            server_name=self.name,
            key_id=self.key.key_id,
            signing_key=self.key.secret,
        )


class Link:
    """Requests of a remote server to one server under test, over one connection."""

    def __init__(self, remote: Remote, server: Homeserver, authority: Authority) -> None:
        self._remote = remote
        self._server = server
        tls = ssl.create_default_context(cafile=str(authority.file))
        self._connection = Connection(server.domain, server.federation_port, tls=tls)
        self._transactions = 0

    async def ask(self, method: str, path: str, body: bytes | None = None) -> Response:
        """A signed request. Raises :class:`RefusedByServerError`."""
        name = self._server.server_name
        header = sign_request(self._remote.key, self._remote.name, name, method, path, body)
        response = await self._connection.request(method, path, body, header)
        if response.status != 200:
            said = response.body[:300].decode(errors="replace")
            raise RefusedByServerError(f"{method} {path}: {response.status} {said}")
        return response

    async def join(self, room_id: str, user_id: str) -> tuple[Event, State]:
        """Join a room of that server; the join, and the state with it."""
        where = f"{quote(room_id, safe='')}/{quote(user_id, safe='')}"
        made = (await self.ask("GET", f"{V1}/make_join/{where}?ver={VERSION.identifier}")).json()
        key = self._remote.key
        join = finish_event(
            made["event"], VERSION, server_name=self._remote.name, key_id=key.key_id, signing_key=key.secret
        )
        path = f"{V2}/send_join/{quote(room_id, safe='')}/{quote(join.event_id, safe='')}"
        told = (await self.ask("PUT", path, join.pdu)).json()
        state: State = {}
        for pdu in told["state"]:
            data = orjson.dumps(pdu)
            event = event_from_storage(data, VERSION, received_event_id(data, VERSION))
            state[event.type, event.state_key or ""] = event
        state["m.room.member", user_id] = join
        return join, state

    async def send(self, events: Sequence[Event]) -> None:
        """One transaction. Raises :class:`RefusedByServerError`, also if an event was not taken."""
        self._transactions += 1
        pdus = b",".join(event.pdu for event in events)
        head = b'{"origin":"%s","origin_server_ts":%d,"pdus":[' % (self._remote.name.encode(), now_ms())
        told = await self.ask("PUT", f"{V1}/send/t{self._transactions}", head + pdus + b"]}")
        errors = [found for found in told.json()["pdus"].values() if found]
        if errors:
            raise RefusedByServerError(f"{len(errors)} events of a transaction were not taken: {errors[0]}")
