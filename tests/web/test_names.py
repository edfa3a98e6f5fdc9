"""Names and what is kept of them."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.names import dns
from twisted.names.error import DNSNameError
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.web.names import ADDRESS_LIMIT, LOOKUP_SECONDS, LOOKUPS, CachedNames, Service, SystemNames, UnknownName
from dendrite_tw.world import ReactorClock
from tests.federation_api.network import Names


class CachedNamesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.names = Names()
        self.names.known = {"a.test": ["192.0.2.1"], "b.test": ["192.0.2.2"], "c.test": ["192.0.2.3"]}
        self.cached = CachedNames(self.names, ReactorClock(self.clock), size=2, lifetime_ms=300_000)

    def ask(self, name: str) -> Any:
        return Deferred.fromCoroutine(self.cached.addresses(name))

    def test_an_answer_is_kept_for_its_time(self) -> None:
        for _ in range(3):
            self.assertEqual(self.successResultOf(self.ask("a.test")), ["192.0.2.1"])
        self.assertEqual(self.names.asked, ["a.test"])
        self.clock.advance(300)
        self.successResultOf(self.ask("a.test"))
        self.assertEqual(self.names.asked, ["a.test", "a.test"])

    def test_only_so_many_are_kept(self) -> None:
        for name in ("a.test", "b.test", "a.test", "c.test", "a.test", "b.test"):
            self.successResultOf(self.ask(name))
        self.assertEqual(self.names.asked, ["a.test", "b.test", "c.test", "b.test"])

    def test_a_failure_is_not_kept(self) -> None:
        self.failureResultOf(self.ask("d.test"), UnknownName)
        self.names.known["d.test"] = ["192.0.2.4"]
        self.assertEqual(self.successResultOf(self.ask("d.test")), ["192.0.2.4"])

    def test_services_are_kept_apart_from_addresses(self) -> None:
        service = Service(10, 5, "b.test", 8448)
        self.names.records["a.test"] = [service]
        self.successResultOf(self.ask("a.test"))
        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(self.cached.services("a.test"))), [service])


class FakeNameResolver:
    """Answers with `addresses`; while it has none, later."""

    def __init__(self, addresses: list[Any] | None) -> None:
        self.addresses = addresses
        self.receivers: list[Any] = []

    def resolveHostName(self, receiver: Any, name: str, portNumber: int = 0, **options: Any) -> None:
        self.receivers.append(receiver)
        if self.addresses is not None:
            self.answer(receiver)

    def answer(self, receiver: Any) -> None:
        assert self.addresses is not None
        receiver.resolutionBegan(None)
        for address in self.addresses:
            receiver.addressResolved(address)
        receiver.resolutionComplete()


class FakeReactor(Clock):
    def __init__(self, *addresses: Any) -> None:
        super().__init__()
        self.nameResolver = FakeNameResolver(list(addresses))


class SystemNamesTests(SynchronousTestCase):
    def test_addresses_of_both_kinds_are_found_once_each(self) -> None:
        first, second = IPv6Address("TCP", "2001:db8::1", 0), IPv4Address("TCP", "192.0.2.1", 0)
        names = SystemNames(FakeReactor(first, second, first))
        found = self.successResultOf(Deferred.fromCoroutine(names.addresses("a.test")))
        self.assertEqual(found, ["2001:db8::1", "192.0.2.1"])

    def test_a_name_without_addresses_is_unknown(self) -> None:
        names = SystemNames(FakeReactor())
        self.failureResultOf(Deferred.fromCoroutine(names.addresses("a.test")), UnknownName)

    def test_only_so_many_addresses_are_looked_at(self) -> None:
        names = SystemNames(FakeReactor(*[IPv4Address("TCP", f"192.0.2.{n}", 0) for n in range(200)]))
        found = self.successResultOf(Deferred.fromCoroutine(names.addresses("a.test")))
        self.assertEqual(len(found), ADDRESS_LIMIT)

    def test_slow_lookups_leave_threads_to_others_even_if_nobody_waits_for_them(self) -> None:
        reactor = FakeReactor()
        resolver = reactor.nameResolver = FakeNameResolver(None)
        names = SystemNames(reactor)
        asking = [Deferred.fromCoroutine(names.addresses(f"{n}.test")) for n in range(LOOKUPS + 2)]
        self.assertEqual(len(resolver.receivers), LOOKUPS)
        asking[0].cancel()
        self.failureResultOf(asking[0], CancelledError)
        self.assertEqual(len(resolver.receivers), LOOKUPS)
        resolver.addresses = [IPv4Address("TCP", "192.0.2.1", 0)]
        for receiver in list(resolver.receivers):
            resolver.answer(receiver)
        self.assertEqual([self.successResultOf(one) for one in asking[1:]], [["192.0.2.1"]] * (LOOKUPS + 1))

    def test_names_that_the_system_chokes_on_are_not_asked_for(self) -> None:
        reactor = FakeReactor(IPv4Address("TCP", "192.0.2.1", 0))
        names = SystemNames(reactor)
        for host in ("", ".", "a..b", "x" * 64 + ".test", "a." * 130, "a b", "a\0b", "ü.test", "[::1]"):
            self.failureResultOf(Deferred.fromCoroutine(names.addresses(host)), UnknownName)
        self.assertEqual(reactor.nameResolver.receivers, [])

    def test_a_lookup_that_never_ends_is_given_up(self) -> None:
        reactor = FakeReactor()
        reactor.nameResolver = FakeNameResolver(None)
        names = SystemNames(reactor)
        asking = [Deferred.fromCoroutine(names.addresses("a.test")) for _ in range(LOOKUPS + 1)]
        reactor.advance(LOOKUP_SECONDS)
        self.assertEqual(len(reactor.nameResolver.receivers), LOOKUPS + 1)
        for one in asking[:LOOKUPS]:
            self.failureResultOf(one, UnknownName)
        reactor.nameResolver.addresses = [IPv4Address("TCP", "192.0.2.1", 0)]
        for receiver in reactor.nameResolver.receivers:
            reactor.nameResolver.answer(receiver)
        self.assertEqual(self.successResultOf(asking[-1]), ["192.0.2.1"])

    def services(self, answer: Any) -> list[Service]:
        names = SystemNames(FakeReactor())
        names._services = type("Resolver", (), {"lookupService": lambda self, name, timeout: answer})()
        return self.successResultOf(Deferred.fromCoroutine(names.services("_matrix-fed._tcp.a.test")))

    def test_services_are_read(self) -> None:
        record = dns.RRHeader(type=dns.SRV, payload=dns.Record_SRV(10, 5, 8449, b"b.test"))
        other = dns.RRHeader(type=dns.CNAME, payload=dns.Record_CNAME(b"c.test"))
        self.assertEqual(self.services(succeed(([other, record], [], []))), [Service(10, 5, "b.test", 8449)])

    def test_no_services_are_no_error(self) -> None:
        self.assertEqual(self.services(fail(DNSNameError())), [])
        self.assertEqual(self.services(fail(OSError())), [])
