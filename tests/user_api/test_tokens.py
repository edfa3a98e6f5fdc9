"""Access tokens, refresh tokens, and tokens for a single purpose."""

from __future__ import annotations

import random

from dendrite_tw.user_api.api import DeviceSeen, NewLogin
from dendrite_tw.user_api.settings import ACCESS_TOKEN_LIFETIME_MS, LOGIN_TOKEN_LIFETIME_MS
from tests.harness import ask, dump
from tests.user_api.harness import UsersCase


class AccessTokens(UsersCase):
    def test_only_a_hash_is_stored(self) -> None:
        login = self.make("alice", refreshable=True)
        stored = dump(self.users.database)
        self.assertNotIn(login.access_token, stored)
        self.assertNotIn(str(login.refresh_token), stored)
        self.assertNotIn("correct horse", stored)

    def test_a_token_of_nobody(self) -> None:
        for token in ["", "nonsense", "\ud800"]:
            error = self.refused(self.api.caller_of(token))
            self.assertEqual((401, "M_UNKNOWN_TOKEN", False), (error.status, error.errcode, error.extra["soft_logout"]))

    def test_logging_in_on_a_device_again_ends_its_old_token(self) -> None:
        first = self.make("alice", device_id="PHONE")
        session = self.wait(self.api.caller_of(first.access_token)).session_id
        second = self.wait(self.api.log_in(NewLogin(user_id="@alice:test", device_id="PHONE", display_name="ignored")))
        self.refused(self.api.caller_of(first.access_token))
        self.assertEqual(session, self.wait(self.api.caller_of(second.access_token)).session_id)
        devices = [(device.device_id, device.display_name) for device in self.wait(self.api.devices("@alice:test"))]
        self.assertEqual([("PHONE", None)], devices)

    def test_logging_out_ends_one_session_or_all(self) -> None:
        first = self.make("alice")
        second = self.wait(self.api.log_in(NewLogin(user_id="@alice:test")))
        third = self.wait(self.api.log_in(NewLogin(user_id="@alice:test")))
        for login in (first, second, third):
            self.wait(self.api.caller_of(login.access_token))
        self.wait(self.api.delete_devices("@alice:test", [first.device_id], None))
        self.refused(self.api.caller_of(first.access_token))
        self.wait(self.api.caller_of(second.access_token))
        self.wait(self.api.delete_devices("@alice:test", None, None))
        self.refused(self.api.caller_of(second.access_token))
        self.refused(self.api.caller_of(third.access_token))
        self.assertEqual([], self.wait(self.api.devices("@alice:test")))

    def test_a_known_token_asks_no_database(self) -> None:
        login = self.make("alice")
        first = self.wait(self.api.caller_of(login.access_token))
        self.users.database.close()
        self.assertIs(first, self.wait(self.api.caller_of(login.access_token)))

    def test_deleting_takes_no_others_devices(self) -> None:
        self.make("alice", device_id="PHONE")
        bob = self.make("bob", device_id="PHONE")
        self.wait(self.api.delete_devices("@alice:test", ["PHONE", "UNKNOWN"], None))
        self.wait(self.api.caller_of(bob.access_token))


class Cache(UsersCase):
    settings = {"cache_bytes": 2500}  # noqa: RUF012

    def test_memory_is_bounded_and_answers_stay_right(self) -> None:
        logins = [self.make(f"user{n}") for n in range(8)]
        seed = 20240901
        chance = random.Random(seed)
        ended: set[str] = set()
        for step in range(200):
            login = chance.choice(logins)
            if chance.random() < 0.03:
                self.wait(self.api.delete_devices(login.user_id, [login.device_id], None))
                ended.add(login.user_id)
            elif login.user_id in ended:
                self.refused(self.api.caller_of(login.access_token))
            else:
                caller = self.wait(self.api.caller_of(login.access_token))
                self.assertEqual(login.user_id, caller.user_id, f"seed {seed}, step {step}")
            self.assertLessEqual(self.users.budget.used, 2500)


class Refreshing(UsersCase):
    def setUp(self) -> None:
        super().setUp()
        self.login = self.make("alice", refreshable=True)

    def test_the_access_token_expires_softly(self) -> None:
        self.assertEqual(ACCESS_TOKEN_LIFETIME_MS, self.login.expires_in_ms)
        self.wait(self.api.caller_of(self.login.access_token))
        self.users.clock.advance(ACCESS_TOKEN_LIFETIME_MS / 1000)
        error = self.refused(self.api.caller_of(self.login.access_token))
        self.assertEqual(("M_UNKNOWN_TOKEN", True), (error.errcode, error.extra["soft_logout"]))
        fresh = self.wait(self.api.refresh(self.login.refresh_token))
        self.assertEqual("@alice:test", self.wait(self.api.caller_of(fresh.access_token)).user_id)

    def test_one_without_refreshing_does_not(self) -> None:
        login = self.wait(self.api.log_in(NewLogin(user_id="@alice:test")))
        self.assertIsNone(login.expires_in_ms)
        self.users.clock.advance(10**9)
        self.wait(self.api.caller_of(login.access_token))

    def test_the_old_refresh_token_lives_until_the_new_access_token_is_used(self) -> None:
        lost = self.wait(self.api.refresh(self.login.refresh_token))
        again = self.wait(self.api.refresh(self.login.refresh_token))
        self.refused(self.api.caller_of(lost.access_token))
        self.refused(self.api.refresh(lost.refresh_token))
        self.wait(self.api.caller_of(again.access_token))
        error = self.refused(self.api.refresh(self.login.refresh_token))
        self.assertEqual((401, "M_UNKNOWN_TOKEN"), (error.status, error.errcode))
        self.refused(self.api.caller_of(self.login.access_token))

    def test_or_until_the_new_refresh_token_is_used(self) -> None:
        second = self.wait(self.api.refresh(self.login.refresh_token))
        third = self.wait(self.api.refresh(second.refresh_token))
        self.refused(self.api.refresh(self.login.refresh_token))
        self.wait(self.api.caller_of(third.access_token))
        self.refused(self.api.refresh(second.refresh_token))

    def test_the_session_outlives_the_tokens(self) -> None:
        before = self.wait(self.api.caller_of(self.login.access_token)).session_id
        fresh = self.wait(self.api.refresh(self.login.refresh_token))
        self.assertEqual(before, self.wait(self.api.caller_of(fresh.access_token)).session_id)

    def test_nothing_is_left_of_many_refreshes(self) -> None:
        token = self.login.refresh_token
        for _ in range(10):
            fresh = self.wait(self.api.refresh(token))
            self.wait(self.api.caller_of(fresh.access_token))
            token = fresh.refresh_token
        self.assertEqual(1, ask(self.users.database, "SELECT COUNT(*) FROM token_pairs")[0][0])

    def test_logging_out_ends_the_refresh_token(self) -> None:
        self.wait(self.api.delete_devices("@alice:test", [self.login.device_id], None))
        self.refused(self.api.refresh(self.login.refresh_token))

    def test_a_locked_user_gets_no_fresh_token(self) -> None:
        self.wait(self.api.set_locked("@alice:test", True))
        self.assertEqual("M_USER_LOCKED", self.refused(self.api.refresh(self.login.refresh_token)).errcode)


class ShortTokens(UsersCase):
    def test_a_login_token_works_once_and_not_for_long(self) -> None:
        self.make("alice")
        token = self.wait(self.api.new_login_token("@alice:test"))
        self.assertIsNone(self.wait(self.api.owner_of_openid_token(token.token)))
        self.assertEqual("@alice:test", self.wait(self.api.use_login_token(token.token)))
        self.assertIsNone(self.wait(self.api.use_login_token(token.token)))
        late = self.wait(self.api.new_login_token("@alice:test"))
        self.users.clock.advance(LOGIN_TOKEN_LIFETIME_MS / 1000)
        self.assertIsNone(self.wait(self.api.use_login_token(late.token)))

    def test_an_openid_token_names_its_user_until_it_expires(self) -> None:
        self.make("alice")
        token = self.wait(self.api.new_openid_token("@alice:test"))
        for _ in range(2):
            self.assertEqual("@alice:test", self.wait(self.api.owner_of_openid_token(token.token)))
        self.assertIsNone(self.wait(self.api.use_login_token(token.token)))
        self.refused(self.api.caller_of(token.token))
        self.users.clock.advance(token.expires_in_ms / 1000)
        self.assertIsNone(self.wait(self.api.owner_of_openid_token(token.token)))

    def test_expired_ones_are_deleted(self) -> None:
        self.make("alice")
        for _ in range(3):
            self.wait(self.api.new_login_token("@alice:test"))
            self.users.clock.advance(1000)
        self.wait(self.api.new_login_token("@alice:test"))
        self.assertEqual(1, ask(self.users.database, "SELECT COUNT(*) FROM short_tokens")[0][0])


class DevicesOfUsers(UsersCase):
    def test_naming_and_making(self) -> None:
        self.make("alice", device_id="PHONE", display_name="Phone")
        self.wait(self.api.put_device("@alice:test", "PHONE", "Telephone", False))
        self.wait(self.api.put_device("@alice:test", "PHONE", None, False))
        self.assertEqual(["Telephone"], [d.display_name for d in self.wait(self.api.devices("@alice:test"))])
        self.assertEqual(404, self.refused(self.api.put_device("@alice:test", "X", "Y", False)).status)
        self.assertEqual(400, self.refused(self.api.put_device("@alice:test", "PHONE", "x" * 1000, False)).status)

    def test_where_and_when_they_were_seen(self) -> None:
        self.make("alice", device_id="PHONE", ip="192.0.2.1", user_agent="app/1")
        device = self.wait(self.api.devices("@alice:test"))[0]
        self.assertEqual(("192.0.2.1", "app/1"), (device.last_seen_ip, device.user_agent))
        later = device.last_seen_ts + 5
        self.wait(self.api.devices_seen([DeviceSeen("@alice:test", "PHONE", later, "192.0.2.7", "app/2")]))
        self.wait(self.api.devices_seen([DeviceSeen("@alice:test", "PHONE", later - 9, "192.0.2.9", "app/3")]))
        device = self.wait(self.api.devices("@alice:test"))[0]
        self.assertEqual((later, "192.0.2.7", "app/2"), (device.last_seen_ts, device.last_seen_ip, device.user_agent))

    def test_others_hear_of_new_devices_and_names_and_may_refuse_ids(self) -> None:
        changed: list[str] = []

        async def heard(txn: object, user_id: str, device_id: str) -> None:
            changed.append(device_id)

        async def is_taken(txn: object, user_id: str, device_id: str) -> bool:
            return device_id == "KEY"

        self.api.on_device_changed.append(heard)
        self.api.is_device_id_taken.append(is_taken)
        self.make("alice", device_id="PHONE")
        self.assertEqual(["PHONE"], changed)
        self.wait(self.api.log_in(NewLogin(user_id="@alice:test", device_id="PHONE")))
        self.assertEqual(["PHONE"], changed)
        self.wait(self.api.put_device("@alice:test", "PHONE", "Telephone", False))
        self.wait(self.api.put_device("@alice:test", "PHONE", None, False))
        self.assertEqual(["PHONE", "PHONE"], changed)
        error = self.refused(self.api.log_in(NewLogin(user_id="@alice:test", device_id="KEY")))
        self.assertEqual((403, "M_FORBIDDEN"), (error.status, error.errcode))

    def test_there_is_an_end_to_devices(self) -> None:
        self.patch(__import__("dendrite_tw.user_api.tokens", fromlist=["x"]), "DEVICES_LIMIT", 3)
        self.make("alice")
        for _ in range(2):
            self.wait(self.api.log_in(NewLogin(user_id="@alice:test")))
        self.assertEqual(403, self.refused(self.api.log_in(NewLogin(user_id="@alice:test"))).status)
