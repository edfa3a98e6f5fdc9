"""A storm: people of several servers talk and quarrel while the network fails and servers crash; then all heals.

Each server has an anchor, who is in every room from its beginning and never leaves, and others who come and go. The
order of play: everybody is registered, rooms are made and anchors join while the weather is calm; then everyone acts,
and `Weather` and crashes do their worst; then everything is mended, anchors speak once more, and what
`tests.simulation.invariants` says must hold.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import LogLevel, formatEvent, globalLogPublisher

from tests.simulation.host import Host
from tests.simulation.invariants import agreed, check, timeline
from tests.simulation.network import Network, Weather
from tests.simulation.people import Person
from tests.simulation.timing import SharedClock
from tests.simulation.trace import Trace

NAMES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay", "koi", "lynx")
SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    servers: int = 3
    people: int = 3
    """On each server, the anchor included."""
    rooms: int = 2
    federating: int = 1
    """By how many processes each server federates."""
    storm_seconds: float = 60.0
    pause_seconds: float = 2.5
    """Between two actions of a person, on average."""
    versions: Sequence[str] = ("6", "8", "9", "10", "11", "12")
    heal_seconds: float = 4000.0


@dataclass
class Outcome:
    """What a seed came to."""

    seed: int
    trace: Trace
    events: int = 0
    problems: list[str] = field(default_factory=list)


class Storm:
    """One run of one seed."""

    def __init__(self, seed: int, plan: Plan, folder: Path) -> None:
        self.seed = str(seed)
        self.plan = plan
        self.clock = SharedClock()
        self.trace = Trace(lambda: self.clock.seconds() - 1_700_000_000)
        self.chance = random.Random(f"{seed} storm")
        self.weather = Weather(f"{seed} weather")
        self.network = Network(self.clock, self.trace, self.weather)
        self.hosts = [
            Host(f"{letter}.test", folder / letter, self.network, self.seed, plan.federating)
            for letter in "abcdefgh"[: plan.servers]
        ]
        self.people: list[Person] = []
        self.anchors: list[Person] = []
        self.rooms: list[str] = []
        names = iter(NAMES)
        for host in self.hosts:
            for number in range(plan.people):
                person = Person(host, next(names), self.trace, self.seed)
                self.people.append(person)
                if number == 0:
                    self.anchors.append(person)
        self.early: set[str] = set()
        """Events from before all servers were in their rooms: some have them as history or state, others not at all."""
        self.acting = False
        self._texts = 0

    # --- the play ---

    def play(self, before_checks: Callable[[Storm], object] | None = None) -> Outcome:
        """All of it; `before_checks` may do something when all is healed."""
        outcome = Outcome(int(self.seed), self.trace)
        globalLogPublisher.addObserver(self._logged)
        try:
            self._begin()
            self._rage()
            self._heal()
            if before_checks is not None:
                before_checks(self)
            check(self)
            outcome.events = len({said.event_id for person in self.people for said in person.said})
        except Exception as error:
            self.trace.problem("simulation", f"{type(error).__name__}: {error}")
        finally:
            for host in self.hosts:
                host.stop()
            globalLogPublisher.removeObserver(self._logged)
        outcome.problems = self.trace.problems
        return outcome

    def _begin(self) -> None:
        """Servers start, people arrive, rooms are made, anchors join."""
        for host in self.hosts:
            self.finish(_waited(host.start()), 60)
        for person in self.people:
            self.finish(person.register(), 60)
            self.start(person.watch())
        for number in range(self.plan.rooms):
            self.finish(self._make_room(number), 120)
        self.clock.run(5)
        self.early = {event for room in self.rooms for host in self.hosts for event in timeline(host, room)}

    async def _make_room(self, number: int) -> None:
        host = self.anchors[number % len(self.anchors)]
        others = [anchor for anchor in self.anchors if anchor is not host]
        version = self.chance.choice(self.plan.versions)
        levels = {"users": {anchor.user_id: 100 for anchor in self.anchors}}
        if version == "12":
            del levels["users"][host.user_id]
        rules: dict[str, Any] = {"join_rule": self.chance.choice(("public", "public", "knock", "invite"))}
        if int(version) < 7 and rules["join_rule"] == "knock":
            rules = {"join_rule": "invite"}
        # In version 8 a redaction takes from a join what authorised it, and servers may differ for good; 9 mends that.
        if number and int(version) >= 9 and self.chance.random() < 0.5:
            rules = {"join_rule": "restricted", "allow": [{"type": "m.room_membership", "room_id": self.rooms[0]}]}
        initial = [{"type": "m.room.join_rules", "state_key": "", "content": rules}]
        body = {
            "room_version": version,
            "preset": "public_chat",
            "power_level_content_override": levels,
            "initial_state": initial,
            "invite": [anchor.user_id for anchor in others],
        }
        response = await host.do(
            f"makes a room of version {version}, {rules['join_rule']}", "POST", "/createRoom", body
        )
        room = response.json["room_id"]
        self.rooms.append(room)
        for anchor in others:
            await anchor.join(room, host.host.name)

    def _rage(self) -> None:
        """Everybody acts, in all weathers."""
        self.trace.note("weather", "storm")
        self.weather.stormy = self.acting = True
        acts = [self.start(self._live(person)) for person in self.people]
        trouble = self.start(self._make_trouble())
        self.clock.run(self.plan.storm_seconds)
        self.acting = False
        self.trace.note("weather", "calm")
        self.weather.stormy = False
        self.network.cut.clear()
        if not self.clock.run_until(lambda: all(act.called for act in [*acts, trouble]), 600):
            self.trace.problem("simulation", "somebody's last request is never answered")

    def _heal(self) -> None:
        """Anchors speak until all servers agree; an hour of quiet must do."""
        for host in self.hosts:
            if not host.is_up:
                self.finish(_waited(host.start()), 60)
        self.clock.run(60)
        waited = 60.0
        while True:
            for room in self.rooms:
                for anchor in self.anchors:
                    self.finish(anchor.say(room, self.text(anchor)), 120)
                    self.clock.run(2)
            self.clock.run(30)
            for room in self.rooms:
                for anchor in self.anchors:
                    self.finish(anchor.read_back(room), 300)
            waited += 30
            if agreed(self) or waited > self.plan.heal_seconds:
                break
            self.clock.run(waited)
            waited *= 2
        self.clock.run(60)
        for person in self.people:
            person.gone = True

    # --- who does what ---

    def text(self, person: Person) -> str:
        """Words that nobody has said before."""
        self._texts += 1
        return f"{person.name}-{self._texts}"

    async def _live(self, person: Person) -> None:
        while True:
            await self.clock.sleep(person.chance.expovariate(1 / self.plan.pause_seconds))
            if not self.acting:
                return
            await self._act(person)

    async def _act(self, person: Person) -> None:
        chance = person.chance
        room = chance.choice(self.rooms)
        view = person.rooms.get(room)
        if view is None or not view.joined:
            via = person.invited.get(room) or chance.choice(self.anchors).host.name
            await person.join(room, via)
            return
        deeds = (
            (10, self._talk),
            (3, self._name),
            (2, self._rename_self),
            (3, self._redact),
            (3, self._power),
            (4, self._discipline),
            (2, self._invite),
            (1, self._rules),
            (1, self._depart),
            (3, self._write),
        )
        (deed,) = chance.choices([deed for _, deed in deeds], [weight for weight, _ in deeds])
        await deed(person, room)

    async def _talk(self, person: Person, room: str) -> None:
        for _ in range(person.chance.choice((1, 1, 1, 4))):
            await person.say(room, self.text(person))

    async def _name(self, person: Person, room: str) -> None:
        text = self.text(person)
        type_, key = person.chance.choice((("m.room.name", "name"), ("m.room.topic", "topic")))
        await person.set_state(room, type_, {key: text}, what=f"sets the {key} {text}")

    async def _rename_self(self, person: Person, room: str) -> None:
        if person in self.anchors:
            return
        content = {"membership": "join", "displayname": self.text(person)}
        await person.set_state(room, "m.room.member", content, person.user_id, what="takes a new name")

    async def _redact(self, person: Person, room: str) -> None:
        shown = [event for stretch in person.rooms[room].stretches for event in stretch]
        if shown:
            await person.redact(room, person.chance.choice(shown[-12:]))

    async def _power(self, person: Person, room: str) -> None:
        """Raise or lower somebody, as the person knows the levels; others may do so at the same time."""
        levels = await person.content(room, "m.room.power_levels")
        other = person.chance.choice(self.people)
        if not levels or other in self.anchors:
            return
        level = person.chance.choice((0, 25, 50, 50, 75))
        changed = {**levels, "users": {**levels.get("users", {}), other.user_id: level}}
        if person.chance.random() < 0.2:
            changed["events_default"] = person.chance.choice((0, 0, 50))
        await person.set_state(room, "m.room.power_levels", changed, what=f"gives {other.name} {level}")

    async def _discipline(self, person: Person, room: str) -> None:
        other = person.chance.choice(self.people)
        if other in self.anchors or other is person:
            return
        await person.change(room, person.chance.choice(("kick", "ban", "ban", "unban", "unban")), other.user_id)

    async def _invite(self, person: Person, room: str) -> None:
        other = person.chance.choice(self.people)
        if other is not person:
            await person.change(room, "invite", other.user_id)

    async def _rules(self, person: Person, room: str) -> None:
        rule = person.chance.choice(("public", "public", "invite"))
        await person.set_state(room, "m.room.join_rules", {"join_rule": rule}, what=f"makes it {rule}")

    async def _depart(self, person: Person, room: str) -> None:
        if person not in self.anchors:
            await person.leave(room)

    async def _write(self, person: Person, room: str) -> None:
        others = [other for other in self.people if other is not person]
        others = person.chance.sample(others, min(len(others), 2))
        await person.write_to(others, self.text(person))

    # --- trouble ---

    async def _make_trouble(self) -> None:
        """Cut links, and mend them; crash servers, and begin them again."""
        while True:
            await self.clock.sleep(self.chance.uniform(2, 12))
            if not self.acting:
                return
            host = self.chance.choice(self.hosts)
            if host.several is not None and self.chance.random() < 0.7:
                host.several.trouble()
                continue
            if len(self.hosts) < 2 or self.chance.random() < 0.4:
                await self._crash(host)
            else:
                await self._cut(host)

    async def _crash(self, host: Host) -> None:
        host.crash()
        await self.clock.sleep(self.chance.choice((0.1, 3.0, 15.0)))
        await host.start()

    async def _cut(self, host: Host) -> None:
        others = [other.name for other in self.hosts if other is not host]
        some = self.chance.sample(others, self.chance.randint(1, len(others)))
        one_way = self.chance.random() < 0.3
        self.trace.note(host.name, f"is cut off from {', '.join(some)}{', one way' if one_way else ''}")
        self.network.cut_off(host.name, some, one_way)
        await self.clock.sleep(self.chance.uniform(1, 20))
        self.trace.note(host.name, "is reached again")
        self.network.cut -= {link for link in self.network.cut if host.name in link}

    # --- means ---

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> Deferred[Any]:
        """Let somebody do something; what it raises is a problem."""

        def failed(failure: Any) -> None:
            self.trace.problem("simulation", f"{failure.type.__name__}: {failure.getErrorMessage()}")

        return Deferred.fromCoroutine(coroutine).addErrback(failed)

    def finish(self, coroutine: Coroutine[Any, Any, Any], seconds: float) -> None:
        """The same, and wait until it is done."""
        done = self.start(coroutine)
        if not self.clock.run_until(lambda: bool(done.called), seconds):
            raise AssertionError(f"{coroutine!r} is not done after {seconds:.0f} seconds")

    def _logged(self, event: Any) -> None:
        if event.get("log_level") in (LogLevel.error, LogLevel.critical):
            failure = event.get("log_failure")
            detail = f" {failure.getTraceback(detail='brief')}" if failure is not None else ""
            self.trace.problem("log", f"{formatEvent(event)}{detail}")


async def _waited(deferred: Deferred[Any]) -> None:
    await deferred


def run(seed: int, plan: Plan | None = None, before_checks: Callable[[Storm], object] | None = None) -> Outcome:
    """One seed in a folder of its own."""
    where = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="simulation-", dir=where) as folder:
        return Storm(seed, plan or Plan(), Path(folder)).play(before_checks)
