"""Requests that go out: what is connected to, what is taken, and every way in which the other end can fail."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.web.client import HEAD_LIMIT, HttpAnswer, Peer, Stale
from dendrite_tw.web.internet import Unreachable
from dendrite_tw.web.networks import Networks
from dendrite_tw.web.tls import ClientTls
from tests.federation_api.network import SILENT, Network, Script, response

OK = response(b'{"ok": true}')


class HttpClientTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.network = Network(Clock())
        self.network.names.known["a.test"] = ["192.0.2.1"]
        self.client = self.network.client()

    def listen(self, *answers: bytes, tls: str | None = None, port: int = 80, close: bool = False) -> Script:
        script = Script(*answers, close=close)
        self.network.listen("192.0.2.1", port, script, certificate_for=tls)
        return script

    def get(self, url: str = "http://a.test/x", **options: Any) -> Deferred[HttpAnswer]:
        return self.network.begin(self.client.request("GET", url, **options))

    def reason(self, answer: Deferred[HttpAnswer]) -> str:
        return str(self.failureResultOf(answer, Unreachable).value.reason)

    def test_an_answer_is_read(self) -> None:
        script = self.listen(response(b'{"ok": true}', headers="X-Test: yes\r\n"))
        answer = self.successResultOf(self.get("http://a.test/x?y=1"))
        self.assertEqual((answer.status, answer.header("x-test")), (200, "yes"))
        self.assertEqual(answer.json_object(), {"ok": True})
        head = script.heard[0]
        self.assertTrue(head.startswith(b"GET /x?y=1 HTTP/1.1\r\n"), head)
        self.assertIn(b"Host: a.test\r\n", head)

    def test_a_body_is_sent(self) -> None:
        script = self.listen(OK)
        self.successResultOf(
            self.network.begin(
                self.client.request("PUT", "http://a.test/", [("Content-Type", "application/json")], b'{"a":1}')
            )
        )
        self.assertTrue(b"".join(script.heard).endswith(b'\r\n\r\n{"a":1}'))
        self.assertIn(b"Content-Length: 7\r\n", b"".join(script.heard))

    def test_the_address_is_asked_for_once_and_no_other_is_connected_to(self) -> None:
        self.listen(OK)
        self.network.names.known["a.test"] = ["192.0.2.1", "192.0.2.7"]
        self.successResultOf(self.get())
        self.assertEqual(self.network.names.asked, ["a.test"])
        self.assertEqual(self.network.connections, [("192.0.2.1", 80)])

    def test_the_next_address_is_tried(self) -> None:
        self.listen(OK)
        self.network.names.known["a.test"] = ["2001:db8::1", "192.0.2.1"]
        self.successResultOf(self.get())
        self.assertEqual(self.network.connections, [("2001:db8::1", 80), ("192.0.2.1", 80)])

    def test_denied_addresses_are_not_connected_to(self) -> None:
        self.listen(OK)
        self.client = self.network.client(Networks(["192.0.2.0/24"], []))
        self.assertIn("may not connect", self.reason(self.get()))
        self.assertIn("may not connect", self.reason(self.get("http://192.0.2.1/")))
        self.network.names.known["a.test"] = ["192.0.2.1", "198.51.100.1"]
        self.reason(self.get())
        self.assertEqual(self.network.connections, [("198.51.100.1", 80)])

    def test_redirections_are_handed_over_unless_they_are_to_be_followed(self) -> None:
        self.listen(response(b"", "302 Found", "Location: /next\r\n"))
        self.assertEqual(self.successResultOf(self.get()).status, 302)

    def test_redirections_are_followed(self) -> None:
        script = self.listen(response(b"", "302 Found", "Location: /next\r\n"), OK)
        self.assertEqual(self.successResultOf(self.get(redirects=1)).status, 200)
        self.assertTrue(script.heard[1].startswith(b"GET /next HTTP/1.1"))

    def test_redirections_end(self) -> None:
        moved = response(b"", "301 Moved", "Location: /again\r\n")
        self.listen(*[moved] * 10)
        self.assertIn("too many redirections", self.reason(self.get(redirects=3)))

    def test_a_redirection_into_a_denied_network_is_not_followed(self) -> None:
        self.listen(response(b"", "302 Found", "Location: http://10.0.0.1/\r\n"))
        self.client = self.network.client(Networks(["10.0.0.0/8"], []))
        self.assertIn("may not connect", self.reason(self.get(redirects=5)))
        self.assertEqual(self.network.connections, [("192.0.2.1", 80)])

    def test_a_redirection_does_not_leave_https_nor_take_secrets_along(self) -> None:
        self.listen(response(b"", "302 Found", "Location: http://a.test/\r\n"), tls="a.test", port=443)
        self.assertIn("away from HTTPS", self.reason(self.get("https://a.test/", redirects=1)))
        self.network.names.known["b.test"] = ["192.0.2.2"]
        self.listen(response(b"", "302 Found", "Location: http://b.test/\r\n"))
        other = Script(OK)
        self.network.listen("192.0.2.2", 80, other)
        self.successResultOf(self.get(headers=[("Authorization", "Bearer secret")], redirects=1))
        self.assertNotIn(b"secret", other.heard[0])

    def test_malformed_urls(self) -> None:
        for url in (
            "",
            "ftp://a.test/",
            "http://",
            "http://a.test:x/",
            "http://a.test:99999/",
            "http://u:p@a.test/",
            "http://[::1/",
            "http://a.test/\r\nX: y",
            "http://ü.test/",
            "//a.test/",
            "http://a.test:0/",
        ):
            self.failureResultOf(self.get(url), Unreachable)

    def test_connections_are_kept_and_one_that_was_closed_is_replaced(self) -> None:
        script = self.listen(OK, OK)
        self.successResultOf(self.get())
        self.successResultOf(self.get())
        self.assertEqual(len(script.made), 1)
        script.made[0].transport.loseConnection()  # type: ignore[union-attr]
        self.network.flush()
        self.successResultOf(self.get())
        self.assertEqual(len(script.made), 2)

    def test_connections_are_not_kept_if_so_configured(self) -> None:
        script = self.listen(OK, OK)
        self.client = self.network.client(keep_alive=False)
        self.successResultOf(self.get())
        self.successResultOf(self.get())
        self.assertEqual(len(script.made), 2)

    def test_a_kept_connection_that_is_closed_instead_of_an_answer_is_stale(self) -> None:
        self.listen(b"", close=True)
        self.failureResultOf(self.network.begin(self.client.request("PUT", "http://a.test/", [], b"{}")), Stale)

    def test_unknown_names_and_closed_ports(self) -> None:
        self.assertIn("no address", self.reason(self.get("http://nowhere.test/")))
        self.assertIn("no connection", self.reason(self.get()))

    def test_an_address_that_does_not_answer_is_given_up(self) -> None:
        self.network.listen("192.0.2.1", 80, SILENT)
        waiting = self.get(seconds=20)
        self.network.advance(8)
        self.assertNoResult(waiting)
        self.network.advance(2)
        self.reason(waiting)

    def test_a_server_that_does_not_answer_is_given_up(self) -> None:
        script = self.listen(b"")
        waiting = self.get(seconds=20)
        self.network.advance(18)
        self.assertNoResult(waiting)
        self.network.advance(2)
        self.assertIn("in time", self.reason(waiting))
        self.assertTrue(script.made[0].closed)

    def test_the_time_bounds_the_connection_too(self) -> None:
        self.network.listen("192.0.2.1", 80, SILENT)
        waiting = self.get(seconds=5)
        self.network.advance(5)
        self.assertIn("in time", self.reason(waiting))

    def test_a_trickle_is_given_up_in_the_same_time(self) -> None:
        script = self.listen(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        waiting = self.get(seconds=20)
        for _ in range(21):
            if not script.made[0].closed:
                script.made[0].transport.write(b"x")  # type: ignore[union-attr]
            self.network.advance(1)
        self.assertIn("in time", self.reason(waiting))
        self.assertTrue(script.made[0].closed)

    def test_too_long_an_answer_is_refused_when_it_says_so_and_when_it_grows(self) -> None:
        announced = self.listen(b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n")
        self.assertIn("more than 1000", self.reason(self.get(limit=1000)))
        self.network.flush()
        self.assertTrue(announced.made[0].closed)
        grows = self.listen(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1F4\r\n" + b"x" * 500 + b"\r\n"
        )
        waiting = self.get(limit=1000)
        self.assertNoResult(waiting)
        for _ in range(2):
            grows.made[0].transport.write(b"1F4\r\n" + b"x" * 500 + b"\r\n")  # type: ignore[union-attr]
        self.network.flush()
        self.assertIn("more than 1000", self.reason(waiting))
        self.assertTrue(grows.made[0].closed)

    def test_an_answer_of_just_the_limit_is_taken(self) -> None:
        self.listen(response(b"x" * 1000))
        self.assertEqual(len(self.successResultOf(self.get(limit=1000)).body), 1000)

    def test_headers_without_end(self) -> None:
        script = self.listen(b"HTTP/1.1 200 OK\r\n")
        waiting = self.get()
        line = b"X-Header: " + b"x" * 1000 + b"\r\n"
        for _ in range(HEAD_LIMIT // len(line) + 2):
            if waiting.called:
                break
            script.made[0].transport.write(line)  # type: ignore[union-attr]
            self.network.flush()
        self.reason(waiting)
        self.assertTrue(script.made[0].closed)

    def test_nonsense(self) -> None:
        for nonsense in (
            b"\0\1\2\r\n\r\n",
            b"HTTP/1.1 abc OK\r\n\r\n",
            b"SSH-2.0-OpenSSH\r\n",
            b"<html>" + b"x" * 20000,
        ):
            self.client = self.network.client()
            self.listen(nonsense, close=True)
            self.reason(self.get())

    def test_an_answer_that_breaks_off(self) -> None:
        self.listen(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", close=True)
        self.assertIn("broke off", self.reason(self.get()))

    def test_json_that_is_none(self) -> None:
        for body in (b"", b"[]", b"nonsense", b'"text"', b"[" * 5000, b'{"a":' * 300 + b"1" + b"}" * 300, b"\xff"):
            self.client = self.network.client()
            self.listen(response(body))
            self.assertRaises(Unreachable, self.successResultOf(self.get()).json_object)

    def test_a_body_is_written_elsewhere(self) -> None:
        self.listen(response(b"abc"))
        taken: list[bytes] = []
        heads: list[HttpAnswer] = []

        def sink(head: HttpAnswer) -> Any:
            heads.append(head)
            return taken.append

        answer = self.successResultOf(self.get(sink=sink, limit=2))
        self.assertEqual((answer.body, b"".join(taken)), (b"", b"abc"))
        self.assertEqual([head.status for head in heads], [200])

    def test_who_sees_the_head_may_leave_the_body_where_it_is_or_refuse_it(self) -> None:
        script = self.listen(response(b"abc"), b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        self.assertEqual(self.successResultOf(self.get(sink=lambda head: None)).body, b"abc")

        def refuse(head: HttpAnswer) -> Any:
            raise Unreachable("that is not wanted")

        self.assertIn("not wanted", self.reason(self.get(sink=refuse)))
        self.network.flush()
        self.assertTrue(script.made[-1].closed)

    def test_where_it_cannot_be_written_the_error_is_told(self) -> None:
        script = self.listen(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")

        def full(data: bytes) -> None:
            raise Unreachable("the disk is full")

        self.assertIn("disk", self.reason(self.get(sink=lambda head: full)))
        self.network.flush()
        self.assertTrue(script.made[0].closed)

    def test_who_asked_may_go_away(self) -> None:
        script = self.listen(b"")
        waiting = self.get()
        waiting.cancel()
        self.network.flush()
        self.failureResultOf(waiting, CancelledError)
        self.assertTrue(script.made[0].closed)

    def test_who_asked_may_go_away_before_there_is_a_connection(self) -> None:
        self.network.listen("192.0.2.1", 80, SILENT)
        waiting = self.get()
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)


class TlsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.network = Network(Clock())
        self.client = self.network.client()

    def ask(self, certificate_for: str, peer: Peer) -> Deferred[HttpAnswer]:
        self.script = Script(OK)
        self.network.listen("192.0.2.1", 8448, self.script, certificate_for=certificate_for)
        return self.network.begin(self.client.request_at(peer, "GET", "/secret"))

    def test_the_name_that_must_be_there_is_there(self) -> None:
        peer = Peer("a.test", 8448, "a.test", ("192.0.2.1",))
        self.assertEqual(self.successResultOf(self.ask("a.test", peer)).status, 200)
        self.assertIn(b"Host: a.test\r\n", self.script.heard[0])

    def test_a_certificate_for_another_name_is_refused_before_anything_is_said(self) -> None:
        for name in ("b.test", "192.0.2.1", "*.a.test", "x.a.test"):
            error = self.failureResultOf(self.ask(name, Peer("a.test", 8448, "a.test", ("192.0.2.1",))), Unreachable)
            self.assertIn("certificate", error.value.reason)
            self.assertEqual(self.script.heard, [])

    def test_a_name_that_no_certificate_can_be_for(self) -> None:
        for name in ("a b.test", "ü.test", "a\0.test"):
            self.failureResultOf(self.ask("a.test", Peer(name, 8448, "a.test", ("192.0.2.1",))), Unreachable)
        self.assertEqual(self.script.heard, [])

    def test_a_wildcard_covers_one_label(self) -> None:
        peer = Peer("x.a.test", 8448, "x.a.test", ("192.0.2.1",))
        self.assertEqual(self.successResultOf(self.ask("*.a.test", peer)).status, 200)

    def test_an_address_must_be_in_the_certificate(self) -> None:
        peer = Peer("192.0.2.1", 8448, "192.0.2.1:8448")
        self.assertEqual(self.successResultOf(self.ask("192.0.2.1", peer)).status, 200)
        self.network = Network(Clock())
        self.client = self.network.client()
        self.failureResultOf(self.ask("192.0.2.2", peer), Unreachable)

    def test_an_unknown_authority_is_refused_unless_validation_is_off(self) -> None:
        peer = Peer("a.test", 8448, "a.test", ("192.0.2.1",))
        self.client = self.network.client(tls=ClientTls())
        self.failureResultOf(self.ask("a.test", peer), Unreachable)
        self.client = self.network.client(tls=ClientTls(validate=False))
        self.assertEqual(self.successResultOf(self.ask("b.test", peer)).status, 200)
