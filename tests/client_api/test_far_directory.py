"""The directories of other servers: what is asked, what is shown of the answer, what of a refusal."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.client_api.far_directory import PAGE_LIMIT, PATH
from dendrite_tw.client_api.rooms import RoomRoutes
from tests.fakes import FakeFederation
from tests.harness import Answer, Memory, serve

ROW = {"room_id": "!a:far.test", "num_joined_members": 5, "world_readable": False, "guest_can_join": True}


class NoRooms:
    """A directory of our own with nothing in it."""

    async def public_rooms(self, *_: object) -> tuple[list[Any], None, None, int]:
        return [], None, None, 7


class FarDirectoryTests(SynchronousTestCase):
    def setUp(self) -> None:
        memory = Memory()
        self.federation = FakeFederation()
        rooms: Any = NoRooms()
        routes = RoomRoutes(rooms, None, self.federation, memory.world.clock, "test").routes()  # type: ignore[arg-type]
        self.web = serve(routes, memory.clock)

    def tell(self, answer: Any) -> None:
        self.federation.answers["far.test", PATH] = answer

    def get(self, token: str | None = "alice", **query: Any) -> Answer:
        return self.web.get(f"/_matrix/client/v3/publicRooms?{urlencode({'server': 'far.test', **query})}", token)

    def search(self, body: Any, server: str = "far.test") -> Answer:
        return self.web.post(f"/_matrix/client/v3/publicRooms?server={server}", body, "alice")

    def test_a_page_of_another_server(self) -> None:
        self.tell({"chunk": [ROW], "next_batch": "n", "prev_batch": "p", "total_room_count_estimate": 9})
        answer = self.get(limit=10, since="s")
        self.assertEqual(
            answer.json, {"chunk": [ROW], "next_batch": "n", "prev_batch": "p", "total_room_count_estimate": 9}
        )
        (asked,) = self.federation.asked
        self.assertEqual((asked.method, asked.destination, asked.body), ("GET", "far.test", None))
        self.assertEqual(asked.query, [("limit", "10"), ("include_all_networks", "false"), ("since", "s")])

    def test_a_search_at_another_server(self) -> None:
        self.tell({"chunk": []})
        body = {
            "limit": 5,
            "filter": {"generic_search_term": "x", "room_types": [None, "m.space"]},
            "third_party_instance_id": "irc",
        }
        self.assertEqual(self.search(body).json, {"chunk": []})
        (asked,) = self.federation.asked
        self.assertEqual((asked.method, asked.query), ("POST", []))
        self.assertEqual(asked.body, {**body, "include_all_networks": False})

    def test_networks(self) -> None:
        self.assertEqual(self.search({"third_party_instance_id": "irc"}, "test").json["chunk"], [])
        self.assertEqual(self.search({"include_all_networks": True}, "test").json["total_room_count_estimate"], 7)
        for server in ("test", "far.test"):
            answer = self.search({"third_party_instance_id": "irc", "include_all_networks": True}, server)
            self.assertEqual((answer.status, answer.errcode), (400, "M_INVALID_PARAM"))
        self.assertEqual(self.federation.asked, [])

    def test_our_own_directory_is_not_asked_for_elsewhere(self) -> None:
        self.assertEqual(self.get(server="test").json["total_room_count_estimate"], 7)
        self.assertEqual(self.get(None, server="test").status, 200)
        self.assertEqual(self.federation.asked, [])

    def test_only_users_may_have_others_asked(self) -> None:
        answer = self.get(None)
        self.assertEqual((answer.status, answer.errcode), (401, "M_MISSING_TOKEN"))
        self.assertEqual(self.federation.asked, [])

    def test_what_is_no_server(self) -> None:
        for server in ("", "no server", "x/y", "a" * 300):
            answer = self.get(server=server)
            self.assertEqual((answer.status, answer.errcode), (400, "M_INVALID_PARAM"), server)

    def test_limits_are_kept(self) -> None:
        self.tell({"chunk": [ROW] * (PAGE_LIMIT + 10)})
        self.assertEqual(len(self.get(limit=100_000).json["chunk"]), PAGE_LIMIT)
        self.assertEqual(len(self.get(limit=-5).json["chunk"]), 1)

    def test_what_is_malformed_is_left_out(self) -> None:
        rows = [
            None,
            {},
            {**ROW, "room_id": "nonsense"},
            {**ROW, "num_joined_members": "many"},
            {**ROW, "name": 5},
            {**ROW, "name": None, "unknown": "x", "room_version": "12", "topic": "t"},
        ]
        self.tell({"chunk": rows, "next_batch": 5, "prev_batch": "", "total_room_count_estimate": -1})
        self.assertEqual(self.get().json, {"chunk": [{**ROW, "topic": "t"}]})
        for answer in ({"chunk": 5}, {}, [], b"no JSON"):
            self.tell(answer)
            self.assertEqual(self.get().json, {"chunk": []})

    def test_refusals(self) -> None:
        for status, errcode, told in (
            (403, "M_FORBIDDEN", (403, "M_FORBIDDEN")),
            (401, "M_UNAUTHORIZED", (502, "M_UNKNOWN")),
            (403, "M_UNKNOWN_TOKEN", (502, "M_UNKNOWN")),
            (500, "M_UNKNOWN", (502, "M_UNKNOWN")),
        ):
            self.tell((status, {"errcode": errcode, "error": "No."}))
            answer = self.get()
            self.assertEqual((answer.status, answer.errcode), told)
        self.tell((502, b"<html>"))
        self.assertEqual(self.get().status, 502)
        self.assertEqual(self.get(server="nowhere.test").status, 502)
