"""Calls while processes are killed, replaced, drained and cut off, and shares move, as a seed wills it.

Whatever happens, an action is carried out once at most, and once if its caller was told so; every call ends; nothing is
left of any.
"""

from __future__ import annotations

import random
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.links.errors import Unanswered
from dendrite_tw.links.nats import log as calls_log
from dendrite_tw.sharing.shares import share_of
from tests.links.support import Broker, Desk, Process

ROOMS = ("!a:x", "!b:x", "!c:x")
SECONDS = 40.0
STEP = 0.125


class StormDesk(Desk):
    """Takes some time for some calls, and says which actions it has carried out."""

    def __init__(self, name: str, storm: Storm) -> None:
        super().__init__(name)
        self._storm = storm

    async def _take_time(self) -> None:
        chance = self._storm.chance
        if chance.random() < 0.5:
            pause: Deferred[None] = Deferred()
            self._storm.broker.clock.callLater(chance.choice((0.05, 0.5, 3.0, 7.0)), pause.callback, None)
            await pause

    async def act(self, word: str, times: int = 1) -> str:
        self._storm.carried_out.append(word)
        await self._take_time()
        return word

    async def ask(self, word: str) -> str:
        await self._take_time()
        return word

    async def replace(self, data: bytes, size: int) -> bytes:
        self._storm.carried_out.append(data.rstrip(b"\0").decode())
        await self._take_time()
        return data.rstrip(b"\0").ljust(size, b"\0")

    async def load(self, size: int) -> bytes:
        await self._take_time()
        return bytes(size)

    async def write(self, room_id: str, word: str = "") -> str:
        if (self.name, room_id) not in self._storm.holding:
            self._storm.strays.append(word)
        return await self.act(word)


class Storm:
    """A deployment, what is asked in it, and what befalls it."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.broker = Broker(max_payload=2048)
        self.carried_out: list[str] = []
        self.strays: list[str] = []
        """What was written to a room by a process that had given it away."""
        self.holding: set[tuple[str, str]] = set()
        self.calls: dict[str, Deferred[Any]] = {}
        self.outcomes: dict[str, object] = {}
        self.made = 0
        self.callers = [self.broker.process(f"caller{number}") for number in range(2)]
        self.answerers = [self.answerer() for _ in range(3)]
        self.holders: dict[str, Process | None] = {}
        for room in ROOMS:
            self.settle_on(room)

    def answerer(self) -> Process:
        self.made += 1
        process = self.broker.process(f"answerer{self.made}")
        process.desk = StormDesk(process.name, self)
        process.serve()
        return process

    # --- what is asked ---

    def ask(self) -> None:
        word = f"call {len(self.calls)}"
        asks = self.chance.choice(self.callers).asks
        kind, length = self.chance.randrange(5), self.chance.choice((10, 3_000, 20_000))
        call: Any = (
            lambda: asks.act(word),
            lambda: asks.ask(word),
            lambda: asks.write(self.chance.choice(ROOMS), word),
            lambda: asks.replace(word.encode().ljust(length, b"\0"), self.chance.choice((10, 3_000, 20_000))),
            lambda: asks.load(length),
        )[kind]()
        name = word if kind in (0, 2, 3) else f"question {word}"
        self.calls[name] = Deferred.fromCoroutine(call)
        self.calls[name].addBoth(lambda result: self.outcomes.__setitem__(name, result))

    # --- what befalls it ---

    def settle_on(self, room: str) -> None:
        """Somebody takes a share that nobody holds."""
        holder = self.holders[room] = self.chance.choice(self.answerers)
        self.holding.add((holder.name, room))
        holder.take(room)

    def move(self) -> None:
        room = self.chance.choice(ROOMS)
        holder = self.holders[room]
        if holder is not None:
            self.holders[room] = None
            self.holding.discard((holder.name, room))
            holder.give(room).addCallback(lambda _: self.moved(holder, room))

    def moved(self, holder: Process, room: str) -> None:
        if self.holders[room] is None:
            holder.held.discard(share_of(room))
            self.settle_on(room)

    def lose_shares(self, process: Process) -> None:
        for room in [room for room, holder in self.holders.items() if holder is process]:
            self.holders[room] = None
            self.broker.clock.callLater(3.0, self.settle_on, room)

    def kill(self) -> None:
        victim = self.answerers.pop(self.chance.randrange(len(self.answerers)))
        victim.lose()
        self.answerers.append(self.answerer())
        for room in [room for room, holder in self.holders.items() if holder is None]:
            # Whoever was giving it back is gone, maybe; somebody takes it when the lease has run out.
            self.broker.clock.callLater(3.0, lambda room=room: self.holders[room] or self.settle_on(room))
        self.lose_shares(victim)

    def drain(self) -> None:
        leaving = self.answerers.pop(self.chance.randrange(len(self.answerers)))
        self.answerers.append(self.answerer())
        rooms = [room for room, holder in self.holders.items() if holder is leaving]
        for room in rooms:
            self.holders[room] = None

        async def go() -> None:
            await leaving.calls.drain()
            for room in rooms:
                self.holding.discard((leaving.name, room))
                await leaving.give(room)
                if self.holders[room] is None:
                    self.settle_on(room)

        Deferred.fromCoroutine(go())

    def cut_off(self) -> None:
        process = self.chance.choice([*self.callers, *self.answerers])
        if process.client._send is not None:
            process.lose()
            self.broker.clock.callLater(self.chance.choice((0.1, 1.0)), process.connect)

    def cancel(self) -> None:
        waiting = [call for call in self.calls.values() if not call.called]
        if waiting:
            self.chance.choice(waiting).cancel()

    def blow(self) -> None:
        """Everything of one step."""
        for _ in range(self.chance.randrange(4)):
            self.ask()
        roll = self.chance.random()
        happenings = (
            (0.06, self.move),
            (0.08, self.kill),
            (0.10, self.drain),
            (0.12, self.cut_off),
            (0.16, self.cancel),
        )
        for below, happens in happenings:
            if roll < below:
                happens()
                break
        self.broker.advance(STEP, STEP)


class StormTests(SynchronousTestCase):
    def run_storm(self, seed: int) -> Storm:
        storm = Storm(seed)
        for _ in range(int(SECONDS / STEP)):
            storm.blow()
        storm.broker.advance(30.0)
        return storm

    def check(self, seed: int) -> None:
        storm = self.run_storm(seed)
        about = f"seed {seed}"
        self.assertEqual(storm.calls.keys(), storm.outcomes.keys(), about)
        twice = {word for word in storm.carried_out if storm.carried_out.count(word) > 1}
        self.assertEqual((twice, storm.strays), (set(), []), about)
        answered = 0
        for name, outcome in storm.outcomes.items():
            if isinstance(outcome, Failure):
                self.assertTrue(outcome.check(Unanswered, CancelledError), (about, name, outcome))
                continue
            answered += 1
            if name.startswith("call"):
                said = outcome.rstrip(b"\0").decode() if isinstance(outcome, bytes) else outcome
                self.assertEqual((said, name in storm.carried_out), (name, True), about)
        self.assertGreater(answered, len(storm.calls) // 2, about)
        for process in (*storm.callers, *storm.answerers):
            calls = process.calls
            left = (calls.asking.under_way, calls.answering.under_way, calls.budget.bytes, calls.budget.count)
            self.assertEqual(left, (0, 0, 0, 0), (about, process.name))

    def test_storms(self) -> None:
        self.patch(calls_log, "warn", lambda text, **fields: None)
        for seed in range(5):
            self.check(seed)
