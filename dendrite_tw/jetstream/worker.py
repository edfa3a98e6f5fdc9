"""A durable consumer's loop: messages in order to a handler, acknowledged when it has succeeded.

The handler stores its position together with its effect, so a repeated delivery changes nothing; what this
loop promises is that no message is passed over.  It pulls a window of messages ahead, hands them out in
batches, and acknowledges everything up to the last of a batch at once (policy "all").  After a failure the
same messages come again, after a pause that grows.

Of several processes one at a time runs the worker of a consumer.  One that was taken for dead and is not may still have
messages on order, which its successor must not acknowledge with those behind them: a number that is missing among
the consumer's deliveries gives it away.  Then all that is not acknowledged is sent again, until nothing is missing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from dendrite_tw.database.engines import Unavailable
from dendrite_tw.jetstream import wire
from dendrite_tw.jetstream.errors import ApiError, UnavailableError
from dendrite_tw.jetstream.messages import Message, delivered
from dendrite_tw.jetstream.times import SECOND
from dendrite_tw.jetstream.wire import Msg

if TYPE_CHECKING:
    from dendrite_tw.jetstream.client import Handle, QueueClient

DEFAULT_BATCH: Final = 64
DEFAULT_ACK_WAIT: Final = 30.0
PULL_SECONDS: Final = 60.0
REOPEN_SECONDS: Final = 1.0
THEFTS: Final = 500
"""How often in a row messages may go to another worker before this one waits for a while."""
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 30.0

log = Logger(namespace="dendrite_tw.jetstream.worker")


async def open_consumer(client: QueueClient, stream: str, consumer: str, ack_wait: float, batch: int) -> dict[str, Any]:
    """Create the durable consumer of a worker, or find it; returns what the server says of it.

    Names are whole, with their prefix.  Raises `errors.ApiError` and `errors.UnavailableError`.
    """
    config = {
        "durable_name": consumer,
        "ack_policy": "all",
        "deliver_policy": "all",
        "ack_wait": int(ack_wait * SECOND),
        "max_ack_pending": max(1000, 4 * batch),
        "num_replicas": 0,
    }
    request = f"CONSUMER.DURABLE.CREATE.{stream}.{consumer}"
    return await client.api(request, {"stream_name": stream, "config": config})


class Worker:
    """Feeds one handler from one durable consumer; made by `QueueClient.consume`."""

    def __init__(
        self,
        client: QueueClient,
        stream: str,
        durable: str,
        handler: Callable[[list[Message]], Awaitable[None]],
        *,
        batch: int,
        ack_wait: float,
    ) -> None:
        self.stream = stream
        self.durable = durable
        self.failures = 0
        """Failures of the handler since it last succeeded."""
        self._client = client
        self._handler = handler
        self._batch = batch
        self._ack_wait = ack_wait
        self._stream_name = client.prefix + stream
        self._consumer_name = client.prefix + durable
        self._handle: Handle | None = None
        self._buffer: deque[Message] = deque()
        self._in_hand: list[Message] = []
        self._generation = 0
        """How often the consumer was opened: deliveries of an earlier time are not acknowledged."""
        self._received = 0
        self._deliveries = 0
        """The number of the consumer's last delivery that is known here."""
        self._thefts = 0
        self._done = 0
        self._owed = 0
        """Old deliveries that must come again before anything newer."""
        self._old_upto = 0
        self._wanted = 0
        """Messages asked for and not yet come."""
        self._pulled_at = 0.0
        self._opening = False
        self._running: Deferred[None] | None = None
        self._pause: Deferred[None] | None = None
        self._retry: IDelayedCall | None = None
        self._keeper: IDelayedCall | None = None
        self._stopped = False

    # --- life ---

    def start(self) -> None:
        """Begin now, or as soon as there is a connection, and again after each reconnection."""
        self._client.on_ready.append(self._open)
        self._client.on_lost.append(self._lost)
        self._keeper = self._client.clock.callLater(self._ack_wait / 3, self._keep)
        if self._client.ready:
            self._open()

    def stop(self) -> Deferred[None]:
        """Take no more; fires when the handler has finished what it has in hand."""
        if not self._stopped:
            self._stopped = True
            self._client.on_ready.remove(self._open)
            self._client.on_lost.remove(self._lost)
            for timer in (self._keeper, self._retry):
                if timer is not None and timer.active():
                    timer.cancel()
            if self._handle is not None:
                self._client.unsubscribe(self._handle)
                self._handle = None
            self._buffer.clear()
            if self._pause is not None:
                self._pause.cancel()
        if self._running is None:
            return succeed(None)
        finished: Deferred[None] = Deferred()
        self._running.addCallback(finished.callback)
        return finished

    def _open(self) -> None:
        if self._stopped or self._opening:
            return
        self._opening = True
        opening = Deferred.fromCoroutine(self._create())
        opening.addErrback(lambda failure: log.failure("Consumer {name} cannot be opened", failure, name=self.durable))
        opening.addCallback(self._opened)

    def _opened(self, ignored: None) -> None:
        self._opening = False

    async def _create(self) -> None:
        """Make sure of the consumer, have what is unacknowledged sent again, and begin to pull."""
        client = self._client
        try:
            info = await open_consumer(client, self._stream_name, self._consumer_name, self._ack_wait, self._batch)
        except (UnavailableError, ApiError) as error:
            log.warn("Consumer {name} waits: {error}", name=self.durable, error=str(error))
            self._open_later()
            return
        if self._stopped:
            return
        if self._handle is None:
            inbox = f"{client.inbox}.pull.{client.next_number()}"
            self._handle = client.subscribe(inbox, self._receive)
        # What the handler has in hand counts as undelivered: it may come again, and the stream may be
        # another one of the same name.
        self._generation += 1
        self._buffer.clear()
        self._received = self._done = info["ack_floor"]["stream_seq"]
        self._deliveries = info["delivered"]["consumer_seq"]
        self._wanted = 0
        try:
            await self._recall(info)
        except UnavailableError:
            self._open_later()
            return
        self._ask_for_more()

    def _open_later(self) -> None:
        if not self._stopped and (self._retry is None or not self._retry.active()):
            self._retry = self._client.clock.callLater(REOPEN_SECONDS, self._open)

    async def _recall(self, info: dict[str, Any]) -> None:
        """What was delivered to somebody who is gone comes again now, and before anything newer.

        The server is asked to deliver it again, and its confirmation awaited: otherwise it might serve our
        next request with newer messages first.  `_receive` makes sure that it did not.
        """
        floor, reached = info["ack_floor"], info["delivered"]
        self._old_upto = reached["stream_seq"]
        self._owed = info.get("num_ack_pending", 0)
        if not self._owed:
            return
        waiting = []
        for seq in range(floor["stream_seq"] + 1, reached["stream_seq"] + 1):
            number = floor["consumer_seq"] + seq - floor["stream_seq"]
            subject = f"$JS.ACK.{self._stream_name}.{self._consumer_name}.1.{seq}.{number}.0.0"
            waiting.append(self._client.ask(subject, b"-NAK"))
        for confirmation in waiting:
            await confirmation

    def _reopen(self) -> None:
        """Begin anew at the server's floor, ignoring what still comes on the old subscription."""
        if self._handle is not None:
            self._client.unsubscribe(self._handle)
            self._handle = None
        self._open()

    def _lost(self) -> None:
        """The connection is gone: what is not in hand will be delivered anew."""
        self._buffer.clear()
        self._wanted = 0

    # --- receiving ---

    def _receive(self, op: Msg) -> None:
        if self._stopped:
            return
        if not op.reply:
            self._on_status(op)
            return
        self._wanted -= 1
        message = delivered(op)
        seq = message.stream_seq
        if message.consumer_seq > self._deliveries + 1:
            self._stolen()
            return
        self._deliveries = max(self._deliveries, message.consumer_seq)
        if seq <= self._old_upto and self._owed:
            self._owed -= 1
        if seq <= self._received:
            if seq <= self._done:
                # Its acknowledgement went astray.
                self._client.tell(op.reply, b"+ACK")
            return
        if self._owed and seq > self._old_upto:
            # Something older is still to come: acknowledging this one would acknowledge that, unseen.
            self._reopen()
            return
        self._received = seq
        self._buffer.append(message)
        if self._running is None:
            self._client.after_bundle(self._work)

    def _stolen(self) -> None:
        """Somebody else was given a message that this worker has not seen."""
        self._thefts += 1
        if self._thefts % THEFTS:
            self._reopen()
            return
        log.warn("Consumer {name}: another worker takes its messages", name=self.durable)
        if self._handle is not None:
            self._client.unsubscribe(self._handle)
            self._handle = None
        self._open_later()

    def _on_status(self, op: Msg) -> None:
        """A request for messages has ended, or goes on (100)."""
        code, description = wire.decode_status(op.headers)
        if code == 100:
            return
        pending = wire.header(op.headers, "Nats-Pending-Messages")
        self._wanted = max(self._wanted - int(pending), 0) if pending.isdecimal() else 0
        if code == 409 and "Deleted" in description:
            self._open()
        elif code in (404, 408):
            self._ask_for_more()
        else:
            log.warn("Consumer {name}: {text}", name=self.durable, text=description)
            self._open_later()

    def _ask_for_more(self) -> None:
        """Keep between one and two batches on order."""
        if self._handle is None or self._stopped:
            return
        on_hand = len(self._buffer) + len(self._in_hand)
        if self._wanted + on_hand > self._batch:
            return
        self._wanted += self._batch
        self._pulled_at = self._client.clock.seconds()
        body = b'{"batch":%d,"expires":%d}' % (self._batch, int(PULL_SECONDS * SECOND))
        subject = f"{self._client.api_prefix}.CONSUMER.MSG.NEXT.{self._stream_name}.{self._consumer_name}"
        self._client.tell(subject, body, reply=self._handle.subject)

    # --- handling ---

    def _work(self) -> None:
        if self._running is None and self._buffer and not self._stopped:
            self._running = running = Deferred.fromCoroutine(self._handle_all())
            running.addErrback(lambda failure: log.failure("{name} failed", failure, name=self.durable))
            running.addCallback(self._finished)

    def _finished(self, ignored: None) -> None:
        self._running = None
        if self._buffer and not self._stopped:
            self._work()

    async def _handle_all(self) -> None:
        while self._buffer and not self._stopped:
            buffer = self._buffer
            count = min(len(buffer), self._batch)
            self._in_hand = [buffer.popleft() for _ in range(count)]
            generation = self._generation
            if not await self._handle_batch(self._in_hand):
                return
            last = self._in_hand[-1]
            self._in_hand = []
            self._thefts = 0
            if generation == self._generation:
                self._done = last.stream_seq
                self._client.tell(last.reply, b"+ACK")
            self._ask_for_more()

    async def _handle_batch(self, messages: list[Message]) -> bool:
        """Call the handler until it succeeds; false if the worker was stopped before."""
        self.failures = 0
        while True:
            try:
                await self._handler(messages)
                return True
            except Unavailable as error:
                self.failures += 1
                log.warn("{name} waits: {error}", name=self.durable, error=str(error))
            except Exception:
                self.failures += 1
                log.failure(
                    "{name} failed on {count} messages from {first}",
                    name=self.durable,
                    count=len(messages),
                    first=messages[0].stream_seq,
                )
            if self._stopped or not await self._rest():
                self._in_hand = []
                return False
            for message in messages:
                message.num_delivered += 1

    async def _rest(self) -> bool:
        """The pause before the next attempt; false if the worker is stopped meanwhile."""
        self._pause = Deferred()
        seconds = min(FIRST_PAUSE * 2 ** (self.failures - 1), LONGEST_PAUSE)
        timer = self._client.clock.callLater(seconds, self._pause.callback, None)
        try:
            await self._pause
        except CancelledError:
            timer.cancel()
            return False
        finally:
            self._pause = None
        return not self._stopped

    def _keep(self) -> None:
        """From time to time: tell the server that work goes on, and notice a request that got lost."""
        self._keeper = self._client.clock.callLater(self._ack_wait / 3, self._keep)
        if not self._client.ready:
            return
        for message in (*self._in_hand, *self._buffer):
            self._client.tell(message.reply, b"+WPI")
        idle = self._client.clock.seconds() - self._pulled_at
        if idle > PULL_SECONDS * 1.5 and self._handle is not None and not (self._buffer or self._in_hand):
            self._wanted = 0
            self._ask_for_more()
