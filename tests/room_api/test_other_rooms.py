"""Events that refer to events of another room: nothing of that room comes into theirs."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

from dendrite_tw.federation_api.api import FederationRequest
from dendrite_tw.matrix.events import Event
from dendrite_tw.room_api.tables.events import ACCEPTED, REJECTED
from tests.room_api.federated import count
from tests.room_api.history import ALICE, BERTA, BOB, MEMBER, MESSAGE, HistoryStory


class OtherRoomTests(HistoryStory):
    """The server b means no good; bob is in the one room, berta of the same server in the other."""

    def setUp(self) -> None:
        super().setUp()
        self.one, self.other = self.room(), self.room()
        self.a.let_join(self.b, self.one, BOB)
        self.a.let_join(self.b, self.other, BERTA)
        self.a.send(self.other, ALICE, "m.room.join_rules", {"join_rule": "invite"}, "")
        self.events: dict[str, Event] = {}
        self.network.answers["b", "event"] = self.event
        self.network.answers["b", "state_ids"] = self.state_ids

    def event(self, request: FederationRequest) -> Any:
        found = self.events.get(unquote(request.path.rsplit("/", 1)[1]))
        return None if found is None else {"pdus": [found.pdu_dict()]}

    def state_ids(self, request: FederationRequest) -> Any:
        state = list(self.a.state(self.other).values())
        return {"pdu_ids": state, "auth_chain_ids": state}

    def make(self, sender: str, body: str, prev: list[Event], state: list[Event], **more: Any) -> Event:
        version = self.a.room(self.other).version
        event = self.b.make(version, self.other, sender, MESSAGE, {"body": body}, prev=prev, state=state, **more)
        self.events[event.event_id] = event
        return event

    def state(self, room_id: str) -> list[Event]:
        return [self.a.event(event_id) for event_id in self.a.state(room_id).values()]

    def give(self, endpoint: str, key: str, *events: Event) -> None:
        self.network.answers["b", endpoint] = lambda request: {key: [event.pdu_dict() for event in events]}

    def bodies(self) -> list[str]:
        page = self.page(self.a, self.other, ALICE)
        contents = [self.a.event(event.event_id).content for event in page.events]
        return [content["body"] for content in contents if "body" in content]

    def test_history_does_not_go_on_into_it(self) -> None:
        apart = self.b.make_on(self.a, self.one, BOB, MESSAGE, {"body": "apart"})
        self.assertEqual(self.a.receive(self.b, self.one, [apart]), {})
        state = self.state(self.other)
        first = self.make(BERTA, "first", [apart], state)
        second = self.make(BERTA, "second", [first], state)
        third = self.make(BERTA, "third", [second], state)
        self.give("get_missing_events", "events", second)
        self.give("backfill", "pdus", first, apart)
        self.assertEqual(self.a.receive(self.b, self.other, [third]), {})
        self.assertEqual(self.bodies(), ["third", "second", "first"])
        self.assertEqual(self.a.database.prepare(count, "backward_edges"), 0)
        # That is all there is, and nobody is asked for more.
        self.network.asked.clear()
        self.assertIsNone(self.page(self.a, self.other, ALICE).end)
        self.assertEqual(self.network.asked, [])

    def test_its_members_have_no_say(self) -> None:
        """A join that is authorised by a membership of the other room counts nowhere, nor what follows from it."""
        state = self.state(self.other)
        version = self.a.room(self.other).version
        foreign = [self.a.event(self.a.state(self.one)[MEMBER, BOB])]
        tips = [self.a.event(event_id) for event_id in self.a.room(self.other).head.extremities]
        join = self.b.make(
            version, self.other, BOB, MEMBER, {"membership": "join"}, BOB, prev=tips, state=[*state, *foreign]
        )
        self.assertIn(foreign[0].event_id, join.auth_events)
        self.events[join.event_id] = join
        said = self.make(BOB, "by bob", [join], [*state, join])
        last = self.make(BERTA, "by berta", [said], state)
        self.give("get_missing_events", "events", said)
        self.assertEqual(self.a.receive(self.b, self.other, [last]), {})
        self.assertEqual([self.a.status(one.event_id) for one in (join, said, last)], [REJECTED, REJECTED, ACCEPTED])
        self.assertEqual(self.bodies(), ["by berta"])
        self.assertNotIn((MEMBER, BOB), self.a.state(self.other))
