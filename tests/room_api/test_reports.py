"""What is reported, by whom, and what administrators are shown of it."""

from __future__ import annotations

from typing import Any

import msgspec

from dendrite_tw.room_api import reports
from tests.room_api.story import ALICE, BOB, CAROL, RoomStory


class ReportTests(RoomStory):
    def listed(self, kind: str = "", **chosen: Any) -> Any:
        given: dict[str, Any] = {"reporter": None, "room_id": None, "start": 0, "limit": 10, "newest_first": True}
        found, total = self.do(self.rooms.reports(kind, **{**given, **chosen}))
        return found, total

    def test_an_event_is_reported_by_those_in_the_room(self) -> None:
        room_id = self.create(preset="public_chat", name="Den", room_alias_name="den")
        said = self.say(room_id, ALICE, "rude")
        self.refused(self.rooms.report(BOB, room_id, said, "rude", None), "M_NOT_FOUND", 404)
        self.member(room_id, BOB, "join")
        self.do(self.rooms.report(BOB, room_id, said, None, -50))
        other = self.create()
        self.refused(self.rooms.report(ALICE, other, said, "", None), "M_NOT_FOUND", 404)
        self.refused(self.rooms.report(BOB, room_id, "$none", "", None), "M_NOT_FOUND", 404)
        self.refused(self.rooms.report(BOB, "!none:test", said, "", None), "M_NOT_FOUND", 404)
        (report,), total = self.listed("event")
        shown = (report.reporter, report.event_id, report.sender, report.name, report.canonical_alias, report.score)
        self.assertEqual((shown, total), ((BOB, said, ALICE, "Den", "#den:test", -50), 1))
        details = self.do(self.rooms.report_details(report.report_id))
        self.assertEqual(msgspec.json.decode(details.event)["content"]["body"], "rude")

    def test_rooms_and_users_are_reported_by_anybody(self) -> None:
        room_id = self.create()
        self.users.accounts = {ALICE: 1}
        self.do(self.rooms.report(CAROL, room_id, None, "", None))
        self.refused(self.rooms.report(CAROL, "!none:test", None, "", None), "M_NOT_FOUND", 404)
        self.do(self.rooms.report_user(CAROL, ALICE, "x\0y"))
        self.refused(self.rooms.report_user(CAROL, "@none:test", ""), "M_NOT_FOUND", 404)
        self.refused(self.rooms.report_user(CAROL, "@none:elsewhere", ""), "M_NOT_FOUND", 404)
        self.refused(self.rooms.report_user(CAROL, "alice", ""), "M_INVALID_PARAM", 400)
        self.member(room_id, ALICE, "ban", "@known:elsewhere")
        self.do(self.rooms.report_user(CAROL, "@known:elsewhere", ""))
        found, total = self.listed("user")
        self.assertEqual(([report.user_id for report in found], total), (["@known:elsewhere", ALICE], 2))
        self.assertEqual(found[1].reason, "xy")
        self.assertEqual([report.room_id for report in self.listed("room")[0]], [room_id])
        self.assertEqual(self.listed("event"), ([], 0))

    def test_pages_and_choices(self) -> None:
        rooms = [self.create() for _ in range(3)]
        for user in (ALICE, BOB):
            for room_id in rooms:
                self.do(self.rooms.report(user, room_id, None, "", None))
        found, total = self.listed(limit=4)
        self.assertEqual(([report.report_id for report in found], total), ([6, 5, 4, 3], 6))
        self.assertEqual([report.report_id for report in self.listed(start=4)[0]], [2, 1])
        self.assertEqual([report.report_id for report in self.listed(newest_first=False, limit=2)[0]], [1, 2])
        self.assertEqual([report.report_id for report in self.listed(reporter=BOB, room_id=rooms[1])[0]], [5])
        self.do(self.rooms.delete_report(5))
        self.refused(self.rooms.delete_report(5), "M_NOT_FOUND", 404)
        self.refused(self.rooms.report_details(5), "M_NOT_FOUND", 404)
        self.assertEqual(self.listed()[1], 5)

    def test_reports_outlive_their_room(self) -> None:
        room_id = self.create()
        said = self.say(room_id, ALICE, "rude")
        self.do(self.rooms.report(ALICE, room_id, said, "", None))
        self.do(self.rooms.purge_room(room_id))
        (report,), _ = self.listed("event")
        self.assertEqual((report.room_id, report.event_id, report.sender), (room_id, said, None))
        self.assertIsNone(self.do(self.rooms.report_details(report.report_id)).event)

    def test_limits(self) -> None:
        room_id = self.create()
        self.patch(reports, "REPORTS_OF_A_USER", 2)
        self.refused(self.rooms.report(BOB, room_id, None, "x" * 4001, None), "M_INVALID_PARAM", 400)
        for _ in range(2):
            self.do(self.rooms.report(BOB, room_id, None, "", None))
        self.refused(self.rooms.report(BOB, room_id, None, "", None), "M_LIMIT_EXCEEDED", 429)
        self.do(self.rooms.report(CAROL, room_id, None, "", None))
