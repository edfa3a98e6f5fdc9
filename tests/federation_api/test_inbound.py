"""Every other endpoint for servers: what it asks, how it answers, and whom it refuses."""

from __future__ import annotations

from typing import Any

import orjson

from dendrite_tw.federation_api import streams
from dendrite_tw.federation_api.inbound import QUESTIONS
from dendrite_tw.federation_api.streams import EVENTS_AT_ONCE, OF_SERVER
from dendrite_tw.matrix.acl import PROTECTED
from dendrite_tw.matrix.errors import MatrixError, forbidden, not_found
from dendrite_tw.room_api.api import Alias, PublicRoom
from dendrite_tw.user_api.api import ClaimedKeys, DeviceEntry, DeviceList, QueriedKeys
from dendrite_tw.web.routes import Access

from .inbound_case import ROOM, InboundCase, escaped, event_of
from .network import key_of

BOB = "@bob:beta.test"
ROOM_PATH = escaped(ROOM)
EVENT = "$" + "e" * 43


class Taken:
    """A membership that was taken."""

    def __init__(self, **given: Any) -> None:
        self.event = b'{"type":"m.room.member"}'
        self.state: list[str] = []
        self.auth_chain: list[str] = []
        self.members_omitted = False
        self.servers_in_room: list[str] = []
        self.stripped: list[bytes] = []
        self.__dict__.update(given)


class MembershipTests(InboundCase):
    def test_templates(self) -> None:
        template = {"room_version": "11", "event": {"type": "m.room.member"}}
        self.rooms.answers["make_membership"] = template
        for kind, query, versions in (
            ("join", {"ver": ["1", "11"]}, ["1", "11"]),
            ("join", {}, ["1"]),
            ("leave", {}, []),
            ("knock", {"ver": ["7"]}, ["7"]),
        ):
            answer = self.beta.get(f"/v1/make_{kind}/{ROOM_PATH}/{escaped(BOB)}", **query)
            self.assertEqual((answer.status, answer.json), (200, template))
            self.assertEqual(self.rooms.asked.pop(), ("make_membership", kind, ROOM, BOB, "beta.test", versions))
        self.refused(self.beta.get(f"/v1/make_knock/{ROOM_PATH}/{escaped(BOB)}"), 400, "M_MISSING_PARAM")

    def test_a_version_that_the_other_does_not_know(self) -> None:
        error = MatrixError(400, "M_INCOMPATIBLE_ROOM_VERSION", "Too new.", room_version="11")
        self.rooms.answers["make_membership"] = error
        answer = self.beta.get(f"/v1/make_join/{ROOM_PATH}/{escaped(BOB)}")
        self.refused(answer, 400, "M_INCOMPATIBLE_ROOM_VERSION")
        self.assertEqual(answer.json["room_version"], "11")

    def test_a_join(self) -> None:
        events = [event_of(number) for number in range(3)]
        self.rooms.events = {event.event_id: event.pdu for event in events}
        ids = [event.event_id for event in events]
        self.rooms.answers["take_membership"] = Taken(state=ids[:2], auth_chain=ids[2:])
        member = event_of(9, type="m.room.member", state_key=BOB, content={"membership": "join"})
        answer = self.beta.put(f"/v2/send_join/{ROOM_PATH}/{member.event_id}", member.pdu)
        self.assertEqual(answer.status, 200)
        self.assertEqual(
            answer.json,
            {
                "origin": "alpha.test",
                "event": {"type": "m.room.member"},
                "members_omitted": False,
                "state": [event.pdu_dict() for event in events[:2]],
                "auth_chain": [events[2].pdu_dict()],
            },
        )
        asked = ("take_membership", "join", ROOM, member.event_id, "beta.test", member.pdu, False)
        self.assertEqual(self.rooms.asked, [asked])
        old = self.beta.put(f"/v1/send_join/{ROOM_PATH}/{member.event_id}", member.pdu)
        self.assertEqual(old.json, [200, answer.json])

    def test_a_join_without_members(self) -> None:
        self.rooms.answers["take_membership"] = Taken(members_omitted=True, servers_in_room=["a.test", "b.test"])
        answer = self.beta.put(f"/v2/send_join/{ROOM_PATH}/{EVENT}", {}, omit_members="true").json
        self.assertEqual((answer["members_omitted"], answer["servers_in_room"]), (True, ["a.test", "b.test"]))
        self.assertEqual((answer["state"], answer["auth_chain"]), ([], []))
        self.assertIs(self.rooms.asked[0][-1], True)

    def test_a_leave(self) -> None:
        self.rooms.answers["take_membership"] = Taken()
        self.assertEqual(self.beta.put(f"/v2/send_leave/{ROOM_PATH}/{EVENT}", {"a": 1}).json, {})
        self.assertEqual(self.beta.put(f"/v1/send_leave/{ROOM_PATH}/{EVENT}", {"a": 1}).json, [200, {}])
        self.assertEqual(
            self.rooms.asked, [("take_membership", "leave", ROOM, EVENT, "beta.test", b'{"a":1}', False)] * 2
        )

    def test_a_knock(self) -> None:
        self.rooms.answers["take_membership"] = Taken(stripped=[b'{"type":"m.room.create"}'])
        answer = self.beta.put(f"/v1/send_knock/{ROOM_PATH}/{EVENT}", {})
        self.assertEqual(answer.json, {"knock_room_state": [{"type": "m.room.create"}]})

    def test_what_is_no_event(self) -> None:
        self.rooms.answers["take_membership"] = Taken()
        for body in (b"[]", b"7", b'"x"', b"null"):
            self.refused(self.beta.put(f"/v2/send_join/{ROOM_PATH}/{EVENT}", body), 400, "M_BAD_JSON")
        large = b'{"x":"' + b"x" * 200_000 + b'"}'
        self.refused(self.beta.put(f"/v2/send_join/{ROOM_PATH}/{EVENT}", large), 413, "M_TOO_LARGE")
        self.assertEqual(self.rooms.asked, [])


class InviteTests(InboundCase):
    def test_an_invite(self) -> None:
        self.rooms.answers["receive_invite"] = b'{"signatures":{}}'
        body = {"room_version": "11", "event": {}, "invite_room_state": []}
        for room_id in (ROOM, "!unknown:beta.test"):
            answer = self.beta.put(f"/v2/invite/{escaped(room_id)}/{EVENT}", body)
            self.assertEqual(answer.json, {"event": {"signatures": {}}})
            self.assertEqual(self.rooms.asked.pop(), ("receive_invite", room_id, EVENT, "beta.test", body, False))
        self.assertEqual(
            self.beta.put(f"/v1/invite/{ROOM_PATH}/{EVENT}", {"a": 1}).json, [200, {"event": {"signatures": {}}}]
        )
        self.assertEqual(self.rooms.asked.pop(), ("receive_invite", ROOM, EVENT, "beta.test", {"a": 1}, True))

    def test_an_invite_that_is_refused(self) -> None:
        self.rooms.answers["receive_invite"] = MatrixError(403, "M_INVITE_BLOCKED", "Leave me alone.")
        self.refused(self.beta.put(f"/v2/invite/{ROOM_PATH}/{EVENT}", {}), 403, "M_INVITE_BLOCKED")
        self.refused(self.beta.put(f"/v2/invite/{ROOM_PATH}/x", {}), 400, "M_INVALID_PARAM")
        self.refused(self.beta.put(f"/v2/invite/room/{EVENT}", {}), 400, "M_INVALID_PARAM")

    def test_third_party_invites(self) -> None:
        self.rooms.answers |= {"exchange_third_party_invite": None, "third_party_bound": None}
        answer = self.beta.put(f"/v1/exchange_third_party_invite/{ROOM_PATH}", {"a": 1})
        self.assertEqual((answer.status, answer.json), (200, {}))
        self.assertEqual(self.rooms.asked.pop(), ("exchange_third_party_invite", ROOM, "beta.test", {"a": 1}))

    def test_an_identity_server_signs_nothing(self) -> None:
        self.rooms.answers["third_party_bound"] = None
        answer = self.web.put("/_matrix/federation/v1/3pid/onbind", {"mxid": "@alice:alpha.test"})
        self.assertEqual((answer.status, answer.json), (200, {}))
        self.assertEqual(self.rooms.asked, [("third_party_bound", {"mxid": "@alice:alpha.test"})])


class HistoryTests(InboundCase):
    def setUp(self) -> None:
        super().setUp()
        self.known = [event_of(number) for number in range(4)]
        self.ids = [event.event_id for event in self.known]
        self.pdus = [event.pdu_dict() for event in self.known]
        self.rooms.events = {event.event_id: event.pdu for event in self.known}

    def test_one_event(self) -> None:
        self.rooms.answers["events_for_server"] = {self.ids[0]: self.known[0].pdu}
        answer = self.beta.get(f"/v1/event/{escaped(self.ids[0])}").json
        self.assertEqual((answer["origin"], answer["pdus"]), ("alpha.test", [self.pdus[0]]))
        self.assertEqual(answer["origin_server_ts"], int(self.clock.seconds() * 1000))
        self.rooms.answers["events_for_server"] = {}
        self.refused(self.beta.get(f"/v1/event/{escaped(self.ids[0])}"), 404, "M_NOT_FOUND")
        self.refused(self.beta.get("/v1/event/nothing"), 400, "M_INVALID_PARAM")

    def test_state(self) -> None:
        self.rooms.answers["state_ids_for_server"] = (self.ids[:3], self.ids[3:])
        answer = self.beta.get(f"/v1/state/{ROOM_PATH}", event_id=EVENT)
        self.assertEqual(answer.json, {"pdus": self.pdus[:3], "auth_chain": self.pdus[3:]})
        answer = self.beta.get(f"/v1/state_ids/{ROOM_PATH}", event_id=EVENT)
        self.assertEqual(answer.json, {"pdu_ids": self.ids[:3], "auth_chain_ids": self.ids[3:]})
        self.assertEqual(self.rooms.asked, [("state_ids_for_server", "beta.test", ROOM, EVENT)] * 2)
        for path in ("state", "state_ids"):
            self.refused(self.beta.get(f"/v1/{path}/{ROOM_PATH}"), 400, "M_MISSING_PARAM")
            self.refused(self.beta.get(f"/v1/{path}/{ROOM_PATH}", event_id="x"), 400, "M_INVALID_PARAM")
        self.rooms.answers["state_ids_for_server"] = not_found("There is no such event.")
        for path in ("state", "state_ids"):
            self.refused(self.beta.get(f"/v1/{path}/{ROOM_PATH}", event_id=EVENT), 404, "M_NOT_FOUND")

    def test_a_large_state_is_read_as_it_is_sent(self) -> None:
        events = [event_of(number) for number in range(2 * EVENTS_AT_ONCE + 5)]
        self.rooms.events = {event.event_id: event.pdu for event in events}
        missing = "$" + "m" * 43
        ids = [missing, *(event.event_id for event in events)]
        self.rooms.answers["state_ids_for_server"] = (ids, [])
        answer = self.beta.get(f"/v1/state/{ROOM_PATH}", event_id=EVENT)
        self.assertEqual(answer.headers["transfer-encoding"], "chunked")
        self.assertEqual(answer.json, {"pdus": [event.pdu_dict() for event in events], "auth_chain": []})
        self.assertEqual(self.rooms.reads, [EVENTS_AT_ONCE, EVENTS_AT_ONCE, 6])

    def test_only_so_much_is_sent_at_the_same_time(self) -> None:
        self.rooms.answers["state_ids_for_server"] = (self.ids, [])
        path = f"/_matrix/federation/v1/state/{ROOM_PATH}?event_id={escaped(EVENT)}"
        headers = {"Authorization": self.beta.signed("GET", path)}
        answers = [self.web.request("GET", path, None, headers=headers) for _ in range(OF_SERVER)]
        busy = self.web.request("GET", path, None, headers=headers)
        self.refused(busy, 429, "M_LIMIT_EXCEEDED")
        self.assertEqual(busy.json["retry_after_ms"], streams.BUSY_MS)
        for _ in range(20):
            self.turns()
        self.assertEqual([answer.json["pdus"] for answer in answers], [self.pdus] * OF_SERVER)
        self.assertEqual(self.send("GET", path, None, headers).status, 200)

    def test_authority(self) -> None:
        self.rooms.answers["event_auth_for_server"] = self.ids[:2]
        answer = self.beta.get(f"/v1/event_auth/{ROOM_PATH}/{escaped(EVENT)}")
        self.assertEqual(answer.json, {"auth_chain": self.pdus[:2]})
        self.assertEqual(self.rooms.asked, [("event_auth_for_server", "beta.test", ROOM, EVENT)])

    def test_backfill(self) -> None:
        self.rooms.answers["backfill_for_server"] = [event.pdu for event in self.known]
        answer = self.beta.get(f"/v1/backfill/{ROOM_PATH}", v=[EVENT, self.ids[0]], limit=7)
        self.assertEqual((answer.json["origin"], answer.json["pdus"]), ("alpha.test", self.pdus))
        asked = ("backfill_for_server", "beta.test", ROOM, [EVENT, self.ids[0]], 7)
        self.assertEqual(self.rooms.asked.pop(), asked)
        self.beta.get(f"/v1/backfill/{ROOM_PATH}", v=EVENT, limit=10**6)
        self.assertEqual(self.rooms.asked.pop()[-1], 100)
        path = f"/v1/backfill/{ROOM_PATH}"
        self.refused(self.beta.get(path, limit=5), 400, "M_MISSING_PARAM")
        self.refused(self.beta.get(path, v=EVENT), 400, "M_MISSING_PARAM")
        self.refused(self.beta.get(path, v=EVENT, limit=-1), 400, "M_INVALID_PARAM")
        self.refused(self.beta.get(path, v=EVENT, limit="many"), 400, "M_INVALID_PARAM")
        self.refused(self.beta.get(path, v="event", limit=1), 400, "M_INVALID_PARAM")
        self.refused(self.beta.get(path, v=[EVENT] * 101, limit=1), 400, "M_INVALID_PARAM")

    def test_missing_events(self) -> None:
        self.rooms.answers["missing_events_for_server"] = [event.pdu for event in self.known]
        path = f"/v1/get_missing_events/{ROOM_PATH}"
        body = {"earliest_events": [EVENT], "latest_events": [self.ids[0]]}
        self.assertEqual(self.beta.post(path, body).json, {"events": self.pdus})
        asked = ("missing_events_for_server", "beta.test", ROOM, [EVENT], [self.ids[0]], 10, 0)
        self.assertEqual(self.rooms.asked.pop(), asked)
        self.beta.post(path, {})
        self.assertEqual(self.rooms.asked.pop()[3:], ([], [], 10, 0))
        self.beta.post(path, {**body, "limit": 1000, "min_depth": 7})
        self.assertEqual(self.rooms.asked.pop()[-2:], (50, 7))
        for wrong, errcode in (
            ({**body, "limit": "x"}, "M_BAD_JSON"),
            ({**body, "limit": -1}, "M_BAD_JSON"),
            ({**body, "min_depth": -1}, "M_BAD_JSON"),
            ({**body, "latest_events": ["x"]}, "M_INVALID_PARAM"),
            ({**body, "latest_events": [EVENT] * 501}, "M_BAD_JSON"),
        ):
            self.refused(self.beta.post(path, wrong), 400, errcode)

    def test_the_event_at_a_time(self) -> None:
        self.rooms.answers["timestamp_to_event_for_server"] = (EVENT, 77)
        path = f"/v1/timestamp_to_event/{ROOM_PATH}"
        answer = self.beta.get(path, ts=50, dir="f")
        self.assertEqual(answer.json, {"event_id": EVENT, "origin_server_ts": 77})
        self.assertEqual(self.rooms.asked, [("timestamp_to_event_for_server", "beta.test", ROOM, 50, "f")])
        self.refused(self.beta.get(path, ts=50, dir="x"), 400, "M_INVALID_PARAM")
        self.refused(self.beta.get(path, ts=-1, dir="f"), 400, "M_INVALID_PARAM")
        self.refused(self.beta.get(path, dir="f"), 400, "M_MISSING_PARAM")
        self.rooms.answers["timestamp_to_event_for_server"] = not_found("There is none.")
        self.refused(self.beta.get(path, ts=50, dir="f"), 404, "M_NOT_FOUND")


class QueryTests(InboundCase):
    def test_an_alias(self) -> None:
        self.rooms.answers["resolve_alias"] = Alias("#room:alpha.test", ROOM, ["alpha.test", "beta.test"])
        answer = self.beta.get("/v1/query/directory", room_alias="#room:alpha.test")
        self.assertEqual(answer.json, {"room_id": ROOM, "servers": ["alpha.test", "beta.test"]})
        self.refused(self.beta.get("/v1/query/directory", room_alias="#room:beta.test"), 404, "M_NOT_FOUND")
        self.refused(self.beta.get("/v1/query/directory", room_alias="room"), 400, "M_INVALID_PARAM")
        self.refused(self.beta.get("/v1/query/directory"), 400, "M_MISSING_PARAM")
        self.rooms.answers["resolve_alias"] = not_found("No.")
        self.refused(self.beta.get("/v1/query/directory", room_alias="#x:alpha.test"), 404, "M_NOT_FOUND")

    def test_a_profile(self) -> None:
        alice = "@alice:alpha.test"
        self.users.profiles[alice] = {"displayname": "Alice", "m.tz": "Europe/Rome"}
        path = "/v1/query/profile"
        self.assertEqual(self.beta.get(path, user_id=alice).json, self.users.profiles[alice])
        self.assertEqual(self.beta.get(path, user_id=alice, field="m.tz").json, {"m.tz": "Europe/Rome"})
        self.assertEqual(self.beta.get(path, user_id=alice, field="avatar_url").json, {})
        self.refused(self.beta.get(path, user_id="@nobody:alpha.test"), 404, "M_NOT_FOUND")
        self.refused(self.beta.get(path, user_id="@bob:beta.test"), 400, "M_INVALID_PARAM")
        self.refused(self.beta.get(path, user_id="alice"), 400, "M_INVALID_PARAM")
        self.refused(self.beta.get(path), 400, "M_MISSING_PARAM")

    def test_other_queries(self) -> None:
        self.refused(self.beta.get("/v1/query/weather"), 404, "M_NOT_FOUND")

    def test_the_directory(self) -> None:
        room = PublicRoom(
            room_id=ROOM,
            num_joined_members=2,
            world_readable=False,
            guest_can_join=False,
            name="Room",
            room_version="11",
        )
        self.rooms.answers["public_rooms"] = ([room], "next", None, 5)
        shown = {"room_id": ROOM, "num_joined_members": 2, "world_readable": False, "guest_can_join": False}
        page = {"chunk": [{**shown, "name": "Room"}], "total_room_count_estimate": 5, "next_batch": "next"}
        self.assertEqual(self.beta.get("/v1/publicRooms", limit=3, since="token").json, page)
        self.assertEqual(self.rooms.asked.pop(), ("public_rooms", 3, "token", None, None))
        self.assertEqual(self.beta.get("/v1/publicRooms").json, page)
        self.assertEqual(self.rooms.asked.pop(), ("public_rooms", 500, None, None, None))
        body = {"limit": 2, "filter": {"generic_search_term": "x", "room_types": [None, "m.space"]}}
        self.assertEqual(self.beta.post("/v1/publicRooms", body).json, page)
        self.assertEqual(self.rooms.asked.pop(), ("public_rooms", 2, None, "x", [None, "m.space"]))
        self.assertEqual(self.beta.get("/v1/publicRooms", third_party_instance_id="irc").json["chunk"], [])
        self.assertEqual(self.beta.post("/v1/publicRooms", {"third_party_instance_id": "irc"}).json["chunk"], [])
        self.refused(self.beta.get("/v1/publicRooms", limit=-1), 400, "M_INVALID_PARAM")
        self.refused(self.beta.post("/v1/publicRooms", {"filter": 7}), 400, "M_BAD_JSON")

    def test_spaces(self) -> None:
        answer = {"room": {}, "children": [], "inaccessible_children": []}
        self.rooms.answers["hierarchy_for_server"] = answer
        self.assertEqual(self.beta.get(f"/v1/hierarchy/{ROOM_PATH}").json, answer)
        self.beta.get(f"/v1/hierarchy/{ROOM_PATH}", suggested_only="true")
        asked = [("hierarchy_for_server", "beta.test", ROOM, suggested) for suggested in (False, True)]
        self.assertEqual(self.rooms.asked, asked)


class DeviceTests(InboundCase):
    alice = "@alice:alpha.test"

    def test_devices(self) -> None:
        devices = [
            DeviceEntry(device_id="ONE", keys=b'{"a":1}', display_name="Phone"),
            DeviceEntry(device_id="TWO", keys=b'{"b":2}'),
        ]
        listed = DeviceList(user_id=self.alice, stream_id=5, devices=devices)
        self.keys.lists[self.alice] = listed
        path = f"/v1/user/devices/{escaped(self.alice)}"
        expected = {
            "user_id": self.alice,
            "stream_id": 5,
            "devices": [
                {"device_id": "ONE", "keys": {"a": 1}, "device_display_name": "Phone"},
                {"device_id": "TWO", "keys": {"b": 2}},
            ],
        }
        self.assertEqual(self.beta.get(path).json, expected)
        self.keys.lists[self.alice] = DeviceList(
            user_id=self.alice, stream_id=5, devices=[], master_key=b'{"m":1}', self_signing_key=b'{"s":1}'
        )
        answer = self.beta.get(path).json
        self.assertEqual((answer["master_key"], answer["self_signing_key"]), ({"m": 1}, {"s": 1}))
        for user_id in ("@nobody:alpha.test", "@bob:beta.test", "alice"):
            self.refused(self.beta.get(f"/v1/user/devices/{escaped(user_id)}"), 404, "M_NOT_FOUND")

    def test_queries(self) -> None:
        self.keys.queried = QueriedKeys(
            device_keys={self.alice: {"ONE": b'{"a":1}'}},
            master_keys={self.alice: b'{"m":1}'},
            self_signing_keys={self.alice: b'{"s":1}'},
            user_signing_keys={self.alice: b'{"secret":1}'},
        )
        answer = self.beta.post("/v1/user/keys/query", {"device_keys": {self.alice: ["ONE"], BOB: []}})
        self.assertEqual(
            answer.json,
            {
                "device_keys": {self.alice: {"ONE": {"a": 1}}},
                "master_keys": {self.alice: {"m": 1}},
                "self_signing_keys": {self.alice: {"s": 1}},
            },
        )
        self.assertEqual(self.keys.told, [("query", "", {self.alice: ["ONE"]}, 0, True)])
        for wrong in ({"device_keys": []}, {"device_keys": {self.alice: "ONE"}}, {"device_keys": {self.alice: [1]}}):
            self.refused(self.beta.post("/v1/user/keys/query", wrong), 400, "M_BAD_JSON")

    def test_claims(self) -> None:
        self.keys.claimed = ClaimedKeys(one_time_keys={self.alice: {"ONE": {"signed_curve25519:A": b'{"key":"k"}'}}})
        wanted = {self.alice: {"ONE": "signed_curve25519"}}
        answer = self.beta.post("/v1/user/keys/claim", {"one_time_keys": {**wanted, BOB: {"X": "y"}}})
        self.assertEqual(answer.json, {"one_time_keys": {self.alice: {"ONE": {"signed_curve25519:A": {"key": "k"}}}}})
        self.assertEqual(self.keys.told, [("claim", wanted, 0, True)])
        self.refused(self.beta.post("/v1/user/keys/claim", {}), 400, "M_MISSING_PARAM")


class AccessTests(InboundCase):
    """What holds for all of them."""

    def paths(self) -> list[tuple[str, str]]:
        """Method and path of every endpoint that a signature is needed for."""
        values = {"room_id": ROOM, "event_id": EVENT, "user_id": BOB, "txn_id": "t", "query_type": "profile"}
        found = []
        for row in self.inbound.routes():
            if row.access is Access.SERVER:
                parts = [escaped(values[part[1:-1]]) if part.startswith("{") else part for part in row.path.split("/")]
                found.append((row.method, "/".join(parts)))
        return found

    def test_servers_that_a_room_keeps_out(self) -> None:
        self.rooms.kept_out.add((ROOM, "beta.test"))
        queries: dict[str, dict[str, Any]] = {
            "state": {"event_id": EVENT},
            "state_ids": {"event_id": EVENT},
            "backfill": {"v": EVENT, "limit": 1},
            "make_knock": {"ver": "11"},
        }
        body = {"earliest_events": [], "latest_events": []}
        met = set()
        for method, path in self.paths():
            word = path.split("/")[4]
            if word in PROTECTED:
                met.add(word)
                answer = self.beta.request(method, path, None if method == "GET" else body, queries.get(word, ()))
                self.refused(answer, 403, "M_FORBIDDEN")
        self.assertEqual((met, self.rooms.asked), (PROTECTED, []))

    def test_rooms_that_nobody_knows(self) -> None:
        self.rooms.versions.clear()
        path = f"/v1/state/{ROOM_PATH}"
        self.refused(self.beta.get(path, event_id=EVENT), 404, "M_NOT_FOUND")
        self.refused(self.beta.get(f"/v1/make_join/{ROOM_PATH}/{escaped(BOB)}"), 404, "M_NOT_FOUND")

    def test_requests_that_nobody_signed(self) -> None:
        for method, path in self.paths():
            for header in (None, "Bearer abc", 'X-Matrix origin="beta.test",key="ed25519:1",sig="x"'):
                headers = {"Authorization": header} if header else {}
                answer = self.web.request(method, path, b"{}" if method != "GET" else None, headers=headers)
                self.turns()
                self.assertIn(answer.status, (401, 429), path)
                self.assertIn(answer.errcode, ("M_UNAUTHORIZED", "M_LIMIT_EXCEEDED"), path)
        self.assertEqual(self.rooms.asked, [])

    def test_requests_that_are_for_others_or_signed_by_others(self) -> None:
        uri = f"/_matrix/federation/v1/state/{ROOM_PATH}?event_id={escaped(EVENT)}"
        for header in (
            self.beta.signed("GET", uri, destination="gamma.test"),
            self.beta.signed("GET", uri, key=key_of(5)),
            self.beta.signed("PUT", uri),
            self.beta.signed("GET", uri + "x"),
            self.beta.signed("GET", uri).replace("beta.test", "gamma.test"),
        ):
            answer = self.send("GET", uri, None, {"Authorization": header})
            for _ in range(3):
                self.turns(0.3)
            self.refused(answer, 401, "M_UNAUTHORIZED")
        self.assertEqual(self.rooms.asked, [])

    def test_a_key_that_its_server_no_longer_uses(self) -> None:
        before = self.beta.key
        self.beta.server.own.key = key_of(5, "ed25519:new")
        self.clock.advance(8 * 86_400)
        uri = "/_matrix/federation/v1/query/nothing"
        answer = self.send("GET", uri, None, {"Authorization": self.beta.signed("GET", uri, key=before)})
        for _ in range(4):
            self.turns(0.3)
        self.refused(answer, 401, "M_UNAUTHORIZED")
        new = self.beta.signed("GET", uri, key=key_of(5, "ed25519:new"))
        self.refused(self.send("GET", uri, None, {"Authorization": new}), 404, "M_NOT_FOUND")

    def test_questions_have_a_limit_for_each_server(self) -> None:
        rows = [row for row in self.inbound.routes() if row.access is Access.SERVER]
        unlimited = [row.path for row in rows if row.limit is None]
        self.assertEqual(unlimited, ["/_matrix/federation/v1/send/{txn_id}"])
        self.assertEqual({row.limit for row in rows if row.limit is not None}, {QUESTIONS})

    def test_a_refusal_by_the_room_is_passed_on(self) -> None:
        self.rooms.answers["state_ids_for_server"] = forbidden("You are not in this room.")
        self.refused(self.beta.get(f"/v1/state/{ROOM_PATH}", event_id=EVENT), 403, "M_FORBIDDEN")

    def test_bodies_that_nest_too_deeply(self) -> None:
        deep = b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}"
        for method, path in self.paths():
            if method != "GET":
                header = {"Authorization": f'X-Matrix origin="beta.test",key="ed25519:one",sig="{"A" * 86}"'}
                answer = self.web.request(method, path, deep, headers=header)
                self.turns()
                self.assertIn(answer.status, (400, 401, 429), path)
                self.assertEqual(orjson.loads(answer.body)["errcode"][:2], "M_")
