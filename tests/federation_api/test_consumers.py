"""What is told to other servers, and that it is told once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, cast

import msgspec
import orjson
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.database.engines import Unavailable
from dendrite_tw.federation_api.consumers import LINGER_SECONDS, STORE_SECONDS, Consumer, RoomConsumer
from dendrite_tw.federation_api.edu_consumers import (
    LONGEST_LINGER,
    SHORTEST_LINGER,
    KeyChangeConsumer,
    ReceiptConsumer,
    SendToDeviceConsumer,
    linger,
)
from dendrite_tw.federation_api.introductions import PAUSE_SECONDS, PRESENT_LIMIT, SERVERS_AT_ONCE, Introductions
from dendrite_tw.federation_api.moments import PRESENCE_SECONDS, REPEAT_MS, PresenceTeller, TypingTeller
from dendrite_tw.matrix.edus import DeviceListUpdate, DirectToDevice, Receipts, read_edu
from dendrite_tw.matrix.errors import MatrixError
from dendrite_tw.matrix.transactions import EDU, MAX_PDUS
from dendrite_tw.room_api.api import OutputRoomEvent, RoomAPI, RoomEvent, RoomPurged, StateComplete
from dendrite_tw.sync_api.api import OUTPUT_PRESENCE_EVENT, OUTPUT_TYPING_EVENT, Presence, Typing
from dendrite_tw.user_api.api import DeviceEntry, DeviceList, KeyAPI, KeyChange, Receipt, ToDeviceMessage
from tests.fakes import FakeMessage, FakeQueue
from tests.harness import trace

from .sending import OWN, Sending

ALICE = f"@alice:{OWN}"
BOB = "@bob:b.test"


def room_event(position: int, type: str = "m.room.message", sender: str = ALICE, **fields: Any) -> RoomEvent:
    return RoomEvent(
        event_id=f"$e{position}",
        room_id=fields.pop("room_id", "!r"),
        sender=sender,
        type=type,
        state_key=fields.pop("state_key", None),
        origin_server_ts=1,
        position=position,
        depth=1,
        client=b"{}",
        **fields,
    )


def told(event: RoomEvent, distribute: bool = True) -> OutputRoomEvent:
    return OutputRoomEvent(
        event=event, state_changed=False, joined_members=2, local_members=1, room_version="11", distribute=distribute
    )


class ConsumerTestCase(SynchronousTestCase):
    kind: type[Consumer]

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_700_000_000)
        self.sending = Sending(self.clock)
        self.world, self.rooms = self.sending.world, self.sending.rooms
        self.rooms.servers["!r"] = [OWN, "a.test", "b.test"]
        self.rooms.servers["!own"] = [OWN]
        self.rooms.of_users[ALICE] = ["a.test", OWN]
        self.stored: list[int] = []
        self.consumer = self.make()

    def needs(self) -> tuple[Any, ...]:
        return (
            self.sending.database,
            self.sending.senders,
            self.rooms,
            OWN,
            self.clock,
            self.stored.append,
        )

    def make(self) -> Consumer:
        """A consumer that goes on from what is stored."""
        consumer = self.kind(*self.more_needs(), *self.needs())
        self.successResultOf(Deferred.fromCoroutine(consumer.progress.load()))
        return consumer

    def more_needs(self) -> tuple[Any, ...]:
        return ()

    def consume(self, *values: Any, headers: dict[str, str] | None = None) -> Deferred[None]:
        messages: list[Any] = [
            FakeMessage("", msgspec.msgpack.encode(value), 1, dict(headers or {})) for value in values
        ]
        return Deferred.fromCoroutine(self.consumer.consume(messages))

    def take(self, *values: Any, headers: dict[str, str] | None = None) -> None:
        taken = self.consume(*values, headers=headers)
        self.clock.advance(LINGER_SECONDS)
        self.successResultOf(taken)

    def restart(self) -> None:
        self.sending.crash()
        self.consumer = self.make()

    def contents(self, server: str, edu_type: str) -> list[Any]:
        return [edu["content"] for edu in self.world.edus_to(server) if edu["edu_type"] == edu_type]


class Met:
    """The devices of local users, and who was told that they are present."""

    def __init__(self) -> None:
        self.lists: dict[str, DeviceList] = {}
        self.introduced: list[tuple[list[str], list[str]]] = []

    async def device_list(self, user_id: str) -> DeviceList:
        if user_id not in self.lists:
            raise MatrixError(404, "M_NOT_FOUND", "no such user")
        return self.lists[user_id]

    def introduce(self, user_ids: Collection[str], servers: Sequence[str]) -> None:
        self.introduced.append((list(user_ids), list(servers)))


class RoomConsumerTests(ConsumerTestCase):
    kind = RoomConsumer

    def more_needs(self) -> tuple[Any, ...]:
        self.keys = Met()
        rooms, keys = cast(RoomAPI, self.rooms), cast(KeyAPI, self.keys)
        return self.sending.post, Introductions(rooms, keys, OWN, self.keys)

    def test_ours_go_to_the_other_servers_in_the_room(self) -> None:
        self.take(told(room_event(1)), told(room_event(2)), told(room_event(3), distribute=False))
        self.assertEqual(self.world.events_to("a.test"), ["$e1", "$e2"])
        self.assertEqual(self.world.events_to("b.test"), ["$e1", "$e2"])
        self.assertEqual(self.world.to(OWN), [])
        self.assertEqual(self.stored[-1], 3)

    def test_a_repeated_message_changes_nothing(self) -> None:
        self.take(told(room_event(1)), told(room_event(2)))
        self.take(told(room_event(2)), told(room_event(1)))
        self.restart()
        self.take(told(room_event(1)), told(room_event(2)), told(room_event(3)))
        self.assertEqual(self.world.events_to("a.test"), ["$e1", "$e2", "$e3"])

    def test_a_failure_repeats_the_messages_not_the_effects(self) -> None:
        write, calls = self.sending.database.write, []

        def failing(function: Any, *args: Any) -> Any:
            calls.append(function)
            if len(calls) == 1:
                raise Unavailable("the disk is full")
            return write(function, *args)

        self.patch(self.sending.database, "write", failing)
        self.failureResultOf(self.consume(told(room_event(1))), Unavailable)
        self.assertEqual(self.world.sent, [])
        self.take(told(room_event(1)))
        self.assertEqual(self.world.events_to("a.test"), ["$e1"])

    def test_killed_between_the_commit_and_the_acknowledgement(self) -> None:
        self.world.slow |= {"a.test", "b.test"}
        self.take(told(room_event(1)))
        self.world.slow.clear()
        self.restart()
        self.take(told(room_event(1)), told(room_event(2)))
        first, again, rest = self.world.to("a.test")
        self.assertEqual((first.pdus, again.pdus, rest.pdus), (["$e1"], ["$e1"], ["$e2"]))
        self.assertEqual(first.txn_id, again.txn_id)

    def test_rooms_without_others_cost_no_write(self) -> None:
        statements = trace(self.sending.database)
        self.take(*[told(room_event(number, room_id="!own"), distribute=False) for number in range(1, 1000)])
        self.assertEqual(statements, [])
        self.assertEqual(self.consumer.progress.reached, 999)
        self.successResultOf(Deferred.fromCoroutine(self.consumer.progress.store()))
        self.assertEqual(self.stored[-1], 999)

    def test_a_position_is_stored_from_time_to_time(self) -> None:
        class Queue:
            def consume(self, *args: Any, **options: Any) -> Any:
                return self

            async def stop(self) -> None:
                return None

        self.successResultOf(Deferred.fromCoroutine(self.consumer.start(Queue())))
        self.take(told(room_event(7, room_id="!own"), distribute=False))
        self.assertEqual(self.stored[-1], 0)
        self.clock.advance(STORE_SECONDS)
        self.assertEqual(self.stored[-1], 7)
        self.take(told(room_event(8, room_id="!own"), distribute=False))
        self.successResultOf(Deferred.fromCoroutine(self.consumer.stop()))
        self.assertEqual(self.stored[-1], 8)
        self.restart()
        self.assertEqual(self.consumer.progress.reached, 8)

    def membership(self, position: int, user_id: str, now: str, before: str | None, **fields: Any) -> OutputRoomEvent:
        prev = orjson.dumps({"membership": before}) if before else None
        return told(
            room_event(position, "m.room.member", state_key=user_id, membership=now, prev_content=prev, **fields)
        )

    def test_who_was_thrown_out_is_told(self) -> None:
        self.take(
            self.membership(1, "@x:kicked.test", "leave", "join"),
            self.membership(2, "@x:banned.test", "ban", "join"),
            self.membership(3, "@x:uninvited.test", "leave", "invite"),
            self.membership(4, "@x:refused.test", "leave", "knock"),
            self.membership(5, "@x:invited.test", "invite", None),
            self.membership(6, "@x:unbanned.test", "leave", "ban"),
        )
        told_to = {sent.server for sent in self.world.sent} - {"a.test", "b.test"}
        self.assertEqual(told_to, {"kicked.test", "banned.test", "uninvited.test", "refused.test"})
        self.assertEqual(self.world.events_to("a.test"), [f"$e{number}" for number in range(1, 7)])

    def joins(self, position: int, user_id: str, room_id: str = "!r", before: str | None = None) -> None:
        self.rooms.members.setdefault(room_id, set()).add(user_id)
        self.take(self.membership(position, user_id, "join", before, sender=user_id, room_id=room_id))

    def have_devices(self) -> None:
        devices = [DeviceEntry(device_id=name, keys=b'{"a":1}', display_name=name.lower()) for name in ("ONE", "TWO")]
        self.keys.lists[ALICE] = DeviceList(user_id=ALICE, stream_id=7, devices=devices)

    def test_servers_that_meet_a_user_are_told_of_their_devices(self) -> None:
        self.have_devices()
        self.rooms.servers["!other"] = [OWN, "b.test", "c.test"]
        self.joins(1, ALICE)
        for server in ("a.test", "b.test"):
            (content,) = self.contents(server, "m.device_list_update")
            update = read_edu(EDU("m.device_list_update", msgspec.Raw(orjson.dumps(content))), OWN)
            assert isinstance(update, DeviceListUpdate)
            self.assertEqual((update.device_id, update.stream_id, update.prev_id), ("TWO", 7, (6,)))
            self.assertEqual((update.keys, update.device_display_name), ({"a": 1}, "two"))
        self.joins(2, ALICE, "!other")
        self.joins(3, ALICE, before="join")
        self.joins(4, ALICE, "!own")
        told_of = {
            server: len(self.contents(server, "m.device_list_update")) for server in ("a.test", "b.test", "c.test")
        }
        self.assertEqual(told_of, {"a.test": 1, "b.test": 1, "c.test": 1})
        self.assertEqual(self.keys.introduced, [([ALICE], ["a.test", "b.test"]), ([ALICE], ["c.test"])])

    def test_there_is_nothing_to_tell_of_who_has_no_devices(self) -> None:
        self.joins(1, ALICE)
        self.keys.lists[ALICE] = DeviceList(user_id=ALICE, stream_id=7, devices=[])
        self.joins(2, ALICE)
        self.assertEqual(self.contents("a.test", "m.device_list_update"), [])

    def test_thousands_of_servers_are_told_a_few_at_a_time(self) -> None:
        self.have_devices()
        self.rooms.servers["!r"] = [OWN, *(f"s{number:04}.test" for number in range(SERVERS_AT_ONCE * 3))]
        self.rooms.members["!r"] = {ALICE}
        joined = self.membership(1, ALICE, "join", None, sender=ALICE)
        self.take(msgspec.structs.replace(joined, distribute=False))
        for part in range(1, 4):
            self.assertEqual(len({sent.server for sent in self.world.sent}), part * SERVERS_AT_ONCE)
            self.clock.advance(PAUSE_SECONDS)

    def test_a_server_that_comes_is_told_once_who_is_present(self) -> None:
        self.joins(1, ALICE)
        self.keys.introduced.clear()
        self.joins(2, BOB)
        self.joins(3, "@carol:b.test")
        self.assertEqual(self.keys.introduced, [([ALICE], ["b.test"])])
        self.rooms.members["!r"].update(f"@u{number}:{OWN}" for number in range(PRESENT_LIMIT))
        self.joins(4, "@dora:c.test")
        self.assertEqual(len(self.keys.introduced), 1, "in a large room nobody is told")

    def test_an_invitation_taken_back_is_told_where_nobody_else_is(self) -> None:
        taken_back = self.membership(1, BOB, "leave", "invite", room_id="!own")
        refused = self.membership(2, BOB, "leave", "invite", room_id="!own", sender=BOB)
        self.take(*[msgspec.structs.replace(one, distribute=False) for one in (taken_back, refused)])
        self.assertEqual(self.world.events_to("b.test"), ["$e1"])

    def test_who_sent_it_is_not_told(self) -> None:
        self.take(self.membership(1, BOB, "join", None, sender=BOB))
        self.assertEqual((self.world.events_to("a.test"), self.world.to("b.test")), (["$e1"], []))

    def test_names_that_are_none_are_left_out(self) -> None:
        self.rooms.servers["!r"] += ["not a name", ""]
        self.take(self.membership(1, "@x:also bad/", "leave", "join"))
        self.assertEqual({sent.server for sent in self.world.sent}, {"a.test", "b.test"})

    def test_a_deleted_room(self) -> None:
        async def gone(room_id: str) -> list[str]:
            raise MatrixError(404, "M_NOT_FOUND", "no such room")

        self.rooms.room_servers = gone  # type: ignore[method-assign]
        self.take(told(room_event(1)))
        self.assertEqual(self.world.sent, [])
        self.take(RoomPurged(room_id="!r", position=2), headers={"output_room_event_type": "purge_room"})
        self.assertEqual(self.consumer.progress.reached, 2)
        self.take(StateComplete(room_id="!r", position=3), headers={"output_room_event_type": "state_complete"})
        self.assertEqual(self.consumer.progress.reached, 3)
        self.failureResultOf(self.consume(RoomPurged(room_id="!r", position=4)), msgspec.ValidationError)

    def test_many_events_go_by_fifties(self) -> None:
        self.world.slow.add("a.test")
        self.take(told(room_event(1)))
        self.take(*[told(room_event(number)) for number in range(2, 200)])
        self.world.slow.clear()
        self.world.to("a.test")[0].answer.callback(None)
        self.assertEqual(self.world.events_to("a.test"), [f"$e{number}" for number in range(1, 200)])
        self.assertEqual(len(self.world.to("a.test")[1].pdus), MAX_PDUS)


class ToDeviceTests(ConsumerTestCase):
    kind = SendToDeviceConsumer

    def message(
        self, position: int, user_id: str = BOB, device_id: str = "D", message_id: str = "m", text: str = ""
    ) -> ToDeviceMessage:
        event = orjson.dumps({"sender": ALICE, "type": "m.x", "content": {"n": position, "text": text}})
        return ToDeviceMessage(
            user_id=user_id, device_id=device_id, event=event, position=position, message_id=message_id
        )

    def direct(self, server: str) -> list[DirectToDevice]:
        found = []
        for content in self.contents(server, "m.direct_to_device"):
            read = read_edu(EDU("m.direct_to_device", msgspec.Raw(orjson.dumps(content))), OWN)
            assert isinstance(read, DirectToDevice)
            found.append(read)
        return found

    def test_messages_of_one_request_go_in_one_edu(self) -> None:
        self.take(
            self.message(1, device_id="D1"),
            self.message(2, device_id="D2"),
            self.message(3, "@carl:b.test", "*"),
            self.message(4, "@dora:d.test"),
            self.message(5, ALICE),
            self.message(6, message_id="m2", device_id="D1"),
        )
        first, second = self.direct("b.test")
        self.assertEqual(
            first.messages,
            {
                BOB: {"D1": {"n": 1, "text": ""}, "D2": {"n": 2, "text": ""}},
                "@carl:b.test": {"*": {"n": 3, "text": ""}},
            },
        )
        self.assertEqual((first.sender, first.type, first.message_id), (ALICE, "m.x", "m.1"))
        self.assertEqual(second.messages, {BOB: {"D1": {"n": 6, "text": ""}}})
        self.assertEqual(len(self.direct("d.test")), 1)
        self.assertEqual(self.world.to(OWN), [])

    def test_each_once_across_restarts(self) -> None:
        self.world.slow.add("b.test")
        self.take(self.message(1))
        self.world.slow.clear()
        self.restart()
        self.take(self.message(1), self.message(2, device_id="D2"))
        sent = {one.txn_id: one for one in self.world.to("b.test")}
        contents = [edu["content"]["messages"][BOB] for one in sent.values() for edu in one.edus]
        self.assertEqual([next(iter(content.values()))["n"] for content in contents], [1, 2])

    def test_a_request_read_in_two_parts_makes_two_edus(self) -> None:
        self.take(self.message(1, device_id="D1"))
        self.take(self.message(2, device_id="D2"))
        first, second = self.direct("b.test")
        self.assertNotEqual(first.message_id, second.message_id)

    def test_two_messages_for_one_device_are_both_sent(self) -> None:
        self.take(self.message(1, message_id=""), self.message(2, message_id=""))
        self.assertEqual([edu.messages[BOB]["D"]["n"] for edu in self.direct("b.test")], [1, 2])

    def test_edus_stay_small(self) -> None:
        self.take(*[self.message(number, f"@u{number}:b.test", text="x" * 20_000) for number in range(1, 11)])
        self.assertEqual([len(edu.messages) for edu in self.direct("b.test")], [2, 2, 2, 2, 2])
        self.assertEqual(len({edu.message_id for edu in self.direct("b.test")}), 5)

    def test_ids_are_as_short_as_the_specification_wants(self) -> None:
        self.take(self.message(2**40, message_id="x" * 24))
        (edu,) = self.direct("b.test")
        self.assertLessEqual(len(edu.message_id), 32)

    def test_what_failed_is_not_added_to(self) -> None:
        write = self.sending.database.write
        self.patch(self.sending.database, "write", lambda *args: (_ for _ in ()).throw(Unavailable("full")))
        self.failureResultOf(self.consume(self.message(1)), Unavailable)
        self.patch(self.sending.database, "write", write)
        self.take(self.message(1), self.message(2, device_id="D2"))
        (edu,) = self.direct("b.test")
        self.assertEqual(set(edu.messages[BOB]), {"D", "D2"})


class Keys:
    """The part of `KeyAPI` that is asked."""

    def __init__(self) -> None:
        self.lists: dict[str, DeviceList] = {}

    async def device_list(self, user_id: str) -> DeviceList:
        if user_id not in self.lists:
            raise MatrixError(404, "M_NOT_FOUND", "no devices")
        return self.lists[user_id]


class KeyChangeTests(ConsumerTestCase):
    kind = KeyChangeConsumer

    def more_needs(self) -> tuple[Any, ...]:
        self.keys = Keys()
        return (self.keys,)

    def test_a_device_with_keys(self) -> None:
        entry = DeviceEntry(device_id="D", keys=b'{"algorithms":[]}', display_name="Phone")
        self.keys.lists[ALICE] = DeviceList(user_id=ALICE, stream_id=9, devices=[entry])
        self.take(KeyChange(user_id=ALICE, position=9, device_id="D", previous=4))
        self.assertEqual(
            self.contents("a.test", "m.device_list_update"),
            [
                {
                    "user_id": ALICE,
                    "device_id": "D",
                    "stream_id": 9,
                    "prev_id": [4],
                    "deleted": False,
                    "device_display_name": "Phone",
                    "keys": {"algorithms": []},
                }
            ],
        )
        self.assertEqual(self.world.to("b.test"), [])

    def test_a_device_that_is_gone_and_one_without_keys(self) -> None:
        self.take(
            KeyChange(user_id=ALICE, position=1, device_id="D"),
            KeyChange(user_id=ALICE, position=2, device_id="E", previous=1, deleted=True),
        )
        new, gone = self.contents("a.test", "m.device_list_update")
        self.assertEqual((new["deleted"], new["prev_id"]), (False, []))
        self.assertEqual((gone["deleted"], gone["prev_id"]), (True, [1]))
        self.assertNotIn("keys", new)

    def test_cross_signing_keys(self) -> None:
        self.keys.lists[ALICE] = DeviceList(
            user_id=ALICE, stream_id=1, devices=[], master_key=b'{"m":1}', self_signing_key=b'{"s":1}'
        )
        self.take(KeyChange(user_id=ALICE, position=1))
        self.assertEqual(
            self.contents("a.test", "m.signing_key_update"),
            [{"user_id": ALICE, "master_key": {"m": 1}, "self_signing_key": {"s": 1}}],
        )

    def test_what_is_not_for_others(self) -> None:
        self.rooms.of_users[BOB] = ["a.test"]
        self.take(
            KeyChange(user_id=BOB, position=1),
            KeyChange(user_id=ALICE, position=2, only_for=ALICE),
            KeyChange(user_id=f"@nobody:{OWN}", position=3, device_id="D"),
        )
        self.assertEqual(self.world.sent, [])
        self.assertEqual(self.consumer.progress.reached, 3)


class ReceiptTests(ConsumerTestCase):
    kind = ReceiptConsumer

    def receipt(self, position: int, **fields: Any) -> Receipt:
        values = {"room_id": "!r", "user_id": ALICE, "receipt_type": "m.read", "event_id": f"$e{position}", "ts": 7}
        return Receipt(position=position, **{**values, **fields})

    def read(self, server: str) -> list[Any]:
        self.clock.advance(1)
        found = []
        for content in self.contents(server, "m.receipt"):
            edu = read_edu(EDU("m.receipt", msgspec.Raw(orjson.dumps(content))), OWN)
            assert isinstance(edu, Receipts)
            found += [(one.user_id, one.event_id, one.thread_id, one.ts) for one in edu.receipts]
        return found

    def test_receipts_go_to_the_servers_in_the_room(self) -> None:
        self.rooms.servers["!r:here.test"] = [OWN, "a.test"]
        event_id, root = "$" + "a" * 43, "$" + "b" * 43
        self.take(
            self.receipt(1, room_id="!r:here.test", event_id=event_id),
            self.receipt(2, room_id="!r:here.test", event_id=event_id, thread_id=root),
            self.receipt(3, room_id="!r:here.test", event_id=event_id, thread_id="main"),
        )
        self.assertEqual(
            self.read("a.test"),
            [(ALICE, event_id, None, 7), (ALICE, event_id, root, 7), (ALICE, event_id, "main", 7)],
        )

    def test_private_ones_and_those_of_others_do_not(self) -> None:
        self.take(
            self.receipt(1, receipt_type="m.read.private"),
            self.receipt(2, user_id=BOB),
            self.receipt(3, room_id="!own"),
        )
        self.assertEqual(self.read("a.test"), [])
        self.assertEqual(self.consumer.progress.reached, 3)

    def test_reading_on_is_told_once(self) -> None:
        self.take(*[self.receipt(number) for number in range(1, 9)])
        self.clock.advance(1)
        (content,) = self.contents("a.test", "m.receipt")
        self.assertEqual(content["!r"]["m.read"][ALICE]["event_ids"], ["$e8"])

    def test_the_more_servers_the_longer_it_may_wait(self) -> None:
        self.assertEqual([linger(1), linger(500), linger(100_000)], [SHORTEST_LINGER, 10, LONGEST_LINGER])


class TellerTestCase(ConsumerTestCase):
    kind = ReceiptConsumer

    def setUp(self) -> None:
        super().setUp()
        self.queue = FakeQueue()
        rooms: Any = self.rooms
        self.typing = TypingTeller(self.sending.senders, rooms, OWN)
        world: Any = self.sending.numbers._clock
        self.presence = PresenceTeller(self.sending.senders, rooms, OWN, self.clock, world)
        for teller in (self.typing, self.presence):
            teller.start(self.queue)
            self.addCleanup(teller.stop)


class TypingTests(TellerTestCase):
    def test_typing_is_told_at_once(self) -> None:
        self.queue.tell(OUTPUT_TYPING_EVENT, Typing(room_id="!r", user_id=ALICE, typing=True))
        self.queue.tell(OUTPUT_TYPING_EVENT, Typing(room_id="!r", user_id=BOB, typing=True))
        self.queue.tell(OUTPUT_TYPING_EVENT, Typing(room_id="!own", user_id=ALICE, typing=True))
        self.assertEqual(self.contents("a.test", "m.typing"), [{"room_id": "!r", "user_id": ALICE, "typing": True}])

    def test_nobody_is_told_after_the_end(self) -> None:
        self.typing.stop()
        self.queue.tell(OUTPUT_TYPING_EVENT, Typing(room_id="!r", user_id=ALICE, typing=True))
        self.assertEqual(self.world.sent, [])


class PresenceTests(TellerTestCase):
    def be(self, *states: str, user_id: str = ALICE, status: str | None = None) -> None:
        for state in states:
            now = int(self.clock.seconds() * 1000)
            told = Presence(
                user_id=user_id,
                presence=state,
                last_active_ts=now,
                currently_active=state == "online",
                status_msg=status,
            )
            self.queue.tell(OUTPUT_PRESENCE_EVENT, told)

    def pushed(self, server: str = "a.test") -> list[Any]:
        return [update for content in self.contents(server, "m.presence") for update in content["push"]]

    def settle(self) -> None:
        self.clock.advance(PRESENCE_SECONDS)
        self.clock.advance(SHORTEST_LINGER)

    def test_a_change_is_told_after_a_pause(self) -> None:
        self.be("online", "unavailable", "online", status="here")
        self.assertEqual(self.world.sent, [])
        self.settle()
        (update,) = self.pushed()
        self.assertEqual((update["user_id"], update["presence"], update["status_msg"]), (ALICE, "online", "here"))
        self.assertTrue(update["currently_active"])
        self.assertGreater(update["last_active_ago"], 3000)

    def test_what_is_known_is_repeated_seldom(self) -> None:
        for _ in range(10):
            self.be("online")
            self.clock.advance(REPEAT_MS / 1000 / 5)
        self.assertEqual(len(self.pushed()), 2)

    def test_users_of_one_server_share_a_message(self) -> None:
        others = [f"@u{number}:{OWN}" for number in range(20)]
        for user_id in others:
            self.rooms.of_users[user_id] = ["a.test"]
            self.be("online", user_id=user_id)
        self.settle()
        (sent,) = self.world.to("a.test")
        self.assertEqual((len(sent.edus), len(self.pushed())), (1, 20))

    def test_who_is_there_is_told_to_those_who_come(self) -> None:
        self.be("online", status="here")
        self.be("offline", user_id=f"@away:{OWN}")
        self.presence.introduce([ALICE, f"@away:{OWN}", f"@unknown:{OWN}"], ["c.test"])
        self.clock.advance(SHORTEST_LINGER)
        (update,) = self.pushed("c.test")
        self.assertEqual((update["user_id"], update["presence"], update["status_msg"]), (ALICE, "online", "here"))

    def test_users_of_others_are_not_ours_to_tell(self) -> None:
        self.rooms.of_users[BOB] = ["a.test"]
        self.be("online", user_id=BOB)
        self.settle()
        self.assertEqual(self.world.sent, [])
