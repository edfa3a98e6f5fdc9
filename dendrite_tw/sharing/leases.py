"""What a component says of its leases, and the process that has all of them to itself.

A *lease* is the right to do something that one process at a time may do: write to a share of the rooms (``r0`` to
``r63``), relay the component's outbox (``relay``).  Leases are named within a component.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol

from twisted.internet.defer import Deferred, gatherResults
from twisted.python.failure import Failure

from ..database.engines import Unavailable

Gained = Callable[[str], Awaitable[None]]
Lost = Callable[[str, bool], Awaitable[None]]


class NotMine(Unavailable):
    """Another process holds the lease; nothing was stored of what was asked, so it may be asked again there."""

    def __init__(self) -> None:
        super().__init__("another process is to answer this")


class Leases(Protocol):
    """The leases of one component in this process."""

    @property
    def process(self) -> str:
        """The unique name of this process's present life; one that was taken for dead goes on under another."""

    def want(self, names: Sequence[str], gained: Gained, lost: Lost) -> None:
        """Be ready to hold leases of these names; before `start`.

        ``gained(name)`` is awaited before a lease counts as held; where it raises it is called again after a moment.
        ``lost(name, kept)`` with `kept` finishes what is under way, quickly, after which the lease is given back;
        without `kept` the lease was taken away, and what was known because of it is to be forgotten.  That may also
        happen in the middle of giving back: then `lost` is called a second time.
        """

    def holds(self, name: str) -> bool:
        """Whether this process may act on the lease now."""

    async def start(self) -> None: ...

    async def stop(self) -> None:
        """Give everything back; returns when it is done."""


class Sole:
    """`Leases` of a process that has no others beside it: holds whatever it wants from `start` to `stop`."""

    process = "sole"

    def __init__(self) -> None:
        self._wanted: dict[str, tuple[Gained, Lost]] = {}
        self._held: set[str] = set()

    def want(self, names: Sequence[str], gained: Gained, lost: Lost) -> None:
        for name in names:
            self._wanted[name] = (gained, lost)

    def holds(self, name: str) -> bool:
        return name in self._held

    async def start(self) -> None:
        for name, (gained, _) in self._wanted.items():
            await gained(name)
            self._held.add(name)

    async def stop(self) -> None:
        held, self._held = self._held, set()
        await together(self._wanted[name][1](name, True) for name in sorted(held))


async def together(works: Iterable[Awaitable[None]]) -> None:
    """Wait until all of `works` have ended; then raises the first failure, if any."""

    failures: list[Failure] = []

    async def run(work: Awaitable[None]) -> None:
        try:
            await work
        except Exception:
            failures.append(Failure())

    await gatherResults([Deferred.fromCoroutine(run(work)) for work in works])
    if failures:
        failures[0].raiseException()
