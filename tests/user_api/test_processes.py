"""What each process of a deployment must know at once of what the others did, and what survives their ends."""

from __future__ import annotations

from typing import Any

import msgspec
from twisted.internet.defer import Deferred, fail

from dendrite_tw.database.engines import Fenced
from dendrite_tw.matrix.errors import MatrixError
from dendrite_tw.sharing.leases import NotMine
from dendrite_tw.user_api.api import (
    OUTPUT_NOTIFICATION_DATA,
    RESYNC,
    UNREAD,
    DeviceListUpdate,
    DeviceName,
    Login,
    NewAccount,
    NewLogin,
    UnreadChange,
)
from dendrite_tw.user_api.component import CHORES, FORGET_SECONDS, RESUME_SECONDS
from dendrite_tw.user_api.keys_component import LOOK_SECONDS
from tests.harness import ask, trace
from tests.user_api.fakes import FakeMessage
from tests.user_api.keys_support import Device
from tests.user_api.remote_support import devices_path
from tests.user_api.several import ALICE, BOB, CAROL, ROOM, One, SeveralCase

DORA = "@dora:elsewhere"


class SessionTests(SeveralCase):
    def setUp(self) -> None:
        super().setUp()
        self.login = self.make("alice", device_id="PHONE")
        self.asks(self.login.access_token)

    def asks(self, token: str) -> None:
        """Both processes know the caller, and remember it."""
        for one in self.all:
            self.assertEqual(ALICE, self.wait(one.users.caller_of(token)).user_id)

    def check_ended(self, token: str, errcode: str = "M_UNKNOWN_TOKEN") -> None:
        for one in self.all:
            self.assertEqual(errcode, self.refused(one.users.caller_of(token)).errcode)

    def test_a_session_that_one_ends_is_known_to_none(self) -> None:
        self.wait(self.there.users.delete_devices(ALICE, ["PHONE"], None))
        self.check_ended(self.login.access_token)

    def test_nor_one_that_a_new_login_takes_over(self) -> None:
        again = self.wait(self.there.users.log_in(NewLogin(user_id=ALICE, device_id="PHONE")))
        self.check_ended(self.login.access_token)
        self.asks(again.access_token)

    def test_nor_those_of_a_changed_password_or_a_closed_account(self) -> None:
        other = self.wait(self.here.users.log_in(NewLogin(user_id=ALICE)))
        self.asks(other.access_token)
        self.wait(self.there.users.set_password(ALICE, "another horse", True, other.device_id))
        self.check_ended(self.login.access_token)
        self.asks(other.access_token)
        self.wait(self.there.users.deactivate(ALICE, False))
        self.check_ended(other.access_token)

    def test_a_lock_holds_everywhere_and_is_taken_off_everywhere(self) -> None:
        self.wait(self.there.users.set_locked(ALICE, True))
        self.check_ended(self.login.access_token, "M_USER_LOCKED")
        self.wait(self.there.users.set_locked(ALICE, False))
        self.asks(self.login.access_token)

    def test_a_suspension_is_seen_everywhere(self) -> None:
        self.wait(self.there.users.set_suspended(ALICE, True))
        for one in self.all:
            self.assertTrue(self.wait(one.users.caller_of(self.login.access_token)).is_suspended)

    def test_a_refreshed_token_ends_the_one_before_everywhere(self) -> None:
        first = self.wait(self.here.users.log_in(NewLogin(user_id=ALICE, refreshable=True)))
        self.asks(first.access_token)
        second = self.wait(self.there.users.refresh(first.refresh_token))
        self.asks(first.access_token)
        self.asks(second.access_token)
        self.check_ended(first.access_token)

    def test_a_token_that_ended_while_it_was_first_used_stays_ended(self) -> None:
        first = self.wait(self.here.users.log_in(NewLogin(user_id=ALICE, refreshable=True)))
        second = self.wait(self.there.users.refresh(first.refresh_token))
        self.here.process.database.hold()
        using = self.begin(self.here.users.caller_of(second.access_token))
        third = self.wait(self.there.users.refresh(first.refresh_token))
        self.here.process.database.release()
        self.assertEqual("M_UNKNOWN_TOKEN", self.failureResultOf(using, MatrixError).value.errcode)
        self.check_ended(second.access_token)
        self.asks(third.access_token)

    def test_what_was_loaded_while_it_changed_is_not_kept(self) -> None:
        database, slow = self.here.process.database, Deferred[None]()
        reads = database.shared_one.read

        async def read(*args: Any) -> Any:
            found = await reads(*args)
            await slow
            return found

        database.read = read  # type: ignore[method-assign]
        self.here.users.tokens.forget_all()
        asked = self.begin(self.here.users.caller_of(self.login.access_token))
        self.wait(self.there.users.set_suspended(ALICE, True))
        slow.callback(None)
        self.assertFalse(self.successResultOf(asked).is_suspended)
        self.assertTrue(self.wait(self.here.users.caller_of(self.login.access_token)).is_suspended)

    def test_what_was_not_heard_is_forgotten_when_that_is_known(self) -> None:
        self.deployment.is_silent = True
        self.wait(self.there.users.set_suspended(ALICE, True))
        self.assertFalse(self.wait(self.here.users.caller_of(self.login.access_token)).is_suspended)
        self.here.process.miss()
        self.assertTrue(self.wait(self.here.users.caller_of(self.login.access_token)).is_suspended)

    def test_and_where_a_process_was_killed_before_it_told_soon(self) -> None:
        self.deployment.is_silent = True
        self.wait(self.there.users.delete_devices(ALICE, None, None))
        self.kill(self.there)
        self.clock.advance(FORGET_SECONDS)
        self.check_ended(self.login.access_token)

    def test_nothing_is_remembered_by_who_cannot_hear(self) -> None:
        self.here.process.hearing = False
        self.here.process.miss()
        self.asks(self.login.access_token)
        self.deployment.is_silent = True
        self.wait(self.there.users.set_suspended(ALICE, True))
        self.assertTrue(self.wait(self.here.users.caller_of(self.login.access_token)).is_suspended)


class AtOnceTests(SeveralCase):
    """The same at two processes at the same time: each has looked before the other wrote."""

    def both(self, first: Any, second: Any) -> list[Any]:
        """What two calls end with that both wait before they write."""
        for one in self.all:
            one.process.database.hold()
        calls = [self.begin(first), self.begin(second)]
        for one in self.all:
            one.process.database.release()
        return [self.result_of(call) for call in calls]

    def result_of(self, call: Deferred[Any]) -> Any:
        found: list[Any] = []
        call.addCallbacks(found.append, lambda failure: found.append(failure.value))
        self.assertEqual(1, len(found), "it has not ended")
        return found[0]

    def test_a_name_is_registered_once(self) -> None:
        account = NewAccount(localpart="alice", password="correct horse")
        made, refused = self.both(
            self.here.users.register(account, NewLogin()), self.there.users.register(account, NewLogin())
        )
        self.assertEqual(ALICE, made[0])
        self.assertEqual("M_USER_IN_USE", refused.errcode)

    def test_a_registration_token_is_used_no_more_often_than_it_may(self) -> None:
        token = self.wait(self.here.users.new_registration_token("once", 8, 1, None)).token
        made, refused = self.both(
            *[
                one.users.register(NewAccount(localpart=name, registration_token=token), None)
                for one, name in ((self.here, "alice"), (self.there, "bob"))
            ]
        )
        self.assertEqual((ALICE, None), made)
        self.assertEqual((401, "M_UNAUTHORIZED"), (refused.status, refused.errcode))
        self.assertIsNone(self.wait(self.here.users.account(BOB)), "and no account is made")

    def test_a_login_token_is_used_once(self) -> None:
        self.make("alice")
        token = self.wait(self.here.users.new_login_token(ALICE)).token
        used = self.both(self.here.users.use_login_token(token), self.there.users.use_login_token(token))
        self.assertEqual([ALICE, None], used)

    def test_each_one_time_key_is_handed_out_once(self) -> None:
        self.make("alice", device_id="PHONE")
        phone = Device(ALICE, "PHONE")
        keys = phone.one_time(*"abcde")
        self.wait(self.there.keys.upload_keys(ALICE, "PHONE", None, keys, {}))
        wanted = {ALICE: {"PHONE": "signed_curve25519"}}
        names: list[str] = []
        for _ in range(3):
            for claimed in self.both(self.here.keys.claim_keys(wanted, 0), self.there.keys.claim_keys(wanted, 0)):
                names += claimed.one_time_keys.get(ALICE, {}).get("PHONE", {})
        self.assertEqual(sorted(keys), sorted(names))
        for one in self.all:
            self.assertEqual(0, self.wait(one.keys.key_counts(ALICE, "PHONE")).one_time_keys["signed_curve25519"])

    def test_a_room_to_join_at_once_is_made_once(self) -> None:
        self.users.settings = msgspec.structs.replace(self.users.settings, auto_join_rooms=("#hall:test",))
        one, two = self.join(), self.join()
        creating: list[Deferred[None]] = []
        create = self.users.rooms.create_room

        async def slowly(room: Any) -> Any:
            creating.append(Deferred())
            await creating[-1]
            if f"#{room.room_alias_name}:test" in self.users.rooms.aliases_known:
                raise MatrixError(400, "M_ROOM_IN_USE", "The alias is taken.")
            return await create(room)

        self.users.rooms.create_room = slowly
        self.wait(one.users.register(NewAccount(localpart="alice"), None))
        self.wait(two.users.register(NewAccount(localpart="bob"), None))
        for waiting in creating:
            waiting.callback(None)
        self.assertEqual([ALICE], [room.creator for room in self.users.rooms.created])
        self.assertEqual([BOB], [change.target for change in self.users.rooms.changes])


class KeyCountTests(SeveralCase):
    """How many one-time keys a device has is remembered, and told."""

    def setUp(self) -> None:
        super().setUp()
        self.make("alice", device_id="PHONE")
        self.phone = Device(ALICE, "PHONE")
        for one in self.all:
            self.count(one)

    def count(self, one: One) -> int:
        counts = self.wait(one.keys.key_counts_of([DeviceName(ALICE, "PHONE"), DeviceName(BOB, "PHONE")]))
        self.assertEqual(0, counts[1].one_time_keys["signed_curve25519"])
        self.assertEqual(counts[0], self.wait(one.keys.key_counts(ALICE, "PHONE")))
        return counts[0].one_time_keys["signed_curve25519"]  # type: ignore[no-any-return]

    def upload(self, one: One, *names: str) -> None:
        self.wait(one.keys.upload_keys(ALICE, "PHONE", None, self.phone.one_time(*names), {}))

    def test_what_one_process_changes_all_know(self) -> None:
        self.upload(self.here, "a", "b", "c")
        self.assertEqual([3, 3], [self.count(one) for one in self.all])
        self.wait(self.there.keys.claim_keys({ALICE: {"PHONE": "signed_curve25519"}}, 0))
        self.assertEqual([2, 2], [self.count(one) for one in self.all])
        fallback = self.phone.one_time("f", fallback=True)
        self.wait(self.there.keys.upload_keys(ALICE, "PHONE", None, {}, fallback))
        counts = [self.wait(one.keys.key_counts_of([DeviceName(ALICE, "PHONE")]))[0] for one in self.all]
        self.assertEqual([["signed_curve25519"]] * 2, [one.unused_fallback_types for one in counts])
        self.wait(self.here.users.delete_devices(ALICE, None, None))
        self.assertEqual([0, 0], [self.count(one) for one in self.all])

    def test_what_is_known_is_not_read_again(self) -> None:
        statements = trace(self.here.process.database)
        self.assertEqual(([0, 0], []), ([self.count(one) for one in self.all], statements))

    def test_what_was_not_heard_is_forgotten_when_that_is_known_and_after_a_while(self) -> None:
        self.deployment.is_silent = True
        self.upload(self.here, "a")
        self.assertEqual([1, 0], [self.count(one) for one in self.all])
        self.there.process.miss()
        self.assertEqual(1, self.count(self.there))
        self.upload(self.here, "b")
        self.clock.advance(FORGET_SECONDS)
        self.assertEqual(2, self.count(self.there))

    def test_who_cannot_hear_remembers_nothing(self) -> None:
        self.there.process.hearing = False
        self.there.process.miss()
        self.count(self.there)
        self.deployment.is_silent = True
        self.upload(self.here, "a")
        self.assertEqual(1, self.count(self.there))


class StreamTests(SeveralCase):
    def test_positions_follow_the_commits_of_all(self) -> None:
        for number in range(20):
            one = self.all[number % 2]
            self.wait(one.users.put_account_data(ALICE, "", f"t{number}", b"{}"))
            self.assertEqual([number + 1] * 2, [self.wait(each.users.position()) for each in self.all])
        self.assertEqual(list(range(1, 21)), [row.id for row in self.users.told])
        self.assertEqual(list(range(20)), [row.previous for row in self.users.told])
        changes = self.wait(self.there.users.account_data_since(ALICE, 5, 15))
        self.assertEqual(list(range(6, 16)), [change.position for change in changes])

    def test_what_one_ignores_is_ignored_everywhere_at_once(self) -> None:
        for ignored in ({BOB}, {BOB, CAROL}, set[str]()):
            content = msgspec.json.encode({"ignored_users": {user: {} for user in ignored}})
            self.wait(self.here.users.put_account_data(ALICE, "", "m.ignored_user_list", content))
            for one in self.all:
                self.assertEqual(ignored, self.wait(one.users.ignored_users(ALICE)))

    def test_messages_between_devices_come_in_order_and_once(self) -> None:
        self.make("alice", device_id="PHONE")
        for number in range(12):
            for one in (self.all[number % 2], self.all[number // 2 % 2]):
                messages = {ALICE: {"PHONE": {"n": number}}}
                self.wait(one.keys.send_to_device(BOB, "B", "m.test", str(number), messages))
        for one in self.all:
            waiting = self.wait(one.keys.to_device_since(ALICE, "PHONE", 0, 99, 100))
            contents = [msgspec.json.decode(message.event)["content"]["n"] for message in waiting]
            self.assertEqual(list(range(12)), contents)
        self.wait(self.here.keys.delete_to_device(ALICE, "PHONE", waiting[5].position))
        left = self.wait(self.there.keys.to_device_since(ALICE, "PHONE", 0, 99, 100))
        self.assertEqual(waiting[6:], left)


class UnreadTests(SeveralCase):
    def setUp(self) -> None:
        super().setUp()
        for user_id in (ALICE, BOB, CAROL):
            self.joins(user_id)
        self.redeliver()

    def test_only_the_holder_counts(self) -> None:
        for asked in (
            self.there.users.unread(BOB, [ROOM], 0),
            self.there.users.unread_of({BOB: [ROOM]}, 0),
        ):
            self.failureResultOf(self.begin(asked), NotMine)

    def test_many_are_asked_about_at_once(self) -> None:
        self.says(ALICE, **{"m.mentions": {"user_ids": [BOB]}})
        found = self.wait(self.here.users.unread_of({BOB: [ROOM], CAROL: [ROOM, "!else:test"]}, self.position))
        self.assertEqual((1, 1), (found[BOB][ROOM].notification_count, found[BOB][ROOM].highlight_count))
        self.assertEqual({ROOM: 1, "!else:test": 0}, {r: one.notification_count for r, one in found[CAROL].items()})

    def test_a_lease_that_is_given_on_takes_along_what_is_not_stored(self) -> None:
        self.says(ALICE)
        self.says(ALICE, **{"m.mentions": {"user_ids": [BOB]}})
        self.deployment.is_silent = True
        self.wait(self.deployment.hand(UNREAD, self.there.process))
        self.assertEqual([(2, 1), (2, 0)], [self.counts(BOB), self.counts(CAROL)])
        self.failureResultOf(self.begin(self.here.users.unread(BOB, [ROOM], 0)), NotMine)
        self.says(ALICE)
        self.redeliver()
        self.assertEqual((3, 1), self.counts(BOB))
        self.hand(UNREAD, self.here)
        self.assertEqual([(3, 1), (3, 0)], [self.counts(BOB), self.counts(CAROL)])

    def test_one_that_is_given_on_in_the_middle_of_a_batch_leaves_the_rest_to_the_other(self) -> None:
        self.here.queue.listeners.clear()
        slow: list[Deferred[None]] = []
        memberships = self.users.rooms.membership

        async def slowly(room_id: str, user_id: str) -> Any:
            slow.append(Deferred())
            await slow[-1]
            return await memberships(room_id, user_id)

        self.users.rooms.membership = slowly
        mention = {"m.mentions": {"user_ids": [BOB]}}
        for _ in range(3):
            self.says(ALICE, **mention)
        consumed = self.begin(self.here.queue.consumers["OutputRoomEvent"](self.messages[-3:]))
        given = self.begin(self.deployment.hand(UNREAD, self.there.process))
        self.assertNoResult(given)
        self.users.rooms.membership = memberships
        slow[0].callback(None)
        self.failureResultOf(consumed, NotMine)
        self.successResultOf(given)
        stored = self.wait(self.there.users.unread_store.stored_position())
        self.assertEqual(self.position - 2, stored, "what was under way is stored, the rest is not")
        self.redeliver()
        self.assertEqual((3, 3), self.counts(BOB))

    def test_who_is_killed_leaves_what_was_stored_and_the_rest_comes_again(self) -> None:
        self.says(ALICE)
        self.redeliver()
        for _ in range(3):
            self.says(ALICE, **{"m.mentions": {"user_ids": [BOB]}})
        self.assertEqual((4, 3), self.counts(BOB))
        self.kill(self.here)
        self.assertEqual([(4, 3), (4, 0)], [self.counts(BOB), self.counts(CAROL)])

    def test_who_was_taken_for_dead_stores_nothing_and_forgets_all(self) -> None:
        self.says(ALICE)
        self.here.process.database.is_dead = True
        lost = self.here.process.wanted[UNREAD][1]
        self.wait(lost(UNREAD, False))
        self.here.process.database.is_dead = False
        del self.deployment.holders[UNREAD]
        self.hand(UNREAD, self.there)
        self.says(BOB)
        self.hand(UNREAD, self.here)
        self.assertEqual([(1, 0), (0, 0), (2, 0)], [self.counts(user) for user in (ALICE, BOB, CAROL)])

    def test_what_any_process_is_told_to_be_read_is(self) -> None:
        first, second = self.says(ALICE), self.says(ALICE)
        self.assertEqual((2, 0), self.counts(BOB))
        self.reads(self.there, BOB, first)
        self.assertEqual((1, 0), self.counts(BOB))
        self.reads(self.here, BOB, second)
        self.assertEqual((0, 0), self.counts(BOB))

    def test_also_where_only_the_stream_tells(self) -> None:
        event = self.says(ALICE)
        self.assertEqual((1, 0), self.counts(BOB))
        self.deployment.is_silent = True
        self.reads(self.there, BOB, event)
        told = next(row for row in self.users.told if row.stream == OUTPUT_NOTIFICATION_DATA)
        change = msgspec.msgpack.decode(told.payload, type=UnreadChange)
        self.assertEqual((BOB, ROOM, event.position), (change.user_id, change.room_id, change.read_upto))
        for listener in self.here.queue.listeners[OUTPUT_NOTIFICATION_DATA]:
            listener(FakeMessage(told.payload, 1, {}))
        self.assertEqual((0, 0), self.counts(BOB))

    def test_and_while_nothing_can_be_heard(self) -> None:
        event = self.says(ALICE)
        self.assertEqual((1, 0), self.counts(BOB))
        self.here.process.hearing = False
        self.deployment.is_silent = True
        self.reads(self.there, BOB, event)
        self.assertEqual((0, 0), self.counts(BOB))
        self.here.process.hearing = True
        self.here.process.miss()
        self.says(ALICE)
        self.assertEqual((1, 0), self.counts(BOB))

    def test_rules_that_another_process_changed_hold_from_then_on(self) -> None:
        self.says(ALICE)
        self.wait(self.there.users.put_push_rule(BOB, "room", ROOM, {"actions": []}, None, None))
        self.says(ALICE)
        self.assertEqual([(1, 0), (2, 0)], [self.counts(BOB), self.counts(CAROL)])
        self.wait(self.there.users.delete_push_rule(BOB, "room", ROOM))
        self.says(ALICE)
        self.assertEqual((1, 0), self.counts(BOB), "what came before and while the room was muted is past")
        self.kill(self.here)
        self.assertEqual([(1, 0), (3, 0)], [self.counts(BOB), self.counts(CAROL)])

    def test_rules_of_a_process_that_was_killed_before_it_told_are_taken_up_later(self) -> None:
        self.deployment.is_silent = True
        self.wait(self.there.users.put_push_rule(BOB, "room", ROOM, {"actions": []}, None, None))
        self.kill(self.there)
        self.says(ALICE)
        self.assertEqual((1, 0), self.counts(BOB))
        self.clock.advance(FORGET_SECONDS)
        self.says(ALICE)
        self.assertEqual((1, 0), self.counts(BOB))

    def test_rules_that_changed_while_nobody_counted_hold_for_what_comes_after(self) -> None:
        self.says(ALICE)
        self.redeliver()
        self.deployment.is_silent = True
        self.wait(self.there.users.put_push_rule(BOB, "room", ROOM, {"actions": []}, None, None))
        self.kill(self.here)
        self.says(ALICE)
        self.redeliver()
        self.assertEqual([(1, 0), (2, 0)], [self.counts(BOB), self.counts(CAROL)])

    def test_a_question_waits_longer_for_who_has_only_begun_to_count(self) -> None:
        self.wait(self.deployment.hand(UNREAD, self.there.process))
        asked = self.begin(self.there.users.unread(BOB, [ROOM], self.position + 1))
        self.clock.advance(3)
        self.assertNoResult(asked)
        self.says(ALICE)
        self.redeliver()
        self.assertEqual(1, self.successResultOf(asked)[ROOM].notification_count)

    def test_a_question_under_way_is_for_another_where_the_lease_is_lost(self) -> None:
        asked = self.begin(self.here.users.unread(BOB, [ROOM], self.position + 1))
        self.wait(self.deployment.hand(UNREAD, self.there.process))
        self.failureResultOf(asked, NotMine)

    def test_notifications_are_told_by_any_process(self) -> None:
        event = self.says(ALICE, **{"m.mentions": {"user_ids": [BOB]}})
        self.redeliver()
        for is_read in (False, True):
            for one in self.all:
                found = self.wait(one.users.notifications(BOB, None, 10, False))
                self.assertEqual([(event.event_id, is_read)], [(each.event_id, each.read) for each in found])
            self.reads(self.there, BOB, event)

    def test_a_room_that_any_process_forgets_is_forgotten(self) -> None:
        event = self.says(ALICE)
        self.reads(self.here, BOB, event)
        self.redeliver()
        self.assertGreater(self.wait(self.there.users.forget_room(ROOM)), 0)
        self.assertEqual(0, self.wait(self.here.users.forget_room(ROOM)))
        self.assertEqual([], self.wait(self.here.users.receipts_since([ROOM], 0, 99)))


class ListTests(SeveralCase):
    """Lists of devices of other servers: any process hears of them, one fetches them."""

    def setUp(self) -> None:
        super().setUp()
        self.laptop, self.phone = Device(DORA, "LAPTOP"), Device(DORA, "PHONE")
        for user_id in (ALICE, DORA):
            self.users.rooms.put(ROOM, user_id)
        self.path = devices_path(DORA)
        self.answer(5, self.laptop)

    def answer(self, stream_id: int, *devices: Device) -> None:
        self.users.federation.answers["elsewhere", self.path] = {
            "user_id": DORA,
            "stream_id": stream_id,
            "devices": [{"device_id": one.device_id, "keys": one.keys()} for one in devices],
        }

    def update(self, one: Any, device: Device, stream_id: int, *previous: int) -> None:
        update = DeviceListUpdate(
            user_id=DORA,
            device_id=device.device_id,
            stream_id=stream_id,
            prev_id=list(previous),
            keys=device.keys(),
        )
        self.wait(one.keys.device_list_update("elsewhere", update))

    def shown(self, one: Any) -> set[str]:
        found = self.wait(one.keys.query_keys(ALICE, {DORA: []}, 1000))
        return set(found.device_keys.get(DORA, ()))

    def asked(self) -> int:
        asked, self.users.federation.asked = self.users.federation.asked, []
        return len(asked)

    def test_who_fetches_is_told_by_who_hears(self) -> None:
        self.update(self.there, self.laptop, 5)
        self.assertEqual(1, self.asked())
        self.assertEqual([{"LAPTOP"}] * 2, [self.shown(one) for one in self.all])
        self.assertEqual(0, self.asked())

    def test_an_answer_that_is_older_than_what_another_process_heard_is_not_the_last(self) -> None:
        self.users.federation.hold(self.path)
        self.update(self.there, self.laptop, 5)
        self.answer(6, self.laptop, self.phone)
        self.update(self.there, self.phone, 6, 5)
        self.users.federation.release(self.path)
        self.clock.advance(2)
        self.assertEqual(2, self.asked())
        self.assertEqual([{"LAPTOP", "PHONE"}] * 2, [self.shown(one) for one in self.all])

    def test_nor_is_that_of_a_query(self) -> None:
        self.users.federation.hold(self.path)
        asked = self.begin(self.here.keys.query_keys(ALICE, {DORA: []}, 1000))
        self.answer(6, self.laptop, self.phone)
        self.update(self.there, self.phone, 6, 5)
        self.users.federation.release(self.path)
        self.successResultOf(asked)
        self.clock.advance(2)
        self.assertEqual([{"LAPTOP", "PHONE"}] * 2, [self.shown(one) for one in self.all])

    def test_a_list_that_ended_meanwhile_is_not_begun(self) -> None:
        self.users.federation.hold(self.path)
        asked = self.begin(self.there.keys.query_keys(ALICE, {DORA: []}, 1000))
        self.users.rooms.put(ROOM, DORA, "leave")
        self.wait(self.here.keys.lists.end([DORA]))
        self.users.federation.release(self.path)
        self.assertEqual({"LAPTOP"}, set(self.successResultOf(asked).device_keys[DORA]))
        self.assertEqual(({}, []), self.wait(self.here.keys.lists.known([DORA])))
        self.assertEqual([], self.rows_of_fetches())

    def rows_of_fetches(self) -> list[Any]:
        return ask(self.here.process.database, "SELECT user_id FROM remote_fetches")

    def test_a_query_anywhere_waits_for_who_fetches(self) -> None:
        self.users.federation.hold(self.path)
        self.update(self.there, self.laptop, 5)
        asked = self.begin(self.there.keys.query_keys(ALICE, {DORA: []}, 5000))
        self.assertNoResult(asked)
        self.users.federation.release(self.path)
        self.assertEqual({"LAPTOP"}, set(self.successResultOf(asked).device_keys[DORA]))
        self.assertEqual(1, self.asked())

    def test_another_goes_on_where_the_one_who_fetches_is_killed(self) -> None:
        self.users.federation.hold(self.path)
        self.update(self.here, self.laptop, 5)
        self.kill(self.here)
        self.users.federation.release(self.path)
        self.flushLoggedErrors(Fenced)
        self.assertEqual({"LAPTOP"}, self.shown(self.there))

    def test_a_list_is_found_on_disk_where_who_heard_of_it_was_killed(self) -> None:
        self.deployment.is_silent = True
        self.update(self.there, self.laptop, 5)
        self.kill(self.there)
        self.assertEqual(0, self.asked())
        self.clock.advance(LOOK_SECONDS)
        self.assertEqual(1, self.asked())
        self.assertEqual({"LAPTOP"}, self.shown(self.here))

    def test_given_on_it_is_fetched_by_the_other(self) -> None:
        self.users.federation.answers.clear()
        self.update(self.here, self.laptop, 5)
        self.hand(RESYNC, self.there)
        self.answer(5, self.laptop)
        self.asked()
        self.clock.advance(10)
        self.assertEqual(1, self.asked(), "the one that gave it on asks no more")
        self.assertEqual([{"LAPTOP"}] * 2, [self.shown(one) for one in self.all])

    def test_what_killed_processes_left_behind_is_pruned(self) -> None:
        self.users.federation.hold(self.path)
        asked = self.begin(self.there.keys.query_keys(ALICE, {DORA: []}, 1000))
        self.kill(self.there)
        asked.cancel()
        self.failureResultOf(asked)
        self.assertEqual([(DORA,)], self.rows_of_fetches())
        self.clock.advance(2 * 3600)
        self.wait(self.here.keys.prune())
        self.assertEqual([], self.rows_of_fetches())


class UnfinishedTests(SeveralCase):
    """What a process began and another ends."""

    def test_rooms_end_with_the_newest_profile_whoever_shows_it_last(self) -> None:
        self.make("alice")
        slow: list[Deferred[None]] = []
        shown: list[dict[str, str]] = []

        async def update(user_id: str, profile: dict[str, str]) -> None:
            slow.append(Deferred())
            await slow[-1]
            shown.append(profile)

        self.users.rooms.update_profile = update
        self.wait(self.here.users.set_profile_field(ALICE, "displayname", "A"))
        self.wait(self.there.users.set_profile_field(ALICE, "displayname", "B"))
        slow[1].callback(None)
        slow[0].callback(None)
        self.assertEqual([{"displayname": "B"}, {"displayname": "A"}], shown)
        slow[2].callback(None)
        self.assertEqual({"displayname": "B"}, shown[-1])
        self.assertEqual(3, len(slow))

    def test_a_profile_that_could_not_be_shown_is_later(self) -> None:
        self.make("alice")
        update = self.users.rooms.update_profile
        self.users.rooms.update_profile = lambda user_id, profile: fail(MatrixError(503, "M_UNKNOWN", "away"))
        self.wait(self.there.users.set_profile_field(ALICE, "displayname", "Alice"))
        self.flushLoggedErrors(MatrixError)
        self.users.rooms.update_profile = update
        self.kill(self.there)
        self.clock.advance(RESUME_SECONDS)
        self.assertEqual([(ALICE, {"displayname": "Alice"})], self.users.rooms.profiles)
        self.clock.advance(RESUME_SECONDS)
        self.assertEqual(1, len(self.users.rooms.profiles))

    def test_who_closed_the_account_leaves_also_where_the_process_was_killed(self) -> None:
        self.make("alice")
        self.users.rooms.put(ROOM, ALICE)
        change = self.users.rooms.change_membership
        self.users.rooms.change_membership = lambda change: Deferred()
        self.wait(self.there.users.deactivate(ALICE, False))
        self.users.rooms.change_membership = change
        self.kill(self.there)
        self.clock.advance(RESUME_SECONDS)
        self.assertEqual("leave", self.users.rooms.members[ROOM][ALICE])

    def test_one_process_does_the_chores(self) -> None:
        self.assertIs(self.here.process, self.deployment.holders[CHORES])
        self.kill(self.here)
        self.assertIs(self.there.process, self.deployment.holders[CHORES])


class RestartTests(SeveralCase):
    def test_a_process_that_stops_gives_on_all_it_has(self) -> None:
        for user_id in (ALICE, BOB):
            self.joins(user_id)
        self.redeliver()
        self.says(ALICE)
        self.all.remove(self.here)
        self.wait(self.here.keys.stop())
        self.wait(self.here.users.stop())
        self.assertEqual((1, 0), self.counts(BOB))
        login: Login = self.wait(self.there.users.register(NewAccount(localpart="bob"), NewLogin()))[1]
        self.assertEqual(BOB, self.wait(self.there.users.caller_of(login.access_token)).user_id)
