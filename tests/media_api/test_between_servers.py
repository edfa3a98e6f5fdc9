"""Media on its way between two servers, over TLS: a client of one sees what was uploaded to the other."""

from __future__ import annotations

from pathlib import Path

from dendrite_tw.media_api.api import MediaQuestion
from dendrite_tw.media_api.component import MediaComponent
from dendrite_tw.world import test_world
from tests.federation_api.network import CONNECTION_REFUSED_SECONDS, FederationServer, key_of
from tests.federation_api.whole import WholeServerTestCase
from tests.harness import Answer, empty_database
from tests.media_api.images import opened, picture
from tests.server import Client

MEDIA = "/_matrix/client/v1/media"


class AskingTestCase(WholeServerTestCase):
    def ask(self, client: Client, path: str) -> Answer:
        """The answer once other servers have been found and asked."""
        answer = client.request("GET", path)
        for _ in range(6):
            self.pump(CONNECTION_REFUSED_SECONDS)
        return answer


class TwoServersTests(AskingTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.far = FederationServer(
            self.network, "far.test", "192.0.2.50", key_of(5), routes=lambda: self.media.routes()
        )

    @property
    def media(self) -> MediaComponent:
        if not hasattr(self, "_media"):
            base = Path(self.mktemp())
            world = test_world(self.clock, "far")
            self._media = MediaComponent(empty_database(), base, 10**6, [], False, 1, world, "far.test")
            self._media.prepare()
        return self._media

    def upload(self, content: bytes, kind: str = "image/png") -> str:
        """A file on the other server; its ID."""
        uri = self.successResultOf(
            self.network.begin(self.media.upload("@bob:far.test", kind, "Bob's file.png", content))
        )
        return uri.rpartition("/")[2]

    def test_a_client_sees_what_lies_on_another_server(self) -> None:
        alice, data = self.register("alice"), picture(300, 200)
        media_id = self.upload(data)
        for path in (f"{MEDIA}/download/far.test/{media_id}", f"/_matrix/media/v3/download/far.test/{media_id}"):
            answer = self.ask(alice, path)
            self.assertEqual((answer.status, answer.body), (200, data))
            self.assertEqual(answer.headers["content-disposition"], 'inline; filename="Bob\'s file.png"')
            self.assertIn("sandbox", answer.headers["content-security-policy"])
        small = self.ask(alice, f"{MEDIA}/thumbnail/far.test/{media_id}?width=32&height=32&method=crop")
        self.assertTrue(opened(small.body).size)
        asked = self.network.connections.count(("192.0.2.50", 8448))
        self.assertLessEqual(asked, 2)

    def test_what_is_not_there(self) -> None:
        alice = self.register("alice")
        answer = self.ask(alice, f"{MEDIA}/download/far.test/nothing")
        self.assertEqual((answer.status, answer.errcode), (404, "M_NOT_FOUND"))
        answer = self.ask(alice, f"{MEDIA}/download/nowhere.test/nothing")
        self.assertEqual((answer.status, answer.errcode), (502, "M_UNKNOWN"))

    def test_another_server_is_given_what_was_uploaded_here(self) -> None:
        alice, data = self.register("alice"), picture(300, 200)
        uri = alice.request("POST", "/_matrix/media/v3/upload", data, headers={"Content-Type": "image/png"}).json
        path = "/_matrix/federation/v1/media/download/" + uri["content_uri"].rpartition("/")[2]
        answer = self.stranger().request("GET", path)
        for _ in range(6):
            self.pump(CONNECTION_REFUSED_SECONDS)
        self.assertEqual(answer.status, 200)
        self.assertIn(data, answer.body)
        unsigned = self.request("GET", path)
        self.assertEqual((unsigned.status, unsigned.errcode), (401, "M_UNAUTHORIZED"))

    def test_what_was_fetched_is_kept(self) -> None:
        alice = self.register("alice")
        media_id = self.upload(b"text", "text/plain")
        self.ask(alice, f"{MEDIA}/download/far.test/{media_id}")
        self.far.go_offline()
        question = MediaQuestion(server_name="far.test", media_id=media_id, allow_remote=False)
        file = self.successResultOf(self.network.begin(self.server.parts.media.media(question)))
        self.assertEqual(Path(file.path).read_bytes(), b"text")


class OldServerTests(AskingTestCase):
    def test_a_server_that_knows_only_the_old_way(self) -> None:
        alice = self.register("alice")
        media = MediaComponent(
            empty_database(), Path(self.mktemp()), 10**6, [], False, 1, test_world(self.clock, "far"), "far.test"
        )
        media.prepare()
        routes = [route for route in media.routes() if "/federation/" not in route.path]
        FederationServer(self.network, "far.test", "192.0.2.50", key_of(5), routes=lambda: routes)
        uri = self.successResultOf(self.network.begin(media.upload("@bob:far.test", "text/plain", None, b"old")))
        answer = self.ask(alice, f"{MEDIA}/download/far.test/{uri.rpartition('/')[2]}")
        self.assertEqual((answer.status, answer.body), (200, b"old"))
