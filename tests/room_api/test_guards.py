"""What the server holds users to beyond the authorisation rules, and what a writer holds itself to."""

from __future__ import annotations

from typing import Any

import msgspec
from twisted.internet.defer import CancelledError, Deferred

from dendrite_tw.room_api.api import NewEvent, NewRoom
from tests.room_api.story import ALICE, BOB, CAROL, RoomStory


def content_of(event: Any) -> Any:
    return msgspec.json.decode(event.client)["content"]


class MembershipGuards(RoomStory):
    def restricted(self) -> str:
        space = self.create(preset="public_chat")
        rule = {"join_rule": "restricted", "allow": [{"type": "m.room_membership", "room_id": space}]}
        return self.create(initial_state=[{"type": "m.room.join_rules", "content": rule}])

    def put(self, room_id: str, sender: str, target: str, content: dict[str, Any], **options: Any) -> Any:
        return self.rooms.send(
            NewEvent(room_id=room_id, sender=sender, type="m.room.member", content=content, state_key=target, **options)
        )

    def test_nobody_vouches_for_themselves(self) -> None:
        room_id = self.restricted()
        forged = {"membership": "join", "join_authorised_via_users_server": ALICE}
        self.refused(self.put(room_id, BOB, BOB, forged), "M_FORBIDDEN", 403)
        self.refused(self.change(room_id, BOB, "join", content=forged), "M_FORBIDDEN", 403)
        self.member(room_id, ALICE, "invite", BOB)
        self.do(self.put(room_id, BOB, BOB, forged | {"membership": "join"}))
        event = self.do(self.rooms.state_event(room_id, ALICE, "m.room.member", BOB))
        self.assertEqual(content_of(event), {"membership": "join"})

    def test_who_vouches_for_a_join(self) -> None:
        cases: list[tuple[dict[str, Any], str | None]] = [
            ({"users": {ALICE: 100}}, ALICE),
            ({"users": {ALICE: 0}, "invite": 50, "users_default": 0, "events_default": 0}, None),
            ({"users": {ALICE: 10, CAROL: 50}, "invite": 50}, CAROL),
            ({"users": {ALICE: 0}, "users_default": 50, "invite": 50}, CAROL),
        ]
        for levels, voucher in cases:
            space = self.create(preset="public_chat")
            self.member(space, BOB, "join")
            allow = [{"type": "m.room_membership", "room_id": space}]
            room_id = self.create(room_version="11", invite=[CAROL])
            self.member(room_id, CAROL, "join")
            self.set_state(room_id, ALICE, "m.room.join_rules", {"join_rule": "restricted", "allow": allow})
            self.set_state(room_id, ALICE, "m.room.power_levels", levels)
            if voucher is None:
                self.refused(self.change(room_id, BOB, "join"), "M_UNABLE_TO_GRANT_JOIN", 400)
            else:
                self.member(room_id, BOB, "join")
                member = self.content(room_id, "m.room.member", BOB)
                self.assertEqual(member["join_authorised_via_users_server"], voucher)

    def test_guests_do_not_come_in_by_the_state(self) -> None:
        room_id = self.create(preset="public_chat")
        joining = {"membership": "join"}
        self.refused(self.put(room_id, BOB, BOB, joining, is_guest=True), "M_GUEST_ACCESS_FORBIDDEN", 403)
        self.do(self.put(room_id, BOB, BOB, joining))

    def test_blocked_invitations_are_blocked_on_every_way(self) -> None:
        self.users.data[(BOB, "", "m.invite_permission_config")] = b'{"default_action":"block"}'
        room_id = self.create()
        self.refused(self.put(room_id, ALICE, BOB, {"membership": "invite"}), "M_INVITE_BLOCKED", 403)
        self.refused(self.change(room_id, ALICE, "invite", BOB), "M_INVITE_BLOCKED", 403)
        state = [{"type": "m.room.member", "state_key": BOB, "content": {"membership": "invite"}}]
        self.refused(self.rooms.create_room(NewRoom(creator=ALICE, initial_state=state)), "M_INVITE_BLOCKED", 403)

    def test_a_join_takes_further_content_along(self) -> None:
        room_id = self.create(preset="public_chat")
        self.member(room_id, BOB, "join", content={"foo": "bar", "membership": "ban"}, profile={"displayname": "Bob"})
        event = self.do(self.rooms.state_event(room_id, ALICE, "m.room.member", BOB))
        self.assertEqual(content_of(event), {"displayname": "Bob", "foo": "bar", "membership": "join"})

    def test_leaving_twice_is_leaving_once(self) -> None:
        room_id = self.create(preset="public_chat")
        self.refused(self.change(room_id, BOB, "leave"), "M_NOT_FOUND", 404)
        self.member(room_id, BOB, "join")
        self.member(room_id, BOB, "leave")
        told = len(self.told)
        self.member(room_id, BOB, "leave", reason="again")
        self.assertEqual(len(self.told), told)
        self.member(room_id, ALICE, "ban", BOB)
        self.refused(self.change(room_id, BOB, "leave"), "M_FORBIDDEN", 403)

    def test_who_is_banned_is_not_shown_the_state(self) -> None:
        room_id = self.create(preset="public_chat")
        self.member(room_id, BOB, "join")
        self.do(self.rooms.current_state(room_id, BOB))
        self.member(room_id, ALICE, "ban", BOB)
        for question in (
            self.rooms.current_state(room_id, BOB),
            self.rooms.state_event(room_id, BOB, "m.room.member", BOB),
            self.rooms.members(room_id, BOB, None, None, None),
        ):
            self.refused(question, "M_FORBIDDEN", 403)
        self.set_state(room_id, ALICE, "m.room.history_visibility", {"history_visibility": "world_readable"})
        self.assertTrue(self.do(self.rooms.current_state(room_id, BOB)))

    def test_historical_user_ids_can_be_banned(self) -> None:
        room_id = self.create()
        self.member(room_id, ALICE, "ban", "@Mr Smith:example.org")
        self.refused(self.change(room_id, ALICE, "ban", "Smith"), "M_INVALID_PARAM", 400)

    def test_a_forgotten_room_shows_nothing(self) -> None:
        room_id = self.create(preset="public_chat")
        self.member(room_id, BOB, "join")
        said = self.say(room_id, ALICE, "hello")
        self.member(room_id, BOB, "leave")
        self.assertEqual(self.bodies(room_id, BOB), ["hello"])
        self.do(self.rooms.forget(BOB, room_id))
        self.refused(self.page(room_id, BOB), "M_FORBIDDEN", 403)
        self.refused(self.rooms.current_state(room_id, BOB), "M_FORBIDDEN", 403)
        self.refused(self.rooms.event(room_id, BOB, said), "M_NOT_FOUND", 404)
        self.member(room_id, BOB, "join")
        self.assertEqual(self.bodies(room_id, BOB), ["hello"])

    def test_a_profile_is_renewed_even_if_one_room_refuses(self) -> None:
        first, second = self.create(), self.create()
        self.do(self.rooms.update_profile(ALICE, {"displayname": "x" * 70000}))
        self.do(self.rooms.update_profile(ALICE, {"displayname": "Alice"}))
        for room_id in (first, second):
            event = self.do(self.rooms.state_event(room_id, ALICE, "m.room.member", ALICE))
            self.assertEqual(content_of(event)["displayname"], "Alice")


class CreationGuards(RoomStory):
    def create_with(self, **options: Any) -> Any:
        return self.rooms.create_room(NewRoom(creator=ALICE, **options))

    def test_state_that_cannot_be(self) -> None:
        def state(type: str, content: dict[str, Any], state_key: str = "") -> list[dict[str, Any]]:
            return [{"type": type, "content": content, "state_key": state_key}]

        cases: list[tuple[dict[str, Any], str]] = [
            ({"initial_state": state("m.room.create", {})}, "M_INVALID_ROOM_STATE"),
            ({"initial_state": state("m.room.member", {}, ALICE)}, "M_INVALID_ROOM_STATE"),
            ({"initial_state": state("m.room.member", {"membership": "join"}, BOB)}, "M_INVALID_ROOM_STATE"),
            ({"initial_state": state("x", {}, BOB)}, "M_INVALID_ROOM_STATE"),
            ({"initial_state": state("x", {"a": 1.5})}, "M_INVALID_ROOM_STATE"),
            ({"initial_state": state("x\0", {})}, "M_INVALID_ROOM_STATE"),
            ({"initial_state": state("m.room.power_levels", {"users": {BOB: "1"}})}, "M_INVALID_ROOM_STATE"),
            ({"initial_state": state("m.room.canonical_alias", {"alias": "#x:test"})}, "M_BAD_ALIAS"),
            ({"initial_state": state("m.room.canonical_alias", {"alias": "x"})}, "M_INVALID_PARAM"),
            ({"initial_state": [{"type": "x", "content": {}, "state_key": 1}]}, "M_BAD_JSON"),
            ({"initial_state": [{"type": 1, "content": {}}]}, "M_BAD_JSON"),
            ({"initial_state": [{"type": "x", "content": []}]}, "M_BAD_JSON"),
            ({"creation_content": {"m.federate": "no"}}, "M_BAD_JSON"),
            ({"creation_content": {"additional_creators": ["bob"]}}, "M_INVALID_ROOM_STATE"),
            ({"creation_content": {"additional_creators": "bob"}}, "M_INVALID_ROOM_STATE"),
            ({"power_level_content_override": {"users": {ALICE: 100}}}, "M_INVALID_ROOM_STATE"),
            ({"power_level_content_override": {"events": [1]}}, "M_INVALID_ROOM_STATE"),
            ({"power_level_content_override": {"ban": "50"}}, "M_INVALID_ROOM_STATE"),
            ({"power_level_content_override": {"users": {ALICE: 0}}, "room_version": "11"}, "M_INVALID_ROOM_STATE"),
            ({"power_level_content_override": {"users": {BOB: 1.5}}, "room_version": "11"}, "M_INVALID_ROOM_STATE"),
        ]
        for options, errcode in cases:
            self.refused(self.create_with(room_alias_name="den", visibility="public", **options), errcode, 400)
        self.assertEqual(self.told, [])
        rows = self.do(self.rooms.public_rooms(10, None, None, None))
        self.assertEqual(rows, ([], None, None, 0))
        self.refused(self.rooms.resolve_alias("#den:test"), "M_NOT_FOUND", 404)
        self.create(room_alias_name="den")

    def test_an_alias_and_its_room_are_stored_together(self) -> None:
        room_id = self.create(room_alias_name="den", visibility="public")
        self.assertEqual(self.do(self.rooms.resolve_alias("#den:test")).room_id, room_id)
        self.assertTrue(self.do(self.rooms.published(room_id)))
        event = self.do(self.rooms.state_event(room_id, ALICE, "m.room.canonical_alias", ""))
        self.assertEqual(content_of(event), {"alias": "#den:test"})


class SendingGuards(RoomStory):
    def redact(self, room_id: str, sender: str, target: str, **options: Any) -> Any:
        return self.rooms.send(
            NewEvent(room_id=room_id, sender=sender, type="m.room.redaction", content={}, redacts=target, **options)
        )

    def test_members_redact_what_is_theirs(self) -> None:
        room_id = self.create(preset="public_chat")
        for user in (BOB, CAROL):
            self.member(room_id, user, "join")
        said = self.say(room_id, BOB, "secret")
        self.refused(self.redact(room_id, CAROL, said), "M_FORBIDDEN", 403)
        self.do(self.redact(room_id, BOB, said))
        self.assertEqual(content_of(self.do(self.rooms.event(room_id, ALICE, said))), {})

    def test_targets_that_are_not_there(self) -> None:
        here, there = self.create(), self.create()
        said = self.say(there, ALICE, "elsewhere")
        self.refused(self.redact(here, ALICE, said), "M_INVALID_PARAM", 400)
        self.refused(self.redact(here, ALICE, "nothing"), "M_INVALID_PARAM", 400)
        self.do(self.redact(here, ALICE, "$unknown"))
        self.assertIsNone(self.told[-1].redacts)
        self.assertEqual(self.bodies(there, ALICE), ["elsewhere"])

    def test_redacted_state_is_shown_redacted(self) -> None:
        for version in ("2", "11", "12"):
            room_id = self.create(name="secret", room_version=version)
            named = self.do(self.rooms.state_event(room_id, ALICE, "m.room.name", "")).event_id
            self.do(self.redact(room_id, ALICE, named))
            self.assertEqual(content_of(self.do(self.rooms.state_event(room_id, ALICE, "m.room.name", ""))), {})
            summary = self.do(self.rooms.room_summary(room_id))
            self.assertIsNone(summary.name)
            self.set_state(room_id, ALICE, "m.room.name", {"name": "open"})
            self.assertEqual(self.told[-1].event.prev_content, b"{}")

    def test_redacted_power_levels_count_as_redacted(self) -> None:
        room_id = self.create(preset="public_chat", room_version="10", power_level_content_override={"invite": 50})
        self.member(room_id, BOB, "join")
        self.refused(self.change(room_id, BOB, "invite", CAROL), "M_FORBIDDEN", 403)
        levels = self.do(self.rooms.state_event(room_id, ALICE, "m.room.power_levels", "")).event_id
        self.do(self.redact(room_id, ALICE, levels))
        self.member(room_id, BOB, "invite", CAROL)

    def test_a_redaction_can_be_redacted_and_repeated(self) -> None:
        room_id = self.create()
        said = self.say(room_id, ALICE, "secret")
        first = self.do(
            self.rooms.send(
                NewEvent(
                    room_id=room_id,
                    sender=ALICE,
                    type="m.room.redaction",
                    content={"reason": "secret too"},
                    redacts=said,
                )
            )
        )
        self.do(self.redact(room_id, ALICE, first))
        event = self.do(self.rooms.event(room_id, ALICE, first))
        self.assertNotIn("reason", content_of(event))
        again = self.do(self.redact(room_id, ALICE, said))
        self.assertNotEqual(again, first)
        self.assertEqual(content_of(self.do(self.rooms.event(room_id, ALICE, said))), {})

    def test_what_is_never_redacted(self) -> None:
        acl = {"type": "m.room.server_acl", "content": {"allow": ["*"]}}
        room_id = self.create(initial_state=[acl])
        for type in ("m.room.create", "m.room.server_acl"):
            event_id = self.do(self.rooms.state_event(room_id, ALICE, type, "")).event_id
            self.refused(self.redact(room_id, ALICE, event_id), "M_FORBIDDEN", 403)

    def test_a_transaction_belongs_to_a_room(self) -> None:
        here, there = self.create(), self.create()
        options = {"device_id": "D", "transaction_id": "1"}
        ids = {self.say(room_id, ALICE, "x", **options) for room_id in (here, there, here)}
        self.assertEqual(len(ids), 2)
        said = self.say(here, ALICE, "y")
        first = self.do(self.redact(here, ALICE, said, **options))
        self.assertEqual(self.do(self.redact(here, ALICE, said, **options)), first)
        self.refused(self.redact(here, ALICE, said, device_id="D", transaction_id="\0"), "M_INVALID_PARAM", 400)

    def test_an_event_is_annotated_once_by_each(self) -> None:
        room_id = self.create(preset="public_chat")
        self.member(room_id, BOB, "join")
        said = self.say(room_id, ALICE, "hello")

        def react(sender: str, key: str, type: str = "m.reaction") -> Any:
            relation = {"rel_type": "m.annotation", "event_id": said, "key": key}
            event = NewEvent(room_id=room_id, sender=sender, type=type, content={"m.relates_to": relation})
            return self.rooms.send(event)

        reaction = self.do(react(ALICE, "a"))
        self.refused(react(ALICE, "a"), "M_DUPLICATE_ANNOTATION", 400)
        for sender, key, type in ((BOB, "a", "m.reaction"), (ALICE, "b", "m.reaction"), (ALICE, "a", "x.reaction")):
            self.do(react(sender, key, type))
        self.do(self.redact(room_id, ALICE, reaction))
        self.do(react(ALICE, "a"))

    def test_what_no_room_takes(self) -> None:
        room_id = self.create(preset="public_chat")
        self.member(room_id, BOB, "join")

        def put(sender: str, type: str, content: dict[str, Any], key: str = "") -> Any:
            event = NewEvent(room_id=room_id, sender=sender, type=type, content=content, state_key=key)
            return self.rooms.send(event)

        levels: list[dict[str, Any]] = [{"users": {ALICE: 100}}, {"users": []}, {"ban": "50"}, {"users": {"bob": 1}}]
        members: list[dict[str, Any]] = [{}, {"membership": "perhaps"}, {"membership": 1}]
        for content in levels:
            self.refused(put(ALICE, "m.room.power_levels", content), "M_BAD_JSON", 400)
            self.refused(put(BOB, "m.room.power_levels", content), "M_FORBIDDEN", 403)
        for content in members:
            self.refused(put(BOB, "m.room.member", content, BOB), "M_BAD_JSON", 400)
        self.refused(put(ALICE, "m.room.member", {"membership": "ban"}, "bob"), "M_BAD_JSON", 400)

    def test_a_room_does_not_replace_itself(self) -> None:
        room_id = self.create()
        content = {"body": "gone", "replacement_room": room_id}
        for key in (None, ""):
            event = NewEvent(room_id=room_id, sender=ALICE, type="m.room.tombstone", content=content, state_key=key)
            self.refused(self.rooms.send(event), "M_INVALID_PARAM", 400)


class WriterGuards(RoomStory):
    def test_there_is_one_room_for_a_room(self) -> None:
        room_id = self.create()
        rooms = self.rooms.rooms
        held = self.do(rooms.find(room_id))
        rooms._rooms.pop(room_id)
        self.assertIs(self.do(rooms.find(room_id)), held)
        self.say(room_id, ALICE, "one")
        rooms._rooms.pop(room_id)
        del held
        self.say(room_id, ALICE, "two")
        self.assertEqual(self.bodies(room_id, ALICE, "f"), ["one", "two"])

    def test_who_hears_of_an_event_finds_it_in_the_room(self) -> None:
        seen: list[Any] = []

        def look(rows: Any) -> None:
            self._tell(rows)
            room_id = self.told[-1].event.room_id
            state = self.do(self.rooms.current_state(room_id, ALICE)) if len(self.told) > 2 else []
            seen.append((self.told[-1].event.event_id, {event.event_id for event in state}))

        self.rooms.outbox.on_commit = look
        room_id = self.create()
        self.set_state(room_id, ALICE, "m.room.name", {"name": "A"})
        event_id, state = seen[-1]
        self.assertIn(event_id, state)
        self.assertEqual(self.do(self.rooms.rooms.find(room_id)).head.joined, 1)

    def test_a_client_that_goes_does_not_take_its_event_along(self) -> None:
        room_id = self.create()
        event = NewEvent(
            room_id=room_id,
            sender=ALICE,
            type="m.room.message",
            content={"body": "once"},
            device_id="D",
            transaction_id="1",
        )
        write = self.database.write
        held: list[Any] = []
        self.database.write = lambda *args: held.append((args, Deferred())) or held[-1][1]  # type: ignore
        first = Deferred.fromCoroutine(self.rooms.send(event))
        second = Deferred.fromCoroutine(self.rooms.send(event))
        first.cancel()
        self.failureResultOf(first, CancelledError)
        third = Deferred.fromCoroutine(self.rooms.send(event))
        self.database.write = write  # type: ignore[method-assign]
        for args, answer in held:
            write(*args).chainDeferred(answer)
        event_id = self.successResultOf(second)
        self.assertEqual(self.successResultOf(third), event_id)
        self.assertEqual(self.bodies(room_id, ALICE), ["once"])
