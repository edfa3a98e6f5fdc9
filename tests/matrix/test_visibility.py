"""History visibility: every cell of the table, both sides of a change, whole runs, and servers."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.matrix.visibility import (
    Visibility,
    may_peek,
    may_see,
    may_see_event,
    server_may_see,
    server_may_see_event,
    sides_of_event,
    span_visible,
    visibility_from,
)

WORLD, SHARED, INVITED, JOINED = Visibility
MEMBERSHIPS = ("join", "invite", "knock", "leave", "ban", None)
ALICE = "@alice:example.org"


class ValueTests(SynchronousTestCase):
    def test_known_values(self) -> None:
        for name in ("world_readable", "shared", "invited", "joined"):
            self.assertEqual(visibility_from({"history_visibility": name}), name)

    def test_everything_else_is_shared(self) -> None:
        for content in (None, {}, {"history_visibility": "secret"}, {"history_visibility": ["joined"]}):
            self.assertIs(visibility_from(content), SHARED)


class UserTests(SynchronousTestCase):
    def seen_by(self, visibility: Visibility, joined_since: bool) -> set[str | None]:
        return {membership for membership in MEMBERSHIPS if may_see(visibility, membership, joined_since)}

    def test_the_table(self) -> None:
        everybody = set(MEMBERSHIPS)
        for visibility, never_joined, joined_later in (
            (WORLD, everybody, everybody),
            (SHARED, {"join"}, everybody),
            (INVITED, {"join", "invite"}, {"join", "invite"}),
            (JOINED, {"join"}, {"join"}),
        ):
            self.assertEqual(self.seen_by(visibility, False), never_joined, visibility)
            self.assertEqual(self.seen_by(visibility, True), joined_later, visibility)

    def test_own_membership_counts_on_both_sides(self) -> None:
        def sees(before: str | None, after: str) -> bool:
            return may_see_event(visibility=JOINED, membership=before, joined_since=False, membership_after=after)

        self.assertTrue(sees("invite", "join"))
        self.assertTrue(sees("join", "leave"))
        self.assertTrue(sees("join", "ban"))
        self.assertFalse(sees(None, "invite"))
        self.assertFalse(sees("leave", "ban"))
        self.assertTrue(
            may_see_event(visibility=INVITED, membership="invite", joined_since=False, membership_after="leave")
        )

    def test_a_change_of_visibility_counts_on_both_sides(self) -> None:
        def sees(before: Visibility, after: Visibility) -> bool:
            return may_see_event(visibility=before, membership=None, joined_since=False, visibility_after=after)

        self.assertTrue(sees(WORLD, JOINED))
        self.assertTrue(sees(JOINED, WORLD))
        self.assertFalse(sees(JOINED, SHARED))

    def test_what_an_event_sets(self) -> None:
        def sides(type_: str, state_key: str | None, **content: object) -> object:
            return sides_of_event(type_, state_key, content, ALICE)

        self.assertEqual(sides("m.room.member", ALICE, membership="leave"), (None, "leave"))
        self.assertEqual(sides("m.room.member", ALICE, membership=1), (None, None))
        self.assertEqual(sides("m.room.member", "@bob:example.org", membership="leave"), (None, None))
        self.assertEqual(sides("m.room.member", None, membership="leave"), (None, None))
        visible = {"history_visibility": "joined"}
        self.assertEqual(sides("m.room.history_visibility", "", **visible), (JOINED, None))
        self.assertEqual(sides("m.room.history_visibility", "", history_visibility="x"), (SHARED, None))
        self.assertEqual(sides("m.room.history_visibility", "x", **visible), (None, None))
        self.assertEqual(sides("m.room.message", None, **visible), (None, None))

    def test_peeking(self) -> None:
        self.assertTrue(may_peek(WORLD, None))
        self.assertTrue(may_peek(JOINED, "join"))
        self.assertFalse(may_peek(SHARED, None))
        self.assertFalse(may_peek(INVITED, "invite"))


class SpanTests(SynchronousTestCase):
    def test_those_joined_throughout_see_all(self) -> None:
        self.assertIs(span_visible(list(Visibility), {"join"}, False), True)

    def test_mixed_runs_must_be_looked_at(self) -> None:
        self.assertIsNone(span_visible({JOINED}, {"join", "leave"}, True))
        self.assertIsNone(span_visible({WORLD, JOINED}, {None}, False))

    def test_runs_that_nobody_outside_sees(self) -> None:
        self.assertIs(span_visible({JOINED, SHARED}, {None, "leave"}, False), False)
        self.assertIs(span_visible({SHARED}, {None}, True), True)

    def test_a_run_stands_on_something(self) -> None:
        self.assertRaises(ValueError, span_visible, [], {"join"}, True)
        self.assertRaises(ValueError, span_visible, {SHARED}, [], True)

    @settings(max_examples=200, deadline=None, derandomize=True)
    @given(
        st.lists(st.tuples(st.sampled_from(list(Visibility)), st.sampled_from(MEMBERSHIPS)), min_size=2, max_size=6),
        st.booleans(),
    )
    def test_the_answer_for_a_run_is_that_for_each_event(
        self, states: list[tuple[Visibility, str | None]], joined_since: bool
    ) -> None:
        """Each step from one state to the next is an event."""
        answer = span_visible({state[0] for state in states}, {state[1] for state in states}, joined_since)
        for before, after in pairwise(states):
            each = may_see_event(
                visibility=before[0],
                membership=before[1],
                joined_since=joined_since,
                visibility_after=after[0],
                membership_after=after[1],
            )
            if answer is not None:
                self.assertEqual(each, answer)


class ServerTests(SynchronousTestCase):
    def test_what_a_server_may_see(self) -> None:
        for visibility, memberships, in_room_now, expected in (
            (WORLD, [], False, True),
            (SHARED, [], True, True),
            (SHARED, [], False, False),
            (SHARED, ["join"], False, True),
            (INVITED, ["leave", "invite"], True, True),
            (INVITED, ["leave"], True, False),
            (JOINED, ["leave", "join"], False, True),
            (JOINED, ["invite"], True, False),
            (JOINED, [], True, False),
        ):
            answer = server_may_see(visibility, memberships, False, in_room_now)
            self.assertIs(answer, expected, (visibility, memberships, in_room_now))
        self.assertTrue(server_may_see(SHARED, ["leave"], True, False))

    def test_both_sides_of_a_change(self) -> None:
        def sees(**sides: object) -> bool:
            values = {"visibility": JOINED, "memberships": [], "joined_since": False, "in_room_now": True}
            return server_may_see_event(**{**values, **sides})  # type: ignore[arg-type]

        self.assertFalse(sees())
        self.assertTrue(sees(visibility_after=SHARED))
        self.assertTrue(sees(visibility=WORLD, visibility_after=JOINED))
        self.assertTrue(sees(memberships=["invite"], membership_after="join"))
        self.assertTrue(sees(memberships=["join"], membership_after="leave"))
        self.assertFalse(sees(memberships=["invite"], membership_after="leave"))
