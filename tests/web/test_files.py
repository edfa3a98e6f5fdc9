"""Ranges and conditions: what part of a file a client is sent, and what it is told of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.web.files import byte_range
from dendrite_tw.web.pieces import STALLED_SECONDS
from dendrite_tw.web.routes import Access, Response, Route
from tests.harness import Answer, serve

DATA = bytes(range(256)) * 1000
PATH = "/_matrix/client/v1/file"


class RangeTests(SynchronousTestCase):
    def test_one_range(self) -> None:
        for header, expected in [
            (b"bytes=0-0", (0, 1)),
            (b"bytes=10-19", (10, 10)),
            (b"bytes=10-", (10, 90)),
            (b"bytes=-10", (90, 10)),
            (b"bytes=-1000", (0, 100)),
            (b"bytes=90-1000", (90, 10)),
            (b" bytes=5-6 ", (5, 2)),
        ]:
            self.assertEqual(byte_range(header, 100), expected, header)

    def test_what_is_not_one_range_means_the_whole_file(self) -> None:
        for header in (
            b"",
            b"bytes=-",
            b"bytes=1-2,4-5",
            b"lines=1-2",
            b"bytes=a-b",
            b"bytes=5-4",
            b"bytes=" + b"9" * 99,
        ):
            self.assertIsNone(byte_range(header, 100), header)

    def test_a_range_beyond_the_file_cannot_be_satisfied(self) -> None:
        for header, size in [(b"bytes=100-", 100), (b"bytes=100-200", 100), (b"bytes=-0", 100), (b"bytes=0-", 0)]:
            with self.assertRaises(ValueError, msg=header):
                byte_range(header, size)


class FileTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.path.write_bytes(DATA)
        self.length = len(DATA)
        self.clock = Clock()
        self.web = serve([Route("GET", PATH, self.file, Access.PUBLIC)], self.clock)

    async def file(self) -> Response:
        headers = [(b"ETag", b'"abc"')]
        return Response(200, b"", b"image/png", headers, str(self.path), 0, self.length)

    def ask(self, method: str = "GET", **headers: str) -> Answer:
        return self.web.request(method, PATH, headers={name.replace("_", "-"): v for name, v in headers.items()})

    def test_the_whole_file(self) -> None:
        answer = self.ask()
        self.assertEqual((answer.status, answer.body), (200, DATA))
        self.assertEqual(answer.headers["content-length"], str(len(DATA)))
        self.assertEqual(answer.headers["accept-ranges"], "bytes")

    def test_head_is_the_answer_without_its_body(self) -> None:
        answer = self.ask("HEAD")
        self.assertEqual((answer.status, answer.body), (200, b""))
        self.assertEqual(answer.headers["content-length"], str(len(DATA)))

    def test_a_range(self) -> None:
        answer = self.ask(Range="bytes=1000-200999")
        self.assertEqual((answer.status, answer.body), (206, DATA[1000:201000]))
        self.assertEqual(answer.headers["content-range"], f"bytes 1000-200999/{len(DATA)}")
        self.assertEqual(answer.headers["content-length"], "200000")

    def test_a_range_that_cannot_be_satisfied(self) -> None:
        answer = self.ask(Range=f"bytes={len(DATA)}-")
        self.assertEqual((answer.status, answer.errcode), (416, "M_UNKNOWN"))
        self.assertEqual(answer.headers["content-range"], f"bytes */{len(DATA)}")

    def test_a_range_only_of_the_file_that_the_client_knows(self) -> None:
        self.assertEqual(self.ask(Range="bytes=0-9", If_Range='"abc"').status, 206)
        self.assertEqual(self.ask(Range="bytes=0-9", If_Range='"other"').body, DATA)

    def test_a_file_that_the_client_has_is_not_sent(self) -> None:
        for tags in ('"abc"', 'W/"abc"', '"x", "abc"', "*"):
            answer = self.ask(If_None_Match=tags)
            self.assertEqual((answer.status, answer.body), (304, b""), tags)
            self.assertNotIn("content-length", answer.headers)
        self.assertEqual(self.ask(If_None_Match='"x"').status, 200)

    def test_a_file_that_is_gone(self) -> None:
        self.path.unlink()
        answer = self.ask()
        self.assertEqual((answer.status, answer.errcode), (404, "M_NOT_FOUND"))

    def test_a_file_that_is_shorter_than_promised_ends_the_connection(self) -> None:
        self.length += 10
        answer = self.ask()
        self.assertEqual(answer.body, DATA)
        self.assertTrue(answer.disconnecting)

    def test_a_slow_client_is_not_pressed(self) -> None:
        transport = self.ask_slowly()
        self.assertLess(len(transport.value()), len(DATA))
        for _ in range(10):
            self.clock.advance(STALLED_SECONDS - 1)
            transport.drain()
        self.assertTrue(transport.value().endswith(DATA))

    def test_a_client_that_takes_nothing_loses_the_connection(self) -> None:
        for header in ("", "TE: trailers\r\n"):
            transport = self.ask_slowly(header)
            self.clock.advance(STALLED_SECONDS - 1)
            self.assertFalse(transport.disconnected)
            self.clock.advance(1)
            self.assertTrue(transport.disconnected)

    def ask_slowly(self, header: str = "") -> SlowTransport:
        """A request of a client that takes its time; with a `header` it is one that Twisted's parser reads."""
        transport = SlowTransport(IPv4Address("TCP", "127.0.0.1", 1), IPv4Address("TCP", "127.0.0.1", 2))
        channel = self.web.site.buildProtocol(None)
        transport.protocol = channel
        channel.makeConnection(transport)
        channel.dataReceived(f"GET {PATH} HTTP/1.1\r\nHost: test\r\n{header}\r\n".encode())
        return transport

    def test_a_client_that_goes_away_is_forgotten(self) -> None:
        transport = self.ask_slowly()
        sent = len(transport.value())
        transport.protocol.connectionLost(ConnectionResetError())
        transport.drain()
        self.assertEqual(len(transport.value()), sent)


class SlowTransport(StringTransport):
    """Takes one piece at a time."""

    protocol: Any
    disconnected = False

    def abortConnection(self) -> None:
        super().abortConnection()
        self.disconnected = True
        self.protocol.connectionLost(ConnectionAbortedError())

    def write(self, data: bytes) -> None:
        super().write(data)
        if len(data) > 1000 and self.producer is not None:
            self.producer.pauseProducing()

    def drain(self) -> None:
        if self.producer is not None:
            self.producer.resumeProducing()
