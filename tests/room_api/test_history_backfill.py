"""Clients page back to what this server never had: it is fetched, checked, put in its place, and shown once."""

from __future__ import annotations

from random import Random
from typing import Any

import orjson
from twisted.internet.defer import Deferred

from dendrite_tw.federation_api.api import FederationRequest, RawAnswer
from dendrite_tw.matrix import event_format
from dendrite_tw.matrix.events import Event, finish_event, receive_event
from dendrite_tw.matrix.room_versions import ROOM_VERSIONS
from dendrite_tw.room_api import backfilling
from dendrite_tw.room_api.api import Page
from dendrite_tw.room_api.backfilling import FAILED_SECONDS
from dendrite_tw.room_api.gaps import PAGE_SECONDS, ROUNDS
from dendrite_tw.room_api.room import Arrival, Way
from dendrite_tw.room_api.tables.events import REJECTED
from tests.room_api.federated import Server, count
from tests.room_api.history import ALICE, BERTA, BOB, CAROL, DAN, MEMBER, MESSAGE, VISIBILITY, HistoryStory

SILENCE = RawAnswer(502, b"{}")


class Backfill(HistoryStory):
    def setUp(self) -> None:
        super().setUp()
        self.addCleanup(lambda: [server.do(server.rooms.stop()) for server in self.network.servers.values()])

    def ids(self, server: Server, room_id: str, user: str, limit: int = 1000, **options: Any) -> list[str]:
        """All that a user reads, going back page by page."""
        found: list[str] = []
        token = None
        for _ in range(100):
            page = self.page(server, room_id, user, from_token=token, limit=limit, **options)
            found += [event.event_id for event in page.events]
            if page.end is None:
                return found
            token = page.end
        raise self.failureException("the pages do not end")

    def history(self, room_id: str) -> list[str]:
        """What a has, the latest first."""
        return [event.event_id for event in self.page(self.a, room_id, ALICE).events]

    def questions(self, endpoint: str, destination: str | None = None) -> int:
        return sum(one[2] == endpoint and one[1] == (destination or one[1]) for one in self.network.asked)

    def talk(self, room_id: str, number: int) -> list[str]:
        return [self.a.say(room_id, ALICE, f"m{index}") for index in range(number)]


class JoinedTests(Backfill):
    def test_everything_from_before_a_join_is_read_once_and_in_order(self) -> None:
        for version in ROOM_VERSIONS:
            room_id = self.room(room_version=version)
            self.talk(room_id, 5)
            self.a.send(room_id, ALICE, "m.room.topic", {"topic": "one"}, "")
            self.a.send(room_id, ALICE, "m.room.topic", {"topic": "two"}, "")
            self.a.let_join(self.b, room_id, BOB)
            self.assertEqual(self.ids(self.b, room_id, BOB, limit=4), self.history(room_id))
            self.assertEqual(self.ids(self.b, room_id, BOB), self.history(room_id))
            self.assertEqual(self.b.database.prepare(count, "backward_edges"), 0)
        self.assertEqual(self.questions("backfill"), len(ROOM_VERSIONS))

    def test_history_in_several_rounds_and_over_restarts(self) -> None:
        room_id = self.room()
        self.talk(room_id, 230)
        self.a.let_join(self.b, room_id, BOB)
        found: list[str] = []
        token: str | None = None
        while True:
            page = self.page(self.b, room_id, BOB, from_token=token, limit=40)
            found += [event.event_id for event in page.events]
            token = page.end
            if token is None:
                break
            self.b.do(self.b.rooms.stop())
            self.b.restart()
        self.assertEqual(found, self.history(room_id))
        self.assertEqual(self.questions("backfill"), 3)
        # The state was asked for where each answer began, but not at the beginning of the room.
        self.assertEqual(self.questions("state_ids"), 2)
        on = [event.event_id for event in self.page(self.b, room_id, BOB, "f").events]
        self.assertEqual(on, found[::-1])

    def test_the_state_at_each_event_is_that_of_the_time(self) -> None:
        room_id = self.room()
        for number in range(130):
            self.a.send(room_id, ALICE, "m.room.topic", {"topic": str(number)}, "")
            self.a.say(room_id, ALICE, f"while {number}")
        self.a.let_join(self.b, room_id, BOB)
        current = self.b.state(room_id)
        for event_id in self.ids(self.b, room_id, BOB, limit=50):
            self.assertEqual(
                {one.event_id for one in self.b.state_before(event_id)},
                {one.event_id for one in self.a.state_before(event_id)},
            )
        self.assertEqual(self.b.state(room_id), current)
        self.assertEqual(self.b.timeline(room_id), [self.a.state(room_id)[MEMBER, BOB]])
        after = self.b.say(room_id, BOB, "and on it goes")
        self.assertEqual(self.a.receive(self.b, room_id, [after]), {})
        self.b.restart()
        self.assertEqual(self.b.state(room_id), current)

    def test_what_a_user_may_not_see_is_not_fetched(self) -> None:
        room_id = self.room()
        self.a.send(room_id, ALICE, VISIBILITY, {"history_visibility": "joined"}, "")
        self.talk(room_id, 3)
        join = self.a.let_join(self.b, room_id, BOB)
        self.assertEqual(self.ids(self.b, room_id, BOB), [join])
        self.assertEqual(self.questions("backfill"), 0)

    def test_history_of_a_room_whose_visibility_changed(self) -> None:
        room_id = self.room()
        old = self.talk(room_id, 2)
        self.a.send(room_id, ALICE, VISIBILITY, {"history_visibility": "joined"}, "")
        secret = self.talk(room_id, 2)
        self.a.send(room_id, ALICE, VISIBILITY, {"history_visibility": "shared"}, "")
        fresh = self.talk(room_id, 2)
        self.a.let_join(self.b, room_id, BOB)
        read = self.ids(self.b, room_id, BOB)
        self.assertLess({*old, *fresh}, set(read))
        self.assertEqual(set(secret) & set(read), set())
        # Other servers gave it redacted; what this server shows to nobody is of no use to it.
        self.assertEqual(self.b.event(secret[0]).content, {})

    def test_context_and_relations_fetch_what_they_lack(self) -> None:
        room_id = self.room()
        root = self.a.say(room_id, ALICE, "root")
        relation = {"m.relates_to": {"rel_type": "m.reference", "event_id": root}}
        children = [self.a.send(room_id, ALICE, MESSAGE, {"body": f"c{number}", **relation}) for number in range(3)]
        join = self.a.let_join(self.b, room_id, BOB)
        context = self.do(self.b.rooms.context(room_id, BOB, join, 6, None, False))
        self.assertEqual([event.event_id for event in context.events_before], children[::-1])
        missed = self.a.send(room_id, ALICE, MESSAGE, {"body": "missed", **relation})
        late = self.a.say(room_id, ALICE, "late")
        self.network.deaf.add("a")
        self.b.take(room_id, [self.a.event(late)], before=self.state_map(self.b, room_id))
        self.network.deaf.clear()

        def related() -> Page:
            given = (room_id, BOB, root, None, None, "b", None, None, 10, False)
            return self.do(self.b.rooms.relations(*given))  # type: ignore[no-any-return]

        self.page(self.b, room_id, BOB)
        page = related()
        self.assertEqual([event.event_id for event in page.events], [missed, *children[::-1]])
        self.assertIsNone(page.end)
        bundled = orjson.loads(self.do(self.b.rooms.aggregations(room_id, [root], BOB))[root])
        self.assertEqual([one["event_id"] for one in bundled["m.reference"]["chunk"]], [*children, missed])

    def state_map(self, server: Server, room_id: str) -> Any:
        return server.room(room_id).head.state

    def test_a_thread_ends_with_its_latest_reply_and_not_with_what_was_fetched_last(self) -> None:
        room_id = self.room()
        root = self.a.say(room_id, ALICE, "root")
        relation = {"m.relates_to": {"rel_type": "m.thread", "event_id": root}}
        old = self.a.send(room_id, ALICE, MESSAGE, {"body": "old", **relation})
        self.a.let_join(self.b, room_id, BOB)
        new = self.b.send(room_id, BOB, MESSAGE, {"body": "new", **relation})
        other = self.b.say(room_id, BOB, "other root")
        self.b.send(room_id, BOB, MESSAGE, {"m.relates_to": {"rel_type": "m.thread", "event_id": other}})
        self.assertIn(old, self.ids(self.b, room_id, BOB))
        bundled = orjson.loads(self.do(self.b.rooms.aggregations(room_id, [root], BOB))[root])
        self.assertEqual(bundled["m.thread"]["count"], 2)
        self.assertEqual(bundled["m.thread"]["latest_event"]["event_id"], new)
        page = self.do(self.b.rooms.threads(room_id, BOB, "all", None, 10))
        self.assertEqual([event.event_id for event in page.events], [other, root])
        first = self.do(self.b.rooms.threads(room_id, BOB, "participated", None, 1))
        second = self.do(self.b.rooms.threads(room_id, BOB, "participated", first.end, 1))
        self.assertEqual([event.event_id for event in (*first.events, *second.events)], [other, root])


class ServersTests(Backfill):
    """Several servers of which some do not help."""

    def setUp(self) -> None:
        super().setUp()
        self.room_id = self.room()
        self.a.let_join(self.c, self.room_id, CAROL)
        self.ids(self.c, self.room_id, CAROL)
        self.network.asked.clear()
        self.said = self.talk(self.room_id, 5)
        self.c.receive(self.a, self.room_id, self.said)
        join = self.a.let_join(self.b, self.room_id, BOB)
        self.c.receive(self.a, self.room_id, [join])

    def test_if_nobody_answers_the_page_ends_and_the_next_tries_again(self) -> None:
        self.network.deaf.update("ac")
        page = self.page(self.b, self.room_id, BOB)
        self.assertEqual([event.event_id for event in page.events], [self.b.state(self.room_id)[MEMBER, BOB]])
        assert page.end is not None
        self.assertEqual((self.questions("backfill", "a"), self.questions("backfill", "c")), (1, 1))
        # Both have just been asked; the page goes on with what is here, which is nothing.
        again = self.page(self.b, self.room_id, BOB, from_token=page.end)
        self.assertEqual((again.events, again.end), ([], None))
        self.assertEqual((self.questions("backfill", "a"), self.questions("backfill", "c")), (1, 1))
        self.network.deaf.clear()
        self.network.memory.clock.advance(FAILED_SECONDS + 1)
        rest = self.page(self.b, self.room_id, BOB, from_token=page.end)
        self.assertEqual([event.event_id for event in rest.events], self.history(self.room_id)[1:])

    def test_empty_answers_refusals_nonsense_and_lies(self) -> None:
        stranger = self.d.make_on(self.a, self.room_id, DAN, MESSAGE, {"body": "not in the room"})
        unrelated = self.a.say(self.room(), ALICE, "another room")
        forged = orjson.loads(self.a.event(self.said[-1]).pdu)
        forged["signatures"] = {"a": {"ed25519:1": "bm8"}}
        answers: list[Any] = [
            {"pdus": []},
            {},
            {"pdus": 1},
            {"pdus": [1, "x", {}]},
            RawAnswer(403, b'{"errcode":"M_FORBIDDEN","error":"no"}'),
            RawAnswer(200, b"\xff"),
            {"pdus": [orjson.loads(stranger.pdu)]},
            {"pdus": [orjson.loads(self.a.event(unrelated).pdu)]},
            {"pdus": [forged]},
            # Real, but not what was asked for and not before it.
            {"pdus": [orjson.loads(self.a.event(self.a.say(self.room_id, ALICE, "later")).pdu)]},
        ]
        for answer in answers:
            self.network.answers["a", "backfill"] = lambda request, answer=answer: answer
            self.network.answers["c", "backfill"] = lambda request: SILENCE
            page = self.page(self.b, self.room_id, BOB)
            self.assertEqual(len(page.events), 1, answer)
            self.assertIsNotNone(page.end)
            self.network.memory.clock.advance(FAILED_SECONDS + 1)
        del self.network.answers["c", "backfill"]
        self.assertEqual(self.ids(self.b, self.room_id, BOB), self.history(self.room_id)[1:])
        self.assertIsNone(self.b.row(stranger.event_id))

    def test_one_server_has_the_events_and_another_the_state(self) -> None:
        self.patch(backfilling, "PIECE", 2)
        for endpoint in ("state_ids", "state"):
            self.network.answers["a", endpoint] = lambda request: SILENCE
        self.only_newest("a", 3)
        self.only_newest("c", 3)
        self.assertEqual(self.ids(self.b, self.room_id, BOB, limit=2), self.history(self.room_id))
        self.assertGreater(self.questions("state_ids", "c"), 0)

    def only_newest(self, name: str, number: int) -> None:
        """Let a server give a few events at a time."""

        def answer(request: FederationRequest) -> Any:
            wanted = [value for key, value in request.query if key == "v"]
            server = self.network.servers[name]
            pdus = server.do(server.rooms.backfill_for_server("b", self.room_id, wanted, number))
            return {"pdus": [orjson.loads(pdu) for pdu in pdus]}

        self.network.answers[name, "backfill"] = answer

    def test_an_event_whose_state_nobody_tells_is_left_for_later(self) -> None:
        self.only_newest("a", 2)
        self.network.deaf.add("c")
        for name in "ac":
            self.network.answers[name, "state_ids"] = lambda request: SILENCE
        page = self.page(self.b, self.room_id, BOB)
        self.assertEqual(len(page.events), 1)
        self.assertIsNone(self.b.row(self.said[-1]))
        for name in "ac":
            del self.network.answers[name, "state_ids"]
        self.network.memory.clock.advance(FAILED_SECONDS + 1)
        self.assertEqual(self.ids(self.b, self.room_id, BOB), self.history(self.room_id))

    def test_searches_of_one_page_are_bounded(self) -> None:
        self.only_newest("a", 1)
        page = self.page(self.b, self.room_id, BOB)
        self.assertEqual(self.questions("backfill"), ROUNDS)
        self.assertEqual(len(page.events), 1 + ROUNDS)
        self.assertEqual(self.ids(self.b, self.room_id, BOB), self.history(self.room_id))

    def test_how_many_servers_are_asked_is_bounded(self) -> None:
        for number in range(20):
            server, user = self.network.server(f"s{number}"), f"@u:s{number}"
            join = server.make_on(self.a, self.room_id, user, MEMBER, {"membership": "join"}, user)
            self.a.take(self.room_id, [join])
            self.b.take(self.room_id, [join])
            self.network.deaf.add(server.name)
        self.network.deaf.update("ac")
        token = None
        for asked, is_end in ((4, False), (8, False), (12, False), (12, True), (12, True)):
            page = self.page(self.b, self.room_id, BOB, from_token=token)
            self.assertEqual((self.questions("backfill"), page.end is None), (asked, is_end))
            token = page.end or token

    def test_a_page_waits_for_a_bounded_time_and_the_search_goes_on(self) -> None:
        slow: Deferred[Any] = Deferred()
        real = self.network.answer

        async def answer(origin: str, request: FederationRequest) -> RawAnswer:
            if "/backfill/" in request.path:
                await slow
            return await real(origin, request)

        self.network.answer = answer  # type: ignore[method-assign]
        pages: list[Any] = []
        for _ in range(2):
            given = (self.room_id, BOB, "b", None, None, 100, None, False)
            self.later(self.b.rooms.messages(*given), pages)
        self.assertEqual(pages, [])
        self.network.memory.clock.advance(PAGE_SECONDS + 1)
        self.assertEqual([len(page.events) for page in pages], [1, 1])
        slow.callback(None)
        self.assertEqual(self.questions("backfill"), 1)
        rest = self.page(self.b, self.room_id, BOB, from_token=pages[0].end)
        self.assertEqual([event.event_id for event in rest.events], self.history(self.room_id)[1:])
        self.assertEqual(self.questions("backfill"), 1)

    def test_a_server_that_stops_gives_up_its_searches(self) -> None:
        self.network.answer = self.never  # type: ignore[method-assign]
        pages: list[Any] = []
        self.later(self.b.rooms.messages(self.room_id, BOB, "b", None, None, 100, None, False), pages)
        self.b.do(self.b.rooms.stop())
        self.assertEqual(len(pages[0].events), 1)

    async def never(self, origin: str, request: FederationRequest) -> RawAnswer:
        await Deferred()
        return SILENCE


class GapTests(Backfill):
    """Events are missing inside the live timeline."""

    def setUp(self) -> None:
        super().setUp()
        self.room_id = self.room()
        self.a.let_join(self.b, self.room_id, BOB)
        self.ids(self.b, self.room_id, BOB)
        self.network.asked.clear()

    def miss(self, number: int) -> list[str]:
        """Let b miss some events, and hear of one after them."""
        missed = self.talk(self.room_id, number)
        late = self.a.say(self.room_id, ALICE, "late")
        state = self.b.room(self.room_id).head.state
        [outcome] = self.b.take(self.room_id, [self.a.event(late)], before=state)
        self.assertEqual(outcome.verdict, "accepted")
        row = self.b.row(late)
        assert row is not None
        self.assertEqual(row.gap, 1)
        return [*missed, late]

    def test_a_gap_is_filled_when_a_page_comes_to_it(self) -> None:
        self.miss(120)
        self.miss(3)
        self.b.restart()
        self.assertEqual(self.ids(self.b, self.room_id, BOB, limit=25), self.history(self.room_id))
        self.assertEqual(self.b.database.prepare(count, "backward_edges"), 0)

    def test_a_page_that_begins_just_before_a_gap_fills_it(self) -> None:
        *missed, late = self.miss(3)
        row = self.b.row(late)
        assert row is not None
        page = self.page(self.b, self.room_id, BOB, from_token=f"t{row.depth}_{row.position - 1}", limit=3)
        self.assertEqual([event.event_id for event in page.events], missed[::-1])

    def test_a_page_that_is_full_before_a_gap_asks_nobody(self) -> None:
        self.miss(3)
        said = [self.b.say(self.room_id, BOB, f"b{number}") for number in range(5)]
        page = self.page(self.b, self.room_id, BOB, limit=5)
        self.assertEqual([event.event_id for event in page.events], said[::-1])
        self.assertEqual(self.network.asked, [])
        stop = self.page(self.b, self.room_id, BOB, to_token=page.end)
        self.assertEqual([event.event_id for event in stop.events], said[::-1])
        self.assertEqual(self.network.asked, [])

    def test_a_gap_that_nobody_fills_is_passed_over_in_the_end(self) -> None:
        before = self.history(self.room_id)
        *_, late = self.miss(3)
        self.network.deaf.add("a")
        page = self.page(self.b, self.room_id, BOB)
        self.assertEqual([event.event_id for event in page.events], [late])
        rest = self.page(self.b, self.room_id, BOB, from_token=page.end)
        self.assertEqual([event.event_id for event in rest.events], before)

    def test_a_page_that_goes_on_fills_gaps_too(self) -> None:
        missed = self.miss(3)
        first = self.history(self.room_id)[::-1]
        page = self.page(self.b, self.room_id, BOB, "f")
        self.assertEqual([event.event_id for event in page.events], first)
        self.assertEqual(self.questions("backfill"), 1)
        self.network.deaf.add("a")
        self.miss(2)
        page = self.page(self.b, self.room_id, BOB, "f", from_token=page.end)
        self.assertEqual(len(page.events), 1)
        self.assertEqual(len(missed), 4)

    def test_events_that_are_rejected_do_not_hide_what_is_before_them(self) -> None:
        older = self.talk(self.room_id, 2)
        bad = self.d.make_on(self.a, self.room_id, DAN, MESSAGE, {"body": "not in the room"})
        self.a.take(self.room_id, [bad])
        after = self.b.make_on(self.a, self.room_id, BOB, MESSAGE, {"body": "after it"}, prev=[bad])
        self.a.take(self.room_id, [after])
        self.network.answers["a", "backfill"] = self.with_rejected(bad)
        whole = self.a.state_before(older[-1])
        ids = {"pdu_ids": [one.event_id for one in whole], "auth_chain_ids": []}
        is_asked = ("event_id", bad.event_id)
        self.network.answers["a", "state_ids"] = lambda request: ids if is_asked in request.query else None
        state = self.b.room(self.room_id).head.state
        self.b.take(self.room_id, [after], before=state)
        found = self.ids(self.b, self.room_id, BOB, limit=1)
        self.assertEqual(self.b.status(bad.event_id), REJECTED)
        self.assertEqual(found[:3], [after.event_id, *older[::-1]])
        self.assertNotIn(bad.event_id, found)

    def with_rejected(self, bad: Event) -> Any:
        """An answer that begins with an event which the server itself has rejected."""

        def answer(request: FederationRequest) -> Any:
            if ("v", bad.event_id) in request.query:
                return {"pdus": [orjson.loads(bad.pdu)]}
            return None

        return answer

    def test_a_second_create_event_is_none(self) -> None:
        create = self.a.event(self.a.state(self.room_id)["m.room.create", ""])
        fields = {**orjson.loads(create.pdu), "origin_server_ts": 5}
        self.assertEqual(self.b.event(create.event_id).type, "m.room.create")
        row = self.b.row(create.event_id)
        assert row is not None
        self.assertLess(row.position, 0)
        second = finish_event(
            {key: value for key, value in fields.items() if key not in ("hashes", "signatures")},
            ROOM_VERSIONS["10"],
            server_name="a",
            key_id=self.a.key.key_id,
            signing_key=self.a.key.seed,
        )
        [outcome] = self.b.take(self.room_id, [second], Way.HISTORY)
        self.assertEqual(outcome.verdict, "dropped")

    def test_memberships_of_the_time_decide_what_was_missed_may_be_seen(self) -> None:
        """Who had left before what was missed does not see it, though others of the server were there."""
        joined = self.b.change(self.room_id, BERTA, "join")
        left = self.b.change(self.room_id, BERTA, "leave")
        self.a.receive(self.b, self.room_id, [joined, left])
        missed = self.miss(3)
        self.assertEqual(self.ids(self.b, self.room_id, BOB), self.history(self.room_id))
        self.assertEqual(set(self.ids(self.b, self.room_id, BERTA)) & set(missed), set())
        for event_id in missed:
            self.refused(self.b.rooms.event(self.room_id, BERTA, event_id), "M_NOT_FOUND", 404)
            self.refused(self.b.rooms.context(self.room_id, BERTA, event_id, 5, None, False), "M_NOT_FOUND", 404)

    def test_old_events_may_refer_to_more_than_new_ones(self) -> None:
        tip = self.a.event(self.a.room(self.room_id).head.extremities[0])
        branches = [
            self.b.make_on(self.a, self.room_id, BOB, MESSAGE, {"body": f"b{number}"}, prev=[tip])
            for number in range(24)
        ]
        self.a.take(self.room_id, branches)
        times_gone = self.patch(event_format, "MAX_PREV_EVENTS", 30)
        wide = self.a.make_on(self.a, self.room_id, ALICE, MESSAGE, {"body": "wide"}, prev=branches)
        times_gone.restore()
        last = self.a.make_on(self.a, self.room_id, ALICE, MESSAGE, {"body": "last"}, prev=[wide])
        version = ROOM_VERSIONS["10"]
        arrivals = [Arrival(receive_event(one.pdu, version, limited=False)) for one in (wide, last)]
        self.a.do(self.a.rooms.writer.take(self.a.room(self.room_id), arrivals))
        self.b.take(self.room_id, [last], before=self.b.room(self.room_id).head.state)
        self.assertEqual(set(self.ids(self.b, self.room_id, BOB)), set(self.history(self.room_id)))
        self.assertIsNotNone(self.b.row(wide.event_id))

    def test_members_at_a_place_in_fetched_history(self) -> None:
        place = self.b.row(self.b.state(self.room_id)["m.room.power_levels", ""])
        assert place is not None
        token = f"t{place.depth}_{place.position}"
        self.assertLess(place.position, 0)
        members = self.do(self.b.rooms.members(self.room_id, BOB, token, None, None))
        self.assertEqual([event.state_key for event in members], [ALICE])

    def test_what_was_fetched_goes_with_the_room(self) -> None:
        self.miss(3)
        self.b.do(self.b.rooms.start())
        self.b.do(self.b.rooms.purge_room(self.room_id))
        self.network.memory.clock.advance(1)
        for table in ("events", "backward_edges", "state_snapshots", "auth_chains", "relations"):
            self.assertEqual(self.b.database.prepare(count, table), 0, table)

    def test_one_who_is_joined_sees_shared_history_of_every_branch(self) -> None:
        """An event on a branch that does not know of the join, and which comes after it."""
        create = self.a.event(self.a.state(self.room_id)["m.room.power_levels", ""])
        before = self.a.state_before(create.event_id)
        side = self.a.make(
            ROOM_VERSIONS["10"], self.room_id, ALICE, MESSAGE, {"body": "x"}, prev=[create], state=[*before, create]
        )
        self.assertEqual([one.verdict for one in self.b.take(self.room_id, [side])], ["accepted"])
        self.assertIn(side.event_id, self.ids(self.b, self.room_id, BOB))


class RandomTests(Backfill):
    def test_a_client_that_pages_back_sees_every_event_once_and_in_order(self) -> None:
        """Rooms with forks and gaps anywhere, read in pages of any size, with servers that sometimes keep silent."""
        for seed in range(12):
            random = Random(seed)
            with self.subTest(seed=seed):
                self.play(random)

    def play(self, random: Random) -> None:
        room_id = self.room(room_version=random.choice(["6", "10", "12"]))
        self.talk(room_id, random.randrange(4))
        self.a.let_join(self.b, room_id, BOB)
        for _ in range(random.randrange(10, 40)):
            self.step(random, room_id)
        self.a.say(room_id, ALICE, "last")
        for end in self.a.room(room_id).head.extremities:
            self.hear(room_id, self.a.event(end))
        found: list[str] = []
        token: str | None = None
        for _ in range(200):
            page = self.page(self.b, room_id, BOB, from_token=token, limit=random.randrange(1, 12))
            found += [event.event_id for event in page.events]
            token = page.end
            if token is None:
                break
            if random.random() < 0.1:
                self.b.do(self.b.rooms.stop())
                self.b.restart()
        everything = self.history(room_id)
        self.assertEqual(len(found), len(set(found)))
        self.assertEqual(set(found), set(everything))
        depths = [self.a.event(event_id).depth for event_id in found]
        self.assertEqual(depths, sorted(depths, reverse=True))
        for event_id in found:
            self.assertEqual(
                {one.event_id for one in self.b.state_before(event_id)},
                {one.event_id for one in self.a.state_before(event_id)},
            )

    def step(self, random: Random, room_id: str) -> None:
        """Something happens on a; b hears of it or not."""
        ends = list(self.a.room(room_id).head.extremities)
        kind, content, key = random.choice(
            [(MESSAGE, {"body": str(random.random())}, None), ("m.room.topic", {"topic": str(random.random())}, "")]
        )
        recent = self.history(room_id)[: random.randrange(1, 5)]
        prev = ends if random.random() < 0.7 else [random.choice(recent)]
        before = [self.a.event(event_id) for event_id in prev]
        event = self.a.make_on(self.a, room_id, ALICE, kind, content, key, prev=before)
        [outcome] = self.a.take(room_id, [event])
        self.assertEqual(outcome.verdict, "accepted", outcome)
        if random.random() < 0.4:
            self.hear(room_id, event)

    def hear(self, room_id: str, event: Event) -> None:
        """Let b hear of an event by itself; what comes before it and is not here stays missing."""
        state = {(one.type, one.state_key or ""): one for one in self.a.state_before(event.event_id)}
        room = self.b.room(room_id)
        authority = [*state.values(), *self.a.chain([*state.values(), event])]
        self.b.do(self.b.rooms.adoption.store_outliers(room, authority))
        before = self.b.do(self.b.rooms.adoption.state_map(room, state))
        [outcome] = self.b.take(room_id, [event], before=before)
        self.assertIn(outcome.verdict, ("accepted", "known"), outcome)
