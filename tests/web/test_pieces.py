"""Answers that are made while they are sent: whole for who reads, bounded for who does not."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.web.pieces import STALLED_SECONDS, Pieces
from dendrite_tw.web.routes import Access, Response, Route
from tests.harness import Answer, Wire, serve

ASK = b"GET /pieces HTTP/1.1\r\nHost: test\r\n\r\n"
ASK_OTHERWISE = b"GET /pieces HTTP/1.1\r\nHost: test\r\nTE: trailers\r\n\r\n"
"""The same, with a header that leaves the request to Twisted's parser."""


class PiecesTests(SynchronousTestCase):
    request = ASK

    def setUp(self) -> None:
        self.clock = Clock()
        self.made: list[int] = []
        self.ended: list[str] = []
        self.broken_at = -1
        self.waiting: Deferred[None] | None = None
        self.site = serve([Route("GET", "/pieces", self.answer, Access.PUBLIC)], self.clock).site
        self.wire = Wire(
            hostAddress=IPv4Address("TCP", "127.0.0.1", 8008), peerAddress=IPv4Address("TCP", "192.0.2.1", 4242)
        )
        self.channel: Any = self.site.buildProtocol(None)
        self.channel.makeConnection(self.wire)

    async def answer(self) -> Response:
        return Response(200, b"[", headers=[(b"X-Test", b"yes")], pieces=self.pieces())

    async def pieces(self) -> Pieces:
        try:
            for number in range(5):
                if number == self.broken_at:
                    raise ValueError("the database is gone")
                if number == 3 and self.waiting is not None:
                    await self.waiting
                self.made.append(number)
                yield b"%d," % number
            yield b""
            yield b"5]"
        finally:
            self.ended.append("closed")

    def ask(self) -> Answer:
        self.channel.dataReceived(self.request)
        return Answer(self.wire)

    def turns(self, count: int = 20) -> None:
        for _ in range(count):
            self.clock.advance(0)

    def test_the_pieces_make_one_body(self) -> None:
        answer = self.ask()
        self.turns()
        self.assertEqual((answer.status, answer.json), (200, [0, 1, 2, 3, 4, 5]))
        self.assertEqual(answer.headers["x-test"], "yes")
        self.assertNotIn("content-length", answer.headers)
        self.assertEqual(self.ended, ["closed"])

    def test_the_connection_goes_on(self) -> None:
        self.ask()
        self.turns()
        first = len(self.wire.value())
        self.ask()
        self.turns()
        self.assertEqual(len(self.wire.value()), 2 * first)
        self.assertFalse(self.wire.disconnecting)

    def test_a_piece_that_takes_its_time(self) -> None:
        self.waiting = Deferred()
        answer = self.ask()
        self.turns()
        self.assertEqual(self.made, [0, 1, 2])
        self.waiting.callback(None)
        self.turns()
        self.assertEqual(answer.json, [0, 1, 2, 3, 4, 5])

    def test_no_more_is_made_than_is_taken(self) -> None:
        answer = self.ask()
        self.wire.producer.pauseProducing()
        self.turns()
        self.assertEqual(self.made, [0])
        self.clock.advance(STALLED_SECONDS - 1)
        self.wire.producer.resumeProducing()
        self.turns()
        self.assertEqual(answer.json, [0, 1, 2, 3, 4, 5])
        self.clock.advance(30)
        self.assertFalse(self.wire.disconnecting)

    def test_who_takes_nothing_loses_the_connection(self) -> None:
        self.ask()
        self.wire.producer.pauseProducing()
        self.turns()
        self.clock.advance(STALLED_SECONDS)
        # To end it in order would be to wait until it has taken what was written.
        self.assertTrue(self.wire.disconnected)
        self.assertEqual((self.made, self.ended), ([0], ["closed"]))
        self.assertNotIn(b"0\r\n\r\n", self.wire.value())

    def test_what_breaks_in_the_middle_ends_early(self) -> None:
        self.broken_at = 2
        self.ask()
        self.turns()
        self.assertTrue(self.wire.disconnecting)
        self.assertFalse(self.wire.value().endswith(b"0\r\n\r\n"))
        self.assertEqual(self.ended, ["closed"])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_who_goes_away_is_no_longer_worked_for(self) -> None:
        self.ask()
        self.wire.producer.pauseProducing()
        self.turns()
        self.channel.connectionLost(Failure(ConnectionDone()))
        self.turns()
        self.assertEqual((self.made, self.ended), ([0], ["closed"]))


class OtherParserTests(PiecesTests):
    request = ASK_OTHERWISE
