"""Accounts come to be, change, and are closed."""

from __future__ import annotations

import re

import bcrypt

from dendrite_tw.user_api.api import TYPE_ADMIN, TYPE_GUEST, TYPE_USER, NewAccount, NewLogin
from dendrite_tw.user_api.appservices import AppService, Namespace
from dendrite_tw.user_api.passwords import make_salt
from dendrite_tw.user_api.settings import PASSWORD_LIMIT
from dendrite_tw.world import SeededRandom
from tests.user_api.harness import Users, UsersCase

BRIDGE = AppService("bridge", "bridge-token", "@bot:test", [Namespace(re.compile("@_irc_.*:test"), True)])


class Registration(UsersCase):
    def test_an_account_with_a_session(self) -> None:
        login = self.make("alice", device_id="PHONE", display_name="Alice's phone")
        self.assertEqual(("@alice:test", "PHONE"), (login.user_id, login.device_id))
        account = self.wait(self.api.account("@alice:test"))
        self.assertEqual(TYPE_USER, account.account_type)
        self.assertEqual({"displayname": "alice"}, self.wait(self.api.profile("@alice:test")))
        caller = self.wait(self.api.caller_of(login.access_token))
        self.assertEqual(("@alice:test", "PHONE", False), (caller.user_id, caller.device_id, caller.is_admin))

    def test_capitals_become_small(self) -> None:
        self.assertEqual("@alice:test", self.make("ALICE").user_id)

    def test_a_name_is_given_once(self) -> None:
        self.make("alice")
        self.assertEqual("M_USER_IN_USE", self.refused(self.api.check_localpart("Alice", None)).errcode)
        again = self.api.register(NewAccount(localpart="alice", password="correct horse"), None)
        self.assertEqual("M_USER_IN_USE", self.refused(again).errcode)

    def test_names_that_nobody_can_have(self) -> None:
        for name in ["", "a b", "älice", "a:b", "@alice", "a\0", "_hidden", "12345", "x" * 250]:
            with self.subTest(name=name):
                self.assertEqual("M_INVALID_USERNAME", self.refused(self.api.check_localpart(name, None)).errcode)

    def test_names_made_up_are_valid_and_differ(self) -> None:
        made = {self.wait(self.api.register(NewAccount(password="correct horse"), None))[0] for _ in range(5)}
        self.assertEqual(5, len(made))
        guest, _ = self.wait(self.api.register(NewAccount(account_type=TYPE_GUEST), None))
        self.assertRegex(guest, r"^@[0-9]+:test$")

    def test_weak_and_endless_passwords(self) -> None:
        short = NewAccount(localpart="alice", password="short")
        self.assertEqual("M_WEAK_PASSWORD", self.refused(self.api.register(short, None)).errcode)
        long = NewAccount(localpart="alice", password="x" * (PASSWORD_LIMIT + 1))
        self.assertEqual("M_INVALID_PARAM", self.refused(self.api.register(long, None)).errcode)
        self.assertIsNone(self.wait(self.api.account("@alice:test")))

    def test_a_failed_session_makes_no_account(self) -> None:
        account = NewAccount(localpart="alice", password="correct horse")
        self.refused(self.api.register(account, NewLogin(device_id="x" * 1000)))
        self.assertIsNone(self.wait(self.api.account("@alice:test")))

    def test_a_guest_becomes_a_user(self) -> None:
        user_id, login = self.wait(self.api.register(NewAccount(account_type=TYPE_GUEST), NewLogin()))
        self.assertTrue(self.wait(self.api.caller_of(login.access_token)).is_guest)
        upgrade = NewAccount(password="correct horse", upgrades_guest=user_id)
        self.wait(self.api.register(upgrade, None))
        self.assertFalse(self.wait(self.api.caller_of(login.access_token)).is_guest)
        self.assertEqual("M_FORBIDDEN", self.refused(self.api.register(upgrade, None)).errcode)


class RegistrationTokens(UsersCase):
    def test_a_token_lets_as_many_in_as_it_says(self) -> None:
        token = self.wait(self.api.new_registration_token("welcome", 16, 1, None))
        self.assertEqual(("welcome", 1, 0), (token.token, token.uses_allowed, token.completed))
        alice = NewAccount(localpart="alice", password="correct horse", registration_token="welcome")
        bob = NewAccount(localpart="bob", password="correct horse", registration_token="welcome")
        self.wait(self.api.register(alice, None))
        self.assertFalse(self.wait(self.api.is_valid_registration_token("welcome")))
        self.assertEqual("M_UNAUTHORIZED", self.refused(self.api.register(bob, None)).errcode)
        self.assertIsNone(self.wait(self.api.account("@bob:test")))
        self.assertEqual(1, self.wait(self.api.registration_tokens())[0].completed)

    def test_a_token_expires(self) -> None:
        now = self.users.memory.world.clock.now_ms()
        self.wait(self.api.new_registration_token("welcome", 16, None, now + 1000))
        self.assertTrue(self.wait(self.api.is_valid_registration_token("welcome")))
        self.users.clock.advance(2)
        self.assertFalse(self.wait(self.api.is_valid_registration_token("welcome")))

    def test_what_cannot_be_a_token(self) -> None:
        self.wait(self.api.new_registration_token("welcome", 16, None, None))
        self.assertEqual(409, self.refused(self.api.new_registration_token("welcome", 16, None, None)).status)
        for token, length, uses, expiry in [
            ("ä", 16, None, None),
            ("x" * 65, 16, None, None),
            (None, 65, None, None),
            (None, 0, None, None),
            (None, 16, -1, None),
            (None, 16, None, 5),
        ]:
            with self.subTest(token=token, length=length, uses=uses, expiry=expiry):
                error = self.refused(self.api.new_registration_token(token, length, uses, expiry))
                self.assertEqual(400, error.status)

    def test_changing_and_deleting(self) -> None:
        self.wait(self.api.new_registration_token("welcome", 16, 1, None))
        self.assertIsNone(self.wait(self.api.update_registration_token("welcome", None, None)).uses_allowed)
        self.wait(self.api.delete_registration_token("welcome"))
        self.assertEqual(404, self.refused(self.api.delete_registration_token("welcome")).status)
        self.assertEqual(404, self.refused(self.api.update_registration_token("welcome", 1, None)).status)


class Passwords(UsersCase):
    def test_only_the_right_one_is_right(self) -> None:
        self.make("alice", "correct horse")
        self.assertTrue(self.wait(self.api.check_password("@alice:test", "correct horse")))
        for user_id, password in [
            ("@alice:test", "Correct horse"),
            ("@alice:test", ""),
            ("@nobody:test", "correct horse"),
            ("@alice:elsewhere", "correct horse"),
            ("@alice:test", "x" * 10_000),
        ]:
            self.assertFalse(self.wait(self.api.check_password(user_id, password)))

    def test_the_end_of_a_long_password_counts(self) -> None:
        self.make("alice", "x" * 100 + "1")
        self.assertTrue(self.wait(self.api.check_password("@alice:test", "x" * 100 + "1")))
        self.assertFalse(self.wait(self.api.check_password("@alice:test", "x" * 100 + "2")))

    def test_salts_are_of_the_form_that_bcrypt_reads(self) -> None:
        random = SeededRandom(3)
        salts = {make_salt(random, 4) for _ in range(20)}
        self.assertEqual(20, len(salts))
        for salt in salts:
            self.assertTrue(bcrypt.checkpw(b"secret", bcrypt.hashpw(b"secret", salt)))

    def test_a_new_password_ends_other_sessions(self) -> None:
        phone, laptop = self.make("alice", device_id="PHONE"), None
        laptop = self.wait(self.api.log_in(NewLogin(user_id="@alice:test", device_id="LAPTOP")))
        self.wait(self.api.caller_of(phone.access_token))
        self.wait(self.api.set_password("@alice:test", "another horse", True, "LAPTOP"))
        self.assertEqual("M_UNKNOWN_TOKEN", self.refused(self.api.caller_of(phone.access_token)).errcode)
        self.assertEqual("LAPTOP", self.wait(self.api.caller_of(laptop.access_token)).device_id)
        self.assertTrue(self.wait(self.api.check_password("@alice:test", "another horse")))
        self.assertFalse(self.wait(self.api.check_password("@alice:test", "correct horse")))

    def test_or_leaves_them(self) -> None:
        phone = self.make("alice")
        self.wait(self.api.set_password("@alice:test", "another horse", False, None))
        self.wait(self.api.caller_of(phone.access_token))


class Deactivation(UsersCase):
    def test_everything_of_the_user_goes(self) -> None:
        login = self.make("alice", device_id="PHONE")
        self.wait(self.api.caller_of(login.access_token))
        self.users.rooms.put("!a:test", "@alice:test")
        self.users.rooms.put("!b:test", "@alice:test", "invite")
        self.users.rooms.put("!c:test", "@alice:test", "ban")
        heard: list[tuple[str, ...]] = []

        async def device_gone(txn: object, user_id: str, device_id: str) -> None:
            heard.append(("device", user_id, device_id))

        async def account_gone(txn: object, user_id: str) -> None:
            heard.append(("account", user_id))

        self.api.on_device_deleted.append(device_gone)
        self.api.on_account_deactivated.append(account_gone)
        self.wait(self.api.deactivate("@alice:test", False))

        self.assertEqual([("device", "@alice:test", "PHONE"), ("account", "@alice:test")], heard)
        self.assertEqual("M_UNKNOWN_TOKEN", self.refused(self.api.caller_of(login.access_token)).errcode)
        self.assertFalse(self.wait(self.api.check_password("@alice:test", "correct horse")))
        self.assertFalse(self.wait(self.api.is_local_account("@alice:test")))
        self.assertEqual({}, self.wait(self.api.profile("@alice:test")))
        self.assertEqual(["!a:test", "!b:test"], [change.room_id for change in self.users.rooms.changes])
        self.assertEqual("M_USER_IN_USE", self.refused(self.api.check_localpart("alice", None)).errcode)
        error = self.refused(self.api.log_in(NewLogin(user_id="@alice:test")))
        self.assertEqual((403, "M_USER_DEACTIVATED"), (error.status, error.errcode))
        self.assertEqual(404, self.refused(self.api.deactivate("@alice:test", False)).status)

    def test_erasing_takes_account_data_too(self) -> None:
        self.make("alice")
        self.make("bob")
        for user_id, erase in (("@alice:test", True), ("@bob:test", False)):
            self.wait(self.api.put_account_data(user_id, "", "org.example", b'{"a":1}'))
            self.wait(self.api.deactivate(user_id, erase))
        self.assertIsNone(self.wait(self.api.account_data("@alice:test", "", "org.example")))
        self.assertEqual(b'{"a":1}', self.wait(self.api.account_data("@bob:test", "", "org.example")))
        self.assertTrue(self.wait(self.api.account("@alice:test")).erased)

    def test_leaving_goes_on_after_a_restart(self) -> None:
        self.make("alice")

        async def fails(change: object) -> str:
            raise ZeroDivisionError

        self.users.rooms.put("!a:test", "@alice:test")
        works, self.users.rooms.change_membership = self.users.rooms.change_membership, fails
        self.wait(self.api.deactivate("@alice:test", False))
        self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))
        self.users.rooms.change_membership = works
        self.restart()
        self.assertEqual(["!a:test"], [change.room_id for change in self.users.rooms.changes])
        self.restart()
        self.assertEqual(1, len(self.users.rooms.changes))


class Moderation(UsersCase):
    def test_a_locked_user_can_only_log_out(self) -> None:
        login = self.make("alice")
        self.wait(self.api.caller_of(login.access_token))
        self.wait(self.api.set_locked("@alice:test", True))
        error = self.refused(self.api.caller_of(login.access_token))
        self.assertEqual((401, "M_USER_LOCKED", True), (error.status, error.errcode, error.extra["soft_logout"]))
        self.assertEqual("@alice:test", self.wait(self.api.session_of(login.access_token)).user_id)
        self.wait(self.api.set_locked("@alice:test", False))
        self.assertEqual("@alice:test", self.wait(self.api.caller_of(login.access_token)).user_id)

    def test_a_suspended_user_is_known_as_such(self) -> None:
        login = self.make("alice")
        self.wait(self.api.caller_of(login.access_token)).require_not_suspended()
        self.wait(self.api.set_suspended("@alice:test", True))
        caller = self.wait(self.api.caller_of(login.access_token))
        with self.assertRaises(Exception) as raised:
            caller.require_not_suspended()
        self.assertEqual("M_USER_SUSPENDED", raised.exception.errcode)  # type: ignore[attr-defined]

    def test_nobody_cannot_be_locked(self) -> None:
        self.assertEqual(404, self.refused(self.api.set_locked("@nobody:test", True)).status)
        self.assertEqual(404, self.refused(self.api.set_suspended("@nobody:test", True)).status)


class AppServices(UsersCase):
    settings = {"appservices": [BRIDGE]}  # noqa: RUF012

    def test_its_token_is_its_senders(self) -> None:
        caller = self.wait(self.api.caller_of("bridge-token"))
        self.assertEqual(("@bot:test", None, "bridge"), (caller.user_id, caller.device_id, caller.appservice_id))

    def test_its_namespace_is_its_own(self) -> None:
        self.assertEqual("_irc_joe", self.wait(self.api.check_localpart("_irc_joe", "bridge")))
        self.assertEqual("M_EXCLUSIVE", self.refused(self.api.check_localpart("bot", None)).errcode)
        self.assertEqual("M_EXCLUSIVE", self.refused(self.api.check_localpart("alice", "bridge")).errcode)

    def test_acting_as_a_user(self) -> None:
        account = NewAccount(localpart="_irc_joe", appservice_id="bridge", account_type=4)
        self.assertEqual("M_FORBIDDEN", self.refused(self.api.acting_as("bridge", "@_irc_joe:test", None)).errcode)
        self.wait(self.api.register(account, None))
        self.assertEqual("@_irc_joe:test", self.wait(self.api.acting_as("bridge", "@_irc_joe:test", None)).user_id)
        unknown = self.refused(self.api.acting_as("bridge", "@_irc_joe:test", "D"))
        self.assertEqual("M_UNKNOWN_DEVICE", unknown.errcode)
        self.wait(self.api.put_device("@_irc_joe:test", "D", None, True))
        self.assertEqual("D", self.wait(self.api.acting_as("bridge", "@_irc_joe:test", "D")).device_id)
        self.assertEqual("M_EXCLUSIVE", self.refused(self.api.acting_as("bridge", "@alice:test", None)).errcode)


class AutoJoin(UsersCase):
    settings = {"auto_join_rooms": ("#lobby:test",)}  # noqa: RUF012

    def test_the_first_user_makes_the_room_and_the_next_joins(self) -> None:
        self.make("alice")
        self.assertEqual(["@alice:test"], [room.creator for room in self.users.rooms.created])
        self.make("bob")
        changes = [(change.room_id, change.target, change.action) for change in self.users.rooms.changes]
        self.assertEqual([("!made:test", "@bob:test", "join")], changes)
        self.assertEqual(1, len(self.users.rooms.created))


class ReservedNames(UsersCase):
    settings = {"reserved_localparts": frozenset({"notices"})}  # noqa: RUF012

    def test_nobody_gets_a_reserved_name(self) -> None:
        self.assertEqual("M_USER_IN_USE", self.refused(self.api.check_localpart("Notices", None)).errcode)

    def test_an_admin_is_known_as_one(self) -> None:
        account = NewAccount(localpart="root", password="correct horse", account_type=TYPE_ADMIN)
        _, login = self.wait(self.api.register(account, NewLogin()))
        self.assertTrue(self.wait(self.api.caller_of(login.access_token)).is_admin)


class Restart(UsersCase):
    def test_positions_go_on_from_what_is_stored(self) -> None:
        self.make("alice")
        self.wait(self.api.put_account_data("@alice:test", "", "a", b"{}"))
        before = self.wait(self.api.position())
        self.wait(self.users.outbox.delete_upto(before))
        self.restart()
        self.assertEqual(before, self.wait(self.api.position()))

    def test_an_empty_server_starts_at_nothing(self) -> None:
        self.assertEqual(0, self.wait(Users().component.position()))
