"""``python -m bench.calls``: what a call between two of our processes costs, over a real nats-server.

One process asks, another answers, a third is the broker.  The figures are microseconds of processor time of each of
them for one call, asked one after the other and many at a time: a small question (two texts, answered with a record),
one whose answer has 100 KB, and a request of 1 MB, which goes in parts.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import msgspec
from twisted.internet.defer import Deferred

from bench.processes import ServerProcess, processor_seconds
from bench.queue import REAL, Broker, programs
from dendrite_tw.jetstream.remote import RemoteQueue
from dendrite_tw.links.handle import handle
from dendrite_tw.links.nats import Calls
from dendrite_tw.links.routing import routed

SECONDS = 3.0
WARM_UP = 300


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """About as much as most calls are answered with."""

    room_id: str
    user_id: str
    membership: str
    event_id: str
    sender: str
    position: int
    forgotten: bool = False


class ProbeAPI(Protocol):
    """What is asked."""

    @routed(repeat=True)
    async def small(self, room_id: str, user_id: str) -> Answer: ...

    @routed(repeat=True)
    async def large(self, size: int) -> bytes: ...

    async def take(self, data: bytes) -> int: ...


class Probe:
    """Answers at once, from memory."""

    def __init__(self) -> None:
        self._large = bytes(100_000)

    async def small(self, room_id: str, user_id: str) -> Answer:
        return Answer(
            room_id=room_id,
            user_id=user_id,
            membership="join",
            event_id=f"${room_id}",
            sender=user_id,
            position=123_456,
        )

    async def large(self, size: int) -> bytes:
        return self._large

    async def take(self, data: bytes) -> int:
        return len(data)


Shape = Callable[[Any], Awaitable[Any]]

SHAPES: dict[str, Shape] = {
    "small": lambda probe: probe.small("!abcdefghijklmnop:example.org", "@somebody:example.org"),
    "100 KB back": lambda probe: probe.large(100_000),
    "1 MB there": lambda probe: probe.take(bytes(1_000_000)),
}


class Asker:
    """Asks for a while, with so many calls under way."""

    def __init__(self, reactor: Any, probe: Any) -> None:
        self._reactor = reactor
        self._probe = probe

    async def ask(self, shape: Shape, calls: int) -> None:
        for _ in range(calls):
            await shape(self._probe)

    async def ask_for(self, shape: Shape, seconds: float) -> int:
        done, end = 0, time.monotonic() + seconds
        while time.monotonic() < end:
            await shape(self._probe)
            done += 1
        return done

    async def measure(self, shape: Shape, at_a_time: int, seconds: float, pids: list[int]) -> tuple[int, list[float]]:
        """How many calls there were, and the processor time of each process."""
        await self.ask(shape, WARM_UP if shape is SHAPES["small"] else 20)
        before = [processor_seconds(pid) for pid in pids]
        asking = [Deferred.fromCoroutine(self.ask_for(shape, seconds)) for _ in range(at_a_time)]
        done = sum([await one for one in asking])
        return done, [processor_seconds(pid) - start for pid, start in zip(pids, before, strict=True)]


async def joined(reactor: Any, port: int, name: str) -> tuple[RemoteQueue, Calls]:
    """This process, at the broker."""
    queue = RemoteQueue(reactor, [f"nats://127.0.0.1:{port}"], inbox=f"_INBOX.{name}", chance=lambda: 0.5)
    calls = Calls(queue.client, reactor, lambda interface, share: False)
    ready: Deferred[None] = Deferred()
    queue.client.on_connected.append(lambda: ready.callback(None))
    await queue.start()
    await ready
    return queue, calls


async def answer(reactor: Any, port: int) -> None:
    """Be the process that answers, until killed."""
    _, calls = await joined(reactor, port, "answers")
    calls.serve(ProbeAPI, Probe())
    await Deferred()


async def compare(reactor: Any, port: int, seconds: float, others: list[int], profile: str) -> None:
    queue, calls = await joined(reactor, port, "asks")
    asker = Asker(reactor, handle(ProbeAPI, calls.transport(ProbeAPI, None)))
    pids = [os.getpid(), *others]
    print(f"{'call':12} {'under way':>9} {'a second':>9} {'asks':>8} {'answers':>8} {'broker':>8}  µs of CPU a call")
    profiler = cProfile.Profile()
    for name, shape in SHAPES.items():
        for at_a_time in (1, 64) if name != "1 MB there" else (1, 8):
            if name == profile:
                profiler.enable()
            began = time.monotonic()
            done, used = await asker.measure(shape, at_a_time, seconds, pids)
            passed = time.monotonic() - began
            profiler.disable()
            each = " ".join(f"{cpu / done * 1e6:8.1f}" for cpu in used)
            print(f"{name:12} {at_a_time:9} {done / passed:9.0f} {each}", flush=True)
    if profile:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(28)
    calls.stop()
    await queue.stop()


async def run(reactor: Any, options: argparse.Namespace) -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="calls-")))
        broker = stack.enter_context(Broker(programs()[REAL], folder / "broker", None))
        answers = stack.enter_context(
            ServerProcess(
                [sys.executable, "-m", "bench.calls", "--answer", str(broker.port)],
                folder=Path(__file__).parent.parent,
                log=folder / "answers.log",
                environment=os.environ,
                on_cores=None,
            )
        )
        await compare(reactor, broker.port, options.seconds, [answers.pid, broker.process.pid], options.profile)


def main() -> None:
    from twisted.internet.task import react

    parser = argparse.ArgumentParser(prog="python -m bench.calls", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for each figure")
    parser.add_argument("--profile", default="", choices=["", *SHAPES], help="show where the asking process spends it")
    parser.add_argument("--answer", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.answer:
        react(lambda reactor: Deferred.fromCoroutine(answer(reactor, options.answer)))
    react(lambda reactor: Deferred.fromCoroutine(run(reactor, options)))


if __name__ == "__main__":
    main()
