"""``python -m bench.queue_client PLACE IN_FLIGHT SECONDS``: publishes with the server's own client.

PLACE is the address of a NATS server, or a folder for the queue that is built in, which then runs in this process as
in a monolith.  Prints JSON: messages, seconds, and the processor seconds of this process.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import orjson
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from bench.queue import PAYLOAD
from dendrite_tw.jetstream.disk_thread import DiskThread
from dendrite_tw.jetstream.embedded import EmbeddedQueue
from dendrite_tw.jetstream.remote import RemoteQueue

reactor: Any = _reactor
STREAM = {"name": "DendriteBENCH", "subjects": ["DendriteBENCH"], "storage": "file", "retention": "limits"}
WARM_SECONDS = 0.3


class Publishing:
    """Keeps so many messages under way until the time is over."""

    def __init__(self, client: Any, in_flight: int) -> None:
        self._client = client
        self._in_flight = in_flight
        self._under_way = 0
        self._until = 0.0
        self.taken = 0
        self._done: Deferred[None] = Deferred()

    def run(self, seconds: float) -> Deferred[None]:
        self._until = time.perf_counter() + seconds
        self.taken, self._under_way, self._done = 0, self._in_flight, Deferred()
        for _ in range(self._in_flight):
            self._send()
        return self._done

    def _send(self) -> None:
        self._client.send("BENCH", PAYLOAD).addCallbacks(self._next, self._done.errback)

    def _next(self, ack: object) -> None:
        self.taken += 1
        if time.perf_counter() < self._until:
            self._send()
        else:
            self._under_way -= 1
            if not self._under_way:
                self._done.callback(None)


async def run(place: str, in_flight: int, seconds: float) -> dict[str, float]:
    """Connect, make the stream if there is none, warm up, measure."""
    queue: Any
    if ":" in place:
        queue = RemoteQueue(reactor, [place], inbox="_INBOX.bench", chance=lambda: 0.5)
    else:
        queue = EmbeddedQueue(reactor, DiskThread(reactor.callFromThread).run, place, False)
    ready: Deferred[None] = Deferred()
    queue.client.on_ready.append(lambda: None if ready.called else ready.callback(None))
    await queue.start()
    await ready
    await queue.client.api("STREAM.CREATE.DendriteBENCH", STREAM)
    publishing = Publishing(queue.client, in_flight)
    await publishing.run(WARM_SECONDS)
    started, before = time.perf_counter(), time.process_time()
    await publishing.run(seconds)
    took, processor = time.perf_counter() - started, time.process_time() - before
    await queue.stop()
    return {"messages": publishing.taken, "seconds": took, "processor": processor}


def main(place: str, in_flight: str, seconds: str) -> None:
    failures: list[Failure] = []
    running = Deferred.fromCoroutine(run(place, int(in_flight), float(seconds)))
    running.addCallback(lambda found: print(orjson.dumps(found).decode(), flush=True))
    running.addErrback(failures.append)
    running.addBoth(lambda _: reactor.callWhenRunning(reactor.stop))
    reactor.run()
    for failure in failures:
        failure.raiseException()


if __name__ == "__main__":
    main(*sys.argv[1:])
