"""Calls between processes over NATS: a method of an interface is a request, its result the reply.

What anybody may answer is asked on ``Call.{Interface}.{method}``, what only the holder of a share may on
``Call.{Interface}.{method}.{share}``; whoever serves an interface is in one queue group with the others, so one of
them gets each call.  What can be answered in this process is called directly.

A call that certainly nobody has carried out (nobody was there, it went to a process that had just given its share
away, it was not sent as a whole) is tried again for `RETRY_SECONDS`; where it may have been, only a question is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from ..jetstream.client import QueueClient
from ..sharing.leases import NotMine
from ..sharing.shares import share_of
from .answering import Answering
from .calling import TICK_SECONDS, Asking
from .codec import RESULT, InterfaceCodec, codec_of
from .errors import CallFailed, Lost, NotTaken, Unanswered
from .frames import Budget
from .handle import Method, Transport
from .routing import key_of, routing_of

__all__ = ["CallFailed", "Calls", "Holds", "Unanswered"]

RETRY_SECONDS: Final = 8.0
DRAIN_SECONDS: Final = 20.0
PAUSES: Final = (0.02, 0.05, 0.1, 0.25)
"""Seconds between attempts; the last one is repeated."""

Holds = Callable[[str, int], bool]
"""Whether this process holds a share of an interface: its name, and the share."""

log = Logger()


class Calls:
    """What a process asks others and answers them; one for each process."""

    def __init__(self, client: QueueClient, time: IReactorTime, holds: Holds) -> None:
        self.budget = Budget()
        self.client = client
        self.counts: Counter[tuple[str, ...]] = Counter()
        """Calls of other processes by method and outcome: ``answered`` (also with a refusal), ``again`` for each
        further attempt, ``unanswered``.
        """
        self.draining = False
        """Whether this process takes no more calls, those of its own components among them if others can."""
        self.asking = Asking(client, self.budget, self._begun)
        self.answering = Answering(client, self.budget, holds, self._begun)
        self._time = time
        self._ticking: IDelayedCall | None = None

    # --- the caller's side ---

    def transport(self, interface: type, local: object | None) -> Transport:
        """Carries the calls of an interface: to ``local`` where that may answer, else to other processes."""
        return _Calling(self, self._time, local)

    def codec(self, interface: type) -> InterfaceCodec:
        return codec_of(interface)

    # --- the answerer's side ---

    def serve(self, interface: type, target: object) -> None:
        """Answer what any process may answer."""
        self.answering.serve(self.codec(interface), target, None)

    def serve_share(self, interface: type, target: object, share: int) -> None:
        """Answer what only the holder of a share may."""
        self.answering.serve(self.codec(interface), target, share)

    def withdraw_share(self, interface: type, share: int) -> Deferred[None]:
        """Take no more calls of a share; fires when those of other processes that are under way are done."""
        return self.answering.withdraw(interface.__name__, share)

    async def drain(self, seconds: float = DRAIN_SECONDS) -> None:
        """Take no more calls; returns when those of other processes that are under way are done, or the time is up."""
        self.draining = True
        drained = Deferred.fromCoroutine(self.answering.drain())
        timer = self._time.callLater(seconds, drained.cancel)
        try:
            await drained
        except CancelledError:
            log.warn("{count} calls of other processes are given up", count=self.answering.under_way)
        finally:
            if timer.active():
                timer.cancel()

    def stop(self) -> None:
        """Let time pass without this; what is under way is not answered any more."""
        if self._ticking is not None and self._ticking.active():
            self._ticking.cancel()
        self._ticking = None

    # --- time ---

    def _begun(self) -> None:
        if self._ticking is None:
            self._ticking = self._time.callLater(TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        self._ticking = None
        self.asking.tick()
        self.answering.tick()
        if self.asking.under_way or self.answering.under_way:
            self._begun()


class _Route:
    """How a method is called that is not, or not always, answered here."""

    __slots__ = ("again", "answered", "codec", "label", "local", "repeat", "subject", "unanswered")

    def __init__(self, calls: Calls, interface: type, name: str, local: object | None) -> None:
        self.label = interface.__name__
        self.answered, self.again, self.unanswered = (
            (f"{self.label}.{name}", outcome) for outcome in ("answered", "again", "unanswered")
        )
        self.subject = calls.client.subject("Call", f"{self.label}.{name}")
        self.codec = calls.codec(interface).methods[name]
        self.repeat = routing_of(interface, name).repeat
        self.local = None if local is None else cast(Method, getattr(local, name))


class _Calling:
    """The transport of one interface."""

    def __init__(self, calls: Calls, time: IReactorTime, local: object | None) -> None:
        self._calls = calls
        self._time = time
        self._local = local

    def method(self, interface: type, name: str) -> Method:
        route = _Route(self._calls, interface, name, self._local)
        return self._by_share(route, interface, name) if routing_of(interface, name).share else self._by_anybody(route)

    def _by_anybody(self, route: _Route) -> Method:
        calls, local = self._calls, route.local

        def call(*args: Any, **kwargs: Any) -> Awaitable[Any]:
            if local is not None and not calls.draining:
                return local(*args, **kwargs)
            return self._ask(route, None, args, kwargs)

        return call

    def _by_share(self, route: _Route, interface: type, name: str) -> Method:
        serves, local, label, key = self._calls.answering.serves, route.local, route.label, key_of(interface, name)

        def call(*args: Any, **kwargs: Any) -> Awaitable[Any]:
            share = share_of(key(args, kwargs))
            if local is not None and serves(label, share):
                return self._here(route, share, args, kwargs)
            return self._ask(route, share, args, kwargs)

        return call

    async def _here(self, route: _Route, share: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call what is held here, and follow it if it is given away meanwhile."""
        assert route.local is not None
        try:
            return await route.local(*args, **kwargs)
        except NotMine:
            return await self._ask(route, share, args, kwargs)

    async def _ask(self, route: _Route, share: int | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Ask other processes, until there is an answer or no point in asking."""
        asking, counts = self._calls.asking, self._calls.counts
        subject = route.subject if share is None else f"{route.subject}.{share}"
        request = RESULT + route.codec.encode_arguments(args, kwargs)
        until = self._time.seconds() + RETRY_SECONDS
        attempt = 0
        while True:
            try:
                answer = await asking.ask(subject, request)
                counts[route.answered] += 1
                return route.codec.decode_result(answer)
            except NotTaken as error:
                reason = str(error)
                if route.local is not None and (share is None or self._calls.answering.serves(route.label, share)):
                    try:
                        return await route.local(*args, **kwargs)
                    except NotMine as refused:
                        reason = str(refused)
            except Lost as error:
                reason = str(error)
                if not route.repeat:
                    until = 0.0
            if self._time.seconds() >= until:
                counts[route.unanswered] += 1
                log.warn("{subject} was not answered: {reason}", subject=subject, reason=reason)
                raise Unanswered(reason)
            await self._pause(PAUSES[min(attempt, len(PAUSES) - 1)])
            attempt += 1
            counts[route.again] += 1

    def _pause(self, seconds: float) -> Deferred[None]:
        pause: Deferred[None] = Deferred(lambda _: timer.cancel())
        timer = self._time.callLater(seconds, pause.callback, None)
        return pause
