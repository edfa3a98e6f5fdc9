"""Answers that are made while they are sent: of no known length, and never held whole.

RFC 9112, "Chunked Transfer Coding".  The next piece is asked for when the client has taken the ones before, so a slow
reader costs one piece of memory; one that reads nothing for long loses its connection.  What goes wrong after the
beginning can only be told by a connection that ends early.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from zope.interface import implementer

log = Logger()

Pieces = AsyncGenerator[bytes, None]

STALLED_SECONDS = 120.0
"""How long a client may take nothing."""

CallLater = Callable[..., Any]


class Gone(Exception):
    """The client went away, or takes nothing any more."""


class Receiver(Protocol):
    """The part of a request that pieces are sent to."""

    def write(self, data: bytes, /) -> object: ...

    def registerProducer(self, producer: Any, streaming: bool, /) -> object: ...

    def unregisterProducer(self) -> object: ...

    def notifyFinish(self) -> Deferred[None]: ...


@implementer(IPushProducer)
class _Flow:
    """Says when the next piece may be made."""

    def __init__(self, call_later: CallLater) -> None:
        self._call_later = call_later
        self._paused = self._gone = False
        self.lost = False
        self._waiting: Deferred[None] | None = None

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        self._wake()

    def stopProducing(self) -> None:
        """There is nobody to send to."""
        self._gone = True
        self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(None)

    def connectionLost(self, reason: object) -> None:
        self.lost = True
        self.stopProducing()

    async def room(self) -> None:
        """Wait until there is room for a piece, and let others have a turn; `Gone` if there never will be."""
        turn: Deferred[None] = Deferred()
        self._call_later(0, turn.callback, None)
        await turn
        if self._paused and not self._gone:
            timer = self._call_later(STALLED_SECONDS, self.stopProducing)
            self._waiting = Deferred()
            await self._waiting
            if timer.active():
                timer.cancel()
        if self._gone:
            raise Gone


def send_pieces(
    pieces: Pieces,
    receiver: Receiver,
    call_later: CallLater,
    write: Callable[[bytes], object],
    end: Callable[[], object],
    abort: Callable[[], object],
) -> None:
    """Send what `pieces` yields through `write`, then call `end`; `abort` the connection where that is not possible.

    To close it in order would be to keep what was written until the client takes it, which it may never do.
    """
    flow = _Flow(call_later)
    receiver.notifyFinish().addErrback(flow.connectionLost)
    receiver.registerProducer(flow, True)
    sending = Deferred.fromCoroutine(_send(pieces, flow, write))

    def over(result: Any) -> None:
        receiver.unregisterProducer()
        end()

    def broken(failure: Any) -> None:
        if failure.check(Gone) is None:
            log.failure("an answer broke off", failure=failure)
        if not flow.lost:
            receiver.unregisterProducer()
            abort()

    sending.addCallbacks(over, broken)


async def _send(pieces: Pieces, flow: _Flow, write: Callable[[bytes], object]) -> None:
    try:
        async for piece in pieces:
            if piece:
                write(piece)
                await flow.room()
    finally:
        await pieces.aclose()


def chunk(piece: bytes) -> bytes:
    """A piece as it is sent."""
    return b"%x\r\n%b\r\n" % (len(piece), piece)


LAST_CHUNK = b"0\r\n\r\n"
