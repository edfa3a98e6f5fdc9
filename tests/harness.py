"""A server in memory: real HTTP parsing over a string, a clock that the test holds.

`WebHarness` serves a table of routes for known callers; `Memory` holds the
parts that components are made of.  `Answer` is an answer that may still be
awaited: advance the clock and look again.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.web.resource import IResource, Resource

from dendrite_tw.database.addresses import dsn_of
from dendrite_tw.database.engines import SQLiteDatabase, run_inline
from dendrite_tw.database.postgresql import InlinePostgreSQL
from dendrite_tw.database.statements import Transaction
from dendrite_tw.matrix.errors import MatrixError
from dendrite_tw.user_api.api import Caller
from dendrite_tw.web.auth import access_token, require, unknown_token
from dendrite_tw.web.bodies import apis_below
from dendrite_tw.web.resource import ApiResource, Exchange
from dendrite_tw.web.routes import Access, Endpoint, Route
from dendrite_tw.web.site import QuietSite
from dendrite_tw.world import World, test_world
from tests.database.cluster import cluster


class Wire(StringTransport):
    """A transport into a string that, as a socket does, lets a producer go that never came."""

    def unregisterProducer(self) -> None:
        if self.producer is not None:
            super().unregisterProducer()


class Answer:
    """What came back for a request so far."""

    def __init__(self, transport: StringTransport) -> None:
        self._transport = transport

    def _split(self) -> tuple[bytes, bytes]:
        head, _, body = self._transport.value().partition(b"\r\n\r\n")
        return head, body

    @property
    def done(self) -> bool:
        return bool(self._transport.value())

    @property
    def status(self) -> int:
        head, _ = self._split()
        assert head, "there is no answer yet"
        return int(head.split(b" ", 2)[1])

    @property
    def headers(self) -> dict[str, str]:
        lines = self._split()[0].decode().split("\r\n")[1:]
        return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}

    @property
    def body(self) -> bytes:
        body = self._split()[1]
        return dechunked(body) if self.headers.get("transfer-encoding") == "chunked" else body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def errcode(self) -> Any:
        return self.json["errcode"]

    @property
    def disconnecting(self) -> bool:
        """Whether the server closed the connection."""
        return self._transport.disconnecting

    def __repr__(self) -> str:
        return f"Answer({self._transport.value()!r})"


def dechunked(body: bytes) -> bytes:
    """What is in a chunked body that is complete."""
    found = []
    while True:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            assert body == b"\r\n", "something is behind the last chunk"
            return b"".join(found)
        found.append(body[:length])
        assert body[length : length + 2] == b"\r\n", "a chunk is longer than it says"
        body = body[length + 2 :]


class Web:
    """Sends requests to a root resource as a client's bytes."""

    def __init__(self, root: IResource, clock: Clock) -> None:
        self.clock = clock
        apis = [(b"", root.api)] if isinstance(root, Root) else apis_below(root)
        self.site: Any = QuietSite(root, apis, reactor=clock)
        self.site.displayTracebacks = False

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send a request; `body` is JSON unless it is bytes already."""
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", "Host: test", f"Content-Length: {len(data)}"]
        if token is not None:
            lines.append(f"Authorization: Bearer {token}")
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        transport = Wire(
            hostAddress=IPv4Address("TCP", "127.0.0.1", 8008), peerAddress=IPv4Address("TCP", "192.0.2.1", 4242)
        )
        channel = self.site_for(method, path).buildProtocol(None)
        channel.makeConnection(transport)
        channel.dataReceived("\r\n".join(lines).encode() + b"\r\n\r\n" + data)
        return Answer(transport)

    def site_for(self, method: str, path: str) -> Any:
        """Who is asked."""
        return self.site

    def get(self, path: str, token: str | None = None) -> Answer:
        return self.request("GET", path, None, token)

    def post(self, path: str, body: Any = None, token: str | None = None) -> Answer:
        return self.request("POST", path, {} if body is None else body, token)

    def put(self, path: str, body: Any = None, token: str | None = None) -> Answer:
        return self.request("PUT", path, {} if body is None else body, token)

    def delete(self, path: str, body: Any = None, token: str | None = None) -> Answer:
        return self.request("DELETE", path, body, token)


class KnownCallers:
    """Authentication that knows its callers by heart."""

    def __init__(self, callers: Mapping[str, Caller]) -> None:
        self.callers = dict(callers)

    async def caller(self, access: Access, exchange: Exchange) -> Caller | None:
        token = access_token(exchange)
        if token is None:
            if access is Access.OPTIONAL:
                return None
            raise MatrixError(401, "M_MISSING_TOKEN", "This endpoint needs an access token.")
        if token not in self.callers:
            raise unknown_token()
        require(access, self.callers[token])
        return self.callers[token]


class NoLimits:
    def check(self, endpoint: Endpoint, caller: Caller | None, ip: str) -> None:
        return None


ALICE = Caller(user_id="@alice:test", device_id="ALICEDEV", session_id=1)
BOB = Caller(user_id="@bob:test", device_id="BOBDEV", session_id=2)
ADMIN = Caller(user_id="@admin:test", device_id="ADMINDEV", session_id=3, is_admin=True)
GUEST = Caller(user_id="@1:test", device_id="GUESTDEV", session_id=4, is_guest=True)
CALLERS = {"alice": ALICE, "bob": BOB, "admin": ADMIN, "guest": GUEST}


CONNECTIONS = 20
_opened: deque[InlinePostgreSQL] = deque()
"""Not every test closes its database; the oldest are closed here."""


def keep_few_open(database: InlinePostgreSQL) -> InlinePostgreSQL:
    """Close the oldest connections of tests that are over, as this one is opened."""
    _opened.append(database)
    if len(_opened) > CONNECTIONS:
        _opened.popleft().rest()
    return database


def empty_database() -> Any:
    """A database that runs all at once: SQLite in memory, or a schema of PostgreSQL where TEST_POSTGRESQL is set."""
    if os.environ.get("TEST_POSTGRESQL"):
        return keep_few_open(InlinePostgreSQL(dsn_of(cluster().new())))
    return SQLiteDatabase(":memory:", None)


async def _rows(txn: Transaction, sql: str) -> list[Any]:
    return await txn.fetch(sql, ())


def ask(database: Any, sql: str) -> list[Any]:
    """The rows that SQL finds in a database of `empty_database`."""
    return run_inline(database.read(_rows, sql))


def trace(database: Any) -> list[str]:
    """A list that from now on grows by each statement that such a database runs."""
    statements: list[str] = []
    database = getattr(database, "shared_one", database)
    if isinstance(database, SQLiteDatabase):
        database._reader.set_trace_callback(statements.append)
        return statements
    connection = database._session()
    run = connection.query

    def query(sql: str | bytes, values: Any) -> Any:
        statements.append(sql if isinstance(sql, str) else sql.decode())
        return run(sql, values)

    connection.query = query
    return statements


def dump(database: Any) -> str:
    """Everything that is in such a database, as text."""
    database = getattr(database, "shared_one", database)
    if isinstance(database, SQLiteDatabase):
        return "\n".join(database._writer.iterdump())
    tables = ask(database, "SELECT tablename FROM pg_tables WHERE schemaname = current_schema()")
    assert tables
    return "\n".join(str(row) for (name,) in tables for row in ask(database, f"SELECT t::text FROM {name} t"))


class Memory:
    """The parts that a component is made of: a clock, a world, an empty database."""

    def __init__(self, seed: int | str = 0) -> None:
        self.clock = Clock()
        self.clock.advance(1_700_000_000)
        self.world: World = test_world(self.clock, seed)

    def database(self) -> Any:
        return empty_database()


class Root(Resource):
    """Serves one API at every path."""

    def __init__(self, api: ApiResource) -> None:
        super().__init__()
        self.api = api

    def getChild(self, path: bytes, request: Any) -> ApiResource:
        return self.api


class KnownServers:
    """Takes another server's word for its name, which is in a header."""

    async def origin_of(self, exchange: Exchange) -> str:
        name = exchange.header(b"x-server")
        if name is None:
            raise MatrixError(401, "M_UNAUTHORIZED", "The request is not signed.")
        return name


def serve(
    routes: Iterable[Route],
    clock: Clock,
    callers: Mapping[str, Caller] | None = None,
    servers: KnownServers | None = None,
) -> Web:
    """A `Web` that serves `routes` for `callers` (by default `CALLERS`) and for `servers`, without limits."""
    known = KnownCallers(CALLERS if callers is None else callers)
    api = ApiResource(list(routes), known, NoLimits(), servers=servers)
    return Web(Root(api), clock)
