"""Core NATS: who gets a message, who may do what, and how sessions end."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.jetstream import wire
from dendrite_tw.jetstream.accounts import Gate, Permissions, User
from dendrite_tw.jetstream.server import Server, Settings
from dendrite_tw.jetstream.wire import Err, Info, Msg, Sub, Unsub
from tests.jetstream.support import Talker


class ServerCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.server = Server(Settings(max_payload=1000))

    def talker(self, **options: object) -> Talker:
        return Talker(self.server, self.clock, **options)


class RoutingTests(ServerCase):
    def test_subscribers_of_any_pattern(self) -> None:
        alice, bob = self.talker(), self.talker()
        alice.subscribe("a.*", "1")
        alice.subscribe("a.>", "2")
        bob.subscribe("a.b", "3")
        alice.publish("a.b", b"x", "reply", {"h": "v"})
        expected = wire.encode_headers((("h", "v"),))
        self.assertEqual(
            sorted(alice.take(), key=lambda op: op.sid),
            [Msg("a.b", "1", "reply", expected, b"x"), Msg("a.b", "2", "reply", expected, b"x")],
        )
        self.assertEqual(bob.take(), [Msg("a.b", "3", "reply", expected, b"x")])

    def test_one_of_a_queue_group(self) -> None:
        workers = [self.talker() for _ in range(3)]
        for worker in workers:
            worker.subscribe("job", "1", "group")
        other = self.talker()
        other.subscribe("job", "1", "other")
        for _ in range(9):
            other.publish("job", b"x")
        self.assertEqual([len(worker.take()) for worker in workers], [3, 3, 3])
        self.assertEqual(len(other.take()), 9)

    def test_unsubscribing(self) -> None:
        alice = self.talker()
        alice.subscribe("a", "1")
        alice.session.handle(Unsub("1"))
        alice.publish("a", b"x")
        self.assertEqual(alice.take(), [])
        alice.session.handle(Unsub("unknown"))

    def test_unsubscribing_after_so_many(self) -> None:
        alice = self.talker()
        alice.subscribe("a", "1")
        alice.publish("a", b"1")
        alice.session.handle(Unsub("1", 3))
        for payload in (b"2", b"3", b"4"):
            alice.publish("a", payload)
        self.assertEqual(alice.payloads(), [b"1", b"2", b"3"])

    def test_echo_may_be_declined(self) -> None:
        alice, bob = self.talker(echo=False), self.talker()
        for talker in (alice, bob):
            talker.subscribe("a", "1")
        alice.publish("a", b"x")
        self.assertEqual((alice.payloads(), bob.payloads()), ([], [b"x"]))

    def test_nobody_there(self) -> None:
        alice = self.talker()
        answer = alice.ask("nobody", b"x")
        self.assertEqual(wire.decode_status(answer.headers), (503, ""))
        silent = self.talker(no_responders=False)
        silent.publish("nobody", b"x", "_INBOX.1")
        self.assertEqual(silent.take(), [])

    def test_routes_follow_subscriptions(self) -> None:
        alice = self.talker()
        for round_ in range(3):
            alice.publish("a", b"unheard")
            alice.subscribe("a", f"r{round_}")
            alice.publish("a", b"heard")
            alice.session.handle(Unsub(f"r{round_}"))
        self.assertEqual(alice.payloads(), [b"heard"] * 3)

    def test_session_that_ends_leaves_nothing(self) -> None:
        alice = self.talker()
        alice.subscribe("a", "1")
        alice.session.closed()
        self.assertEqual((len(self.server._interest), self.server.sessions), (0, {}))
        self.assertFalse(self.server.reaches("a"))


class MannersTests(ServerCase):
    def test_introduction(self) -> None:
        heard: list[object] = []
        self.server.open(heard.append, lambda: None)
        [info] = heard
        assert isinstance(info, Info)
        self.assertEqual((info.options["max_payload"], info.options["headers"]), (1000, True))
        self.assertNotIn("auth_required", info.options)

    def test_ping(self) -> None:
        alice = self.talker()
        alice.session.handle(wire.PING)
        self.assertEqual(alice.heard, [wire.PONG])

    def test_verbose(self) -> None:
        alice = self.talker(verbose=True)
        alice.heard.clear()
        alice.subscribe("a", "1")
        alice.publish("a", b"x")
        self.assertEqual(alice.heard, [wire.OK, wire.OK, Msg("a", "1", "", b"", b"x")])

    def test_too_large(self) -> None:
        alice = self.talker()
        alice.publish("a", b"x" * 1001)
        self.assertEqual((alice.heard, alice.closed), ([Err("Maximum Payload Violation")], True))

    def test_invalid_subjects(self) -> None:
        alice = self.talker()
        alice.subscribe("a..b", "1")
        self.assertEqual((alice.heard, alice.closed), ([Err("Invalid Subject")], False))
        alice.heard.clear()
        careful = self.talker(pedantic=True)
        careful.publish("a.*", b"")
        self.assertEqual(careful.heard, [Err("Invalid Publish Subject")])

    def test_operations_of_a_server_are_refused(self) -> None:
        alice = self.talker()
        alice.session.handle(wire.OK)
        self.assertTrue(alice.closed)

    def test_too_many_subscriptions(self) -> None:
        alice = self.talker()
        self.patch(__import__("dendrite_tw.jetstream.server", fromlist=["x"]), "MAX_SUBSCRIPTIONS", 10)
        for number in range(20):
            if not alice.closed:
                alice.subscribe("a", f"s{number}")
        self.assertTrue(alice.closed)


class LoginTests(ServerCase):
    def test_user_and_password(self) -> None:
        self.server.gate = Gate(self.server, users=[User(name="u", password="p", server=self.server)])
        self.assertFalse(self.talker(user="u", **{"pass": "p"}).closed)
        for options in (
            {},
            {"user": "u"},
            {"user": "u", "pass": "x"},
            {"user": "x", "pass": "p"},
            {"auth_token": "p"},
        ):
            self.assertTrue(self.talker(**options).closed, options)

    def test_token(self) -> None:
        self.server.gate = Gate(self.server, token="secret")
        self.assertFalse(self.talker(auth_token="secret").closed)
        for options in ({}, {"auth_token": "x"}, {"user": "secret"}):
            self.assertTrue(self.talker(**options).closed, options)

    def test_nothing_before_the_login(self) -> None:
        self.server.gate = Gate(self.server, token="secret")
        for op in (Sub("a", "", "1"), wire.PING, wire.Pub("a", "", b"", b"")):
            heard: list[object] = []
            session = self.server.open(heard.append, lambda: None)
            session.handle(op)
            self.assertEqual(heard[1:], [Err("Authorization Violation")])

    def test_accounts_do_not_hear_each_other(self) -> None:
        other = Server(Settings())
        gate = Gate(
            self.server,
            users=[
                User(name="a", password="a", server=self.server),
                User(name="b", password="b", server=other),
            ],
            no_auth_user="a",
        )
        self.server.gate = other.gate = gate
        alice, bob, nameless = (
            self.talker(user="a", **{"pass": "a"}),
            self.talker(user="b", **{"pass": "b"}),
            self.talker(),
        )
        for talker in (alice, bob, nameless):
            talker.subscribe("x", "1")
        nameless.publish("x", b"1")
        bob.publish("x", b"2")
        self.assertEqual((alice.payloads(), nameless.payloads(), bob.payloads()), ([b"1"], [b"1"], [b"2"]))

    def test_permissions(self) -> None:
        user = User(
            name="u",
            password="p",
            server=self.server,
            publish=Permissions(allow=("out.>",), deny=("out.secret",)),
            subscribe=Permissions(allow=("in.>", "_INBOX.>"), deny=("in.secret",)),
        )
        self.server.gate = Gate(self.server, users=[user, User(name="root", password="r", server=self.server)])
        alice, root = self.talker(user="u", **{"pass": "p"}), self.talker(user="root", **{"pass": "r"})
        root.subscribe(">", "1")
        for subject in ("out.a", "out.secret", "in.a"):
            alice.publish(subject, b"x")
        self.assertEqual([op.subject for op in root.take()], ["out.a"])
        alice.heard.clear()
        for sid, subject in enumerate(("in.a", "in.secret", "other", ">", "in.*")):
            alice.subscribe(subject, f"s{sid}")
        refused = [op.message for op in alice.heard if isinstance(op, Err)]
        self.assertEqual(len(refused), 3)
        alice.heard.clear()
        for subject in ("in.a", "in.secret"):
            root.publish(subject, b"x")
        self.assertEqual({op.subject for op in alice.take()}, {"in.a"})
