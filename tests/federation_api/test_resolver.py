"""How a server is found, and what is asked again when."""

from __future__ import annotations

import json
from collections.abc import Sequence

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.federation_api.resolver import ServerResolver
from dendrite_tw.web.client import Peer
from dendrite_tw.web.internet import Unreachable
from dendrite_tw.web.names import Service
from dendrite_tw.web.networks import Networks
from dendrite_tw.world import ReactorClock, SeededRandom

from .network import Network, Script, response

HOUR = 3600


class ResolverTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.network = Network(Clock())
        self.network.clock.advance(1_700_000_000)
        self.network.names.known = {"a.test": ["192.0.2.1"], "b.test": ["192.0.2.2", "2001:db8::2"]}
        self.use(Networks([], []))

    def use(self, networks: Networks) -> None:
        clock = ReactorClock(self.network.clock)
        self.resolver = ServerResolver(self.network.client(networks), self.network.names, clock, SeededRandom(1))

    def file(self, *answers: bytes, close: bool = True) -> Script:
        script = Script(*answers, close=close)
        self.network.listen("192.0.2.1", 443, script, certificate_for="a.test")
        return script

    def begin(self, name: str) -> Deferred[Sequence[Peer]]:
        return self.network.begin(self.resolver.resolve(name))

    def find(self, name: str = "a.test") -> Sequence[Peer]:
        return self.successResultOf(self.begin(name))

    def test_an_address(self) -> None:
        self.assertEqual(self.find("192.0.2.9"), [Peer("192.0.2.9", 8448, "192.0.2.9", ("192.0.2.9",))])
        self.assertEqual(self.find("[::1]:99"), [Peer("::1", 99, "[::1]:99", ("::1",))])
        self.assertEqual(self.network.names.asked, [])

    def test_a_name_with_a_port(self) -> None:
        self.assertEqual(self.find("b.test:99"), [Peer("b.test", 99, "b.test:99", ("192.0.2.2", "2001:db8::2"))])
        self.assertEqual(self.network.connections, [])

    def test_a_well_known_file(self) -> None:
        self.file(response(b'{"m.server": "b.test:99"}'))
        self.assertEqual(self.find(), [Peer("b.test", 99, "b.test:99", ("192.0.2.2", "2001:db8::2"))])

    def test_services_and_their_order(self) -> None:
        self.network.names.known |= {f"s{n}.test": [f"192.0.2.1{n}"] for n in range(3)}
        self.network.names.records["_matrix-fed._tcp.a.test"] = [
            Service(20, 0, "s2.test", 3),
            Service(10, 5, "s1.test.", 2),
            Service(10, 90, "s0.test", 1),
        ]
        peers = self.find()
        self.assertEqual([peer.hosts[0] for peer in peers], ["192.0.2.10", "192.0.2.11", "192.0.2.12"])
        self.assertEqual({(peer.name, peer.host_header) for peer in peers}, {("a.test", "a.test")})

    def test_the_name_itself(self) -> None:
        self.assertEqual(self.find(), [Peer("a.test", 8448, "a.test", ("192.0.2.1",))])
        self.assertEqual(
            self.network.names.asked, ["a.test", "_matrix-fed._tcp.a.test", "_matrix._tcp.a.test", "a.test"]
        )

    def test_a_name_that_is_nowhere(self) -> None:
        self.failureResultOf(self.begin("nowhere.test"), Unreachable)
        self.failureResultOf(self.begin("not a name"), Unreachable)

    def test_a_bad_file_is_passed_over(self) -> None:
        for bad in (
            response(b"{}"),
            response(b"nonsense"),
            response(b'{"m.server": 1}'),
            response(b'{"m.server": "b.test/x"}'),
            response(b'{"m.server": "b.test:99"}', "404 Not Found"),
            response(b'{"m.server": "b.test:99", "x": "' + b"x" * 60_000 + b'"}'),
            response(b"", "302 Found", "Location: http://a.test/plain\r\n"),
            b"nonsense\r\n\r\n",
        ):
            self.use(Networks([], []))
            self.file(bad)
            self.assertEqual(self.find(), [Peer("a.test", 8448, "a.test", ("192.0.2.1",))])

    def test_a_file_with_the_wrong_certificate_is_passed_over(self) -> None:
        script = Script(response(b'{"m.server": "b.test:99"}'))
        self.network.listen("192.0.2.1", 443, script, certificate_for="b.test")
        self.assertEqual(self.find()[0].name, "a.test")
        self.assertEqual(script.heard, [])

    def test_a_file_in_a_denied_network_is_not_read(self) -> None:
        script = self.file(response(b'{"m.server": "b.test:99"}'))
        self.use(Networks(["192.0.2.0/24"], []))
        self.assertEqual(self.find()[0].name, "a.test")
        self.assertEqual(script.made, [])

    def reads(self, script: Script, *seconds: float) -> list[int]:
        """How often the file has been read after each time."""
        counts = []
        for wait in seconds:
            self.network.advance(wait)
            self.find()
            counts.append(len(script.made))
        return counts

    def test_a_file_is_kept_as_long_as_it_says(self) -> None:
        body = json.dumps({"m.server": "b.test:99"}).encode()
        for headers, before, after in (
            ("", 23 * HOUR, 2 * HOUR),
            ("Cache-Control: max-age=3600\r\n", 3000, 700),
            ("Cache-Control: max-age=3600\r\nAge: 1800\r\n", 1700, 400),
            ("Cache-Control: max-age=99999999\r\n", 47 * HOUR, 2 * HOUR),
            ("Cache-Control: no-store\r\n", 200, 200),
            (
                "Date: Tue, 14 Nov 2023 22:13:20 GMT\r\nExpires: Tue, 14 Nov 2023 23:13:20 GMT\r\n",
                3000,
                700,
            ),
            ("Date: Tue, 14 Nov 2023 22:13:20 GMT\r\nExpires: 0\r\n", 200, 200),
        ):
            self.use(Networks([], []))
            script = self.file(response(body, headers=headers))
            self.assertEqual(self.reads(script, 0, before, after), [1, 1, 2], headers)

    def test_failures_count_longer_each_time(self) -> None:
        script = self.file(response(b"", "404 Not Found"))
        self.assertEqual(self.reads(script, 0, 301, 301, 301, 301, 301), [1, 2, 3, 4, 4, 5])

    def test_while_nobody_answers_the_old_file_counts(self) -> None:
        script = self.file(response(b'{"m.server": "b.test:99"}', headers="Cache-Control: max-age=600\r\n"))
        self.find()
        del self.network.listeners["192.0.2.1", 443]
        self.network.advance(2 * HOUR)
        self.assertEqual(self.find()[0].name, "b.test")
        self.network.advance(50 * HOUR)
        self.assertEqual(self.find()[0].name, "a.test")
        self.assertEqual(len(script.made), 1)

    def test_what_is_forgotten_is_searched_anew(self) -> None:
        self.find()
        asked = len(self.network.names.asked)
        self.find()
        self.assertEqual(len(self.network.names.asked), asked)
        self.resolver.forget("a.test")
        self.find()
        self.assertGreater(len(self.network.names.asked), asked)

    def test_a_file_is_read_again_when_its_server_is_gone(self) -> None:
        script = self.file(response(b'{"m.server": "b.test:99"}'))
        self.find()
        self.resolver.forget("a.test")
        self.find()
        self.assertEqual(len(script.made), 1)
        self.network.advance(400)
        self.resolver.forget("a.test")
        self.find()
        self.assertEqual(len(script.made), 2)

    def test_searches_for_one_name_are_one(self) -> None:
        script = self.file(response(b'{"m.server": "b.test:99"}'))
        searches = [Deferred.fromCoroutine(self.resolver.resolve("a.test")) for _ in range(5)]
        searches[0].cancel()
        self.network.flush()
        self.assertEqual([self.successResultOf(search)[0].name for search in searches[1:]], ["b.test"] * 4)
        self.assertEqual(len(script.made), 1)
        self.failureResultOf(searches[0])
