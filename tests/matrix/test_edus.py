"""EDUs and the transactions that bring them."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson
from hypothesis import given
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.matrix import edus, transactions
from dendrite_tw.matrix.edus import (
    Content,
    DeviceListUpdate,
    DirectToDevice,
    EDUError,
    Presence,
    PresenceUpdate,
    Receipt,
    Receipts,
    SigningKeyUpdate,
    Typing,
    edu_dict,
    read_edu,
    rooms_of,
    without_rooms,
)
from dendrite_tw.matrix.errors import MatrixError
from dendrite_tw.matrix.transactions import EDU, build_transaction, read_transaction, room_id_of

from .strategies import bounded, json_values

ORIGIN = "b.example"
BOB = "@bob:b.example"
ALICE = "@alice:a.example"
ROOM = "!r:a.example"


def read(edu_type: str, content: Any) -> Content | None:
    return read_edu(EDU(edu_type, msgspec.Raw(orjson.dumps(content))), ORIGIN)


SHAPES: list[Content] = [
    Typing(ROOM, BOB, True),
    Presence((PresenceUpdate(BOB, "online", 5, True, "here"),)),
    Receipts((Receipt(ROOM, BOB, "$e", 7), Receipt("!s:a.example", BOB, "$f", 8, "main"))),
    DeviceListUpdate(BOB, "DEV", 6, (5,), False, "phone", {"keys": {}}),
    SigningKeyUpdate(BOB, {"keys": {}}),
    DirectToDevice(BOB, "m.x", "id1", {ALICE: {"*": {"a": 1}}}),
]


class EDUTests(SynchronousTestCase):
    def refused(self, edu_type: str, content: Any) -> None:
        self.assertRaises(EDUError, read, edu_type, content)

    def test_what_is_written_is_read(self) -> None:
        for shape in SHAPES:
            written = edu_dict(shape)
            if isinstance(shape, Presence):
                self.assertEqual(written["content"]["push"][0]["user_id"], BOB)
            self.assertEqual(read(written["edu_type"], written["content"]), shape)

    def test_unknown_types_say_nothing(self) -> None:
        self.assertIsNone(read("org.example.thing", {}))

    def test_nobody_speaks_for_another_server(self) -> None:
        self.refused("m.typing", {"room_id": ROOM, "user_id": ALICE, "typing": True})
        self.refused("m.device_list_update", {"user_id": ALICE, "device_id": "D", "stream_id": 1})
        self.refused("m.signing_key_update", {"user_id": ALICE})
        self.refused("m.direct_to_device", {"sender": ALICE, "type": "x", "message_id": "1", "messages": {}})
        push = [{"user_id": user, "presence": "online", "last_active_ago": 1} for user in (ALICE, BOB)]
        self.assertEqual(read("m.presence", {"push": push}), Presence((PresenceUpdate(BOB, "online", 1),)))
        receipt = {"event_ids": ["$e"], "data": {"ts": 1}}
        found = read("m.receipt", {ROOM: {"m.read": {ALICE: receipt, BOB: receipt}}})
        self.assertEqual(found, Receipts((Receipt(ROOM, BOB, "$e", 1),)))

    def test_malformed(self) -> None:
        cases: list[tuple[str, Any]] = [
            ("m.typing", {"room_id": "x", "user_id": BOB, "typing": True}),
            ("m.typing", {"room_id": ROOM, "user_id": BOB, "typing": "yes"}),
            ("m.typing", []),
            ("m.presence", {"push": {}}),
            ("m.receipt", {ROOM: []}),
            ("m.device_list_update", {"user_id": BOB, "device_id": "", "stream_id": 1}),
            ("m.device_list_update", {"user_id": BOB, "device_id": "D", "stream_id": -1}),
            ("m.device_list_update", {"user_id": BOB, "device_id": "D", "stream_id": 2**60}),
            ("m.device_list_update", {"user_id": BOB, "device_id": "D" * 300, "stream_id": 1}),
            ("m.device_list_update", {"user_id": BOB, "device_id": "D", "stream_id": 1, "prev_id": [1] * 101}),
            ("m.signing_key_update", {"user_id": BOB, "master_key": "x"}),
            ("m.direct_to_device", {"sender": BOB, "type": "", "message_id": "1", "messages": {}}),
            ("m.direct_to_device", {"sender": BOB, "type": "x", "message_id": "", "messages": {}}),
            ("m.direct_to_device", {"sender": BOB, "type": "x", "message_id": "1", "messages": {"x": {}}}),
            ("m.direct_to_device", {"sender": BOB, "type": "x", "message_id": "1", "messages": {ALICE: {"D": 7}}}),
            (
                "m.direct_to_device",
                {"sender": BOB, "type": "x", "message_id": "1", "messages": {ALICE: {"D" * 300: {}}}},
            ),
        ]
        for edu_type, content in cases:
            self.refused(edu_type, content)

    def test_limits(self) -> None:
        users = {f"@u{i}:b.example": {"event_ids": ["$e"], "data": {"ts": 1}} for i in range(edus.MAX_RECEIPTS + 1)}
        self.refused("m.receipt", {ROOM: {"m.read": users}})
        self.refused("m.presence", {"push": [{}] * (edus.MAX_PRESENCE_UPDATES + 1)})
        devices: dict[str, Any] = {str(i): {} for i in range(edus.MAX_TO_DEVICE_MESSAGES + 1)}
        to_device = {"sender": BOB, "type": "x", "message_id": "1", "messages": {ALICE: devices}}
        self.refused("m.direct_to_device", to_device)
        self.refused("m.signing_key_update", {"user_id": BOB, "master_key": {"x": "x" * edus.MAX_KEYS_BYTES}})

    def test_odd_entries_are_left_out_of_lists(self) -> None:
        bad = [{"event_ids": [], "data": {"ts": 1}}, {"event_ids": ["x"], "data": {"ts": 1}}, {}, 7]
        bad += [{"event_ids": ["$e"], "data": {"ts": -1}}, {"event_ids": ["$e"], "data": {"ts": 1, "thread_id": "x"}}]
        for entry in bad:
            self.assertEqual(read("m.receipt", {ROOM: {"m.read": {BOB: entry}}}), Receipts(()))
        self.assertEqual(read("m.receipt", {"x": {"m.read": {}}, ROOM: {"m.read.private": {BOB: {}}}}), Receipts(()))
        for update in ({"user_id": BOB, "presence": "busy", "last_active_ago": 1}, 7, {}):
            self.assertEqual(read("m.presence", {"push": [update]}), Presence(()))

    def test_rooms(self) -> None:
        receipts = SHAPES[2]
        self.assertEqual(rooms_of(receipts), {ROOM, "!s:a.example"})
        self.assertEqual(without_rooms(receipts, {ROOM}), Receipts((Receipt("!s:a.example", BOB, "$f", 8, "main"),)))
        self.assertIsNone(without_rooms(receipts, rooms_of(receipts)))
        self.assertIsNone(without_rooms(SHAPES[0], {ROOM}))
        self.assertIs(without_rooms(SHAPES[0], {"!s:a.example"}), SHAPES[0])
        for shape in (SHAPES[1], *SHAPES[3:]):
            self.assertEqual(rooms_of(shape), frozenset())
            self.assertIs(without_rooms(shape, {ROOM}), shape)

    @bounded
    @given(json_values)
    def test_nothing_else_is_raised(self, content: Any) -> None:
        for edu_type in edus.EDU_TYPES.values():
            try:
                read(edu_type, content)
            except EDUError:
                continue


class TransactionTests(SynchronousTestCase):
    def body(self, **changes: Any) -> bytes:
        return orjson.dumps({"origin": ORIGIN, "origin_server_ts": 1, "pdus": [], **changes})

    def test_read_what_was_built(self) -> None:
        pdu = b'{"room_id":"!r:a.example","depth":1.0}'
        built = build_transaction(ORIGIN, 7, [pdu], [edu_dict(SHAPES[0])])
        found = read_transaction(built, ORIGIN)
        self.assertEqual((found.origin, found.origin_server_ts, found.pdus), (ORIGIN, 7, (pdu,)))
        self.assertEqual([read_edu(edu, ORIGIN) for edu in found.edus], [SHAPES[0]])

    def test_malformed_edus_are_left_out(self) -> None:
        body = self.body(edus=[{"edu_type": "x", "content": {}}, 7, {}, {"edu_type": 1, "content": {}}])
        self.assertEqual([edu.edu_type for edu in read_transaction(body, ORIGIN).edus], ["x"])

    def test_what_is_refused(self) -> None:
        cases = [
            (b"", 400, "M_NOT_JSON"),
            (b"{", 400, "M_NOT_JSON"),
            (b"[]", 400, "M_BAD_JSON"),
            (b"{}", 400, "M_BAD_JSON"),
            (self.body(pdus={}), 400, "M_BAD_JSON"),
            (self.body(pdus=[{}] * 51), 400, "M_BAD_JSON"),
            (self.body(edus=[{}] * 101), 400, "M_BAD_JSON"),
            (self.body(origin="c.example"), 403, "M_FORBIDDEN"),
            (b" " * (transactions.MAX_TRANSACTION_BYTES + 1), 413, "M_TOO_LARGE"),
        ]
        for body, status, errcode in cases:
            refused = self.assertRaises(MatrixError, read_transaction, body, ORIGIN)
            self.assertEqual((refused.status, refused.errcode), (status, errcode), body[:60])
        self.assertEqual(len(read_transaction(self.body(pdus=[{}] * 50, edus=[{}] * 100), ORIGIN).pdus), 50)

    def test_the_room_of_a_pdu(self) -> None:
        self.assertEqual(room_id_of(b'{"room_id":"!r:a.example"}'), ROOM)
        for pdu in (b"", b"{}", b"[]", b'{"room_id":7}', b'{"room_id":"x"}', b"\xff", b"{" + b" " * 400_000 + b"}"):
            self.assertRaises(ValueError, room_id_of, pdu)

    def test_results(self) -> None:
        result = transactions.transaction_result({"$a": None, "$b": "no"})
        self.assertEqual(result, {"pdus": {"$a": {}, "$b": {"error": "no"}}})
