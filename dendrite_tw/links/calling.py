"""The caller's side: calls to other processes that are under way, and what becomes of them.

An answerer that takes long gives signs of life; a call that has had none for `MISSES` ticks is given up, so a process
that is killed costs its callers seconds.  Of a call that failed it matters whether anybody may have carried it out
(`Lost`) or certainly nobody has (`NotTaken`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from ..jetstream import wire
from ..jetstream.client import QueueClient
from ..jetstream.wire import Msg
from ..matrix.errors import too_large
from .codec import ERROR, RESULT
from .errors import CallFailed, Lost, NotTaken
from .frames import (
    FAILED,
    MAX_BYTES,
    MORE,
    NOT_MINE,
    OVERHEAD,
    PART,
    PART_BYTES,
    STOP,
    WORKING,
    BrokenFrameError,
    Budget,
    Incoming,
    Outgoing,
)

TICK_SECONDS: Final = 0.5
MISSES: Final = 8
"""Ticks without a sign of life after which the other side is taken for dead.

Ticks are counted and not seconds: what piles up while this process itself stands still is looked at first.
"""


class Call(Deferred[bytes]):
    """A call under way, which promises the answer's bytes."""

    def __init__(self, canceller: Callable[[Deferred[bytes]], None], number: str, outgoing: Outgoing | None) -> None:
        super().__init__(canceller)
        self.number = number
        self.outgoing = outgoing
        self.incoming: Incoming | None = None
        self.address = ""
        """Where the one who answers is reached, once that is known."""
        self.misses = 0

    def ended(self, reason: str) -> Exception:
        """What a call comes to that ends now: a request that was not sent as a whole cannot have been carried out."""
        sent = self.outgoing is None or self.outgoing.is_sent
        return Lost(reason) if sent else NotTaken(reason)


class Asking:
    """Sends requests and awaits their answers; ``begun`` is called when there is a call that needs ticks."""

    def __init__(self, client: QueueClient, budget: Budget, begun: Callable[[], None]) -> None:
        self._client = client
        self._budget = budget
        self._begun = begun
        self._calls: dict[str, Call] = {}
        self._next = 0
        self._prefix = f"{client.inbox}.call."
        client.subscribe(f"{self._prefix}*", self._heard)
        client.on_lost.append(self._connection_lost)

    @property
    def under_way(self) -> int:
        return len(self._calls)

    def ask(self, subject: str, request: bytes) -> Deferred[bytes]:
        """Ask once; fails with `NotTaken`, `Lost`, `CallFailed`, or 413 for a request that is too large."""
        client = self._client
        limit = min(client.max_payload, PART_BYTES)
        outgoing = None
        if len(request) > limit:
            if len(request) > MAX_BYTES:
                return fail(too_large("The request is too large to be passed on within the server."))
            outgoing = Outgoing(request, limit - OVERHEAD)
            request = outgoing.next_part()
        self._next += 1
        number = str(self._next)
        if not client.tell(subject, request, reply=self._prefix + number):
            return fail(NotTaken("there is no connection to the queue"))
        call = self._calls[number] = Call(self._cancelled, number, outgoing)
        self._begun()
        return call

    def tick(self) -> None:
        """Give up calls of which nothing was heard for too long."""
        for call in tuple(self._calls.values()):
            call.misses += 1
            if call.misses >= MISSES:
                self._stop(call.address)
                self._fail(call, call.ended("there was no sign of life"))

    def _heard(self, op: Msg) -> None:
        call = self._calls.get(op.subject[len(self._prefix) :])
        kind = op.payload[:1]
        if call is None:
            if kind in (WORKING, MORE, PART):
                self._stop(op.reply)
        elif kind in (RESULT, ERROR):
            del self._calls[call.number]
            call.callback(op.payload)
        else:
            call.misses = 0
            try:
                self._heard_other(call, kind, op)
            except BrokenFrameError as error:
                self._stop(op.reply)
                self._fail(call, call.ended(str(error)))

    def _heard_other(self, call: Call, kind: bytes, op: Msg) -> None:
        if kind == WORKING:
            call.address = op.reply
        elif kind == PART:
            self._take_part(call, op)
        elif kind == MORE and call.outgoing is not None:
            call.address = op.reply
            call.outgoing.acknowledge(op.payload)
            call.outgoing.fill(lambda part: self._send(call, part))
        elif kind == NOT_MINE:
            self._fail(call, NotTaken("it is being handed over"))
        elif kind == FAILED:
            self._fail(call, CallFailed(op.payload[1:].decode("utf-8", "replace")))
        elif not kind and wire.decode_status(op.headers)[0] == 503:
            incomplete = call.outgoing is not None and not call.outgoing.is_received
            gone = call.address and not incomplete
            self._fail(call, Lost("who answered is gone") if gone else NotTaken("nobody is there"))
        else:
            raise BrokenFrameError("it said what makes no sense")

    def _take_part(self, call: Call, op: Msg) -> None:
        if call.incoming is None:
            call.incoming = Incoming(self._budget)
        call.address = op.reply
        complete = call.incoming.add(op.payload)
        self._send(call, call.incoming.acknowledgement())
        if complete:
            message = call.incoming.message()
            if message[:1] not in (RESULT, ERROR):
                raise BrokenFrameError("it said what makes no sense")
            self._forget(call)
            call.callback(message)

    def _send(self, call: Call, frame: bytes) -> None:
        self._client.tell(call.address, frame, reply=self._prefix + call.number)

    def _stop(self, address: str) -> None:
        if address:
            self._client.tell(address, STOP)

    def _cancelled(self, call: Deferred[bytes]) -> None:
        """Whoever waited goes away: so may the one who answers, now or at its next sign of life."""
        assert isinstance(call, Call)
        self._forget(call)
        self._stop(call.address)

    def _connection_lost(self) -> None:
        for call in tuple(self._calls.values()):
            self._fail(call, call.ended("the connection to the queue was lost"))

    def _forget(self, call: Call) -> None:
        self._calls.pop(call.number, None)
        if call.incoming is not None:
            call.incoming.close()

    def _fail(self, call: Call, reason: Exception) -> None:
        self._forget(call)
        call.errback(Failure(reason))
