"""What the scenarios ask of a homeserver: accounts, rooms, messages and syncs, over :mod:`bench.http`.

Every method checks the status and raises :class:`RefusedError` otherwise, so an error can not pass for a
fast answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import orjson

from bench.http import Connection, Response
from bench.servers import ServerUnderTest

CLIENT = "/_matrix/client/v3"
Item = TypeVar("Item")
Result = TypeVar("Result")
MESSAGE = "The quick brown fox jumps over the lazy dog, and then tells the whole room about it at some length."


class RefusedError(Exception):
    """The server answered with another status than 200."""

    def __init__(self, method: str, path: str, response: Response) -> None:
        super().__init__(f"{method} {path}: {response.status} {response.body[:300].decode(errors='replace')}")
        self.status = response.status


class Account:
    """A user with one device and a connection of its own."""

    def __init__(self, connection: Connection, user_id: str, token: str) -> None:
        self.connection = connection
        self.user_id = user_id
        self.token = token
        self.since = ""
        self._transactions = 0

    async def call(self, method: str, path: str, body: Any = None) -> Response:
        """A request below ``/_matrix/client/v3``. Raises :class:`RefusedError`."""
        encoded = None if body is None and method == "GET" else orjson.dumps(body or {})
        response = await self.connection.request(method, CLIENT + path, encoded)
        if response.status != 200:
            raise RefusedError(method, path, response)
        return response

    async def create_room(self, **options: Any) -> str:
        """Create a room, public to join unless the options say otherwise; its id."""
        body = {"preset": "public_chat", "visibility": "private", **options}
        room_id: str = (await self.call("POST", "/createRoom", body)).json()["room_id"]
        return room_id

    async def join(self, room_id: str) -> None:
        """Join a room of this server."""
        await self.call("POST", f"/join/{quote(room_id)}")

    async def send(self, room_id: str, text: str = MESSAGE, transaction_id: str | None = None) -> str:
        """Send a text message; its event id."""
        self._transactions += 1
        transaction = transaction_id or f"t{self._transactions}"
        path = f"/rooms/{quote(room_id)}/send/m.room.message/{transaction}"
        event_id: str = (await self.call("PUT", path, {"msgtype": "m.text", "body": text})).json()["event_id"]
        return event_id

    async def sync(self, wait_ms: int = 0, since: str | None = None, **parameters: str) -> Response:
        """One ``/sync`` after ``since`` (an empty one for an initial sync), waiting up to ``wait_ms``."""
        query = {"timeout": str(wait_ms), **parameters}
        if since:
            query["since"] = since
        return await self.call("GET", f"/sync?{urlencode(query)}")

    async def catch_up(self) -> None:
        """Sync once and keep the position in :attr:`since`."""
        self.since = (await self.sync(since=self.since)).json()["next_batch"]


async def register(server: ServerUnderTest, localpart: str, password: str = "bench-password") -> Account:
    """Make an account with the shared secret, as ``create-account`` does."""
    path = "/_synapse/admin/v1/register"
    connection = Connection(server.host, server.port)
    nonce = (await connection.request("GET", path)).json()["nonce"]
    text = "\0".join((nonce, localpart, password, "notadmin"))
    mac = hmac.new(server.registration_secret.encode(), text.encode(), hashlib.sha1).hexdigest()
    body = {"nonce": nonce, "username": localpart, "password": password, "admin": False, "mac": mac}
    response = await connection.request("POST", path, orjson.dumps(body))
    if response.status != 200:
        raise RefusedError("POST", path, response)
    connection.close()
    told = response.json()
    token = told["access_token"]
    return Account(Connection(server.host, server.port, token), told["user_id"], token)


async def each(
    items: Iterable[Item], action: Callable[[Item], Awaitable[Result]], at_once: int = 4
) -> Sequence[Result]:
    """``action`` on every item, at most ``at_once`` of them under way; the results in order."""
    gate = asyncio.Semaphore(at_once)

    async def one(item: Item) -> Result:
        async with gate:
            return await action(item)

    return await asyncio.gather(*(one(item) for item in items))
