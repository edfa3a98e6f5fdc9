"""Connections between two processes over the broker: bytes in both directions, with bounded memory.

A process *opens* one by a message to all who serve something, of whom one takes it.  From then on each end sends to a
subject of the other's.  An end has at most `WINDOW` bytes under way that the other did not say it has taken; what is
beyond that waits with whoever makes it.

Nobody tells of a process that was killed.  Each process therefore says every `BEAT_SECONDS` that it lives, once for
all its connections, and one that is not heard of for `DEAD_SECONDS` has lost all of them.  It says as well how often it
has lost the broker, for what was on its way then never arrived.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from ..jetstream import wire
from ..jetstream.client import Handle, QueueClient
from ..jetstream.wire import Msg
from ..links.echoes import Echoes

PIECE: Final = 64 * 1024
"""Bytes of a message; every broker takes as many."""
WINDOW: Final = 4 * PIECE
BEAT_SECONDS: Final = 2.0
DEAD_SECONDS: Final = 7.0
TAKE_SECONDS: Final = 3.0
"""How long it may take until somebody has taken a connection."""

NOBODY: Final = "nobody serves this at the moment"
GONE: Final = "the process that served this is gone"

DATA: Final = b"D"
TAKEN: Final = b"T"
"""The first message back: who has taken the connection."""
WENT: Final = b"W"
"""So many bytes were taken in all."""
END: Final = b"E"
"""All was sent, and there is nothing wrong."""
CLOSE: Final = b"C"
"""All was sent, and the connection behind this is to be closed."""
ABORT: Final = b"A"

log = Logger()


class Opening(msgspec.Struct, frozen=True, array_like=True):
    """What a connection begins with: who opens it, for whom, and the first bytes."""

    process: str
    epoch: int
    host: str
    port: int
    data: bytes


class Taking(msgspec.Struct, frozen=True, array_like=True):
    """Who has taken a connection, and where to send to."""

    process: str
    epoch: int
    subject: str


_OPENING: Final = msgspec.msgpack.Decoder(Opening)
_TAKING: Final = msgspec.msgpack.Decoder(Taking)


class Receiver(Protocol):
    """What stands behind an end."""

    def received(self, data: bytes) -> None:
        """Bytes came; `End.went` is to be told when they have gone on."""

    def pause(self) -> None:
        """Make no more to be sent: the other side does not keep up."""

    def resume(self) -> None: ...

    def ended(self, close: bool) -> None:
        """The other side has sent all; with `close` the connection behind it is over."""

    def broken(self, reason: str) -> None:
        """The connection is lost; some of what was sent may not have arrived."""


class End:
    """One end of a connection."""

    def __init__(self, tunnels: Tunnels, name: str, peer: str, epoch: int, subject: str) -> None:
        self.receiver: Receiver
        self.peer = peer
        self.epoch = epoch
        self.name = name
        self._tunnels = tunnels
        self._subject = subject
        self._waiting: deque[bytes] = deque()
        self._sent = self._acknowledged = 0
        self._received = self._told = 0
        self._paused = False
        self._last = b""
        self.over = False
        self.opened = tunnels.now()

    @property
    def is_taken(self) -> bool:
        return bool(self._subject)

    # --- sending ---

    def send(self, data: bytes) -> None:
        """Have bytes sent, as soon as there is room."""
        if not data or self._last or (self.over and self._subject):
            return
        if len(data) <= PIECE:
            self._waiting.append(data)
        else:
            view = memoryview(data)
            self._waiting.extend(bytes(view[at : at + PIECE]) for at in range(0, len(data), PIECE))
        self._flush()

    def finish(self, close: bool = False) -> None:
        """Nothing more will be sent, and nothing that comes is of interest any more."""
        if not self._last:
            self._last = CLOSE if close else END
            self._flush()

    def _flush(self) -> None:
        if not self._subject or self.over:
            self._hold(sum(map(len, self._waiting)) >= WINDOW)
            return
        while self._waiting and self._sent - self._acknowledged < WINDOW:
            piece = self._waiting.popleft()
            self._sent += len(piece)
            self._tell(DATA + piece)
        self._hold(bool(self._waiting))
        if self._last and not self._waiting:
            self._tell(self._last)
            self._tunnels.forget(self)

    def _hold(self, hold: bool) -> None:
        if hold != self._paused:
            self._paused = hold
            if hold:
                self.receiver.pause()
            else:
                self.receiver.resume()

    def untaken(self) -> list[bytes]:
        """What was to be sent, if nobody has taken the connection."""
        return [] if self._subject else list(self._waiting)

    def abort(self) -> None:
        """Give up; the other side is told."""
        if not self.over:
            if self._subject:
                self._tell(ABORT)
            self._tunnels.forget(self)

    def _tell(self, message: bytes) -> None:
        self._tunnels.client.tell(self._subject, message)

    # --- receiving ---

    def went(self, count: int) -> None:
        """Bytes that were received have gone on."""
        self._received += count
        if self._received - self._told >= WINDOW // 4 and self._subject and not self.over:
            self._told = self._received
            self._tell(WENT + b"%d" % self._received)

    def hear(self, op: Msg) -> None:
        """A message of the other end."""
        if self.over:
            return
        kind, body = op.payload[:1], op.payload[1:]
        if kind == DATA:
            self.receiver.received(body)
        elif kind == WENT:
            self._acknowledged = max(self._acknowledged, int(body))
            self._flush()
        elif kind == TAKEN and not self._subject:
            taking = _TAKING.decode(body)
            self.peer, self.epoch, self._subject = taking.process, taking.epoch, taking.subject
            self._tunnels.met(taking.process)
            self._flush()
        elif kind in (END, CLOSE):
            self._tunnels.forget(self)
            self.receiver.ended(kind == CLOSE)
        elif kind == ABORT:
            self.fail("the other side gave up")
        elif op.headers and wire.decode_status(op.headers)[0] == 503:
            self.fail(NOBODY)

    def fail(self, reason: str) -> None:
        if not self.over:
            self._tunnels.forget(self)
            self.receiver.broken(reason)


Accept = Callable[[End, Opening], Receiver]


class Tunnels:
    """The connections of a process, and which of the others live."""

    def __init__(self, client: QueueClient, time: IReactorTime, echoes: Echoes, process: str) -> None:
        self.client = client
        self._time = time
        self._echoes = echoes
        self._process = process
        self._epoch = 0
        self._ends: dict[str, End] = {}
        self._heard: dict[str, float] = {}
        self._served: list[Handle] = []
        self._beat: IDelayedCall | None = None
        self._base = f"{client.inbox}.web"
        client.subscribe(f"{self._base}.*", self._arrived)
        client.on_lost.append(self._lost)
        echoes.hear("alive", self._alive)

    # --- opening and taking ---

    def open(self, component: str, host: str, port: int, data: bytes, receiver: Receiver) -> End:
        """Begin a connection to whoever serves a component; `Receiver.broken` says if nobody does."""
        end = self._new("", 0, "")
        end.receiver = receiver
        opening = Opening(self._process, self._epoch, host, port, data)
        told = self.client.tell(
            self._subject(component), msgspec.msgpack.encode(opening), reply=f"{self._base}.{end.name}"
        )
        if not told:
            self._time.callLater(0, end.fail, NOBODY)
        return end

    def now(self) -> float:
        return self._time.seconds()

    def serve(self, component: str, accept: Accept) -> None:
        """Take connections that are opened to a component."""

        def take(op: Msg) -> None:
            opening = _OPENING.decode(op.payload)
            end = self._new(opening.process, opening.epoch, op.reply)
            self.met(opening.process)
            taking = Taking(self._process, self._epoch, f"{self._base}.{end.name}")
            self.client.tell(op.reply, TAKEN + msgspec.msgpack.encode(taking))
            end.receiver = accept(end, opening)

        self._served.append(self.client.subscribe(self._subject(component), take, component))

    async def withdraw(self) -> None:
        """Take no more; returns when those that were on their way are here."""
        served, self._served = self._served, []
        leaving: list[Deferred[None]] = [self.client.leave(handle) for handle in served]
        for left in leaving:
            await left

    def _subject(self, component: str) -> str:
        return self.client.subject("Call", f"Web.{component}")

    def _new(self, peer: str, epoch: int, subject: str) -> End:
        end = End(self, str(self.client.next_number()), peer, epoch, subject)
        self._ends[end.name] = end
        if self._beat is None:
            self._beat = self._time.callLater(BEAT_SECONDS, self._live)
        return end

    def forget(self, end: End) -> None:
        end.over = True
        self._ends.pop(end.name, None)

    def _arrived(self, op: Msg) -> None:
        end = self._ends.get(op.subject[len(self._base) + 1 :])
        if end is not None:
            end.hear(op)

    # --- who lives ---

    def met(self, process: str) -> None:
        """A process has just given a sign of life."""
        self._heard[process] = self._time.seconds()

    def _live(self) -> None:
        """Say that this process lives, and look who of the others does not."""
        self._beat = None
        self._echoes.tell("alive", f"{self._process} {self._epoch}".encode())
        now = self._time.seconds()
        late = now - DEAD_SECONDS
        for end in list(self._ends.values()):
            if end.is_taken:
                is_lost = end.peer != self._process and self._heard.get(end.peer, 0.0) < late
            else:
                is_lost = end.opened <= now - TAKE_SECONDS
            if is_lost:
                end.fail(GONE)
        self._heard = {process: when for process, when in self._heard.items() if when >= late}
        if self._ends and self._beat is None:
            self._beat = self._time.callLater(BEAT_SECONDS, self._live)

    def _alive(self, payload: bytes) -> None:
        process, _, epoch = payload.decode().partition(" ")
        self.met(process)
        for end in [end for end in self._ends.values() if end.peer == process and end.epoch != int(epoch)]:
            end.fail("the process that served this had lost the broker")

    def _lost(self) -> None:
        self._epoch += 1
        for end in list(self._ends.values()):
            end.fail("the broker was lost")

    def stop(self) -> None:
        for end in list(self._ends.values()):
            end.abort()
        if self._beat is not None and self._beat.active():
            self._beat.cancel()
        self._beat = None
