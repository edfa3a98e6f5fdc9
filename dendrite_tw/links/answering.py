"""The answerer's side: what this process serves, and the calls that it is at work on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from ..jetstream.client import Handle, QueueClient
from ..jetstream.wire import Msg
from ..matrix.errors import MALFORMED, MatrixError
from ..sharing.leases import NotMine
from .calling import MISSES
from .codec import RESULT, InterfaceCodec, MethodCodec
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
from .routing import routing_of

MAX_JOBS: Final = 20_000
"""Calls that a process is at work on at a time; the rest is for others."""
SIGN_TICKS: Final = 2
"""Ticks between two signs of life."""
MAX_UNSENT: Final = 1000
"""Answers that are kept while there is no connection to send them on, and the size of each."""
MAX_UNSENT_BYTES: Final = 16 * 1024
MAX_COMPLAINTS: Final = 100

log = Logger()


class Method:
    """A method that is served."""

    __slots__ = ("call", "codec", "name", "repeat")

    def __init__(self, interface: type, name: str, codec: MethodCodec, target: object) -> None:
        self.name = f"{interface.__name__}.{name}"
        self.codec = codec
        self.repeat = routing_of(interface, name).repeat
        self.call: Callable[..., Awaitable[Any]] = getattr(target, name)


class Served:
    """An interface that is served: to all, or one of its shares."""

    def __init__(self, codec: InterfaceCodec, target: object, share: int | None) -> None:
        self.label = codec.interface.__name__
        self.share = share
        self.withdrawn = False
        self.handle: Handle | None = None
        self.methods = {
            name: Method(codec.interface, name, method, target)
            for name, method in codec.methods.items()
            if bool(routing_of(codec.interface, name).share) == (share is not None)
        }

    @property
    def pattern(self) -> str:
        return f"{self.label}.*" if self.share is None else f"{self.label}.*.{self.share}"


class Job:
    """A call that this process is at work on."""

    __slots__ = ("incoming", "is_stopped", "method", "number", "outgoing", "reply", "served", "ticks", "work")

    def __init__(self, number: int, reply: str, served: Served, method: Method) -> None:
        self.number = number
        self.reply = reply
        self.served = served
        self.method = method
        self.incoming: Incoming | None = None
        """The request, while it is being put together."""
        self.outgoing: Outgoing | None = None
        """The answer, while it is on its way in parts."""
        self.work: Deferred[None] | None = None
        self.ticks = 0
        """Since the work began, or since the caller was heard of where it is the caller's turn."""
        self.is_stopped = False
        """Whether nobody waits for the answer."""


class Answering:
    """Takes calls, has them carried out, and sends what comes of them.

    ``holds`` says whether this process still has a share; ``begun`` is called when there is a job that needs ticks.
    """

    def __init__(
        self, client: QueueClient, budget: Budget, holds: Callable[[str, int], bool], begun: Callable[[], None]
    ) -> None:
        self._client = client
        self._budget = budget
        self._holds = holds
        self._begun = begun
        self._served: list[Served] = []
        self._shares: dict[tuple[str, int], Served] = {}
        self._jobs: dict[int, Job] = {}
        self._next = 0
        self._waiting: list[tuple[Served | None, Deferred[None]]] = []
        self._unsent: list[tuple[str, bytes]] = []
        """Answers that were ready while the connection was lost; for whom they come too late, does not hear them."""
        self._complaints: set[str] = set()
        self._calls = client.subject("Call") + "."
        self._prefix = f"{client.inbox}.job."
        client.subscribe(f"{self._prefix}*", self._heard)
        client.on_connected.append(self._connected)
        client.on_lost.append(self._connection_lost)

    @property
    def under_way(self) -> int:
        return len(self._jobs)

    # --- what is served ---

    def serve(self, codec: InterfaceCodec, target: object, share: int | None) -> None:
        served = Served(codec, target, share)
        if share is not None:
            self.withdraw(served.label, share)
        subject = self._calls + served.pattern
        at = len(self._calls) + len(served.label) + 1
        end = None if share is None else -len(str(share)) - 1
        served.handle = self._client.subscribe(
            subject, lambda op: self._asked(served, op.subject[at:end], op), served.label
        )
        if share is None:
            self._served.append(served)
        else:
            self._shares[served.label, share] = served

    def serves(self, label: str, share: int) -> bool:
        """Whether this process answers for a share, and still has it."""
        return (label, share) in self._shares and self._holds(label, share)

    def withdraw(self, label: str, share: int) -> Deferred[None]:
        """Take no more calls of a share; fires when those under way are done."""
        served = self._shares.pop((label, share), None)
        return succeed(None) if served is None else self._withdraw(served)

    async def drain(self) -> None:
        """Take no more calls that others may answer as well; returns when those under way are done.

        Shares are withdrawn one by one, when they are given to somebody else.
        """
        served, self._served = self._served, []
        for leaving in [self._withdraw(each) for each in served]:
            await leaving

    def _withdraw(self, served: Served) -> Deferred[None]:
        served.withdrawn = True
        assert served.handle is not None
        left = self._client.leave(served.handle)
        return left.addErrback(lambda failure: None).addCallback(lambda _: self._idle(served))

    def _idle(self, served: Served | None) -> Deferred[None]:
        """Fires when nothing (of what is served so) is under way."""
        idle: Deferred[None] = Deferred()
        self._waiting.append((served, idle))
        self._check_idle()
        return idle

    def _check_idle(self) -> None:
        waiting, self._waiting = self._waiting, []
        ready = []
        for served, idle in waiting:
            if any(served is None or job.served is served for job in self._jobs.values()):
                self._waiting.append((served, idle))
            else:
                ready.append(idle)
        for idle in ready:
            idle.callback(None)

    # --- calls ---

    def _asked(self, served: Served, name: str, op: Msg) -> None:
        method = served.methods.get(name)
        if not op.reply.startswith("_INBOX."):
            self._complain(f"a message on {op.subject[:200]} has nowhere to be answered to")
        elif method is None:
            self._complain(f"{served.label} has no method {name[:100]}")
            self._client.tell(op.reply, NOT_MINE)
        elif len(self._jobs) >= MAX_JOBS or not self._may_answer(served):
            self._client.tell(op.reply, NOT_MINE)
        else:
            self._next += 1
            job = self._jobs[self._next] = Job(self._next, op.reply, served, method)
            self._begun()
            if op.payload[:1] == RESULT:
                self._begin(job, op.payload)
            else:
                self._heard_of(job, op)

    def _may_answer(self, served: Served) -> bool:
        """A share that is gone must not be written to; what anybody may answer is answered to the last."""
        return served.share is None or (not served.withdrawn and self._holds(served.label, served.share))

    def _begin(self, job: Job, request: bytes) -> None:
        """Carry a call out whose request is whole."""
        try:
            args = job.method.codec.decode_arguments(memoryview(request)[1:])
        except MALFORMED:
            self._complain(f"a request for {job.method.name} cannot be understood")
            self._answer(job, FAILED + b"the request cannot be understood")
            return
        job.work = Deferred.fromCoroutine(self._work(job, args))

    async def _work(self, job: Job, args: tuple[Any, ...]) -> None:
        codec = job.method.codec
        try:
            message = codec.encode_result(await job.method.call(*args))
        except NotMine:
            message = NOT_MINE
        except MatrixError as error:
            message = codec.encode_error(error)
        except Exception:
            if job.is_stopped:
                message = b""
            else:
                log.failure("{name} failed", name=job.method.name)
                message = FAILED + f"{job.method.name} failed, which is logged there".encode()
        if len(message) > MAX_BYTES:
            log.error("The answer of {name} is too large: {size} bytes", name=job.method.name, size=len(message))
            message = FAILED + f"the answer of {job.method.name} is too large".encode()
        self._answer(job, message)

    def _answer(self, job: Job, message: bytes) -> None:
        limit = min(self._client.max_payload, PART_BYTES)
        if job.is_stopped:
            self._end(job)
        elif len(message) <= limit:
            if not self._client.tell(job.reply, message):
                self._keep_unsent(job.reply, message)
            self._end(job)
        else:
            job.ticks = 0
            job.outgoing = Outgoing(message, limit - OVERHEAD)
            job.outgoing.fill(lambda part: self._send(job, part))

    def _end(self, job: Job) -> None:
        self._jobs.pop(job.number, None)
        if job.incoming is not None:
            job.incoming.close()
        if self._waiting:
            self._check_idle()

    # --- what is said about calls under way ---

    def tick(self) -> None:
        """Give signs of life, and forget callers that give none where it is their turn."""
        for job in tuple(self._jobs.values()):
            job.ticks += 1
            if job.incoming is not None or job.outgoing is not None:
                if job.ticks >= MISSES:
                    self._end(job)
            elif job.ticks % SIGN_TICKS == 0 and not job.is_stopped:
                self._send(job, WORKING)

    def _heard(self, op: Msg) -> None:
        """A caller says something about its call; without any words, the broker says that it is gone."""
        number = op.subject[len(self._prefix) :]
        job = self._jobs.get(int(number)) if number.isdecimal() else None
        if job is None:
            return
        kind = op.payload[:1]
        if kind == STOP:
            self._stop(job)
        elif kind:
            self._heard_of(job, op)
        elif job.method.repeat or job.work is None or job.outgoing is not None:
            self._stop(job)
        else:
            # What changes something is not left half done because the one who asked for it was killed.
            job.is_stopped = True

    def _heard_of(self, job: Job, op: Msg) -> None:
        job.ticks = 0
        try:
            if op.payload[:1] == PART and job.work is None:
                self._take_part(job, op.payload)
            elif op.payload[:1] == MORE and job.outgoing is not None:
                self._acknowledged(job, job.outgoing, op.payload)
            else:
                raise BrokenFrameError("it makes no sense")
        except BrokenFrameError as error:
            self._complain(f"a part of a call of {job.method.name} is refused: {error}")
            if job.outgoing is None and job.work is None:
                self._client.tell(job.reply, NOT_MINE)
            self._end(job)

    def _take_part(self, job: Job, frame: bytes) -> None:
        if job.incoming is None:
            job.incoming = Incoming(self._budget)
        complete = job.incoming.add(frame)
        self._send(job, job.incoming.acknowledgement())
        if complete:
            request = job.incoming.message()
            job.incoming.close()
            job.incoming = None
            if request[:1] != RESULT:
                raise BrokenFrameError("it is no request")
            self._begin(job, request)

    def _acknowledged(self, job: Job, outgoing: Outgoing, frame: bytes) -> None:
        outgoing.acknowledge(frame)
        if outgoing.is_received:
            self._end(job)
        else:
            outgoing.fill(lambda part: self._send(job, part))

    def _stop(self, job: Job) -> None:
        """Nobody waits for the answer: whoever is at work is told, as by a direct call, and may go on nevertheless."""
        job.is_stopped = True
        if job.work is not None and job.outgoing is None:
            job.work.cancel()
        else:
            self._end(job)

    def _send(self, job: Job, frame: bytes) -> None:
        self._client.tell(job.reply, frame, reply=self._prefix + str(job.number))

    def _keep_unsent(self, reply: str, message: bytes) -> None:
        if len(self._unsent) < MAX_UNSENT and len(message) <= MAX_UNSENT_BYTES:
            self._unsent.append((reply, message))

    def _connected(self) -> None:
        unsent, self._unsent = self._unsent, []
        for reply, message in unsent:
            self._client.tell(reply, message)

    def _connection_lost(self) -> None:
        """Parts that were under way are lost; work goes on."""
        for job in tuple(self._jobs.values()):
            if job.incoming is not None or job.outgoing is not None:
                self._end(job)

    def _complain(self, what: str) -> None:
        """Log what is wrong with a message, once: who sent it may send more."""
        if what not in self._complaints and len(self._complaints) < MAX_COMPLAINTS:
            self._complaints.add(what)
            log.warn("Refused on the queue: {what}", what=what)
