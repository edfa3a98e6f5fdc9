"""``/send``: staged, answered alike however often it comes, and handed on in order, room by room."""

from __future__ import annotations

from typing import Any

import orjson
from twisted.internet.defer import Deferred

from dendrite_tw.database.engines import Unavailable
from dendrite_tw.federation_api import inbox
from dendrite_tw.federation_api.tables import staging
from dendrite_tw.federation_api.transactions import BURST, PACE_MS
from dendrite_tw.matrix.errors import MatrixError, not_found
from dendrite_tw.matrix.transactions import MAX_TRANSACTION_BYTES
from tests.harness import Answer, ask

from .inbound_case import ROOM, InboundCase, event_of

OTHER = "!other:alpha.test"


class TransactionCase(InboundCase):
    def setUp(self) -> None:
        super().setUp()
        self.rooms.versions[OTHER] = "11"
        self.sent = 0

    def put(self, *events: Any, txn_id: str = "", **options: Any) -> Answer:
        self.sent += 1
        return self.beta.put(f"/v1/send/{txn_id or self.sent}", self.transaction(*events, **options))

    def staged(self) -> int:
        ((count,),) = ask(self.database, "SELECT COUNT(*) FROM staged_pdus") or [(0,)]
        return int(count)

    def bodies(self, room_id: str = ROOM) -> list[str]:
        """What the room was given, in order."""
        pdus = [pdu for _, room, pdus in self.rooms.received if room == room_id for pdu in pdus]
        return [orjson.loads(pdu)["content"]["body"] for pdu in pdus]


class TransactionTests(TransactionCase):
    def test_events_are_answered_for_by_id_and_handed_to_their_room(self) -> None:
        events = [event_of(1), event_of(2)]
        answer = self.put(*events)
        self.assertEqual((answer.status, answer.json), (200, {"pdus": {event.event_id: {} for event in events}}))
        self.assertEqual(self.rooms.received, [("beta.test", ROOM, [orjson.dumps(e.pdu_dict()) for e in events])])
        self.assertEqual(self.staged(), 0)

    def test_events_of_the_first_rooms_are_known_by_their_own_ids(self) -> None:
        self.rooms.versions[ROOM] = "1"
        hashes = {"$" + "p" * 43: "abc", "$" + "a" * 43: "abc"}
        event = event_of(1, version="1", event_id="$one:beta.test", reference_hashes=hashes)
        self.assertEqual(self.put(event).json, {"pdus": {"$one:beta.test": {}}})

    def test_a_repeated_transaction_is_answered_alike_and_done_once(self) -> None:
        first = self.put(event_of(1), txn_id="t")
        again = self.put(event_of(2), txn_id="t")
        self.assertEqual((again.status, again.body), (200, first.body))
        self.assertEqual(self.bodies(), ["message 1"])
        self.crash()
        self.assertEqual(self.put(event_of(3), txn_id="t").body, first.body)
        self.assertEqual(self.bodies(), ["message 1"])

    def test_transactions_without_events_leave_nothing(self) -> None:
        typing = {"edu_type": "m.typing", "content": {"room_id": ROOM, "user_id": "@bob:beta.test", "typing": True}}
        for number in range(3):
            self.assertEqual(self.put(edus=[typing]).json, {"pdus": {}})
            self.assertEqual(self.put(event_of(number, "!unknown:alpha.test")).json, {"pdus": {}})
        self.assertEqual(ask(self.database, "SELECT COUNT(*) FROM received_transactions"), [(0,)])

    def test_transactions_of_different_servers_may_have_one_id(self) -> None:
        gamma = self.stranger("gamma.test", 78)
        self.put(event_of(1), txn_id="t")
        gamma.put("/v1/send/t", self.transaction(event_of(2), origin="gamma.test"))
        self.assertEqual(self.bodies(), ["message 1", "message 2"])

    def test_the_same_one_twice_at_the_same_time(self) -> None:
        self.keys.trouble = []
        waiting: Deferred[None] = Deferred()

        async def slow(*args: Any) -> None:
            await waiting

        self.keys.send_to_device = slow  # type: ignore[method-assign]
        message = {"sender": "@bob:beta.test", "type": "m.x", "message_id": "1", "messages": {}}
        edus = [{"edu_type": "m.direct_to_device", "content": message}]
        answers = [self.put(event_of(1), txn_id="t", edus=edus) for _ in range(3)]
        self.assertEqual([answer.done for answer in answers], [False] * 3)
        waiting.callback(None)
        self.turns()
        self.assertEqual({answer.body for answer in answers}, {answers[0].body})
        self.assertEqual(self.bodies(), ["message 1"])

    def test_transactions_of_one_server_wait_for_each_other(self) -> None:
        waiting: Deferred[None] = Deferred()

        async def slow(*args: Any) -> None:
            await waiting

        self.keys.send_to_device = slow  # type: ignore[method-assign]
        message = {"sender": "@bob:beta.test", "type": "m.x", "message_id": "1", "messages": {}}
        first = self.put(event_of(1), edus=[{"edu_type": "m.direct_to_device", "content": message}])
        others = [self.put(event_of(number)) for number in range(2, 9)]
        self.refused(self.put(event_of(9)), 429, "M_LIMIT_EXCEEDED")
        self.assertEqual((first.done, self.bodies()), (False, []))
        waiting.callback(None)
        self.turns()
        self.assertEqual([answer.status for answer in [first, *others]], [200] * 8)
        self.assertEqual(self.bodies(), [f"message {number}" for number in range(1, 9)])

    def test_who_sends_too_fast_is_let_wait(self) -> None:
        gamma = self.stranger("gamma.test", 78)
        for number in range(BURST):
            self.assertTrue(self.put(txn_id=f"b{number}").done)
        waiting = self.put(event_of(1))
        self.assertFalse(waiting.done)
        self.assertTrue(gamma.put("/v1/send/1", self.transaction(origin="gamma.test")).done)
        self.turns(PACE_MS / 1000)
        self.assertEqual(waiting.status, 200)

    def test_no_more_than_so_many(self) -> None:
        many = self.transaction()
        many["pdus"] = [event_of(number).pdu_dict() for number in range(51)]
        self.refused(self.beta.put("/v1/send/1", many), 400, "M_BAD_JSON")
        many["pdus"] = many["pdus"][:50]
        many["edus"] = [{"edu_type": "m.typing", "content": {}}] * 101
        self.refused(self.beta.put("/v1/send/1", many), 400, "M_BAD_JSON")
        many["edus"] = many["edus"][:100]
        self.assertEqual(len(self.beta.put("/v1/send/1", many).json["pdus"]), 50)

    def test_what_is_no_transaction(self) -> None:
        for body in (
            {},
            {"origin": "beta.test"},
            {"origin": "beta.test", "origin_server_ts": "now", "pdus": []},
            {"origin": "beta.test", "origin_server_ts": 1, "pdus": {}},
            {"origin": "beta.test", "origin_server_ts": 1, "pdus": [], "edus": {}},
            [],
        ):
            self.refused(self.beta.put("/v1/send/1", body), 400, "M_BAD_JSON")
        self.refused(self.put(origin="gamma.test"), 403, "M_FORBIDDEN")
        self.refused(self.beta.put("/v1/send/" + "t" * 256, self.transaction()), 400, "M_INVALID_PARAM")
        self.refused(self.beta.put("/v1/send/", self.transaction()), 400, "M_INVALID_PARAM")

    def test_ten_megabytes(self) -> None:
        body = b'{"origin":"beta.test","x":"' + b"x" * MAX_TRANSACTION_BYTES + b'"}'
        self.refused(self.beta.put("/v1/send/1", body), 413, "M_TOO_LARGE")

    def test_events_that_are_none(self) -> None:
        good = event_of(1)
        body = self.transaction(good)
        deep: Any = {}
        for _ in range(150):
            deep = {"x": deep}
        body["pdus"] += [
            7,
            "x",
            [],
            {},
            None,
            {"room_id": 7},
            {"room_id": "no room"},
            {"room_id": ROOM},
            {"room_id": ROOM, "type": "m.room.member", "content": []},
            {"room_id": ROOM, "type": 7, "content": {"membership": "join"}},
            {"room_id": ROOM, "type": "m.room.message", "content": {"x": "y" * 200_000}},
            {"room_id": ROOM, "type": "m.room.message", "content": deep},
        ]
        answer = self.beta.put("/v1/send/1", body)
        self.assertEqual(answer.status, 200)
        self.assertEqual(answer.json["pdus"].pop(good.event_id), {})
        self.assertEqual(orjson.loads(self.rooms.received[0][2][0])["content"]["body"], "message 1")

    def test_rooms_that_nobody_knows(self) -> None:
        answer = self.put(event_of(1, room_id="!unknown:alpha.test"), event_of(2))
        self.assertEqual(list(answer.json["pdus"]), [event_of(2).event_id])
        self.assertEqual(self.bodies(), ["message 2"])

    def test_a_server_that_a_room_keeps_out(self) -> None:
        self.rooms.kept_out.add((ROOM, "beta.test"))
        kept_out, taken = event_of(1), event_of(2, room_id=OTHER)
        answer = self.put(kept_out, taken).json["pdus"]
        self.assertIn("kept out", answer[kept_out.event_id]["error"])
        self.assertEqual(answer[taken.event_id], {})
        self.assertEqual((self.bodies(), self.bodies(OTHER)), ([], ["message 2"]))

    def test_counting(self) -> None:
        self.rooms.refusals = {"$x": "not allowed"}
        self.put(event_of(1), event_of(2), event_of(3, room_id="!unknown:alpha.test"))
        counts = {name: count for (name,), count in self.inbound.pdus.items()}
        self.assertEqual(counts, {"total": 3, "dropped": 1, "refused": 1, "accepted": 1})

    def test_old_answers_are_forgotten(self) -> None:
        self.put(event_of(1), txn_id="t")
        self.turns(staging.ANSWERS_KEPT_MS / 1000 + 1)
        self.successResultOf(Deferred.fromCoroutine(self.inbound.inbox.prune()))
        self.assertEqual(ask(self.database, "SELECT COUNT(*) FROM received_transactions"), [(0,)])


class StagingTests(TransactionCase):
    def test_a_crash_loses_nothing_and_keeps_the_order(self) -> None:
        self.rooms.waiting[ROOM] = Deferred()
        for number in range(1, 6):
            self.put(event_of(number))
        self.assertEqual((self.bodies(), self.staged()), ([], 5))
        del self.rooms.waiting[ROOM]
        self.crash()
        self.turns()
        self.assertEqual(self.bodies(), [f"message {number}" for number in range(1, 6)])
        self.assertEqual((self.staged(), self.inbound.inbox.waiting), (0, 0))

    def test_a_slow_room_does_not_keep_others_waiting(self) -> None:
        self.rooms.waiting[ROOM] = Deferred()
        self.put(event_of(1))
        self.put(event_of(2), event_of(3, room_id=OTHER))
        self.assertEqual((self.bodies(), self.bodies(OTHER)), ([], ["message 3"]))
        self.rooms.waiting[ROOM].callback(None)
        self.turns()
        self.assertEqual(self.bodies(), ["message 1", "message 2"])

    def test_many_slow_rooms_do_not_keep_others_waiting_for_long(self) -> None:
        slow = [f"!slow{number}:alpha.test" for number in range(inbox.ROOMS_AT_ONCE + 5)]
        for room_id in slow:
            self.rooms.versions[room_id] = "11"
            self.rooms.waiting[room_id] = Deferred()
            self.put(event_of(1, room_id=room_id))
        self.put(event_of(2))
        self.assertEqual(self.bodies(), [])
        self.turns(inbox.SLOW_SECONDS)
        self.assertEqual(self.bodies(), ["message 2"])
        for room_id in slow:
            self.rooms.waiting[room_id].callback(None)
        self.turns()
        self.assertEqual((self.staged(), len(self.rooms.received)), (0, len(slow) + 1))

    def test_events_of_several_servers_keep_their_order(self) -> None:
        gamma = self.stranger("gamma.test", 78)
        self.rooms.waiting[ROOM] = Deferred()
        self.put(event_of(1), event_of(2))
        gamma.put("/v1/send/1", self.transaction(event_of(3), origin="gamma.test"))
        self.put(event_of(4))
        self.rooms.waiting.pop(ROOM).callback(None)
        self.turns()
        self.assertEqual(self.bodies(), [f"message {number}" for number in range(1, 5)])
        self.assertEqual([origin for origin, _, _ in self.rooms.received], ["beta.test", "gamma.test", "beta.test"])

    def test_large_events_are_handed_over_a_few_at_a_time(self) -> None:
        large = {"body": "x" * 60_000, "msgtype": "m.text"}
        self.put(*(event_of(number, content=large) for number in range(10)))
        self.assertEqual([len(pdus) for _, _, pdus in self.rooms.received], [4, 4, 2])

    def test_trouble_of_our_own_passes(self) -> None:
        self.rooms.troubles[ROOM] = [Unavailable("the disk is full")] * 8
        self.put(event_of(1), event_of(2))
        self.assertEqual((self.bodies(), self.staged()), ([], 2))
        for _ in range(8):
            self.turns(inbox.LONGEST_WAIT)
        self.assertEqual((self.bodies(), self.staged()), (["message 1", "message 2"], 0))

    def test_what_the_room_refuses_as_a_whole_is_dropped(self) -> None:
        self.rooms.troubles[ROOM] = [not_found("This server does not know the room.")]
        self.put(event_of(1))
        self.put(event_of(2))
        self.assertEqual((self.bodies(), self.staged()), (["message 2"], 0))

    def test_an_event_that_nobody_can_take_is_dropped_alone(self) -> None:
        self.rooms.troubles[ROOM] = [ValueError("a mistake")] * inbox.ATTEMPTS
        self.put(event_of(1), event_of(2))
        for _ in range(inbox.ATTEMPTS):
            self.turns(inbox.LONGEST_WAIT)
        self.assertEqual((self.bodies(), self.staged()), (["message 2"], 0))
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), inbox.ATTEMPTS)

    def test_a_server_whose_events_wait_has_to_wait(self) -> None:
        self.patch(inbox, "WAITING_OF_SERVER", 3)
        self.rooms.waiting[ROOM] = Deferred()
        self.put(event_of(1), event_of(2), event_of(3))
        answer = self.put(event_of(4))
        self.refused(answer, 429, "M_LIMIT_EXCEEDED")
        self.assertEqual(answer.json["retry_after_ms"], inbox.BUSY_MS)
        gamma = self.stranger("gamma.test", 78)
        body = self.transaction(event_of(5), origin="gamma.test")
        self.assertEqual(gamma.put("/v1/send/1", body).status, 200)
        self.assertEqual(self.put().status, 200, "what brings no events may come")
        self.rooms.waiting[ROOM].callback(None)
        self.turns()
        self.assertEqual(self.put(event_of(4)).status, 200)

    def test_nothing_is_answered_for_that_is_not_on_disk(self) -> None:
        def full(*args: Any) -> Any:
            raise Unavailable("the disk is full")

        self.patch(self.database, "write", full)
        answer = self.put(event_of(1), txn_id="t")
        self.assertEqual((answer.status, answer.json["retry_after_ms"]), (503, 5000))
        self.patch(self.database, "write", type(self.database).write.__get__(self.database))
        self.assertEqual(self.put(event_of(1), txn_id="t").status, 200)
        self.assertEqual(self.bodies(), ["message 1"])

    def test_what_comes_while_nothing_is_found_is_handed_over_too(self) -> None:
        read = self.database.read

        async def slow(function: Any, *args: Any) -> Any:
            found = await read(function, *args)
            if function is staging.staged_of_room:
                self.patch(self.database, "read", read)
                self.assertEqual((found, self.put(event_of(1)).status), ([], 200))
            return found

        self.patch(self.database, "read", slow)
        # As where storing failed, or seemed to.
        self.inbound.inbox._add("beta.test", {ROOM: 1})
        self.turns()
        self.assertEqual((self.bodies(), self.staged(), self.inbound.inbox.waiting), (["message 1"], 0, 0))

    def test_what_was_stored_without_anybody_knowing_is_handed_over_too(self) -> None:
        write = self.database.write

        async def broken(function: Any, *args: Any) -> Any:
            await write(function, *args)
            raise Unavailable("the connection broke")

        self.patch(self.database, "write", broken)
        self.patch(self.inbound.inbox, "_add", self.lose_once(self.inbound.inbox._add))
        answer = self.put(event_of(1), txn_id="t")
        self.assertEqual(answer.status, 503)
        self.patch(self.database, "write", write)
        self.turns()
        self.assertEqual(self.bodies(), ["message 1"])
        self.assertEqual(self.put(event_of(1), txn_id="t").status, 200)
        self.turns(inbox.LONGEST_WAIT)
        self.assertEqual((self.bodies(), self.staged(), self.inbound.inbox.waiting), (["message 1"], 0, 0))

    def lose_once(self, function: Any) -> Any:
        """`function`, whose first call is lost, as a hook is of a commit that nobody heard of."""
        calls: list[Any] = []

        def call(*args: Any) -> None:
            calls.append(args)
            if len(calls) > 1:
                function(*args)

        return call

    def test_what_is_forbidden_in_general_is_not_retried(self) -> None:
        self.rooms.troubles[ROOM] = [MatrixError(403, "M_FORBIDDEN", "Kept out.")]
        self.put(event_of(1))
        self.assertEqual(self.staged(), 0)
