"""Proofs on their way, as several processes share them."""

from __future__ import annotations

import msgspec

from dendrite_tw.user_api.api import UIASession
from dendrite_tw.user_api.tables import uia_sessions as table
from dendrite_tw.user_api.uia_sessions import MAKE_ROOM_EVERY
from tests.harness import ask
from tests.user_api.harness import UsersCase


class UIASessionTests(UsersCase):
    def session(self, id: str = "one", lives_ms: int = 60_000, **more: object) -> UIASession:
        expires_ts = int(self.users.clock.seconds() * 1000) + lives_ms
        session = UIASession(
            id=id, purpose="POST /x", user_id=None, flows=[["a", "b"], ["c"]], params={"c": {}}, expires_ts=expires_ts
        )
        return msgspec.structs.replace(session, **more)

    def test_what_is_stored_is_found_as_it_was(self) -> None:
        session = self.session(user_id="@alice:test", completed={"a": "yes"})
        self.wait(self.api.put_uia_session(session))
        self.assertEqual(session, self.wait(self.api.uia_session("one")))
        self.assertIsNone(self.wait(self.api.uia_session("two")))

    def test_a_stage_that_is_passed_takes_the_place_of_what_was_stored(self) -> None:
        self.wait(self.api.put_uia_session(self.session()))
        later = self.session(completed={"c": ""})
        self.wait(self.api.put_uia_session(later))
        self.assertEqual(later, self.wait(self.api.uia_session("one")))

    def test_it_ends_once(self) -> None:
        self.wait(self.api.put_uia_session(self.session()))
        self.assertEqual([True, False], [self.wait(self.api.end_uia_session("one")) for _ in range(2)])
        self.assertIsNone(self.wait(self.api.uia_session("one")))

    def test_what_has_expired_is_not_there_and_goes_away(self) -> None:
        self.wait(self.api.put_uia_session(self.session()))
        self.users.clock.advance(60)
        self.assertIsNone(self.wait(self.api.uia_session("one")))
        for number in range(MAKE_ROOM_EVERY):
            self.wait(self.api.put_uia_session(self.session(f"later {number}")))
        self.assertEqual([(MAKE_ROOM_EVERY,)], ask(self.users.database, "SELECT COUNT(*) FROM uia_sessions"))

    def test_beyond_the_limit_those_go_that_expire_first(self) -> None:
        self.patch(table, "SESSIONS_LIMIT", 3)
        for number in range(MAKE_ROOM_EVERY + 1):
            self.wait(self.api.put_uia_session(self.session(f"{number}", 1000 + number)))
        rows = ask(self.users.database, "SELECT id FROM uia_sessions ORDER BY expires_ts")
        self.assertEqual([("98",), ("99",), ("100",)], rows)

    def test_one_that_is_too_large_is_refused(self) -> None:
        refused = self.refused(self.api.put_uia_session(self.session(completed={"a": "x" * 20_000})))
        self.assertEqual((413, "M_TOO_LARGE"), (refused.status, refused.errcode))
