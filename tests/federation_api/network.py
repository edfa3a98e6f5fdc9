"""A network in memory: names, addresses, certificates, and servers that listen.

`Network` is what a client is given as a reactor: it connects to whoever listens at an address, over pipes that
`flush` moves bytes through, real TLS included.  `FederationServer` is the federation component of a server on it.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Callable, Coroutine, Iterable
from functools import lru_cache
from typing import Any, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from OpenSSL import crypto
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost, ConnectionRefusedError, TimeoutError, UserError
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.ssl import Certificate, CertificateOptions, trustRootFromCertificates
from twisted.internet.task import Clock
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.test.iosim import FakeTransport, IOPump, connect
from twisted.web.resource import Resource

from dendrite_tw.database.engines import SQLiteDatabase
from dendrite_tw.federation_api.component import FederationComponent
from dendrite_tw.federation_api.keyring import Perspective
from dendrite_tw.federation_api.signing_keys import OwnKeys
from dendrite_tw.matrix.keys import OldVerifyKey, SigningKey, signing_key
from dendrite_tw.web.client import HttpClient
from dendrite_tw.web.internet import ClientOptions, Locator, NameCache
from dendrite_tw.web.names import Service, UnknownName
from dendrite_tw.web.networks import Networks
from dendrite_tw.web.routes import Route
from dendrite_tw.web.site import make_root, make_site
from dendrite_tw.web.tls import ClientTls
from dendrite_tw.world import test_world
from tests.harness import KnownCallers, NoLimits

T = TypeVar("T")

CONNECTION_REFUSED_SECONDS = 0.3
"""After so much time it is clear that there is no other address to be tried."""

FOREVER = datetime.datetime(2100, 1, 1)
LONG_AGO = datetime.datetime(2000, 1, 1)


class Names:
    """Answers from dicts; says what was asked."""

    def __init__(self) -> None:
        self.known: dict[str, list[str]] = {}
        self.records: dict[str, list[Service]] = {}
        self.asked: list[str] = []

    async def addresses(self, host: str) -> list[str]:
        self.asked.append(host)
        if host not in self.known:
            raise UnknownName(host)
        return self.known[host]

    async def services(self, name: str) -> list[Service]:
        self.asked.append(name)
        return self.records.get(name, [])


class _Pipe(FakeTransport):
    """A transport that knows where it leads, as a socket does."""

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", "192.0.2.99", 4242)

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", "192.0.2.98", 8448)

    def setTcpNoDelay(self, enabled: bool) -> None:
        return None

    def setTcpKeepAlive(self, enabled: bool) -> None:
        return None


class Network:
    """A reactor whose network is in memory."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.callLater = clock.callLater
        self.seconds = clock.seconds
        self.names = Names()
        self.listeners: dict[tuple[str, int], Any] = {}
        self.connections: list[tuple[str, int]] = []
        self.settle: Callable[[], None] = lambda: None
        """Lets what is outside of this network, such as a broker, come to rest."""
        self._pumps: list[IOPump] = []
        self._leads: dict[IOPump, tuple[str, int]] = {}

    def listen(self, address: str, port: int, factory: Any, certificate_for: str | None = None) -> None:
        """Let `factory` answer there, over TLS if it has a certificate."""
        if certificate_for is not None:
            factory = TLSMemoryBIOFactory(server_options(certificate_for), False, factory, clock=self.clock)
        self.listeners[address, port] = factory

    def connectTCP(self, host: str, port: int, factory: Any, timeout: float = 30, bindAddress: Any = None) -> Any:
        self.connections.append((host, port))
        connector = _Connector(host, port, factory)
        factory.doStart()
        factory.startedConnecting(connector)
        listener = self.listeners.get((host, port))
        if listener is None:
            connector.call = self.clock.callLater(0, connector.fail, ConnectionRefusedError())
        elif listener is SILENT:
            connector.call = self.clock.callLater(timeout, connector.fail, TimeoutError())
        else:
            connector.call = self.clock.callLater(0, self._connect, connector, listener)
        return connector

    def _connect(self, connector: _Connector, listener: Any) -> None:
        server = listener.buildProtocol(IPv4Address("TCP", "192.0.2.99", 4242))
        client = connector.factory.buildProtocol(None)
        pump = connect(server, _Pipe(server, isServer=True), client, _Pipe(client, isServer=False), clock=self.clock)
        self._pumps.append(pump)
        self._leads[pump] = (connector.destination.host, connector.destination.port)

    def cut(self, host: str, port: int) -> None:
        """Let nobody answer there any more, and end the connections to it; what is under way is lost."""
        self.listeners.pop((host, port), None)
        for pump in [pump for pump in self._pumps if self._leads[pump] == (host, port)]:
            self._pumps.remove(pump)
            for side in (pump.server, pump.client):
                side.connectionLost(Failure(ConnectionLost()))

    def flush(self, rounds: int = 60) -> None:
        """Move bytes until nothing moves any more."""
        for _ in range(rounds):
            self.clock.advance(0)
            moved = [pump.pump() for pump in self._pumps]
            if not any(moved) and not self._due():
                return

    def _due(self) -> bool:
        return any(call.getTime() <= self.clock.seconds() for call in self.clock.getDelayedCalls())

    def advance(self, seconds: float) -> None:
        """Let time pass, and what follows from it happen."""
        self.clock.advance(seconds)
        self.flush()

    def begin(self, coroutine: Coroutine[Any, Any, T]) -> Deferred[T]:
        """Begin something, as far as it gets while nobody takes longer than a refused connection does."""
        begun = Deferred.fromCoroutine(coroutine)
        self.flush()
        for _ in range(4):
            if not begun.called:
                self.settle()
                self.advance(CONNECTION_REFUSED_SECONDS)
        return begun

    def client(
        self, networks: Networks | None = None, tls: ClientTls | None = None, keep_alive: bool = True
    ) -> HttpClient:
        """A client on this network, by default one that trusts its authority."""
        tls = tls or ClientTls(trust_root=trust_root())
        return HttpClient(self, self.names, networks or Networks([], []), tls, keep_alive=keep_alive)


class NetworkInternet:
    """`World.internet` on a network in memory: real TLS and HTTP, but no sockets."""

    locator: Locator | None = None

    def __init__(self, network: Network) -> None:
        self._network = network
        self.caches: list[NameCache | None] = []
        self.options: list[ClientOptions] = []

    def names(self, cache: NameCache | None) -> Names:
        self.caches.append(cache)
        return self._network.names

    def client(self, names: Any, options: ClientOptions) -> HttpClient:
        self.options.append(options)
        tls = ClientTls(options.validate_tls, trust_root())
        return self._network.client(options.networks, tls, options.keep_alive)


SILENT = Factory()
"""Listens where nobody ever answers a connection."""


class _Connector:
    """An attempt to connect."""

    def __init__(self, host: str, port: int, factory: Any) -> None:
        self.destination = IPv4Address("TCP", host, port)
        self.factory = factory
        self.call: Any = None

    def getDestination(self) -> IPv4Address:
        return self.destination

    def fail(self, error: Exception) -> None:
        self.factory.clientConnectionFailed(self, Failure(error))

    def disconnect(self) -> None:
        self.stopConnecting()

    def stopConnecting(self) -> None:
        if self.call is not None and self.call.active():
            self.call.cancel()
        self.fail(UserError())


class Scripted(Protocol):
    """Answers each request with the next of some bytes."""

    def __init__(self, answers: Iterable[bytes], heard: list[bytes], close: bool) -> None:
        self.answers = iter(answers)
        self.heard = heard
        self.close = close
        self.closed = False

    def dataReceived(self, data: bytes) -> None:
        self.heard.append(data)
        assert self.transport is not None
        self.transport.write(next(self.answers, b""))
        if self.close:
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.closed = True


class Script(Factory):
    """A server that says what it was told to, whatever it is asked."""

    noisy = False

    def __init__(self, *answers: bytes, close: bool = False) -> None:
        self.answers = answers
        self.close = close
        self.heard: list[bytes] = []
        self.made: list[Scripted] = []

    def buildProtocol(self, addr: Any) -> Protocol:
        self.made.append(Scripted(self.answers, self.heard, self.close))
        return self.made[-1]


def response(body: bytes, status: str = "200 OK", headers: str = "") -> bytes:
    """An HTTP response as bytes."""
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


# --- certificates ---


@lru_cache
def _authority() -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "The network's authority")])
    return _certificate(name, name, key, key, [], is_authority=True), key


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer_key: ec.EllipticCurvePrivateKey,
    names: list[x509.GeneralName],
    is_authority: bool = False,
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(LONG_AGO)
        .not_valid_after(FOREVER)
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def trust_root() -> Any:
    """Trust in the network's authority."""
    return trustRootFromCertificates([Certificate(crypto.X509.from_cryptography(_authority()[0]))])


@lru_cache
def server_options(name: str) -> CertificateOptions:
    """A server's certificate for `name`, a DNS name or an address."""
    certificate, key = leaf(name)
    return CertificateOptions(
        privateKey=crypto.PKey.from_cryptography_key(key), certificate=crypto.X509.from_cryptography(certificate)
    )


def leaf(name: str) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A certificate for `name`, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    try:
        general: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        general = x509.DNSName(name)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "A server")])
    authority, authority_key = _authority()
    return _certificate(subject, authority.subject, key, authority_key, [general]), key


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


# --- servers ---


def key_of(seed: int, key_id: str = "ed25519:one") -> SigningKey:
    """A signing key that every run has again."""
    return signing_key(key_id, bytes([seed]) * 32)


class FederationServer:
    """A server of which there is only what speaks to other servers."""

    def __init__(
        self,
        network: Network,
        name: str,
        address: str,
        key: SigningKey,
        old_keys: Iterable[OldVerifyKey] = (),
        perspectives: Iterable[Perspective] = (),
        prefer_direct_fetch: bool = False,
        routes: Callable[[], list[Route]] = list,
        database: SQLiteDatabase | None = None,
    ) -> None:
        self.name = name
        self.network = network
        world = test_world(network.clock, name)
        self.database = database or SQLiteDatabase(":memory:", None)
        self.own = OwnKeys(name, key, list(old_keys), 7 * 86_400_000, world.clock)
        self.outcomes: list[tuple[str, str]] = []
        self.component = FederationComponent(
            self.database,
            network.client(),
            network.names,
            self.own,
            world,
            list(perspectives),
            prefer_direct_fetch,
            send_max_retries=3,
            observe=lambda method, outcome: self.outcomes.append((method, outcome)),
        )
        self.component.prepare()
        root: Resource = make_root(
            [*self.component.routes(), *routes()],
            KnownCallers({}),
            NoLimits(),
            lambda endpoint, status: None,
            servers=self.component.servers,
        )
        self.site = make_site(root, network.clock)
        self.address = address
        network.names.known[name] = [address]
        self.go_online()

    def go_online(self) -> None:
        self.network.listen(self.address, 8448, self.site, certificate_for=self.name)

    def go_offline(self) -> None:
        """Connections are refused from now on, and the open ones are lost."""
        self.network.listeners.pop((self.address, 8448), None)
        for pump in self.network._pumps:
            pump.clientIO.abortConnection()
        self.network.flush()
        self.network._pumps.clear()
