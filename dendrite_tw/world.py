"""The world outside: clock, chance, threads and network, handed in as plain arguments.

`assemble` opens a `World` and passes on only the parts that an object needs;
nothing else in the project may ask the operating system for the time or for
random bytes, so that a test can hold both in its hand.
"""

from __future__ import annotations

import os
import random
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet.interfaces import IReactorTime

if TYPE_CHECKING:
    from .web.internet import Internet

ALPHANUMERIC = string.ascii_letters + string.digits


class Clock(Protocol):
    """Wall-clock time in whole milliseconds since the epoch, as Matrix counts it."""

    def now_ms(self) -> int: ...


class Random(Protocol):
    """Where keys, tokens and shuffles take their chance from."""

    def bytes(self, count: int) -> bytes: ...

    def token(self, length: int) -> str:
        """`length` characters out of letters and digits."""

    def uniform(self, low: float, high: float) -> float: ...


@dataclass(frozen=True)
class ReactorClock:
    """Milliseconds of a reactor or of a `twisted.internet.task.Clock`."""

    time: IReactorTime

    def now_ms(self) -> int:
        return int(self.time.seconds() * 1000)


class SystemRandom:
    """The operating system's randomness."""

    def __init__(self) -> None:
        self._random = random.SystemRandom()

    def bytes(self, count: int) -> bytes:
        return os.urandom(count)

    def token(self, length: int) -> str:
        return "".join(self._random.choices(ALPHANUMERIC, k=length))

    def uniform(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)


class SeededRandom:
    """Repeatable chance for tests and simulations; never for a server that people use."""

    def __init__(self, seed: int | str) -> None:
        self._random = random.Random(seed)  # noqa: S311

    def bytes(self, count: int) -> bytes:
        return self._random.randbytes(count)

    def token(self, length: int) -> str:
        return "".join(self._random.choices(ALPHANUMERIC, k=length))

    def uniform(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)


@dataclass(frozen=True)
class World:
    """Everything that a server takes from outside itself.

    ``time`` schedules (`callLater`, `seconds`); ``clock`` gives Matrix
    timestamps; ``threads`` says how blocking work leaves the reactor:
    `None` runs it inline, which tests use.  ``internet`` is where connections
    to others come from; `None` is a world without others.  ``tcp`` (`IReactorTCP`)
    connects to a NATS server, and listens for the clients of the built-in queue.
    """

    time: IReactorTime
    clock: Clock
    random: Random
    threads: ThreadRunner | None
    internet: Internet | None = None
    tcp: Any = None


class ThreadRunner(Protocol):
    """The two ways between the reactor thread and the others."""

    def call_in_thread(self, function: Callable[..., Any], *args: Any) -> None: ...

    def call_from_thread(self, function: Callable[..., Any], *args: Any) -> None: ...


class ReactorThreads:
    """`ThreadRunner` over a reactor's own pool."""

    def __init__(self, reactor: Any) -> None:
        self.call_in_thread = reactor.callInThread
        self.call_from_thread = reactor.callFromThread


def system_world(reactor: Any) -> World:
    """The real world, for `tap` and the commands."""
    from .web.internet import SystemInternet

    clock = ReactorClock(reactor)
    return World(reactor, clock, SystemRandom(), ReactorThreads(reactor), SystemInternet(reactor, clock), reactor)


def test_world(time: IReactorTime, seed: int | str = 0, internet: Internet | None = None, tcp: Any = None) -> World:
    """A world that stands still: inline threads, a clock of the test's, chance from a seed."""
    return World(time, ReactorClock(time), SeededRandom(seed), None, internet, tcp)
