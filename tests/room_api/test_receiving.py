"""What an event refers to and is not here is fetched, within bounds; and what rooms have others say of their events."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import orjson
from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from dendrite_tw.database.engines import Unavailable
from dendrite_tw.federation_api.api import FederationRequest, RawAnswer
from dendrite_tw.matrix.errors import MatrixError
from dendrite_tw.matrix.events import Event, parse_event, signed_bytes
from dendrite_tw.matrix.keys import signing_key
from dendrite_tw.matrix.room_versions import ROOM_VERSIONS
from dendrite_tw.matrix.signing import encode_base64, sign_bytes
from dendrite_tw.room_api.api import NewEvent
from dendrite_tw.room_api.tables.events import ACCEPTED, REJECTED, SOFT_FAILED
from tests.room_api.federated import count
from tests.room_api.test_arrivals import ALICE, BOB, CAROL, MEMBER, MESSAGE, NAME, TOPIC, TwoServers


class MissingEventTests(TwoServers):
    def test_a_few_events_are_asked_for(self) -> None:
        for version in ("1", "4", "12"):
            room_id = self.shared_room(version)
            said = [self.a.say(room_id, ALICE, "1"), self.a.send(room_id, ALICE, TOPIC, {"topic": "t"}, "")]
            said += [self.a.say(room_id, ALICE, str(number)) for number in range(2, 30)]
            self.network.asked.clear()
            self.assertEqual(self.pass_on("a", room_id, said[-1:]), {})
            self.assertEqual({endpoint for _, _, endpoint in self.network.asked}, {"get_missing_events"})
            self.assertEqual(self.b.timeline(room_id)[-len(said) :], said)
            self.assertEqual(self.b.row(said[0]).gap, 0)  # type: ignore[union-attr]
            self.assert_same_state(room_id)

    def test_too_many_leave_a_gap(self) -> None:
        room_id = self.shared_room()
        first = self.a.send(room_id, ALICE, NAME, {"name": "n"}, "")
        missed = [self.a.say(room_id, ALICE, str(number)) for number in range(150)]
        topic = self.a.send(room_id, ALICE, TOPIC, {"topic": "t"}, "")
        last = self.a.say(room_id, ALICE, "last")
        self.b.told.clear()
        self.assertEqual(self.pass_on("a", room_id, [last]), {})
        self.assert_same_state(room_id)
        here = self.b.timeline(room_id)
        self.assertEqual(here[-1], last)
        gaps = [one for one in here if self.b.row(one).gap]  # type: ignore[union-attr]
        self.assertEqual(len(gaps), 2, "the join, and the first after what is missing")
        self.assertTrue(next(told for told in self.b.told if told.event.event_id == gaps[1]).event.gap)
        self.assertIn(first, self.b.state(room_id).values())
        self.assertEqual(self.b.row(first).position, 0)  # type: ignore[union-attr]
        self.assertIn(topic, here)
        self.assertLess(len(self.network.asked), 20)
        # What was missing comes after all: it is part of the timeline, and nothing is missing any more.
        self.assertEqual(self.pass_on("a", room_id, [first, *missed]), {})
        self.assertEqual(self.b.room(room_id).head.extremities, (last,))
        self.assertEqual(self.b.row(gaps[1]).gap, 2, "what was missing is here, and not in its place")  # type: ignore[union-attr]
        self.assertEqual(self.b.row(first).status, ACCEPTED)  # type: ignore[union-attr]
        self.assertGreater(self.b.row(first).position, 0)  # type: ignore[union-attr]
        self.assert_same_state(room_id)
        self.b.restart()
        self.assert_same_state(room_id)

    def test_who_came_behind_a_gap_may_speak(self) -> None:
        for version in ("1", "10", "12"):
            room_id = self.shared_room(version)
            self.a.change(room_id, "@new:a", "join")
            for number in range(110):
                self.a.say(room_id, ALICE, str(number))
            said = self.a.say(room_id, "@new:a", "hello")
            self.assertEqual(self.pass_on("a", room_id, [said]), {})
            self.assertEqual(self.b.status(said), ACCEPTED)
            self.assert_same_state(room_id)

    def test_who_was_banned_may_not_speak_from_behind_a_gap(self) -> None:
        room_id = self.shared_room()
        start = [self.a.event(one) for one in self.a.room(room_id).head.extremities]
        state = [self.a.event(one) for one in self.a.state(room_id).values()]
        self.a.change(room_id, ALICE, "ban", BOB)
        dream = self.b.make(ROOM_VERSIONS["10"], room_id, BOB, MESSAGE, {"body": "dream"}, prev=start, state=state)
        said = self.b.make(ROOM_VERSIONS["10"], room_id, BOB, MESSAGE, {"body": "evading"}, prev=[dream], state=state)
        self.network.answers["b", "get_missing_events"] = lambda request: RawAnswer(404, b"{}")
        self.network.answers["b", "event"] = lambda request: {"pdus": [orjson.loads(dream.pdu)]}
        self.network.answers["b", "state_ids"] = lambda request: {
            "pdu_ids": [one.event_id for one in state],
            "auth_chain_ids": [],
        }
        self.assertIn("not allowed now", self.pass_on("b", room_id, [said])[said.event_id])
        self.assertEqual(self.a.status(said.event_id), SOFT_FAILED)

    def test_a_whole_state_is_asked_for_at_once(self) -> None:
        room_id = self.shared_room()
        users = [f"@user{number}:a" for number in range(60)]
        for user in users:
            self.a.change(room_id, user, "join")
        for number in range(110):
            self.a.say(room_id, ALICE, str(number))
        last = self.a.say(room_id, ALICE, "last")
        self.assertEqual(self.pass_on("a", room_id, [last]), {})
        self.assert_same_state(room_id)
        self.assertEqual(sorted(self.b.do(self.b.rooms.joined_users(room_id))), sorted([ALICE, BOB, *users]))
        endpoints = [endpoint for _, _, endpoint in self.network.asked]
        self.assertEqual((endpoints.count("state"), endpoints.count("event")), (1, 1))

    def test_another_server_helps(self) -> None:
        room_id = self.shared_room()
        carol = self.network.server("c")
        self.a.let_join(carol, room_id, CAROL)
        join = self.a.state(room_id)[MEMBER, CAROL]
        self.pass_on("a", room_id, [join])
        topic = self.a.send(room_id, ALICE, TOPIC, {"topic": "t"}, "")
        said = [self.a.say(room_id, ALICE, str(number)) for number in range(3)]
        self.assertEqual(carol.receive(self.a, room_id, [topic, *said]), {})
        self.network.deaf.add("a")
        self.assertEqual(self.pass_on("a", room_id, [said[-1]]), {})
        self.assert_same_state(room_id)
        self.assertEqual(self.b.row(said[-1]).gap, 1)  # type: ignore[union-attr]
        self.assertIn(("b", "c", "state_ids"), self.network.asked)

    def test_a_state_with_holes_is_none(self) -> None:
        """One of the events of a state is not given: the state is not taken without it."""
        room_id = self.shared_room()
        topic = self.a.send(room_id, ALICE, TOPIC, {"topic": "t"}, "")
        name = self.a.send(room_id, ALICE, NAME, {"name": "n"}, "")
        said = [self.a.say(room_id, ALICE, str(number)) for number in range(150)]

        def event(request: FederationRequest) -> Any:
            event_id = unquote(request.path.rsplit("/", 1)[-1])
            return RawAnswer(500, b"") if event_id == topic else self.a.answer_event(event_id)

        self.network.answers["a", "event"] = event
        self.assertIn(said[-1], self.pass_on("a", room_id, said[-1:]))
        self.assertNotIn((TOPIC, ""), self.b.state(room_id))
        del self.network.answers["a", "event"]
        self.network.memory.clock.advance(5)
        self.assertEqual(self.pass_on("a", room_id, said[-1:]), {})
        self.assertEqual(self.b.state(room_id)[TOPIC, ""], topic)
        self.assertEqual(self.b.state(room_id)[NAME, ""], name)
        self.assert_same_state(room_id)

    def test_nobody_helps(self) -> None:
        room_id = self.shared_room()
        said = [self.a.say(room_id, ALICE, str(number)) for number in range(10)]
        self.network.deaf.add("a")
        self.assertIn("missing", self.pass_on("a", room_id, said[3:4])[said[3]])
        self.assertIsNone(self.b.status(said[3]))
        self.assertGreater(len(self.network.asked), 0)
        self.assertIn(said[4], self.pass_on("a", room_id, said[4:5]))
        asked = len(self.network.asked)
        for one in said[5:]:
            self.assertIn(one, self.pass_on("a", room_id, [one]))
        self.assertEqual(len(self.network.asked), asked, "it was asked again and again")
        # Later it answers again, and one event brings the others along.
        self.network.deaf.clear()
        self.network.memory.clock.advance(5)
        self.assertEqual(self.pass_on("a", room_id, said[9:]), {})
        self.assertEqual(self.b.bodies(room_id), [str(number) for number in range(10)])

    def test_a_past_that_is_kept_back(self) -> None:
        """An event is dropped if its server does not give what is before it; further questions are not asked."""
        room_id = self.shared_room()
        said = [self.a.say(room_id, ALICE, str(number)) for number in range(4)]
        for given in ([], said[:2], [{**self.a.event(said[2]).pdu_dict(), "content": {"body": 1.5}}]):
            events = [self.a.event(one).pdu_dict() if isinstance(one, str) else one for one in given]
            self.network.answers["a", "get_missing_events"] = lambda request, events=events: {"events": events}  # type: ignore[misc]
            self.network.memory.clock.advance(10_000)
            self.network.asked.clear()
            self.assertIn("missing", self.pass_on("a", room_id, said[3:])[said[3]])
            self.assertEqual(self.network.asked, [("b", "a", "get_missing_events")])
            self.assertIsNone(self.b.status(said[3]))
        self.network.answers.clear()
        self.network.memory.clock.advance(10_000)
        self.assertEqual(self.pass_on("a", room_id, said[3:]), {})
        self.assertEqual(self.b.bodies(room_id), [str(number) for number in range(4)])

    def test_an_answer_with_room_for_more_is_the_last(self) -> None:
        """Of what the server does not give the state is asked for: once, not event after event."""
        room_id = self.shared_room()
        topic = self.a.send(room_id, ALICE, TOPIC, {"topic": "t"}, "")
        said = [self.a.say(room_id, ALICE, str(number)) for number in range(2)]
        self.network.answers["a", "get_missing_events"] = lambda request: {"events": [self.a.event(said[0]).pdu_dict()]}
        self.assertEqual(self.pass_on("a", room_id, said[1:]), {})
        endpoints = [endpoint for _, _, endpoint in self.network.asked]
        self.assertEqual((endpoints.count("get_missing_events"), endpoints.count("state_ids")), (1, 1))
        self.assertEqual(self.b.bodies(room_id), ["0", "1"])
        self.assertEqual(self.b.row(said[0]).gap, 1)  # type: ignore[union-attr]
        self.assertEqual(self.b.row(topic).position, 0)  # type: ignore[union-attr]
        self.assert_same_state(room_id)

    def test_authority_is_asked_for(self) -> None:
        for endpoint_fails in (False, True):
            room_id = self.shared_room()
            start = [self.a.event(one) for one in self.a.room(room_id).head.extremities]
            levels: dict[str, Any] = {"users": {ALICE: 100, BOB: 60}, "state_default": 50}
            self.a.send(room_id, ALICE, "m.room.power_levels", levels, "")
            said = self.a.make_on(self.a, room_id, ALICE, MESSAGE, {"body": "x"}, prev=start)
            self.a.take(room_id, [said])
            if endpoint_fails:
                self.network.answers["a", "event_auth"] = lambda request: RawAnswer(500, b"")
            self.network.asked.clear()
            self.assertEqual(self.pass_on("a", room_id, [said]), {})
            self.assertEqual(self.b.status(said.event_id), ACCEPTED)
            named = self.a.state(room_id)["m.room.power_levels", ""]
            self.assertEqual(self.b.row(named).position, 0)  # type: ignore[union-attr]
            self.assertEqual(("b", "a", "event") in self.network.asked, endpoint_fails)
            self.assertEqual(self.pass_on("a", room_id, [named]), {})
            self.assert_same_state(room_id)

    def test_what_comes_out_of_order_is_put_in_order(self) -> None:
        room_id = self.shared_room()
        said = [self.a.say(room_id, ALICE, str(number)) for number in range(6)]
        self.assertEqual(self.pass_on("a", room_id, [*reversed(said)]), {})
        self.assertEqual(self.b.bodies(room_id), [str(number) for number in range(6)])


class HostileServerTests(TwoServers):
    """A server that has a member in the room, and means no good."""

    def branches(self, room_id: str, width: int) -> list[Event]:
        """Events that refer to some that nobody has, and one that refers to them."""
        version = self.a.room(room_id).version
        state = [self.a.event(one) for one in self.a.state(room_id).values()]

        def make(body: str, prev: list[Event], depth: int = 9) -> Event:
            return self.b.make(version, room_id, BOB, MESSAGE, {"body": body}, prev=prev, state=state, depth=depth)

        dreams = [make(f"dream {n}", [make(f"before {n}", [], 8)]) for n in range(width)]
        return [*dreams, make("real", dreams, 10)]

    def test_lies_about_the_past(self) -> None:
        for width in (3, 20):
            self.lie(width)

    def lie(self, width: int) -> None:
        room_id = self.shared_room()
        *dreams, event = self.branches(room_id, width)
        lies: list[Any] = [
            {"events": []},
            {"events": [orjson.loads(one.pdu) for one in dreams]},
            {"events": [orjson.loads(one.pdu) for one in dreams[1:]]},
            {"events": [1, {}, {"room_id": room_id}] * 10},
            {"events": "none"},
            [],
            {"events": [orjson.loads(self.a.event(one).pdu) for one in self.a.state(room_id).values()]},
            {"events": [orjson.loads(event.pdu)] * 50},
        ]
        for lie in lies:
            for ids in ({"pdu_ids": ["$x"] * 10, "auth_chain_ids": []}, {"pdu_ids": [1]}, {"pdu_ids": []}, "no"):
                self.network.answers["b", "get_missing_events"] = lambda request, lie=lie: lie  # type: ignore[misc]
                self.network.answers["b", "state_ids"] = lambda request, ids=ids: ids  # type: ignore[misc]
                self.network.answers["a", "state_ids"] = lambda request: RawAnswer(404, b"{}")
                self.network.memory.clock.advance(10_000)
                self.network.asked.clear()
                self.assertIn(event.event_id, self.pass_on("b", room_id, [event]))
                self.assertIsNone(self.a.status(event.event_id))
                self.assertLess(len(self.network.asked), 40)
        said = self.b.say(room_id, BOB, "fine")
        self.assertEqual(self.pass_on("b", room_id, [said]), {})

    def test_a_state_with_what_nobody_would_accept(self) -> None:
        """What is rejected is left out of a state that is told; what it leaves counts, and what came after it."""
        for version in ("1", "10"):
            room_id = self.shared_room(version)
            state = [self.a.event(one) for one in self.a.state(room_id).values()]
            start = [self.a.event(one) for one in self.a.room(room_id).head.extremities]

            def make(
                type: str,
                content: dict[str, Any],
                key: str | None = None,
                prev: list[Event] = start,
                room_id: str = room_id,
                state: list[Event] = state,
            ) -> Event:
                version = self.a.room(room_id).version
                return self.b.make(version, room_id, BOB, type, content, key, prev=prev, state=state)

            evil = make("m.room.power_levels", {"users": {BOB: 100}}, "")
            named = make(NAME, {"name": "n"}, "")
            topic = make(TOPIC, {"topic": "t"}, "", prev=[named])
            said = make(MESSAGE, {"body": "x"}, prev=[topic])
            last = make(MESSAGE, {"body": "y"}, prev=[said])
            told = {(one.type, one.state_key): one for one in [*state, evil, named]}
            events = {one.event_id: one.pdu_dict() for one in [*told.values(), topic]}
            self.network.answers["b", "get_missing_events"] = lambda request, said=said: {"events": [said.pdu_dict()]}  # type: ignore[misc]
            self.network.answers["b", "state_ids"] = lambda request, told=told: {  # type: ignore[misc]
                "pdu_ids": [one.event_id for one in told.values()],
                "auth_chain_ids": [],
            }
            self.network.answers["b", "event"] = lambda request, events=events: {  # type: ignore[misc]
                "pdus": [events[unquote(request.path.rsplit("/", 1)[1])]]
            }
            before = self.a.state(room_id)
            self.assertEqual(self.pass_on("b", room_id, [last]), {})
            self.assertEqual(self.a.status(evil.event_id), REJECTED)
            fresh = {(NAME, ""): named.event_id, (TOPIC, ""): topic.event_id}
            self.assertEqual(self.a.state(room_id), before | fresh)

    def test_a_past_without_end(self) -> None:
        """Each event that is given refers to further ones, ever more of them."""
        room_id = self.shared_room()
        version = self.a.room(room_id).version
        state = [self.a.event(one) for one in self.a.state(room_id).values()]

        def more(prev: list[Event]) -> Event:
            number = self.network.memory.world.random.token(8)
            return self.b.make(version, room_id, BOB, MESSAGE, {"body": number}, prev=prev, state=state, depth=99)

        layers = [[more([])]]
        for _ in range(12):
            layers.append([more([more([]), more([]), one]) for one in layers[-1]])
        event = layers[-1][0]
        given = {one.event_id: one for layer in layers for one in layer}

        def answer(request: Any) -> Any:
            latest = [given[one] for one in request.body["latest_events"] if one in given]
            found = [given[one] for event in latest for one in event.prev_events if one in given]
            return {"events": [orjson.loads(one.pdu) for one in found] * 20}

        self.network.answers["b", "get_missing_events"] = answer
        self.network.answers["b", "state_ids"] = lambda request: RawAnswer(404, b"{}")
        self.network.answers["a", "state_ids"] = lambda request: RawAnswer(404, b"{}")
        events = self.a.database.prepare(count, "events")
        self.assertIn(event.event_id, self.pass_on("b", room_id, [event]))
        self.assertEqual(self.a.database.prepare(count, "events"), events)
        self.assertLess(len(self.network.asked), 40)

    def test_events_in_a_circle(self) -> None:
        """In the first room versions an event's ID is what its server says."""
        room_id = self.shared_room("1")
        version = ROOM_VERSIONS["1"]
        state = [self.a.event(one) for one in self.a.state(room_id).values()]
        hashes = {event.event_id: "AAAA" for event in state} | {"$one:b": "AAAA", "$two:b": "AAAA"}
        circle = [
            self.b.make(
                version,
                room_id,
                BOB,
                MESSAGE,
                {"body": own},
                prev=[],
                state=state,
                prev_events=[other],
                event_id=own,
                reference_hashes=hashes,
            )
            for own, other in (("$one:b", "$two:b"), ("$two:b", "$one:b"))
        ]
        pdus = [orjson.loads(event.pdu) for event in circle]
        self.network.answers["b", "get_missing_events"] = lambda request: {"events": pdus}
        self.network.answers["b", "state_ids"] = lambda request: RawAnswer(404, b"{}")
        refused = self.pass_on("b", room_id, list(circle))
        self.assertEqual(refused.keys(), {"$one:b", "$two:b"})
        self.assertLess(len(self.network.asked), 40)

    def test_a_depth_beyond_measure(self) -> None:
        for version, depth in (("1", 2**63 - 1), ("10", 2**53 - 1)):
            room_id = self.shared_room(version)
            deep = self.b.make_on(self.a, room_id, BOB, MESSAGE, {"body": "deep"}, depth=depth)
            self.assertEqual(self.pass_on("b", room_id, [deep]), {})
            said = self.a.say(room_id, ALICE, "on")
            self.assertEqual(self.a.event(said).depth, depth)
            self.assertEqual(self.a.bodies(room_id), ["deep", "on"])

    def test_a_state_that_does_not_hold(self) -> None:
        """The state that another server tells is no better than its events; what is here counts as well."""
        room_id = self.shared_room()
        state = [self.a.event(one) for one in self.a.state(room_id).values()]
        ban = self.a.send(room_id, ALICE, "m.room.power_levels", {"users": {ALICE: 100, BOB: 10}}, "")
        levels = self.b.make_on(self.a, room_id, BOB, "m.room.power_levels", {"users": {BOB: 100}}, "", state=state)
        others = [event for event in state if event.type != "m.room.power_levels"]
        tip = self.a.event(ban)
        dream = self.b.make(ROOM_VERSIONS["10"], room_id, BOB, MESSAGE, {"body": "d"}, prev=[tip], state=state)
        said = self.b.make(ROOM_VERSIONS["10"], room_id, BOB, MESSAGE, {"body": "x"}, prev=[tip, dream], state=others)
        event = self.b.make(ROOM_VERSIONS["10"], room_id, BOB, MESSAGE, {"body": "y"}, prev=[said], state=others)
        events = {one.event_id: one for one in [*state, levels, dream]}
        self.network.answers["b", "get_missing_events"] = lambda request: {"events": [orjson.loads(said.pdu)]}
        self.network.answers["b", "state_ids"] = lambda request: {
            "pdu_ids": [one.event_id for one in [*others, levels]],
            "auth_chain_ids": [one.event_id for one in state],
        }
        self.network.answers["b", "event"] = lambda request: {
            "pdus": [orjson.loads(events[request.path.rsplit("/", 1)[1].replace("%24", "$")].pdu)]
        }
        self.assertEqual(self.pass_on("b", room_id, [event]), {})
        self.assertEqual(self.a.timeline(room_id)[-2:], [said.event_id, event.event_id])
        self.assertIsNotNone(self.a.row(levels.event_id), "what was told was looked at")
        self.assertEqual(self.a.state(room_id)["m.room.power_levels", ""], ban)
        self.assertEqual(self.a.content(room_id, "m.room.power_levels")["users"][BOB], 10)


class PolicyTests(TwoServers):
    """The server p recommends what does not say so."""

    def setUp(self) -> None:
        super().setUp()
        self.p = self.network.server("p")
        self.key = signing_key("ed25519:policy_server", b"p" * 32)
        self.network.answers["p", "sign"] = self.sign
        self.signed: list[str] = []

    def sign(self, request: Any) -> Any:
        event = parse_event(request.body, ROOM_VERSIONS["10"])
        self.signed.append(event.event_id)
        if "spam" in event.content.get("body", ""):
            return RawAnswer(400, b'{"errcode":"M_FORBIDDEN","error":"This is spam."}')
        return {"p": {"ed25519:policy_server": sign_bytes(signed_bytes(event), self.key.secret)}}

    def policed_room(self) -> str:
        room_id = self.shared_room()
        self.a.let_join(self.p, room_id, "@policy:p")
        key = encode_base64(self.key.verify_key)
        content = {"via": "p", "public_keys": {"ed25519": key}}
        appointed = self.a.send(room_id, ALICE, "m.room.policy", content, "")
        self.pass_on("a", room_id, [self.a.state(room_id)[MEMBER, "@policy:p"], appointed])
        self.assertEqual(self.signed, [])
        return room_id

    def test_sending(self) -> None:
        room_id = self.policed_room()
        options = {"device_id": "D", "transaction_id": "t"}
        said = self.a.send(room_id, ALICE, MESSAGE, {"body": "good"}, **options)
        self.assertEqual(self.signed, [said])
        self.assertIn("ed25519:policy_server", self.a.event(said).pdu_dict()["signatures"]["p"])
        self.assertEqual(self.a.told[-1].event.transaction_id, "t")
        self.assertTrue(self.a.told[-1].distribute)
        self.assertEqual(self.a.send(room_id, ALICE, MESSAGE, {"body": "good"}, **options), said)
        # Others see the signature and need not ask.
        self.assertEqual(self.pass_on("a", room_id, [said]), {})
        self.assertEqual(self.signed, [said])
        for body, errcode, status in (("spam", "M_FORBIDDEN", 400),):
            self.refuse(room_id, body, errcode, status)
        self.network.answers.pop(("p", "sign"))
        self.network.deaf.add("p")
        self.refuse(room_id, "good", "M_UNKNOWN", 502)
        self.network.answers["p", "sign"] = lambda request: {"p": {"ed25519:policy_server": "nonsense"}}
        self.refuse(room_id, "good", "M_FORBIDDEN", 403)
        self.assertEqual(self.a.bodies(room_id), ["good"])
        # Without the one who recommends, all may be said again.
        self.a.send(room_id, ALICE, "m.room.policy", {}, "")
        self.a.say(room_id, ALICE, "spam")

    def refuse(self, room_id: str, body: str, errcode: str, status: int) -> None:
        event = NewEvent(room_id=room_id, sender=ALICE, type=MESSAGE, content={"body": body})
        failure = self.failureResultOf(Deferred.fromCoroutine(self.a.rooms.send(event)), MatrixError)
        self.assertEqual((failure.value.errcode, failure.value.status), (errcode, status))

    def test_receiving(self) -> None:
        room_id = self.policed_room()
        good, spam = (self.b.make_on(self.a, room_id, BOB, MESSAGE, {"body": body}) for body in ("good", "spam"))
        after = self.b.make_on(self.a, room_id, BOB, MESSAGE, {"body": "after"}, prev=[good])
        refused = self.pass_on("b", room_id, [good, spam, after])
        self.assertEqual(refused.keys(), {spam.event_id})
        self.assertIn("recommend", refused[spam.event_id])
        self.assertEqual([self.a.status(one.event_id) for one in (good, spam)], [ACCEPTED, SOFT_FAILED])
        self.assertEqual(self.a.bodies(room_id), ["good", "after"])
        self.assertIn("p", self.a.event(good.event_id).pdu_dict()["signatures"])
        self.assertEqual(sorted(self.signed), sorted(one.event_id for one in (good, spam, after)))

    def test_one_that_is_not_in_the_room(self) -> None:
        room_id = self.shared_room()
        content = {"via": "p", "public_keys": {"ed25519": encode_base64(self.key.verify_key)}}
        self.a.send(room_id, ALICE, "m.room.policy", content, "")
        self.a.say(room_id, ALICE, "spam")
        self.assertEqual(self.signed, [])


class FailingDatabaseTests(TwoServers):
    def test_a_failure_at_any_moment_loses_nothing(self) -> None:
        """The database fails at one write after the other; received again, all is there, and once."""
        for failing in range(60):
            room_id = self.shared_room()
            named = self.a.send(room_id, ALICE, NAME, {"name": "n"}, "")
            for number in range(105):
                self.a.say(room_id, ALICE, str(number))
            last = [self.a.send(room_id, ALICE, TOPIC, {"topic": "t"}, ""), self.a.say(room_id, ALICE, "last")]
            writes, write = iter(range(10_000)), self.b.database.write

            def fail_once(*args: Any, failing: int = failing, **kwargs: Any) -> Any:
                return fail(Unavailable("the disk is full")) if next(writes) == failing else write(*args, **kwargs)  # noqa: B023

            self.b.database.write = fail_once  # type: ignore[method-assign]
            pdus = [self.a.event(one).pdu for one in last]
            first = self.outcome(self.b.rooms.receive("a", room_id, pdus))
            self.b.database.write = write  # type: ignore[method-assign]
            self.network.memory.clock.advance(1000)
            self.b.restart()
            self.assertEqual(self.b.do(self.b.rooms.receive("a", room_id, pdus)), {})
            self.assert_same_state(room_id)
            self.assertEqual(self.b.timeline(room_id)[-2:], last)
            self.assertIn(named, self.b.state(room_id).values())
            if next(writes) <= failing:
                self.assertEqual(first, {})
                return
        self.fail("there is no end of writes")

    def outcome(self, coroutine: Any) -> Any:
        done: list[Any] = []
        Deferred.fromCoroutine(coroutine).addBoth(done.append)
        for _ in range(100):
            self.network.memory.clock.advance(0)
        [result] = done
        if isinstance(result, Failure):
            result.trap(Unavailable)
        return result


class ManyEndsTests(TwoServers):
    def test_the_ends_of_a_timeline_are_kept_in_memory(self) -> None:
        """A server that answers to old events only makes branch after branch; it costs no more for each."""
        room_id = self.shared_room()
        start = [self.a.event(one) for one in self.a.room(room_id).head.extremities]
        said = [self.b.make_on(self.a, room_id, BOB, MESSAGE, {"body": str(n)}, prev=start) for n in range(80)]
        for one in said:
            self.assertEqual(self.a.receive(self.b, room_id, [one]), {})
        reads = 0
        read = self.a.database.read

        async def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal reads
            reads += 1
            return await read(*args, **kwargs)

        self.a.database.read = counted  # type: ignore[method-assign]
        another = self.b.make_on(self.a, room_id, BOB, MESSAGE, {"body": "another"}, prev=start)
        reads = 0
        self.assertEqual(self.a.receive(self.b, room_id, [another]), {})
        self.assertLess(reads, 25)
        self.assertEqual(len(self.a.room(room_id).head.extremities), 81)
