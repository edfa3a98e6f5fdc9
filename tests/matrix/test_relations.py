"""Relations: what is one, which are valid, the thread of an event, and what the parent shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.matrix.errors import MatrixError
from dendrite_tw.matrix.relations import (
    MAIN_TIMELINE,
    MAX_HOPS,
    MAX_REFERENCES,
    Relation,
    ThreadSummary,
    bundle,
    check_sent,
    fault_of_child,
    is_falling_back,
    latest_replacement,
    relation_of,
    reply_of,
    summarise_thread,
    thread_of,
    thread_questions,
)

ALICE, BOB, CAROL = "@alice:example.org", "@bob:example.org", "@carol:example.org"


@dataclass(frozen=True)
class Event:
    event_id: str
    content: dict[str, Any] = field(default_factory=dict)
    sender: str = ALICE
    type: str = "m.room.message"
    state_key: str | None = None
    room_id: str = "!room:example.org"
    origin_server_ts: int = 0


def relates(rel_type: str, event_id: str, **rest: Any) -> dict[str, Any]:
    return {"m.relates_to": {"rel_type": rel_type, "event_id": event_id, **rest}}


def edit_of(event_id: str, own_id: str = "$edit", **rest: Any) -> Event:
    return Event(own_id, {**relates("m.replace", event_id), "m.new_content": {"body": "x"}}, **rest)


def in_thread(root: str, own_id: str, sender: str = ALICE) -> Event:
    return Event(own_id, relates("m.thread", root), sender)


class ParsingTests(SynchronousTestCase):
    def test_relations(self) -> None:
        self.assertEqual(relation_of(relates("m.thread", "$a")), Relation("m.thread", "$a"))
        annotation = relates("m.annotation", "$a", key="👍")
        self.assertEqual(relation_of(annotation), Relation("m.annotation", "$a", "👍"))
        self.assertEqual(relation_of(relates("org.example.x", "$a", key=1)), Relation("org.example.x", "$a"))

    def test_what_is_no_relation(self) -> None:
        for relates_to in (
            None,
            "m.thread",
            [],
            {},
            {"rel_type": "m.thread"},
            {"event_id": "$a"},
            {"rel_type": 1, "event_id": "$a"},
            {"rel_type": "", "event_id": "$a"},
            {"rel_type": "m.thread", "event_id": "a"},
            {"rel_type": "m.thread", "event_id": ["$a"]},
            {"rel_type": "x" * 300, "event_id": "$a"},
            {"rel_type": "m.thread", "event_id": "$" + "a" * 300},
            {"m.in_reply_to": {"event_id": "$a"}},
        ):
            self.assertIsNone(relation_of({"m.relates_to": relates_to}), relates_to)
        self.assertIsNone(relation_of({}))

    def test_replies(self) -> None:
        reply = {"m.in_reply_to": {"event_id": "$a"}}
        self.assertEqual(reply_of({"m.relates_to": reply}), "$a")
        in_thread = {"rel_type": "m.thread", "event_id": "$root", **reply}
        self.assertEqual(reply_of({"m.relates_to": in_thread}), "$a")
        fallback = {"m.relates_to": {**in_thread, "is_falling_back": True}}
        self.assertTrue(is_falling_back(fallback))
        self.assertIsNone(reply_of(fallback))
        self.assertFalse(is_falling_back({"m.relates_to": {**reply, "is_falling_back": True}}))
        for relates_to in (None, {}, {"m.in_reply_to": "$a"}, {"m.in_reply_to": {"event_id": 1}}):
            self.assertIsNone(reply_of({"m.relates_to": relates_to}))


class ValidityTests(SynchronousTestCase):
    original = Event("$original", {"body": "hello"})

    def test_edits(self) -> None:
        self.assertIsNone(fault_of_child(self.original, edit_of("$original")))

    def test_edits_that_are_none(self) -> None:
        parent = self.original
        without = Event("$edit", relates("m.replace", "$original"))
        not_an_object = Event("$edit", {**relates("m.replace", "$original"), "m.new_content": "x"})
        edited_edit = Event("$original", edit_of("$other").content)
        state = Event("$original", state_key="")
        for original, child in (
            (parent, edit_of("$original", sender=BOB)),
            (parent, edit_of("$original", room_id="!other:example.org")),
            (parent, edit_of("$original", type="m.sticker")),
            (parent, edit_of("$original", state_key="")),
            (parent, edit_of("$another")),
            (parent, without),
            (parent, not_an_object),
            (edited_edit, edit_of("$original")),
            (state, edit_of("$original")),
        ):
            self.assertIsNotNone(fault_of_child(original, child), child)

    def test_edits_of_events_in_threads(self) -> None:
        self.assertIsNone(fault_of_child(in_thread("$root", "$original"), edit_of("$original")))

    def test_encrypted_edits_hide_their_new_content(self) -> None:
        encrypted = Event("$original", {"ciphertext": "x"}, type="m.room.encrypted")
        edit = Event("$edit", relates("m.replace", "$original"), type="m.room.encrypted")
        self.assertIsNone(fault_of_child(encrypted, edit))
        self.assertIsNotNone(fault_of_child(encrypted, edit_of("$original")))

    def test_threads(self) -> None:
        child = in_thread("$original", "$child")
        self.assertIsNone(fault_of_child(self.original, child))
        reply = Event("$original", {"m.relates_to": {"m.in_reply_to": {"event_id": "$x"}}})
        self.assertIsNone(fault_of_child(reply, child))
        self.assertIsNotNone(fault_of_child(in_thread("$x", "$original"), child))
        self.assertIsNotNone(fault_of_child(edit_of("$x", "$original"), child))

    def test_annotations(self) -> None:
        child = Event("$child", relates("m.annotation", "$original", key="x"), type="m.reaction")
        self.assertIsNone(fault_of_child(self.original, child))
        self.assertIsNone(fault_of_child(Event("$original", state_key=""), child))
        self.assertIsNone(fault_of_child(in_thread("$x", "$original"), child))
        for rel_type in ("m.annotation", "m.replace"):
            self.assertIsNotNone(fault_of_child(Event("$original", relates(rel_type, "$x")), child))
        self.assertIsNotNone(fault_of_child(self.original, Event("$c", relates("m.annotation", "$original"))))

    def test_references_and_the_unknown(self) -> None:
        for rel_type in ("m.reference", "org.example.x"):
            self.assertIsNone(fault_of_child(self.original, Event("$c", relates(rel_type, "$original"))))
        self.assertIsNotNone(fault_of_child(self.original, Event("$c")))


class SendingTests(SynchronousTestCase):
    def test_a_thread_from_an_event_that_cannot_have_one(self) -> None:
        error = self.assertRaises(MatrixError, check_sent, relates("m.thread", "$a"), in_thread("$root", "$a"), False)
        self.assertEqual((error.status, error.errcode), (400, "M_UNKNOWN"))

    def test_a_second_annotation(self) -> None:
        content = relates("m.annotation", "$a", key="x")
        error = self.assertRaises(MatrixError, check_sent, content, Event("$a"), True)
        self.assertEqual((error.status, error.errcode), (400, "M_DUPLICATE_ANNOTATION"))

    def test_what_may_be_sent(self) -> None:
        check_sent({}, None, True)
        check_sent(relates("m.thread", "$a"), Event("$a"), True)
        check_sent(relates("m.thread", "$a"), None, False)
        check_sent(relates("m.annotation", "$a", key="x"), Event("$a"), False)
        check_sent(relates("m.reference", "$a"), in_thread("$root", "$a"), True)


class ThreadTests(SynchronousTestCase):
    def find(self, event: Event, *others: Event) -> str:
        return thread_of(event, {other.event_id: other for other in others}.get)

    def test_events_of_a_thread(self) -> None:
        self.assertEqual(self.find(in_thread("$root", "$a")), "$root")

    def test_the_root_and_what_relates_to_it_are_in_the_main_timeline(self) -> None:
        root = Event("$root")
        reaction = Event("$r", relates("m.annotation", "$root", key="x"))
        self.assertEqual(self.find(root), MAIN_TIMELINE)
        self.assertEqual(self.find(reaction, root), MAIN_TIMELINE)
        reply = Event("$a", {"m.relates_to": {"m.in_reply_to": {"event_id": "$t"}}})
        self.assertEqual(self.find(reply, in_thread("$root", "$t")), MAIN_TIMELINE)

    def test_parents_are_followed_three_hops(self) -> None:
        chain = [in_thread("$root", "$0")]
        for number in range(1, 6):
            chain.append(Event(f"${number}", relates("m.reference", f"${number - 1}")))
        found = [self.find(event, *chain) for event in chain]
        self.assertEqual(found, ["$root"] * (MAX_HOPS + 1) + [MAIN_TIMELINE] * (5 - MAX_HOPS))

    def test_no_more_is_asked_than_the_hops(self) -> None:
        loop = Event("$a", relates("m.reference", "$a"))
        asked = []
        self.assertEqual(thread_of(loop, lambda event_id: asked.append(event_id) or loop), MAIN_TIMELINE)
        self.assertEqual(asked, ["$a"] * MAX_HOPS)

    def test_parents_that_are_unknown_or_elsewhere(self) -> None:
        reaction = Event("$r", relates("m.annotation", "$t", key="x"))
        self.assertEqual(self.find(reaction), MAIN_TIMELINE)
        elsewhere = Event("$t", relates("m.thread", "$root"), room_id="!other:example.org")
        self.assertEqual(self.find(reaction, elsewhere), MAIN_TIMELINE)

    def test_questions_can_be_answered_one_by_one(self) -> None:
        questions = thread_questions(Event("$r", relates("m.annotation", "$t", key="x")))
        self.assertEqual(next(questions), "$t")
        end = self.assertRaises(StopIteration, questions.send, in_thread("$root", "$t"))
        self.assertEqual(end.value, "$root")

    def test_summary(self) -> None:
        root = Event("$root", sender=ALICE)
        children = [
            in_thread("$root", "$1", BOB),
            Event("$2", relates("m.reference", "$root"), ALICE),
            in_thread("$root", "$3", CAROL),
            in_thread("$other", "$4", BOB),
        ]
        self.assertEqual(summarise_thread(root, children, ALICE), ThreadSummary("$3", 2, True))
        self.assertEqual(summarise_thread(root, children, BOB), ThreadSummary("$3", 2, True))
        self.assertEqual(summarise_thread(root, children, "@dan:x"), ThreadSummary("$3", 2, False))
        self.assertEqual(summarise_thread(root, children, BOB, {CAROL}), ThreadSummary("$1", 1, True))
        self.assertIsNone(summarise_thread(root, children, BOB, {CAROL, BOB}))
        self.assertIsNone(summarise_thread(in_thread("$x", "$root"), children, BOB))


class BundleTests(SynchronousTestCase):
    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(st.permutations([("$a", 5), ("$c", 7), ("$b", 7), ("$d", 1)]))
    def test_the_latest_edit_counts(self, order: list[tuple[str, int]]) -> None:
        original = Event("$original")
        edits = [edit_of("$original", own_id, origin_server_ts=ts) for own_id, ts in order]
        invalid = edit_of("$original", "$z", origin_server_ts=9, sender=BOB)
        reference = Event("$y", relates("m.reference", "$original"), origin_server_ts=9)
        latest = latest_replacement(original, [invalid, *edits, reference])
        assert latest is not None
        self.assertEqual(latest.event_id, "$c")
        self.assertIsNone(latest_replacement(original, [invalid, reference]))

    def test_shapes(self) -> None:
        self.assertEqual(bundle(), {})
        thread = ThreadSummary("$3", 7, True)
        shown = bundle(replacement={"e": 1}, references=["$1", "$2"], thread=thread, thread_latest={"l": 1})
        self.assertEqual(
            shown,
            {
                "m.replace": {"e": 1},
                "m.reference": {"chunk": [{"event_id": "$1"}, {"event_id": "$2"}]},
                "m.thread": {"latest_event": {"l": 1}, "count": 7, "current_user_participated": True},
            },
        )

    def test_edits_of_redacted_events_are_not_shown(self) -> None:
        shown = bundle(replacement={"e": 1}, references=["$1"], redacted=True)
        self.assertEqual(shown, {"m.reference": {"chunk": [{"event_id": "$1"}]}})

    def test_references_are_bounded(self) -> None:
        many = (f"${number}" for number in range(MAX_REFERENCES + 5))
        self.assertEqual(len(bundle(references=many)["m.reference"]["chunk"]), MAX_REFERENCES)
