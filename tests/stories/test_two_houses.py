"""Two houses, both alike in dignity: Alice's server and Bob's, whole, over TLS; what one says the other hears.

Each has all of its components; between them are bytes on a network in memory, which can be cut.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

from twisted.internet.task import Clock

from dendrite_tw.assemble import Server
from dendrite_tw.matrix.keys import signing_key, write_pem
from tests.federation_api.network import Network, NetworkInternet
from tests.harness import Answer
from tests.server import Client, ServerTestCase

ADDRESSES = {"test": "192.0.2.100", "bobs.test": "192.0.2.101"}


class House(ServerTestCase):
    """A server on the network of a test, in the place of the test's own."""

    def runTest(self) -> None:
        """Needed to be made by hand."""

    def __init__(self, name: str, network: Network, folder: Path) -> None:
        super().__init__("runTest")
        self.name, self.network, self.clock = name, network, network.clock
        folder.mkdir()
        (folder / "matrix_key.pem").write_text(write_pem(signing_key("ed25519:1", name.encode().ljust(32))))
        self.config_text = self.placed(self.write_config(str(folder.resolve())))
        network.names.known[name] = [ADDRESSES[name]]
        self.seed = 0

    def write_config(self, folder: str) -> str:
        text = super().write_config(folder).replace("server_name: test", f"server_name: {self.name}")
        return text.replace("global:\n", "global:\n  presence: {enable_inbound: true, enable_outbound: true}\n")

    def id(self) -> str:
        return self.name

    def internet(self) -> NetworkInternet:
        return NetworkInternet(self.network)

    def open(self) -> None:
        """Start the server, and listen."""
        self.seed += 1
        self.server: Server = self.start(self.seed)
        self.connect()

    def connect(self) -> None:
        site = self.server.factory(self.clock)
        self.network.listen(ADDRESSES[self.name], 8448, site, certificate_for=self.name)

    def cut(self) -> None:
        """Nobody reaches the server any more."""
        self.network.listeners.pop((ADDRESSES[self.name], 8448), None)
        for pump in self.network._pumps:
            pump.clientIO.abortConnection()
        self.network.flush()
        self.network._pumps.clear()

    def pump(self, seconds: float = 0.0) -> None:
        super().pump(seconds)
        self.network.flush()

    def request(self, method: str, path: str, body: Any = None, token: str | None = None, **options: Any) -> Answer:
        answer = self.web.request(method, path, body, token, **options)
        for _ in range(40):
            self.pump()
            if answer.done:
                break
            self.pump(0.1)
        return answer


class TwoHousesTests(ServerTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_700_000_000)
        self.network = Network(self.clock)
        folder = Path(self.mktemp())
        folder.mkdir()
        self.here, self.there = (House(name, self.network, folder / name) for name in ADDRESSES)
        for house in (self.here, self.there):
            house.open()
            self.addCleanup(house.stop)
        self.alice, self.bob = self.here.register("alice"), self.there.register("bob")
        self.room = self.alice.create_room(preset="public_chat")
        self.bob.ok(self.bob.post(f"/join/{quote(self.room)}?server_name=test"))
        self.settle()

    def settle(self, seconds: float = 2.0) -> None:
        """Let messages travel."""
        for _ in range(int(seconds / 0.25)):
            self.here.pump(0.25)

    def texts(self, client: Client) -> list[str]:
        """The messages that a client finds in the room, in its order."""
        page = client.ok(client.get(f"/rooms/{quote(self.room)}/messages?dir=b&limit=100"))
        return [event["content"]["body"] for event in reversed(page["chunk"]) if event["type"] == "m.room.message"]

    def test_both_hear_each_other(self) -> None:
        for number in range(3):
            self.alice.say(self.room, f"a{number}")
            self.settle()
            self.bob.say(self.room, f"b{number}")
            self.settle()
        said = ["a0", "b0", "a1", "b1", "a2", "b2"]
        self.assertEqual((self.texts(self.alice), self.texts(self.bob)), (said, said))

    def test_what_was_said_during_an_absence_is_heard_after_it(self) -> None:
        self.there.cut()
        for number in range(60):
            self.alice.say(self.room, f"a{number}")
        self.settle(100)
        self.assertEqual(self.texts(self.bob), [])
        self.there.connect()
        self.settle(70)
        self.assertEqual(self.texts(self.bob), [f"a{number}" for number in range(60)])

    def test_what_was_said_before_one_came_is_read_page_by_page(self) -> None:
        room = self.alice.create_room(preset="public_chat")
        said = [f"a{number}" for number in range(130)]
        for text in said:
            self.alice.say(room, text)
        self.bob.ok(self.bob.post(f"/join/{quote(room)}?server_name=test"))
        self.settle()
        found: list[str] = []
        token = ""
        for _ in range(10):
            page = self.bob.ok(self.bob.get(f"/rooms/{quote(room)}/messages?dir=b&limit=30{token}"))
            found += [event["content"]["body"] for event in page["chunk"] if event["type"] == "m.room.message"]
            if "end" not in page:
                break
            token = f"&from={page['end']}"
        self.assertEqual(found[::-1], said)
        self.assertEqual(page["chunk"][-1]["type"], "m.room.create")

    def test_a_restart_in_the_middle(self) -> None:
        self.there.cut()
        self.alice.say(self.room, "before")
        self.settle()
        self.here.stop()
        self.here.open()
        self.alice.say(self.room, "after")
        self.there.connect()
        self.settle(20)
        self.assertEqual(self.texts(self.bob), ["before", "after"])

    def test_one_who_was_given_up_catches_up_when_it_speaks(self) -> None:
        self.there.cut()
        for number in range(12):
            self.alice.say(self.room, f"a{number}")
        destinations = self.here.server.parts.federating.component.destinations  # type: ignore[union-attr]
        for _ in range(17):
            self.clock.advance(86_400)
            self.settle(1)
        self.assertTrue(destinations.is_given_up("bobs.test"))
        self.alice.say(self.room, "the last one")
        self.settle()
        self.there.connect()
        self.settle(60)
        # Even to ask for history would be to speak.
        self.assertTrue(destinations.is_given_up("bobs.test"))
        self.bob.say(self.room, "I am back")
        self.settle(20)
        said = [*[f"a{number}" for number in range(12)], "the last one"]
        self.assertEqual([text for text in self.texts(self.bob) if text != "I am back"], said)
        self.assertEqual(sorted(self.texts(self.alice)), sorted([*said, "I am back"]))

    def test_who_is_thrown_out_learns_of_it(self) -> None:
        self.alice.ok(self.alice.post(f"/rooms/{quote(self.room)}/kick", {"user_id": "@bob:bobs.test"}))
        self.settle()
        left = self.bob.sync(filter='{"room":{"include_leave":true}}')["rooms"]["leave"]
        self.assertIn(self.room, left)
        self.alice.say(self.room, "alone at last")
        self.settle()
        self.assertEqual(self.texts(self.bob), [])

    def ephemeral(self, client: Client, type: str) -> list[Any]:
        room = client.sync()["rooms"]["join"][self.room]
        events = room.get("ephemeral", {}).get("events", [])
        return [event["content"] for event in events if event["type"] == type]

    def test_typing_and_receipts(self) -> None:
        event_id = self.bob.say(self.room, "read this")
        self.settle()
        path = f"/rooms/{quote(self.room)}"
        self.alice.ok(self.alice.put(f"{path}/typing/@alice:test", {"typing": True, "timeout": 30_000}))
        self.alice.ok(self.alice.post(f"{path}/receipt/m.read/{quote(event_id)}", {"thread_id": "main"}))
        self.settle()
        self.assertEqual(self.ephemeral(self.bob, "m.typing"), [{"user_ids": ["@alice:test"]}])
        (receipts,) = self.ephemeral(self.bob, "m.receipt")
        self.assertEqual(receipts[event_id]["m.read"]["@alice:test"]["thread_id"], "main")
        self.alice.ok(self.alice.put(f"{path}/typing/@alice:test", {"typing": False}))
        self.settle()
        self.assertNotIn({"user_ids": ["@alice:test"]}, self.ephemeral(self.bob, "m.typing"))

    def test_private_receipts_stay_here(self) -> None:
        event_id = self.bob.say(self.room, "read this")
        self.settle()
        path = f"/rooms/{quote(self.room)}/receipt/m.read.private/{quote(event_id)}"
        self.alice.ok(self.alice.post(path))
        self.settle()
        self.assertNotIn("@alice:test", str(self.ephemeral(self.bob, "m.receipt")))

    def test_presence(self) -> None:
        body = {"presence": "unavailable", "status_msg": "at the masque"}
        self.alice.ok(self.alice.put("/presence/@alice:test/status", body))
        self.settle(10)
        seen = self.bob.ok(self.bob.get("/presence/@alice:test/status"))
        self.assertEqual((seen["presence"], seen["status_msg"]), ("unavailable", "at the masque"))

    def upload_keys(self, client: Client) -> None:
        device = client.device_id
        keys = {
            "user_id": client.user_id,
            "device_id": device,
            "algorithms": ["m.olm.v1.curve25519-aes-sha2"],
            "keys": {f"curve25519:{device}": "A" * 43, f"ed25519:{device}": "B" * 43},
            "signatures": {client.user_id: {f"ed25519:{device}": "C" * 86}},
        }
        client.ok(client.post("/keys/upload", {"device_keys": keys}))

    def test_who_meets_for_the_first_time_is_introduced(self) -> None:
        dora, carol = self.here.register("dora"), self.there.register("carol")
        room = dora.create_room(preset="public_chat")
        for client in (dora, carol):
            self.upload_keys(client)
            client.ok(client.put(f"/presence/{client.user_id}/status", {"presence": "unavailable"}))
        self.settle(10)
        carol.ok(carol.post(f"/join/{quote(room)}?server_name=test"))
        self.settle()
        self.there.cut()
        # Carol's list came without being asked for, and is here now that her server cannot be asked.
        found = dora.ok(dora.post("/keys/query", {"device_keys": {carol.user_id: []}}))
        self.assertEqual((set(found["device_keys"][carol.user_id]), found["failures"]), ({carol.device_id}, {}))
        for client, other in ((dora, carol), (carol, dora)):
            seen = client.ok(client.get(f"/presence/{other.user_id}/status"))
            self.assertEqual(seen["presence"], "unavailable")

    def test_a_changed_device_is_told(self) -> None:
        since = self.bob.sync()["next_batch"]
        self.upload_keys(self.alice)
        self.settle()
        changed = self.bob.sync(since)["device_lists"]["changed"]
        self.assertIn("@alice:test", changed)

    def test_a_message_to_a_device_comes_once(self) -> None:
        body = {"messages": {"@bob:bobs.test": {"*": {"text": "wherefore"}}}}
        self.there.cut()
        self.alice.ok(self.alice.put("/sendToDevice/m.x/1", body))
        self.settle(3)
        self.there.connect()
        self.settle(10)
        answer = self.bob.sync()
        self.assertEqual([event["content"] for event in answer["to_device"]["events"]], [{"text": "wherefore"}])
        self.settle(10)
        self.assertEqual(self.bob.sync(answer["next_batch"]).get("to_device", {}).get("events", []), [])
