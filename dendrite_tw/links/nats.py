"""Calls between processes over NATS: a method of an interface is a request, its result the reply.

What anybody may answer is asked on ``Call.{Interface}.{method}``, which all who serve the interface share as a queue
group; what only the holder of a share may, on ``Call.{Interface}.{method}.{share}``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from ..database.engines import Unavailable
from ..jetstream.client import Handle, QueueClient
from ..jetstream.errors import NobodyThereError, UnavailableError
from ..jetstream.wire import Msg
from ..matrix.errors import MatrixError
from .codec import InterfaceCodec
from .handle import Answerer, Method, Transport
from .routing import key_of, routing_of, share_of

RETRY_SECONDS: Final = 8.0
PAUSES: Final = (0.02, 0.05, 0.1, 0.25)

NOT_MINE: Final = b"\x03"
FAILED: Final = b"\x02"

Holds = Callable[[str, int], bool]

log = Logger()


class Unanswered(Unavailable):
    """No process answered; of an action it may not be known whether it was carried out."""

    def __init__(self, reason: str) -> None:
        MatrixError.__init__(
            self, 503, "M_UNKNOWN", f"A part of this server did not answer: {reason}. Try again.", retry_after_ms=2000
        )


class CallFailed(Exception):
    """Whoever answered failed in an unforeseen way, and has it in its log."""


class Calls:
    """What a process asks others and answers them; one for each process."""

    def __init__(self, client: QueueClient, time: IReactorTime, holds: Holds) -> None:
        self.client = client
        self.time = time
        self.holds = holds
        self.draining = False
        self._codecs: dict[type, InterfaceCodec] = {}
        self._served: list[Handle] = []
        self._shares: dict[tuple[str, int], Handle] = {}

    def codec(self, interface: type) -> InterfaceCodec:
        if interface not in self._codecs:
            self._codecs[interface] = InterfaceCodec(interface)
        return self._codecs[interface]

    def transport(self, interface: type, local: object | None) -> Transport:
        """Carries the calls of an interface: to ``local`` where that may answer, else to other processes."""
        return _Calling(self, interface, local)

    def serve(self, interface: type, target: object) -> None:
        """Answer what any process may answer."""
        subject = self.client.subject("Call", f"{interface.__name__}.*")
        self._served.append(self._answer(subject, interface, target, interface.__name__))

    def serve_share(self, interface: type, target: object, share: int) -> None:
        """Answer what only the holder of a share may."""
        subject = self.client.subject("Call", f"{interface.__name__}.*.{share}")
        self._shares[interface.__name__, share] = self._answer(subject, interface, target, "", share)

    def withdraw_share(self, interface: type, share: int) -> Deferred[None]:
        """Answer nothing more of a share; fires when what was under way is done."""
        handle = self._shares.pop((interface.__name__, share), None)
        return succeed(None) if handle is None else self.client.leave(handle)

    def serves(self, interface: str, share: int) -> bool:
        return (interface, share) in self._shares and self.holds(interface, share)

    async def drain(self) -> None:
        """Take no more calls, and finish those under way."""
        self.draining = True
        for handle in self._served:
            self.client.unsubscribe(handle)

    def _answer(self, subject: str, interface: type, target: object, group: str, share: int | None = None) -> Handle:
        answer = Answerer(interface, target)
        codec, at = self.codec(interface), len(self.client.subject("Call", interface.__name__)) + 1

        async def run(op: Msg) -> None:
            name = op.subject[at:].partition(".")[0]
            if name not in codec.methods:
                return
            if share is not None and not self.serves(interface.__name__, share):
                reply = NOT_MINE
            else:
                try:
                    reply = await answer(name, op.payload)
                except Exception:
                    log.failure("{interface}.{name} failed", interface=interface.__name__, name=name)
                    reply = FAILED
            self.client.tell(op.reply, reply)

        return self.client.subscribe(subject, lambda op: _go(run(op)), group)


def _go(work: Any) -> None:
    Deferred.fromCoroutine(work).addErrback(lambda failure: log.failure("A call failed", failure=failure))


class _Calling:
    """The transport of one interface."""

    def __init__(self, calls: Calls, interface: type, local: object | None) -> None:
        self._calls = calls
        self._interface = interface
        self._local = local

    def method(self, interface: type, name: str) -> Method:
        calls, routing, label = self._calls, routing_of(interface, name), interface.__name__
        codec = calls.codec(interface).methods[name]
        key = key_of(interface, name) if routing.share else None
        subject = calls.client.subject("Call", f"{label}.{name}")
        local = None if self._local is None else cast(Method, getattr(self._local, name))

        def call(*args: Any, **kwargs: Any) -> Awaitable[Any]:
            if key is None:
                if local is not None and not calls.draining:
                    return local(*args, **kwargs)
                return self._ask(subject, codec, args, kwargs, routing.repeat)
            share = share_of(key(args, kwargs))
            if local is not None and calls.serves(label, share):
                return local(*args, **kwargs)
            return self._ask(f"{subject}.{share}", codec, args, kwargs, routing.repeat)

        return call

    async def _ask(self, subject: str, codec: Any, args: Any, kwargs: Any, repeat: bool) -> Any:
        calls = self._calls
        request = codec.encode_arguments(args, kwargs)
        until = calls.time.seconds() + RETRY_SECONDS
        attempt = 0
        while True:
            try:
                reply = (await calls.client.ask(subject, request)).payload
                if reply == FAILED:
                    raise CallFailed(subject)
                if reply != NOT_MINE:
                    return codec.decode_result(reply)
                reason = "it is being handed over"
            except NobodyThereError:
                reason = "nobody is there"
            except UnavailableError as error:
                reason = str(error)
                if not repeat:
                    raise Unanswered(reason) from None
            if calls.time.seconds() >= until:
                raise Unanswered(reason)
            pause: Deferred[None] = Deferred()
            calls.time.callLater(PAUSES[min(attempt, len(PAUSES) - 1)], pause.callback, None)
            attempt += 1
            await pause
