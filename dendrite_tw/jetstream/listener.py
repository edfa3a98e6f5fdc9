"""A listener: each new message of a stream, with the least delay and without acknowledgement."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from dendrite_tw.jetstream.errors import ApiError, UnavailableError
from dendrite_tw.jetstream.messages import Message, delivered
from dendrite_tw.jetstream.times import SECOND
from dendrite_tw.jetstream.wire import Msg

if TYPE_CHECKING:
    from dendrite_tw.jetstream.client import Handle, QueueClient

LISTENER_KEPT: Final = 300 * SECOND
"""How long the server keeps a listener whose connection is lost, in nanoseconds."""
RETRY_SECONDS: Final = 1.0
_CONSUMER_NOT_FOUND: Final = 10014

log = Logger(namespace="dendrite_tw.jetstream")


class Subscription:
    """A listener: an ephemeral consumer that pushes new messages and asks for no acknowledgement."""

    def __init__(
        self, client: QueueClient, stream: str, handler: Callable[[Message], None], on_begun: Callable[[], None]
    ) -> None:
        """`on_begun` is called each time the server begins to send messages, at first and where it had stopped to:
        what came before may never be heard.
        """
        self._client = client
        self._stream = stream
        self._handler = handler
        self._on_begun = on_begun
        self._handle: Handle | None = None
        self._consumer = ""
        self._last_seq = 0
        self._stream_created = ""
        self._retry: IDelayedCall | None = None
        self._stopped = False

    def start(self) -> None:
        client = self._client
        client.on_ready.append(self._connect)
        if client.ready:
            self._connect()

    def stop(self) -> None:
        """Hear no more."""
        self._stopped = True
        if self._retry is not None and self._retry.active():
            self._retry.cancel()
        if self._connect in self._client.on_ready:
            self._client.on_ready.remove(self._connect)
        if self._handle is not None:
            self._client.unsubscribe(self._handle)
            self._handle = None
        if self._consumer:
            name = f"{self._client.prefix}{self._stream}.{self._consumer}"
            self._client.tell(f"{self._client.api_prefix}.CONSUMER.DELETE.{name}")

    def _connect(self) -> None:
        Deferred.fromCoroutine(self._create()).addErrback(self._failed)

    def _failed(self, failure: Failure) -> None:
        value = failure.value
        if isinstance(value, UnavailableError) or (isinstance(value, ApiError) and value.code >= 500):
            if self._client.ready and not self._stopped:
                self._retry = self._client.clock.callLater(RETRY_SECONDS, self._connect)
            return
        log.failure("Listener on {stream} cannot be set up", failure, stream=self._stream)

    async def _create(self) -> None:
        """A new consumer, or after a reconnection the old one if the server still has it."""
        client, stream = self._client, self._client.prefix + self._stream
        if self._handle is None:
            inbox = f"{client.inbox}.listen.{client.next_number()}"
            self._handle = client.subscribe(inbox, self._receive)
        if self._consumer:
            try:
                await client.api(f"CONSUMER.INFO.{stream}.{self._consumer}")
                return
            except ApiError as error:
                if error.err_code != _CONSUMER_NOT_FOUND:
                    raise
        config: dict[str, Any] = {
            "deliver_subject": self._handle.subject,
            "ack_policy": "none",
            "deliver_policy": "new",
            "inactive_threshold": LISTENER_KEPT,
            "mem_storage": True,
            "num_replicas": 1,
        }
        created = (await client.stream_info(self._stream))["created"]
        if created != self._stream_created:
            # The stream is another one than that of the last message; if there was one, all of it is new.
            if self._stream_created:
                config["deliver_policy"] = "all"
            self._stream_created, self._last_seq = created, 0
        if self._last_seq:
            config.update(deliver_policy="by_start_sequence", opt_start_seq=self._last_seq + 1)
        answer = await client.api(f"CONSUMER.CREATE.{stream}", {"stream_name": stream, "config": config})
        self._consumer = answer["name"]
        if not self._stopped:
            self._on_begun()

    def _receive(self, op: Msg) -> None:
        if self._stopped or not op.reply:
            return
        message = delivered(op)
        if message.stream_seq <= self._last_seq:
            return
        self._last_seq = message.stream_seq
        try:
            self._handler(message)
        except Exception:
            log.failure("Listener on {stream} failed", stream=self._stream)
