"""Server names resolved step by step, the network being a dict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.matrix import discovery
from dendrite_tw.matrix.discovery import (
    HOUR_MS,
    Answer,
    FetchWellKnown,
    LookUpAddresses,
    LookUpSRV,
    NoAddress,
    Question,
    SRVRecord,
    Target,
    WellKnown,
    parse_server_name,
    read_well_known,
    well_known_failed,
)

from .strategies import bounded

MINUTE_MS = 60_000


class Net:
    """Answers the questions of a discovery, and remembers them."""

    def __init__(
        self,
        well_known: dict[str, Any] | None = None,
        srv: dict[str, Sequence[SRVRecord]] | None = None,
        addresses: dict[str, Any] | None = None,
    ) -> None:
        self.well_known = well_known or {}
        self.srv = srv or {}
        self.addresses = addresses or {}
        self.asked: list[Question] = []

    def answer(self, question: Question) -> Answer:
        self.asked.append(question)
        found: Answer
        match question:
            case FetchWellKnown(host):
                found = self.well_known.get(host)
            case LookUpSRV(name):
                found = self.srv.get(name, ())
            case LookUpAddresses(host):
                found = self.addresses.get(host, ())
        return found

    def resolve(self, server_name: str) -> list[Target]:
        steps = discovery.resolve(server_name)
        try:
            question = next(steps)
            while True:
                question = steps.send(self.answer(question))
        except StopIteration as done:
            targets: list[Target] = done.value
            return targets


def srv(target: str, port: int, priority: int = 0, weight: int = 0) -> SRVRecord:
    return SRVRecord(priority, weight, port, target)


class StepTests(SynchronousTestCase):
    def check(self, net: Net, server_name: str, *expected: Target) -> None:
        self.assertEqual(net.resolve(server_name), list(expected))

    def test_1_ip_literals(self) -> None:
        net = Net()
        self.check(net, "1.2.3.4", Target("1.2.3.4", 8448, "1.2.3.4", "1.2.3.4", None))
        self.check(net, "1.2.3.4:99", Target("1.2.3.4", 99, "1.2.3.4:99", "1.2.3.4", None))
        self.check(net, "[2001:db8::1]", Target("2001:db8::1", 8448, "[2001:db8::1]", "2001:db8::1", None))
        self.check(net, "[::1]:99", Target("::1", 99, "[::1]:99", "::1", None))
        self.assertEqual(net.asked, [])

    def test_2_an_explicit_port(self) -> None:
        net = Net(addresses={"a.example": ["1.1.1.1", "::2"]})
        expected = [Target(ip, 99, "a.example:99", "a.example", "a.example") for ip in ("1.1.1.1", "::2")]
        self.check(net, "a.example:99", *expected)
        self.assertEqual(net.asked, [LookUpAddresses("a.example")])

    def test_3_1_delegation_to_an_ip_literal(self) -> None:
        for delegated, ip, port in (("1.2.3.4", "1.2.3.4", 8448), ("1.2.3.4:5", "1.2.3.4", 5), ("[::1]:5", "::1", 5)):
            net = Net({"a.example": delegated})
            self.check(net, "a.example", Target(ip, port, delegated, ip, None))
            self.assertEqual(net.asked, [FetchWellKnown("a.example")])

    def test_3_2_delegation_with_a_port(self) -> None:
        net = Net({"a.example": "m.example:443"}, addresses={"m.example": ["1.1.1.1"]})
        self.check(net, "a.example", Target("1.1.1.1", 443, "m.example:443", "m.example", "m.example"))
        self.assertEqual(net.asked, [FetchWellKnown("a.example"), LookUpAddresses("m.example")])

    def test_3_3_and_3_4_delegation_and_srv(self) -> None:
        for service in ("_matrix-fed._tcp", "_matrix._tcp"):
            net = Net(
                {"a.example": "m.example"},
                {f"{service}.m.example": [srv("h.example.", 77)]},
                {"h.example": ["1.1.1.1"], "m.example": ["9.9.9.9"]},
            )
            self.check(net, "a.example", Target("1.1.1.1", 77, "m.example", "m.example", "m.example"))
            self.assertEqual(net.asked[-1], LookUpAddresses("h.example", alias=False))

    def test_3_5_delegation_and_nothing_else(self) -> None:
        net = Net({"a.example": "m.example"}, addresses={"m.example": ["1.1.1.1"]})
        self.check(net, "a.example", Target("1.1.1.1", 8448, "m.example", "m.example", "m.example"))
        self.assertEqual(
            net.asked,
            [
                FetchWellKnown("a.example"),
                LookUpSRV("_matrix-fed._tcp.m.example"),
                LookUpSRV("_matrix._tcp.m.example"),
                LookUpAddresses("m.example"),
            ],
        )

    def test_4_and_5_srv_without_well_known(self) -> None:
        for service in ("_matrix-fed._tcp", "_matrix._tcp"):
            net = Net(srv={f"{service}.a.example": [srv("h.example", 77)]}, addresses={"h.example": ["1.1.1.1"]})
            self.check(net, "a.example", Target("1.1.1.1", 77, "a.example", "a.example", "a.example"))

    def test_the_registered_service_goes_first(self) -> None:
        net = Net(
            srv={
                "_matrix-fed._tcp.a.example": [srv("new.example", 1)],
                "_matrix._tcp.a.example": [srv("old.example", 2)],
            },
            addresses={"new.example": ["1.1.1.1"], "old.example": ["2.2.2.2"]},
        )
        self.check(net, "a.example", Target("1.1.1.1", 1, "a.example", "a.example", "a.example"))
        self.assertNotIn(LookUpSRV("_matrix._tcp.a.example"), net.asked)

    def test_6_nothing_but_addresses(self) -> None:
        net = Net(addresses={"a.example": ["1.1.1.1"]})
        self.check(net, "a.example", Target("1.1.1.1", 8448, "a.example", "a.example", "a.example"))

    def test_an_invalid_delegation_counts_as_none(self) -> None:
        for delegated in ("", "https://m.example", "m.example:99999", "m.example/x", "[::1", 7, ["m.example"]):
            net = Net({"a.example": delegated}, addresses={"a.example": ["1.1.1.1"]})
            self.assertEqual(net.resolve("a.example")[0].host_header, "a.example", delegated)

    def test_a_delegated_name_is_not_delegated_again(self) -> None:
        net = Net({"a.example": "m.example", "m.example": "x.example"}, addresses={"m.example": ["1.1.1.1"]})
        self.assertEqual(net.resolve("a.example")[0].host_header, "m.example")

    def test_srv_order_and_limits(self) -> None:
        records = [srv("c.example", 3, 20), srv("b.example", 2, 10, 1), srv("a.example", 1, 10, 5)]
        addresses = {f"{name}.example": [f"1.1.1.{i}"] for i, name in enumerate("abc")}
        net = Net(srv={"_matrix._tcp.x.example": records}, addresses=addresses)
        self.assertEqual([target.port for target in net.resolve("x.example")], [1, 2, 3])
        many = Net(
            srv={"_matrix._tcp.x.example": [srv("a.example", 1)] * 1000},
            addresses={"a.example": ["1.1.1.1"] * 1000},
        )
        self.assertEqual(len(many.resolve("x.example")), discovery.MAX_ADDRESSES)

    def test_nowhere(self) -> None:
        cases = [
            (Net(), "a.example"),
            (Net(), "a.example:99"),
            (Net(srv={"_matrix-fed._tcp.a.example": [srv(".", 0)]}, addresses={"a.example": ["1.1.1.1"]}), "a.example"),
            (Net(srv={"_matrix._tcp.a.example": [srv("h.example", 7)]}, addresses={"a.example": ["1"]}), "a.example"),
        ]
        for net, name in cases:
            self.assertRaises(NoAddress, net.resolve, name)

    def test_what_is_no_server_name(self) -> None:
        for name in ("", "a b", "[::1", "a.example:", "a.example:70000", "999.1.1.1", "@a:b"):
            self.assertRaises(ValueError, Net().resolve, name)

    def test_names_taken_apart(self) -> None:
        self.assertEqual(parse_server_name("a.example"), ("a.example", None, False))
        self.assertEqual(parse_server_name("a.example:0"), ("a.example", 0, False))
        self.assertEqual(parse_server_name("[::1]:1"), ("::1", 1, True))
        self.assertEqual(parse_server_name("127.0.0.1"), ("127.0.0.1", None, True))


class WellKnownTests(SynchronousTestCase):
    body = b'{"m.server": "m.example:443"}'

    def fresh(self, **headers: Any) -> int:
        found = read_well_known(200, self.body, **headers)
        assert found is not None
        self.assertEqual((found.server, found.failures), ("m.example:443", 0))
        return found.fresh_for_ms

    def test_how_long_it_is_fresh(self) -> None:
        cases: list[tuple[dict[str, Any], int]] = [
            ({}, 24 * HOUR_MS),
            ({"cache_control": "public, Max-Age=7200"}, 2 * HOUR_MS),
            ({"cache_control": 'max-age="7200"', "age": "3600"}, HOUR_MS),
            ({"cache_control": "max-age=99999999999999"}, 48 * HOUR_MS),
            ({"cache_control": "max-age=0"}, 5 * MINUTE_MS),
            ({"cache_control": "max-age=7200", "age": "7201"}, 5 * MINUTE_MS),
            ({"cache_control": "no-store, max-age=7200"}, 5 * MINUTE_MS),
            ({"cache_control": "max-age=abc"}, 24 * HOUR_MS),
            ({"cache_control": "max-age=-5"}, 24 * HOUR_MS),
            ({"expires_in_ms": 3 * HOUR_MS}, 3 * HOUR_MS),
            ({"expires_in_ms": -5}, 5 * MINUTE_MS),
            ({"cache_control": "max-age=7200", "expires_in_ms": 3 * HOUR_MS}, 2 * HOUR_MS),
        ]
        for headers, expected in cases:
            self.assertEqual(self.fresh(**headers), expected, headers)

    def test_what_is_not_valid(self) -> None:
        cases = [
            (404, self.body),
            (301, self.body),
            (200, b""),
            (200, b"<html>"),
            (200, b"[]"),
            (200, b"{}"),
            (200, b'{"m.server": 7}'),
            (200, b'{"m.server": "a b"}'),
            (200, b'{"m.server": "m.example", "x": "' + b"x" * 60_000 + b'"}'),
        ]
        for status, body in cases:
            self.assertIsNone(read_well_known(status, body), body[:40])

    @bounded
    @given(st.integers(0, 600), st.binary(max_size=60), st.text(max_size=30), st.text(max_size=12))
    def test_no_response_raises(self, status: int, body: bytes, cache_control: str, age: str) -> None:
        read_well_known(status, body, cache_control=cache_control, age=age)
        found = read_well_known(200, self.body, cache_control=cache_control, age=age)
        assert found is not None
        self.assertTrue(5 * MINUTE_MS <= found.fresh_for_ms <= 48 * HOUR_MS)

    def test_failures_back_off_up_to_an_hour(self) -> None:
        cached: WellKnown | None = WellKnown("m.example", HOUR_MS)
        delays = []
        for _ in range(9):
            cached = well_known_failed(cached)
            self.assertIsNone(cached.server)
            delays.append(cached.fresh_for_ms // MINUTE_MS)
        self.assertEqual(delays, [1, 2, 4, 8, 16, 32, 60, 60, 60])
        self.assertEqual(well_known_failed(None).fresh_for_ms, MINUTE_MS)
