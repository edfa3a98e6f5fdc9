"""The server as a command: its flags, its configuration language, its monitoring pages."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import orjson
from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.test.requesthelper import DummyRequest

from dendrite_tw.jetstream import command
from dendrite_tw.jetstream.command import Node, Options, UsageError, options_of, parse_flags
from dendrite_tw.jetstream.conf import ConfigurationError, parse
from dendrite_tw.jetstream.disk_thread import DiskThread
from dendrite_tw.jetstream.monitor import monitor_site
from tests.jetstream.support import ServerBench, Talker, inline


class FlagTests(SynchronousTestCase):
    def test_all_their_forms(self) -> None:
        words = "-p 4333 -m=8333 --addr 0.0.0.0 -js -sd=/x --user u --pass p --auth t -DV -P /pid --name n"
        self.assertEqual(
            parse_flags(words.split()),
            {
                "port": 4333,
                "http_port": 8333,
                "host": "0.0.0.0",
                "jetstream": True,
                "store_dir": "/x",
                "user": "u",
                "password": "p",
                "token": "t",
                "verbose": True,
                "pid": "/pid",
                "name": "n",
            },
        )
        self.assertEqual(parse_flags(["-js=false"]), {"jetstream": False})

    def test_wrong_ones(self) -> None:
        for words in (["-x"], ["port"], ["-p"], ["-p", "x"], ["-p", "70000"]):
            with self.assertRaises(UsageError):
                parse_flags(words)

    def test_command_line_beats_the_file(self) -> None:
        path = Path(self.mktemp())
        path.write_text("port: 1\nhost: h\njetstream { store_dir: /s, domain: d }\nmax_payload: 8M\n")
        options = options_of(["-c", str(path), "-p", "2"])
        self.assertEqual((options.port, options.host, options.store_dir, options.domain), (2, "h", "/s", "d"))
        self.assertEqual((options.jetstream, options.max_payload), (True, 8_000_000))

    def test_wrong_command_says_so(self) -> None:
        for words in (["-nonsense"], ["-c", "/does/not/exist"]):
            spoken = io.StringIO()
            self.patch(sys, "stderr", spoken)
            self.assertEqual(command.main(words), 1)
            self.assertIn("usage:", spoken.getvalue())
        spoken = io.StringIO()
        self.patch(sys, "stdout", spoken)
        self.assertEqual((command.main(["-v"]), command.main(["--help"])), (0, 0))
        self.assertIn("dendrite-nats-server: v", spoken.getvalue())


class LanguageTests(SynchronousTestCase):
    def test_values(self) -> None:
        text = """
        # a comment
        a: 1, b = two; c "three \\" four" // another
        'd' { e: true, f: [1 2, "x"] }
        g: 64MB
        h = 1KiB
        i: 127.0.0.1:4222
        j: off
        k { }
        l []
        """
        self.assertEqual(
            parse(text),
            {
                "a": 1,
                "b": "two",
                "c": 'three " four',
                "d": {"e": True, "f": [1, 2, "x"]},
                "g": 64 * 1024 * 1024,
                "h": 1024,
                "i": "127.0.0.1:4222",
                "j": False,
                "k": {},
                "l": [],
            },
        )

    def test_errors(self) -> None:
        for text in ("a", "a {", "a }", "a [1", "{", "a: ]", '"x', "a " + "{ a " * 50, "a " + "[" * 50):
            with self.assertRaises(ConfigurationError):
                parse(text)


class Reactor(MemoryReactorClock):
    """One whose threads are never used: `inline` stands in for them."""

    def callFromThread(self, *call: object) -> None:
        raise AssertionError("there is no thread")


class NodeTests(SynchronousTestCase):
    def node(self, options: Options) -> Node:
        self.patch(DiskThread, "run", lambda thread, call, *args: inline(call, *args))
        self.reactor = Reactor()
        node = Node(options, self.reactor)
        self.successResultOf(Deferred.fromCoroutine(node.start()))
        return node

    def test_listens_and_stops(self) -> None:
        folder = Path(self.mktemp())
        node = self.node(Options(port=4333, http_port=8333, jetstream=True, store_dir=str(folder)))
        self.assertEqual([row[0] for row in self.reactor.tcpServers], [4333, 8333])
        self.assertEqual({row[3] for row in self.reactor.tcpServers}, {"127.0.0.1"})
        talker = Talker(node.server, self.reactor)
        self.assertTrue(talker.api("STREAM.CREATE.A", {"name": "A"})["did_create"])
        self.assertEqual(talker.put("A")["seq"], 1)
        self.successResultOf(Deferred.fromCoroutine(node.stop()))
        again = self.node(Options(port=4333, jetstream=True, store_dir=str(folder)))
        self.assertEqual(Talker(again.server, self.reactor).api("STREAM.INFO.A")["state"]["messages"], 1)

    def test_without_jetstream(self) -> None:
        node = self.node(Options())
        self.assertEqual(Talker(node.server, self.reactor).ask("$JS.API.INFO").headers[9:12], b"503")

    def test_accounts_of_the_file(self) -> None:
        path = Path(self.mktemp())
        path.write_text(
            f"""
            jetstream: {{ store_dir: {self.mktemp()}, domain: hub }}
            no_auth_user: a
            accounts: {{
              A: {{ users: [ {{user: a, pass: a}} ], jetstream: {{ max_streams: 1 }} }}
              B: {{ users: [
                {{user: b, pass: b, permissions: {{ publish: {{allow: "x", deny: ["y"]}}, subscribe: ">" }}}}
              ] }}
            }}
            """
        )
        node = self.node(options_of(["-c", str(path)]))
        nobody = Talker(node.server, self.reactor)
        self.assertEqual(nobody.api("INFO")["limits"]["max_streams"], 1)
        bob = Talker(node.server, self.reactor, user="b", **{"pass": "b"})
        bob.subscribe(">", "1")
        bob.publish("x")
        bob.publish("y")
        self.assertEqual([op.subject for op in bob.take()], ["x"])
        self.assertTrue(Talker(node.server, self.reactor, user="b").closed)


class MonitorTests(SynchronousTestCase):
    def page(self, name: str) -> tuple[int, object]:
        site = monitor_site([self.bench.server], [self.bench.engine], 0)
        request = DummyRequest([name.encode()])
        resource = site.resource.getChildWithDefault(name.encode(), request)
        body = resource.render(request)
        return request.responseCode or 200, orjson.loads(body)

    def test_pages(self) -> None:
        self.bench = ServerBench(None)
        self.bench.talker.api("STREAM.CREATE.A", {"name": "A"})
        self.bench.talker.put("A", b"x")
        status, varz = self.page("varz")
        assert isinstance(varz, dict)
        self.assertEqual((status, varz["connections"], varz["jetstream"]["stats"]["streams"]), (200, 1, 1))
        _, jsz = self.page("jsz")
        assert isinstance(jsz, dict)
        self.assertEqual((jsz["messages"], jsz["streams"]), (1, 1))
        _, connz = self.page("connz")
        assert isinstance(connz, dict)
        self.assertEqual(connz["num_connections"], 1)
        self.assertEqual(self.page("healthz"), (200, {"status": "ok"}))
        self.bench.syncer.failing = "No space left on device"
        self.assertEqual(self.page("healthz")[0], 503)
