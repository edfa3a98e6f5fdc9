"""Whatever a stranger sends to the account sections, the answer is never an internal error."""

from __future__ import annotations

import json
import random
from typing import Any
from urllib.parse import quote

from dendrite_tw.client_api.routes import account_routes
from dendrite_tw.client_api.settings import CaptchaSettings, Turn
from tests.client_api.support import V3, ClientCase

WORDS = [
    "", "alice", "@alice:test", "@eve:far", "!room:test", "$room5", "m.read", "m.login.password", "m.login.dummy",
    "m.login.token", "m.id.user", "PHONE", "content", "override", "room", "notify", "tea", "\0", "\ud800", "ä" * 300,
    "x" * 70_000, "..", "[::1", "https://push.example/_matrix/push/v1/notify", "http", "main",
]  # fmt: skip
KEYS = [
    "type", "identifier", "user", "password", "auth", "session", "device_id", "devices", "username", "thread_id",
    "new_password", "displayname", "avatar_url", "actions", "conditions", "pattern", "enabled", "pushkey", "kind",
    "app_id", "data", "url", "lang", "app_display_name", "device_display_name", "m.read", "m.fully_read", "typing",
    "timeout", "locked", "suspended", "token", "uses_allowed", "expiry_time", "length", "order", "tags", "medium",
    "address", "refresh_token", "guest_access_token", "nonce", "mac", "admin", "erase", "id_server", "response",
]  # fmt: skip
NUMBERS = [0, -1, 1, 1.5, 2**31, 2**53, 2**63, 10**40, -(10**40), 1e300]


class Nonsense(ClientCase):
    encoded = True

    client = {  # noqa: RUF012
        "registration_shared_secret": "sesame",
        "registration_requires_token": True,
        "captcha": CaptchaSettings(public_key="site", private_key="secret"),
        "turn": Turn(uris=("turn:turn.test",), shared_secret="secret"),
    }

    def value(self, chance: random.Random, depth: int = 0) -> Any:
        kind = chance.randrange(7 if depth < 4 else 4)
        if kind < 2:
            return chance.choice(WORDS)
        if kind == 2:
            return chance.choice(NUMBERS)
        if kind == 3:
            return chance.choice([None, True, False])
        if kind == 4:
            return [self.value(chance, depth + 1) for _ in range(chance.randrange(4))]
        return {chance.choice(KEYS): self.value(chance, depth + 1) for _ in range(chance.randrange(8))}

    def body(self, chance: random.Random) -> bytes:
        if chance.random() < 0.1:
            return chance.choice([b"", b"{", b"\xff", b"null", b"[]", b'"\\ud800"', b"[" * 5000, b'{"a":' * 500])
        if chance.random() < 0.1:
            return json.dumps(self.value(chance)).encode("utf-8", "replace")
        return json.dumps({chance.choice(KEYS): self.value(chance) for _ in range(chance.randrange(12))}).encode()

    def path(self, chance: random.Random, path: str) -> str:
        parts = []
        for part in path.split("/"):
            text = chance.choice(WORDS)[:2000] if part.startswith("{") else part
            parts.append(quote(text.encode("utf-8", "replace"), safe="@:!$"))
        query = "&".join(
            f"{key}={quote(chance.choice(WORDS)[:500].encode('utf-8', 'replace'))}"
            for key in chance.sample(["from", "limit", "kind", "token", "session", "before", "username", "valid"], 3)
        )
        return "/".join(parts) + (f"?{query}" if chance.random() < 0.5 else "")

    def test_no_request_breaks_the_server(self) -> None:
        tokens = [*self.tokens("alice", "bob"), self.admin(), None, "nonsense"]
        self.users.rooms.put("!room:test", "@alice:test")
        world = self.users.memory.world
        rows = account_routes(self.client_settings, self.api, self.users.rooms, self.users.queue, world, self.auth)
        rows = [row for row in rows if not row.path.startswith("/_matrix/client/r0/")]
        for seed in range(12):
            chance = random.Random(seed)
            for row in rows:
                path, body, token = self.path(chance, row.path), self.body(chance), chance.choice(tokens)
                answer = self.web.request(row.method, path, body, token)
                self.assertLess(answer.status, 500, f"seed {seed}: {row.method} {path[:300]} {body[:300]!r}")
        self.check(self.web.get(f"{V3}/login"), 200)
