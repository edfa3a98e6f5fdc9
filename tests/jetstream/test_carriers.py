"""What carries operations: the server on TCP, and the client that finds its way to a server, in memory."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

from nacl.signing import SigningKey
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.jetstream import remote, tcp, wire
from dendrite_tw.jetstream.accounts import Gate
from dendrite_tw.jetstream.credentials import CredentialsError, parse_credentials, read_credentials
from dendrite_tw.jetstream.errors import UnavailableError
from dendrite_tw.jetstream.remote import Address, RemoteQueue, parse_address
from dendrite_tw.jetstream.tcp import ServerConnection, ServerFactory
from dendrite_tw.jetstream.wire import Err, Info, Msg, Op, Parser
from tests.jetstream.support import ServerBench, settle


class Wire(StringTransport):
    """A transport that remembers how it ended."""

    def __init__(self) -> None:
        super().__init__()
        self.aborted = False

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Nothing to delay."""

    def abortConnection(self) -> None:
        self.aborted = self.disconnecting = True


class ServerSideTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.bench = ServerBench(None)
        self.clock = self.bench.clock
        self.factory = ServerFactory(self.bench.server, self.clock, self.bench.syncer.kick)

    def connect(self) -> tuple[ServerConnection, Wire]:
        connection, transport = self.factory.buildProtocol(None), Wire()
        connection.makeConnection(transport)
        return connection, transport

    def heard(self, transport: Wire) -> list[Op]:
        settle(self.clock)
        data = transport.value()
        transport.clear()
        return list(Parser().feed(data))

    def test_conversation(self) -> None:
        connection, transport = self.connect()
        [info] = self.heard(transport)
        self.assertIsInstance(info, Info)
        connection.dataReceived(b'CONNECT {"verbose":false,"headers":true}\r\nSUB a 1\r\nPI')
        connection.dataReceived(b"NG\r\nPUB a 2\r\nhi\r\n")
        self.assertEqual(self.heard(transport), [wire.PONG, Msg("a", "1", "", b"", b"hi")])
        connection.connectionLost()
        self.assertEqual(len(self.bench.server.sessions), 1)

    def test_what_is_not_the_protocol_ends_the_connection(self) -> None:
        connection, transport = self.connect()
        self.heard(transport)
        connection.dataReceived(b"GET / HTTP/1.1\r\n\r\nPUB a 1\r\nx\r\n")
        self.assertEqual(self.heard(transport), [Err("Unknown Protocol Operation")])
        self.assertTrue(transport.disconnecting)

    def test_login_takes_too_long(self) -> None:
        self.bench.server.gate = Gate(self.bench.server, token="secret")
        connection, transport = self.connect()
        self.heard(transport)
        self.clock.advance(tcp.AUTH_SECONDS + 0.1)
        self.assertEqual(self.heard(transport), [Err("Authentication Timeout")])
        self.assertTrue(transport.disconnecting)
        connection.connectionLost()

    def test_client_that_no_longer_answers(self) -> None:
        connection, transport = self.connect()
        connection.dataReceived(b"CONNECT {}\r\n")
        self.heard(transport)
        for _ in range(3):
            self.clock.advance(tcp.PING_SECONDS)
            self.assertEqual(self.heard(transport), [wire.PING])
            connection.dataReceived(b"PONG\r\n")
        for _ in range(3):
            self.clock.advance(tcp.PING_SECONDS)
        self.assertEqual(self.heard(transport), [wire.PING, wire.PING, Err("Stale Connection")])
        self.assertTrue(transport.disconnecting)
        connection.connectionLost()

    def test_slow_client_is_waited_for(self) -> None:
        connection, transport = self.connect()
        connection.dataReceived(b"CONNECT {}\r\nSUB a 1\r\n")
        self.heard(transport)
        connection.pauseProducing()
        for _ in range(10):
            self.bench.talker.publish("a", b"x")
        self.assertEqual(self.heard(transport), [])
        connection.resumeProducing()
        self.assertEqual(len(self.heard(transport)), 10)

    def test_slow_client_is_cut_off_in_the_end(self) -> None:
        self.patch(tcp, "MAX_PENDING", 10_000)
        connection, transport = self.connect()
        connection.dataReceived(b"CONNECT {}\r\nSUB a 1\r\n")
        self.heard(transport)
        connection.pauseProducing()
        for _ in range(20):
            self.bench.talker.publish("a", b"x" * 1000)
        self.assertTrue(transport.aborted)
        connection.connectionLost()
        self.assertFalse(self.bench.server.reaches("a"))

    def test_too_many_connections(self) -> None:
        self.patch(tcp, "MAX_CONNECTIONS", 1)
        connection, transport = self.connect()
        self.assertEqual(self.heard(transport), [Err("maximum connections exceeded")])
        connection.dataReceived(b"PING\r\n")
        connection.connectionLost()
        self.assertEqual(self.heard(transport), [])

    def test_payload_in_many_pieces(self) -> None:
        connection, transport = self.connect()
        connection.dataReceived(b"CONNECT {}\r\nSUB a 1\r\n")
        self.heard(transport)
        data = wire.encode(wire.Pub("a", "", b"", b"x" * 500_000)) + wire.encode(wire.PING)
        for start in range(0, len(data), 1000):
            connection.dataReceived(data[start : start + 1000])
        message, pong = self.heard(transport)
        assert isinstance(message, Msg)
        self.assertEqual((len(message.payload), pong), (500_000, wire.PONG))


class ClientSideTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.bench = ServerBench(None, clock=self.reactor)
        self.sides: list[tuple[remote.Connection, Wire, ServerConnection, Wire]] = []
        self.patch(remote, "optionsForClientTLS", lambda host: f"verified {host}")
        self.patch(remote, "CertificateOptions", lambda verify: f"verify={verify}")

    def queue(self, *addresses: str, **more: Any) -> RemoteQueue:
        queue = RemoteQueue(self.reactor, addresses or ["one"], inbox="PRIVATE.q", chance=lambda: 0.5, **more)
        self.successResultOf(Deferred.fromCoroutine(queue.start()))
        return queue

    def attempts(self) -> list[tuple[str, int]]:
        return [(host, port) for host, port, *_ in self.reactor.tcpClients]

    def accept(self) -> remote.Connection:
        """The server answers the latest attempt."""
        client = self.reactor.tcpClients[-1][2].buildProtocol(None)
        server = ServerFactory(self.bench.server, self.reactor, self.bench.syncer.kick).buildProtocol(None)
        client_wire, server_wire = Wire(), Wire()
        self.sides.append((client, client_wire, server, server_wire))
        server.makeConnection(server_wire)
        client.makeConnection(client_wire)
        self.carry()
        return client

    def carry(self) -> None:
        """Bytes go to and fro until nobody has more to say."""
        for _ in range(60):
            settle(self.reactor, 3)
            for client, client_wire, server, server_wire in self.sides:
                for source, target in ((client_wire, server), (server_wire, client)):
                    data = source.value()
                    source.clear()
                    if data:
                        target.dataReceived(data)

    def cut(self) -> None:
        client, _, server, _ = self.sides.pop()
        server.connectionLost()
        client.connectionLost()

    def refuse(self) -> None:
        factory = self.reactor.tcpClients[-1][2]
        factory.clientConnectionFailed(None, Failure(ConnectionRefusedError()))

    def test_connects_and_works(self) -> None:
        queue = self.queue("nats://alice:secret@somewhere:4444")
        self.assertEqual((self.attempts(), queue.degraded), ([("somewhere", 4444)], ["no connection to NATS"]))
        self.accept()
        self.assertEqual((queue.client.ready, queue.degraded), (True, []))
        acks: list[Any] = []
        queue.client.send("OutputRoomEvent", b"x").addCallback(acks.append)
        self.carry()
        self.assertEqual(acks[0].seq, 1)

    def test_connects_again_and_again(self) -> None:
        queue = self.queue("one", "two")
        self.refuse()
        self.reactor.advance(0.2)
        self.refuse()
        self.assertEqual(self.attempts(), [("one", 4222), ("two", 4222)])
        pause = remote.FIRST_RETRY_SECONDS
        for rounds in range(1, 6):
            self.reactor.advance(pause - 0.001)
            self.assertEqual(len(self.attempts()), 2 * rounds)
            self.reactor.advance(pause * remote.JITTER + 0.002)
            self.refuse()
            self.reactor.advance(0.2)
            self.refuse()
            self.assertEqual(len(self.attempts()), 2 * rounds + 2)
            pause = min(2 * pause, remote.RETRY_SECONDS)
        self.reactor.advance(remote.RETRY_SECONDS * (1 + remote.JITTER))
        self.assertEqual(len(self.attempts()), 13)
        self.accept()
        self.assertTrue(queue.client.ready)
        self.cut()
        self.assertFalse(queue.client.ready)
        self.reactor.advance(0.2)
        self.assertEqual(self.attempts()[-1], ("two", 4222))

    def test_questions_under_way_fail_when_the_connection_is_lost(self) -> None:
        queue = self.queue()
        self.failureResultOf(queue.client.send("OutputRoomEvent", b"x"), UnavailableError)
        self.accept()
        waiting = queue.client.send("OutputRoomEvent", b"x")
        self.cut()
        self.failureResultOf(waiting, UnavailableError)

    def test_worker_and_listener_survive_a_reconnection(self) -> None:
        queue = self.queue()
        got: list[bytes] = []
        heard: list[bytes] = []

        async def handle(messages: list[Any]) -> None:
            got.extend(message.payload for message in messages)

        begun: list[int] = []
        queue.client.consume("OutputRoomEvent", "A", handle)
        queue.client.listen(
            "OutputRoomEvent", lambda message: heard.append(message.payload), lambda: begun.append(len(heard))
        )
        self.accept()
        for payload in (b"1", b"2"):
            queue.client.send("OutputRoomEvent", payload)
        self.carry()
        self.cut()
        self.bench.talker.put("DendriteOutputRoomEvent", b"meanwhile")
        self.reactor.advance(0.2)
        self.accept()
        queue.client.send("OutputRoomEvent", b"3")
        self.carry()
        self.assertEqual((got, heard), ([b"1", b"2", b"meanwhile", b"3"],) * 2)
        self.assertEqual(begun, [0], "the server still had the listener")

    def test_server_that_falls_silent(self) -> None:
        self.queue()
        client = self.accept()
        wire_ = self.sides.pop()[1]
        for _ in range(3):
            self.reactor.advance(remote.PING_SECONDS)
            settle(self.reactor, 3)
        self.assertTrue(wire_.aborted)
        client.connectionLost()

    def test_server_that_does_not_introduce_itself(self) -> None:
        self.queue()
        client, transport = self.reactor.tcpClients[-1][2].buildProtocol(None), Wire()
        client.makeConnection(transport)
        self.reactor.advance(remote.CONNECT_SECONDS + 1)
        self.assertTrue(transport.aborted)

    def test_stranger_on_the_port(self) -> None:
        self.queue()
        client, transport = self.reactor.tcpClients[-1][2].buildProtocol(None), Wire()
        client.makeConnection(transport)
        client.dataReceived(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        self.assertTrue(transport.disconnecting)
        client.connectionLost()

    def test_encrypted_where_asked(self) -> None:
        for address, introduction, verify, expected in (
            ("tls://host", {}, True, ["verified host"]),
            ("nats://host", {"tls_required": True}, True, ["verified host"]),
            ("nats://host", {"tls_required": True}, False, ["verify=False"]),
            ("nats://host", {}, True, []),
        ):
            self.queue(address, verify_tls=verify)
            started: list[Any] = []
            client, transport = self.reactor.tcpClients[-1][2].buildProtocol(None), Wire()
            transport.startTLS = started.append  # type: ignore[attr-defined]
            client.makeConnection(transport)
            client.dataReceived(wire.encode(Info(introduction)))
            self.assertEqual(started, expected)
            client.connectionLost()

    def test_login(self) -> None:
        seed = bytes(range(32))
        credentials = parse_credentials(creds_file(seed))
        for address, more, expected in (
            ("nats://u:p%40@h", {}, {"user": "u", "pass": "p@"}),
            ("nats://token@h", {}, {"auth_token": "token"}),
            ("h", {"credentials": credentials}, {"jwt": "ey.J.x"}),
        ):
            self.queue(address, **more)
            client, transport = self.reactor.tcpClients[-1][2].buildProtocol(None), Wire()
            client.makeConnection(transport)
            client.dataReceived(wire.encode(Info({"nonce": "abc"})))
            settle(self.reactor, 3)
            connect = next(iter(Parser().feed(transport.value())))
            assert isinstance(connect, wire.Connect)
            self.assertEqual({key: connect.options[key] for key in expected}, expected)
            if "sig" in connect.options:
                signature = base64.urlsafe_b64decode(connect.options["sig"] + "==")
                SigningKey(seed).verify_key.verify(b"abc", signature)
            client.connectionLost()

    def test_stopping(self) -> None:
        queue = self.queue()
        self.accept()
        stopping = Deferred.fromCoroutine(queue.stop())
        self.assertTrue(self.sides[-1][1].disconnecting)
        self.cut()
        self.successResultOf(stopping)
        self.reactor.advance(60)
        self.assertEqual(len(self.attempts()), 1)

    def test_addresses(self) -> None:
        self.assertEqual(parse_address("nats://h"), Address("h", 4222))
        self.assertEqual(parse_address("h:99"), Address("h", 99))
        self.assertEqual(parse_address("tls://[::1]:5"), Address("::1", 5, tls=True))
        self.assertEqual(parse_address("nats://u:p@h"), Address("h", 4222, user="u", password="p"))
        for text in ("", "http://h", "nats://", "nats://h:x"):
            with self.assertRaises(ValueError):
                parse_address(text)
        self.assertNotIn("secret", repr(parse_address("nats://u:secret@h")))
        with self.assertRaises(ValueError):
            RemoteQueue(self.reactor, [], inbox="x", chance=lambda: 0.0)


def creds_file(seed: bytes, prefix: bytes = b"\x92\x80") -> str:
    raw = prefix + seed
    text = base64.b32encode(raw + binascii.crc_hqx(raw, 0).to_bytes(2, "little")).rstrip(b"=").decode()
    return (
        "-----BEGIN NATS USER JWT-----\ney.J.x\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{text}\n------END USER NKEY SEED------\n"
    )


class CredentialsTests(SynchronousTestCase):
    def test_read(self) -> None:
        path = Path(self.mktemp())
        path.write_text(creds_file(bytes(32)))
        credentials = read_credentials(path)
        self.assertEqual((credentials.jwt, credentials.seed), ("ey.J.x", bytes(32)))
        self.assertNotIn("ey", repr(credentials))

    def test_not_credentials(self) -> None:
        good = creds_file(bytes(32))
        seed = good.split("SEED-----\n")[1].split("\n")[0]
        for text in (
            "",
            good.replace("NATS USER JWT", "OTHER"),
            good.replace(seed, seed[:-1] + ("A" if seed[-1] != "A" else "B")),
            good.replace(seed, "SU"),
            creds_file(bytes(32), b"\x10\x00"),
        ):
            with self.assertRaises(CredentialsError):
                parse_credentials(text)
