"""The queue within the process: server and client in one reactor, joined by objects instead of bytes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from dendrite_tw.jetstream.accounts import Gate
from dendrite_tw.jetstream.api import Api
from dendrite_tw.jetstream.catalogue import CATALOGUE, DEFAULT_PREFIX
from dendrite_tw.jetstream.client import QueueClient
from dendrite_tw.jetstream.engine import JetStream
from dendrite_tw.jetstream.server import Server, Settings
from dendrite_tw.jetstream.syncer import Run, Syncer
from dendrite_tw.jetstream.tcp import ServerFactory
from dendrite_tw.jetstream.wire import Op

MAX_PAYLOAD: Final = 16 * 1024 * 1024
TURN: Final = 1024
"""Operations handled in one turn of the reactor."""
STOP_SECONDS: Final = 10.0
REDECLARE_SECONDS: Final = 2.0

log = Logger(namespace="dendrite_tw.jetstream")


class Link:
    """Carries operations between a client and the server in the same reactor.

    They are handled in the next turn, all that were sent in this one together: nobody's handler is called
    from within a `publish`.
    """

    def __init__(self, server: Server, client: QueueClient, clock: IReactorTime, syncer: Syncer) -> None:
        self._clock = clock
        self._client = client
        self._syncer = syncer
        self._queue: deque[tuple[Callable[[Op], None], Op]] = deque()
        self._scheduled = self._turning = self._closed = False
        self._session = server.open(self._to_client, self._no_close, trusted=True)
        client.connected(self._to_server)
        # A batch ends in a turn of its own: its acknowledgements need not wait for the next one.
        syncer.after_batch = self._turn

    def _no_close(self) -> None:
        log.error("The embedded queue refused an operation of its own client")

    def _to_client(self, op: Op) -> None:
        self._queue.append((self._client.handle, op))
        if not (self._scheduled or self._turning):
            self._schedule()

    def _to_server(self, op: Op) -> None:
        self._queue.append((self._session.handle, op))
        if not (self._scheduled or self._turning):
            self._schedule()

    def _schedule(self) -> None:
        self._scheduled = True
        self._clock.callLater(0, self._scheduled_turn)

    def _scheduled_turn(self) -> None:
        self._scheduled = False
        self._turn()

    def _turn(self) -> None:
        if self._turning:
            return
        self._turning = True
        queue, left = self._queue, TURN
        while left > 0:
            while queue and left > 0:
                handle, op = queue.popleft()
                left -= 1
                try:
                    handle(op)
                except Exception:
                    log.failure("The queue failed on {kind}", kind=type(op).__name__)
            self._client.flush()
            if not queue:
                break
        self._turning = False
        if queue and not self._closed and not self._scheduled:
            self._schedule()
        self._syncer.kick()

    def close(self) -> None:
        """Let what was sent arrive, then part."""
        self._turn()
        self.cut()
        self._client.close()

    def cut(self) -> None:
        """Part at once; what is under way is lost."""
        self._closed = True
        self._queue.clear()
        self._session.closed()


class EmbeddedQueue(Service):
    """The embedded server with its client, as a service.

    ``run`` runs a function in a thread and promises its result, as `twisted.internet.threads.deferToThread`
    does; a test passes one that runs it at once.  ``storage_path`` is the folder of the queue; with
    ``in_memory`` nothing is written.  The folder may be deleted while the service is stopped: the outboxes
    fill the queue again.  ``token`` is what clients on the port of `server_factory` must show, if anything.
    """

    def __init__(
        self,
        clock: IReactorTime,
        run: Run[None],
        storage_path: str | Path,
        in_memory: bool = False,
        topic_prefix: str = DEFAULT_PREFIX,
        token: str = "",
    ) -> None:
        self._clock = clock
        self._run = run
        self._folder = None if in_memory else Path(storage_path)
        self.syncer = Syncer(run, clock.callLater)
        self.server = Server(Settings(max_payload=MAX_PAYLOAD))
        if token:
            self.server.gate = Gate(self.server, token=token)
        self.engine = JetStream(self.server, clock, self.syncer, self._folder)
        self.api = Api(self.engine)
        self.client = QueueClient(clock, inbox="_INBOX.embedded", prefix=topic_prefix, streams=CATALOGUE)
        self.client.on_streams_lost = self._declare_again
        self._link: Link | None = None

    @property
    def degraded(self) -> list[str]:
        """Streams that lost their files and began anew, and the disk's complaint if it takes nothing."""
        failing = [f"disk: {self.syncer.failing}"] if self.syncer.failing else []
        missing = [] if self.client.ready or self._link is None else ["the queue's streams are not there"]
        return [*self.engine.degraded, *failing, *missing]

    def server_factory(self) -> ServerFactory:
        """Serves NATS clients on a port that somebody else opens."""
        return ServerFactory(self.server, self._clock, self.syncer.kick)

    async def start(self) -> None:
        """Recover the streams from disk, declare those of the catalogue, and begin to serve."""
        await self._run(self.engine.recover)
        self.engine.serve()
        self.engine.start()
        self._link = Link(self.server, self.client, self._clock, self.syncer)
        await self.client.declare()

    def _declare_again(self) -> None:
        """A client on the port has deleted a stream."""
        log.warn("A stream of the embedded queue was deleted, and is made anew")
        self._declare()

    def _declare(self) -> None:
        if self._link is not None:
            Deferred.fromCoroutine(self.client.declare()).addErrback(self._undeclared)

    def _undeclared(self, failure: Failure) -> None:
        log.warn("The streams cannot be declared: {error}", error=failure.getErrorMessage())
        self._clock.callLater(REDECLARE_SECONDS, self._declare)

    async def stop(self) -> None:
        """Stop serving; what was accepted is on disk when this returns (or the disk had its chance)."""
        if self._link is not None:
            self._link.close()
            self._link = None
        self.engine.stop()
        await self._synced()
        self.engine.close_files()

    async def _synced(self) -> None:
        synced: Deferred[None] = Deferred()

        def done() -> None:
            if not synced.called:
                synced.callback(None)

        timer = self._clock.callLater(STOP_SECONDS, done)
        self.syncer.when_synced(done)
        await synced
        if timer.active():
            timer.cancel()

    def startService(self) -> None:
        super().startService()
        Deferred.fromCoroutine(self.start()).addErrback(
            lambda failure: log.failure("The embedded queue did not start", failure)
        )

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return Deferred.fromCoroutine(self.stop())
