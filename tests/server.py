"""A whole homeserver in memory: every component, real HTTP parsing, a clock that the test holds.

class ChatTests(ServerTestCase):
    def test_hello(self):
        alice = self.register("alice")
        room = alice.post("/createRoom", {}).json["room_id"]
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.assemble import Server, monolith
from dendrite_tw.config import Config, loads
from dendrite_tw.matrix.keys import signing_key, write_pem
from dendrite_tw.web.internet import Internet
from dendrite_tw.world import World, test_world
from tests.database.cluster import cluster
from tests.harness import Answer, Web, ask
from tests.polylith import EACH, Around, Deployment

CLIENT = "/_matrix/client/v3"
SECRET = "shared"

POLYLITH = bool(os.environ.get("TEST_POLYLITH"))
"""Whether tests of the whole server are run on several processes of each component."""

REMEMBERING = EACH if POLYLITH else 1
"""Processes of a component that each remember what others of their sort may know already."""

SPREADING = 2.0 if POLYLITH else 0.0
"""Seconds until processes have divided among them what only one may do."""

STOPPING = 400 if POLYLITH else 1
"""How often a server is looked at that is to stop."""

CONFIG = """
version: 2
global:
  server_name: test
  private_key: {folder}/matrix_key.pem
  jetstream: {{in_memory: true, storage_path: {folder}/jetstream}}
client_api:
  registration_shared_secret: {secret}
  registration_disabled: false
  guests_disabled: false
  rate_limiting: {{enabled: false}}
room_server: {{database: {{connection_string: "file:{folder}/room.db"}}}}
user_api: {{account_database: {{connection_string: "file:{folder}/user.db"}}, bcrypt_cost: 4}}
key_server: {{database: {{connection_string: "file:{folder}/key.db"}}}}
sync_api: {{database: {{connection_string: "file:{folder}/sync.db"}}}}
media_api: {{base_path: {folder}/media, database: {{connection_string: "file:{folder}/media.db"}}}}
federation_api: {{database: {{connection_string: "file:{folder}/federation.db"}}}}
"""


class Client:
    """A logged-in user; paths are relative to the client API unless they begin with ``/_``."""

    def __init__(self, case: ServerTestCase, user_id: str, token: str, device_id: str) -> None:
        self._case = case
        self.user_id = user_id
        self.token = token
        self.device_id = device_id
        self._transactions = 0

    def request(self, method: str, path: str, body: Any = None, **options: Any) -> Answer:
        path = path if path.startswith("/_") else CLIENT + path
        return self._case.request(method, path, body, self.token, **options)

    def get(self, path: str) -> Answer:
        return self.request("GET", path)

    def post(self, path: str, body: Any = None) -> Answer:
        return self.request("POST", path, {} if body is None else body)

    def put(self, path: str, body: Any = None) -> Answer:
        return self.request("PUT", path, {} if body is None else body)

    def delete(self, path: str, body: Any = None) -> Answer:
        return self.request("DELETE", path, body)

    def ok(self, answer: Answer) -> Any:
        """The JSON of an answer that has to be 200."""
        self._case.assertEqual(answer.status, 200, answer)
        return answer.json

    def create_room(self, **options: Any) -> str:
        return self.ok(self.post("/createRoom", options))["room_id"]  # type: ignore[no-any-return]

    def join(self, room_id: str) -> None:
        self.ok(self.post(f"/join/{quote(room_id)}"))

    def say(self, room_id: str, body: str, **content: Any) -> str:
        return self.send(room_id, "m.room.message", {"msgtype": "m.text", "body": body, **content})

    def send(self, room_id: str, type: str, content: dict[str, Any]) -> str:
        self._transactions += 1
        path = f"/rooms/{quote(room_id)}/send/{type}/{self._transactions}"
        return self.ok(self.put(path, content))["event_id"]  # type: ignore[no-any-return]

    def sync(self, since: str | None = None, timeout: int = 0, **query: Any) -> Any:
        return self.ok(self.start_sync(since, timeout, **query))

    def start_sync(self, since: str | None = None, timeout: int = 0, **query: Any) -> Answer:
        """A sync that may still be waiting when this returns."""
        fields = {"timeout": timeout, **({"since": since} if since else {}), **query}
        return self.get("/sync?" + "&".join(f"{key}={quote(str(value))}" for key, value in fields.items()))


class ServerTestCase(SynchronousTestCase):
    """A test on a server of its own."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_700_000_000)
        folder = Path(self.mktemp())
        folder.mkdir()
        (folder / "matrix_key.pem").write_text(write_pem(signing_key("ed25519:1", b"k" * 32)))
        self.config_text = self.placed(self.write_config(str(folder.resolve())) + self.more_config())
        self.server = self.start()
        self.addCleanup(self.stop)

    def placed(self, text: str) -> str:
        """The configuration with the databases and the queue that the environment wants tests to be run on."""
        if POLYLITH:
            self.around = Around(self.clock)
            self.addCleanup(self.around.close)
            return self.around.config(text)
        if os.environ.get("TEST_POSTGRESQL"):
            return re.sub(r'"file:[^"]+"', f'"{cluster().new()}"', text)
        return text

    def write_config(self, folder: str) -> str:
        """The text of ``dendrite.yaml`` for a server whose files are in `folder`."""
        return CONFIG.format(folder=folder, secret=SECRET)

    def more_config(self) -> str:
        """Further sections of the configuration."""
        return ""

    def internet(self) -> Internet | None:
        """Where other servers are; `None` is a server that knows of no others, and serves none."""
        return None

    def tcp(self) -> Any:
        """What connects to a NATS server and listens for its clients; `None` where the test has neither."""
        return None

    def start(self, seed: int = 0) -> Server:
        """A server on the test's folder."""
        config = loads(self.config_text, "dendrite.yaml", allow_open_registration=True)
        server = self.polylith(config, seed) if POLYLITH else monolith(config, self.world(f"{self.id()} {seed}"))
        server.startService()
        self.pump(SPREADING)
        self.successResultOf(server.started)
        self.web = server.web() if POLYLITH else Web(server.site, self.clock)
        return server

    def world(self, seed: str, tcp: Any = None) -> World:
        return test_world(self.clock, seed, self.internet(), tcp or self.tcp())

    def polylith(self, config: Config, seed: int) -> Any:
        """Two processes of each component in place of one with all."""
        return Deployment(config, lambda name: self.world(f"{self.id()} {seed} {name}", self.around.broker), self.clock)

    def stop(self) -> None:
        stopped = self.server.stopService()
        has_stopped: list[Any] = []
        stopped.addBoth(has_stopped.append)
        for _ in range(STOPPING):
            if not has_stopped:
                self.pump(0.25 if POLYLITH else 6.0)
        self.assertEqual(len(has_stopped), 1, "it does not stop")
        self.assertNotIsInstance(has_stopped[0], Failure)

    def pump(self, seconds: float = 0.0) -> None:
        """Let what is due happen, and what follows from it."""
        if POLYLITH:
            self.around.pump(seconds)
            return
        self.clock.advance(seconds)
        for _ in range(50):
            if not any(call.getTime() <= self.clock.seconds() for call in self.clock.getDelayedCalls()):
                return
            self.clock.advance(0)

    def request(self, method: str, path: str, body: Any = None, token: str | None = None, **options: Any) -> Answer:
        answer = self.web.request(method, path, body, token, **options)
        self.pump()
        return answer

    def figures(self) -> str:
        """What is at ``/metrics``, of all processes."""
        webs = self.server.webs() if POLYLITH else [self.web]
        return "\n".join(web.request("GET", "/metrics").body.decode() for web in webs)

    def rows(self, component: Any, sql: str) -> list[Any]:
        """What SQL finds in the database of a component."""
        return self.around.rows(sql) if POLYLITH else ask(self.server.parts.databases.of(component), sql)

    def register(self, username: str, password: str = "wonderland", admin: bool = False) -> Client:
        """A new account, made with the shared secret, and its first device."""
        path = "/_synapse/admin/v1/register"
        nonce = self.request("GET", path).json["nonce"]
        text = "\0".join([nonce, username, password, "admin" if admin else "notadmin"])
        mac = hmac.new(SECRET.encode(), text.encode(), hashlib.sha1).hexdigest()
        body = {"nonce": nonce, "username": username, "password": password, "admin": admin, "mac": mac}
        answer = self.request("POST", path, body)
        self.assertEqual(answer.status, 200, answer)
        return Client(self, answer.json["user_id"], answer.json["access_token"], answer.json["device_id"])

    def login(self, username: str, password: str = "wonderland", **options: Any) -> Client:
        """A new device of an account."""
        identifier = {"type": "m.id.user", "user": username}
        body = {"type": "m.login.password", "identifier": identifier, "password": password, **options}
        answer = self.request("POST", f"{CLIENT}/login", body)
        self.assertEqual(answer.status, 200, answer)
        return Client(self, answer.json["user_id"], answer.json["access_token"], answer.json["device_id"])
