"""Forks that people fight over: who wins, in each of the three algorithms.

Each case is built so that it can be followed in the text of the room versions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from pyroaring import BitMap
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.matrix import state_res
from dendrite_tw.matrix.events import Event
from dendrite_tw.matrix.room_versions import ROOM_V1, ROOM_V2, ROOM_V11, ROOM_V12, RoomVersion
from dendrite_tw.matrix.state_res import MemoryGraph, StateKey, auth_order, v2

from .builders import ALICE, BOB, CAROL, DAVE
from .forks import Forks

TOPIC = ("m.room.topic", "")
LEVELS = ("m.room.power_levels", "")
RULES = ("m.room.join_rules", "")
BASE = 1_700_000_000_000


def member(user: str) -> StateKey:
    return "m.room.member", user


class Case(SynchronousTestCase):
    def resolve(self, forks: Forks, *tips: Event, rejected: tuple[str, ...] = ()) -> dict[StateKey, Event]:
        graph = MemoryGraph(forks.events.values(), rejected=rejected)
        states = [{key: event.event_id for key, event in forks.after(tip).items()} for tip in tips]
        found = state_res.resolve(forks.version, states, graph)
        turned = state_res.resolve(forks.version, states[::-1], graph)
        self.assertEqual(found, turned)
        return {key: forks.events[event_id] for key, event_id in found.items()}


class ShapeTests(Case):
    def test_no_states_and_one_state(self) -> None:
        forks = Forks(ROOM_V11)
        tip = forks.start(BOB)
        self.assertEqual(state_res.resolve(ROOM_V11, [], MemoryGraph()), {})
        self.assertEqual(self.resolve(forks, tip), forks.after(tip))

    def test_changes_on_different_keys_are_all_kept(self) -> None:
        for version in (ROOM_V1, ROOM_V2, ROOM_V11, ROOM_V12):
            forks = Forks(version)
            tip = forks.start(BOB, users={BOB: 50})
            topic = forks.put(tip, "m.room.topic", ALICE, {"topic": "one"})
            name = forks.put(tip, "m.room.name", BOB, {"name": "two"})
            found = self.resolve(forks, topic, name)
            self.assertIs(found[TOPIC], topic, version)
            self.assertIs(found["m.room.name", ""], name, version)

    def test_an_event_that_the_graph_lacks_is_an_error(self) -> None:
        forks = Forks(ROOM_V11)
        forks.start()
        graph = MemoryGraph(forks.events.values())
        with self.assertRaises(KeyError):
            state_res.resolve(ROOM_V11, [{TOPIC: "$unknown"}, {}], graph)

    def test_split(self) -> None:
        common, rest = state_res.split([{TOPIC: 1, RULES: 2}, {TOPIC: 1, RULES: 3}, {TOPIC: 1}])
        self.assertEqual((common, rest), ({TOPIC: 1}, [{RULES: 2}, {RULES: 3}, {}]))
        self.assertEqual(state_res.split([]), ({}, []))


class GraphTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.forks = Forks(ROOM_V11)
        self.tip = self.forks.start(BOB)
        self.events = list(self.forks.events.values())

    def test_chains_whatever_the_order(self) -> None:
        for events in (self.events, self.events[::-1]):
            graph = MemoryGraph(events)
            for event in events:
                chain = {graph.event(number) for number in graph.auth_chain(graph.number(event.event_id))}
                direct = {self.forks.events[auth_id] for auth_id in event.auth_events}
                self.assertLessEqual(direct, chain)
                self.assertEqual(bool(chain), event is not self.forks.create)

    def test_a_gap_is_an_error(self) -> None:
        with self.assertRaises(ValueError):
            MemoryGraph(self.events[1:])

    def test_a_circle_is_an_error(self) -> None:
        forks = Forks(ROOM_V2)
        elsewhere = Forks(ROOM_V2)
        one = forks.builder.event("m.room.topic", ALICE, {}, "", [], [elsewhere.builder.event("x", ALICE, {})])
        ahead = elsewhere.builder.event("x", ALICE, {}, "", [], [one], event_id="event2")
        self.assertIn(ahead.event_id, one.auth_events)
        with self.assertRaises(ValueError):
            auth_order([one, ahead])

    def test_what_is_there_is_not_added_twice(self) -> None:
        graph = MemoryGraph(self.events)
        self.assertEqual(graph.add(self.tip), graph.number(self.tip.event_id))


class CountingGraph(MemoryGraph):
    """Remembers which events and chains were looked at."""

    def __init__(self, events: Iterable[Event]) -> None:
        super().__init__(events)
        self.looked_at: set[int] = set()
        self.chains_read: set[int] = set()

    def event(self, number: int, /) -> Event:
        self.looked_at.add(number)
        return super().event(number)

    def auth_chain(self, number: int, /) -> BitMap:
        self.chains_read.add(number)
        return super().auth_chain(number)


class CostTests(SynchronousTestCase):
    def test_a_small_dispute_in_a_large_room_touches_little(self) -> None:
        for version in (ROOM_V1, ROOM_V11, ROOM_V12):
            forks = Forks(version)
            tip = forks.start(*(f"@user{number}:x.example" for number in range(300)))
            sides = [forks.put(tip, "m.room.topic", ALICE, {"topic": topic}) for topic in ("one", "two")]
            raised = forks.levels(sides[1], ALICE, {} if version.privileged_creators else {ALICE: 100, BOB: 1})
            graph = CountingGraph(forks.events.values())
            number = {event.event_id: graph.number(event.event_id) for event in forks.events.values()}
            states = [forks.after(sides[0]), forks.after(raised)]
            numbered = [{key: number[event.event_id] for key, event in state.items()} for state in states]
            common, rest = state_res.split(numbered)
            changes = state_res.resolve_conflicts(version, common, rest, graph)
            self.assertEqual(set(changes), {TOPIC, LEVELS})
            self.assertLess(len(graph.looked_at), 12, version)
            self.assertLess(len(graph.chains_read), 12, version)


class Version1Tests(Case):
    def forks(self) -> tuple[Forks, Event]:
        forks = Forks(ROOM_V1)
        return forks, forks.start(BOB, users={BOB: 50})

    def test_the_deepest_topic_wins(self) -> None:
        forks, tip = self.forks()
        low = forks.put(tip, "m.room.topic", ALICE, {"topic": "low"}, depth=20)
        high = forks.put(tip, "m.room.topic", BOB, {"topic": "high"}, depth=21)
        self.assertIs(self.resolve(forks, low, high)[TOPIC], high)

    def test_among_equals_the_lowest_hash_of_the_id_wins(self) -> None:
        forks, tip = self.forks()
        topics = [forks.put(tip, "m.room.topic", ALICE, {"topic": str(i)}, depth=20) for i in range(5)]
        lowest = min(topics, key=lambda event: hashlib.sha1(event.event_id.encode()).digest())
        self.assertIs(self.resolve(forks, *topics)[TOPIC], lowest)

    def test_a_topic_that_the_resolved_levels_forbid_loses(self) -> None:
        forks, tip = self.forks()
        demotion = forks.levels(tip, ALICE, {ALICE: 100, BOB: 0})
        topic = forks.put(demotion, "m.room.topic", ALICE, {"topic": "alice"}, depth=20)
        deeper = forks.put(tip, "m.room.topic", BOB, {"topic": "bob"}, depth=30)
        found = self.resolve(forks, topic, deeper)
        self.assertIs(found[LEVELS], demotion)
        self.assertIs(found[TOPIC], topic)

    def test_where_no_candidate_passes_the_key_is_empty(self) -> None:
        forks, tip = self.forks()
        demotion = forks.levels(tip, ALICE, {ALICE: 100, BOB: 0})
        one = forks.put(tip, "m.room.topic", BOB, {"topic": "one"})
        two = forks.put(tip, "m.room.topic", BOB, {"topic": "two"})
        found = self.resolve(forks, demotion, one, two)
        self.assertIs(found[LEVELS], demotion)
        self.assertNotIn(TOPIC, found)

    def test_levels_climb_while_each_allows_the_next(self) -> None:
        forks, tip = self.forks()
        first = forks.levels(tip, ALICE, {ALICE: 100, BOB: 50, CAROL: 10})
        demotion = forks.levels(tip, ALICE, {ALICE: 100, BOB: 0})
        found = self.resolve(forks, first, demotion)
        self.assertIs(found[LEVELS], demotion)
        by_bob = forks.levels(tip, BOB, {ALICE: 100, BOB: 50, DAVE: 20})
        after = forks.levels(demotion, ALICE, {ALICE: 100, DAVE: 1})
        self.assertIs(self.resolve(forks, by_bob, after)[LEVELS], after)
        found = self.resolve(forks, demotion, by_bob)
        self.assertIs(found[LEVELS], demotion, "Bob lost what his change would need")

    def test_a_key_that_one_side_lacks_is_no_conflict(self) -> None:
        forks, tip = self.forks()
        ban = forks.member(tip, CAROL, "ban", ALICE)
        self.assertIs(self.resolve(forks, tip, ban)[member(CAROL)], ban)


class Version2Tests(Case):
    version: RoomVersion = ROOM_V11

    def forks(self, **users: int) -> tuple[Forks, Event]:
        forks = Forks(self.version)
        return forks, forks.start(BOB, CAROL, users={BOB: 50, **users})

    def users(self, **users: int) -> dict[str, int]:
        named = {{"bob": BOB, "carol": CAROL, "dave": DAVE}[name]: level for name, level in users.items()}
        return named if self.version.privileged_creators else {ALICE: 100, **named}

    def test_a_ban_beats_a_join(self) -> None:
        forks, tip = self.forks()
        ban = forks.member(tip, DAVE, "ban", ALICE)
        join = forks.put(tip, "m.room.member", DAVE, {"membership": "join"}, DAVE, ts=BASE)
        late = forks.put(tip, "m.room.member", DAVE, {"membership": "join"}, DAVE, ts=BASE + 9_999)
        self.assertIs(self.resolve(forks, ban, join)[member(DAVE)], ban)
        self.assertIs(self.resolve(forks, ban, late)[member(DAVE)], ban)

    def test_what_the_banned_did_meanwhile_is_undone(self) -> None:
        forks, tip = self.forks()
        ban = forks.member(tip, BOB, "ban", ALICE)
        topic = forks.put(tip, "m.room.topic", BOB, {"topic": "mine"})
        found = self.resolve(forks, ban, topic)
        self.assertIs(found[member(BOB)], ban)
        self.assertNotIn(TOPIC, found)

    def test_the_stronger_ban_comes_first(self) -> None:
        forks = Forks(self.version)
        tip = forks.start(BOB, CAROL, users={BOB: 60, CAROL: 50})
        of_bob = forks.member(tip, CAROL, "ban", BOB)
        later = forks.put(tip, "m.room.member", ALICE, {"membership": "ban"}, BOB, ts=BASE + 9_999)
        found = self.resolve(forks, of_bob, later)
        self.assertIs(found[member(BOB)], later)
        self.assertEqual(found[member(CAROL)].membership, "join")

    def test_of_two_changes_of_levels_the_stronger_sender_decides(self) -> None:
        forks, tip = self.forks()
        demotion = forks.put(tip, "m.room.power_levels", ALICE, {"users": self.users(bob=0)}, ts=BASE + 9_999)
        by_bob = forks.put(tip, "m.room.power_levels", BOB, {"users": self.users(bob=50, carol=50)}, ts=BASE)
        self.assertIs(self.resolve(forks, demotion, by_bob)[LEVELS], demotion)

    def test_of_equal_power_the_later_change_stands_if_it_may(self) -> None:
        forks, tip = self.forks()
        one = forks.put(tip, "m.room.power_levels", ALICE, {"users": self.users(bob=50, carol=1)}, ts=BASE + 7)
        two = forks.put(tip, "m.room.power_levels", ALICE, {"users": self.users(bob=50, carol=2)}, ts=BASE + 5)
        self.assertIs(self.resolve(forks, one, two)[LEVELS], one)

    def test_a_topic_race_goes_to_the_later_one(self) -> None:
        forks, tip = self.forks()
        early = forks.put(tip, "m.room.topic", ALICE, {"topic": "early"}, ts=BASE + 1)
        late = forks.put(tip, "m.room.topic", BOB, {"topic": "late"}, ts=BASE + 2)
        self.assertIs(self.resolve(forks, early, late)[TOPIC], late)

    def test_a_tie_goes_to_the_greater_event_id(self) -> None:
        forks, tip = self.forks()
        topics = [forks.put(tip, "m.room.topic", ALICE, {"topic": str(i)}, ts=BASE) for i in range(5)]
        greatest = max(topics, key=lambda event: event.event_id)
        self.assertIs(self.resolve(forks, *topics)[TOPIC], greatest)

    def test_a_demoted_sender_loses_the_race(self) -> None:
        forks, tip = self.forks()
        demotion = forks.levels(tip, ALICE, self.users(bob=0))
        topic = forks.put(demotion, "m.room.topic", ALICE, {"topic": "alice"}, ts=BASE)
        late = forks.put(tip, "m.room.topic", BOB, {"topic": "bob"}, ts=BASE + 9_999)
        self.assertIs(self.resolve(forks, topic, late)[TOPIC], topic)

    def test_the_nearer_place_on_the_mainline_wins_over_time(self) -> None:
        forks, tip = self.forks()
        old = forks.put(tip, "m.room.topic", BOB, {"topic": "before the levels"}, ts=BASE + 9_999)
        levels = forks.levels(tip, ALICE, self.users(bob=50, carol=1))
        new = forks.put(levels, "m.room.topic", BOB, {"topic": "after the levels"}, ts=BASE + 1)
        self.assertIs(self.resolve(forks, old, new)[TOPIC], new)

    def test_closing_the_room_keeps_out_who_joins_on_the_other_side(self) -> None:
        forks, tip = self.forks()
        closed = forks.put(tip, "m.room.join_rules", ALICE, {"join_rule": "invite"})
        join = forks.member(tip, DAVE, "join")
        found = self.resolve(forks, closed, join)
        self.assertIs(found[RULES], closed)
        self.assertNotIn(member(DAVE), found)

    def test_leaving_oneself_is_no_power_event(self) -> None:
        forks, tip = self.forks()
        leave = forks.put(tip, "m.room.member", BOB, {"membership": "leave"}, BOB, ts=BASE + 9_999)
        topic = forks.put(tip, "m.room.topic", BOB, {"topic": "a last word"}, ts=BASE)
        found = self.resolve(forks, leave, topic)
        self.assertIs(found[member(BOB)], leave)
        self.assertIs(found[TOPIC], topic, "the topic is the earlier of two events of equal rank")

    def test_three_forks(self) -> None:
        forks, tip = self.forks()
        ban = forks.member(tip, BOB, "ban", ALICE)
        by_bob = forks.put(tip, "m.room.topic", BOB, {"topic": "bob"}, ts=BASE + 9_999)
        by_alice = forks.put(tip, "m.room.topic", ALICE, {"topic": "alice"}, ts=BASE)
        found = self.resolve(forks, ban, by_bob, by_alice)
        self.assertIs(found[member(BOB)], ban)
        self.assertIs(found[TOPIC], by_alice)

    def test_a_rejected_auth_event_does_not_authorise(self) -> None:
        forks = Forks(self.version)
        tip = forks.start(BOB)
        join = forks.member(tip, DAVE, "join")
        levels = forks.levels(join, ALICE, self.users(dave=50))
        name = forks.put(levels, "m.room.name", DAVE, {"name": "dave"})
        topic = forks.put(name, "m.room.topic", DAVE, {"topic": "dave"})
        # Both sides lack the join and the levels, so that the topic is judged by what it names itself;
        # and neither is disputed, because the name stands on them on both sides.
        before = {key: event for key, event in forks.after(name).items() if key not in (LEVELS, member(DAVE))}
        forks.states[topic.event_id] = {**before, TOPIC: topic}
        forks.states[tip.event_id] = before
        self.assertIn(TOPIC, self.resolve(forks, topic, tip))
        self.assertNotIn(TOPIC, self.resolve(forks, topic, tip, rejected=(levels.event_id,)))
        self.assertNotIn(TOPIC, self.resolve(forks, topic, tip, rejected=(join.event_id,)))


class Version21Tests(Version2Tests):
    version = ROOM_V12

    def test_a_creator_cannot_be_outvoted(self) -> None:
        forks = Forks(ROOM_V12)
        tip = forks.start(BOB, users={BOB: 100})
        by_bob = forks.put(tip, "m.room.power_levels", BOB, {"users": {BOB: 100, CAROL: 100}}, ts=BASE)
        by_alice = forks.put(tip, "m.room.power_levels", ALICE, {"users": {}}, ts=BASE + 9_999)
        found = self.resolve(forks, by_bob, by_alice)
        self.assertIs(found[LEVELS], by_alice)


class RevisionTests(Case):
    """What room version 12 changed: the same stories end differently before and after."""

    def old_levels_return(self, version: RoomVersion) -> tuple[Forks, Event, Event, Event]:
        """Levels that raise Bob, and levels by Bob that stand on these: a server may forget both."""
        forks = Forks(version)
        tip = forks.start(BOB)
        creator = {} if version.privileged_creators else {ALICE: 100}
        raised = forks.levels(tip, ALICE, creator | {BOB: 50})
        again = forks.levels(raised, BOB, creator | {BOB: 50, CAROL: 1})
        return forks, tip, raised, again

    def test_the_subgraph_is_what_lies_between(self) -> None:
        forks, tip, raised, again = self.old_levels_return(ROOM_V12)
        last = forks.levels(again, BOB, {BOB: 50, CAROL: 2})
        graph = MemoryGraph(forks.events.values())
        number = {event.event_id: graph.number(event.event_id) for event in forks.events.values()}
        first, first_rules, first_join = (forks.after(tip)[key] for key in (LEVELS, RULES, member(BOB)))
        sets = [{LEVELS: number[last.event_id]}, {LEVELS: number[first.event_id]}]
        common = {key: number[event.event_id] for key, event in forks.after(tip).items() if key != LEVELS}
        # An event that all share stands behind everything: nothing is in the auth difference.
        shared = forks.put(last, "m.room.topic", BOB, {"topic": "on top"})
        common[TOPIC] = graph.add(shared)
        without = v2.full_conflicted_set(common, sets, graph, subgraph=False)
        between = v2.full_conflicted_set(common, sets, graph, subgraph=True)
        ends = BitMap([number[last.event_id], number[first.event_id]])
        self.assertEqual(without, ends)
        inner = {raised, again, first_rules, first_join}
        self.assertEqual(between, ends | BitMap(number[event.event_id] for event in inner))

    def test_levels_that_one_side_forgot_return_only_after_the_revision(self) -> None:
        outcomes = {}
        for version in (ROOM_V11, ROOM_V12):
            forks, tip, _, again = self.old_levels_return(version)
            creator = {} if version.privileged_creators else {ALICE: 100}
            last = forks.levels(again, BOB, creator | {BOB: 50, CAROL: 2})
            shared = forks.put(last, "m.room.topic", BOB, {"topic": "on top"})
            forgotten = {**forks.after(shared), LEVELS: forks.after(tip)[LEVELS]}
            stale = forks.put(shared, "m.room.name", ALICE, {"name": "x"})
            forks.states[stale.event_id] = forgotten
            outcomes[version] = self.resolve(forks, shared, stale)[LEVELS] is last
        self.assertEqual(outcomes, {ROOM_V11: False, ROOM_V12: True})

    def test_it_starts_from_nothing(self) -> None:
        """A topic of Bob's is in dispute; he has left since, which both sides know.

        By the state that both share, it cannot stand; by what it names itself, it can.
        """
        outcomes = {}
        for version in (ROOM_V11, ROOM_V12):
            forks = Forks(version)
            tip = forks.start(BOB, users={BOB: 50})
            topic = forks.put(tip, "m.room.topic", BOB, {"topic": "bob"})
            leave = forks.member(tip, BOB, "leave")
            with_topic = forks.member(topic, CAROL, "join")
            forks.states[with_topic.event_id] = {**forks.after(leave), TOPIC: topic}
            outcomes[version] = TOPIC in self.resolve(forks, with_topic, leave)
        self.assertEqual(outcomes, {ROOM_V11: False, ROOM_V12: True})
