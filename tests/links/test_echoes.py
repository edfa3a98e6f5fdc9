"""Echoes are heard by all others, in order, and whoever may have missed one is told so."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.links.echoes import NoEchoes
from tests.links.support import Broker, Process


class EchoTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.broker = Broker()
        self.one, self.two, self.three = (self.broker.process(name) for name in ("one", "two", "three"))
        self.heard: list[tuple[str, bytes]] = []
        for process in (self.one, self.two, self.three):
            self.note(process, "tokens")
        self.broker.settle()

    def note(self, process: Process, topic: str) -> None:
        process.echoes.hear(topic, lambda payload: self.heard.append((process.name, payload)))

    def count_missed(self, process: Process) -> list[str]:
        missed: list[str] = []
        process.echoes.on_missed(lambda: missed.append(process.name))
        return missed

    def test_all_others_hear_in_order_and_not_the_teller(self) -> None:
        self.one.echoes.tell("tokens", b"1")
        self.one.echoes.tell("tokens", b"2")
        self.one.echoes.tell("rooms", b"nobody listens")
        self.broker.settle()
        self.assertEqual(sorted(self.heard), [("three", b"1"), ("three", b"2"), ("two", b"1"), ("two", b"2")])
        self.assertEqual([payload for name, payload in self.heard if name == "two"], [b"1", b"2"])

    def test_a_hearer_that_fails_keeps_nobody_from_hearing(self) -> None:
        def fail(payload: bytes) -> None:
            raise ZeroDivisionError

        self.three.echoes.hear("rooms", fail)
        self.note(self.three, "rooms")
        self.one.echoes.tell("rooms", b"!r")
        self.broker.settle()
        self.assertEqual(self.heard, [("three", b"!r")])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_who_loses_the_connection_has_missed_something_until_it_hears_again(self) -> None:
        missed = self.count_missed(self.two)
        self.assertTrue(self.two.echoes.hearing)
        self.two.lose()
        self.assertEqual((self.two.echoes.hearing, len(missed)), (False, 1))
        self.one.echoes.tell("tokens", b"lost on two")
        self.broker.settle()
        self.two.connect()
        self.assertEqual((self.two.echoes.hearing, len(missed)), (True, 2))
        self.one.echoes.tell("tokens", b"heard")
        self.broker.settle()
        self.assertEqual([payload for name, payload in self.heard if name == "two"], [b"heard"])

    def test_others_are_told_that_they_may_have_missed_what_was_told_into_a_lost_connection(self) -> None:
        missed = self.count_missed(self.two)
        self.one.lose()
        self.one.connect()
        self.assertEqual(missed, [])
        self.one.lose()
        self.one.echoes.tell("tokens", b"into the void")
        self.one.connect()
        self.assertEqual(missed, ["two"])

    def test_where_nobody_else_is_there_is_nothing_to_miss(self) -> None:
        echoes = NoEchoes()
        echoes.hear("tokens", lambda payload: self.fail("nobody tells"))
        echoes.on_missed(lambda: self.fail("nothing is missed"))
        echoes.tell("tokens", b"")
        self.assertTrue(echoes.hearing)
