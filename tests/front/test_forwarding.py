"""Requests that one process hands on to another: whole, in both directions, and whatever becomes of either side."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from io import BytesIO
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.front.serving import Inner
from dendrite_tw.front.site import PATIENCE, FrontSite
from dendrite_tw.front.tunnel import DEAD_SECONDS, PIECE, WINDOW, Tunnels
from dendrite_tw.user_api.api import Caller
from dendrite_tw.web.resource import Exchange
from dendrite_tw.web.routes import Access, BodyFile, Response, Route
from dendrite_tw.web.site import make_root
from tests.harness import Answer, KnownCallers, NoLimits, Wire
from tests.links.support import Broker, Process

LARGE = bytes(range(256)) * 8192
"""Two megabytes."""

UPLOAD_LIMIT = 3 << 20


class Callers(KnownCallers):
    """Callers who may take their time to be known."""

    gate: Deferred[None] | None = None

    async def caller(self, access: Access, exchange: Exchange) -> Caller | None:
        if access is Access.USER and self.gate is not None:
            await self.gate
        return await super().caller(access, exchange)


class Serving:
    """A process that serves the client API."""

    def __init__(self, broker: Broker, name: str) -> None:
        self.name = name
        self.process: Process = broker.process(name)
        self.tunnels = Tunnels(self.process.client, broker.clock, self.process.echoes, name)
        self.callers = Callers({})
        root = make_root(self.routes(), self.callers, NoLimits(), lambda endpoint, status: None)
        self.inner = Inner(self.tunnels, root, broker.clock)
        self.inner.serve("client_api")
        self.polls: list[Deferred[None]] = []
        self.cancelled = 0
        self.made = 0
        self.asked = 0
        self.uploaded: list[bytes] = []
        broker.settle()

    def routes(self) -> list[Route]:
        base = "/_matrix/client/v3/"
        return [
            Route("GET", base + "whoami", self.whoami, Access.PUBLIC),
            Route("POST", base + "echo", self.echo, Access.PUBLIC),
            Route("GET", base + "poll", self.poll, Access.PUBLIC),
            Route("PUT", base + "act", self.act, Access.PUBLIC),
            Route("GET", base + "large", self.large, Access.PUBLIC),
            Route("GET", base + "pieces", self.pieces, Access.PUBLIC),
            Route("POST", base + "upload", self.upload, Access.USER, body_limit=UPLOAD_LIMIT, body_file=BytesIO),
        ]

    async def whoami(self, request: Exchange) -> dict[str, Any]:
        return {"process": self.name, "ip": request.ip, "agent": request.user_agent, "uri": request.uri.decode()}

    async def echo(self, body: dict[str, Any]) -> dict[str, Any]:
        return body

    async def poll(self) -> dict[str, Any]:
        await self._wait()
        return {"process": self.name}

    async def act(self) -> dict[str, Any]:
        await self._wait()
        return {"process": self.name}

    async def _wait(self) -> None:
        self.asked += 1
        self.polls.append(Deferred())
        try:
            await self.polls[-1]
        except CancelledError:
            self.cancelled += 1
            raise

    async def large(self) -> Response:
        return Response(200, LARGE, b"application/octet-stream")

    async def pieces(self) -> Response:
        async def generate() -> AsyncGenerator[bytes, None]:
            for _ in range(100):
                self.made += 1
                yield b"p" * PIECE

        return Response(200, pieces=generate())

    async def upload(self, body: BodyFile, caller: Caller) -> dict[str, Any]:
        file: Any = body
        self.uploaded.append(file.read())
        return {"size": len(self.uploaded[-1])}


class Connection:
    """A client's connection to a front, whose bytes the test sends."""

    def __init__(self, case: ForwardingCase) -> None:
        self.case = case
        self.wire = Wire(
            hostAddress=IPv4Address("TCP", "127.0.0.1", 8008), peerAddress=IPv4Address("TCP", "192.0.2.7", 4242)
        )
        self.channel: Any = case.front.buildProtocol(None)
        self.channel.makeConnection(self.wire)

    def send(self, data: bytes) -> Answer:
        self.channel.dataReceived(data)
        self.case.settle()
        return Answer(self.wire)

    def lose(self) -> None:
        self.channel.connectionLost(Failure(ConnectionDone()))
        self.case.settle()


def head(method: str, path: str, *lines: str, version: str = "HTTP/1.1") -> bytes:
    return "\r\n".join(
        [f"{method} /_matrix/client/v3/{path} {version}", "Host: test", "User-Agent: tester", *lines, "", ""]
    ).encode()


class ForwardingCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.broker = Broker()
        self.clock = self.broker.clock
        process = self.broker.process("front")
        self.tunnels = Tunnels(process.client, self.clock, process.echoes, "front")
        root = make_root([], KnownCallers({}), NoLimits(), lambda endpoint, status: None)
        self.front = FrontSite(root, self.clock, frozenset(["sync_api"]), self.tunnels)
        self.front.ready = True
        self.settle()

    def settle(self) -> None:
        for _ in range(20):
            self.broker.settle()

    def advance(self, seconds: float) -> None:
        self.broker.advance(seconds, 0.25)
        self.settle()

    def ask(self, method: str, path: str, *lines: str, body: bytes = b"") -> tuple[Connection, Answer]:
        connection = Connection(self)
        if body:
            lines = (*lines, f"Content-Length: {len(body)}")
        return connection, connection.send(head(method, path, *lines) + body)


class AnswerTests(ForwardingCase):
    def setUp(self) -> None:
        super().setUp()
        self.there = Serving(self.broker, "there")

    def test_a_question_with_all_that_belongs_to_it(self) -> None:
        _, answer = self.ask("GET", "whoami?a=%20b")
        self.assertEqual(answer.status, 200)
        self.assertEqual(
            answer.json,
            {"process": "there", "ip": "192.0.2.7", "agent": "tester", "uri": "/_matrix/client/v3/whoami?a=%20b"},
        )
        self.assertEqual(answer.headers["access-control-allow-origin"], "*")
        self.assertFalse(answer.disconnecting)

    def test_a_connection_goes_on(self) -> None:
        connection, _ = self.ask("GET", "whoami")
        for number in range(3):
            connection.wire.clear()
            body = b'{"n":%d}' % number
            answer = connection.send(head("POST", "echo", f"Content-Length: {len(body)}") + body)
            self.assertEqual((answer.status, answer.json), (200, {"n": number}))
        self.assertEqual(self.there.inner.busy, 0)

    def test_requests_that_come_together_are_answered_in_their_order(self) -> None:
        connection = Connection(self)
        connection.send(head("GET", "whoami?1") + head("GET", "whoami?2"))
        said = connection.wire.value()
        self.assertEqual(said.count(b"HTTP/1.1 200"), 2)
        self.assertLess(said.index(b"whoami?1"), said.index(b"whoami?2"))

    def test_what_comes_in_pieces(self) -> None:
        connection = Connection(self)
        data = head("POST", "echo", "Content-Length: 8") + b'{"a": 1}'
        for at in range(len(data)):
            answer = connection.send(data[at : at + 1])
        self.assertEqual((answer.status, answer.json), (200, {"a": 1}))

    def test_chunks(self) -> None:
        connection = Connection(self)
        connection.send(head("POST", "echo", "Transfer-Encoding: chunked"))
        connection.send(b"4\r\n" + b'{"a"' + b"\r\n")
        answer = connection.send(b"4\r\n" + b": 1}" + b"\r\n0\r\n\r\n")
        self.assertEqual((answer.status, answer.json), (200, {"a": 1}))

    def test_old_http_has_its_connection_closed(self) -> None:
        connection = Connection(self)
        answer = connection.send(head("GET", "pieces", version="HTTP/1.0"))
        self.assertEqual(answer.status, 200)
        self.assertEqual(len(connection.wire.value().partition(b"\r\n\r\n")[2]), 100 * PIECE)
        self.assertTrue(connection.wire.disconnecting)

    def test_only_the_head(self) -> None:
        connection, answer = self.ask("HEAD", "large")
        self.assertEqual((answer.status, answer.headers["content-length"]), (200, str(len(LARGE))))
        self.assertEqual(connection.wire.value().partition(b"\r\n\r\n")[2], b"")
        connection.wire.clear()
        self.assertEqual(connection.send(head("GET", "whoami")).status, 200)

    def test_what_there_is_not(self) -> None:
        for method, path, status in (("GET", "nothing", 404), ("DELETE", "echo", 405), ("OPTIONS", "echo", 200)):
            _, answer = self.ask(method, path)
            self.assertEqual(answer.status, status, path)
            if status != 200:
                self.assertEqual(answer.errcode, "M_UNRECOGNIZED")

    def test_what_is_malformed_is_refused_here(self) -> None:
        connection = Connection(self)
        connection.send(b"GET /_matrix/client/v3/whoami HTTP/1.1\r\nContent-Length: x\r\n\r\n")
        self.assertIn(b"400 Bad Request", connection.wire.value())
        self.assertTrue(connection.wire.disconnecting)
        self.assertEqual(self.there.inner.busy, 0)

    def test_a_large_answer(self) -> None:
        _, answer = self.ask("GET", "large")
        self.assertEqual(answer.body, LARGE)

    def test_a_client_that_takes_its_time(self) -> None:
        connection = Connection(self)
        connection.channel.dataReceived(head("GET", "pieces"))
        connection.channel.pauseProducing()
        self.settle()
        before = self.there.made
        self.assertLess(before, 2 * WINDOW // PIECE + 4)
        self.advance(30)
        self.assertEqual(self.there.made, before)
        connection.channel.resumeProducing()
        self.settle()
        self.assertEqual(len(Answer(connection.wire).body), 100 * PIECE)

    def test_a_client_that_goes_away_is_not_waited_for(self) -> None:
        connection, _ = self.ask("GET", "poll")
        self.assertEqual((len(self.there.polls), self.there.inner.busy), (1, 1))
        connection.lose()
        self.assertEqual((self.there.cancelled, self.there.inner.busy), (1, 0))

    def test_a_poll_of_minutes(self) -> None:
        _, answer = self.ask("GET", "poll")
        self.advance(300)
        self.assertFalse(answer.done)
        self.there.polls[0].callback(None)
        self.settle()
        self.assertEqual(answer.json, {"process": "there"})


class UploadTests(ForwardingCase):
    def setUp(self) -> None:
        super().setUp()
        self.there = Serving(self.broker, "there")
        self.there.callers.callers["t"] = Caller(user_id="@alice:test", device_id="A", session_id=1)
        self.lines = ["Authorization: Bearer t"]

    def test_an_upload(self) -> None:
        connection = Connection(self)
        connection.send(head("POST", "upload", *self.lines, f"Content-Length: {len(LARGE)}"))
        for at in range(0, len(LARGE), 100_000):
            answer = connection.send(LARGE[at : at + 100_000])
        self.assertEqual((answer.status, answer.json), (200, {"size": len(LARGE)}))
        self.assertEqual(self.there.uploaded, [LARGE])

    def test_no_more_is_read_than_can_go_on(self) -> None:
        self.there.callers.gate = Deferred()
        connection = Connection(self)
        connection.send(head("POST", "upload", *self.lines, f"Content-Length: {len(LARGE)}"))
        sent = 0
        while connection.wire.producerState == "producing" and sent < len(LARGE):
            connection.send(LARGE[sent : sent + PIECE])
            sent += PIECE
        self.assertEqual(connection.wire.producerState, "paused")
        self.assertLess(sent, 2 * WINDOW + 2 * PIECE)
        self.there.callers.gate.callback(None)
        self.settle()
        self.assertEqual(connection.wire.producerState, "producing")
        for at in range(sent, len(LARGE), PIECE):
            answer = connection.send(LARGE[at : at + PIECE])
        self.assertEqual(answer.json, {"size": len(LARGE)})
        self.assertEqual(self.there.uploaded, [LARGE])

    def test_who_may_not_upload_is_told_at_once(self) -> None:
        connection = Connection(self)
        answer = connection.send(head("POST", "upload", f"Content-Length: {len(LARGE)}"))
        self.assertEqual(answer.errcode, "M_MISSING_TOKEN")
        for at in range(0, len(LARGE), PIECE):
            connection.send(LARGE[at : at + PIECE])
        self.advance(5)
        self.assertTrue(connection.wire.disconnecting)
        self.assertEqual(self.there.uploaded, [])

    def test_what_is_too_large(self) -> None:
        connection = Connection(self)
        answer = connection.send(head("POST", "upload", *self.lines, f"Content-Length: {UPLOAD_LIMIT + 1}"))
        self.assertEqual((answer.status, answer.errcode), (413, "M_TOO_LARGE"))

    def test_who_asks_whether_to_send_is_answered_by_who_knows(self) -> None:
        connection = Connection(self)
        size = f"Content-Length: {PIECE}"
        connection.send(head("POST", "upload", *self.lines, size, "Expect: 100-continue"))
        self.assertEqual(connection.wire.value(), b"HTTP/1.1 100 Continue\r\n\r\n")
        connection.wire.clear()
        answer = connection.send(LARGE[:PIECE])
        self.assertEqual(answer.json, {"size": PIECE})
        refused = Connection(self)
        refused.send(head("POST", "upload", f"Content-Length: {PIECE}", "Expect: 100-continue"))
        self.assertNotIn(b"100 Continue", refused.wire.value())
        self.assertIn(b"M_MISSING_TOKEN", refused.wire.value())

    def test_a_client_that_stops_in_the_middle(self) -> None:
        connection = Connection(self)
        connection.send(head("POST", "upload", *self.lines, f"Content-Length: {len(LARGE)}") + LARGE[:1000])
        self.assertEqual(self.there.inner.busy, 1)
        connection.lose()
        self.assertEqual((self.there.inner.busy, self.there.uploaded), (0, []))


class NobodyThere(ForwardingCase):
    def unavailable(self, answer: Answer) -> None:
        self.assertEqual((answer.status, answer.errcode), (503, "M_UNKNOWN"))
        self.assertGreater(answer.json["retry_after_ms"], 0)
        self.assertIn("retry-after", answer.headers)

    def test_it_is_said_after_a_moment(self) -> None:
        for method in ("GET", "POST"):
            _, answer = self.ask(method, "echo", body=b"{}" if method == "POST" else b"")
            self.assertFalse(answer.done)
            self.advance(PATIENCE + 1)
            self.unavailable(answer)

    def test_somebody_comes(self) -> None:
        body = b'{"a": "' + b"x" * (3 * PIECE) + b'"}'
        _, answer = self.ask("POST", "echo", body=body)
        Serving(self.broker, "late")
        self.advance(1)
        self.assertEqual(answer.status, 200)
        self.assertEqual(len(answer.json["a"]), 3 * PIECE)

    def test_what_comes_while_nobody_is_there_is_kept_within_bounds(self) -> None:
        connection = Connection(self)
        connection.send(head("POST", "upload", f"Content-Length: {len(LARGE)}"))
        sent = 0
        while connection.wire.producerState == "producing" and sent < len(LARGE):
            connection.send(LARGE[sent : sent + PIECE])
            sent += PIECE
        self.assertLessEqual(sent, WINDOW + PIECE)
        self.advance(PATIENCE + 1)
        self.unavailable(Answer(connection.wire))

    def test_the_broker_is_away(self) -> None:
        Serving(self.broker, "there")
        self.tunnels.client.disconnected("the wire is cut")
        _, answer = self.ask("GET", "whoami")
        self.advance(PATIENCE + 1)
        self.unavailable(answer)


class Deaths(ForwardingCase):
    def setUp(self) -> None:
        super().setUp()
        self.one = Serving(self.broker, "one")

    def die(self) -> None:
        """The process is killed: nobody says anything for it any more."""
        self.one.process.link.cut()
        self.one.process.client._send = None

    def test_a_question_is_asked_again(self) -> None:
        _, answer = self.ask("GET", "poll")
        self.assertEqual(self.one.asked, 1)
        self.die()
        other = Serving(self.broker, "other")
        self.advance(DEAD_SECONDS + 3)
        self.assertEqual(other.asked, 1)
        other.polls[0].callback(None)
        self.settle()
        self.assertEqual(answer.json, {"process": "other"})

    def test_what_changes_something_is_not(self) -> None:
        _, answer = self.ask("PUT", "act")
        self.assertEqual(self.one.asked, 1)
        self.die()
        other = Serving(self.broker, "other")
        self.advance(DEAD_SECONDS + 3)
        self.assertEqual((answer.status, answer.errcode, other.asked), (503, "M_UNKNOWN", 0))

    def test_in_the_middle_of_an_answer_the_connection_is_cut(self) -> None:
        connection = Connection(self)
        connection.channel.dataReceived(head("GET", "pieces"))
        connection.channel.pauseProducing()
        self.settle()
        self.die()
        self.advance(DEAD_SECONDS + 3)
        self.assertTrue(connection.wire.disconnected or connection.wire.disconnecting or connection.wire.aborted)

    def test_of_the_one_that_was_asked_the_other_is_told(self) -> None:
        self.ask("GET", "poll")
        self.tunnels.client._send = None
        self.advance(DEAD_SECONDS + 3)
        self.assertEqual((self.one.cancelled, self.one.inner.busy), (1, 0))


class Leaving(ForwardingCase):
    def setUp(self) -> None:
        super().setUp()
        self.there = Serving(self.broker, "there")

    def test_a_front_that_drains(self) -> None:
        idle, busy = Connection(self), Connection(self)
        idle.send(head("GET", "whoami"))
        busy.send(head("GET", "poll"))
        self.front.drain()
        self.assertTrue(idle.wire.disconnecting)
        self.assertFalse(busy.wire.disconnecting)
        self.assertEqual(self.front.busy, 1)
        self.there.polls[0].callback(None)
        self.settle()
        self.assertEqual(Answer(busy.wire).status, 200)
        self.assertTrue(busy.wire.disconnecting)
        self.assertEqual(self.front.busy, 0)

    def test_one_who_serves_takes_no_more_and_finishes(self) -> None:
        _, first = self.ask("GET", "poll")
        Deferred.fromCoroutine(self.there.tunnels.withdraw())
        self.settle()
        Serving(self.broker, "next")
        _, second = self.ask("GET", "whoami")
        self.assertEqual(second.json["process"], "next")
        self.there.polls[0].callback(None)
        self.settle()
        self.assertEqual(first.json, {"process": "there"})

    def test_before_it_has_started_it_says_so(self) -> None:
        self.front.ready = False
        connection = Connection(self)
        answer = connection.send(b"GET /_matrix/client/v3/sync HTTP/1.1\r\nHost: test\r\n\r\n")
        self.assertEqual((answer.status, answer.errcode), (503, "M_UNKNOWN"))
        self.assertIn("starting", answer.json["error"])
        slow = Connection(self)
        slow.send(b"POST /_matrix/client/v3/user/x/filter HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\n")
        self.assertIn(b" 503 ", slow.wire.value())
