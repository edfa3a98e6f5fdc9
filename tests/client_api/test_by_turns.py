"""What takes several requests, each of which reaches another process than the one before."""

from __future__ import annotations

from typing import Any

from dendrite_tw.client_api.proofs import SharedProofs, keeper
from dendrite_tw.user_api.api import UIASession
from tests.client_api import test_account, test_login, test_register
from tests.client_api.support import ClientCase
from tests.harness import ask


class Login(test_login.Login):
    by_turns = True


class Register(test_register.Open):
    by_turns = True


class WithCaptchaAndToken(test_register.WithCaptchaAndToken):
    by_turns = True


class Devices(test_account.Devices):
    by_turns = True


class Passwords(test_account.Passwords):
    by_turns = True


class Closed(test_register.Closed):
    """With the shared secret: the nonce of one process is taken by the other, once."""

    by_turns = True


class Proofs(ClientCase):
    """What is kept by the user component."""

    def setUp(self) -> None:
        super().setUp()
        self.world = self.users.memory.world
        self.places = [keeper(self.api, self.world, True)("kind", 10) for _ in range(2)]

    def proof(self, **more: Any) -> UIASession:
        expires = self.world.clock.now_ms() + 1000
        given = {"id": "secret", "purpose": "p", "user_id": None, "flows": [["a"]], "params": {"password": "hush"}}
        return UIASession(**{**given, "expires_ts": expires, **more})

    def test_one_process_gets_what_the_other_put(self) -> None:
        proof = self.proof(completed={"a": "b"})
        self.wait(self.places[0].put(proof))
        self.assertEqual(self.wait(self.places[1].get("secret")), proof)
        self.assertIsNone(self.wait(self.places[1].get("another")))

    def test_it_ends_once(self) -> None:
        self.wait(self.places[0].put(self.proof()))
        self.assertIsNotNone(self.wait(self.places[1].end("secret")))
        self.assertIsNone(self.wait(self.places[0].end("secret")))
        self.assertIsNone(self.wait(self.places[0].get("secret")))

    def test_it_expires(self) -> None:
        self.wait(self.places[0].put(self.proof()))
        self.users.clock.advance(1.1)
        self.assertIsNone(self.wait(self.places[1].get("secret")))

    def test_kinds_are_apart(self) -> None:
        self.wait(self.places[0].put(self.proof()))
        other = keeper(self.api, self.world, True)("other", 10)
        self.assertIsNone(self.wait(other.get("secret")))

    def test_the_database_tells_nothing(self) -> None:
        self.wait(self.places[0].put(self.proof()))
        [(stored,)] = ask(self.users.database, "SELECT content FROM uia_sessions")
        self.assertIn(b"sealed", bytes(stored))
        for secret in (b"secret", b"hush"):
            self.assertNotIn(secret, bytes(stored))

    def test_what_somebody_changed_counts_for_nothing(self) -> None:
        place = self.places[0]
        assert isinstance(place, SharedProofs)
        name = place._name("secret")
        for params in ({}, {"sealed": "?"}, {"sealed": "AAAA"}, {"sealed": 5}, {"sealed": "A" * 400}):
            self.wait(self.api.put_uia_session(self.proof(id=name, purpose="kind", params=params)))
            self.assertIsNone(self.wait(place.get("secret")))
