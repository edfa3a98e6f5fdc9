"""The Authorization header between servers: every way to write it, and every way to forge a request."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.federation_api import failures
from dendrite_tw.federation_api.failures import BURST_OF_ADDRESS, BURST_OF_NAME, FORGIVEN_MS, FailedRequests
from dendrite_tw.federation_api.keyring import KeyUnavailable
from dendrite_tw.federation_api.xmatrix import (
    HEADER_LIMIT,
    ServerAuthenticator,
    XMatrix,
    build_header,
    parse_header,
    request_message,
    sign_request,
)
from dendrite_tw.matrix import signing
from dendrite_tw.matrix.canonical_json import CanonicalJSONError
from dendrite_tw.matrix.errors import MatrixError
from dendrite_tw.web.resource import ApiResource
from dendrite_tw.web.routes import Access, Endpoint, Route
from dendrite_tw.world import ReactorClock
from tests.harness import Answer, KnownCallers, NoLimits, Root, Web

from .network import key_of

SAID = XMatrix("a.test:8448", "ed25519:k_1", "c2ln/+", "b.test")


class HeaderTests(SynchronousTestCase):
    def test_what_is_built_is_read(self) -> None:
        header = build_header("a.test:8448", "b.test", "ed25519:k_1", "c2ln/+")
        self.assertEqual(header, 'X-Matrix origin="a.test:8448",destination="b.test",key="ed25519:k_1",sig="c2ln/+"')
        self.assertEqual(parse_header(header), SAID)

    def test_every_way_to_write_it(self) -> None:
        for header in (
            'x-matrix origin="a.test:8448",destination="b.test",key="ed25519:k_1",sig="c2ln/+"',
            'X-MATRIX    Origin="a.test:8448", DESTINATION=b.test ,\tKey=ed25519:k_1, sIg=c2ln/+',
            "X-Matrix sig=c2ln/+,key=ed25519:k_1,destination=b.test,origin=a.test:8448",
            'X-Matrix origin="a.\\test:8448",destination="b.test",key="ed25519:k\\_1",sig="c2ln\\/+"',
            'X-Matrix origin = "a.test:8448" , destination = b.test, key=ed25519:k_1, sig="c2ln/+"',
            'X-Matrix extra="a,b=\\"c\\"",origin=a.test:8448,destination=b.test,key=ed25519:k_1,sig=c2ln/+',
            "X-Matrix origin=a.test:8448,destination=b.test,key=ed25519:k_1,signature=c2ln/+",
            "X-Matrix origin=a.test:8448,destination=b.test,key=ed25519:k_1,sig=c2ln/+,",
        ):
            self.assertEqual(parse_header(header), SAID, header)

    def test_old_servers_name_no_destination(self) -> None:
        self.assertIsNone(parse_header("X-Matrix origin=a.test,key=ed25519:1,sig=x").destination)

    def test_what_cannot_be_read(self) -> None:
        for header in (
            "",
            "X-Matrix",
            "X-Matrix ",
            "X-Matrixorigin=a.test,key=ed25519:1,sig=x",
            "Bearer abc",
            "X-Matrix origin=a.test,key=ed25519:1",
            "X-Matrix origin=a.test,sig=x",
            "X-Matrix key=ed25519:1,sig=x",
            "X-Matrix origin=a.test,origin=b.test,key=ed25519:1,sig=x",
            "X-Matrix origin=a.test,Origin=a.test,key=ed25519:1,sig=x",
            'X-Matrix origin="a.test,key=ed25519:1,sig=x',
            "X-Matrix origin=a.test key=ed25519:1 sig=x",
            "X-Matrix origin=,key=ed25519:1,sig=x",
            "X-Matrix origin=a b,key=ed25519:1,sig=x",
            'X-Matrix origin="a.test/x",key=ed25519:1,sig=x',
            'X-Matrix origin="",key=ed25519:1,sig=x',
            f"X-Matrix origin=a.test,key=ed25519:{'1' * 300},sig=x",
            f"X-Matrix origin=a.test,key=ed25519:1,sig={'x' * HEADER_LIMIT}",
            "X-Matrix ,,,",
            "X-Matrix =,=",
        ):
            self.assertRaises(ValueError, parse_header, header)

    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(st.text(alphabet='abc"\\,= \t:.-_=/+ü\0', max_size=60))
    def test_nothing_breaks_it(self, text: str) -> None:
        try:
            parse_header("X-Matrix " + text)
        except ValueError:
            pass

    def test_a_long_header_is_read_in_little_time(self) -> None:
        for filler in (" ", "\t", "a", "\\", '"', "=", ",", 'a="', "a=b,"):
            self.assertRaises(ValueError, parse_header, "X-Matrix " + (filler * HEADER_LIMIT)[: HEADER_LIMIT - 20])


class MessageTests(SynchronousTestCase):
    def test_the_signed_object(self) -> None:
        self.assertEqual(
            request_message("PUT", "/x?y=1", "a.test", "b.test", b'{ "b": 1, "a": "\\u00fc" }'),
            '{"content":{"a":"ü","b":1},"destination":"b.test","method":"PUT","origin":"a.test","uri":"/x?y=1"}'.encode(),
        )
        self.assertEqual(
            request_message("GET", "/x", "a.test", None, None), b'{"method":"GET","origin":"a.test","uri":"/x"}'
        )

    def test_numbers_of_old_rooms(self) -> None:
        self.assertIn(b'{"n":1.5}', request_message("PUT", "/", "a.test", "b.test", b'{"n": 1.5}'))
        big = b'{"n": 123456789012345678901234567890}'
        self.assertIn(b"123456789012345678901234567890", request_message("PUT", "/", "a.test", "b.test", big))

    def test_what_is_not_json(self) -> None:
        for body in (b"{", b"nonsense", b'{"a": NaN}', b"[" * 5000 + b"]" * 5000, b'"\\ud800"', b"\xff"):
            with self.assertRaises(CanonicalJSONError):
                request_message("PUT", "/", "a.test", "b.test", body)


class OneKey:
    """Knows one key of one server."""

    def __init__(self) -> None:
        self.moments: list[int] = []

    async def verify(self, server_name: str, key_id: str, message: bytes, signature: str, at: int) -> None:
        self.moments.append(at)
        if (server_name, key_id) != ("a.test", "ed25519:one"):
            raise KeyUnavailable("the key is not to be had")
        signing.verify_bytes(message, signature, key_of(1).verify_key)


class Endpoints:
    async def put(self, origin: str, thing: str, body: dict[str, Any]) -> dict[str, Any]:
        return {"origin": origin, "thing": thing, "body": body}

    async def get(self, thing: str) -> dict[str, Any]:
        return {"thing": thing}


class AuthenticatorTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.seen: list[str] = []
        self.ring = OneKey()
        things = Endpoints()
        self.routes = [
            Route("PUT", "/_matrix/federation/v1/put/{thing}", things.put, Access.SERVER, body_limit=1000),
            Route("GET", "/_matrix/federation/v1/get/{thing}", things.get, Access.SERVER),
        ]
        self.clock = Clock()
        self.failures = FailedRequests(ReactorClock(self.clock))
        self.servers = ServerAuthenticator(frozenset(["b.test"]), self.ring, lambda: 77, self.on_seen, self.failures)
        api = ApiResource(self.routes, KnownCallers({}), NoLimits(), servers=self.servers)
        self.web = Web(Root(api), self.clock)

    async def on_seen(self, server_name: str) -> None:
        self.seen.append(server_name)

    def put(self, header: str | None, body: bytes = b'{"a":1}', path: str = "/_matrix/federation/v1/put/x") -> Answer:
        return self.web.request("PUT", path, body, headers={"Authorization": header} if header else {})

    def sign(
        self, body: bytes | None = b'{"a":1}', destination: str = "b.test", method: str = "PUT", **other: Any
    ) -> str:
        uri = other.get("uri", "/_matrix/federation/v1/put/x")
        return sign_request(key_of(1), "a.test", destination, method, uri, body)

    def test_a_signed_request(self) -> None:
        answer = self.put(self.sign())
        self.assertEqual((answer.status, answer.json), (200, {"origin": "a.test", "thing": "x", "body": {"a": 1}}))
        self.assertEqual((self.seen, self.ring.moments), (["a.test"], [77]))

    def test_the_body_may_be_written_otherwise(self) -> None:
        self.assertEqual(self.put(self.sign(b'{"a":1,"b":2}'), b'{ "b": 2, "a": 1 }').status, 200)

    def test_a_request_without_a_body(self) -> None:
        uri = "/_matrix/federation/v1/get/%24x%2Fy?limit=3"
        header = self.sign(None, method="GET", uri=uri)
        answer = self.web.request("GET", uri, headers={"Authorization": header})
        self.assertEqual((answer.status, answer.json), (200, {"thing": "$x/y"}))
        self.assertEqual(self.web.request("GET", uri + "0", headers={"Authorization": header}).status, 401)

    def test_a_request_of_an_old_server_without_destination(self) -> None:
        message = request_message("PUT", "/_matrix/federation/v1/put/x", "a.test", None, b"{}")
        signature = signing.sign_bytes(message, key_of(1).secret)
        header = f'X-Matrix origin=a.test,key="ed25519:one",sig="{signature}"'
        self.assertEqual(self.put(header, b"{}").status, 200)
        self.assertEqual(self.put(header + ",destination=b.test", b"{}").status, 401)

    def test_forgeries(self) -> None:
        good = self.sign()
        for what, header, body in (
            ("no header", None, b'{"a":1}'),
            ("a token", "Bearer abc", b'{"a":1}'),
            ("nonsense", "X-Matrix nonsense", b'{"a":1}'),
            ("another body", good, b'{"a":2}'),
            ("no body", good, b""),
            ("another method", self.sign(method="POST"), b'{"a":1}'),
            ("another path", self.sign(uri="/_matrix/federation/v1/put/y"), b'{"a":1}'),
            ("a query", self.sign(uri="/_matrix/federation/v1/put/x?y"), b'{"a":1}'),
            ("another destination", self.sign(destination="c.test"), b'{"a":1}'),
            ("a destination that was not signed", good.replace("b.test", "c.test"), b'{"a":1}'),
            ("another origin", good.replace("a.test", "c.test"), b'{"a":1}'),
            ("our own name", good.replace("a.test", "b.test"), b'{"a":1}'),
            ("another key", good.replace("ed25519:one", "ed25519:two"), b'{"a":1}'),
            ("a broken signature", good.replace('sig="', 'sig="A'), b'{"a":1}'),
        ):
            answer = self.put(header, body)
            self.assertEqual((answer.status, answer.errcode), (401, "M_UNAUTHORIZED"), what)
        self.assertEqual(self.seen, [])

    def test_bodies_that_are_not_json_or_too_large(self) -> None:
        answer = self.put(self.sign(), b"nonsense")
        self.assertEqual((answer.status, answer.errcode), (400, "M_NOT_JSON"))
        asked = len(self.ring.moments)
        answer = self.put(self.sign(), b'{"a": "' + b"x" * 1000 + b'"}')
        self.assertEqual((answer.status, answer.errcode), (413, "M_TOO_LARGE"))
        self.assertEqual(len(self.ring.moments), asked)

    def test_who_signs_wrongly_too_often_has_to_wait(self) -> None:
        bad = self.sign(method="POST")
        for _ in range(BURST_OF_NAME):
            self.assertEqual(self.put(bad).status, 401)
        asked = len(self.ring.moments)
        for header, body in ((bad, b'{"a":1}'), (self.sign(), b'{"a":1}'), (bad, b"nonsense")):
            answer = self.put(header, body)
            self.assertEqual((answer.status, answer.errcode), (429, "M_LIMIT_EXCEEDED"))
            self.assertEqual(answer.json["retry_after_ms"], FORGIVEN_MS)
        self.assertEqual(len(self.ring.moments), asked)
        self.clock.advance(FORGIVEN_MS / 1000)
        self.assertEqual(self.put(self.sign()).status, 200)
        self.assertEqual(self.put(bad).status, 401, "a success forgives what was before it")

    def test_a_name_that_no_server_can_have(self) -> None:
        answer = self.put(self.sign().replace('"a.test"', '"a.test:http"'))
        self.assertEqual((answer.status, answer.errcode), (400, "M_INVALID_PARAM"))
        self.assertEqual(self.ring.moments, [])

    def test_bodies_that_are_not_json_count_too(self) -> None:
        for _ in range(BURST_OF_NAME):
            self.assertEqual(self.put(self.sign(), b"nonsense").status, 400)
        self.assertEqual(self.put(self.sign(), b"nonsense").status, 429)

    def test_without_federation_the_endpoints_are_not_there(self) -> None:
        self.web = Web(Root(ApiResource(self.routes, KnownCallers({}), NoLimits())), self.clock)
        answer = self.put(self.sign())
        self.assertEqual((answer.status, answer.errcode), (404, "M_UNRECOGNIZED"))

    def test_a_server_is_no_caller_and_its_body_no_file(self) -> None:
        async def wants_caller(caller: str) -> None: ...

        async def wants_body(body: Any) -> None: ...

        self.assertRaises(TypeError, Endpoint, Route("GET", "/x", wants_caller, Access.SERVER))
        self.assertRaises(TypeError, Endpoint, Route("PUT", "/x", wants_body, Access.SERVER, body_file=lambda: None))  # type: ignore[arg-type,return-value]

    def test_a_user_of_that_name_may_be_a_part_of_a_path(self) -> None:
        async def handler(origin: str) -> None: ...

        endpoint = Endpoint(Route("GET", "/x/{origin}", handler, Access.USER))
        self.assertFalse(endpoint.wants_origin)


class FailedRequestsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.failures = FailedRequests(ReactorClock(self.clock))

    def refused(self, address: str, name: str) -> int | None:
        """How long the next request has to wait, `None` if it does not."""
        try:
            self.failures.check(address, name)
        except MatrixError as error:
            return int(error.extra["retry_after_ms"])
        return None

    def test_one_name_at_one_address(self) -> None:
        for _ in range(BURST_OF_NAME + 5):
            self.failures.failed("192.0.2.1", "a.test")
        self.assertEqual(self.refused("192.0.2.1", "a.test"), FORGIVEN_MS)
        self.assertIsNone(self.refused("192.0.2.2", "a.test"), "whoever it was, a.test is elsewhere")
        self.assertIsNone(self.refused("192.0.2.1", "b.test"))
        self.clock.advance(FORGIVEN_MS / 1000)
        self.assertIsNone(self.refused("192.0.2.1", "a.test"))
        self.failures.failed("192.0.2.1", "a.test")
        self.assertIsNotNone(self.refused("192.0.2.1", "a.test"))

    def test_one_address_with_many_names(self) -> None:
        for number in range(BURST_OF_ADDRESS):
            self.assertIsNone(self.refused("192.0.2.1", f"s{number}.test"))
            self.failures.failed("192.0.2.1", f"s{number}.test")
        self.assertIsNotNone(self.refused("192.0.2.1", "another.test"))
        self.assertIsNone(self.refused("192.0.2.2", "another.test"))

    def test_only_so_many_are_remembered(self) -> None:
        self.patch(failures, "REMEMBERED", 10)
        self.failures = FailedRequests(ReactorClock(self.clock))
        for number in range(100):
            self.failures.failed(f"192.0.2.{number}", "a.test")
        self.assertEqual(len(self.failures), 20)
