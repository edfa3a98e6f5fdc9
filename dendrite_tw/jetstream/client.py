"""The client of the queue: the same code for the embedded server and for a real one.

A `QueueClient` is a state machine over the operations of the protocol.  Whatever carries it (`embedded.Link`,
`remote`) calls `connected` with a way to send, `handle` for each operation that arrives, `flush` after each
bundle of them, and `disconnected`.  Subscriptions, listeners and workers outlive a connection; questions that
are under way do not.

Streams are named as in the catalogue (``OutputRoomEvent``); the prefix of the deployment is added here.
"""

from __future__ import annotations

import binascii
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import msgspec
import orjson
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from dendrite_tw.jetstream import wire
from dendrite_tw.jetstream.configs import StreamConfig
from dendrite_tw.jetstream.errors import STREAM_NOT_FOUND, ApiError, NobodyThereError, UnavailableError
from dendrite_tw.jetstream.listener import Subscription
from dendrite_tw.jetstream.messages import Message, PubAck
from dendrite_tw.jetstream.subjects import is_literal, is_valid
from dendrite_tw.jetstream.wire import Msg, Op, Pub, Sub, Unsub
from dendrite_tw.jetstream.worker import DEFAULT_ACK_WAIT, DEFAULT_BATCH, Worker, open_consumer

DEFAULT_TIMEOUT: Final = 10.0
UNAVAILABLE: Final = 503
_STREAM_NAME_IN_USE: Final = 10058
_CONSUMER_NOT_FOUND: Final = 10014

log = Logger(namespace="dendrite_tw.jetstream")


_PUB_ACK: Final = msgspec.json.Decoder(PubAck)


class Handle:
    """A subscription that outlives connections."""

    __slots__ = ("is_left", "queue", "receive", "sid", "subject")

    def __init__(self, subject: str, queue: str, sid: str, receive: Callable[[Msg], None]) -> None:
        self.subject = subject
        self.queue = queue
        self.sid = sid
        self.receive = receive
        self.is_left = False
        """Whether it receives only what the server has sent already."""


def raise_api_error(error: Mapping[str, Any]) -> None:
    code, number = int(error.get("code") or 500), int(error.get("err_code") or 0)
    raise ApiError(code, number, str(error.get("description") or ""))


class QueueClient:
    """Publishes to streams, consumes them, and asks and answers on plain subjects.

    ``inbox`` is a subject that is this client's alone.
    """

    def __init__(
        self,
        clock: IReactorTime,
        *,
        inbox: str,
        prefix: str = "Dendrite",
        streams: Mapping[str, StreamConfig] | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        api_prefix: str = "$JS.API",
    ) -> None:
        self.clock = clock
        self.inbox = inbox
        self.prefix = prefix
        self.timeout = timeout
        self.ready = False
        """Whether there is a connection, and the streams are declared."""
        self.on_ready: list[Callable[[], None]] = []
        """Called each time a connection has become usable."""
        self.on_connected: list[Callable[[], None]] = []
        """Called each time there is a connection again and the subscriptions are on their way, before it is ready."""
        self.on_lost: list[Callable[[], None]] = []
        self.on_streams_lost: Callable[[], None] = lambda: None
        """Called when the server turns out not to have a stream any more; the carrier has them declared again."""
        self.max_payload = wire.DEFAULT_MAX_PAYLOAD
        """Bytes that the server takes in one message, headers and payload together."""
        self._streams = dict(streams or {})
        self._api_prefix = api_prefix
        self._send: Callable[[Op], None] | None = None
        self._handles: dict[str, Handle] = {}
        self._next_sid = 0
        self._asked: dict[str, tuple[Deferred[Msg], float]] = {}
        """Questions that await an answer, and until when."""
        self._next_question = 0
        self._sweep: IDelayedCall | None = None
        self._to_flush: dict[Callable[[], None], None] = {}
        self._answers = self.subscribe(f"{inbox}.*", self._on_answer)

    # --- the carrier's side ---

    def connected(self, send: Callable[[Op], None]) -> None:
        """There is a connection, and it is admitted: subscribe.  The carrier has the streams declared next."""
        self._send = send
        for handle in self._handles.values():
            send(Sub(handle.subject, handle.queue, handle.sid))
        for call in tuple(self.on_connected):
            call()

    async def declare(self) -> None:
        """Make sure that the server has the streams; then the client is ready."""
        for name, config in self._streams.items():
            await self._declare(self._prefixed(name, config))
        self.ready = True
        for call in tuple(self.on_ready):
            call()

    def disconnected(self, reason: str) -> None:
        """The connection is lost: what was asked will not be answered."""
        self._send = None
        self.ready = False
        for handle in [handle for handle in self._handles.values() if handle.is_left]:
            del self._handles[handle.sid]
        asked, self._asked = self._asked, {}
        for deferred, _ in asked.values():
            deferred.errback(UnavailableError(reason))
        for call in tuple(self.on_lost):
            call()

    def handle(self, op: Op) -> None:
        """An operation from the server; the carrier sees to introductions and pings."""
        if type(op) is Msg:
            handle = self._handles.get(op.sid)
            if handle is not None:
                handle.receive(op)
        elif type(op) is wire.Info:
            self.max_payload = int(op.options.get("max_payload") or self.max_payload)
        elif type(op) is wire.Err:
            log.warn("The queue's server says: {message}", message=op.message)

    def flush(self) -> None:
        """All operations that came together have been handled: let those work who waited for that."""
        while self._to_flush:
            waiting, self._to_flush = self._to_flush, {}
            for call in waiting:
                call()

    def after_bundle(self, call: Callable[[], None]) -> None:
        """Call once, when the operations that came together have been handled."""
        self._to_flush[call] = None

    def next_number(self) -> int:
        """A number that this client has not used in a subject before."""
        self._next_sid += 1
        return self._next_sid

    # --- plain messages ---

    def subscribe(self, subject: str, receive: Callable[[Msg], None], queue: str = "") -> Handle:
        """Receive the messages of a subject, now and after each reconnection."""
        self._next_sid += 1
        handle = Handle(subject, queue, str(self._next_sid), receive)
        self._handles[handle.sid] = handle
        if self._send is not None:
            self._send(Sub(subject, queue, handle.sid))
        return handle

    def unsubscribe(self, handle: Handle) -> None:
        if self._handles.pop(handle.sid, None) is not None and self._send is not None:
            self._send(Unsub(handle.sid))

    def leave(self, handle: Handle) -> Deferred[None]:
        """Unsubscribe, but receive what the server sent before it knew; fires when it knows, and nearly all has come.

        Nearly: a server with many threads may have been about to send one more.  That is received, too.
        """
        handle.is_left = True
        if self._send is None:
            self._handles.pop(handle.sid, None)
        else:
            self._send(Unsub(handle.sid))
        return self.settled()

    def settled(self) -> Deferred[None]:
        """Fires when the server has done all that was sent to it, and what it sent before has come; fails with
        `UnavailableError`.
        """
        return self._expect("").addCallback(lambda op: None)

    def tell(self, subject: str, payload: bytes = b"", *, reply: str = "", headers: bytes = b"") -> bool:
        """Send a message without waiting for anything; whether there was a connection to send it on."""
        if self._send is None:
            return False
        self._send(Pub(subject, reply, headers, payload))
        return True

    def ask(self, subject: str, payload: bytes, headers: bytes = b"", timeout: float | None = None) -> Deferred[Msg]:
        """Send a message and promise the answer; fails with `UnavailableError`."""
        return self._expect(subject, payload, headers, timeout)

    def _expect(
        self, subject: str, payload: bytes = b"", headers: bytes = b"", timeout: float | None = None
    ) -> Deferred[Msg]:
        """`ask`; without a subject the message is its own answer."""
        self._next_question += 1
        question = str(self._next_question)
        deferred: Deferred[Msg] = Deferred()
        if self._send is None:
            deferred.errback(UnavailableError("there is no connection to the queue"))
            return deferred
        deadline = self.clock.seconds() + (self.timeout if timeout is None else timeout)
        self._asked[question] = (deferred, deadline)
        if self._sweep is None or deadline < self._sweep.getTime():
            self._arm_sweep(deadline)
        reply = f"{self.inbox}.{question}"
        self._send(Pub(subject, reply, headers, payload) if subject else Pub(reply, "", b"", b""))
        return deferred

    def _arm_sweep(self, deadline: float) -> None:
        if self._sweep is not None:
            self._sweep.cancel()
        self._sweep = self.clock.callLater(max(deadline - self.clock.seconds(), 0.0), self._time_out)

    def _time_out(self) -> None:
        self._sweep = None
        now = self.clock.seconds()
        late = [question for question, asked in self._asked.items() if asked[1] <= now]
        overdue = [self._asked.pop(question) for question in late]
        if self._asked:
            self._arm_sweep(min(asked[1] for asked in self._asked.values()))
        for deferred, _ in overdue:
            deferred.errback(UnavailableError("the queue did not answer in time"))

    def _on_answer(self, op: Msg) -> None:
        asked = self._asked.pop(op.subject[len(self.inbox) + 1 :], None)
        if asked is None:
            return
        if op.headers and not op.payload and wire.decode_status(op.headers)[0] == 503:
            asked[0].errback(NobodyThereError())
        else:
            asked[0].callback(op)

    async def request(
        self,
        subject: str,
        payload: bytes,
        timeout: float | None = None,  # noqa: ASYNC109 - Deferreds have no ambient timeout
    ) -> Message:
        """Ask whoever serves a plain subject.

        Raises `UnavailableError` if nobody answers, `ApiError` if the one who serves it failed.
        """
        answer = await self.ask(subject, payload, timeout=timeout)
        message = Message(answer.subject, answer.headers, answer.payload)
        failure = message.headers.get("Nats-Service-Error-Code")
        if failure:
            code = int(failure) if failure.isdecimal() else 500
            raise ApiError(code, 0, message.headers.get("Nats-Service-Error", ""))
        return message

    def respond(self, subject: str, queue_group: str, handler: Callable[[Message], Awaitable[bytes]]) -> Handle:
        """Serve a plain subject, shared with the others of the queue group; what the handler returns is the
        answer.
        """

        async def serve(op: Msg) -> None:
            headers = b""
            try:
                answer = await handler(Message(op.subject, op.headers, op.payload, reply=op.reply))
            except Exception:
                log.failure("Request on {subject} failed", subject=op.subject)
                answer = b""
                headers = wire.encode_headers(
                    (("Nats-Service-Error-Code", "500"), ("Nats-Service-Error", "the service failed"))
                )
            if op.reply:
                self.tell(op.reply, answer, headers=headers)

        return self.subscribe(subject, lambda op: _run(serve(op)), queue_group)

    # --- streams ---

    def subject(self, stream: str, suffix: str = "") -> str:
        """The subject of a stream of the catalogue, or one below it."""
        return f"{self.prefix}{stream}.{suffix}" if suffix else f"{self.prefix}{stream}"

    async def publish(
        self,
        stream: str,
        payload: bytes,
        *,
        subject_suffix: str = "",
        headers: Mapping[str, str] | None = None,
        msg_id: str | None = None,
    ) -> PubAck:
        """Put a message into a stream; returns when it is stored (with file storage: on disk).

        Raises `UnavailableError` (it may or may not be stored; with ``msg_id`` it is safe to try again; it is also
        what a server without room or in trouble comes to), `ApiError` if the stream refuses it, `ValueError` for a
        suffix or header that cannot be sent.
        """
        try:
            return await self.send(stream, payload, subject_suffix=subject_suffix, headers=headers, msg_id=msg_id)
        except ApiError as error:
            if error.code >= 500:
                raise UnavailableError(error.description) from error
            raise

    def send(
        self,
        stream: str,
        payload: bytes,
        *,
        subject_suffix: str = "",
        headers: Mapping[str, str] | None = None,
        msg_id: str | None = None,
    ) -> Deferred[PubAck]:
        """`publish`, as a promise that fails with what the server says: for callers with many messages under way."""
        if subject_suffix and not (is_valid(subject_suffix) and is_literal(subject_suffix)):
            raise ValueError(f"not part of a subject: {subject_suffix!r}")
        fields = list(headers.items()) if headers else []
        if msg_id:
            fields.append(("Nats-Msg-Id", msg_id))
        block = wire.encode_headers(fields) if fields else b""
        answer = self.ask(self.subject(stream, subject_suffix), payload, block)
        return answer.addCallbacks(_pub_ack, self._not_stored)

    def _not_stored(self, failure: Failure) -> Failure:
        if failure.check(NobodyThereError):
            self._streams_lost()
        return failure

    def _streams_lost(self) -> None:
        """Somebody deleted a stream while we were connected."""
        if self.ready:
            self.ready = False
            self.on_streams_lost()

    async def api(self, request: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """A request of the JetStream API, such as ``STREAM.INFO.name``; raises `ApiError` as the server
        refuses.
        """
        answer = await self.ask(f"{self._api_prefix}.{request}", orjson.dumps(body) if body else b"")
        value: dict[str, Any] = orjson.loads(answer.payload)
        if value.get("error"):
            if value["error"].get("err_code") == STREAM_NOT_FOUND.err_code:
                self._streams_lost()
            raise_api_error(value["error"])
        return value

    @property
    def api_prefix(self) -> str:
        return self._api_prefix

    def _prefixed(self, name: str, config: StreamConfig) -> StreamConfig:
        full = self.prefix + name
        return msgspec.structs.replace(config, name=full, subjects=[full, f"{full}.>"])

    async def _declare(self, config: StreamConfig) -> None:
        """Create the stream, or make the one of its name what it should be."""
        body = config.body()
        try:
            await self.api(f"STREAM.CREATE.{config.name}", body)
            return
        except ApiError as error:
            if error.err_code != _STREAM_NAME_IN_USE:
                raise
        try:
            await self.api(f"STREAM.UPDATE.{config.name}", body)
        except ApiError as error:
            if error.code == UNAVAILABLE:
                raise
            log.warn("Stream {name} is made anew: {error}", name=config.name, error=error.description)
            await self.api(f"STREAM.DELETE.{config.name}")
            await self.api(f"STREAM.CREATE.{config.name}", body)

    async def stream_info(self, stream: str) -> dict[str, Any]:
        """Configuration and state of a stream, as the JetStream API gives them."""
        return await self.api(f"STREAM.INFO.{self.prefix}{stream}")

    async def last_message(self, stream: str) -> Message | None:
        """The newest message that a stream still holds at its end; ``None`` if that one is gone."""
        state = (await self.stream_info(stream))["state"]
        if not state["messages"]:
            return None
        try:
            found = await self.api(f"STREAM.MSG.GET.{self.prefix}{stream}", {"seq": state["last_seq"]})
        except ApiError:
            return None
        message = found["message"]
        block, payload = binascii.a2b_base64(message.get("hdrs", "")), binascii.a2b_base64(message["data"])
        return Message(message["subject"], block, payload, message["seq"])

    async def declare_consumer(self, stream: str, durable: str) -> None:
        """Make sure that a durable consumer exists, so that its stream keeps messages for it from now on."""
        name, consumer = self.prefix + stream, self.prefix + durable
        try:
            await self.api(f"CONSUMER.INFO.{name}.{consumer}")
        except ApiError as error:
            if error.err_code != _CONSUMER_NOT_FOUND:
                raise
            await open_consumer(self, name, consumer, DEFAULT_ACK_WAIT, DEFAULT_BATCH)

    async def delete_consumer(self, stream: str, durable: str) -> None:
        """Make sure that there is no such durable consumer, for which its stream would keep messages."""
        try:
            await self.api(f"CONSUMER.DELETE.{self.prefix}{stream}.{self.prefix}{durable}")
        except ApiError as error:
            if error.err_code != _CONSUMER_NOT_FOUND:
                raise

    def consume(
        self,
        stream: str,
        durable: str,
        handler: Callable[[list[Message]], Awaitable[None]],
        *,
        batch: int = DEFAULT_BATCH,
        ack_wait: float = DEFAULT_ACK_WAIT,
    ) -> Worker:
        """Begin to feed a handler with the messages of a stream, in order, from where the durable consumer
        is.

        The handler gets up to ``batch`` messages; when it returns they are acknowledged, when it raises the
        same messages come again after a pause.
        """
        worker = Worker(self, stream, durable, handler, batch=batch, ack_wait=ack_wait)
        worker.start()
        return worker

    def listen(
        self, stream: str, handler: Callable[[Message], None], on_begun: Callable[[], None] = lambda: None
    ) -> Subscription:
        """Give each new message of a stream to the handler, with the least delay and without
        acknowledgement.

        `on_begun` is called each time that begins, also after an interruption in which messages may have been lost.
        """
        subscription = Subscription(self, stream, handler, on_begun)
        subscription.start()
        return subscription

    def close(self) -> None:
        """Forget all that is under way."""
        self.disconnected("the client is closed")
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None


def _pub_ack(op: Msg) -> PubAck:
    ack = _PUB_ACK.decode(op.payload)
    if ack.error is not None:
        raise_api_error(ack.error)
    return ack


def _run(work: Any) -> None:
    """Let a coroutine go on by itself; what it does not handle is logged."""
    ensureDeferred(work).addErrback(lambda failure: log.failure("Unhandled in the queue", failure=failure))
