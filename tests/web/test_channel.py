"""Requests in one piece, in many, in a row and in disguise: both parsers give the same answers."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.web.channel import LATER_LIMIT, DirectChannel, parse_head
from dendrite_tw.web.routes import Access, Response, Route
from tests.harness import Wire, serve

WHOLE = b"POST /echo/%d HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n%s"


class Echo:
    def __init__(self) -> None:
        self.waiting: list[Deferred[None]] = []
        self.cancelled = 0

    async def echo(self, number: str, body: dict[str, Any]) -> dict[str, Any]:
        return {"number": number, **body}

    async def wait(self, number: str) -> dict[str, str]:
        waiting: Deferred[None] = Deferred()
        self.waiting.append(waiting)
        try:
            await waiting
        except CancelledError:
            self.cancelled += 1
            raise
        return {"waited": number}

    async def refuse(self) -> Response:
        return Response(418, b"<teapot>", b"text/html", [(b"X-Test", b"yes")])

    def routes(self) -> list[Route]:
        return [
            Route("POST", "/echo/{number}", self.echo, Access.PUBLIC),
            Route("GET", "/wait/{number}", self.wait, Access.PUBLIC),
            Route("PUT", "/wait/{number}", self.wait, Access.PUBLIC),
            Route("GET", "/refuse", self.refuse, Access.PUBLIC, cors=False),
        ]


class ChannelCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.echo = Echo()
        self.site = serve(self.echo.routes(), self.clock).site
        self.connect()

    def connect(self) -> None:
        self.wire = Wire(peerAddress=IPv4Address("TCP", "192.0.2.1", 4242))
        self.channel: Any = self.site.buildProtocol(None)
        self.channel.makeConnection(self.wire)

    def send(self, data: bytes) -> None:
        self.channel.dataReceived(data)

    def answers(self) -> list[tuple[int, bytes]]:
        """Status and body of each answer so far."""
        found, data = [], self.wire.value()
        while data:
            head, _, data = data.partition(b"\r\n\r\n")
            length = int(re.search(rb"(?i)content-length: (\d+)", head)[1]) if b"ontent-" in head else 0  # type: ignore[index]
            found.append((int(head.split(b" ")[1]), data[:length]))
            data = data[length:]
        return found


class DirectTests(ChannelCase):
    def test_a_whole_request_is_read_at_once(self) -> None:
        self.send(WHOLE % (1, 9, b'{"a":"b"}'))
        self.assertEqual(self.answers(), [(200, b'{"number":"1","a":"b"}')])
        self.assertEqual(self.channel.requests, [])

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(st.lists(st.integers(0, 400), max_size=8), st.integers(1, 6))
    def test_however_it_is_cut_the_answers_are_the_same(self, cuts: list[int], count: int) -> None:
        data = b"".join(WHOLE % (number, 9, b'{"a":"b"}') for number in range(count))
        self.connect()
        start = 0
        for cut in [*sorted(cuts), len(data)]:
            if cut > start:
                self.send(data[start:cut])
                start = cut
        expected = [(200, b'{"number":"%d","a":"b"}' % number) for number in range(count)]
        self.assertEqual(self.answers(), expected)

    def test_requests_in_a_row_are_answered_in_order(self) -> None:
        get = b"GET /wait/%d HTTP/1.1\r\nHost: test\r\n\r\n"
        self.send(get % 1 + get % 2)
        self.send(WHOLE % (3, 2, b"{}"))
        self.assertEqual((self.answers(), len(self.echo.waiting)), ([], 1))
        self.echo.waiting[0].callback(None)
        self.assertEqual((self.answers(), len(self.echo.waiting)), ([(200, b'{"waited":"1"}')], 2))
        self.echo.waiting[1].callback(None)
        self.assertEqual(
            [body for _, body in self.answers()], [b'{"waited":"1"}', b'{"waited":"2"}', b'{"number":"3"}']
        )

    def test_many_requests_in_one_piece_do_not_nest(self) -> None:
        self.send((WHOLE % (1, 2, b"{}")) * 2000)
        self.assertEqual(len(self.answers()), 2000)
        self.connect()
        self.send(b"GET /wait/1 HTTP/1.1\r\nHost: test\r\n\r\n" + (WHOLE % (1, 2, b"{}")) * 900)
        self.echo.waiting[-1].callback(None)
        self.assertEqual(len(self.answers()), 901)

    def test_who_sends_too_much_meanwhile_is_not_read_from(self) -> None:
        self.send(b"GET /wait/1 HTTP/1.1\r\nHost: test\r\n\r\n")
        self.send(b"x" * (LATER_LIMIT + 1))
        self.assertEqual(self.wire.producerState, "paused")

    def test_a_client_that_goes_away_is_waited_for_no_more(self) -> None:
        self.send(b"GET /wait/1 HTTP/1.1\r\nHost: test\r\n\r\n")
        self.channel.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.echo.cancelled, 1)
        self.assertEqual(self.answers(), [])

    def test_a_change_is_brought_to_its_end_though_the_client_goes_away(self) -> None:
        self.send(b"PUT /wait/1 HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n")
        self.channel.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.echo.cancelled, 0)
        self.echo.waiting[-1].callback(None)
        self.assertEqual(self.answers(), [])

    def test_idle_connections_are_closed_and_waiting_ones_are_not(self) -> None:
        self.clock.advance(91)
        self.assertTrue(self.wire.disconnecting)
        self.connect()
        self.send(b"GET /wait/1 HTTP/1.1\r\nHost: test\r\n\r\n")
        for _ in range(5):
            self.clock.advance(80)
        self.assertFalse(self.wire.disconnecting)
        self.echo.waiting[-1].callback(None)
        self.assertEqual(self.answers(), [(200, b'{"waited":"1"}')])

    def test_heads_of_answers(self) -> None:
        self.send(b"GET /refuse HTTP/1.1\r\nHost: test\r\n\r\n")
        head = self.wire.value().partition(b"\r\n\r\n")[0].split(b"\r\n")
        self.assertEqual(head[0], b"HTTP/1.1 418 I'm a teapot")
        self.assertIn(b"X-Test: yes", head)
        self.assertIn(b"Content-Type: text/html", head)
        self.assertFalse([line for line in head if line.startswith(b"Access-Control")])
        self.assertTrue([line for line in head if line.startswith(b"Date: Thu, 01 Jan 1970")])

    def test_a_connection_to_be_closed_is_closed(self) -> None:
        self.send(b"GET /refuse HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
        self.assertEqual(self.answers()[0][0], 418)
        self.assertTrue(self.wire.disconnecting)

    def test_chunks_are_left_to_the_other_parser(self) -> None:
        head = b"POST /echo/1 HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n"
        self.send(head + b"9\r\n" + b'{"a":"b"}' + b"\r\n0\r\n\r\n")
        self.assertEqual(self.answers(), [(200, b'{"number":"1","a":"b"}')])


class RefusalTests(ChannelCase):
    """What may be an attack is refused by the other parser, or is at least not read in two ways."""

    def test_what_is_not_http_ends_the_connection(self) -> None:
        for data in (
            b"POST /echo/1 HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}x",
            b"POST /echo/1 HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
            b"POST /echo/1 HTTP/1.1\r\nHost: test\r\nContent-Length: -2\r\n\r\n{}",
            b"POST /echo/1 HTTP/1.1\r\nHost: test\r\nContent-Length: 0x2\r\n\r\n{}",
            b"GET /refuse HTTP/1.1\r\nHost: test\r\nBad Name: x\r\n\r\n",
            b"GET /refuse HTTP/1.1\r\nHost: test\r\nX: a\x00b\r\n\r\n",
            b"GET /refuse HTTP/1.1\r\nHost: test\r\nno colon\r\n\r\n",
            b"GET  /refuse HTTP/1.1\r\nHost: test\r\n\r\n",
            b"nonsense\r\n\r\n",
        ):
            self.connect()
            self.send(data)
            self.assertEqual([status for status, _ in self.answers()], [400], data[:80])
            self.assertTrue(self.wire.disconnecting, data[:80])

    def test_an_endless_line_ends_the_connection(self) -> None:
        self.send(b"GET /refuse HTTP/1.1\r\nX: " + b"x" * 20000)
        self.assertTrue(self.wire.disconnecting)

    def test_heads_that_are_not_read_at_once(self) -> None:
        plain = b"GET /x HTTP/1.1\r\nHost: test"
        self.assertIsNotNone(parse_head(plain))
        for head in (
            b"GET /x HTTP/1.0\r\nHost: test",
            b"BREW /x HTTP/1.1\r\nHost: test",
            b"GET x HTTP/1.1\r\nHost: test",
            b"GET /x\xff HTTP/1.1\r\nHost: test",
            b"GET /x HTTP/1.1",
            plain + b"\r\nHost: other",
            plain + b"\r\n folded: x",
            plain + b"\r\nX: a\nY: b",
            plain + b"\r\nExpect: 100-continue",
            plain + b"\r\nUpgrade: websocket",
            plain + b"\r\nConnection: upgrade",
            plain + b"\r\nAuthorization: a\r\nAuthorization: b",
        ):
            self.assertIsNone(parse_head(head), head)

    def test_a_connection_is_one_of_ours(self) -> None:
        self.assertIsInstance(self.channel, DirectChannel)
