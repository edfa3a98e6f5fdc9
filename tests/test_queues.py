"""The whole server over a NATS server, which comes and goes and loses all that it had; the built-in queue's port."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from twisted.internet.error import CannotListenError
from twisted.internet.testing import MemoryReactorClock, StringTransport

from dendrite_tw.assemble import monolith
from dendrite_tw.config import ConfigError, loads
from dendrite_tw.federation_api.api import DURABLES
from dendrite_tw.jetstream import wire
from dendrite_tw.jetstream.accounts import Gate
from dendrite_tw.jetstream.remote import RETRY_SECONDS
from dendrite_tw.jetstream.tcp import ServerFactory
from dendrite_tw.world import test_world
from tests.federation_api.whole import WholeServerTestCase
from tests.harness import Answer
from tests.jetstream.support import ServerBench, Talker
from tests.server import Client, ServerTestCase

NATS = ("nats.test", 4222)
BUILT_IN = "jetstream: {in_memory: true"


class OverNats(WholeServerTestCase):
    """A server that federates, with a NATS server on the network."""

    broker: ServerBench | None = None
    starts_with_nats = True

    def write_config(self, folder: str) -> str:
        elsewhere = (
            "presence: {enable_outbound: true}\n"
            "  jetstream: {addresses: ['nats://sesame@nats.test'], topic_prefix: Ours, js_domain: hub"
        )
        return super().write_config(folder).replace(BUILT_IN, elsewhere)

    def tcp(self) -> Any:
        return self.network

    def setUp(self) -> None:
        super().setUp()
        self.pump(1)

    def start(self, seed: int = 0) -> Any:
        if self.starts_with_nats and self.broker is None:
            self.nats_comes()
        server = super().start(seed)
        self.pump(1)
        return server

    def nats_comes(self) -> None:
        """A NATS server that has nothing stored."""
        self.broker = ServerBench(None, self.clock, domain="hub")
        self.broker.server.gate = Gate(self.broker.server, token="sesame")
        # It hears all inboxes, so that messages for who is gone would count as received.
        self.broker.talker.session.closed()
        factory = ServerFactory(self.broker.server, self.clock, self.broker.syncer.kick)
        self.network.listen(*NATS, factory)

    def api(self, request: str) -> dict[str, Any]:
        """The answer of the JetStream API."""
        assert self.broker is not None
        talker = Talker(self.broker.server, self.clock, auth_token="sesame")
        try:
            return talker.api(request)
        finally:
            talker.session.closed()

    def nats_goes(self) -> None:
        self.network.cut(*NATS)
        self.pump()

    def wait(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.25)):
            self.pump(0.25)

    def health(self) -> Answer:
        return self.request("GET", "/_dendrite/monitor/health")

    def types(self, who: Client, room_id: str) -> Answer:
        return who.put(f"/rooms/{quote(room_id)}/typing/{quote(who.user_id)}", {"typing": True, "timeout": 30000})

    def talk(self) -> tuple[Client, Client, str]:
        """Alice and Bob in a room."""
        alice, bob = self.register("alice"), self.register("bob")
        room = alice.create_room(preset="public_chat")
        bob.join(room)
        self.wait(1)
        return alice, bob, room

    def seen(self, shown: Any, room_id: str) -> list[str]:
        """The texts in a room that a sync shows."""
        events = shown["rooms"]["join"][room_id]["timeline"]["events"] if "rooms" in shown else []
        return [event["content"]["body"] for event in events if event["type"] == "m.room.message"]

    def insist(self, ask: Callable[[], Answer], seconds: float) -> Any:
        """The answer to a request that may take its time."""
        answer = ask()
        for _ in range(round(seconds / 0.25)):
            if answer.done:
                break
            self.pump(0.25)
        self.assertEqual(answer.status, 200, answer)
        return answer.json

    def refused_for_now(self, answer: Answer) -> None:
        self.assertEqual((answer.status, answer.errcode), (503, "M_UNKNOWN"))
        self.assertGreater(answer.json["retry_after_ms"], 0)
        self.assertIn("queue is not available", answer.json["error"])


class NatsStories(OverNats):
    def test_a_conversation(self) -> None:
        alice, bob, room = self.talk()
        since = bob.sync()["next_batch"]
        waiting = bob.start_sync(since, 30_000)
        alice.say(room, "hello", **{"m.mentions": {"user_ids": [bob.user_id]}})
        self.wait(0.5)
        shown = bob.ok(waiting)
        self.assertEqual(self.seen(shown, room), ["hello"])
        self.assertEqual(shown["rooms"]["join"][room]["unread_notifications"]["highlight_count"], 1)
        self.assertEqual(self.types(alice, room).status, 200)
        [typing] = bob.sync(shown["next_batch"])["rooms"]["join"][room]["ephemeral"]["events"]
        self.assertEqual(typing["content"]["user_ids"], [alice.user_id])
        self.assertEqual(self.health().status, 200)

    def test_the_folder_of_the_built_in_queue_is_not_used(self) -> None:
        folder = loads(self.config_text, allow_open_registration=True).global_.jetstream.storage_path
        self.assertTrue(Path(folder).parent.exists())
        self.assertFalse(Path(folder).exists())

    def test_consumers_of_the_federation_read_from_it(self) -> None:
        alice, _, room = self.talk()
        alice.say(room, "hello")
        self.wait(2)
        for stream, names in DURABLES.items():
            for name in names:
                info = self.api(f"CONSUMER.INFO.Ours{stream}.Ours{name}")
                self.assertEqual((info["num_pending"], info["num_ack_pending"]), (0, 0), name)
        told = self.api("CONSUMER.INFO.OursOutputRoomEvent.OursFederationAPIRoomServerConsumer")
        self.assertGreater(told["delivered"]["stream_seq"], 5)

    def test_without_federation_nothing_is_kept_for_it(self) -> None:
        self.talk()
        self.stop()
        self.config_text = self.config_text.replace("global:\n", "global:\n  disable_federation: true\n", 1)
        self.server = self.start(1)
        consumers = self.api("CONSUMER.NAMES.OursOutputRoomEvent")["consumers"]
        self.assertIn("OursUserAPIRoomServerConsumer", consumers)
        self.assertNotIn("OursFederationAPIRoomServerConsumer", consumers)

    def test_nats_goes_and_loses_everything(self) -> None:
        alice, bob, room = self.talk()
        alice.say(room, "before")
        self.wait(1)
        shown = bob.sync()
        self.nats_goes()
        self.assertEqual(self.health().json, {"warnings": ["no connection to NATS"]})
        self.refused_for_now(self.types(alice, room))
        self.refused_for_now(alice.put(f"/presence/{quote(alice.user_id)}/status", {"presence": "unavailable"}))
        for number in range(5):
            alice.say(room, f"away {number}")
        shown = self.insist(lambda: bob.start_sync(shown["next_batch"], 30_000), 10)
        self.assertEqual(self.seen(shown, room), [f"away {number}" for number in range(5)])

        self.nats_comes()
        self.wait(RETRY_SECONDS + 2)
        self.assertEqual((self.health().status, self.health().json), (200, {}))
        self.assertEqual(self.types(alice, room).status, 200)
        for number in range(5):
            alice.say(room, f"back {number}")
        self.wait(2)
        shown = bob.sync(shown["next_batch"])
        self.assertEqual(self.seen(shown, room), [f"back {number}" for number in range(5)])
        unread = bob.sync()["rooms"]["join"][room]["unread_notifications"]
        self.assertEqual(unread["notification_count"], 11)

    def test_from_one_queue_to_the_other_and_back(self) -> None:
        alice, bob, room = self.talk()
        over_nats = self.config_text
        before = bob.sync()["next_batch"]
        for seed, text in ((1, over_nats.replace("addresses: [", "in_memory: true, ignored: [")), (2, over_nats)):
            alice.say(room, f"last before {seed}")
            self.stop()
            self.config_text = text
            self.server = self.start(seed)
            alice.say(room, f"first after {seed}")
            self.wait(1)
        shown = bob.sync(before)
        wanted = [f"{when} {seed}" for seed in (1, 2) for when in ("last before", "first after")]
        self.assertEqual(self.seen(shown, room), wanted)
        self.assertEqual(shown["rooms"]["join"][room]["unread_notifications"]["notification_count"], 4)

    def test_a_stream_is_deleted(self) -> None:
        alice, bob, room = self.talk()
        since = bob.sync()["next_batch"]
        for stream in ("OutputRoomEvent", "OutputTypingEvent"):
            self.assertTrue(self.api(f"STREAM.DELETE.Ours{stream}")["success"])
        self.refused_for_now(self.types(alice, room))
        alice.say(room, "hello")
        self.wait(3)
        self.assertEqual(self.health().status, 200)
        self.assertEqual(self.types(alice, room).status, 200)
        shown = bob.sync(since)
        self.assertEqual(self.seen(shown, room), ["hello"])
        self.assertEqual(shown["rooms"]["join"][room]["unread_notifications"]["notification_count"], 1)


class NatsComesLater(OverNats):
    starts_with_nats = False

    def test_the_server_starts_without_it(self) -> None:
        self.assertEqual(self.health().status, 503)
        alice, bob, room = self.talk()
        self.refused_for_now(self.types(alice, room))
        alice.say(room, "early")
        shown = self.insist(lambda: bob.start_sync(), 10)
        self.assertEqual(self.seen(shown, room), ["early"])
        self.nats_comes()
        self.wait(RETRY_SECONDS + 2)
        self.assertEqual(self.health().status, 200)
        self.assertEqual(self.types(alice, room).status, 200)
        alice.say(room, "late")
        self.wait(1)
        shown = bob.sync(shown["next_batch"])
        self.assertEqual(self.seen(shown, room), ["late"])
        self.assertEqual(shown["rooms"]["join"][room]["unread_notifications"]["notification_count"], 2)

    def test_it_stops_without_it(self) -> None:
        self.stop()
        self.nats_comes()
        self.wait(60)
        assert self.broker is not None
        self.assertEqual(self.broker.server.sessions, {})
        self.server = self.start(1)


class PortStories(ServerTestCase):
    """The built-in queue on a port."""

    def write_config(self, folder: str) -> str:
        return super().write_config(folder).replace(BUILT_IN, f"{BUILT_IN}, listen: ':4333', listen_token: sesame")

    def tcp(self) -> Any:
        self.ports = MemoryReactorClock()
        return self.ports

    def ask(self, connect: bytes) -> list[wire.Op]:
        """What is said to a client who wants to look at a stream."""
        connection, transport = self.ports.tcpServers[0][1].buildProtocol(None), StringTransport()
        transport.setTcpNoDelay = lambda enabled: None  # type: ignore[attr-defined]
        connection.makeConnection(transport)
        question = b"SUB box 1\r\nPUB $JS.API.STREAM.INFO.DendriteOutputRoomEvent box 0\r\n\r\n"
        connection.dataReceived(connect + b"\r\n" + question)
        self.pump(0.1)
        heard = list(wire.Parser().feed(transport.value()))
        connection.connectionLost()
        return heard[1:]

    def test_who_may_look_into_the_queue(self) -> None:
        [(port, _, _, host)] = self.ports.tcpServers
        self.assertEqual((host, port), ("127.0.0.1", 4333))
        self.register("alice").create_room()
        [refusal] = self.ask(b'CONNECT {"auth_token":"guess"}')
        self.assertEqual(refusal, wire.Err("Authorization Violation"))
        [answer] = self.ask(b'CONNECT {"auth_token":"sesame"}')
        assert isinstance(answer, wire.Msg)
        self.assertIn(b'"name":"DendriteOutputRoomEvent"', answer.payload)


class TakenPort(ServerTestCase):
    """The built-in queue on a port that somebody else has."""

    def write_config(self, folder: str) -> str:
        return super().write_config(folder).replace(BUILT_IN, f"{BUILT_IN}, listen: '127.0.0.1:4333'")

    def tcp(self) -> Any:
        return self

    def listenTCP(self, port: int, factory: object, interface: str) -> None:
        raise CannotListenError(interface, port, OSError("Address already in use"))

    def start(self, seed: int = 0) -> Any:
        config = loads(self.config_text, allow_open_registration=True)
        server = monolith(config, test_world(self.clock, seed, None, self.tcp()))
        server.startService()
        self.pump()
        return server

    def test_ends_the_start_with_a_sentence(self) -> None:
        said = self.failureResultOf(self.server.started, ConfigError).getErrorMessage()
        self.assertIn("global.jetstream.listen: Nothing can listen on 127.0.0.1:4333: Address already in use", said)


class Credentials(ServerTestCase):
    def test_what_is_none_stops_the_start(self) -> None:
        path = Path(self.mktemp())
        path.write_text("nothing of the kind")
        for name in (str(path.resolve()), str(path.resolve()) + ".missing"):
            text = self.config_text.replace(BUILT_IN, f"jetstream: {{addresses: [a], credentials_path: {name}")
            config = loads(text, allow_open_registration=True)
            error = self.assertRaises(ConfigError, monolith, config, test_world(self.clock))
            self.assertIn("global.jetstream.credentials_path: There are no credentials to be had", str(error))
