"""Room components of several processes over one database, each with some of the rooms, and whoever calls them."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.cache import CacheBudget
from dendrite_tw.database.addresses import dsn_of
from dendrite_tw.database.engines import Unavailable
from dendrite_tw.database.outbox import OutboxRow
from dendrite_tw.database.postgresql import InlinePostgreSQL
from dendrite_tw.federation_api.api import NoFederation
from dendrite_tw.links.routing import key_of, routing_of
from dendrite_tw.matrix.keys import signing_key
from dendrite_tw.room_api.api import PURGE_ROOM, STATE_COMPLETE, OutputRoomEvent, RoomAPI, RoomPurged, StateComplete
from dendrite_tw.room_api.component import RoomComponent
from dendrite_tw.sharing.database import DatabaseLeases
from dendrite_tw.sharing.leases import NotMine
from dendrite_tw.sharing.shares import lease_of, share_of
from dendrite_tw.world import World, test_world
from tests.database.cluster import cluster
from tests.fakes import FakeFederation
from tests.harness import Memory
from tests.room_api.story import PlainUsers

KEY = signing_key("ed25519:1", b"k" * 32)
COMPONENT = "room_server"
PATIENCE = 8.0
PAUSE = 0.05


class SlowDatabase(InlinePostgreSQL):
    """Takes some time for what it is asked, so that others come in between."""

    delay: Callable[[], float] = staticmethod(lambda: 0.0)
    read_delay: Callable[[], float] = staticmethod(lambda: 0.0)
    clock: Clock

    async def read(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        delay = self.read_delay()
        if delay and not function.__qualname__.startswith("LeaseTables"):
            passed: Deferred[None] = Deferred()
            self.clock.callLater(delay, passed.callback, None)
            await passed
        return await super().read(function, *args, **kwargs)

    def read_long(self, function: Any, *args: Any, **kwargs: Any) -> Deferred[Any]:
        return Deferred.fromCoroutine(self.read(function, *args, **kwargs))

    def write(self, function: Any, *args: Any, **kwargs: Any) -> Deferred[Any]:
        delay = self.delay()
        if not delay:
            return super().write(function, *args, **kwargs)
        answer: Deferred[Any] = Deferred()

        def write() -> None:
            InlinePostgreSQL.write(self, function, *args, **kwargs).chainDeferred(answer)

        self.clock.callLater(delay, write)
        return answer


class Air:
    """Carries echoes: each process hears them in the order in which they were told, a moment later."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.processes: list[AirEchoes] = []


class AirEchoes:
    def __init__(self, air: Air) -> None:
        self.hearing = True
        self._air = air
        self._hearers: dict[str, list[Callable[[bytes], None]]] = {}
        self._missed: list[Callable[[], None]] = []
        air.processes.append(self)

    def tell(self, topic: str, payload: bytes) -> None:
        for other in self._air.processes:
            if other is not self:
                for call in other._hearers.get(topic, ()):
                    call(payload)

    def hear(self, topic: str, call: Callable[[bytes], None]) -> None:
        self._hearers.setdefault(topic, []).append(call)

    def on_missed(self, call: Callable[[], None]) -> None:
        self._missed.append(call)

    def miss(self) -> None:
        for call in self._missed:
            call()

    def leave(self) -> None:
        if self in self._air.processes:
            self._air.processes.remove(self)


class Federation(NoFederation):
    """`FederationAPI` of a process, over the wires of a test."""

    def __init__(self) -> None:
        self.wires: Any = FakeFederation()

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        return found if name == "wires" or name.startswith("__") else getattr(self.wires, name)


class Process:
    """A process with a room component; one that was killed answers nothing more."""

    def __init__(self, house: SharedCase, number: int) -> None:
        self.house = house
        self.dead = False
        self.world: World = test_world(house.clock, number)
        self.database = SlowDatabase(house.dsn, COMPONENT)
        self.database.clock = house.clock
        self.echoes = AirEchoes(house.air)
        self.leases = DatabaseLeases(COMPONENT, self.database, self.echoes, house.clock, self.world.random)
        self._live_long(self.leases._tables)
        self.federation = Federation()
        self.rooms: Any = RoomComponent(
            database=self.database,
            users=house.users,  # type: ignore[arg-type]
            federation=self.federation,
            world=self.world,
            budget=CacheBudget(1 << 24),
            server_name="test",
            key=KEY,
            default_room_version="10",
            rooms=house.rooms,
            leases=self.leases,
            echoes=self.echoes,
        )
        self.rooms.prepare()
        self.rooms.outbox.on_commit = house.tell

    def _live_long(self, tables: Any) -> None:
        """Let nobody expire by the clock of PostgreSQL, which is not the test's; `SharedCase.expire` does that."""
        join, renew = tables.join, tables.renew
        tables.join = lambda txn, process, lasting, wants: join(txn, process, 1000 * lasting, wants)
        tables.renew = lambda txn, process, lasting: renew(txn, process, 1000 * lasting)

    def holds(self, room_id: str) -> bool:
        return not self.dead and self.leases.holds(lease_of(share_of(room_id)))

    def kill(self) -> None:
        """End it in the middle of whatever it does: nothing of it reaches the database any more."""
        self.dead = True
        self.database.close()
        self.echoes.leave()
        self.house.expire(self)

    async def stop(self) -> None:
        """End it in order."""
        await self.rooms.stop()
        self.dead = True
        self.echoes.leave()

    def pause(self) -> None:
        """Let it be taken for dead, though it lives; it does not look at its leases until `resume`."""
        for timer in self.leases._timers.values():
            if timer.active():
                timer.cancel()
        self.echoes.leave()
        self.house.expire(self)

    def resume(self) -> None:
        self.house.air.processes.append(self.echoes)
        self.leases._plan_renewal()
        self.leases._plan_look()


class Everywhere:
    """`RoomAPI` for whoever calls: finds the process that answers, as the calls between processes do."""

    def __init__(self, house: SharedCase) -> None:
        self._house = house

    def __getattr__(self, name: str) -> Callable[..., Any]:
        routing = routing_of(RoomAPI, name)
        key = key_of(RoomAPI, name) if routing.share else None

        async def call(*args: Any, **kwargs: Any) -> Any:
            house = self._house
            until = house.clock.seconds() + PATIENCE
            while True:
                if key is None:
                    living = [process for process in house.processes if not process.dead]
                    house.turn += 1
                    process: Process | None = living[house.turn % len(living)]
                else:
                    process = house.holder(key(args, kwargs))
                if process is not None:
                    try:
                        return await getattr(process.rooms, name)(*args, **kwargs)
                    except NotMine:
                        if house.clock.seconds() >= until:
                            raise
                if house.clock.seconds() >= until:
                    raise Unavailable("nobody answers")
                pause: Deferred[None] = Deferred()
                house.clock.callLater(PAUSE, pause.callback, None)
                await pause

        return call


class SharedCase(SynchronousTestCase):
    """Several processes; ``told`` is what they put into the outbox, by position."""

    def setUp(self) -> None:
        self.clock = Memory().clock
        self.dsn = dsn_of(cluster().new())
        self.air = Air(self.clock)
        self.users = PlainUsers()
        self.told: dict[int, OutputRoomEvent | RoomPurged | StateComplete] = {}
        self.processes: list[Process] = []
        self.turn = 0
        self.rooms: Any = Everywhere(self)

    def process(self) -> Process:
        made = Process(self, len(self.processes))
        self.addCleanup(made.database.close)
        self.processes.append(made)
        self.do(made.rooms.start())
        self.settle()
        return made

    def tell(self, rows: list[OutboxRow]) -> None:
        for row in rows:
            assert row.id not in self.told
            kinds: dict[Any, Any] = {PURGE_ROOM: RoomPurged, STATE_COMPLETE: StateComplete}
            kind = kinds.get(msgspec.json.decode(row.headers).get("output_room_event_type"), OutputRoomEvent)
            self.told[row.id] = msgspec.msgpack.decode(row.payload, type=kind)

    def events(self, room_id: str) -> list[OutputRoomEvent]:
        """What was told of a room, in order."""
        told = [self.told[position] for position in sorted(self.told)]
        return [one for one in told if isinstance(one, OutputRoomEvent) and one.event.room_id == room_id]

    def settle(self, seconds: float = 0.0, step: float = 0.01) -> None:
        self.clock.advance(0)
        while seconds > 0:
            self.clock.advance(step)
            seconds -= step
        for _ in range(5):
            self.clock.advance(0)

    def begin(self, coroutine: Coroutine[Any, Any, Any]) -> Deferred[Any]:
        return Deferred.fromCoroutine(coroutine)

    def do(self, coroutine: Coroutine[Any, Any, Any], seconds: float = PATIENCE) -> Any:
        """What a call comes to, while time passes."""
        deferred = self.begin(coroutine)
        while not deferred.called and seconds > 0:
            self.clock.advance(0.05)
            seconds -= 0.05
        return self.successResultOf(deferred)

    def ask(self, sql: str) -> list[tuple[Any, ...]]:
        database = InlinePostgreSQL(self.dsn, COMPONENT)

        async def run(txn: Any) -> list[Any]:
            if sql.startswith("SELECT"):
                return await txn.fetch(sql, ())  # type: ignore[no-any-return]
            await txn.execute(sql, ())
            return []

        try:
            return database.prepare(run)
        finally:
            database.close()

    def expire(self, process: Process) -> None:
        """Have a process taken for dead, as if it had stood still for some seconds."""
        process.leases._until = self.clock.seconds()
        self.ask(f"UPDATE {COMPONENT}_processes SET expires = 0 WHERE process = '{process.leases.process}'")

    def holder(self, room_id: str) -> Process | None:
        held = [process for process in self.processes if process.holds(room_id)]
        assert len(held) < 2, f"{room_id} is held twice"
        return held[0] if held else None

    def other(self, process: Process) -> Process:
        return next(one for one in self.processes if one is not process and not one.dead)
