"""Profiles of users of other servers: asked for, remembered for a while, believed as far as they make sense."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from dendrite_tw.federation_api.api import RemoteRefused, Unreachable
from dendrite_tw.user_api import remote_profiles
from dendrite_tw.user_api.remote_profiles import KEPT_SECONDS, QUERY_PATH
from tests.user_api.harness import UsersCase

EVE = "@eve:far"


class RemoteProfileTests(UsersCase):
    def setUp(self) -> None:
        super().setUp()
        self.federation = self.users.federation
        self.answer({"displayname": "Eve", "avatar_url": "mxc://far/a", "m.tz": "Europe/Paris", "com.x.y": [1]})

    def answer(self, answer: Any) -> None:
        self.federation.answers["far", QUERY_PATH] = answer

    def queries(self) -> list[dict[str, str]]:
        """The fields of the requests since the last time."""
        asked, self.federation.asked = self.federation.asked, []
        return [dict(request.query) for request in asked]

    def fields(self, field: str | None = None, user_id: str = EVE) -> Any:
        return self.wait(self.api.profile_fields(user_id, field))

    def test_all_fields_and_those_that_rooms_show(self) -> None:
        self.assertEqual(self.fields()["com.x.y"], [1])
        shown = self.wait(self.api.profile(EVE))
        self.assertEqual(shown, {"displayname": "Eve", "avatar_url": "mxc://far/a"})
        self.assertEqual(self.queries(), [{"user_id": EVE}])

    def test_one_field_is_asked_for_alone(self) -> None:
        self.answer(lambda request: {dict(request.query)["field"]: "x", "more": "y"})
        self.assertEqual(self.fields("m.tz"), {"m.tz": "x"})
        self.assertEqual(self.fields("displayname"), {"displayname": "x"})
        self.assertEqual(self.fields("m.tz"), {"m.tz": "x"})
        self.assertEqual(self.queries(), [{"user_id": EVE, "field": name} for name in ("m.tz", "displayname")])

    def test_a_whole_profile_answers_for_its_fields(self) -> None:
        self.fields()
        self.assertEqual((self.fields("m.tz"), self.fields("x.y")), ({"m.tz": "Europe/Paris"}, {}))
        self.assertEqual(len(self.queries()), 1)

    def test_it_is_remembered_for_a_while(self) -> None:
        for seconds in (0, KEPT_SECONDS - 1, 2):
            self.users.clock.advance(seconds)
            self.fields()
        self.assertEqual(len(self.queries()), 2)

    def test_that_there_is_no_user_is_remembered_too(self) -> None:
        self.answer(RemoteRefused(404, "M_NOT_FOUND", "who?"))
        self.assertEqual((self.fields(), self.fields(), self.wait(self.api.profile(EVE))), (None, None, {}))
        self.assertEqual(len(self.queries()), 1)

    def test_what_the_server_refuses_is_passed_on(self) -> None:
        for answer, status, errcode in (
            (RemoteRefused(403, "M_FORBIDDEN", "private"), 403, "M_FORBIDDEN"),
            (RemoteRefused(500, "M_UNKNOWN", "oh"), 502, "M_UNKNOWN"),
            (RemoteRefused(401, "M_UNAUTHORIZED", "bad"), 502, "M_UNKNOWN"),
            (Unreachable("gone"), 502, "M_UNKNOWN"),
        ):
            self.answer(answer)
            error = self.refused(self.api.profile_fields(EVE))
            self.assertEqual((error.status, error.errcode), (status, errcode))
            self.assertEqual(self.wait(self.api.profile(EVE)), {})

    def test_strange_answers_are_cut_to_what_there_can_be(self) -> None:
        self.answer(
            {"displayname": 7, "avatar_url": None, "m.tz": {}, "Bad name": 1, "x" * 300: 1, "ok": None, "a.b": {}}
        )
        self.assertEqual(self.fields(), {"a.b": {}})
        self.answer({"displayname": "x" * 5000, "big": "x" * 70_000})
        self.assertEqual(self.fields(user_id="@fay:far"), {"displayname": "x" * 1000})

    def test_names_that_are_none_are_not_asked_for(self) -> None:
        self.assertEqual(self.fields(user_id="eve"), None)
        self.assertEqual(self.refused(self.api.profile_fields(EVE, "Bad name")).status, 400)
        self.assertEqual(self.queries(), [])

    def test_only_so_many_at_a_time(self) -> None:
        self.patch(remote_profiles, "REQUESTS_AT_ONCE", 3)
        self.federation.hold(QUERY_PATH)
        asked = [Deferred.fromCoroutine(self.api.profile_fields(f"@u{number}:far")) for number in range(3)]
        error = self.refused(self.api.profile_fields(EVE))
        self.assertEqual((error.status, error.errcode), (429, "M_LIMIT_EXCEEDED"))
        self.federation.release(QUERY_PATH)
        self.assertEqual([self.successResultOf(one)["displayname"] for one in asked], ["Eve"] * 3)
        self.assertEqual(self.fields()["displayname"], "Eve")

    def test_local_profiles_are_not_asked_for(self) -> None:
        self.make("alice")
        self.wait(self.api.set_profile_field("@alice:test", "displayname", "Alice"))
        self.wait(self.api.set_profile_field("@alice:test", "m.tz", "UTC"))
        self.assertEqual(self.fields(user_id="@alice:test"), {"displayname": "Alice", "m.tz": "UTC"})
        self.assertEqual(self.fields("m.tz", "@alice:test"), {"m.tz": "UTC"})
        self.assertEqual((self.fields("x.y", "@alice:test"), self.fields(user_id="@bob:test")), ({}, None))
        self.assertEqual(self.queries(), [])
