"""The endpoints that read a room: pages, single events, relations, state, members."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, urlencode

from tests.harness import Answer
from tests.sync_api.scene import ROOM, A, B, SyncCase


class ReadingCase(SyncCase):
    def setUp(self) -> None:
        super().setUp()
        self.rooms.create(ROOM, A, name="Den")
        self.rooms.join(ROOM, B, displayname="Bob")
        self.sent = [self.rooms.message(ROOM, B, str(n), transaction=("BOBDEV", f"t{n}")) for n in range(20)]

    def get(self, path: str, who: str = "alice", version: str = "v3", **query: Any) -> Answer:
        fields = "?" + urlencode(query) if query else ""
        return self.web.get(f"/_matrix/client/{version}/rooms/{quote(ROOM)}/{path}{fields}", who)

    def bodies(self, answer: Answer) -> list[str]:
        return [event["content"]["body"] for event in answer.json["chunk"]]


class Messages(ReadingCase):
    def test_a_page_and_the_next(self) -> None:
        first = self.get("messages", dir="b", limit=5)
        self.assertEqual(self.bodies(first), ["19", "18", "17", "16", "15"])
        self.assertEqual(first.json["chunk"][0]["room_id"], ROOM)
        second = self.get("messages", dir="b", limit=5, **{"from": first.json["end"]})
        self.assertEqual(self.bodies(second)[0], "14")
        self.assertEqual(second.json["start"], first.json["end"])

    def test_goes_on_from_a_syncs_tokens(self) -> None:
        answer = self.sync("alice")
        before = answer["rooms"]["join"][ROOM]["timeline"]["prev_batch"]
        self.assertEqual(self.bodies(self.get("messages", dir="b", **{"from": before}))[0], "9")
        token = answer["next_batch"]
        self.rooms.message(ROOM, B, "new")
        self.assertEqual(self.bodies(self.get("messages", dir="f", **{"from": token})), ["new"])
        self.assertIn(f"messages f s{token.split('_')[0][1:]} None 10", self.rooms.asked)

    def test_the_end_has_no_token(self) -> None:
        self.assertNotIn("end", self.get("messages", dir="b", limit=1000).json)

    def test_limit_is_bounded(self) -> None:
        self.get("messages", dir="b", limit=10**6)
        self.get("messages", dir="b", limit=0)
        limits = [asked.split()[-1] for asked in self.rooms.asked if asked.startswith("messages")]
        self.assertEqual(limits, ["1000", "1"])

    def test_filter_and_lazy_loading(self) -> None:
        answer = self.get("messages", dir="b", limit=30, filter='{"types":["m.room.name"],"lazy_load_members":true}')
        self.assertEqual([event["type"] for event in answer.json["chunk"]], ["m.room.name"])
        self.assertEqual({event["state_key"] for event in answer.json["state"]}, {A, B})

    def test_ignored_users_are_left_out(self) -> None:
        self.users.ignore(A, B)
        for synced in (False, True):
            if synced:
                self.sync("alice")
            chunk = self.get("messages", dir="b", limit=30).json["chunk"]
            self.assertEqual({e["type"] for e in chunk if e["sender"] == B}, {"m.room.member"})

    def test_what_is_personal(self) -> None:
        self.assertEqual(
            self.get("messages", who="bob", dir="b", limit=1).json["chunk"][0]["unsigned"],
            {"age": 0, "membership": "join", "transaction_id": "t19"},
        )
        self.assertNotIn("transaction_id", self.get("messages", dir="b", limit=1).json["chunk"][0]["unsigned"])

    def test_refusals(self) -> None:
        for query, status, errcode in (
            ({}, 400, "M_MISSING_PARAM"),
            ({"dir": "x"}, 400, "M_INVALID_PARAM"),
            ({"dir": "b", "limit": -1}, 400, "M_INVALID_PARAM"),
            ({"dir": "b", "limit": "x"}, 400, "M_INVALID_PARAM"),
            ({"dir": "b", "from": "x"}, 400, "M_INVALID_PARAM"),
            ({"dir": "b", "to": "t1"}, 400, "M_INVALID_PARAM"),
            ({"dir": "b", "filter": "{"}, 400, "M_NOT_JSON"),
            ({"dir": "b", "filter": "[]"}, 400, "M_BAD_JSON"),
        ):
            answer = self.get("messages", **query)
            self.assertEqual((answer.status, answer.errcode), (status, errcode), query)
        self.assertEqual(self.get("messages", who="carol", dir="b").errcode, "M_FORBIDDEN")


class SingleEvents(ReadingCase):
    def test_event(self) -> None:
        event = self.sent[3]
        self.rooms.bundles[event.event_id] = b'{"m.thread":{"count":1}}'
        found = self.get(f"event/{event.event_id}").json
        self.assertEqual((found["event_id"], found["room_id"]), (event.event_id, ROOM))
        self.assertEqual(found["unsigned"]["m.relations"], {"m.thread": {"count": 1}})
        self.assertEqual(self.get("event/$none").errcode, "M_NOT_FOUND")
        self.users.ignore(A, B)
        self.assertEqual(self.get(f"event/{event.event_id}").errcode, "M_NOT_FOUND")

    def test_redacted_event(self) -> None:
        event = self.sent[3]
        redaction = self.rooms.redact(ROOM, B, event.event_id)
        found = self.get(f"event/{event.event_id}").json
        self.assertEqual(found["content"], {})
        self.assertEqual(found["unsigned"]["redacted_because"]["event_id"], redaction.event_id)

    def test_context(self) -> None:
        found = self.get(f"context/{self.sent[10].event_id}", limit=4).json
        self.assertEqual(found["event"]["event_id"], self.sent[10].event_id)
        self.assertEqual([e["content"]["body"] for e in found["events_before"]], ["9", "8"])
        self.assertEqual([e["content"]["body"] for e in found["events_after"]], ["11", "12"])
        self.assertEqual(len(found["state"]), 4)
        self.assertTrue(found["start"].startswith("t") and found["end"].startswith("t"))

    def test_context_filters_what_is_around_but_not_the_event(self) -> None:
        found = self.get(f"context/{self.sent[0].event_id}", limit=4, filter='{"types":["m.room.member"]}').json
        self.assertEqual(found["event"]["event_id"], self.sent[0].event_id)
        self.assertEqual([e["type"] for e in found["events_before"]], ["m.room.member"])
        self.assertEqual(found["events_after"], [])
        self.assertEqual({e["type"] for e in found["state"]}, {"m.room.member"})

    def test_context_limit_is_bounded(self) -> None:
        for limit, passed in ((0, 0), (10**5, 100)):
            self.get(f"context/{self.sent[0].event_id}", limit=limit)
            self.assertIn(f"context {passed}", self.rooms.asked)

    def test_timestamp_to_event(self) -> None:
        found = self.get("timestamp_to_event", version="v1", ts=0, dir="f").json
        self.assertEqual(found["event_id"], "$e1")
        self.assertEqual(self.get("timestamp_to_event", version="v1", ts=0, dir="b").errcode, "M_NOT_FOUND")
        self.assertEqual(self.get("timestamp_to_event", version="v1", ts=0).errcode, "M_MISSING_PARAM")
        self.assertEqual(self.get("timestamp_to_event", version="v1", ts="x", dir="b").errcode, "M_INVALID_PARAM")


class Relations(ReadingCase):
    def setUp(self) -> None:
        super().setUp()
        self.parent = self.sent[0]
        relation = {"rel_type": "m.annotation", "event_id": self.parent.event_id, "key": "+"}
        self.children = [self.rooms.send(ROOM, A, "m.reaction", {"m.relates_to": relation}).event_id for _ in range(3)]

    def test_three_forms(self) -> None:
        path = f"relations/{self.parent.event_id}"
        for more, asked in (("", "None None"), ("/m.annotation", "m.annotation None"), ("/m.a/m.b", "m.a m.b")):
            found = self.get(path + more, version="v1", limit=2)
            self.assertEqual([e["event_id"] for e in found.json["chunk"]], self.children[:0:-1])
            self.assertIn("next_batch", found.json)
            self.assertNotIn("prev_batch", found.json)
            self.assertNotIn("recursion_depth", found.json)
            self.assertIn(f"relations {asked} b None None 2 False", self.rooms.asked)

    def test_recursion_and_tokens(self) -> None:
        path = f"relations/{self.parent.event_id}"
        found = self.get(path, version="v1", recurse="true", dir="f", **{"from": "t1_2"}).json
        self.assertEqual(found["recursion_depth"], 3)
        self.assertEqual(found["prev_batch"], "t1_2")
        self.assertIn("relations None None f t1_2 None 50 True", self.rooms.asked)

    def test_refusals(self) -> None:
        self.assertEqual(self.get("relations/$none", version="v1").status, 404)
        path = f"relations/{self.parent.event_id}"
        for query in ({"dir": "x"}, {"limit": -1}, {"from": "x"}, {"recurse": "x"}):
            self.assertEqual(self.get(path, version="v1", **query).errcode, "M_INVALID_PARAM", query)

    def test_threads(self) -> None:
        self.users.ignore(A, B)
        found = self.get("threads", version="v1", include="participated", limit=5).json["chunk"]
        self.assertIn("threads participated None 5", self.rooms.asked)
        self.assertEqual({event["sender"]: bool(event["content"]) for event in found}, {A: True, B: False})
        self.assertEqual(self.get("threads", version="v1", include="x").errcode, "M_INVALID_PARAM")
        self.assertEqual(self.get("threads", version="v1", **{"from": "x"}).errcode, "M_INVALID_PARAM")
        self.assertEqual(self.get("threads", "carol", version="v1").errcode, "M_FORBIDDEN")


class State(ReadingCase):
    def test_all(self) -> None:
        found = self.get("state").json
        self.assertEqual(len(found), 4)
        self.assertTrue(all(event["room_id"] == ROOM for event in found))
        self.assertEqual(self.get("state", "carol").errcode, "M_FORBIDDEN")

    def test_one(self) -> None:
        for path in ("state/m.room.name", "state/m.room.name/"):
            self.assertEqual(self.get(path).json, {"name": "Den"})
            self.assertEqual(self.get(path, format="event").json["type"], "m.room.name")
        self.assertEqual(self.get(f"state/m.room.member/{quote(B)}").json["displayname"], "Bob")
        self.assertEqual(self.get("state/m.room.topic").errcode, "M_NOT_FOUND")
        self.assertEqual(self.get("state/m.room.name", format="x").errcode, "M_INVALID_PARAM")

    def test_members(self) -> None:
        found = self.get("members", at="s7_1_0_0", membership="join", not_membership="leave").json["chunk"]
        self.assertEqual({event["state_key"] for event in found}, {A, B})
        self.assertIn("members s7 join leave", self.rooms.asked)
        self.assertEqual(self.get("members", membership="x").errcode, "M_INVALID_PARAM")
        self.assertEqual(self.get("members", at="x").errcode, "M_INVALID_PARAM")

    def test_joined_members(self) -> None:
        self.assertEqual(self.get("joined_members").json, {"joined": {A: {}, B: {"display_name": "Bob"}}})
        self.assertEqual(self.get("joined_members", "carol").errcode, "M_FORBIDDEN")
        self.rooms.leave(ROOM, B)
        self.assertEqual(self.get("joined_members", "bob").errcode, "M_FORBIDDEN")

    def test_joined_rooms(self) -> None:
        self.rooms.create("!other:test", B)
        self.rooms.invite("!other:test", B, A)
        self.assertEqual(self.web.get("/_matrix/client/v3/joined_rooms", "alice").json, {"joined_rooms": [ROOM]})
