"""Messages between devices: each once, in order, none lost, none for others."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson

from dendrite_tw.user_api import to_device
from dendrite_tw.user_api.api import OUTPUT_SEND_TO_DEVICE_EVENT, ToDeviceMessage
from dendrite_tw.user_api.keys_component import KeyComponent
from dendrite_tw.user_api.tables import to_device as table
from tests.harness import ask, trace
from tests.user_api.keys_support import ALICE, BOB, CAROL, KeysCase


class ToDeviceTests(KeysCase):
    def send(self, messages: Any, txn_id: str = "1", type: str = "m.test", sender: str = BOB) -> None:
        self.get(self.keys.send_to_device(sender, "BOBDEV", type, txn_id, messages))

    def waiting(self, user_id: str, device_id: str, after: int = 0, limit: int = 100) -> list[ToDeviceMessage]:
        return self.get(self.keys.to_device_since(user_id, device_id, after, self.position(), limit))

    def contents(self, user_id: str, device_id: str, after: int = 0) -> list[Any]:
        return [orjson.loads(message.event)["content"] for message in self.waiting(user_id, device_id, after)]

    def test_a_message_arrives_as_it_was_sent(self) -> None:
        self.send({ALICE: {"ALICEDEV": {"a": [1, "é"]}}})
        (message,) = self.waiting(ALICE, "ALICEDEV")
        self.assertEqual(orjson.loads(message.event), {"sender": BOB, "type": "m.test", "content": {"a": [1, "é"]}})
        self.assertEqual((message.position, self.waiting(ALICE, "ALICE2")), (self.position(), []))
        (row,) = self.told
        told = msgspec.msgpack.decode(row.payload, type=ToDeviceMessage)
        self.assertEqual((row.stream, row.id), (OUTPUT_SEND_TO_DEVICE_EVENT, message.position))
        self.assertEqual(told, message)

    def test_the_wildcard_reaches_every_device_and_its_own_message_goes_before(self) -> None:
        self.send({ALICE: {"ALICE2": {"for": "one"}, "*": {"for": "all"}}, "@nobody:test": {"*": {}}})
        self.assertEqual(self.contents(ALICE, "ALICEDEV"), [{"for": "all"}])
        self.assertEqual(self.contents(ALICE, "ALICE2"), [{"for": "one"}])
        self.assertEqual(len(self.told), 2)

    def test_devices_that_do_not_exist_get_nothing(self) -> None:
        self.send({ALICE: {"NONE": {}}})
        self.assertEqual((self.waiting(ALICE, "NONE"), self.told), ([], []))

    def test_a_transaction_is_done_once(self) -> None:
        for _ in range(3):
            self.send({ALICE: {"ALICEDEV": {"n": 1}}})
        self.send({ALICE: {"ALICEDEV": {"n": 2}}}, type="m.other")
        self.get(self.make().send_to_device(BOB, "BOBDEV", "m.test", "1", {ALICE: {"ALICEDEV": {"n": 3}}}))
        self.get(self.keys.send_to_device(BOB, "ANOTHER", "m.test", "1", {ALICE: {"ALICEDEV": {"n": 4}}}))
        self.assertEqual(self.contents(ALICE, "ALICEDEV"), [{"n": 1}, {"n": 2}, {"n": 4}])

    def test_transactions_are_forgotten_after_a_day(self) -> None:
        self.send({ALICE: {"ALICEDEV": {}}})
        self.memory.clock.advance(24 * 3600 - 1)
        self.get(self.keys.prune())
        self.send({ALICE: {"ALICEDEV": {}}})
        self.assertEqual(len(self.told), 1)
        self.memory.clock.advance(2)
        self.get(self.keys.prune())
        self.send({ALICE: {"ALICEDEV": {}}})
        self.assertEqual(len(self.told), 2)

    def test_messages_wait_until_the_device_has_them(self) -> None:
        for number in range(5):
            self.send({ALICE: {"ALICEDEV": {"n": number}}}, str(number))
        first = self.waiting(ALICE, "ALICEDEV", limit=3)
        self.assertEqual(len(first), 3)
        self.assertEqual(self.contents(ALICE, "ALICEDEV", first[-1].position), [{"n": 3}, {"n": 4}])
        self.get(self.keys.delete_to_device(ALICE, "ALICEDEV", first[-1].position))
        self.assertEqual(self.contents(ALICE, "ALICEDEV"), [{"n": 3}, {"n": 4}])
        self.get(self.keys.delete_to_device(ALICE, "ALICEDEV", 0))
        self.get(self.keys.delete_to_device(BOB, "BOBDEV", 10**6))
        self.assertEqual(self.contents(ALICE, "ALICEDEV"), [{"n": 3}, {"n": 4}])
        self.get(self.keys.delete_to_device(ALICE, "ALICEDEV", self.position()))
        self.assertEqual(self.contents(ALICE, "ALICEDEV"), [])
        self.send({ALICE: {"ALICEDEV": {"n": 5}}}, "5")
        self.assertEqual(self.contents(ALICE, "ALICEDEV"), [{"n": 5}])

    def test_only_what_is_within_the_token_is_given(self) -> None:
        self.send({ALICE: {"ALICEDEV": {"n": 1}}})
        position = self.position()
        self.send({ALICE: {"ALICEDEV": {"n": 2}}}, "2")
        upto = self.get(self.keys.to_device_since(ALICE, "ALICEDEV", 0, position, 100))
        self.assertEqual([message.position for message in upto], [position])

    def statements_of(self, keys: KeyComponent) -> list[str]:
        statements = trace(self.database)
        self.get(keys.to_device_since(ALICE, "ALICEDEV", 0, 10**6, 100))
        self.get(keys.delete_to_device(ALICE, "ALICEDEV", 10**6))
        return statements

    def test_an_empty_inbox_is_not_read(self) -> None:
        self.assertEqual(len(self.statements_of(self.keys)), 1, "the first look")
        self.assertEqual(self.statements_of(self.keys), [])
        self.send({ALICE: {"ALICEDEV": {}}})
        self.assertEqual(len(self.waiting(ALICE, "ALICEDEV")), 1)
        self.get(self.keys.delete_to_device(ALICE, "ALICEDEV", 10**6))
        self.assertEqual(self.statements_of(self.keys), [])

    def test_a_process_among_others_remembers_nothing(self) -> None:
        here, there = self.make(exclusive=False), self.make(exclusive=False)
        self.assertEqual(self.get(here.to_device_since(ALICE, "ALICEDEV", 0, 10**6, 10)), [])
        self.get(there.send_to_device(BOB, "BOBDEV", "m.test", "1", {ALICE: {"ALICEDEV": {}}}))
        self.assertEqual(len(self.get(here.to_device_since(ALICE, "ALICEDEV", 0, 10**6, 10))), 1)

    def test_a_deleted_device_has_no_inbox(self) -> None:
        self.send({ALICE: {"*": {}}})
        self.assertEqual(len(self.waiting(ALICE, "ALICEDEV")), 1)
        self.delete_device(ALICE, "ALICEDEV")
        self.assertEqual(self.waiting(ALICE, "ALICEDEV"), [])
        self.assertEqual(len(self.waiting(ALICE, "ALICE2")), 1)

    def test_messages_for_other_servers_are_told_with_their_destination(self) -> None:
        self.send({CAROL: {"*": {"n": 1}, "D": {"n": 2}}, ALICE: {"ALICEDEV": {"n": 3}}})
        self.assertEqual(len(self.told), 3)
        remote = [row for row in self.told if row.headers != b"{}"]
        headers = [orjson.loads(row.headers) for row in remote]
        self.assertEqual(headers[0], headers[1])
        self.assertEqual(
            {name: headers[0][name] for name in ("destination", "sender", "type")},
            {"destination": "elsewhere", "sender": BOB, "type": "m.test"},
        )
        self.assertTrue(0 < len(headers[0]["message_id"]) <= 32)
        told = [msgspec.msgpack.decode(row.payload, type=ToDeviceMessage) for row in remote]
        self.assertEqual({one.device_id: orjson.loads(one.event)["content"]["n"] for one in told}, {"*": 1, "D": 2})
        self.assertEqual({one.message_id for one in told}, {headers[0]["message_id"]})
        self.assertEqual(self.waiting(CAROL, "D"), [])

    def test_senders_of_other_servers_reach_local_users_only(self) -> None:
        for _ in range(2):
            self.get(
                self.keys.send_to_device(
                    CAROL, "", "m.test", "edu-1", {ALICE: {"ALICEDEV": {"n": 1}}, CAROL: {"*": {}}}
                )
            )
        self.assertEqual(self.contents(ALICE, "ALICEDEV"), [{"n": 1}])
        self.assertEqual(len(self.told), 1)

    def test_another_servers_messages_to_nobody_leave_nothing(self) -> None:
        for number, messages in enumerate([{}, {ALICE: {"GONE": {}}}, {"@nobody:test": {"*": {}}}, {CAROL: {"*": {}}}]):
            self.get(self.keys.send_to_device(CAROL, "", "m.test", f"edu-{number}", messages))
        self.assertEqual(ask(self.database, "SELECT COUNT(*) FROM to_device_transactions"), [(0,)])

    def test_what_no_client_could_read_is_refused(self) -> None:
        deep: dict[str, Any] = {}
        for _ in range(300):
            deep = {"a": deep}
        for content in (deep, {"n": 10**30}):
            for sender in (ALICE, CAROL):
                self.check_refused(
                    self.keys.send_to_device(sender, "", "m.test", "1", {ALICE: {"*": content}}), 400, "M_BAD_JSON"
                )

    def parts(self, messages: dict[str, dict[str, Any]]) -> dict[tuple[str, str], int]:
        """How many messages leave in each EDU: destination and message ID."""
        self.told.clear()
        self.send(messages, txn_id=str(len(messages)))
        found: dict[tuple[str, str], int] = {}
        for row in self.told:
            headers = orjson.loads(row.headers)
            key = headers["destination"], headers["message_id"]
            found[key] = found.get(key, 0) + 1
        return found

    def test_an_edu_has_a_size_and_keeps_a_user_together(self) -> None:
        many = self.parts({f"@u{number}:elsewhere": {"A": {}, "B": {}, "C": {}} for number in range(400)})
        self.assertEqual(sorted(many.values()), [204, 498, 498])
        big = self.parts({f"@u{number}:s{number % 2}": {"A": {"x": "x" * 60_000}} for number in range(12)})
        self.assertEqual(
            sorted((server, count) for (server, _), count in big.items()), [("s0", 2), ("s0", 4), ("s1", 2), ("s1", 4)]
        )
        self.assertEqual(len({message_id for _, message_id in big}), 4)

    def test_a_client_that_repeats_itself_sends_nothing_again(self) -> None:
        for _ in range(3):
            self.send({CAROL: {"D": {}}})
        self.assertEqual(len(self.told), 1)

    def test_a_message_of_another_server_is_known_by_its_sender_and_id(self) -> None:
        def receive(sender: str, type: str, message_id: str) -> None:
            self.get(self.keys.send_to_device(sender, "", type, message_id, {ALICE: {"*": {}}}))

        for sender, type, message_id in [
            (CAROL, "m.a", "1"),
            (CAROL, "m.b", "1"),
            ("@dora:elsewhere", "m.a", "1"),
            (CAROL, "m.a", "2"),
        ]:
            for _ in range(2):
                receive(sender, type, message_id)
        self.assertEqual((len(self.waiting(ALICE, "ALICEDEV")), len(self.waiting(ALICE, "ALICE2"))), (3, 3))
        self.memory.clock.advance(13 * 24 * 3600)
        self.get(self.keys.prune())
        self.keys = self.make()
        receive(CAROL, "m.a", "1")
        self.assertEqual(len(self.waiting(ALICE, "ALICEDEV")), 3)
        self.memory.clock.advance(2 * 24 * 3600)
        self.get(self.keys.prune())
        receive(CAROL, "m.a", "1")
        self.assertEqual(len(self.waiting(ALICE, "ALICEDEV")), 4)

    def test_one_that_is_too_large_is_left_out_of_another_servers(self) -> None:
        messages = {ALICE: {"ALICEDEV": {"x": "x" * 70_000}, "ALICE2": {"n": 1}}}
        self.get(self.keys.send_to_device(CAROL, "", "m.test", "1", messages))
        self.assertEqual((self.contents(ALICE, "ALICEDEV"), self.contents(ALICE, "ALICE2")), ([], [{"n": 1}]))

    def test_requests_that_do_not_fit_are_refused(self) -> None:
        send = self.keys.send_to_device
        for messages, status, errcode in [
            ({"alice": {"D": {}}}, 400, "M_INVALID_PARAM"),
            ({"@a\0:test": {"D": {}}}, 400, "M_INVALID_PARAM"),
            ({ALICE: {"": {}}}, 400, "M_INVALID_PARAM"),
            ({ALICE: {"x" * 256: {}}}, 400, "M_INVALID_PARAM"),
            ({ALICE: {"ALICEDEV": []}}, 400, "M_BAD_JSON"),
            ({ALICE: {"ALICEDEV": {"x": "x" * 70_000}}}, 413, "M_TOO_LARGE"),
            ({ALICE: {str(number): {} for number in range(5001)}}, 413, "M_TOO_LARGE"),
        ]:
            self.check_refused(send(BOB, "BOBDEV", "m.test", "1", messages), status, errcode)  # type: ignore[arg-type]
        self.check_refused(send(BOB, "BOBDEV", "", "1", {}), 400, "M_INVALID_PARAM")
        self.check_refused(send(BOB, "BOBDEV", "m.test", "x" * 256, {}), 400, "M_INVALID_PARAM")
        self.devices[ALICE] = {str(number): None for number in range(10_001)}
        self.check_refused(send(BOB, "BOBDEV", "m.test", "1", {ALICE: {"*": {}}}), 413, "M_TOO_LARGE")
        del self.devices[ALICE]["0"]
        self.send({ALICE: {"*": {}}})

    def test_what_a_wildcard_multiplies_is_bounded(self) -> None:
        self.patch(to_device, "TOTAL_LIMIT", 3_000)
        messages: dict[str, dict[str, Any]] = {ALICE: {"*": {"x": "x" * 2_000}}}
        self.check_refused(self.keys.send_to_device(BOB, "BOBDEV", "m.test", "1", messages), 413, "M_TOO_LARGE")
        del self.devices[ALICE]["ALICE2"]
        self.send(messages)
        self.assertEqual(len(self.told), 1)

    def test_an_inbox_keeps_the_newest(self) -> None:
        self.patch(table, "INBOX_LIMIT", 20)
        self.patch(to_device, "CHECK_EVERY", 10)
        for number in range(55):
            self.send({ALICE: {"*": {"n": number}}}, str(number))
        for device_id in ("ALICEDEV", "ALICE2"):
            contents = self.contents(ALICE, device_id)
            self.assertEqual(contents, [{"n": number} for number in range(30, 55)])
