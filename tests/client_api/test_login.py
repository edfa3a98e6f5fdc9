"""Logging in, out, and staying so."""

from __future__ import annotations

import re
from typing import Any

from dendrite_tw.user_api.api import NewAccount
from dendrite_tw.user_api.appservices import AppService, Namespace
from tests.client_api.support import PASSWORD, V1, V3, ClientCase

BRIDGE = AppService("bridge", "bridge-token", "@bot:test", [Namespace(re.compile("@_irc_.*:test"), True)])


def by_name(user: str, password: str = PASSWORD, **more: Any) -> dict[str, Any]:
    identifier = {"type": "m.id.user", "user": user}
    return {"type": "m.login.password", "identifier": identifier, "password": password, **more}


class Login(ClientCase):
    def test_flows(self) -> None:
        flows = self.check(self.web.get(f"{V3}/login"), 200)["flows"]
        self.assertEqual([{"type": "m.login.password"}, {"type": "m.login.token", "get_login_token": True}], flows)
        self.check(self.web.get("/_matrix/client/r0/login"), 200)

    def test_every_way_to_name_a_user(self) -> None:
        self.make("alice", PASSWORD)
        for body in (
            by_name("alice"),
            by_name("Alice"),
            by_name("@alice:test"),
            by_name("@ALICE:test"),
            {"type": "m.login.password", "user": "alice", "password": PASSWORD},
            {"type": "m.login.password", "user": "@alice:test", "password": PASSWORD},
        ):
            answer = self.check(self.web.post(f"{V3}/login", body), 200)
            self.assertEqual(("@alice:test", "test"), (answer["user_id"], answer["home_server"]))
            who = self.check(self.web.get(f"{V3}/account/whoami", answer["access_token"]), 200)
            self.assertEqual({"user_id": "@alice:test", "device_id": answer["device_id"], "is_guest": False}, who)

    def test_every_way_to_fail(self) -> None:
        self.make("alice", PASSWORD)
        for body, status, errcode in [
            (by_name("alice", "wrong horse"), 403, "M_FORBIDDEN"),
            (by_name("bob"), 403, "M_FORBIDDEN"),
            (by_name("@alice:elsewhere"), 403, "M_FORBIDDEN"),
            (by_name("x" * 5000), 403, "M_FORBIDDEN"),
            (by_name(""), 403, "M_FORBIDDEN"),
            (by_name("alice", 5), 400, "M_BAD_JSON"),
            (by_name("alice", device_id="x" * 300), 400, "M_INVALID_PARAM"),
            ({"type": "m.login.password", "password": PASSWORD}, 400, "M_MISSING_PARAM"),
            ({"type": "m.login.password", "user": "alice"}, 400, "M_MISSING_PARAM"),
            ({"type": "m.login.password", "user": 5, "password": PASSWORD}, 400, "M_BAD_JSON"),
            ({"type": "m.login.password", "identifier": 5, "password": PASSWORD}, 400, "M_BAD_JSON"),
            ({"type": "m.login.password", "identifier": {"type": "x"}, "password": PASSWORD}, 400, "M_UNKNOWN"),
            (by_name("alice") | {"identifier": {"type": "m.id.user"}}, 400, "M_MISSING_PARAM"),
            ({"type": "m.login.password", "identifier": {"type": "m.id.phone"}, "password": "x"}, 403, "M_FORBIDDEN"),
            ({"type": "m.login.password", "medium": "email", "address": "a@b", "password": "x"}, 403, "M_FORBIDDEN"),
            ({"type": "m.login.magic"}, 400, "M_UNKNOWN"),
            ({"type": "m.login.token"}, 400, "M_MISSING_PARAM"),
            ({"type": "m.login.token", "token": "nonsense"}, 403, "M_FORBIDDEN"),
            ({"type": "m.login.application_service", "user": "alice"}, 401, "M_MISSING_TOKEN"),
            ({}, 400, "M_MISSING_PARAM"),
            ([], 400, "M_BAD_JSON"),
            (b"{", 400, "M_NOT_JSON"),
        ]:
            with self.subTest(body=str(body)[:100]):
                self.check(self.web.post(f"{V3}/login", body), status, errcode)

    def test_a_device_is_used_again(self) -> None:
        self.make("alice", PASSWORD)
        body = by_name("alice", device_id="D", initial_device_display_name="N")
        first = self.check(self.web.post(f"{V3}/login", body), 200)
        second = self.check(self.web.post(f"{V3}/login", by_name("alice", device_id="D")), 200)
        self.check(self.web.get(f"{V3}/account/whoami", first["access_token"]), 401, "M_UNKNOWN_TOKEN")
        device = self.check(self.web.get(f"{V3}/devices/D", second["access_token"]), 200)
        self.assertEqual("N", device["display_name"])

    def test_refreshing(self) -> None:
        self.make("alice", PASSWORD)
        login = self.check(self.web.post(f"{V3}/login", by_name("alice", refresh_token=True)), 200)
        self.assertLess(0, login["expires_in_ms"])
        fresh = self.check(self.web.post(f"{V3}/refresh", {"refresh_token": login["refresh_token"]}), 200)
        self.assertEqual({"access_token", "refresh_token", "expires_in_ms"}, set(fresh))
        self.check(self.web.get(f"{V3}/account/whoami", fresh["access_token"]), 200)
        self.check(self.web.post(f"{V3}/refresh", {"refresh_token": login["refresh_token"]}), 401, "M_UNKNOWN_TOKEN")
        self.check(self.web.post(f"{V3}/refresh", {}), 400, "M_MISSING_PARAM")

    def test_a_login_token(self) -> None:
        (token,) = self.tokens("alice")
        made = self.check(self.with_password(f"{V1}/login/get_token", token, {}, "alice"), 200)
        self.assertEqual(120_000, made["expires_in_ms"])
        body = {"type": "m.login.token", "token": made["login_token"]}
        self.assertEqual("@alice:test", self.check(self.web.post(f"{V3}/login", body), 200)["user_id"])
        self.check(self.web.post(f"{V3}/login", body), 403, "M_FORBIDDEN")

    def test_logging_out(self) -> None:
        (token,) = self.tokens("alice")
        other = self.check(self.web.post(f"{V3}/login", by_name("alice")), 200)["access_token"]
        self.check(self.web.post(f"{V3}/logout", None, token), 200)
        self.check(self.web.post(f"{V3}/logout", None, token), 401, "M_UNKNOWN_TOKEN")
        self.check(self.web.get(f"{V3}/account/whoami", other), 200)
        self.check(self.web.post(f"{V3}/logout/all", None, other), 200)
        self.check(self.web.get(f"{V3}/account/whoami", other), 401, "M_UNKNOWN_TOKEN")
        self.check(self.web.post(f"{V3}/logout"), 401, "M_MISSING_TOKEN")

    def test_a_locked_user_can_log_out_and_no_more(self) -> None:
        (token,) = self.tokens("alice")
        self.wait(self.api.set_locked("@alice:test", True))
        locked = self.check(self.web.get(f"{V3}/account/whoami", token), 401, "M_USER_LOCKED")
        self.assertTrue(locked["soft_logout"])
        self.check(self.web.post(f"{V3}/login", by_name("alice")), 401, "M_USER_LOCKED")
        self.check(self.web.post(f"{V3}/logout", None, token), 200)


class WellKnown(ClientCase):
    client = {"well_known_client_name": "https://matrix.test", "has_appservices": True}  # noqa: RUF012
    settings = {"appservices": [BRIDGE]}  # noqa: RUF012

    def test_login_says_where_the_server_is(self) -> None:
        self.make("alice", PASSWORD)
        answer = self.check(self.web.post(f"{V3}/login", by_name("alice")), 200)
        self.assertEqual({"m.homeserver": {"base_url": "https://matrix.test"}}, answer["well_known"])

    def test_an_application_service_logs_its_users_in(self) -> None:
        self.make("alice", PASSWORD)
        self.wait(self.api.register(NewAccount(localpart="_irc_joe", appservice_id="bridge", account_type=4), None))
        self.assertIn({"type": "m.login.application_service"}, self.web.get(f"{V3}/login").json["flows"])
        body = {"type": "m.login.application_service", "identifier": {"type": "m.id.user", "user": "_irc_joe"}}
        login = self.check(self.web.post(f"{V3}/login", body, "bridge-token"), 200)
        self.assertEqual("@_irc_joe:test", login["user_id"])
        for user, token, errcode in [
            ("_irc_joe", "nonsense", "M_FORBIDDEN"),
            ("_irc_joe", login["access_token"], "M_FORBIDDEN"),
            ("_irc_nobody", "bridge-token", "M_FORBIDDEN"),
            ("alice", "bridge-token", "M_EXCLUSIVE"),
        ]:
            body["identifier"] = {"type": "m.id.user", "user": user}
            self.check(self.web.post(f"{V3}/login", body, token), 403, errcode)

    def test_an_application_service_acts_as_its_users(self) -> None:
        who = f"{V3}/account/whoami"
        self.assertEqual("@bot:test", self.check(self.web.get(who, "bridge-token"), 200)["user_id"])
        self.check(self.web.get(f"{who}?user_id=@_irc_joe:test", "bridge-token"), 403, "M_FORBIDDEN")
        body = {"type": "m.login.application_service", "username": "_irc_joe", "inhibit_login": True}
        made = self.check(self.web.post(f"{V3}/register", body, "bridge-token"), 200)
        self.assertEqual({"user_id": "@_irc_joe:test", "home_server": "test"}, made)
        acting = self.check(self.web.get(f"{who}?user_id=@_irc_joe:test", "bridge-token"), 200)
        self.assertEqual({"user_id": "@_irc_joe:test", "is_guest": False}, acting)
        self.check(self.web.get(f"{who}?user_id=@alice:test", "bridge-token"), 403, "M_EXCLUSIVE")
        as_device = "?user_id=@_irc_joe:test&device_id=D"
        self.check(self.web.get(f"{who}{as_device}", "bridge-token"), 400, "M_UNKNOWN_DEVICE")
        device = f"{V3}/devices/D?user_id=@_irc_joe:test"
        self.check(self.web.put(device, {"display_name": "N"}, "bridge-token"), 201)
        self.check(self.web.put(device, {"display_name": "M"}, "bridge-token"), 200)
        self.assertEqual("D", self.check(self.web.get(f"{who}{as_device}", "bridge-token"), 200)["device_id"])
        self.check(self.web.delete(device, {}, "bridge-token"), 200)
        self.check(self.web.get(f"{who}{as_device}", "bridge-token"), 400, "M_UNKNOWN_DEVICE")


class LastSeen(ClientCase):
    def test_requests_are_noted_and_stored_together(self) -> None:
        (token,) = self.tokens("alice")
        self.seen.start()
        for _ in range(3):
            self.web.get(f"{V3}/account/whoami", token)
        self.assertNotIn("last_seen_ts", self.web.get(f"{V3}/devices/PHONE", token).json)
        self.users.clock.advance(60)
        device = self.web.get(f"{V3}/devices/PHONE", token).json
        self.assertEqual("192.0.2.1", device["last_seen_ip"])
        self.users.clock.advance(30)
        self.wait(self.seen.stop())
        later = self.web.get(f"{V3}/devices/PHONE", token).json
        self.assertEqual(device["last_seen_ts"] + 60_000, later["last_seen_ts"])
