"""Registration: openly, with tokens, with a captcha, as a guest, and with the shared secret."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any, cast

from dendrite_tw.client_api.proofs import OwnProofs
from dendrite_tw.client_api.settings import CaptchaSettings
from dendrite_tw.client_api.uia import SESSION_LIFETIME_MS
from tests.client_api.support import PASSWORD, V1, V3, ClientCase

REGISTER = f"{V3}/register"


class Open(ClientCase):
    def register(self, name: str | None, **more: Any) -> Any:
        body = {"password": PASSWORD, "auth": {"type": "m.login.dummy"}, **more}
        return self.web.post(REGISTER, body if name is None else {"username": name, **body})

    def test_a_client_is_told_the_flows_and_then_let_in(self) -> None:
        asked = self.check(self.web.post(REGISTER, {"username": "alice", "password": PASSWORD}), 401)
        self.assertEqual([{"stages": ["m.login.dummy"]}], asked["flows"])
        self.assertEqual({"session", "flows", "params"}, set(asked))
        auth = {"type": "m.login.dummy", "session": asked["session"]}
        answer = self.check(self.web.post(REGISTER, {"username": "alice", "password": PASSWORD, "auth": auth}), 200)
        self.assertEqual("@alice:test", answer["user_id"])
        self.check(self.web.get(f"{V3}/account/whoami", answer["access_token"]), 200)

    def test_what_a_registration_may_say(self) -> None:
        answer = self.check(self.register("alice", device_id="D", initial_device_display_name="N"), 200)
        self.assertEqual("D", answer["device_id"])
        self.assertEqual({"user_id", "home_server"}, set(self.check(self.register("bob", inhibit_login=True), 200)))
        self.assertIn("refresh_token", self.check(self.register("carol", refresh_token=True), 200))
        self.assertRegex(self.check(self.register(None), 200)["user_id"], "^@u[a-z0-9]+:test$")

    def test_a_session_remembers_what_was_asked_first(self) -> None:
        asked = {"username": "alice", "password": "paß wört", "device_id": "D", "initial_device_display_name": "N"}
        session = self.check(self.web.post(REGISTER, asked), 401)["session"]
        auth = {"type": "m.login.dummy", "session": session}
        answer = self.check(self.web.post(REGISTER, {"auth": auth}), 200)
        self.assertEqual(("@alice:test", "D"), (answer["user_id"], answer["device_id"]))
        device = self.check(self.web.get(f"{V3}/devices/D", answer["access_token"]), 200)
        self.assertEqual("N", device["display_name"])
        self.check(self.web.post(REGISTER, {"auth": {"type": "m.login.dummy"}}), 400, "M_MISSING_PARAM")

    def test_what_is_said_later_counts_more(self) -> None:
        asked = {"username": "alice", "password": PASSWORD, "inhibit_login": True}
        auth = {"type": "m.login.dummy", "session": self.check(self.web.post(REGISTER, asked), 401)["session"]}
        answer = self.check(self.web.post(REGISTER, {"username": "bob", "auth": auth}), 200)
        self.assertEqual({"user_id": "@bob:test", "home_server": "test"}, answer)

    def test_a_long_request_is_not_remembered(self) -> None:
        asked = {"username": "alice", "password": PASSWORD, "initial_device_display_name": "N" * 5000}
        auth = {"type": "m.login.dummy", "session": self.check(self.web.post(REGISTER, asked), 401)["session"]}
        self.check(self.web.post(REGISTER, {"auth": auth}), 400, "M_MISSING_PARAM")

    def test_who_missed_the_answer_gets_it_again(self) -> None:
        for name in ("alice", None):
            body = {"password": PASSWORD, **({"username": name} if name else {})}
            auth = {"type": "m.login.dummy", "session": self.check(self.web.post(REGISTER, body), 401)["session"]}
            first = self.check(self.web.post(REGISTER, {**body, "auth": auth}), 200)
            again = self.check(self.web.post(REGISTER, {**body, "auth": auth}), 200)
            self.assertEqual(first["user_id"], again["user_id"])
            self.check(self.web.get(f"{V3}/account/whoami", again["access_token"]), 200)
            silent = self.check(self.web.post(REGISTER, {**body, "auth": auth, "inhibit_login": True}), 200)
            self.assertEqual({"user_id", "home_server"}, set(silent))
        wrong = {"username": "alice", "password": "some other", "auth": auth}
        self.check(self.web.post(REGISTER, wrong), 400, "M_USER_IN_USE")

    def test_names_are_checked_before_authentication(self) -> None:
        self.check(self.register("alice"), 200)
        for name, errcode in [("alice", "M_USER_IN_USE"), ("ALICE", "M_USER_IN_USE"), ("a b", "M_INVALID_USERNAME")]:
            self.check(self.web.post(REGISTER, {"username": name, "password": PASSWORD}), 400, errcode)

    def test_passwords_are_required_and_checked(self) -> None:
        self.check(self.web.post(REGISTER, {"username": "alice", "auth": {"type": "m.login.dummy"}}), 400)
        self.check(self.register("alice", password="short"), 400, "M_WEAK_PASSWORD")
        self.check(self.register("alice", password=5), 400, "M_BAD_JSON")

    def test_availability(self) -> None:
        self.assertEqual({"available": True}, self.check(self.web.get(f"{REGISTER}/available?username=alice"), 200))
        self.check(self.register("alice"), 200)
        self.check(self.web.get(f"{REGISTER}/available?username=alice"), 400, "M_USER_IN_USE")
        self.check(self.web.get(f"{REGISTER}/available?username=a%20b"), 400, "M_INVALID_USERNAME")
        self.check(self.web.get(f"{REGISTER}/available"), 400, "M_MISSING_PARAM")

    def test_a_guest_and_what_becomes_of_one(self) -> None:
        body = {"initial_device_display_name": "N", "device_id": "MINE", "username": "alice"}
        guest = self.check(self.web.post(f"{REGISTER}?kind=guest", body), 200)
        self.assertNotEqual("MINE", guest["device_id"])
        self.assertNotEqual("@alice:test", guest["user_id"])
        who = self.check(self.web.get(f"{V3}/account/whoami", guest["access_token"]), 200)
        self.assertTrue(who["is_guest"])
        shown = self.check(self.web.get(f"{V3}/profile/{guest['user_id']}/displayname"), 200)
        self.assertEqual({"displayname": guest["user_id"][1:].split(":")[0]}, shown)
        self.check(self.web.get(f"{V3}/capabilities", guest["access_token"]), 403, "M_GUEST_ACCESS_FORBIDDEN")
        name = f"{V3}/profile/{guest['user_id']}"
        self.check(self.web.put(f"{name}/displayname", {"displayname": "G"}, guest["access_token"]), 200)
        self.check(self.web.put(f"{name}/avatar_url", {"avatar_url": "mxc://a/b"}, guest["access_token"]), 403)
        localpart = guest["user_id"][1:].split(":")[0]
        upgraded = self.check(self.register(localpart, guest_access_token=guest["access_token"]), 200)
        self.assertEqual(guest["user_id"], upgraded["user_id"])
        self.check(self.web.get(f"{V3}/capabilities", guest["access_token"]), 200)
        self.check(self.register("x", guest_access_token=upgraded["access_token"]), 403, "M_FORBIDDEN")

    def test_kinds_and_shapes(self) -> None:
        self.check(self.web.post(f"{REGISTER}?kind=duke", {}), 400, "M_UNKNOWN")
        self.check(self.web.post(REGISTER, b"nonsense"), 400, "M_NOT_JSON")
        self.check(self.web.post(REGISTER, []), 400, "M_BAD_JSON")
        self.check(self.web.post(REGISTER, {"auth": 5}), 400, "M_BAD_JSON")
        self.check(self.web.post(REGISTER, {"type": "m.login.application_service"}), 401, "M_MISSING_TOKEN")
        self.check(self.web.post(REGISTER, {"auth": {"type": "m.login.recaptcha"}}), 401, "M_UNKNOWN")
        self.check(self.web.post(REGISTER, {"auth": {"type": ["m.login.dummy"]}}), 400)

    def test_there_is_no_secret_to_register_with(self) -> None:
        self.check(self.web.get("/_synapse/admin/v1/register"), 404, "M_UNRECOGNIZED")


class Closed(ClientCase):
    client = {"registration_disabled": True, "guests_disabled": True, "registration_shared_secret": "sesame"}  # noqa: RUF012

    def test_nobody_gets_in(self) -> None:
        self.check(self.web.post(REGISTER, {"username": "alice", "password": PASSWORD}), 403, "M_FORBIDDEN")
        self.check(self.web.post(f"{REGISTER}?kind=guest", {}), 403, "M_GUEST_ACCESS_FORBIDDEN")
        self.check(self.web.get(f"{REGISTER}/available?username=alice"), 403, "M_FORBIDDEN")
        self.check(self.web.get(f"{V1}/register/m.login.registration_token/validity?token=x"), 403, "M_FORBIDDEN")

    def with_secret(self, secret: str = "sesame", kind: str = "notadmin", **more: Any) -> Any:
        path = "/_synapse/admin/v1/register"
        nonce = more.pop("nonce", None) or self.check(self.web.get(path), 200)["nonce"]
        body = {"nonce": nonce, "username": "alice", "password": PASSWORD, "admin": False, **more}
        message = "\0".join((nonce, body["username"], body["password"], kind)).encode()
        return self.web.post(path, {"mac": hmac.new(secret.encode(), message, hashlib.sha1).hexdigest(), **body})

    def test_but_who_knows_the_secret(self) -> None:
        answer = self.check(self.with_secret(), 200)
        self.assertEqual(("@alice:test", "test"), (answer["user_id"], answer["home_server"]))
        self.assertFalse(self.wait(self.api.caller_of(answer["access_token"])).is_admin)
        boss = self.check(self.with_secret(kind="admin", admin=True, username="boss", displayname="Boss"), 200)
        self.assertTrue(self.wait(self.api.caller_of(boss["access_token"])).is_admin)
        self.assertEqual("Boss", self.wait(self.api.profile("@boss:test"))["displayname"])
        self.check(self.with_secret(), 400, "M_USER_IN_USE")

    def test_and_says_it_right(self) -> None:
        self.check(self.with_secret("simsalabim"), 403, "M_FORBIDDEN")
        self.check(self.with_secret(kind="notadmin", admin=True), 403, "M_FORBIDDEN")
        self.check(self.with_secret(nonce="made up"), 400, "M_INVALID_PARAM")
        self.check(self.with_secret(mac="ä"), 403, "M_FORBIDDEN")
        self.check(self.with_secret(password="short"), 400, "M_WEAK_PASSWORD")
        self.check(self.web.post("/_synapse/admin/v1/register", {}), 400, "M_MISSING_PARAM")

    def test_a_nonce_is_good_once_and_for_five_minutes(self) -> None:
        nonce = self.web.get("/_synapse/admin/v1/register").json["nonce"]
        self.check(self.with_secret(nonce=nonce), 200)
        self.check(self.with_secret(nonce=nonce, username="bob"), 400, "M_INVALID_PARAM")
        nonce = self.web.get("/_synapse/admin/v1/register").json["nonce"]
        self.users.clock.advance(300)
        self.check(self.with_secret(nonce=nonce, username="bob"), 400, "M_INVALID_PARAM")


class WithToken(ClientCase):
    client = {"registration_requires_token": True}  # noqa: RUF012

    def setUp(self) -> None:
        super().setUp()
        self.wait(self.api.new_registration_token("welcome", 16, 1, None))

    def register(self, name: str, token: Any) -> Any:
        auth = {"type": "m.login.registration_token", "token": token}
        return self.web.post(REGISTER, {"username": name, "password": PASSWORD, "auth": auth})

    def test_a_token_is_asked_for_and_used_up(self) -> None:
        asked = self.check(self.web.post(REGISTER, {}), 401)
        self.assertEqual([{"stages": ["m.login.registration_token"]}], asked["flows"])
        wrong = self.check(self.register("alice", "nonsense"), 401, "M_UNAUTHORIZED")
        self.assertIn("session", wrong)
        self.check(self.register("alice", None), 401, "M_MISSING_PARAM")
        self.check(self.web.post(REGISTER, {"username": "alice", "auth": {"type": "m.login.dummy"}}), 401, "M_UNKNOWN")
        self.check(self.register("alice", "welcome"), 200)
        self.check(self.register("bob", "welcome"), 401, "M_UNAUTHORIZED")

    def test_whether_it_is_valid(self) -> None:
        path = f"{V1}/register/m.login.registration_token/validity"
        self.assertEqual({"valid": True}, self.check(self.web.get(f"{path}?token=welcome"), 200))
        self.assertEqual({"valid": False}, self.check(self.web.get(f"{path}?token=nonsense"), 200))
        self.check(self.web.get(path), 400, "M_MISSING_PARAM")

    def test_in_a_browser(self) -> None:
        body = {"username": "alice", "password": PASSWORD}
        session = self.check(self.web.post(REGISTER, body), 401)["session"]
        page = f"{V3}/auth/m.login.registration_token/fallback/web"
        self.assertIn(b'name="token"', self.web.get(f"{page}?session={session}").body)
        form = f"session={session}&token=nonsense".encode()
        self.assertIn(b"not valid", self.web.request("POST", page, form).body)
        self.check(self.web.post(REGISTER, body | {"auth": {"session": session}}), 401)
        form = f"session={session}&token=welcome".encode()
        self.assertIn(b"onAuthDone", self.web.request("POST", page, form).body)
        self.assertIn(b"onAuthDone", self.web.get(f"{page}?session={session}").body)
        self.check(self.web.post(REGISTER, body | {"auth": {"session": session}}), 200)

    def test_pages_for_nothing(self) -> None:
        session = self.check(self.web.post(REGISTER, {}), 401)["session"]
        page = f"{V3}/auth/m.login.registration_token/fallback/web"
        self.assertEqual(404, self.web.get(f"{page}?session=%3Cscript%3E").status)
        self.assertEqual(404, self.web.request("POST", page, b"session=x&token=welcome").status)
        self.assertEqual(400, self.web.request("POST", page, "ä".encode()).status)
        self.assertEqual(404, self.web.get(f"{V3}/auth/m.login.msisdn/fallback/web?session={session}").status)
        form = f"session={session}".encode()
        self.assertEqual(404, self.web.request("POST", f"{V3}/auth/m.login.password/fallback/web", form).status)

    def test_a_session_ends(self) -> None:
        session = self.check(self.web.post(REGISTER, {}), 401)["session"]
        self.users.clock.advance(SESSION_LIFETIME_MS / 1000)
        page = f"{V3}/auth/m.login.registration_token/fallback/web?session={session}"
        self.assertEqual(404, self.web.get(page).status)
        again = self.check(self.web.post(REGISTER, {"auth": {"session": session}}), 401)
        self.assertNotEqual(session, again["session"])

    def test_sessions_are_bounded(self) -> None:
        self.patch(__import__("dendrite_tw.client_api.uia", fromlist=["x"]), "SESSIONS_LIMIT", 5)
        self.setUp()
        for _ in range(20):
            self.check(self.web.post(REGISTER, {}), 401)
        self.assertEqual(5, len(cast(OwnProofs, self.auth._sessions)))


class WithCaptchaAndToken(ClientCase):
    client = {  # noqa: RUF012
        "registration_requires_token": True,
        "captcha": CaptchaSettings(public_key="site", private_key="secret", bypass_secret="open"),
    }

    def test_the_stages_go_in_order(self) -> None:
        self.wait(self.api.new_registration_token("welcome", 16, None, None))
        body = {"username": "alice", "password": PASSWORD}
        asked = self.check(self.web.post(REGISTER, body), 401)
        self.assertEqual([{"stages": ["m.login.recaptcha", "m.login.registration_token"]}], asked["flows"])
        self.assertEqual({"m.login.recaptcha": {"public_key": "site"}}, asked["params"])

        def attempt(**auth: Any) -> Any:
            return self.web.post(REGISTER, body | {"auth": {"session": asked["session"], **auth}})

        self.check(attempt(type="m.login.registration_token", token="welcome"), 401, "M_UNKNOWN")
        self.check(attempt(type="m.login.recaptcha", response="guessed"), 401, "M_CAPTCHA_INVALID")
        self.check(attempt(type="m.login.recaptcha"), 401, "M_CAPTCHA_NEEDED")
        passed = self.check(attempt(type="m.login.recaptcha", response="solved"), 401)
        self.assertEqual(["m.login.recaptcha"], passed["completed"])
        self.assertNotIn("errcode", passed)
        self.assertEqual([("guessed", "192.0.2.1"), ("solved", "192.0.2.1")], self.captcha.asked)
        self.check(attempt(type="m.login.recaptcha", response="again"), 401)
        self.check(attempt(type="m.login.registration_token", token="welcome"), 200)

    def test_the_bypass_and_the_page(self) -> None:
        asked = self.check(self.web.post(REGISTER, {}), 401)
        page = f"{V3}/auth/m.login.recaptcha/fallback/web"
        shown = self.web.get(f"{page}?session={asked['session']}").body
        self.assertIn(b'class="g-recaptcha" data-sitekey="site"', shown)
        self.assertIn(b"https://www.google.com/recaptcha/api.js", shown)
        form = f"session={asked['session']}&g-recaptcha-response=open".encode()
        self.assertIn(b"onAuthDone", self.web.request("POST", page, form).body)
        self.assertEqual([], self.captcha.asked)
