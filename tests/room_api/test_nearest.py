"""Events by their time, asked of other servers where they are not here."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.federation_api.api import FederationRequest
from dendrite_tw.matrix.errors import MatrixError
from dendrite_tw.room_api import nearest
from tests.room_api.federated import Network

ALICE, BOB = "@alice:a", "@bob:b"


class NearestTests(SynchronousTestCase):
    """Bob's server has joined a room of Alice's, of which it has nothing from before."""

    def setUp(self) -> None:
        self.network = Network(self)
        self.clock = self.network.memory.clock
        self.a, self.b = self.network.server("a"), self.network.server("b")
        self.room_id = self.a.create(ALICE, preset="public_chat", room_version="10")
        self.said: list[str] = []
        self.times: list[int] = []
        for number in range(4):
            self.clock.advance(100)
            self.said.append(self.a.say(self.room_id, ALICE, str(number)))
            self.times.append(self.now)
        self.clock.advance(100)
        self.a.let_join(self.b, self.room_id, BOB)
        self.joined = self.b.state(self.room_id)["m.room.member", BOB]
        self.join_ts = self.now
        self.network.answers["a", "timestamp_to_event"] = self.answer
        self.network.asked.clear()

    @property
    def now(self) -> int:
        return self.network.memory.world.clock.now_ms()

    def answer(self, request: FederationRequest) -> Any:
        """What the room component of Alice's server says to one who asks there."""
        fields = dict(request.query)
        asked = self.a.rooms.timestamp_to_event(self.room_id, ALICE, int(fields["ts"]), fields["dir"])
        event_id, ts = self.a.do(asked)
        return {"event_id": event_id, "origin_server_ts": ts}

    def find(self, ts: int, direction: str) -> tuple[str, int]:
        return tuple(self.b.do(self.b.rooms.timestamp_to_event(self.room_id, BOB, ts, direction)))  # type: ignore[return-value]

    def refused(self, ts: int, direction: str, user: str = BOB) -> int:
        asked = Deferred.fromCoroutine(self.b.rooms.timestamp_to_event(self.room_id, user, ts, direction))
        return self.failureResultOf(asked, MatrixError).value.status  # type: ignore[no-any-return]

    def endpoints(self) -> list[str]:
        return [endpoint for _, _, endpoint in self.network.asked]

    def test_an_event_that_is_not_here_is_fetched(self) -> None:
        self.assertEqual(self.find(self.times[1] + 5, "b"), (self.said[1], self.times[1]))
        self.assertEqual(self.find(self.times[2] - 5, "f"), (self.said[2], self.times[2]))
        for event_id in self.said[1:3]:
            row = self.b.row(event_id)
            assert row is not None
            self.assertLess(row.position, 0)
            self.assertTrue(self.b.do(self.b.rooms.event(self.room_id, BOB, event_id)).client)
            context = self.b.do(self.b.rooms.context(self.room_id, BOB, event_id, 2, None, False))
            self.assertEqual(context.event.event_id, event_id)
        self.assertEqual(self.b.timeline(self.room_id), [self.joined])
        self.network.asked.clear()
        self.assertEqual(self.find(self.times[1], "b"), (self.said[1], self.times[1]))
        self.assertNotIn("event", self.endpoints())

    def test_nobody_is_asked_where_nothing_is_missing(self) -> None:
        self.clock.advance(100)
        said = self.b.say(self.room_id, BOB, "here")
        for ts, direction in ((self.now + 5, "b"), (self.now - 50_000, "f"), (self.now, "b")):
            self.assertEqual(self.find(ts, direction), (said, self.now))
        self.assertEqual(self.endpoints(), [])

    def test_what_is_here_is_told_where_others_know_nothing_nearer(self) -> None:
        answers: list[Any] = [
            {"event_id": self.said[0], "origin_server_ts": self.join_ts + 1},
            {"event_id": self.said[0], "origin_server_ts": self.times[0] - 1000},
            {"event_id": "nonsense", "origin_server_ts": self.join_ts - 10},
            {"event_id": "$" + "x" * 43, "origin_server_ts": self.join_ts - 10},
            {"event_id": self.said[0]},
            [],
        ]
        for answer in answers:
            self.network.answers["a", "timestamp_to_event"] = lambda request, answer=answer: answer
            self.assertEqual(self.find(self.times[0], "f"), (self.joined, self.join_ts))
        self.network.deaf.add("a")
        self.assertEqual(self.find(self.times[0], "f"), (self.joined, self.join_ts))
        self.assertEqual(self.refused(self.times[0], "b"), 404)

    def test_a_server_that_lies_about_the_time(self) -> None:
        lie = {"event_id": self.said[0], "origin_server_ts": self.times[2]}
        self.network.answers["a", "timestamp_to_event"] = lambda request: lie
        self.assertEqual(self.find(self.times[1], "f"), (self.joined, self.join_ts))

    def test_an_event_that_cannot_be_had(self) -> None:
        for endpoint in ("event", "state_ids"):
            self.network.answers["a", endpoint] = lambda request: {"pdus": []}
            self.assertEqual(self.find(self.times[1], "f"), (self.joined, self.join_ts))
            del self.network.answers["a", endpoint]
        self.assertEqual(self.find(self.times[1], "f"), (self.said[1], self.times[1]))

    def test_only_what_the_user_may_see(self) -> None:
        room_id = self.room_id = self.a.create(ALICE, preset="public_chat", room_version="10")
        self.a.send(room_id, ALICE, "m.room.history_visibility", {"history_visibility": "joined"}, "")
        self.clock.advance(100)
        secret, ts = self.a.say(room_id, ALICE, "secret"), self.now
        self.clock.advance(100)
        self.a.let_join(self.b, room_id, BOB)
        self.assertEqual(self.refused(ts, "b"), 404)
        self.assertEqual(self.find(ts, "f")[1], self.now)
        self.assertIsNotNone(self.b.row(secret), "it was fetched, and not shown")
        self.assertEqual(self.refused(ts, "f", "@eve:b"), 403)

    def test_only_so_many_ask_at_a_time(self) -> None:
        self.patch(nearest, "AT_ONCE", 0)
        self.assertEqual(self.find(self.times[1], "f"), (self.joined, self.join_ts))
        self.assertEqual(self.endpoints(), [])
