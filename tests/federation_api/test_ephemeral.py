"""EDUs of other servers: whom they reach, and whose say so counts."""

from __future__ import annotations

from typing import Any

import msgspec

from dendrite_tw.database.engines import Unavailable
from dendrite_tw.federation_api.ephemeral import TYPING_MS, UPDATES
from dendrite_tw.jetstream.errors import UnavailableError
from dendrite_tw.matrix.errors import bad_json
from dendrite_tw.sync_api.api import OUTPUT_PRESENCE_EVENT, OUTPUT_TYPING_EVENT, Presence, Typing
from tests.harness import Answer

from .inbound_case import ROOM, InboundCase

BOB = "@bob:beta.test"
NOW = 1_700_000_000_000


class EphemeralCase(InboundCase):
    def setUp(self) -> None:
        super().setUp()
        self.sent = 0

    def put(self, edu_type: str, content: Any, *others: Any) -> Answer:
        self.sent += 1
        edus = [{"edu_type": edu_type, "content": content}, *others]
        return self.beta.put(f"/v1/send/{self.sent}", self.transaction(edus=edus))

    def published(self, stream: str, kind: type[Any]) -> list[Any]:
        return [msgspec.msgpack.decode(data, type=kind) for name, data in self.queue.published if name == stream]


class TypingTests(EphemeralCase):
    def typing(self) -> list[Any]:
        return self.published(OUTPUT_TYPING_EVENT, Typing)

    def test_a_user_types_and_stops(self) -> None:
        now = int(self.clock.seconds() * 1000)
        self.put("m.typing", {"room_id": ROOM, "user_id": BOB, "typing": True})
        self.put("m.typing", {"room_id": ROOM, "user_id": BOB, "typing": False})
        self.assertEqual(
            self.typing(),
            [
                Typing(room_id=ROOM, user_id=BOB, typing=True, timeout_ms=TYPING_MS, ts=now),
                Typing(room_id=ROOM, user_id=BOB, typing=False, ts=now),
            ],
        )

    def test_who_may_not_say_so(self) -> None:
        for content in (
            {"room_id": ROOM, "user_id": "@carol:beta.test", "typing": True},
            {"room_id": ROOM, "user_id": "@alice:alpha.test", "typing": True},
            {"room_id": ROOM, "user_id": "@bob:gamma.test", "typing": True},
            {"room_id": "!unknown:alpha.test", "user_id": BOB, "typing": True},
            {"room_id": ROOM, "user_id": BOB, "typing": "yes"},
            {"room_id": ROOM, "user_id": 7, "typing": True},
            {"user_id": BOB, "typing": True},
            [],
            7,
        ):
            self.assertEqual(self.put("m.typing", content).status, 200)
        self.rooms.kept_out.add((ROOM, "beta.test"))
        self.put("m.typing", {"room_id": ROOM, "user_id": BOB, "typing": True})
        self.assertEqual(self.typing(), [])

    def test_one_bad_edu_does_not_spoil_the_others(self) -> None:
        good = {"edu_type": "m.typing", "content": {"room_id": ROOM, "user_id": BOB, "typing": True}}
        self.put("m.typing", {}, 7, {}, {"edu_type": 7, "content": {}}, {"edu_type": "m.new", "content": {}}, good)
        self.assertEqual(len(self.typing()), 1)
        self.assertEqual({name: count for (name,), count in self.inbound.edus.items()}, {"m.typing": 1})

    def test_what_comes_with_it_is_taken_while_there_is_no_queue(self) -> None:
        async def publish(stream: str, payload: bytes) -> None:
            raise UnavailableError("there is no connection to the queue")

        self.patch(self.queue, "publish", publish)
        read = {ROOM: {"m.read": {BOB: {"event_ids": ["$event"], "data": {"ts": 5}}}}}
        here = {"edu_type": "m.presence", "content": {"push": [{"user_id": BOB, "presence": "online"}]}}
        typing = {"room_id": ROOM, "user_id": BOB, "typing": True}
        answer = self.put("m.typing", typing, here, {"edu_type": "m.receipt", "content": read})
        self.assertEqual((answer.status, len(self.users.receipts)), (200, 1))


class ReceiptTests(EphemeralCase):
    def test_receipts(self) -> None:
        read = {"event_ids": ["$event"], "data": {"ts": 5, "thread_id": "main"}}
        content = {
            ROOM: {"m.read": {BOB: read, "@carol:beta.test": read, "@alice:alpha.test": read}},
            "!unknown:alpha.test": {"m.read": {BOB: read}},
        }
        self.put("m.receipt", content)
        (receipt,) = self.users.receipts
        self.assertEqual(
            (receipt.room_id, receipt.user_id, receipt.event_id, receipt.ts, receipt.thread_id, receipt.receipt_type),
            (ROOM, BOB, "$event", 5, "main", "m.read"),
        )

    def test_receipts_of_a_room_that_keeps_the_server_out(self) -> None:
        self.rooms.versions["!b:alpha.test"] = "11"
        self.rooms.joined.add(("!b:alpha.test", BOB))
        self.rooms.kept_out.add((ROOM, "beta.test"))
        read = {"m.read": {BOB: {"event_ids": ["$event"], "data": {"ts": 5}}}}
        self.put("m.receipt", {ROOM: read, "!b:alpha.test": read})
        self.assertEqual([receipt.room_id for receipt in self.users.receipts], ["!b:alpha.test"])


class PresenceTests(EphemeralCase):
    def test_presence(self) -> None:
        now = int(self.clock.seconds() * 1000)
        bob = {"user_id": BOB, "presence": "online", "last_active_ago": 5000, "currently_active": True}
        alice = {"user_id": "@alice:alpha.test", "presence": "offline"}
        self.put("m.presence", {"push": [{**bob, "status_msg": "here"}, alice, {"user_id": BOB, "presence": "gone"}]})
        self.assertEqual(
            self.published(OUTPUT_PRESENCE_EVENT, Presence),
            [
                Presence(
                    user_id=BOB,
                    presence="online",
                    last_active_ts=now - 5000,
                    status_msg="here",
                    currently_active=True,
                )
            ],
        )


class FloodTests(EphemeralCase):
    def test_one_transaction_may_say_so_much(self) -> None:
        users = [f"@u{number}:beta.test" for number in range(900)]
        self.rooms.joined.update((ROOM, user) for user in users)
        read = {"event_ids": ["$event"], "data": {"ts": 5}}
        presence = {
            "edu_type": "m.presence",
            "content": {"push": [{"user_id": user, "presence": "online"} for user in users]},
        }
        receipts = {"edu_type": "m.receipt", "content": {ROOM: {"m.read": dict.fromkeys(users, read)}}}
        typing = {"edu_type": "m.typing", "content": {"room_id": ROOM, "user_id": BOB, "typing": True}}
        body = self.transaction(edus=[presence, receipts, presence, receipts, presence, typing])
        self.assertEqual(self.beta.put("/v1/send/1", body).status, 200)
        self.assertEqual(len(self.users.receipts), 900)
        self.assertEqual(len(self.published(OUTPUT_PRESENCE_EVENT, Presence)), UPDATES - 900)
        self.assertEqual(len(self.published(OUTPUT_TYPING_EVENT, Typing)), 1)


class NoPresenceTests(EphemeralCase):
    takes_presence = False

    def test_presence_is_not_taken_unless_it_is_wanted(self) -> None:
        self.put("m.presence", {"push": [{"user_id": BOB, "presence": "online"}]})
        self.assertEqual(self.queue.published, [])


class DeviceTests(EphemeralCase):
    def to_device(self, **changed: Any) -> dict[str, Any]:
        messages = {"@alice:alpha.test": {"*": {"secret": 1}}}
        return {"sender": BOB, "type": "m.room_key", "message_id": "m1", "messages": messages, **changed}

    def test_messages_to_devices(self) -> None:
        self.put("m.direct_to_device", self.to_device())
        expected = ("to_device", BOB, "", "m.room_key", "m1", {"@alice:alpha.test": {"*": {"secret": 1}}})
        self.assertEqual(self.keys.told, [expected])

    def test_messages_in_the_name_of_others(self) -> None:
        for changed in ({"sender": "@x:gamma.test"}, {"message_id": ""}, {"type": 7}, {"messages": []}):
            self.assertEqual(self.put("m.direct_to_device", self.to_device(**changed)).status, 200)
        self.assertEqual(self.keys.told, [])

    def test_messages_that_cannot_be_stored_are_to_be_sent_again(self) -> None:
        self.keys.trouble = [Unavailable("the disk is full")]
        body = self.transaction(edus=[{"edu_type": "m.direct_to_device", "content": self.to_device()}])
        self.assertEqual(self.beta.put("/v1/send/t", body).status, 503)
        self.assertEqual(self.beta.put("/v1/send/t", body).status, 200)
        self.assertEqual(len(self.keys.told), 1)

    def test_messages_that_are_refused_or_break_something_are_dropped(self) -> None:
        self.keys.trouble = [bad_json("No."), ValueError("a mistake")]
        for _ in range(2):
            self.assertEqual(self.put("m.direct_to_device", self.to_device()).status, 200)
        self.assertEqual(self.keys.told, [])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_device_lists(self) -> None:
        update = {
            "user_id": BOB,
            "device_id": "DEVICE",
            "device_display_name": "Phone",
            "stream_id": 6,
            "prev_id": [5],
            "deleted": False,
            "keys": {"algorithms": []},
        }
        self.put("m.device_list_update", update)
        self.put("m.device_list_update", {**update, "user_id": "@alice:alpha.test"})
        ((kind, origin, told),) = self.keys.told
        self.assertEqual((kind, origin, told.user_id, told.device_id), ("device_list", "beta.test", BOB, "DEVICE"))
        self.assertEqual((told.stream_id, list(told.prev_id), told.deleted), (6, [5], False))
        self.assertEqual((told.device_display_name, told.keys), ("Phone", {"algorithms": []}))

    def test_signing_keys(self) -> None:
        master, own = {"keys": {"ed25519:a": "a"}}, {"keys": {"ed25519:b": "b"}}
        self.put("m.signing_key_update", {"user_id": BOB, "master_key": master, "self_signing_key": own})
        self.put("m.signing_key_update", {"user_id": "@alice:alpha.test", "master_key": master})
        self.assertEqual(self.keys.told, [("signing_keys", "beta.test", BOB, master, own)])
