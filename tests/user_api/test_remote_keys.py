"""Keys of users of other servers: asked for once, within the client's time, believed as far as they make sense."""

from __future__ import annotations

from typing import Any

import orjson

from dendrite_tw.federation_api.api import BackingOff, NoFederation, RemoteRefused
from dendrite_tw.user_api import remote_keys
from dendrite_tw.user_api.api import ClaimedKeys, QueriedKeys
from tests.user_api.keys_support import Identity
from tests.user_api.remote_support import ALICE, BOB, CAROL, CLAIM, QUERY, ROOM, Device, RemoteCase, devices_path

SIGNED = "signed_curve25519"
DORA = "@dora:elsewhere"


class WholeListTests(RemoteCase):
    """Of a few users who share a room the lists are asked for one by one."""

    def setUp(self) -> None:
        super().setUp()
        self.answer_list(3, self.laptop, self.phone)

    def test_a_list_is_asked_for_once_and_then_kept(self) -> None:
        for _ in range(2):
            found = self.get(self.keys.query_keys(ALICE, {CAROL: ["PHONE", "NONE"]}, 1000))
            self.assertEqual(set(found.device_keys[CAROL]), {"PHONE"})
        self.restart()
        self.assertEqual((set(self.shown()), self.asked()), ({"LAPTOP", "PHONE"}, ["%40carol%3Aelsewhere"]))

    def test_those_who_asked_before_and_had_no_answer_are_told(self) -> None:
        answers, self.federation.answers = self.federation.answers, {}
        self.assertEqual(set(self.query().failures), {"elsewhere"})
        self.assertEqual(self.told_users(), [])
        self.federation.answers = answers
        self.query()
        self.assertEqual(self.told_users(), [CAROL])

    def test_updates_follow_it(self) -> None:
        self.query()
        self.update(Device(CAROL, "TABLET"), 4, 3)
        self.assertEqual((len(self.shown()), self.asked()), (3, ["%40carol%3Aelsewhere"]))

    def test_an_update_meanwhile_counts_more(self) -> None:
        path = devices_path(CAROL)
        self.federation.hold(path)
        asked = self.begin(self.keys.query_keys(ALICE, {CAROL: []}, 5000))
        self.answer_list(6, self.phone)
        self.update(self.phone, 6, 5)
        self.federation.release(path)
        self.successResultOf(asked)
        self.assertEqual(set(self.shown()), {"PHONE"})

    def test_one_who_left_meanwhile_is_not_kept(self) -> None:
        path = devices_path(CAROL)
        self.federation.hold(path)
        asked = self.begin(self.keys.query_keys(ALICE, {CAROL: []}, 5000))
        self.rooms.put(ROOM, CAROL, "leave")
        self.update(self.phone, 6, 5)
        self.federation.release(path)
        self.assertEqual(len(self.successResultOf(asked).device_keys[CAROL]), 2)
        self.assertEqual(self.get(self.keys.lists.known([CAROL])), ({}, []))

    def test_what_cannot_be_used_leaves_the_query(self) -> None:
        self.answer_query(self.laptop)
        for answer in ({"user_id": ALICE}, RemoteRefused(404, "M_NOT_FOUND", "no")):
            self.federation.answers["elsewhere", devices_path(CAROL)] = answer
            self.assertEqual(set(self.query().device_keys[CAROL]), {"LAPTOP"})
            self.assertEqual(self.asked(), ["%40carol%3Aelsewhere", "query"])
            self.get(self.keys.lists.end([CAROL]))

    def test_many_are_asked_about_together(self) -> None:
        users = [f"@u{number}:elsewhere" for number in range(remote_keys.WHOLE_LISTS + 1)]
        self.answer_query(*[Device(user_id, "D") for user_id in users])
        for user_id in users:
            self.rooms.put(ROOM, user_id)
        self.assertEqual((len(self.query(*users).device_keys), self.asked()), (len(users), ["query"]))

    def test_who_shares_no_room_is_not_kept(self) -> None:
        self.answer_query(self.laptop)
        self.query(requester=BOB)
        self.assertEqual(self.asked(), ["query"])


class QueryTests(RemoteCase):
    def setUp(self) -> None:
        super().setUp()
        self.answer_query(self.laptop, self.phone)
        self.patch(remote_keys, "WHOLE_LISTS", 0)

    def test_a_list_is_asked_for_once_and_then_kept(self) -> None:
        self.assertEqual(set(self.shown()), {"LAPTOP", "PHONE"})
        (request,) = self.federation.asked
        self.assertEqual((request.method, request.body), ("POST", {"device_keys": {CAROL: []}}))
        self.assertEqual((set(self.shown()), self.asked()), ({"LAPTOP", "PHONE"}, ["query"]))
        self.restart()
        self.federation.answers.clear()
        self.assertEqual((set(self.shown()), self.asked()), ({"LAPTOP", "PHONE"}, []))
        self.assertEqual(self.told_users(), [], "nobody has seen anything else before")

    def test_keys_are_shown_as_they_came(self) -> None:
        keys = {**self.laptop.keys(extra=[1, None]), "unsigned": {"device_display_name": "x", "forged": True}}
        self.federation.answers["elsewhere", QUERY] = {"device_keys": {CAROL: {"LAPTOP": keys}}}
        shown = {**keys, "unsigned": {"device_display_name": "x"}}
        self.assertEqual([self.shown(), self.shown()], [{"LAPTOP": shown}] * 2)

    def test_an_update_after_it_makes_the_list_numbered(self) -> None:
        self.query()
        self.answer_list(9, self.laptop)
        self.update(self.laptop, 9, 8)
        self.assertEqual((set(self.shown()), len(self.asked())), ({"LAPTOP"}, 2))
        self.update(self.phone, 10, 9)
        self.assertEqual((set(self.shown()), self.asked()), ({"LAPTOP", "PHONE"}, []))

    def test_named_devices_alone_are_shown_and_all_are_kept(self) -> None:
        for _ in range(2):
            found = self.get(self.keys.query_keys(ALICE, {CAROL: ["PHONE", "NONE"]}, 1000))
            self.assertEqual(set(found.device_keys[CAROL]), {"PHONE"})
        self.assertEqual((set(self.shown()), self.asked()), ({"LAPTOP", "PHONE"}, ["query"]))

    def test_who_shares_no_room_is_asked_about_each_time(self) -> None:
        for _ in range(2):
            self.assertEqual(set(self.query(requester=BOB).device_keys[CAROL]), {"LAPTOP", "PHONE"})
        self.assertEqual(self.asked(), ["query"] * 2)

    def test_one_request_for_all_users_of_a_server_and_all_servers_at_once(self) -> None:
        self.federation.hold(QUERY)
        users = [f"@u{number}:s{server}" for number in range(3) for server in range(3)]
        asked = self.begin(self.keys.query_keys(ALICE, {user_id: [] for user_id in [*users, BOB]}, 1000))
        self.assertEqual([request.destination for request in self.federation.asked], ["s0", "s1", "s2"])
        self.assertEqual([len(request.body or {}) for request in self.federation.asked], [1] * 3)
        self.federation.release(QUERY)
        found = self.successResultOf(asked)
        self.assertEqual((set(found.failures), found.device_keys), ({"s0", "s1", "s2"}, {BOB: {}}))

    def test_servers_that_fail_do_not_hide_the_others(self) -> None:
        self.rooms.put(ROOM, "@slow:slow")
        self.federation.answers["refuses", QUERY] = RemoteRefused(403, "M_FORBIDDEN", "not you")
        self.federation.answers["absent", QUERY] = BackingOff("absent", 1000)
        users = {CAROL: [], "@a:refuses": [], "@b:absent": [], "@c:unheard": [], ALICE: []}
        found = self.get(self.keys.query_keys(ALICE, users, 1000))
        self.assertEqual(set(found.device_keys), {CAROL, ALICE})
        self.assertEqual(
            {server: failure["status"] for server, failure in found.failures.items()},
            {"refuses": 403, "absent": 503, "unheard": 503},
        )

    def test_the_time_of_the_client_is_kept_to(self) -> None:
        self.query(timeout_ms=700)
        self.query("@x:elsewhere", timeout_ms=10**9)
        self.assertEqual([request.timeout_ms for request in self.federation.asked], [700, 60_000])
        self.asked()
        self.assertEqual((set(self.query("@y:elsewhere", timeout_ms=0).failures), self.asked()), ({"elsewhere"}, []))

    def test_those_who_wait_for_a_turn_wait_as_long_as_their_client(self) -> None:
        self.patch(remote_keys, "REQUESTS_AT_ONCE", 2)
        self.keys = self.make()
        self.federation.hold(QUERY)
        first = self.begin(self.keys.query_keys(ALICE, {f"@a:s{number}": [] for number in range(5)}, 60_000))
        second = self.begin(self.keys.query_keys(ALICE, {CAROL: []}, 2000))
        self.assertEqual(len(self.asked()), 2)
        self.clock.advance(2)
        self.assertEqual(set(self.successResultOf(second).failures), {"elsewhere"})
        self.federation.release(QUERY)
        self.assertEqual((len(self.successResultOf(first).failures), len(self.asked())), (5, 3))
        self.assertEqual(len(self.shown()), 2)

    def test_clients_that_ask_at_the_same_time_share_an_answer(self) -> None:
        self.federation.hold(QUERY)
        asked = [self.begin(self.keys.query_keys(ALICE, {CAROL: []}, 1000)) for _ in range(50)]
        self.assertEqual(len(self.federation.asked), 1)
        self.federation.release(QUERY)
        self.assertEqual([len(self.successResultOf(one).device_keys[CAROL]) for one in asked], [2] * 50)
        self.assertEqual(self.asked(), ["query"])

    def test_but_no_longer_than_their_own_time(self) -> None:
        self.federation.hold(QUERY)
        first = self.begin(self.keys.query_keys(ALICE, {CAROL: []}, 9000))
        second = self.begin(self.keys.query_keys(ALICE, {CAROL: []}, 1000))
        self.clock.advance(1)
        self.assertEqual(set(self.successResultOf(second).failures), {"elsewhere"})
        second = self.begin(self.keys.query_keys(ALICE, {CAROL: []}, 1000))
        second.cancel()
        self.failureResultOf(second)
        self.federation.release(QUERY)
        self.assertEqual(len(self.successResultOf(first).device_keys[CAROL]), 2)

    def test_many_users_of_a_server_are_asked_about_in_parts(self) -> None:
        users = [f"@u{number}:elsewhere" for number in range(1201)]
        self.answer_query(*[Device(user_id, "D") for user_id in users])
        for user_id in users:
            self.rooms.put(ROOM, user_id)
        self.assertEqual((len(self.query(*users).device_keys), len(self.asked())), (1201, 3))
        self.assertEqual((len(self.query(*users).device_keys), len(self.asked())), (1201, 0))

    def test_without_federation_all_others_fail(self) -> None:
        self.federation = NoFederation()  # type: ignore[assignment]
        self.keys = self.make()
        self.assertEqual(set(self.query().failures), {"elsewhere"})
        claimed = self.get(self.keys.claim_keys({CAROL: {"D": SIGNED}}, 1000))
        self.assertEqual((set(claimed.failures), claimed.one_time_keys), ({"elsewhere"}, {}))

    def test_other_servers_are_not_asked_for_other_servers(self) -> None:
        self.assertEqual(self.get(self.keys.query_keys(CAROL, {CAROL: []}, 1000, local_only=True)), QueriedKeys())
        claimed = self.get(self.keys.claim_keys({CAROL: {"D": SIGNED}}, 1000, local_only=True))
        self.assertEqual((claimed, self.asked()), (ClaimedKeys(), []))

    def test_an_answer_counts_for_those_who_were_asked_about(self) -> None:
        self.rooms.put(ROOM, DORA)
        self.answer_query(self.laptop, Device(ALICE, "FORGED"), Device(DORA, "D"), master_keys={ALICE: {}})
        found = self.query()
        self.assertEqual((set(found.device_keys), found.master_keys), ({CAROL}, {}))
        self.assertEqual(self.get(self.keys.lists.known([DORA])), ({}, []))

    def test_strange_answers_harm_nobody(self) -> None:
        good = self.laptop.keys()
        for strange in (
            {},
            {"device_keys": 7},
            {"device_keys": {CAROL: 7}},
            {"device_keys": {CAROL: []}, "master_keys": [], "self_signing_keys": {CAROL: {}}},
        ):
            self.federation.answers["elsewhere", QUERY] = strange
            self.assertEqual(self.query(), QueriedKeys(), strange)
        strange_devices: dict[str, Any] = {
            "LAPTOP": good,
            "A": 7,
            "PHONE": good,
            "": good,
            "B": {**self.phone.keys(), "device_id": "B", "user_id": ALICE},
            "C": {**self.phone.keys(), "device_id": "C", "unsigned": 7, "signatures": []},
            "D": {"device_id": "D", "unsigned": 7},
        }
        self.federation.answers["elsewhere", QUERY] = {"device_keys": {CAROL: strange_devices}}
        self.assertEqual(set(self.shown()), {"LAPTOP", "D"})

    def test_cross_signing_keys_come_along(self) -> None:
        carol = Identity(CAROL)
        keys = {
            "master_keys": {CAROL: carol.public("master")},
            "self_signing_keys": {CAROL: carol.public("self_signing")},
            "user_signing_keys": {CAROL: carol.public("user_signing")},
        }
        self.answer_query(self.laptop, **keys)
        for _ in range(2):
            found = self.query()
            self.assertEqual(orjson.loads(found.master_keys[CAROL]), carol.public("master"))
            self.assertEqual(orjson.loads(found.self_signing_keys[CAROL]), carol.public("self_signing"))
            self.assertEqual(found.user_signing_keys, {})

    def test_an_update_while_a_query_is_answered_counts_more(self) -> None:
        self.federation.hold(QUERY)
        asked = self.begin(self.keys.query_keys(ALICE, {CAROL: []}, 5000))
        self.answer_list(6, self.phone)
        self.update(self.phone, 6, 5)
        self.federation.release(QUERY)
        self.assertEqual(len(self.successResultOf(asked).device_keys[CAROL]), 2)
        self.asked()
        self.assertEqual((set(self.shown()), self.asked()), ({"PHONE"}, []))


class ClaimTests(RemoteCase):
    def setUp(self) -> None:
        super().setUp()
        self.answer_claim({CAROL: {"LAPTOP": self.laptop.one_time("a"), "PHONE": self.phone.one_time("b")}})

    def answer_claim(self, keys: Any) -> None:
        self.federation.answers["elsewhere", CLAIM] = {"one_time_keys": keys}

    def claim(self, *device_ids: str) -> Any:
        """The keys that Carol's server gives, decoded."""
        wanted = {CAROL: dict.fromkeys(device_ids, SIGNED)}
        claimed = self.get(self.keys.claim_keys(wanted, 1000)).one_time_keys.get(CAROL, {})
        return {
            device_id: {name: orjson.loads(key) for name, key in keys.items()} for device_id, keys in claimed.items()
        }

    def test_keys_are_passed_on(self) -> None:
        self.assertEqual(self.claim("LAPTOP"), {"LAPTOP": self.laptop.one_time("a")})
        (request,) = self.federation.asked
        self.assertEqual(request.body, {"one_time_keys": {CAROL: {"LAPTOP": SIGNED}}})

    def test_local_and_other_users_in_one_request(self) -> None:
        phone = Device(ALICE, "ALICEDEV")
        self.get(self.upload(phone, one_time=phone.one_time("a")))
        wanted = {ALICE: {"ALICEDEV": SIGNED}, CAROL: {"PHONE": SIGNED}, "@x:gone": {"D": SIGNED}}
        claimed = self.get(self.keys.claim_keys(wanted, 1000))
        self.assertEqual((set(claimed.one_time_keys), set(claimed.failures)), ({ALICE, CAROL}, {"gone"}))

    def test_strange_answers_harm_nobody(self) -> None:
        signed = self.laptop.one_time("a")[f"{SIGNED}:a"]
        for strange in (
            7,
            {CAROL: 7},
            {CAROL: {"LAPTOP": 7}},
            {CAROL: {"PHONE": self.phone.one_time("a")}},
            {ALICE: {"LAPTOP": self.laptop.one_time("a")}},
            {CAROL: {"LAPTOP": {"curve25519:a": "x"}}},
            {CAROL: {"LAPTOP": {SIGNED: signed}}},
            {CAROL: {"LAPTOP": {f"{SIGNED}:a": "x"}}},
            {CAROL: {"LAPTOP": {f"{SIGNED}:a": {"key": "x"}}}},
            {CAROL: {"LAPTOP": {f"{SIGNED}:a": {**signed, "more": "x" * 5000}}}},
        ):
            self.answer_claim(strange)
            self.assertEqual(self.claim("LAPTOP"), {}, strange)

    def test_a_device_gives_one_key(self) -> None:
        self.answer_claim({CAROL: {"LAPTOP": {"other:x": "y", **self.laptop.one_time("a", "b")}}})
        self.assertEqual(self.claim("LAPTOP"), {"LAPTOP": self.laptop.one_time("a")})


class StreamTests(RemoteCase):
    """What other servers are told of a local user's list."""

    def test_updates_continue_the_list_whatever_else_changes(self) -> None:
        phone, alice = Device(ALICE, "ALICEDEV"), Identity(ALICE)
        self.get(self.upload(phone))
        first = self.get(self.keys.device_list(ALICE)).stream_id
        self.get(self.keys.upload_cross_signing_keys(ALICE, alice.keys(), True))
        self.assertGreater(self.position(), first)
        self.assertEqual(self.get(self.keys.device_list(ALICE)).stream_id, first)
        self.told.clear()
        self.get(self.upload(Device(ALICE, "ALICE2")))
        (change,) = self.key_changes()
        listed = self.get(self.keys.device_list(ALICE))
        self.assertEqual((change.previous, change.position), (first, listed.stream_id))
        self.assertEqual({entry.device_id for entry in listed.devices}, {"ALICEDEV", "ALICE2"})

    def test_a_user_whose_devices_are_gone_has_an_empty_list(self) -> None:
        for device_id in list(self.devices[ALICE]):
            self.delete_device(ALICE, device_id)
        del self.devices[ALICE]
        listed = self.get(self.keys.device_list(ALICE))
        self.assertEqual((listed.devices, listed.stream_id), ([], self.position()))
        self.check_refused(self.keys.device_list("@nobody:test"), 404, "M_NOT_FOUND")
