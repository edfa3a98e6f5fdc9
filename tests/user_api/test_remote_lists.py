"""Device lists of other servers: followed update by update, fetched anew where one was missed."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import msgspec
import orjson

from dendrite_tw.federation_api.api import BackingOff, RemoteRefused, Unreachable
from dendrite_tw.room_api.api import OutputRoomEvent
from dendrite_tw.user_api import remote_checks, remote_lists
from dendrite_tw.user_api.remote_lists import Seen
from tests.user_api.fakes import room_event
from tests.user_api.keys_support import Identity
from tests.user_api.remote_support import ALICE, BOB, CAROL, QUERY, ROOM, Device, RemoteCase, devices_path

CAROLS_PATH = "%40carol%3Aelsewhere"


class UpdateTests(RemoteCase):
    """Carol's list is known up to her update 5."""

    def setUp(self) -> None:
        super().setUp()
        self.answer_list(5, self.laptop)
        self.update(self.laptop, 5)
        self.assertEqual((self.asked(), self.told_users()), ([CAROLS_PATH], [CAROL]))
        self.clock.advance(2)

    def test_a_list_that_was_not_known_is_fetched_and_then_kept(self) -> None:
        self.assertEqual(self.shown(), {"LAPTOP": {**self.laptop.keys(), "unsigned": {}}})
        self.assertEqual(self.asked(), [])

    def test_updates_in_order_are_applied(self) -> None:
        self.update(self.phone, 6, 5, device_display_name="Carol's phone")
        unsigned = {"device_display_name": "Carol's phone"}
        self.assertEqual(self.shown()["PHONE"], {**self.phone.keys(), "unsigned": unsigned})
        self.update(self.laptop, 7, 6, deleted=True, keys=None)
        self.update(self.phone, 8, 7, device_display_name="A phone")
        self.assertEqual(set(self.shown()), {"PHONE"})
        self.assertEqual(self.shown()["PHONE"]["unsigned"], {"device_display_name": "A phone"})
        self.assertEqual((self.asked(), self.told_users()), ([], [CAROL] * 3))

    def test_a_device_without_keys_is_not_shown(self) -> None:
        self.update(self.laptop, 6, 5, keys=None)
        self.assertEqual((self.shown(), self.asked()), ({}, []))

    def test_updates_that_were_made_at_once_may_come_in_any_order(self) -> None:
        self.update(self.phone, 7, 5)
        self.update(Device(CAROL, "WATCH"), 6, 5)
        self.update(self.laptop, 8, 6, 7, deleted=True)
        self.assertEqual((set(self.shown()), self.asked()), ({"PHONE", "WATCH"}, []))

    def test_a_repeated_update_changes_nothing(self) -> None:
        for _ in range(3):
            self.update(self.phone, 6, 5)
        self.update(self.laptop, 5)
        self.assertEqual((self.told_users(), self.asked()), ([CAROL], []))

    def test_after_a_gap_the_list_is_fetched(self) -> None:
        watch = Device(CAROL, "WATCH")
        self.answer_list(9, self.laptop, watch)
        self.update(watch, 9, 8)
        self.assertEqual(self.asked(), [CAROLS_PATH])
        self.assertEqual((set(self.shown()), self.told_users()), ({"LAPTOP", "WATCH"}, [CAROL]))
        self.update(self.phone, 10, 9)
        self.assertEqual((len(self.shown()), self.asked()), (3, []))

    def test_one_of_several_before_it_that_is_unknown_is_a_gap(self) -> None:
        self.update(self.phone, 7, 5, 6)
        self.assertEqual(self.asked(), [CAROLS_PATH])

    def test_an_update_that_names_nothing_before_it_continues_nothing(self) -> None:
        self.update(self.phone, 6)
        self.assertEqual(self.asked(), [CAROLS_PATH])

    def test_a_list_that_turns_out_the_same_is_not_told(self) -> None:
        self.update(self.laptop, 9, 8)
        self.assertEqual((self.asked(), self.told_users()), ([CAROLS_PATH], []))

    def test_a_server_that_counts_anew_is_followed(self) -> None:
        self.answer_list(1, self.phone)
        self.update(self.phone, 1)
        self.assertEqual((self.asked(), set(self.shown())), ([CAROLS_PATH], {"PHONE"}))
        self.update(self.laptop, 2, 1)
        self.assertEqual((self.asked(), len(self.shown())), ([], 2))

    def test_nobody_speaks_for_another_server(self) -> None:
        self.update(self.phone, 6, 5, origin="evil")
        self.update(Device(ALICE, "FORGED"), 1, origin="test")
        self.update(Device(ALICE, "FORGED"), 1, origin="elsewhere")
        self.update(Device("carol", "FORGED"), 1, origin="")
        self.assertEqual((set(self.shown()), self.asked(), self.told_users()), ({"LAPTOP"}, [], []))

    def test_who_shares_no_room_is_not_followed(self) -> None:
        self.update(Device("@dora:elsewhere", "D"), 1)
        self.rooms.put("!far:elsewhere", "@dora:elsewhere")
        self.rooms.put("!far:elsewhere", BOB, "invite")
        self.update(Device("@dora:elsewhere", "D"), 2, 1)
        self.assertEqual((self.asked(), self.told_users()), ([], []))
        self.assertEqual(self.get(self.keys.lists.known(["@dora:elsewhere"])), ({}, []))

    def test_what_is_told_survives_a_restart(self) -> None:
        self.update(self.phone, 6, 5)
        self.restart()
        self.update(self.laptop, 7, 6, deleted=True)
        self.assertEqual((set(self.shown()), self.asked()), ({"PHONE"}, []))

    def test_many_updates_are_remembered_in_little(self) -> None:
        for number in range(6, 400):
            self.update(self.phone, number, number - 1, device_display_name=str(number))
        row = self.get(self.read_row())
        self.assertLess(len(row.seen), 600)
        self.assertEqual(self.asked(), [])

    async def read_row(self) -> Any:
        return await self.database.read(remote_lists.table.of_user, CAROL)

    def test_no_more_devices_than_can_be_kept(self) -> None:
        self.patch(remote_checks, "DEVICES_LIMIT", 3)
        for number in range(5):
            self.update(Device(CAROL, f"D{number}"), 6 + number, 5 + number)
        self.update(Device(CAROL, "D0"), 11, 10, deleted=True)
        self.assertEqual((set(self.shown()), self.asked()), ({"LAPTOP", "D1"}, []))

    def test_keys_that_cannot_be_used_make_the_list_fetched(self) -> None:
        for number, keys in enumerate(
            [
                {},
                {"user_id": ALICE},
                {"device_id": "LAPTOP"},
                {"algorithms": "all"},
                {"keys": [1]},
                {"keys": {"a": 1}},
                {"n": 1.5},
                {"signatures": {CAROL: {"a": 1}}},
                {"x": "x" * 20_000},
            ]
        ):
            self.clock.advance(1000)
            self.update(self.phone, 6 + number, 5, keys=keys)
            self.assertEqual((self.asked(), set(self.shown())), ([CAROLS_PATH], {"LAPTOP"}), keys)


class SeenTests(RemoteCase):
    def test_what_a_list_contains(self) -> None:
        seen = Seen(5, (8,))
        self.assertEqual([n for n in range(-2, 10) if seen.has(n)], [0, 1, 2, 3, 4, 5, 8])
        self.assertEqual([n for n in range(-2, 10) if Seen(-1).has(n)], [])
        many = Seen(-1)
        for number in range(1000, 1250):
            many = many.adding(number)
        self.assertEqual((len(many.since), many.has(1000), many.has(1249), many.has(1250)), (100, True, True, False))


class ResyncTests(RemoteCase):
    def test_an_update_while_the_list_is_fetched_is_not_lost(self) -> None:
        path = devices_path(CAROL)
        self.answer_list(5, self.laptop)
        self.federation.hold(path)
        self.update(self.laptop, 5)
        self.update(self.phone, 6, 5)
        self.assertEqual(self.asked(), [CAROLS_PATH])
        self.answer_list(6, self.laptop, self.phone)
        self.federation.release(path)
        self.assertEqual(self.asked(), [])
        self.clock.advance(1)
        self.assertEqual(self.asked(), [CAROLS_PATH])
        self.assertEqual((set(self.shown()), self.asked()), ({"LAPTOP", "PHONE"}, []))

    def test_an_answer_that_has_the_update_already_is_enough(self) -> None:
        path = devices_path(CAROL)
        self.answer_list(6, self.laptop, self.phone)
        self.federation.hold(path)
        self.update(self.laptop, 5)
        self.update(self.phone, 6, 5)
        self.federation.release(path)
        self.clock.advance(100)
        self.assertEqual((self.asked(), len(self.shown())), ([CAROLS_PATH], 2))

    def test_a_client_that_asks_meanwhile_waits_for_the_list(self) -> None:
        path = devices_path(CAROL)
        self.answer_list(5, self.laptop)
        self.federation.hold(path)
        self.update(self.laptop, 5)
        asked = self.begin(self.keys.query_keys(ALICE, {CAROL: []}, 5000))
        self.assertNoResult(asked)
        self.federation.release(path)
        self.assertEqual(set(self.successResultOf(asked).device_keys[CAROL]), {"LAPTOP"})
        self.assertEqual(self.asked(), [CAROLS_PATH])

    def test_but_not_for_ever(self) -> None:
        self.federation.hold(devices_path(CAROL))
        self.update(self.laptop, 5)
        asked = self.begin(self.keys.query_keys(ALICE, {CAROL: []}, 5000))
        self.clock.advance(5)
        self.assertEqual(set(self.successResultOf(asked).failures), {"elsewhere"})

    def test_a_server_that_does_not_answer_is_asked_again_later_and_later(self) -> None:
        self.update(self.laptop, 5)
        self.assertEqual((self.asked(), self.keys.resyncs.retrying_servers), ([CAROLS_PATH], 1))
        attempts = []
        for second in range(4000):
            self.clock.advance(1)
            attempts += [second] * len(self.asked())
        gaps = [after - before for before, after in pairwise(attempts)]
        self.assertTrue(all(after > 1.5 * before for before, after in pairwise(gaps)), gaps)
        self.assertTrue(8 <= len(attempts) <= 11, attempts)
        self.answer_list(5, self.laptop)
        self.clock.advance(4400)
        self.assertEqual((set(self.shown()), self.keys.resyncs.retrying_servers), ({"LAPTOP"}, 0))
        self.assertEqual(self.told_users(), [CAROL])

    def test_an_error_of_the_server_passes(self) -> None:
        self.federation.answers["elsewhere", devices_path(CAROL)] = RemoteRefused(503, "M_UNKNOWN", "later")
        self.update(self.laptop, 5)
        self.answer_list(5, self.laptop)
        self.clock.advance(3)
        self.assertEqual((set(self.shown()), self.asked()), ({"LAPTOP"}, [CAROLS_PATH] * 2))

    def test_who_is_heard_of_again_is_asked(self) -> None:
        self.federation.answers["elsewhere", devices_path(CAROL)] = BackingOff("elsewhere", None)
        self.update(self.laptop, 5)
        self.clock.advance(3000)
        self.assertEqual(self.asked(), [CAROLS_PATH])
        self.answer_list(6, self.laptop)
        self.update(self.laptop, 6, 5)
        self.assertEqual((self.asked(), set(self.shown())), ([CAROLS_PATH], {"LAPTOP"}))

    def test_one_that_is_heard_of_and_never_answers_is_not_asked_each_time(self) -> None:
        for number in range(50):
            self.update(self.laptop, 5 + number)
        self.assertEqual(self.asked(), [CAROLS_PATH])
        self.clock.advance(9)
        self.assertLessEqual(len(self.asked()), 2)

    def test_backing_off_is_heeded(self) -> None:
        self.federation.answers["elsewhere", devices_path(CAROL)] = BackingOff("elsewhere", 600_000)
        self.update(self.laptop, 5)
        self.clock.advance(599)
        self.assertEqual(self.asked(), [CAROLS_PATH])
        self.clock.advance(200)
        self.assertEqual(self.asked(), [CAROLS_PATH])

    def test_a_list_that_is_not_given_is_not_asked_for_again(self) -> None:
        for refused in (
            RemoteRefused(404, "M_NOT_FOUND", "no such user"),
            {"user_id": ALICE, "stream_id": 1, "devices": []},
            {"user_id": CAROL, "stream_id": True, "devices": []},
            {"user_id": CAROL, "stream_id": 2**60, "devices": []},
            {"user_id": CAROL, "stream_id": 1, "devices": {}},
        ):
            self.federation.answers["elsewhere", devices_path(CAROL)] = refused
            self.update(self.laptop, 5)
            self.clock.advance(10_000)
            self.assertEqual((self.asked(), self.told_users()), ([CAROLS_PATH], [CAROL]), refused)
            self.assertEqual(self.get(self.keys.lists.known([CAROL])), ({}, []))

    def test_a_restart_goes_on_with_what_is_stale(self) -> None:
        self.federation.hold(devices_path(CAROL))
        self.update(self.laptop, 5)
        self.restart()
        self.federation.held.clear()
        self.assertEqual(self.asked(), [CAROLS_PATH] * 2)
        self.restart()
        self.answer_list(5, self.laptop)
        self.clock.advance(2)
        self.assertEqual(self.asked(), [CAROLS_PATH])
        self.restart()
        self.assertEqual((self.asked(), set(self.shown())), ([CAROLS_PATH], {"LAPTOP"}))
        self.restart()
        self.assertEqual(self.asked(), [])

    def test_after_the_stop_nobody_is_asked(self) -> None:
        self.update(self.laptop, 5)
        self.get(self.keys.stop())
        self.asked()
        self.update(self.laptop, 6, 5)
        self.clock.advance(10_000)
        self.assertEqual((self.asked(), self.clock.getDelayedCalls()), ([], []))

    def test_a_list_that_never_comes_to_rest_is_fetched_seldom(self) -> None:
        self.answer_list(5, self.laptop)
        for second in range(600):
            self.update(self.phone, 1000 + 2 * second, 999 + 2 * second)
            self.clock.advance(1)
        self.assertLess(len(self.asked()), 20)

    def test_one_slow_server_holds_up_nobody_else(self) -> None:
        users = [f"@u:s{number}" for number in range(5)]
        for user_id in users:
            self.rooms.put(ROOM, user_id)
            self.answer_list(5, Device(user_id, "D"), user_id=user_id)
        self.federation.hold(devices_path(users[0]))
        for user_id in users:
            self.update(Device(user_id, "D"), 5, origin=user_id.partition(":")[2])
        self.assertEqual(self.query(*users[1:]).failures, {})
        self.assertEqual([request.destination for request in self.federation.asked], ["s0", "s1", "s2", "s3", "s4"])

    def test_only_so_many_servers_are_asked_at_a_time(self) -> None:
        users = [f"@u:s{number}" for number in range(5)]
        for user_id in users:
            self.rooms.put(ROOM, user_id)
            self.federation.hold(devices_path(user_id))
            self.answer_list(5, Device(user_id, "D"), user_id=user_id)
            self.update(Device(user_id, "D"), 5, origin=user_id.partition(":")[2])
        self.assertEqual((len(self.asked()), self.keys.resyncs.waiting_servers), (2, 3))
        for user_id in users:
            self.federation.release(devices_path(user_id))
        self.assertEqual((len(self.asked()), self.keys.resyncs.waiting_servers), (3, 0))
        self.assertEqual(self.query(*users).failures, {})

    def test_a_flood_costs_one_request_at_a_time(self) -> None:
        users = [f"@u{number}:elsewhere" for number in range(60)]
        for user_id in users:
            self.rooms.put(ROOM, user_id)
            self.answer_list(7, Device(user_id, "D"), user_id=user_id)
        first = devices_path(users[0])
        self.federation.hold(first)
        for _ in range(3):
            for user_id in users:
                self.update(Device(user_id, "D"), 7, 6)
        self.assertEqual(len(self.federation.asked), 1)
        self.federation.release(first)
        self.clock.advance(1)
        self.assertEqual((len(self.asked()), len(self.query(*users).device_keys)), (60, 60))
        self.assertEqual(self.asked(), [])

    def test_an_operator_has_a_list_fetched_anew(self) -> None:
        self.answer_list(5, self.laptop)
        self.update(self.laptop, 5)
        self.clock.advance(5)
        self.answer_list(5, self.laptop, self.phone)
        self.get(self.keys.refresh_device_list(CAROL))
        self.assertEqual((self.asked(), len(self.shown())), ([CAROLS_PATH] * 2, 2))
        self.get(self.keys.refresh_device_list("@stranger:elsewhere"))
        self.assertEqual(self.asked(), [])
        self.check_refused(self.keys.refresh_device_list(ALICE), 400, "M_INVALID_PARAM")
        self.check_refused(self.keys.refresh_device_list("carol"), 400, "M_INVALID_PARAM")

    def test_devices_that_cannot_be_used_are_left_out(self) -> None:
        good = {"device_id": "LAPTOP", "keys": self.laptop.keys(), "device_display_name": "x" * 9000}
        devices: list[Any] = [
            7,
            {},
            {"device_id": "A"},
            {"device_id": 1, "keys": self.phone.keys()},
            {"device_id": "PHON", "keys": self.phone.keys()},
            {"device_id": "x" * 300, "keys": {"a": 1}},
            {"device_id": "E", "keys": {"unsigned": {}}},
            good,
        ]
        self.answer_list(5, devices=devices)
        self.update(self.laptop, 5)
        name = self.shown()["LAPTOP"]["unsigned"]["device_display_name"]
        self.assertEqual((set(self.shown()), name), ({"LAPTOP"}, "x" * 512))

    def test_a_list_has_a_limit(self) -> None:
        self.patch(remote_checks, "DEVICES_LIMIT", 3)
        self.answer_list(5, *[Device(CAROL, f"D{number}") for number in range(9)])
        self.update(self.laptop, 5)
        self.assertEqual(set(self.shown()), {"D0", "D1", "D2"})


class NoiseTests(RemoteCase):
    """Carol's devices change at random; updates are lost, doubled and out of order, and her server comes and goes."""

    PATH = devices_path(CAROL)

    def setUp(self) -> None:
        super().setUp()
        self.all_devices = [Device(CAROL, f"D{number}") for number in range(4)]
        self.truth: dict[str, str] = {}
        self.stream_id = 0
        self.under_way: list[dict[str, Any]] = []

    def change(self, chance: random.Random) -> None:
        """A device of Carol's comes, goes or is renamed, and an update leaves."""
        one = chance.choice(self.all_devices)
        deleted = one.device_id in self.truth and chance.random() < 0.3
        if deleted:
            del self.truth[one.device_id]
        else:
            self.truth[one.device_id] = f"name {self.stream_id}"
        self.stream_id += 1
        self.under_way.append(
            {
                "device": one,
                "ids": (self.stream_id, self.stream_id - 1),
                "deleted": deleted,
                "name": self.truth.get(one.device_id),
            }
        )

    def deliver(self, sent: dict[str, Any]) -> None:
        keys = None if sent["deleted"] else sent["device"].keys()
        self.update(sent["device"], *sent["ids"], deleted=sent["deleted"], device_display_name=sent["name"], keys=keys)

    def answer(self, request: Any) -> dict[str, Any]:
        devices = [
            {"device_id": one.device_id, "keys": one.keys(), "device_display_name": self.truth[one.device_id]}
            for one in self.all_devices
            if one.device_id in self.truth
        ]
        return {"user_id": CAROL, "stream_id": self.stream_id, "devices": devices}

    def step(self, chance: random.Random) -> None:
        what = chance.random()
        if what < 0.35:
            self.change(chance)
        elif what < 0.7 and self.under_way:
            sent = self.under_way[0 if chance.random() < 0.7 else chance.randrange(len(self.under_way))]
            if chance.random() < 0.85:
                self.deliver(sent)
            if chance.random() < 0.9:
                self.under_way.remove(sent)
        elif what < 0.8:
            self.clock.advance(chance.choice([0.1, 3, 70]))
        elif what < 0.85:
            answer = Unreachable("gone") if chance.random() < 0.3 else self.answer
            self.federation.answers["elsewhere", self.PATH] = answer
        elif what < 0.95:
            if self.PATH in self.federation.held:
                self.federation.release(self.PATH)
            else:
                self.federation.hold(self.PATH)
        else:
            self.federation.held.pop(self.PATH, None)
            self.restart()

    def settle(self, chance: random.Random) -> None:
        """All that is under way arrives, another change as the last, and time passes."""
        self.federation.answers["elsewhere", self.PATH] = self.answer
        if self.PATH in self.federation.held:
            self.federation.release(self.PATH)
        self.change(chance)
        last = self.under_way.pop()
        chance.shuffle(self.under_way)
        for sent in [*self.under_way, last]:
            self.deliver(sent)
        self.clock.advance(10_000)
        for _ in range(200):
            self.clock.advance(60)

    def test_in_the_end_the_list_is_right(self) -> None:
        for seed in range(30):
            self.setUp()
            chance = random.Random(seed)
            self.federation.answers["elsewhere", self.PATH] = self.answer
            for _ in range(60):
                self.step(chance)
            self.settle(chance)
            lists, stale = self.get(self.keys.lists.known([CAROL]))
            self.assertEqual(stale, [], seed)
            names = {
                device_id: orjson.loads(content)["unsigned"]["device_display_name"]
                for device_id, content in lists[CAROL].devices.items()
            }
            self.assertEqual(names, self.truth, seed)


class SigningKeyTests(RemoteCase):
    def setUp(self) -> None:
        super().setUp()
        self.carol = Identity(CAROL)
        self.master, self.self_signing = self.carol.public("master"), self.carol.public("self_signing")

    def know(self, **keys: Any) -> None:
        self.answer_list(5, self.laptop, **keys)
        self.update(self.laptop, 5)
        self.asked()
        self.told_users()
        self.clock.advance(5)

    def update_keys(self, master: Any = None, self_signing: Any = None, origin: str = "elsewhere") -> None:
        self.get(self.keys.signing_key_update(origin, CAROL, master, self_signing))

    def keys_shown(self) -> list[Any]:
        found = self.query()
        return [
            orjson.loads(keys[CAROL]) if CAROL in keys else None
            for keys in (found.master_keys, found.self_signing_keys)
        ]

    def test_they_come_with_the_list(self) -> None:
        self.know(master_key=self.master, self_signing_key=self.self_signing)
        self.assertEqual((self.keys_shown(), self.asked()), ([self.master, self.self_signing], []))

    def test_an_update_is_taken_and_told_once(self) -> None:
        self.know()
        for _ in range(2):
            self.update_keys(self.master, self.self_signing)
        self.assertEqual((self.keys_shown(), self.told_users()), ([self.master, self.self_signing], [CAROL]))
        self.assertEqual(self.asked(), [])

    def test_parts_are_added_to_what_is_there(self) -> None:
        self.know()
        self.update_keys(self.master)
        self.update_keys(None, self.self_signing)
        self.assertEqual(self.keys_shown(), [self.master, self.self_signing])

    def test_a_new_master_key_takes_the_old_signing_key_away(self) -> None:
        self.know(master_key=self.master, self_signing_key=self.self_signing)
        new = Identity(CAROL, "new")
        self.update_keys(new.public("master"))
        self.assertEqual(self.keys_shown(), [new.public("master"), None])

    def test_a_key_that_the_master_key_did_not_sign_is_not_believed(self) -> None:
        self.know(master_key=self.master, self_signing_key=Identity(CAROL, "evil").public("self_signing"))
        self.assertEqual(self.keys_shown(), [self.master, None])
        self.update_keys(None, Identity(CAROL, "evil").public("self_signing"))
        self.assertEqual((self.keys_shown(), self.asked()), ([self.master, None], [CAROLS_PATH]))

    def test_keys_of_another_shape_are_not_taken(self) -> None:
        self.know(master_key={**self.master, "user_id": ALICE}, self_signing_key=self.self_signing)
        self.assertEqual(self.keys_shown(), [None, None])

    def test_for_a_list_that_is_not_known_all_is_fetched(self) -> None:
        self.answer_list(5, self.laptop, master_key=self.master)
        self.update_keys(self.master)
        self.assertEqual((self.asked(), self.told_users()), ([CAROLS_PATH], [CAROL]))
        self.assertEqual(self.keys_shown(), [self.master, None])

    def test_keys_told_while_the_list_is_fetched_are_not_lost(self) -> None:
        path = devices_path(CAROL)
        self.answer_list(5, self.laptop)
        self.federation.hold(path)
        self.update(self.laptop, 5)
        self.update_keys(self.master)
        self.answer_list(5, self.laptop, master_key=self.master)
        self.federation.release(path)
        self.clock.advance(2)
        self.assertEqual((self.asked(), self.keys_shown()), ([CAROLS_PATH] * 2, [self.master, None]))

    def test_nobody_speaks_for_another_server(self) -> None:
        self.know()
        self.update_keys(self.master, origin="evil")
        self.assertEqual((self.keys_shown(), self.told_users()), ([None, None], []))


class EndTests(RemoteCase):
    """A list ends when its user shares no room any more."""

    def setUp(self) -> None:
        super().setUp()
        self.answer_list(5, self.laptop)
        self.update(self.laptop, 5)
        self.position = 0
        self.asked()

    def member(self, user_id: str, membership: str, room_id: str = ROOM, **more: Any) -> None:
        """A membership changes, and the component is told."""
        self.position += 1
        event = room_event(room_id, self.position, user_id, "m.room.member", {"membership": membership}, user_id)
        self.tell(self.rooms.output(event), **more)

    def tell(self, output: OutputRoomEvent, **more: Any) -> None:
        self.get(self.keys.memberships_changed(msgspec.structs.replace(output, **more)))

    def is_kept(self) -> bool:
        return CAROL in self.get(self.keys.lists.known([CAROL]))[0]

    def test_when_they_leave_the_last_room(self) -> None:
        self.rooms.put("!other:test", CAROL)
        self.rooms.put("!other:test", ALICE)
        self.member(CAROL, "leave")
        self.assertTrue(self.is_kept())
        self.member(CAROL, "ban", "!other:test")
        self.assertFalse(self.is_kept())

    def test_a_room_without_users_of_this_server_does_not_count(self) -> None:
        self.rooms.put("!other:elsewhere", CAROL)
        self.rooms.put("!other:elsewhere", "@dora:far")
        self.member(CAROL, "leave")
        self.assertFalse(self.is_kept())

    def test_when_the_last_of_ours_leaves(self) -> None:
        self.member(BOB, "join")
        self.member(ALICE, "leave")
        self.assertTrue(self.is_kept())
        self.member(BOB, "leave")
        self.assertFalse(self.is_kept())

    def test_when_a_resolution_of_state_takes_them_out(self) -> None:
        message = self.rooms.output(room_event(ROOM, 9, ALICE))
        self.tell(message)
        self.assertTrue(self.is_kept())
        self.rooms.put(ROOM, CAROL, "leave")
        self.tell(message, also_removed=[("m.room.member", CAROL), ("m.room.name", "")])
        self.assertFalse(self.is_kept())

    def test_who_came_back_before_it_was_noticed_is_asked_anew(self) -> None:
        event = room_event(ROOM, 1, CAROL, "m.room.member", {"membership": "leave"}, CAROL)
        output = self.rooms.output(event)
        self.rooms.put(ROOM, CAROL)
        self.tell(output)
        self.answer_list(6, self.phone)
        self.assertEqual((set(self.shown()), self.asked()), ({"PHONE"}, ["%40carol%3Aelsewhere"]))

    def test_an_update_of_one_who_is_gone_ends_it_too(self) -> None:
        self.rooms.put(ROOM, CAROL, "leave")
        self.update(self.phone, 6, 5)
        self.assertFalse(self.is_kept())

    def test_an_answer_that_comes_after_the_end_is_not_kept(self) -> None:
        path = devices_path(CAROL)
        self.federation.hold(path)
        self.update(self.phone, 9, 8)
        self.member(CAROL, "leave")
        self.member(CAROL, "join")
        self.federation.release(path)
        self.clock.advance(100)
        self.assertFalse(self.is_kept())

    def test_nor_is_that_to_a_query(self) -> None:
        self.member(CAROL, "leave")
        self.member(CAROL, "join")
        self.answer_query(self.laptop)
        self.federation.hold(QUERY)
        asked = self.begin(self.keys.query_keys(ALICE, {CAROL: []}, 1000))
        self.member(CAROL, "leave")
        self.member(CAROL, "join")
        self.federation.release(QUERY)
        self.assertEqual(set(self.successResultOf(asked).device_keys[CAROL]), {"LAPTOP"})
        self.assertFalse(self.is_kept())

    def test_a_list_that_waits_for_its_server_ends(self) -> None:
        self.federation.answers["elsewhere", devices_path(CAROL)] = Unreachable("gone")
        self.update(self.phone, 9, 8)
        self.rooms.put(ROOM, CAROL, "leave")
        self.asked()
        self.clock.advance(100)
        self.assertEqual((self.asked(), self.is_kept()), ([], False))

    def test_local_users_cost_nothing(self) -> None:
        self.rooms.asked.clear()
        self.member(BOB, "join")
        self.member(BOB, "leave")
        self.assertEqual(self.rooms.asked, [])
