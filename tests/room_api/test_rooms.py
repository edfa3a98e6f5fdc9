"""Scenes in rooms: created, joined, spoken in, left; what is refused; what is seen."""

from __future__ import annotations

from typing import Any

import msgspec
from twisted.internet.defer import Deferred, gatherResults

from dendrite_tw.matrix.room_versions import ROOM_VERSIONS
from dendrite_tw.room_api.api import EventFilter, NewEvent, NewRoom
from tests.room_api.story import ALICE, BOB, CAROL, RoomStory


class CreationTests(RoomStory):
    def test_a_room_can_be_created_in_every_version(self) -> None:
        for version in ROOM_VERSIONS:
            room_id = self.create(room_version=version, name="A", topic="B", invite=[BOB])
            self.assertEqual(self.do(self.rooms.room_version(room_id)), version)
            types = [event.type for event in self.do(self.rooms.current_state(room_id, ALICE))]
            self.assertCountEqual(
                types,
                [
                    "m.room.create",
                    "m.room.member",
                    "m.room.power_levels",
                    "m.room.join_rules",
                    "m.room.history_visibility",
                    "m.room.guest_access",
                    "m.room.name",
                    "m.room.topic",
                    "m.room.member",
                ],
                version,
            )
            self.member(room_id, BOB, "join")
            self.say(room_id, BOB, f"version {version}")
            self.assertEqual(self.bodies(room_id, ALICE), [f"version {version}"])

    def test_the_newest_events_are_the_ends_of_the_history(self) -> None:
        rooms = [self.create(), self.create()]
        last = self.say(rooms[0], ALICE, "last")
        ends = self.do(self.rooms.newest_events([*rooms, "!unknown:test"]))
        self.assertEqual(ends, {rooms[0]: [last], rooms[1]: [self.told[-2].event.event_id]})

    def test_a_room_that_nobody_knows_has_no_version(self) -> None:
        self.assertIsNone(self.do(self.rooms.room_version("!none:test")))

    def test_positions_grow_and_everything_is_told_once(self) -> None:
        room_id = self.create()
        self.say(room_id, ALICE, "hello")
        positions = [output.event.position for output in self.told]
        self.assertEqual(positions, sorted(set(positions)))
        self.assertEqual(self.told[-1].event.type, "m.room.message")
        self.assertEqual(self.told[-1].joined_members, 1)
        self.assertEqual(self.do(self.rooms.position()), positions[-1])

    def test_a_public_room_needs_no_event_to_keep_guests_out(self) -> None:
        types = []
        for preset in ("public_chat", "private_chat"):
            state = self.do(self.rooms.current_state(self.create(preset=preset), ALICE))
            types.append("m.room.guest_access" in [event.type for event in state])
        self.assertEqual(types, [False, True])

    def test_presets(self) -> None:
        rules = {}
        for preset in ("private_chat", "trusted_private_chat", "public_chat"):
            room_id = self.create(preset=preset, invite=[BOB], room_version="11")
            event = self.do(self.rooms.state_event(room_id, ALICE, "m.room.join_rules", ""))
            levels = self.do(self.rooms.state_event(room_id, ALICE, "m.room.power_levels", ""))
            rules[preset] = (
                msgspec.json.decode(event.client)["content"]["join_rule"],
                msgspec.json.decode(levels.client)["content"]["users"].get(BOB),
            )
        self.assertEqual(
            rules,
            {
                "private_chat": ("invite", None),
                "trusted_private_chat": ("invite", 100),
                "public_chat": ("public", None),
            },
        )

    def test_trusted_invitees_create_with_us_in_version_12(self) -> None:
        room_id = self.create(preset="trusted_private_chat", invite=[BOB], room_version="12")
        event = self.do(self.rooms.state_event(room_id, ALICE, "m.room.create", ""))
        self.assertEqual(msgspec.json.decode(event.client)["content"]["additional_creators"], [BOB])

    def test_what_cannot_be_created(self) -> None:
        def create(**options: Any) -> Any:
            return self.rooms.create_room(NewRoom(creator=ALICE, **options))

        self.refused(create(room_version="99"), "M_UNSUPPORTED_ROOM_VERSION", 400)
        self.refused(create(preset="tea_party"), "M_INVALID_PARAM", 400)
        self.refused(create(visibility="hidden"), "M_INVALID_PARAM", 400)
        self.refused(create(invite=["bob"]), "M_INVALID_PARAM", 400)
        self.refused(create(initial_state=[{"type": "m.room.name"}]), "M_BAD_JSON", 400)
        self.refused(create(name="x" * 70000), "M_TOO_LARGE", 413)
        self.refused(create(room_alias_name="a:b"), "M_INVALID_PARAM", 400)
        self.refused(create(power_level_content_override={"users": "all"}), "M_INVALID_ROOM_STATE", 400)
        self.create(room_alias_name="taken")
        self.refused(create(room_alias_name="taken"), "M_ROOM_IN_USE", 400)
        self.assertEqual(len({output.event.room_id for output in self.told}), 1)

    def test_blocked_invitations_stop_the_creation(self) -> None:
        self.users.data[(BOB, "", "m.invite_permission_config")] = b'{"default_action":"block"}'
        self.refused(self.rooms.create_room(NewRoom(creator=ALICE, invite=[BOB])), "M_INVITE_BLOCKED", 403)


class MembershipTests(RoomStory):
    def test_the_ways_in_and_out(self) -> None:
        room_id = self.create()
        self.refused(self.change(room_id, BOB, "join"), "M_FORBIDDEN", 403)
        self.member(room_id, ALICE, "invite", BOB)
        self.refused(self.change(room_id, BOB, "invite", CAROL), "M_FORBIDDEN", 403)
        self.member(room_id, BOB, "join")
        self.member(room_id, BOB, "join")
        self.refused(self.change(room_id, BOB, "kick", ALICE), "M_FORBIDDEN", 403)
        self.member(room_id, ALICE, "kick", BOB, reason="noise")
        self.refused(self.change(room_id, ALICE, "kick", BOB), "M_FORBIDDEN", 403)
        self.member(room_id, ALICE, "ban", BOB)
        self.refused(self.change(room_id, ALICE, "invite", BOB), "M_FORBIDDEN", 403)
        self.member(room_id, ALICE, "unban", BOB)
        self.refused(self.change(room_id, ALICE, "unban", BOB), "M_FORBIDDEN", 403)
        self.refused(self.rooms.forget(ALICE, room_id), "M_UNKNOWN", 400)
        self.do(self.rooms.forget(BOB, room_id))
        self.assertTrue(self.do(self.rooms.membership(room_id, BOB)).forgotten)
        self.refused(self.change("!nowhere:test", BOB, "join"), "M_NOT_FOUND", 404)
        self.refused(self.change("nowhere", BOB, "join"), "M_INVALID_PARAM", 400)

    def test_an_invitation_can_be_turned_down(self) -> None:
        room_id = self.create(invite=[BOB])
        self.member(room_id, BOB, "leave")
        self.assertEqual(self.do(self.rooms.membership(room_id, BOB)).membership, "leave")

    def test_knocking(self) -> None:
        room_id = self.create(initial_state=[{"type": "m.room.join_rules", "content": {"join_rule": "knock"}}])
        self.member(room_id, BOB, "knock", reason="please")
        self.member(room_id, ALICE, "invite", BOB)
        self.member(room_id, BOB, "join")
        self.refused(self.change(self.create(room_version="6"), BOB, "knock"), "M_FORBIDDEN", 403)

    def test_restricted_rooms_let_in_the_members_of_others(self) -> None:
        space = self.create(preset="public_chat")
        rule = {"join_rule": "restricted", "allow": [{"type": "m.room_membership", "room_id": space}]}
        room_id = self.create(initial_state=[{"type": "m.room.join_rules", "content": rule}])
        self.refused(self.change(room_id, BOB, "join"), "M_FORBIDDEN", 403)
        self.member(space, BOB, "join")
        self.member(room_id, BOB, "join")
        event = self.do(self.rooms.state_event(room_id, ALICE, "m.room.member", BOB))
        self.assertEqual(msgspec.json.decode(event.client)["content"]["join_authorised_via_users_server"], ALICE)

    def test_guests_come_in_where_they_may(self) -> None:
        closed = self.create(preset="public_chat")
        self.refused(self.change(closed, "@1:test", "join", is_guest=True), "M_GUEST_ACCESS_FORBIDDEN", 403)
        rules = [{"type": "m.room.guest_access", "content": {"guest_access": "can_join"}}]
        self.member(self.create(preset="public_chat", initial_state=rules), "@1:test", "join", is_guest=True)

    def test_a_new_profile_is_shown_in_every_room(self) -> None:
        first, second = self.create(), self.create()
        self.do(self.rooms.update_profile(ALICE, {"displayname": "Alice"}))
        for room_id in (first, second):
            event = self.do(self.rooms.state_event(room_id, ALICE, "m.room.member", ALICE))
            self.assertEqual(
                msgspec.json.decode(event.client)["content"], {"membership": "join", "displayname": "Alice"}
            )
            self.assertEqual(event.prev_content, b'{"membership":"join"}')

    def test_counts_follow_the_members(self) -> None:
        room_id = self.create(preset="public_chat")
        self.member(room_id, BOB, "join")
        self.assertEqual((self.told[-1].joined_members, self.told[-1].local_members), (2, 2))
        self.member(room_id, BOB, "leave")
        self.assertEqual(self.told[-1].joined_members, 1)
        self.assertEqual(self.do(self.rooms.joined_users(room_id)), [ALICE])
        self.assertEqual(self.do(self.rooms.shares_room(ALICE, [BOB, CAROL])), [])


class SendingTests(RoomStory):
    def test_a_transaction_makes_one_event(self) -> None:
        room_id = self.create()
        first = self.say(room_id, ALICE, "once", device_id="D", transaction_id="1")
        self.assertEqual(self.say(room_id, ALICE, "once", device_id="D", transaction_id="1"), first)
        self.assertNotEqual(self.say(room_id, ALICE, "once", device_id="E", transaction_id="1"), first)
        self.assertEqual(self.bodies(room_id, ALICE), ["once", "once"])

    def test_the_same_state_again_changes_nothing(self) -> None:
        room_id = self.create()
        first = self.set_state(room_id, ALICE, "m.room.name", {"name": "A"})
        self.assertEqual(self.set_state(room_id, ALICE, "m.room.name", {"name": "A"}), first)
        second = self.set_state(room_id, ALICE, "m.room.name", {"name": "B"})
        event = self.do(self.rooms.state_event(room_id, ALICE, "m.room.name", ""))
        self.assertEqual((event.event_id, event.replaces, event.prev_content), (second, first, b'{"name":"A"}'))

    def test_refusals(self) -> None:
        room_id = self.create(preset="public_chat")

        def send(sender: str, type: str, content: dict[str, Any], state_key: str | None = None) -> Any:
            return self.rooms.send(
                NewEvent(room_id=room_id, sender=sender, type=type, content=content, state_key=state_key)
            )

        self.refused(send(BOB, "m.room.message", {}), "M_FORBIDDEN", 403)
        self.member(room_id, BOB, "join")
        self.refused(send(BOB, "m.room.name", {"name": "x"}, ""), "M_FORBIDDEN", 403)
        self.refused(send(ALICE, "m.room.message", {"body": "x" * 70000}), "M_TOO_LARGE", 413)
        self.refused(send(ALICE, "m.room.message", {"number": 1.5}), "M_BAD_JSON", 400)
        self.refused(send(ALICE, "m.room.message", {"number": 2**60}), "M_BAD_JSON", 400)
        self.refused(send(ALICE, "t" * 300, {}), "M_TOO_LARGE", 413)
        self.refused(send(ALICE, "m.room.create", {}, ""), "M_FORBIDDEN", 403)
        self.refused(send(ALICE, "x", {}, BOB), "M_FORBIDDEN", 403)
        self.refused(send(ALICE, "m.room.canonical_alias", {"alias": "#no:test"}, ""), "M_BAD_ALIAS", 400)
        self.assertEqual(self.told[-1].event.sender, BOB)

    def test_many_at_once_keep_their_order(self) -> None:
        room_id = self.create()
        sent = gatherResults(
            [
                Deferred.fromCoroutine(
                    self.rooms.send(
                        NewEvent(room_id=room_id, sender=ALICE, type="m.room.message", content={"body": str(number)})
                    )
                )
                for number in range(100)
            ]
        )
        self.assertEqual(len(set(self.successResultOf(sent))), 100)
        self.assertEqual(self.bodies(room_id, ALICE, "f"), [str(number) for number in range(100)])

    def test_redaction_empties_an_event(self) -> None:
        room_id = self.create(preset="public_chat")
        self.member(room_id, BOB, "join")
        said = self.say(room_id, ALICE, "secret")

        def redact(sender: str) -> Any:
            return self.rooms.send(
                NewEvent(room_id=room_id, sender=sender, type="m.room.redaction", content={}, redacts=said)
            )

        self.member(room_id, CAROL, "join")
        self.do(redact(ALICE))
        event = self.do(self.rooms.event(room_id, BOB, said))
        self.assertEqual(msgspec.json.decode(event.client)["content"], {})
        self.assertEqual(msgspec.json.decode(event.redacted_by)["redacts"], said)
        self.assertEqual(self.told[-1].redacts, said)

    def test_a_restart_goes_on_where_it_was(self) -> None:
        room_id = self.create(preset="public_chat")
        self.say(room_id, ALICE, "before")
        position = self.do(self.rooms.position())
        self.rooms = self.component(self.database)
        self.assertEqual(self.do(self.rooms.position()), position)
        self.member(room_id, BOB, "join")
        self.say(room_id, BOB, "after")
        self.assertEqual(self.bodies(room_id, ALICE, "f"), ["before", "after"])
        self.assertGreater(self.told[-1].event.position, position)
        self.assertEqual(self.told[-1].joined_members, 2)


class ReadingTests(RoomStory):
    def test_pages_go_both_ways_without_gap_or_repetition(self) -> None:
        room_id = self.create()
        for number in range(25):
            self.say(room_id, ALICE, str(number))
        for direction in ("b", "f"):
            seen: list[str] = []
            token = None
            for _ in range(30):
                page = self.do(self.page(room_id, ALICE, direction, from_token=token, limit=4))
                seen += [event.event_id for event in page.events]
                token = page.end
                if token is None:
                    break
            self.assertIsNone(token)
            self.assertEqual(len(seen), len(set(seen)))
            self.assertEqual(len(seen), len(self.told))

    def test_a_sync_token_starts_a_page(self) -> None:
        room_id = self.create()
        self.say(room_id, ALICE, "one")
        token = f"s{self.do(self.rooms.position())}_0"
        self.say(room_id, ALICE, "two")
        self.assertEqual(self.bodies(room_id, ALICE, "b", from_token=token), ["one"])
        self.assertEqual(self.bodies(room_id, ALICE, "f", from_token=token), ["two"])
        self.refused(self.page(room_id, ALICE, "b", from_token="x"), "M_INVALID_PARAM", 400)
        self.refused(self.page(room_id, ALICE, "sideways"), "M_INVALID_PARAM", 400)

    def test_filters_choose(self) -> None:
        room_id = self.create()
        for number in range(10):
            self.say(room_id, ALICE, str(number))
            self.set_state(room_id, ALICE, "m.room.name", {"name": str(number)})
        only_names = EventFilter(types=["m.room.n*"])
        page = self.do(self.page(room_id, ALICE, filter=only_names, limit=5))
        self.assertEqual({event.type for event in page.events}, {"m.room.name"})
        self.assertEqual(len(page.events), 5)

    def test_history_visibility(self) -> None:
        expected = {
            "shared": ["hello", "hello Bob", "inside"],
            "invited": ["hello Bob", "inside"],
            "joined": ["inside"],
            "world_readable": ["hello", "hello Bob", "inside"],
        }
        for visibility, bodies in expected.items():
            rule = {"type": "m.room.history_visibility", "content": {"history_visibility": visibility}}
            room_id = self.create(initial_state=[rule])
            self.say(room_id, ALICE, "hello")
            if visibility == "world_readable":
                self.assertEqual(self.bodies(room_id, CAROL, "f"), ["hello"])
            else:
                self.refused(self.page(room_id, CAROL), "M_FORBIDDEN", 403)
            self.member(room_id, ALICE, "invite", BOB)
            self.say(room_id, ALICE, "hello Bob")
            self.member(room_id, BOB, "join")
            self.say(room_id, ALICE, "inside")
            self.member(room_id, BOB, "leave")
            last = self.say(room_id, ALICE, "gone")
            if visibility != "world_readable":
                self.assertEqual(self.bodies(room_id, BOB, "f"), bodies, visibility)
                self.refused(self.rooms.event(room_id, BOB, last), "M_NOT_FOUND", 404)

    def test_state_is_that_of_leaving(self) -> None:
        room_id = self.create(preset="public_chat", name="old")
        self.member(room_id, BOB, "join")
        self.member(room_id, BOB, "leave")
        self.set_state(room_id, ALICE, "m.room.name", {"name": "new"})
        seen = self.do(self.rooms.state_event(room_id, BOB, "m.room.name", ""))
        self.assertIn(b"old", seen.client)
        self.refused(self.rooms.joined_members(room_id, BOB), "M_FORBIDDEN", 403)
        self.refused(self.rooms.current_state(room_id, CAROL), "M_FORBIDDEN", 403)
        self.refused(self.rooms.state_event(room_id, ALICE, "m.none", ""), "M_NOT_FOUND", 404)

    def test_a_page_on_from_the_newest_event_leads_further(self) -> None:
        room_id = self.create(preset="public_chat")
        self.member(room_id, BOB, "join")
        first = self.say(room_id, ALICE, "1")
        page = self.do(self.page(room_id, ALICE, "f", limit=100))
        self.assertEqual(page.events[-1].event_id, first)
        self.assertIsNone(self.do(self.page(room_id, ALICE, "f", limit=10, from_token=page.end)).end)
        self.say(room_id, ALICE, "2")
        self.assertEqual(self.bodies(room_id, ALICE, "f", from_token=page.end), ["2"])
        self.assertIsNone(self.do(self.page(room_id, ALICE, "f", limit=100, to_token=page.end)).end)
        self.member(room_id, BOB, "leave")
        self.assertIsNone(self.do(self.page(room_id, BOB, "f", limit=100)).end)

    def test_context_is_for_members(self) -> None:
        room_id = self.create(preset="public_chat")
        event_id = self.say(room_id, ALICE, "1")
        self.refused(self.rooms.context(room_id, BOB, event_id, 4, None, False), "M_FORBIDDEN")
        self.refused(self.rooms.context("!none:test", BOB, event_id, 4, None, False), "M_FORBIDDEN")
        self.refused(self.rooms.context(room_id, ALICE, "$none", 4, None, False), "M_NOT_FOUND")

    def test_the_directory_in_pages(self) -> None:
        rooms = {self.create(visibility="public") for _ in range(5)}
        seen: list[str] = []
        since = None
        for number in range(3):
            page, since, previous, total = self.do(self.rooms.public_rooms(2, since, None, None))
            self.assertEqual((total, previous is None), (5, number == 0))
            seen += [room.room_id for room in page]
        self.assertIsNone(since)
        self.assertEqual((len(seen), set(seen)), (5, rooms))
        for token in ("", "2", "r", "r-1", "rx", "r" + "9" * 20):
            self.refused(self.rooms.public_rooms(2, token, None, None), "M_INVALID_PARAM")

    def test_context_lies_around_its_event(self) -> None:
        room_id = self.create()
        ids = [self.say(room_id, ALICE, str(number)) for number in range(9)]
        context = self.do(self.rooms.context(room_id, ALICE, ids[4], 4, None, True))
        self.assertEqual([event.event_id for event in context.events_before], [ids[3], ids[2]])
        self.assertEqual([event.event_id for event in context.events_after], [ids[5], ids[6]])
        self.assertEqual(
            [e.event_id for e in context.state if e.type == "m.room.member"], [self.told[1].event.event_id]
        )
        older = self.do(self.page(room_id, ALICE, "b", from_token=context.start, limit=1))
        self.assertEqual([event.event_id for event in older.events], [ids[1]])
        newer = self.do(self.page(room_id, ALICE, "f", from_token=context.end, limit=1))
        self.assertEqual([event.event_id for event in newer.events], [ids[7]])

    def test_the_view_and_the_timeline(self) -> None:
        room_id = self.create()
        start = self.do(self.rooms.position())
        ids = [self.say(room_id, ALICE, str(number)) for number in range(6)]
        view = self.do(self.rooms.room_view(room_id, 4))
        self.assertEqual([event.event_id for event in view.timeline], ids[2:])
        self.assertFalse(view.complete)
        self.assertEqual(view.position, self.told[-1].event.position)
        found = self.do(self.rooms.timeline(room_id, start, view.position, 10, None))
        self.assertEqual(([event.event_id for event in found.events], found.more), (ids, False))
        found = self.do(self.rooms.timeline(room_id, start, view.position, 2, None))
        self.assertEqual(([event.event_id for event in found.events], found.more), (ids[4:], True))

    def test_state_at_a_position(self) -> None:
        room_id = self.create(name="one")
        position = self.do(self.rooms.position())
        self.set_state(room_id, ALICE, "m.room.name", {"name": "two"})
        names = [e.client for e in self.do(self.rooms.state_at(room_id, position)) if e.type == "m.room.name"]
        self.assertIn(b"one", names[0])
        newest = self.do(self.rooms.position())
        names = [e.client for e in self.do(self.rooms.state_at(room_id, newest)) if e.type == "m.room.name"]
        self.assertIn(b"two", names[0])

    def test_events_by_time(self) -> None:
        room_id = self.create()
        self.memory.clock.advance(10)
        said = self.say(room_id, ALICE, "now")
        ts = self.memory.world.clock.now_ms()
        self.assertEqual(self.do(self.rooms.timestamp_to_event(room_id, ALICE, ts - 5000, "f")), (said, ts))
        self.assertEqual(self.do(self.rooms.timestamp_to_event(room_id, ALICE, ts + 5000, "b")), (said, ts))
        self.refused(self.rooms.timestamp_to_event(room_id, ALICE, ts + 5000, "f"), "M_NOT_FOUND", 404)
