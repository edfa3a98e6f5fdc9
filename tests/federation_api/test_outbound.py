"""A whole server tells another: what its users do arrives there, and its administrator sees what does not."""

from __future__ import annotations

from typing import Any

from dendrite_tw.federation_api.api import DURABLES
from dendrite_tw.federation_api.outbound import CONSUMERS
from dendrite_tw.matrix.errors import MatrixError
from dendrite_tw.web.routes import Access, Route
from tests.server import Client, ServerTestCase

from .network import FederationServer, key_of
from .whole import WholeServerTestCase

OURS = "/_dendrite/admin/federation/destinations"
SYNAPSES = "/_synapse/admin/v1/federation/destinations"


class Listener:
    """Another server's ``/send``: keeps what comes."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str, dict[str, Any]]] = []
        self.error: MatrixError | None = None

    def routes(self) -> list[Route]:
        return [Route("PUT", "/_matrix/federation/v1/send/{txn_id}", self.send, Access.SERVER)]

    async def send(self, origin: str, txn_id: str, body: dict[str, Any]) -> dict[str, Any]:
        self.heard.append((origin, txn_id, body))
        if self.error is not None:
            raise self.error
        return {"pdus": {}}

    @property
    def messages(self) -> list[Any]:
        return [edu["content"] for _, _, body in self.heard for edu in body["edus"]]


class OutboundTests(WholeServerTestCase):
    def write_config(self, folder: str) -> str:
        return super().write_config(folder).replace("global:\n", "global:\n  metrics: {enabled: true}\n")

    def setUp(self) -> None:
        super().setUp()
        self.listener = Listener()
        self.other = FederationServer(self.network, "other.test", "192.0.2.7", key_of(7), routes=self.listener.routes)
        self.alice = self.register("alice")
        self.sent = 0

    def write(self, text: str) -> None:
        """Alice sends a message to a device of the other server's Bob."""
        self.sent += 1
        body = {"messages": {"@bob:other.test": {"PHONE": {"text": text}}}}
        self.alice.ok(self.alice.put(f"/sendToDevice/m.x/{self.sent}", body))
        self.settle()

    def settle(self) -> None:
        for _ in range(3):
            self.pump(0.3)

    def texts(self) -> list[str]:
        return [content["messages"]["@bob:other.test"]["PHONE"]["text"] for content in self.listener.messages]

    def restart(self) -> None:
        self.stop()
        self.server = self.start(1)

    def test_messages_arrive_once_and_in_order(self) -> None:
        for text in "abc":
            self.write(text)
        self.assertEqual(self.texts(), ["a", "b", "c"])
        self.assertEqual({origin for origin, _, _ in self.listener.heard}, {"test"})
        self.restart()
        self.settle()
        self.write("d")
        self.assertEqual(self.texts(), ["a", "b", "c", "d"])

    def test_what_could_not_be_sent_is_sent_after_a_restart(self) -> None:
        self.other.go_offline()
        self.write("a")
        self.write("b")
        self.other.go_online()
        self.restart()
        self.assertEqual(self.texts(), [])
        for _ in range(60):
            self.pump(0.4)
        self.settle()
        self.assertEqual(self.texts(), ["a", "b"])

    def test_the_outbox_forgets_what_is_in_the_queues(self) -> None:
        self.write("a")
        self.settle()
        self.pump(6)
        self.pump(2)
        self.assertEqual(self.rows("user_api", "SELECT COUNT(*) FROM user_api_outbox"), [(1,)])

    # --- the administrator ---

    def admin(self) -> Client:
        return self.register("admin", admin=True)

    def test_an_administrator_sees_why_a_server_waits(self) -> None:
        admin = self.admin()
        self.other.go_offline()
        self.write("a")
        self.write("b")
        one = admin.ok(admin.get(f"{OURS}/other.test"))
        self.assertEqual(
            (one["state"], one["queued_edus"], one["queued_pdus"], one["failures"], one["given_up"]),
            ("backing_off", 2, 0, 1, False),
        )
        self.assertIn("refused", one["last_error"])
        self.assertGreater(one["next_attempt_ts"], one["last_failure_ts"])
        page = admin.ok(admin.get(OURS))
        self.assertEqual((page["total"], page["destinations"]), (1, [admin.ok(admin.get(f"{OURS}/other.test"))]))
        text = self.figures()
        self.assertIn("dendrite_federationapi_destination_queues_total 1.0", text)
        self.assertIn("dendrite_federationapi_destination_queues_backing_off 1.0", text)
        self.assertIn("dendrite_federationapi_destination_queues_running 0.0", text)

    def test_an_administrator_has_it_tried(self) -> None:
        admin = self.admin()
        self.other.go_offline()
        self.write("a")
        self.pump(5)
        self.settle()
        self.assertEqual(admin.ok(admin.get(f"{OURS}/other.test"))["state"], "backing_off")
        self.other.go_online()
        admin.ok(admin.post(f"{OURS}/other.test/retry"))
        self.settle()
        self.assertEqual(self.texts(), ["a"])
        one = admin.ok(admin.get(f"{OURS}/other.test"))
        self.assertEqual((one["state"], one["failures"], one["queued_edus"]), ("idle", 0, 0))

    def test_one_that_does_not_let_us_in_is_left_in_peace(self) -> None:
        admin = self.admin()
        self.listener.error = MatrixError(403, "M_FORBIDDEN", "We do not know you.")
        self.write("a")
        self.write("b")
        self.assertEqual(len(self.listener.heard), 1)
        one = admin.ok(admin.get(f"{OURS}/other.test"))
        self.assertEqual((one["state"], one["queued_edus"]), ("backing_off", 2))
        self.assertEqual(one["last_error"], "it answered 403 M_FORBIDDEN: We do not know you.")
        self.listener.error = None
        self.pump(2)
        self.settle()
        self.assertEqual(self.texts(), ["a", "a", "b"])

    def test_what_is_malformed_there_is_not_repeated(self) -> None:
        self.listener.error = MatrixError(400, "M_BAD_JSON", "What is this?")
        self.write("a")
        self.listener.error = None
        self.write("b")
        self.assertEqual(self.texts(), ["a", "b"])

    def test_synapses_paths(self) -> None:
        admin = self.admin()
        self.assertEqual(admin.get(f"{SYNAPSES}/other.test").errcode, "M_NOT_FOUND")
        self.other.go_offline()
        self.write("a")
        page = admin.ok(admin.get(SYNAPSES))
        self.assertEqual(page["total"], 1)
        (one,) = page["destinations"]
        self.assertEqual((one["destination"], one["retry_interval"]), ("other.test", 2000))
        self.assertEqual(admin.ok(admin.get(f"{SYNAPSES}/other.test")), one)
        rooms = admin.ok(admin.get(f"{SYNAPSES}/other.test/rooms"))
        self.assertEqual(rooms, {"rooms": [], "total": 0})
        self.other.go_online()
        self.assertEqual(admin.ok(admin.post(f"{SYNAPSES}/other.test/reset_connection")), {})
        self.settle()
        self.assertEqual(self.texts(), ["a"])

    def test_pages(self) -> None:
        admin = self.admin()
        names = ["a.test", "b.test", "c.test"]
        self.alice.ok(self.alice.put("/sendToDevice/m.x/p", {"messages": {f"@x:{name}": {"D": {}} for name in names}}))
        self.settle()

        def listed(query: str) -> tuple[list[str], Any]:
            page = admin.ok(admin.get(f"{OURS}?{query}"))
            return [one["destination"] for one in page["destinations"]], page.get("next_token")

        self.assertEqual(listed("limit=2"), (["a.test", "b.test"], "2"))
        self.assertEqual(listed("limit=2&from=2"), (["c.test"], None))
        self.assertEqual(listed("dir=b&limit=1"), (["c.test"], "1"))
        self.assertEqual(listed("destination=b."), (["b.test"], None))
        for query in ("dir=x", "from=-1", "limit=-1", "limit=x"):
            self.assertEqual(admin.get(f"{OURS}?{query}").status, 400, query)

    def test_administrators_only(self) -> None:
        for method, path in (
            ("GET", OURS),
            ("GET", f"{OURS}/other.test"),
            ("POST", f"{OURS}/other.test/retry"),
            ("GET", SYNAPSES),
            ("GET", f"{SYNAPSES}/other.test"),
            ("GET", f"{SYNAPSES}/other.test/rooms"),
            ("POST", f"{SYNAPSES}/other.test/reset_connection"),
        ):
            self.assertEqual(self.alice.request(method, path).errcode, "M_FORBIDDEN", path)

    def test_names_that_are_none(self) -> None:
        admin = self.admin()
        for path in (f"{OURS}/not%20one", f"{SYNAPSES}/not%20one"):
            self.assertIn(admin.get(path).status, (400, 404))
        self.assertEqual(admin.post(f"{OURS}/not%20one/retry").status, 400)


class SwitchedOffTests(ServerTestCase):
    def test_the_names_of_the_consumers(self) -> None:
        self.assertEqual(DURABLES, {consumer.stream: [consumer.name] for consumer in CONSUMERS})

    def test_nothing_is_kept_for_consumers_that_there_are_not(self) -> None:
        server: Any = self.server.parts.queue.client
        alice = self.register("alice")
        alice.ok(alice.put("/sendToDevice/m.x/1", {"messages": {"@bob:other.test": {"D": {}}}}))
        self.pump(10)
        self.pump(2)
        for stream, names in DURABLES.items():
            for name in names:
                path = f"CONSUMER.INFO.{server.prefix}{stream}.{server.prefix}{name}"
                asked = server.ask(f"{server.api_prefix}.{path}", b"")
                self.pump()
                self.assertIn(b"10014", self.successResultOf(asked).payload)
        self.assertEqual(self.rows("user_api", "SELECT COUNT(*) FROM user_api_outbox"), [(1,)])
