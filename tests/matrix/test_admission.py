"""The steps on receipt of an event: each has events that pass it and events that it stops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from hypothesis import given
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.matrix import admission, events
from dendrite_tw.matrix.admission import (
    Admission,
    AskPolicyServer,
    CurrentState,
    FetchKeys,
    FindPolicyServer,
    KnownEvent,
    LoadAuthEvents,
    PolicyServer,
    Question,
    StateBefore,
    VerifyKey,
    admit,
    read_policy,
)
from dendrite_tw.matrix.auth_rules import auth_event_keys
from dendrite_tw.matrix.events import Event
from dendrite_tw.matrix.keys import signing_key
from dendrite_tw.matrix.room_versions import ROOM_V1, ROOM_V4, ROOM_V8, ROOM_V11, ROOM_V12, RoomVersion
from dendrite_tw.matrix.signing import sign_bytes

from .builders import ALICE, BOB, KEY, SERVER, RoomBuilder
from .strategies import bounded, json_objects

NOW = 1_700_000_100_000
POLICY = signing_key("ed25519:policy_server", b"\3" * 32)
State = Mapping[tuple[str, str], Event]


class World:
    """Answers from a room, with what a test changes about it."""

    def __init__(self, version: RoomVersion) -> None:
        self.version = version
        self.room = RoomBuilder(version)
        self.put("m.room.member", ALICE, {"membership": "join"}, ALICE)
        creator = {} if version.privileged_creators else {ALICE: 100}
        self.put("m.room.power_levels", ALICE, {"users": creator})
        self.put("m.room.join_rules", ALICE, {"join_rule": "public"})
        self.keys = {(SERVER, KEY.key_id): VerifyKey(KEY.verify_key, NOW + 10_000)}
        self.known = {event.event_id: KnownEvent(event) for event in self.room.state.values()}
        self.before: State | None = dict(self.room.state)
        self.current: State | None = dict(self.room.state)
        self.policy: PolicyServer | None = None
        self.policy_signature: Any = None
        self.asked: list[type] = []

    def authorities_by(self, known: Mapping[str, KnownEvent]) -> list[Event]:
        """Known events as the authority of another, without the create event where it is implied."""
        events = [one.event for one in known.values()]
        return [event for event in events if self.version.create_event_in_auth_events or event.type != "m.room.create"]

    def authorities(self, type: str, sender: str, content: Mapping[str, Any], state_key: str | None) -> list[Event]:
        keys = auth_event_keys(version=self.version, type=type, sender=sender, state_key=state_key, content=content)
        return [self.room.state[key] for key in keys if key in self.room.state]

    def put(self, type: str, sender: str, content: Mapping[str, Any], state_key: str = "") -> Event:
        return self.room.put(
            type,
            sender,
            content,
            state_key,
            prev_events=[self.room.create],
            auth_events=self.authorities(type, sender, content, state_key),
        )

    def event(self, content: Mapping[str, Any] | None = None, sender: str = ALICE, **more: Any) -> Event:
        kind, state_key = more.pop("type", "m.room.message"), more.pop("state_key", None)
        content = {"body": "x"} if content is None else content
        more.setdefault("auth_events", self.authorities(kind, sender, content, state_key))
        return self.room.event(kind, sender, content, state_key, prev_events=[self.room.create], **more)

    def answer(self, question: Question) -> Any:
        self.asked.append(type(question))
        match question:
            case FetchKeys(requests):
                wanted = {(one.server_name, key_id) for one in requests for key_id in one.key_ids}
                return {key: value for key, value in self.keys.items() if key in wanted}
            case LoadAuthEvents(_, event_ids):
                return {event_id: self.known[event_id] for event_id in event_ids if event_id in self.known}
            case StateBefore(_, keys):
                return self.before and {key: self.before[key] for key in keys if key in self.before}
            case CurrentState(_, keys):
                return self.current and {key: self.current[key] for key in keys if key in self.current}
            case FindPolicyServer():
                return self.policy
            case AskPolicyServer():
                return self.policy_signature

    def admit(self, pdu: Any, **more: Any) -> Admission:
        if isinstance(pdu, Event):
            pdu = pdu.pdu
        steps = admit(pdu, self.version, now_ms=NOW, **more)
        try:
            question = next(steps)
            while True:
                question = steps.send(self.answer(question))
        except StopIteration as done:
            found: Admission = done.value
            return found


class AdmissionTests(SynchronousTestCase):
    def expect(self, world: World, pdu: Any, verdict: str, reason: str = "", **more: Any) -> Admission:
        found = world.admit(pdu, **more)
        self.assertEqual(found.verdict, verdict, found.reason)
        self.assertIn(reason, found.reason)
        self.assertEqual(found.event is None, verdict == "dropped")
        return found

    def test_what_is_right_is_accepted(self) -> None:
        for version in (ROOM_V1, ROOM_V4, ROOM_V11, ROOM_V12):
            world = World(version)
            event = world.event()
            found = self.expect(world, event, "accepted", room_id=world.room.room_id)
            assert found.event is not None
            self.assertEqual(found.event.event_id, event.event_id)
            self.assertEqual(
                world.asked, [FetchKeys, LoadAuthEvents, StateBefore, CurrentState, FindPolicyServer], version
            )

    def test_a_create_event_needs_no_authority(self) -> None:
        for version in (ROOM_V1, ROOM_V11, ROOM_V12):
            world = World(version)
            world.current = None
            self.expect(world, world.room.create, "accepted")
            self.assertEqual(world.asked, [FetchKeys, CurrentState, FindPolicyServer])

    def test_1_format(self) -> None:
        world = World(ROOM_V11)
        pdu = world.event().pdu_dict()
        for wrong in ({**pdu, "depth": "x"}, {**pdu, "content": 7}, {**pdu, "content": {"x": 1.5}}, b"", b"[]", {}):
            self.expect(world, wrong, "dropped")
        self.expect(world, pdu, "dropped", "another room", room_id="!other:a.example")
        self.assertEqual(world.asked, [])

    def test_2_signatures(self) -> None:
        world = World(ROOM_V11)
        event = world.event()
        pdu = event.pdu_dict()
        signature = pdu["signatures"][SERVER][KEY.key_id]
        cases: list[dict[str, dict[str, str]]] = [
            {},
            {SERVER: {}},
            {SERVER: {"ed25519:unknown": signature}},
            {SERVER: {"rsa:1": signature}},
            {"b.example": {KEY.key_id: signature}},
            {SERVER: {KEY.key_id: "A" * 86}},
            {SERVER: {f"ed25519:{i}": signature for i in range(30)}},
        ]
        for signatures in cases:
            self.expect(world, {**pdu, "signatures": signatures}, "dropped", SERVER)
        self.expect(world, {**pdu, "type": "m.other"}, "dropped")
        self.assertNotIn(LoadAuthEvents, world.asked)
        both = {SERVER: {KEY.key_id: signature, "ed25519:unknown": "A" * 86}}
        self.expect(world, {**pdu, "signatures": both}, "accepted")
        world.keys[SERVER, "ed25519:unknown"] = VerifyKey(KEY.verify_key, NOW)
        self.expect(world, {**pdu, "signatures": both}, "dropped")

    def test_2_validity_of_keys(self) -> None:
        cases = [
            (ROOM_V4, VerifyKey(KEY.verify_key, 0), "accepted"),
            (ROOM_V11, VerifyKey(KEY.verify_key, 0), "dropped"),
            (ROOM_V11, VerifyKey(KEY.verify_key, NOW, NOW), "accepted"),
            (ROOM_V11, VerifyKey(KEY.verify_key, NOW, 5), "dropped"),
            (ROOM_V4, VerifyKey(KEY.verify_key, NOW, 5), "dropped"),
        ]
        for version, key, verdict in cases:
            world = World(version)
            world.keys[SERVER, KEY.key_id] = key
            self.expect(world, world.event(), verdict)

    def test_2_a_restricted_join_is_signed_by_who_authorised_it(self) -> None:
        world = World(ROOM_V8)
        content = {"membership": "join", "join_authorised_via_users_server": "@x:c.example"}
        event = world.event(content, type="m.room.member", state_key=ALICE)
        self.expect(world, event, "dropped", "c.example")

    def test_2_the_server_of_the_event_id_signs_in_old_versions(self) -> None:
        world = World(ROOM_V1)
        self.expect(world, world.event(event_id="$x:c.example"), "dropped", "c.example")

    def test_3_a_wrong_hash_redacts(self) -> None:
        world = World(ROOM_V11)
        found = self.expect(world, {**world.event().pdu_dict(), "content": {"body": "forged"}}, "accepted")
        assert found.event is not None
        self.assertTrue(found.redacted)
        self.assertEqual(found.event.content, {})

    def test_4_auth_events(self) -> None:
        for version in (ROOM_V1, ROOM_V11, ROOM_V12):
            world = World(version)
            levels = world.room.state["m.room.power_levels", ""]
            world.known[levels.event_id] = KnownEvent(levels, rejected=True)
            found = self.expect(world, world.event(), "rejected", "was rejected")
            assert found.event is not None
            rules = world.room.state["m.room.join_rules", ""]
            self.expect(world, world.event(auth_events=[rules]), "rejected", "not to be among")
            create = [world.room.create] if version.create_event_in_auth_events else []
            self.expect(world, world.event(auth_events=create), "rejected", "not in the room")
            self.assertNotIn(StateBefore, world.asked)

    def test_4_the_implied_create_event(self) -> None:
        world = World(ROOM_V12)
        create = world.room.create
        world.known[create.event_id] = KnownEvent(create, rejected=True)
        self.expect(world, world.event(), "rejected", "create event")
        del world.known[create.event_id]
        found = self.expect(world, world.event(), "dropped", "missing")
        self.assertEqual(found.missing, (create.event_id,))

    def test_4_missing_auth_events(self) -> None:
        world = World(ROOM_V11)
        levels = world.room.state["m.room.power_levels", ""]
        del world.known[levels.event_id]
        found = self.expect(world, world.event(), "dropped", "missing")
        self.assertEqual(found.missing, (levels.event_id,))

    def test_5_the_state_before(self) -> None:
        for version in (ROOM_V1, ROOM_V11, ROOM_V12):
            world = World(version)
            event = world.event()
            world.before = {key: one for key, one in world.room.state.items() if key != ("m.room.member", ALICE)}
            self.expect(world, event, "rejected", "not in the room")
            world.before = None
            self.assertEqual(self.expect(world, event, "dropped", "not known").missing, event.prev_events)

    def test_5_an_event_after_nothing(self) -> None:
        world = World(ROOM_V11)
        content = {"body": "x"}
        authorities = world.authorities("m.room.message", ALICE, content, None)
        event = world.room.event("m.room.message", ALICE, content, None, [], authorities)
        self.expect(world, event, "rejected", "no create event")
        self.assertNotIn(StateBefore, world.asked)

    def test_6_the_current_state(self) -> None:
        world = World(ROOM_V11)
        event = world.event()
        world.current = {key: one for key, one in world.room.state.items() if key != ("m.room.member", ALICE)}
        found = self.expect(world, event, "soft_failed", "not allowed now")
        self.assertIsNotNone(found.event)
        world.current = None
        self.expect(world, event, "accepted")

    def test_7_policy_servers(self) -> None:
        world = World(ROOM_V11)
        world.policy = PolicyServer("p.example", POLICY.verify_key)
        event = world.event()
        self.expect(world, event, "soft_failed", "policy server")
        good = sign_bytes(events.signed_bytes(event), POLICY.secret)
        answers: list[Any] = ["", "A" * 86, 7, {}, sign_bytes(b"x", POLICY.secret)]
        for answer in answers:
            world.policy_signature = answer
            self.expect(world, event, "soft_failed", "policy server")
        world.policy_signature = good
        found = self.expect(world, event, "accepted")
        assert found.event is not None
        self.assertEqual(events.signatures(found.event)["p.example"], {"ed25519:policy_server": good})
        self.assertIn(SERVER, events.signatures(found.event))
        world.asked.clear()
        self.expect(world, found.event, "accepted")
        self.assertNotIn(AskPolicyServer, world.asked)

    def test_7_the_policy_itself_is_exempt(self) -> None:
        world = World(ROOM_V11)
        world.policy = PolicyServer("p.example", POLICY.verify_key)
        self.expect(world, world.event({}, type="m.room.policy", state_key=""), "accepted")
        self.expect(world, world.event({}, type="m.room.policy", state_key="x"), "soft_failed")
        self.expect(world, world.event({}, type="m.room.policy"), "soft_failed")

    def test_reading_a_policy(self) -> None:
        room = RoomBuilder(ROOM_V11)
        content = {"via": "p.example", "public_keys": {"ed25519": POLICY.verify_key_base64}}
        event = room.put("m.room.policy", ALICE, content)
        self.assertEqual(read_policy(event), PolicyServer("p.example", POLICY.verify_key))
        self.assertIsNone(read_policy(None))
        self.assertIsNone(read_policy(msgspec.structs.replace(event, state_key="x")))
        wrong: list[dict[str, Any]] = [
            {},
            {"via": "p.example"},
            {**content, "via": 7},
            {**content, "public_keys": {}},
            {**content, "public_keys": {"ed25519": 7}},
        ]
        for one in wrong:
            self.assertIsNone(read_policy(msgspec.structs.replace(event, content=one)), one)
        unusable = {**content, "public_keys": {"ed25519": "?"}}
        policy = read_policy(msgspec.structs.replace(event, content=unusable))
        assert policy is not None
        self.assertFalse(admission.check_policy_signature(b"x", sign_bytes(b"x", POLICY.secret), policy))

    def test_events_apart_from_the_timeline(self) -> None:
        for version in (ROOM_V1, ROOM_V12):
            world = World(version)
            create = world.room.create
            known = {create.event_id: KnownEvent(create)}
            joined = world.room.event(
                "m.room.member", ALICE, {"membership": "join"}, ALICE, [create], world.authorities_by(known)
            )
            self.assertEqual(admission.judge_apart([create, joined], {}), {})
            self.assertEqual(admission.judge_apart([joined], known), {})
            self.assertIn(joined.event_id, known)
            # Bob is not in the room; what he has set authorises nothing, and neither does what builds on it.
            named = world.authorities_by(known)
            topic = world.room.event("m.room.topic", BOB, {}, "", [joined], named)
            member = world.room.event("m.room.member", BOB, {"membership": "join"}, BOB, [joined], [*named, topic])
            rejected = admission.judge_apart([topic, member], known)
            self.assertEqual(rejected.keys(), {topic.event_id, member.event_id})
            self.assertTrue(known[topic.event_id].rejected)
            # Of what names unknown events nothing is said.
            lost = world.room.event("m.room.topic", ALICE, {}, "", [joined], [member, joined])
            self.assertEqual(admission.judge_apart([lost], {create.event_id: KnownEvent(create)}), {})

    def test_many_events_ask_once(self) -> None:
        world = World(ROOM_V11)
        received = [events.receive_event(world.event().pdu, ROOM_V11) for _ in range(3)]
        received.append(events.receive_event(world.event(sender=BOB).pdu, ROOM_V11))
        steps = admission.verify(received, now_ms=NOW)
        question = next(steps)
        self.assertEqual([one.server_name for one in question.requests], [SERVER])
        try:
            steps.send(world.answer(question))
        except StopIteration as done:
            self.assertEqual(list(done.value), [received[3].event.event_id])
        self.assertIsNone(admission.key_requests([]))

    @bounded
    @given(json_objects)
    def test_no_pdu_raises(self, changes: dict[str, Any]) -> None:
        world = World(ROOM_V11)
        self.assertEqual(world.admit(changes).verdict, "dropped")
        pdu = world.event().pdu_dict()
        for key, value in zip(sorted(pdu), changes.values(), strict=False):
            world.admit({**pdu, key: value})
