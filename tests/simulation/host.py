"""One of our servers: every component, real HTTP parsing, files on disk; it can be dropped and begun again on them."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred

from dendrite_tw.assemble import Server, monolith
from dendrite_tw.config import loads
from dendrite_tw.database.engines import SQLiteDatabase, _deliver, _Job
from dendrite_tw.matrix.keys import signing_key, write_pem
from dendrite_tw.web.site import QuietSite, make_site
from dendrite_tw.wiring import federation
from dendrite_tw.world import SeededRandom, World
from tests.harness import ask
from tests.simulation.federating import SeveralFederating
from tests.simulation.network import Connection, Done, Exchange, Network, Request, Response
from tests.simulation.timing import Lifetime, SharedClock, SkewedClock

SECRET = "shared"
START_SECONDS = 30.0

CONFIG = """
version: 2
global:
  server_name: {name}
  private_key: {folder}/matrix_key.pem
  presence: {{enable_inbound: false, enable_outbound: false}}
  jetstream: {{in_memory: true, storage_path: {folder}/jetstream}}
client_api:
  registration_shared_secret: {secret}
  registration_disabled: true
  guests_disabled: true
  rate_limiting: {{enabled: false}}
federation_api:
  deny_networks: []
  allow_networks: []
  database: {{connection_string: "file:{folder}/federation.db"}}
room_server: {{database: {{connection_string: "file:{folder}/room.db"}}}}
user_api: {{account_database: {{connection_string: "file:{folder}/user.db"}}, bcrypt_cost: 4}}
key_server: {{database: {{connection_string: "file:{folder}/key.db"}}}}
sync_api: {{database: {{connection_string: "file:{folder}/sync.db"}}}}
media_api: {{base_path: {folder}/media, database: {{connection_string: "file:{folder}/media.db"}}}}
"""


class Host:
    """A server and its folder."""

    def __init__(self, name: str, folder: Path, network: Network, seed: str, federating: int = 1) -> None:
        """`federating` is by how many processes it federates."""
        self._federating = federating
        self.several: SeveralFederating | None = None
        self.name = name
        self.network = network
        self.clock: SharedClock = network.clock
        self._seed = f"{seed} {name}"
        self._chance = random.Random(self._seed)
        self._runs = 0
        self._folder = folder
        folder.mkdir()
        key = signing_key("ed25519:1", name.encode().ljust(32, b"k")[:32])
        (folder / "matrix_key.pem").write_text(write_pem(key))
        self._skewed = SkewedClock(self.clock, self._chance.randint(-2000, 2000))
        self.is_up = False
        self._lifetime: Lifetime | None = None
        self._server: Server | None = None
        self._site: QuietSite | None = None
        self._open: set[Exchange] = set()
        self._dropped: list[Any] = []
        network.hosts[name] = self

    # --- its lives ---

    def start(self) -> Deferred[None]:
        """A new run on the files of the one before; fires when it serves."""
        self._runs += 1
        lifetime = self._lifetime = Lifetime(self.clock, self.failed)
        connection: Any = Connection(self.network, self, lambda: lifetime.alive)
        chance = SeededRandom(f"{self._seed} {self._runs}")
        world = World(lifetime, self._skewed, chance, None, connection)
        text = CONFIG.format(name=self.name, folder=self._folder, secret=SECRET)
        server = self._server = self._made(world, text)
        for database in server.parts.databases._open.values():
            assert isinstance(database, SQLiteDatabase)
            database._writer.execute("PRAGMA synchronous=OFF")
            slow = Commits(database, lifetime, self.clock, random.Random(f"{self._seed} {self._runs} commits"))
            database.write = slow.write  # type: ignore[method-assign]
        server.startService()
        ready: Deferred[None] = Deferred()

        def serves(_: None) -> None:
            self._site = make_site(server.site, lifetime)
            self.is_up = True
            self.network.trace.note(self.name, "serves")
            ready.callback(None)

        server.started.addCallbacks(serves, lambda failure: self.failed(failure.value))
        return ready

    def _made(self, world: World, text: str) -> Server:
        """The server, whose federation may be of several processes."""
        one = federation.Federating
        if self._federating > 1:
            seed = f"{self._seed} {self._runs} several"
            federation.Federating = functools.partial(SeveralFederating, self, self._federating, seed)  # type: ignore
        try:
            server = monolith(loads(text, "dendrite.yaml", allow_open_registration=True), world)
        finally:
            federation.Federating = one  # type: ignore[misc]
        if self._federating > 1:
            self.several = server.parts.federating  # type: ignore[assignment]
        return server

    def crash(self) -> None:
        """The process is gone, at whatever it was; what was committed is in its files, and nothing else."""
        assert self._server is not None
        assert self._lifetime is not None
        self.network.trace.note(self.name, "crashes")
        self.is_up = False
        if self.several is not None:
            self.several.end()
        self._lifetime.alive = False
        databases = self._server.parts.databases
        for database in databases._open.values():
            database._closed = True  # type: ignore[union-attr]
            database._writer.close()  # type: ignore[union-attr]
        databases._locks.release()
        exchanges, self._open = self._open, set()
        for exchange in exchanges:
            exchange.finish(None)
        # Kept until the simulation is over: coroutines that are thrown away would run their last steps.
        self._dropped.append((self._server, self._site, exchanges))
        self._server = self._site = None

    def stop(self) -> None:
        """End the run in order."""
        if self._server is None:
            return
        stopped = self._server.stopService()
        if not self.clock.run_until(lambda: bool(stopped.called), START_SECONDS):
            self.network.trace.problem(self.name, "does not stop")
        self._server, self.is_up = None, False

    def failed(self, error: BaseException) -> None:
        """Something was raised where nobody catches it."""
        self.network.trace.problem(self.name, f"raised {type(error).__name__}: {error}")

    # --- what is asked of it ---

    def serve(self, request: Request, done: Done) -> None:
        """Answer a request; the connection is lost if the server is down, or goes down meanwhile."""
        if not self.is_up or self._site is None:
            self.clock.callLater(0, done, None)
            return
        exchange = Exchange(lambda response: self._served(exchange, request, response, done))
        self._open.add(exchange)
        channel: Any = self._site.buildProtocol(None)
        channel.makeConnection(exchange)
        channel.setTimeout(None)
        channel.dataReceived(request.encode())

    def _served(self, exchange: Exchange, request: Request, response: Response | None, done: Done) -> None:
        self._open.discard(exchange)
        if response is not None and response.status in (500, 503):
            text = response.body[:300].decode(errors="replace")
            self.network.trace.problem(self.name, f"{request.method} {request.target}: {response.status} {text}")
        done(response)

    # --- what is in its files ---

    def rows(self, component: Any, sql: str) -> list[Any]:
        """What SQL finds in the database of a component."""
        assert self._server is not None
        return ask(self._server.parts.databases.of(component), sql)


class Commits:
    """Puts off the changes of a database for a moment, as a writer thread does: those that wait are committed together.

    So others run between a decision and its commit, and a crash may come before it.
    """

    def __init__(self, database: SQLiteDatabase, lifetime: Lifetime, clock: SharedClock, chance: random.Random) -> None:
        self._database = database
        self._lifetime = lifetime
        self._clock = clock
        self._chance = chance
        self._waiting: list[_Job] = []

    def write(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Deferred[Any]:
        """`Database.write`."""
        job = _Job(function, args, kwargs, Deferred())
        if not self._waiting:
            self._lifetime.callLater(self._chance.uniform(0.0, 0.004), self._commit)
        self._waiting.append(job)
        return job.answer

    def _commit(self) -> None:
        jobs, self._waiting = self._waiting, []
        self._database._commit(jobs)
        _deliver(jobs)
