"""Echoes: what a process tells all others of the deployment, in order, unstored.

They invalidate what other processes keep in memory.  A connection to a NATS server keeps order, so who tells an echo
after its commit and before it answers has been heard everywhere before anything that follows from the answer.  What
was told while a connection was lost is not heard later: then `Echoes.on_missed` says so, and whoever relies on
echoes forgets what it knows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from ..jetstream.client import QueueClient
from ..jetstream.messages import subject_token
from ..jetstream.wire import Msg

Hearer = Callable[[bytes], None]

MISSED = "missed"
"""The topic by which a process says that others may have missed something of it."""

log = Logger()


class Echoes(Protocol):
    """What components use to keep what they know in step with other processes."""

    @property
    def hearing(self) -> bool:
        """Whether all that others tell is heard now; what is loaded meanwhile must not be kept while it is not."""

    def tell(self, topic: str, payload: bytes) -> None:
        """Have all other processes hear this, in the order in which it is told; not this one."""

    def hear(self, topic: str, call: Hearer) -> None:
        """Call with each payload that another process tells under this topic."""

    def on_missed(self, call: Callable[[], None]) -> None:
        """Call whenever something may have been missed: when hearing ends, when it begins again, and when another
        process says that not all of what it told may have been heard.
        """


class NoEchoes:
    """`Echoes` of a process that has no others beside it."""

    hearing = True

    def tell(self, topic: str, payload: bytes) -> None:
        """Nobody else is there."""

    def hear(self, topic: str, call: Hearer) -> None:
        """Nothing will be heard."""

    def on_missed(self, call: Callable[[], None]) -> None:
        """Nothing will be missed."""


class NatsEchoes:
    """`Echoes` over NATS; ``process`` is the name of this process, which no other has."""

    def __init__(self, client: QueueClient, process: str) -> None:
        self.hearing = False
        self._client = client
        self._process = subject_token(process)
        self._hearers: dict[str, list[Hearer]] = {}
        self._missed: list[Callable[[], None]] = []
        self._told = False
        """Whether anything was told that a loss of the connection may have swallowed."""
        self.hear(MISSED, lambda payload: self._forget())
        client.on_connected.append(self._connected)
        client.on_lost.append(self._lost)

    def tell(self, topic: str, payload: bytes) -> None:
        self._told = True
        self._client.tell(self._subject(topic, self._process), payload)

    def hear(self, topic: str, call: Hearer) -> None:
        hearers = self._hearers.setdefault(topic, [])
        hearers.append(call)
        if len(hearers) == 1:
            self._client.subscribe(self._subject(topic, "*"), lambda op: self._heard(hearers, op))

    def on_missed(self, call: Callable[[], None]) -> None:
        self._missed.append(call)

    def _subject(self, topic: str, process: str) -> str:
        return self._client.subject("Echo", f"{subject_token(topic)}.{process}")

    def _heard(self, hearers: list[Hearer], op: Msg) -> None:
        if op.subject.endswith(f".{self._process}"):
            return
        for call in hearers:
            try:
                call(op.payload)
            except Exception:
                log.failure("An echo on {subject} could not be used", subject=op.subject)

    def _connected(self) -> None:
        """The subscriptions are on their way; when the server has them, all that is told from then on is heard."""
        if self._told:
            self.tell(MISSED, b"")
        settled: Deferred[None] = self._client.settled()
        settled.addCallbacks(lambda _: self._hears_again(), lambda failure: None)

    def _hears_again(self) -> None:
        self.hearing = True
        self._forget()

    def _lost(self) -> None:
        self.hearing = False
        self._forget()

    def _forget(self) -> None:
        for call in tuple(self._missed):
            try:
                call()
            except Exception:
                log.failure("What may be out of date could not be forgotten")
