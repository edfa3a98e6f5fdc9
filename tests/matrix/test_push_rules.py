"""Push rules: the conditions, the operations on a user's rules, and evaluation, shared and personal."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.matrix.errors import MatrixError
from dendrite_tw.matrix.push_conditions import PushEvent, Recipient, RoomContext, compile_condition
from dendrite_tw.matrix.push_defaults import KINDS
from dendrite_tw.matrix.push_evaluation import (
    SILENT,
    EventVerdict,
    Interests,
    Outcome,
    PersonalEvaluator,
    evaluate,
    evaluator_for,
    outcome_of,
)
from dendrite_tw.matrix.push_rules import DEFAULT, MAX_RULES, RuleSet

ALICE, BOB, CAROL = "@alice:example.org", "@bob:example.org", "@carol:example.org"
ROOM = "!room:example.org"
GROUP = RoomContext(member_count=10, sender_power=0)
NOTIFY = ["notify"]


def event(type_: str = "m.room.message", sender: str = BOB, room: str = ROOM, **rest: Any) -> PushEvent:
    properties = {"event_id": "$e", "room_id": room, "sender": sender, "type": type_, "content": {}, **rest}
    return PushEvent(properties, sender, room, type_)


def message(body: object = "hello", sender: str = BOB, room: str = ROOM, **content: Any) -> PushEvent:
    return event(sender=sender, room=room, content={"msgtype": "m.text", "body": body, **content})


def mention(*users: str, **mentions: Any) -> PushEvent:
    return message(**{"m.mentions": {"user_ids": list(users), **mentions}})


def holds(condition: dict[str, Any], seen: PushEvent, room: RoomContext = GROUP) -> bool:
    matcher = compile_condition(condition)
    assert matcher is not None
    return matcher(seen, room)


def for_alice(rules: RuleSet, seen: PushEvent, room: RoomContext = GROUP, name: str = "Alice") -> Outcome:
    return evaluate(rules, seen, room, Recipient(ALICE, name))


def shared(seen: PushEvent, room: RoomContext = GROUP, rules: RuleSet = DEFAULT) -> EventVerdict:
    return evaluator_for(rules.profile).evaluate_event(seen, room)


class ConditionTests(SynchronousTestCase):
    def test_event_match_wants_a_string(self) -> None:
        condition = {"kind": "event_match", "key": "content.topic", "pattern": "*"}
        self.assertTrue(holds(condition, event(content={"topic": ""})))
        for content in ({}, {"topic": None}, {"topic": 3}, {"topic": ["x"]}):
            self.assertFalse(holds(condition, event(content=content)))

    def test_event_match_on_the_body_seeks_words(self) -> None:
        condition = {"kind": "event_match", "key": "content.body", "pattern": "cake"}
        self.assertTrue(holds(condition, message("I like CAKE!")))
        self.assertFalse(holds(condition, message("cakes")))
        self.assertFalse(holds(condition, message(7)))
        other = {**condition, "key": "content.formatted_body"}
        self.assertFalse(holds(other, message("", formatted_body="I like cake")))

    def test_event_property_is_exact(self) -> None:
        for value, same, others in (
            (True, True, (1, "true", None)),
            (1, 1, (True, 1.0, "1")),
            (None, None, (False, 0, "")),
            ("x", "x", ("X", ["x"])),
        ):
            condition = {"kind": "event_property_is", "key": r"content.m\.x", "value": value}
            self.assertTrue(holds(condition, event(content={"m.x": same})))
            for other in others:
                self.assertFalse(holds(condition, event(content={"m.x": other})), (value, other))
            self.assertFalse(holds(condition, event()))

    def test_event_property_contains(self) -> None:
        condition = {"kind": "event_property_contains", "key": "content.list", "value": 1}
        self.assertTrue(holds(condition, event(content={"list": ["x", {}, 1]})))
        for value in ([True, "1", [1]], 1, "1", {"1": 1}):
            self.assertFalse(holds(condition, event(content={"list": value})))

    def test_member_count(self) -> None:
        for text, counts in {
            "2": [2], "==2": [2], "<2": [0, 1], ">2": [3], ">=2": [2, 3], "<=2": [0, 1, 2],
        }.items():  # fmt: skip
            condition = {"kind": "room_member_count", "is": text}
            self.assertEqual([n for n in range(4) if holds(condition, event(), RoomContext(n))], counts)
        for text in ("", "=2", "x", "2 ", "-1", "==", "²"):
            self.assertFalse(holds({"kind": "room_member_count", "is": text}, event(), RoomContext(2)))

    def test_permission_to_notify(self) -> None:
        condition = {"kind": "sender_notification_permission", "key": "room"}
        for levels, power, allowed in (
            ({}, 50, True),
            ({}, 49, False),
            ({"room": 20}, 20, True),
            ({"room": 80}, 50, False),
            ({"room": "20"}, 20, True),
            ({"room": True}, 1, False),
            ({"room": 10**9}, math.inf, True),
        ):
            self.assertEqual(holds(condition, event(), RoomContext(5, power, levels)), allowed)

    def test_what_is_not_understood_never_matches(self) -> None:
        for condition in (
            {"kind": "org.example.moon_phase"},
            {"kind": ["event_match"]},
            {},
            {"kind": "event_match", "key": "type"},
            {"kind": "event_match", "pattern": "*", "key": 5},
            {"kind": "event_property_is", "key": "type", "value": {}},
            {"kind": "room_member_count", "is": 2},
        ):
            self.assertFalse(holds(condition, event(), RoomContext(2)))


class DefaultRuleTests(SynchronousTestCase):
    """Each default rule, with an event it matches; both evaluators must say the same."""

    def outcome(self, seen: PushEvent, room: RoomContext = GROUP) -> Outcome:
        slow = for_alice(DEFAULT, seen, room)
        self.assertEqual(shared(seen, room).outcome_for(ALICE), slow)
        return slow

    def test_messages(self) -> None:
        self.assertEqual(self.outcome(message()), Outcome(True, actions=("notify",)))
        self.assertEqual(self.outcome(message(), RoomContext(2)).sound, "default")
        self.assertEqual(self.outcome(event("m.room.encrypted")), Outcome(True, actions=("notify",)))
        self.assertEqual(self.outcome(event("m.room.encrypted"), RoomContext(2)).sound, "default")
        self.assertEqual(self.outcome(event("m.call.invite"), RoomContext(2)).sound, "ring")
        self.assertEqual(self.outcome(event("m.room.topic", state_key="")), SILENT)
        self.assertEqual(self.outcome(event("org.example.thing")), SILENT)

    def test_what_is_kept_quiet(self) -> None:
        self.assertEqual(self.outcome(message(msgtype="m.notice")), SILENT)
        self.assertEqual(self.outcome(event("m.reaction"), RoomContext(2)), SILENT)
        self.assertEqual(self.outcome(event("m.room.server_acl", state_key="")), SILENT)
        edit = {"rel_type": "m.replace", "event_id": "$x"}
        self.assertEqual(self.outcome(message(**{"m.relates_to": edit}), RoomContext(2)), SILENT)

    def test_own_events_never_notify(self) -> None:
        seen = message(sender=ALICE, **{"m.mentions": {"user_ids": [ALICE]}})
        self.assertEqual(self.outcome(seen), SILENT)

    def test_invites(self) -> None:
        mine = event("m.room.member", state_key=ALICE, content={"membership": "invite"})
        self.assertEqual(self.outcome(mine).sound, "default")
        self.assertFalse(self.outcome(mine).highlight)
        theirs = event("m.room.member", state_key=CAROL, content={"membership": "invite"})
        self.assertEqual(self.outcome(theirs), SILENT)
        self.assertEqual(shared(theirs).outcome_for(CAROL).sound, "default")
        join = event("m.room.member", state_key=ALICE, content={"membership": "join"})
        self.assertEqual(self.outcome(join), SILENT)

    def test_mentions_of_a_user(self) -> None:
        loud = self.outcome(mention(CAROL, ALICE))
        self.assertEqual((loud.notify, loud.highlight, loud.sound), (True, True, "default"))
        self.assertFalse(self.outcome(mention(CAROL)).highlight)
        self.assertFalse(self.outcome(message(**{"m.mentions": {"user_ids": ALICE}})).highlight)
        self.assertFalse(self.outcome(message(**{"m.mentions": [ALICE]})).highlight)
        self.assertFalse(self.outcome(message(body=f"hello {ALICE} Alice alice")).highlight)

    def test_mentions_in_edits_and_notices(self) -> None:
        edit = {"m.relates_to": {"rel_type": "m.replace"}, "m.mentions": {"user_ids": [ALICE]}}
        self.assertTrue(self.outcome(message(**edit)).highlight)
        notice = message(msgtype="m.notice", **{"m.mentions": {"user_ids": [ALICE]}})
        self.assertEqual(self.outcome(notice), SILENT)

    def test_mentions_of_the_room(self) -> None:
        moderator = RoomContext(10, 50)
        self.assertTrue(self.outcome(mention(room=True), moderator).highlight)
        self.assertIsNone(self.outcome(mention(room=True), moderator).sound)
        self.assertFalse(self.outcome(mention(room=True), GROUP).highlight)
        self.assertFalse(self.outcome(mention(room="true"), moderator).highlight)

    def test_tombstones(self) -> None:
        self.assertTrue(self.outcome(event("m.room.tombstone", state_key="")).highlight)
        self.assertEqual(self.outcome(event("m.room.tombstone", state_key="x")), SILENT)
        self.assertEqual(self.outcome(event("m.room.tombstone")), SILENT)

    def test_the_order_shown_to_clients(self) -> None:
        shown = DEFAULT.to_client(ALICE)["global"]
        self.assertEqual(tuple(shown), KINDS)
        self.assertEqual(
            [rule["rule_id"] for rule in shown["override"]],
            [
                ".m.rule.master",
                ".m.rule.suppress_notices",
                ".m.rule.invite_for_me",
                ".m.rule.member_event",
                ".m.rule.is_user_mention",
                ".m.rule.is_room_mention",
                ".m.rule.tombstone",
                ".m.rule.reaction",
                ".m.rule.room.server_acl",
                ".m.rule.suppress_edits",
            ],
        )
        self.assertEqual(
            [rule["rule_id"] for rule in shown["underride"]],
            [
                ".m.rule.call",
                ".m.rule.encrypted_room_one_to_one",
                ".m.rule.room_one_to_one",
                ".m.rule.message",
                ".m.rule.encrypted",
            ],
        )
        self.assertEqual(shown["override"][2]["conditions"][2]["pattern"], ALICE)
        self.assertEqual(shown["override"][4]["conditions"][0]["value"], ALICE)
        self.assertEqual([rule["enabled"] for rule in shown["override"]], [False] + [True] * 9)
        self.assertTrue(all(rule["default"] for kind in KINDS for rule in shown[kind]))
        orjson.dumps(shown)


class OperationTests(SynchronousTestCase):
    def refused(self, status: int, errcode: str, call: Callable[..., object], *args: Any, **rest: Any) -> None:
        error = self.assertRaises(MatrixError, call, *args, **rest)
        self.assertEqual((error.status, error.errcode), (status, errcode))

    def own(self, rules: RuleSet, kind: str = "room") -> list[str]:
        return [rule.rule_id for rule in rules.own_rules(kind)]

    def test_add_each_kind(self) -> None:
        rules = DEFAULT.put("override", "o", {"conditions": [], "actions": []})
        rules = rules.put("content", "c", {"pattern": "cake*lie", "actions": NOTIFY, "extra": 1})
        rules = rules.put("room", ROOM, {"actions": []})
        rules = rules.put("sender", BOB, {"actions": []})
        rules = rules.put("underride", "u", {"conditions": [], "actions": NOTIFY})
        shown = rules.to_client(ALICE)["global"]
        self.assertEqual([rule["rule_id"] for rule in shown["override"]][:2], [".m.rule.master", "o"])
        self.assertEqual(shown["underride"][0]["rule_id"], "u")
        self.assertEqual(
            shown["content"],
            [{"rule_id": "c", "default": False, "enabled": True, "actions": NOTIFY, "pattern": "cake*lie"}],
        )
        self.assertTrue(DEFAULT.is_default)
        self.assertFalse(rules.is_default)

    def test_order(self) -> None:
        body = {"actions": []}
        rules = DEFAULT.put("room", "a", body).put("room", "b", body)
        self.assertEqual(self.own(rules), ["b", "a"])
        self.assertEqual(self.own(rules.put("room", "c", body, before="a")), ["b", "c", "a"])
        self.assertEqual(self.own(rules.put("room", "c", body, after="a")), ["b", "a", "c"])
        self.assertEqual(self.own(rules.put("room", "c", body, before="b", after="a")), ["c", "b", "a"])
        self.assertEqual(self.own(rules.put("room", "a", body)), ["b", "a"])
        self.assertEqual(self.own(rules.put("room", "a", body, before="b")), ["a", "b"])
        self.assertEqual(self.own(rules.put("room", "a", body, before="a")), ["b", "a"])
        self.refused(400, "M_UNKNOWN", rules.put, "room", "c", body, before="none")
        self.refused(400, "M_UNKNOWN", rules.put, "room", "c", body, after=".m.rule.master")

    def test_change_keeps_whether_it_is_enabled(self) -> None:
        rules = DEFAULT.put("room", "a", {"actions": []}).set_enabled("room", "a", False)
        rules = rules.put("room", "a", {"actions": NOTIFY})
        self.assertEqual((rules.get("room", "a").enabled, rules.get("room", "a").actions), (False, ("notify",)))
        again = rules.delete("room", "a").put("room", "a", {"actions": []})
        self.assertTrue(again.get("room", "a").enabled)

    def test_bad_rules(self) -> None:
        put = DEFAULT.put
        good = {"actions": [], "conditions": [], "pattern": "x"}
        self.refused(400, "M_INVALID_PARAM", put, "device", "a", good)
        for rule_id in ("", ".a", "a/b", "a\\b", "a" * 1000):
            self.refused(400, "M_INVALID_PARAM", put, "room", rule_id, good)
        self.refused(400, "M_BAD_JSON", put, "room", "a", [])
        self.refused(400, "M_MISSING_PARAM", put, "room", "a", {})
        self.refused(400, "M_MISSING_PARAM", put, "override", "a", {"actions": []})
        self.refused(400, "M_MISSING_PARAM", put, "underride", "a", {"actions": []})
        self.refused(400, "M_MISSING_PARAM", put, "content", "a", {"actions": []})
        for pattern in (1, [], "x" * 1000):
            self.refused(400, "M_BAD_JSON", put, "content", "a", {"actions": [], "pattern": pattern})

    def test_bad_actions(self) -> None:
        for actions in (
            "notify",
            {},
            ["stir_the_batter"],
            [1],
            [{}],
            [{"set_tweak": 1}],
            [None],
            NOTIFY * 99,
        ):
            self.refused(400, "M_BAD_JSON", DEFAULT.put, "room", "a", {"actions": actions})
            self.refused(400, "M_BAD_JSON", DEFAULT.set_actions, "underride", ".m.rule.message", actions)
        long = [{"set_tweak": "sound", "value": "x" * 5000}]
        self.refused(400, "M_BAD_JSON", DEFAULT.put, "room", "a", {"actions": long})

    def test_bad_conditions(self) -> None:
        for condition, errcode in (
            ({}, "M_MISSING_PARAM"),
            ({"kind": 1}, "M_MISSING_PARAM"),
            ("x", "M_BAD_JSON"),
            ({"kind": "event_match", "key": "type"}, "M_MISSING_PARAM"),
            ({"kind": "event_match", "key": "type", "pattern": 1}, "M_BAD_JSON"),
            ({"kind": "event_property_is", "key": "type", "value": []}, "M_BAD_JSON"),
            ({"kind": "event_property_is", "key": "type", "value": 2**53}, "M_BAD_JSON"),
            ({"kind": "room_member_count", "is": "two"}, "M_BAD_JSON"),
        ):
            body = {"actions": [], "conditions": [condition]}
            self.refused(400, errcode, DEFAULT.put, "override", "a", body)
        unknown = {"kind": "org.example.new", "stuff": [1]}
        rules = DEFAULT.put("override", "a", {"actions": NOTIFY, "conditions": [unknown]})
        self.assertEqual(rules.get("override", "a").conditions, (unknown,))
        self.assertEqual(for_alice(rules, event("org.example.thing")), SILENT)
        many = {"actions": [], "conditions": [unknown] * 100}
        self.refused(400, "M_BAD_JSON", DEFAULT.put, "override", "a", many)

    def test_forgotten_actions_are_kept_and_do_nothing(self) -> None:
        for actions in (["dont_notify", "coalesce"], ["dont_notify", "notify"]):
            rules = DEFAULT.put("room", ROOM, {"actions": actions})
            self.assertEqual(rules.get("room", ROOM).actions, tuple(actions))
            plain = DEFAULT.put("room", ROOM, {"actions": [action for action in actions if action == "notify"]})
            self.assertEqual(for_alice(rules, message()), for_alice(plain, message()))

    def test_limits(self) -> None:
        rules = RuleSet({"content": DEFAULT.put("content", "a", {"actions": [], "pattern": "x"}).own["content"] * 500})
        self.assertEqual(len(rules.own["content"]), MAX_RULES["content"])
        self.refused(400, "M_INVALID_PARAM", rules.put, "content", "b", {"actions": [], "pattern": "x"})
        rules = DEFAULT
        for number in range(32):
            rules = rules.put("content", str(number), {"actions": [], "pattern": "*" * 255})
        self.refused(400, "M_INVALID_PARAM", rules.put, "content", "b", {"actions": [], "pattern": "*" * 255})

    def test_unknown_rules(self) -> None:
        for rule_id in ("none", ".m.rule.none", ".m.rule.call"):
            self.refused(404, "M_NOT_FOUND", DEFAULT.get, "override", rule_id)
            self.refused(404, "M_NOT_FOUND", DEFAULT.delete, "override", rule_id)
            self.refused(404, "M_NOT_FOUND", DEFAULT.set_enabled, "override", rule_id, True)
            self.refused(404, "M_NOT_FOUND", DEFAULT.set_actions, "override", rule_id, [])
        self.refused(404, "M_NOT_FOUND", DEFAULT.delete, "underride", ".m.rule.call")
        self.refused(400, "M_INVALID_PARAM", DEFAULT.get, "none", "x")
        self.refused(400, "M_BAD_JSON", DEFAULT.set_enabled, "override", ".m.rule.master", "yes")

    def test_default_rules_can_be_changed_and_changed_back(self) -> None:
        rules = DEFAULT.set_enabled("underride", ".m.rule.message", False)
        rules = rules.set_actions("underride", ".m.rule.message", [])
        self.assertEqual(rules.to_stored(), {"changes": {".m.rule.message": {"enabled": False, "actions": []}}})
        rules = rules.set_enabled("underride", ".m.rule.message", True)
        rules = rules.set_actions("underride", ".m.rule.message", NOTIFY)
        self.assertTrue(rules.is_default)
        self.assertEqual(rules.profile, DEFAULT.profile)

    def test_stored_and_back(self) -> None:
        self.assertEqual(DEFAULT.to_stored(), {})
        condition = {"kind": "event_match", "key": "room_id", "pattern": ROOM}
        rules = (
            DEFAULT.put("override", ROOM, {"conditions": [condition], "actions": []})
            .put("content", "c", {"pattern": "x", "actions": [*NOTIFY, {"set_tweak": "highlight"}]})
            .set_enabled("content", "c", False)
            .set_enabled("override", ".m.rule.master", True)
        )
        stored = orjson.loads(orjson.dumps(rules.to_stored()))
        self.assertEqual(RuleSet.from_stored(stored), rules)
        self.assertEqual(RuleSet.from_client(orjson.loads(orjson.dumps(rules.to_client(ALICE)))), rules)
        stored["changes"][".m.rule.contains_display_name"] = {"enabled": False}
        self.assertEqual(RuleSet.from_stored(stored), rules)

    def test_import_leaves_out_what_is_not_valid(self) -> None:
        shown = {
            "global": {
                "override": [
                    {"rule_id": ".m.rule.contains_display_name", "actions": NOTIFY, "enabled": False},
                    {"rule_id": ".m.rule.master", "actions": ["dont_notify"], "enabled": True},
                    "nonsense",
                    {"rule_id": "x"},
                ],
                "room": [{"rule_id": ROOM, "actions": ["dont_notify"], "enabled": True}],
                "sender": None,
            }
        }
        expected = DEFAULT.put("room", ROOM, {"actions": ["dont_notify"]})
        expected = expected.set_enabled("override", ".m.rule.master", True)
        expected = expected.set_actions("override", ".m.rule.master", ["dont_notify"])
        self.assertEqual(RuleSet.from_client(shown), expected)
        for nothing in ({}, {"global": []}, {"global": {"override": {}}}):
            self.assertTrue(RuleSet.from_client(nothing).is_default)

    def test_rules_follow_an_upgrade(self) -> None:
        mute = {"actions": [], "conditions": [{"kind": "event_match", "key": "room_id", "pattern": ROOM}]}
        rules = DEFAULT.put("override", ROOM, mute).put("room", ROOM, {"actions": []})
        rules = rules.put("room", "!other:example.org", {"actions": NOTIFY})
        new = "!new:example.org"
        copied = rules.copied_to_room(ROOM, new)
        self.assertEqual(self.own(copied), [new, "!other:example.org", ROOM])
        self.assertEqual(copied.get("override", new).conditions[0]["pattern"], new)
        self.assertEqual(copied.copied_to_room(ROOM, new), copied)
        self.assertEqual(for_alice(copied, message(room=new)), SILENT)


class EvaluationTests(SynchronousTestCase):
    def test_the_first_rule_decides(self) -> None:
        rules = DEFAULT.put("room", ROOM, {"actions": []})
        self.assertEqual(for_alice(rules, message()), SILENT)
        self.assertTrue(for_alice(rules, message(room="!other:example.org")).notify)
        self.assertTrue(for_alice(rules, mention(ALICE)).highlight)
        keyword = rules.put(
            "content",
            "k",
            {"pattern": "cake", "actions": [*NOTIFY, {"set_tweak": "sound", "value": "cake.wav"}]},
        )
        self.assertEqual(for_alice(keyword, message("the cake is a lie")).sound, "cake.wav")
        muted = keyword.put("override", "o", {"conditions": [], "actions": []})
        self.assertEqual(for_alice(muted, mention(ALICE)), SILENT)
        self.assertTrue(for_alice(muted.set_enabled("override", "o", False), mention(ALICE)).highlight)

    def test_the_master_rule_is_above_all(self) -> None:
        rules = DEFAULT.put("override", "o", {"conditions": [], "actions": NOTIFY})
        rules = rules.set_enabled("override", ".m.rule.master", True)
        self.assertEqual(for_alice(rules, message()), SILENT)

    def test_senders(self) -> None:
        rules = DEFAULT.put("sender", BOB, {"actions": []})
        self.assertEqual(for_alice(rules, message(sender=BOB)), SILENT)
        self.assertTrue(for_alice(rules, message(sender=CAROL)).notify)

    def test_display_names_in_old_rules(self) -> None:
        rules = DEFAULT.put(
            "override",
            "n",
            {
                "conditions": [{"kind": "contains_display_name"}],
                "actions": [*NOTIFY, {"set_tweak": "highlight"}],
            },
        )
        self.assertTrue(for_alice(rules, message("hi ALICE!")).highlight)
        self.assertFalse(for_alice(rules, message("malice")).highlight)
        self.assertFalse(for_alice(rules, message("hi alice"), name="").highlight)
        self.assertTrue(for_alice(rules, message("hi a*b"), name="A*B").highlight)
        self.assertTrue(rules.reach.everywhere)

    def test_tweaks(self) -> None:
        self.assertFalse(outcome_of(["notify", {"set_tweak": "highlight", "value": False}]).highlight)
        self.assertIsNone(outcome_of(["notify", {"set_tweak": "sound"}]).sound)
        self.assertEqual(outcome_of([{"set_tweak": "highlight"}]), SILENT)
        flash = outcome_of(["notify", {"set_tweak": "flash", "value": 3}, {"set_tweak": "highlight"}])
        self.assertEqual(flash.tweaks(), {"flash": 3, "highlight": True})

    def test_those_named_first_win(self) -> None:
        verdict = shared(mention(ALICE, BOB, CAROL), RoomContext(2))
        self.assertEqual(verdict.base.highlight, False)
        self.assertTrue(verdict.outcome_for(CAROL).highlight)
        self.assertEqual(verdict.outcome_for(BOB), SILENT)
        quiet = DEFAULT.set_actions("override", ".m.rule.is_user_mention", [])
        self.assertEqual(shared(mention(ALICE), rules=quiet).outcome_for(ALICE), SILENT)


class InterestTests(SynchronousTestCase):
    def test_a_mute_concerns_one_room(self) -> None:
        condition = {"kind": "event_match", "key": "room_id", "pattern": ROOM}
        for rules in (
            DEFAULT.put("override", "o", {"conditions": [condition], "actions": []}),
            DEFAULT.put("room", ROOM, {"actions": []}),
        ):
            self.assertTrue(rules.differs_for_room(ROOM))
            self.assertFalse(rules.differs_for_room("!other:example.org"))
            self.assertFalse(
                rules.set_enabled(*next((k, r[0].rule_id) for k, r in rules.own.items()), False).differs_for_room(ROOM)
            )

    def test_the_index_finds_those_concerned(self) -> None:
        index = Interests()
        index.put("@word:x", DEFAULT.put("content", "k", {"pattern": "Cake", "actions": []}))
        index.put("@glob:x", DEFAULT.put("content", "k", {"pattern": "ca?e", "actions": []}))
        index.put("@sender:x", DEFAULT.put("sender", CAROL, {"actions": []}))
        index.put("@room:x", DEFAULT.put("room", ROOM, {"actions": []}))
        index.put("@all:x", DEFAULT.put("override", "o", {"actions": [], "conditions": []}))
        reactions = {"kind": "event_match", "key": "type", "pattern": "m.Reaction"}
        index.put("@type:x", DEFAULT.put("underride", "t", {"actions": NOTIFY, "conditions": [reactions]}))
        index.put("@default:x", DEFAULT.set_enabled("override", ".m.rule.master", True))
        self.assertEqual(index.candidates(message("cake!")), {"@word:x", "@glob:x", "@room:x", "@all:x"})
        elsewhere = message("pancake", room="!other:x", sender=CAROL)
        self.assertEqual(index.candidates(elsewhere), {"@sender:x", "@all:x"})
        reaction = event("m.reaction", room="!other:x")
        self.assertEqual(index.candidates(reaction), {"@type:x", "@all:x"})
        index.put("@all:x", DEFAULT)
        index.discard("@sender:x")
        index.discard("@nobody:x")
        self.assertEqual(index.candidates(elsewhere), set())


# Property tests: the fast ways against rules read literally from what clients are shown.

USERS = (ALICE, BOB, CAROL)
ROOMS = (ROOM, "!other:example.org")
WORDS = st.sampled_from(["cake", "Alice", "the", "pan-cake", "cakes", "@room"])

MENTIONS = st.fixed_dictionaries(
    {},
    optional={
        "user_ids": st.one_of(st.lists(st.sampled_from([*USERS, 1, None]), max_size=3), st.just(ALICE)),
        "room": st.sampled_from([True, False, 1, "true"]),
    },
)
CONTENTS = st.fixed_dictionaries(
    {},
    optional={
        "msgtype": st.sampled_from(["m.text", "m.notice", "M.NOTICE", 1]),
        "membership": st.sampled_from(["invite", "join", "INVITE"]),
        "body": st.one_of(st.lists(WORDS, max_size=4).map(" ".join), st.just(3)),
        "m.mentions": st.one_of(MENTIONS, st.just([ALICE])),
        "m.relates_to": st.sampled_from([{"rel_type": "m.replace"}, {"rel_type": "m.thread"}, "m.replace"]),
    },
)
TYPES = (
    "m.room.message",
    "m.room.encrypted",
    "m.room.member",
    "m.room.tombstone",
    "m.reaction",
    "m.room.server_acl",
    "m.call.invite",
    "org.example.x",
)


@st.composite
def push_events(draw: st.DrawFn) -> PushEvent:
    rest: dict[str, Any] = {"content": draw(CONTENTS)}
    state_key = draw(st.sampled_from([None, "", *USERS]))
    if state_key is not None:
        rest["state_key"] = state_key
    return event(draw(st.sampled_from(TYPES)), draw(st.sampled_from(USERS)), draw(st.sampled_from(ROOMS)), **rest)


CONTEXTS = st.builds(
    RoomContext,
    st.integers(1, 4),
    st.sampled_from([0, 50, 100]),
    st.sampled_from([{}, {"room": 0}, {"room": 75}]),
)
ACTIONS = st.sampled_from(
    [[], NOTIFY, [*NOTIFY, {"set_tweak": "highlight"}], [*NOTIFY, {"set_tweak": "sound", "value": "x"}]]
)
CONDITIONS = st.sampled_from(
    [
        {"kind": "event_match", "key": "room_id", "pattern": ROOM},
        {"kind": "event_match", "key": "room_id", "pattern": "!o*"},
        {"kind": "event_match", "key": "sender", "pattern": CAROL.upper()},
        {"kind": "event_match", "key": "type", "pattern": "m.reaction"},
        {"kind": "event_match", "key": "content.body", "pattern": "cake"},
        {"kind": "event_match", "key": "content.body", "pattern": "p*e"},
        {"kind": "contains_display_name"},
        {"kind": "room_member_count", "is": ">2"},
        {"kind": "org.example.unknown"},
    ]
)
CHANGES = st.tuples(
    st.sampled_from([(kind, rule.rule_id) for kind in KINDS for rule in DEFAULT.in_order(kind)]),
    st.booleans(),
    ACTIONS,
)


@st.composite
def rule_sets(draw: st.DrawFn) -> RuleSet:
    rules = DEFAULT
    for (kind, rule_id), enabled, actions in draw(st.lists(CHANGES, max_size=2)):
        rules = rules.set_enabled(kind, rule_id, enabled).set_actions(kind, rule_id, actions)
    for number, kind in enumerate(draw(st.lists(st.sampled_from(KINDS), max_size=3))):
        names = {"room": ROOM, "sender": BOB}
        rule_id = names.get(kind, str(number))
        body = {
            "actions": draw(ACTIONS),
            "conditions": draw(st.lists(CONDITIONS, max_size=2)),
            "pattern": draw(st.sampled_from(["cake", "c*", "@room", "a?ice", "pan-cake", "the c*", "*he cake"])),
        }
        rules = rules.put(kind, rule_id, body).set_enabled(kind, rule_id, draw(st.booleans()))
    return rules


def literal_outcome(rules: RuleSet, seen: PushEvent, room: RoomContext, user: Recipient) -> Outcome:
    """The outcome by the letter: every rule shown to the client, in the order shown."""
    if seen.sender == user.user_id:
        return SILENT
    shown = rules.to_client(user.user_id)["global"]
    for kind in KINDS:
        for rule in shown[kind]:
            if rule["enabled"] and literal_match(kind, rule, seen, room, user):
                return outcome_of(rule["actions"])
    return SILENT


def literal_match(kind: str, rule: dict[str, Any], seen: PushEvent, room: RoomContext, user: Recipient) -> bool:
    match kind:
        case "room":
            return bool(rule["rule_id"] == seen.room_id)
        case "sender":
            return bool(rule["rule_id"] == seen.sender)
        case "content":
            conditions = [{"kind": "event_match", "key": "content.body", "pattern": rule["pattern"]}]
        case _:
            conditions = rule["conditions"]
    for condition in conditions:
        if condition["kind"] == "contains_display_name":
            condition = {"kind": "event_match", "key": "content.body", "pattern": user.display_name}
        if not holds(condition, seen, room):
            return False
    return True


class EquivalenceTests(SynchronousTestCase):
    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(push_events(), CONTEXTS)
    def test_shared_verdict_is_what_each_default_user_gets(self, seen: PushEvent, room: RoomContext) -> None:
        verdict = shared(seen, room)
        for user_id in USERS:
            expected = literal_outcome(DEFAULT, seen, room, Recipient(user_id, "Alice"))
            self.assertEqual(verdict.outcome_for(user_id), expected)

    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(rule_sets(), push_events(), CONTEXTS)
    def test_personal_evaluation_is_to_the_letter(self, rules: RuleSet, seen: PushEvent, room: RoomContext) -> None:
        personal = PersonalEvaluator(rules)
        for user_id in USERS:
            user = Recipient(user_id, "Alice")
            self.assertEqual(personal.evaluate(seen, room, user), literal_outcome(rules, seen, room, user))

    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(rule_sets(), push_events(), CONTEXTS)
    def test_who_is_no_candidate_gets_the_shared_verdict(
        self, rules: RuleSet, seen: PushEvent, room: RoomContext
    ) -> None:
        index = Interests()
        index.put(ALICE, rules)
        needs_personal = ALICE in index.candidates(seen)
        if not rules.differs_for_room(seen.room_id):
            self.assertFalse(needs_personal)
        if not needs_personal:
            expected = literal_outcome(rules, seen, room, Recipient(ALICE, "Alice"))
            self.assertEqual(shared(seen, room, rules).outcome_for(ALICE), expected)

    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(rule_sets())
    def test_stored_rules_come_back(self, rules: RuleSet) -> None:
        self.assertEqual(RuleSet.from_stored(orjson.loads(orjson.dumps(rules.to_stored()))), rules)
