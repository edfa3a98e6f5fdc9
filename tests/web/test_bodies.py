"""Bodies are looked at before they are read: limits, files, callers, clients that go away."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.test.requesthelper import DummyChannel

from dendrite_tw.matrix.errors import MatrixError
from dendrite_tw.user_api.api import Caller
from dendrite_tw.web.bodies import LINGER_SECONDS, BoundedRequest, apis_below
from dendrite_tw.web.resource import ApiResource, Exchange
from dendrite_tw.web.routes import DEFAULT_BODY_LIMIT, Access, Route
from dendrite_tw.web.site import make_root
from tests.harness import ALICE, CALLERS, Answer, KnownCallers, NoLimits, Root, Web, serve

PATH = "/_matrix/media/v3/upload"


class Paper:
    """A `BodyFile` in memory."""

    def __init__(self) -> None:
        self.text = b""
        self.closed = 0
        self.problem: Exception | None = None

    def write(self, data: bytes) -> None:
        if self.problem is not None:
            raise self.problem
        self.text += data

    def tell(self) -> int:
        return len(self.text)

    def seek(self, offset: int, whence: int = 0) -> None: ...

    def close(self) -> None:
        self.closed += 1


class Desk:
    def __init__(self) -> None:
        self.papers: list[Paper] = []
        self.problem: Exception | None = None
        self.full = False

    def open(self) -> Paper:
        if self.full:
            raise OSError(28, "No space left on device")
        self.papers.append(Paper())
        self.papers[-1].problem = self.problem
        return self.papers[-1]

    async def upload(self, caller: Caller, body: Paper) -> dict[str, Any]:
        return {"by": caller.user_id, "bytes": len(body.text), "closed": body.closed}

    async def plain(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"keys": len(body)}

    def routes(self) -> list[Route]:
        return [
            Route("POST", PATH, self.upload, body_limit=1000, body_file=self.open),
            Route("POST", "/_matrix/client/v3/plain", self.plain, Access.PUBLIC, body_limit=100),
        ]


class SlowCallers:
    """Authentication that takes its time."""

    def __init__(self) -> None:
        self.asked: list[Deferred[Caller]] = []

    async def caller(self, access: Access, exchange: Exchange) -> Caller | None:
        self.asked.append(Deferred())
        return await self.asked[-1]


class BodyTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.desk, self.clock = Desk(), Clock()
        self.web = serve(self.desk.routes(), self.clock)

    def begin(self, *lines: str, web: Web | None = None) -> tuple[Any, StringTransport, Answer]:
        """A connection on which these lines of a head were sent."""
        transport = StringTransport()
        channel = (web or self.web).site.buildProtocol(None)
        channel.makeConnection(transport)
        channel.dataReceived("".join(f"{line}\r\n" for line in ("POST " + lines[0], *lines[1:], "")).encode())
        return channel, transport, Answer(transport)

    def lingering(self) -> list[Any]:
        """The calls that are to close a connection soon."""
        soon = self.clock.seconds() + LINGER_SECONDS
        return [call for call in self.clock.getDelayedCalls() if call.getTime() <= soon]

    def check_refused(self, answer: Answer, status: int, errcode: str) -> None:
        self.assertEqual((answer.status, answer.errcode), (status, errcode), answer)
        self.assertEqual(answer.headers["access-control-allow-origin"], "*")
        self.assertEqual({paper.closed for paper in self.desk.papers} - {1}, set())

    def test_a_body_goes_to_its_file(self) -> None:
        answer = self.web.request("POST", PATH, b"x" * 1000, "alice")
        self.assertEqual(answer.json, {"by": "@alice:test", "bytes": 1000, "closed": 0})
        self.assertEqual(self.desk.papers[0].closed, 1)

    def test_a_form_is_not_parsed(self) -> None:
        for kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
            answer = self.web.request("POST", PATH, b"a=b&c", "alice", {"Content-Type": kind})
            self.assertEqual(answer.json["bytes"], 5)

    def test_an_empty_body_is_a_body(self) -> None:
        self.assertEqual(self.web.request("POST", PATH, b"", "alice").json["bytes"], 0)

    def test_too_large_is_refused_before_the_body(self) -> None:
        channel, transport, answer = self.begin(
            f"{PATH} HTTP/1.1", "Authorization: Bearer alice", "Content-Length: 1001", "Expect: 100-continue"
        )
        self.check_refused(answer, 413, "M_TOO_LARGE")
        self.assertEqual(self.desk.papers, [])
        self.assertNotIn(b"100 Continue", transport.value())
        before = transport.value()
        channel.dataReceived(b"x" * 500)
        self.assertFalse(transport.disconnecting)
        channel.dataReceived(b"x" * 501)
        self.assertTrue(transport.disconnecting)
        self.assertEqual(transport.value(), before)
        self.assertEqual(self.lingering(), [])

    def test_a_refused_client_is_not_heard_for_ever(self) -> None:
        _, transport, answer = self.begin("/_matrix/client/v3/plain HTTP/1.1", "Content-Length: 101")
        self.check_refused(answer, 413, "M_TOO_LARGE")
        self.clock.advance(LINGER_SECONDS)
        self.assertTrue(transport.disconnecting)

    def test_a_refused_client_may_go_first(self) -> None:
        channel, _, answer = self.begin("/_matrix/client/v3/plain HTTP/1.1", "Content-Length: 101")
        channel.connectionLost(ConnectionResetError())
        self.assertEqual(self.lingering(), [])
        self.check_refused(answer, 413, "M_TOO_LARGE")

    def test_unknown_endpoints_take_no_large_bodies(self) -> None:
        _, _, answer = self.begin("/nowhere HTTP/1.1", "Content-Length: 99999999999")
        self.check_refused(answer, 413, "M_TOO_LARGE")

    def test_a_body_of_unknown_length_is_refused_where_it_grows_too_large(self) -> None:
        channel, _, answer = self.begin(f"{PATH} HTTP/1.1", "Authorization: Bearer alice", "Transfer-Encoding: chunked")
        for _ in range(4):
            channel.dataReceived(b"fa\r\n" + b"x" * 250 + b"\r\n")
        self.assertFalse(answer.done)
        channel.dataReceived(b"1\r\nx\r\n")
        self.check_refused(answer, 413, "M_TOO_LARGE")
        self.assertEqual(len(self.desk.papers), 1)

    def test_strangers_are_refused_before_the_body(self) -> None:
        for header, errcode in (("X-Nothing: 1", "M_MISSING_TOKEN"), ("Authorization: Bearer zoe", "M_UNKNOWN_TOKEN")):
            _, _, answer = self.begin(f"{PATH} HTTP/1.1", header, "Content-Length: 900")
            self.check_refused(answer, 401, errcode)
        self.assertEqual(self.desk.papers, [])

    def test_a_token_in_the_query_admits(self) -> None:
        channel, _, answer = self.begin(f"{PATH}?access_token=bob HTTP/1.1", "Content-Length: 3")
        channel.dataReceived(b"abc")
        self.assertEqual(answer.json["by"], "@bob:test")

    def test_a_client_waits_until_it_is_known(self) -> None:
        callers = SlowCallers()
        web = Web(Root(ApiResource(self.desk.routes(), callers, NoLimits())), self.clock)
        channel, transport, answer = self.begin(f"{PATH} HTTP/1.1", "Content-Length: 3", web=web)
        self.assertEqual(transport.producerState, "paused")
        callers.asked[0].callback(ALICE)
        self.assertEqual(transport.producerState, "producing")
        channel.dataReceived(b"abc")
        callers.asked[1].callback(ALICE)
        self.assertEqual(answer.json["bytes"], 3)
        _, _, refused = self.begin(f"{PATH} HTTP/1.1", "Content-Length: 3", web=web)
        callers.asked[2].errback(MatrixError(401, "M_UNKNOWN_TOKEN", "No."))
        self.check_refused(refused, 401, "M_UNKNOWN_TOKEN")

    def test_a_disk_that_is_full_is_said_to_be(self) -> None:
        self.desk.problem = OSError(28, "No space left on device")
        self.check_refused(self.web.request("POST", PATH, b"abc", "alice"), 503, "M_UNKNOWN")
        self.desk.full = True
        self.check_refused(self.web.request("POST", PATH, b"abc", "alice"), 503, "M_UNKNOWN")

    def test_a_file_may_refuse_to_grow(self) -> None:
        self.desk.problem = MatrixError(403, "M_FORBIDDEN", "Enough.")
        self.check_refused(self.web.request("POST", PATH, b"abc", "alice"), 403, "M_FORBIDDEN")

    def test_a_client_that_goes_away_leaves_no_file(self) -> None:
        channel, _, _ = self.begin(f"{PATH} HTTP/1.1", "Authorization: Bearer alice", "Content-Length: 900")
        channel.dataReceived(b"abc")
        channel.connectionLost(ConnectionResetError())
        self.assertEqual([paper.closed for paper in self.desk.papers], [1])

    def test_connections_go_on_after_a_body(self) -> None:
        channel, _, answer = self.begin(f"{PATH} HTTP/1.1", "Authorization: Bearer alice", "Content-Length: 3")
        channel.dataReceived(b"abc" + b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertIn(b"M_UNRECOGNIZED", answer.body)

    def test_a_whole_site_knows_its_bodies(self) -> None:
        root = make_root(self.desk.routes(), KnownCallers(CALLERS), NoLimits(), lambda endpoint, status: None)
        self.assertEqual([path for path, _ in apis_below(root)], [b"/_matrix/media", b"/_matrix/client"])
        self.web = Web(root, self.clock)
        self.assertEqual(self.web.request("POST", PATH, b"x" * 1000, "alice").json["bytes"], 1000)
        _, _, answer = self.begin(f"{PATH} HTTP/1.1", "Authorization: Bearer alice", "Content-Length: 1001")
        self.check_refused(answer, 413, "M_TOO_LARGE")

    def test_any_site_serves_such_a_route(self) -> None:
        """A site that reads bodies to where it likes: they are copied, and bounded all the same."""
        from twisted.web.server import Site

        self.web.site = Site(self.web.site.resource, reactor=self.clock)
        self.assertEqual(self.web.request("POST", PATH, b"x" * 1000, "alice").json["bytes"], 1000)
        self.check_refused(self.web.request("POST", PATH, b"x" * 1001, "alice"), 413, "M_TOO_LARGE")

    def test_a_channel_that_is_not_http_1_is_left_to_the_resource(self) -> None:
        request = BoundedRequest(DummyChannel(), False)
        request.gotLength(DEFAULT_BODY_LIMIT + 1)
        for _ in range(2):
            request.handleContentChunk(b"x" * DEFAULT_BODY_LIMIT)
        assert request.content is not None
        self.assertEqual(request.content.tell(), 2 * DEFAULT_BODY_LIMIT)
        request.content.close()

    def test_a_file_needs_a_handler_that_takes_it(self) -> None:
        with self.assertRaises(TypeError):
            serve([Route("POST", "/x", self.nothing, body_file=self.desk.open)], self.clock)

    async def nothing(self) -> None: ...
