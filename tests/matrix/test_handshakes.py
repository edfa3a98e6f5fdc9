"""Two servers and a room: Bob of b.example wants in, and a.example, where Alice is, may let him."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Any
from urllib.parse import unquote

import msgspec
import orjson
from hypothesis import given
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.matrix import events
from dendrite_tw.matrix.admission import FetchKeys, VerifyKey
from dendrite_tw.matrix.auth_rules import auth_event_keys
from dendrite_tw.matrix.errors import MatrixError
from dendrite_tw.matrix.events import Event
from dendrite_tw.matrix.handshakes import (
    JOIN,
    KNOCK,
    LEAVE,
    IsJoined,
    Joined,
    Kind,
    Pause,
    Place,
    Reply,
    Request,
    Signer,
    Wish,
    answer_invite,
    answer_join,
    exchange_request,
    exchange_token,
    invite,
    join,
    knock,
    leave,
    make_template,
    pieces,
    read_exchange,
    read_onbind,
    receive_invite,
    receive_membership,
    receive_old_invite,
)
from dendrite_tw.matrix.keys import signing_key
from dendrite_tw.matrix.room_versions import (
    ROOM_V1,
    ROOM_V7,
    ROOM_V10,
    ROOM_V11,
    ROOM_V12,
    ROOM_VERSIONS,
    RoomVersion,
)
from dendrite_tw.matrix.signing import encode_base64
from dendrite_tw.matrix.state_res import MemoryGraph

from .builders import ALICE, BOB, CAROL, KEY
from .strategies import bounded, json_values

NOW = 1_700_000_100_000
B_KEY = signing_key("ed25519:b", b"\2" * 32)
A = Signer("a.example", KEY.key_id, KEY.secret)
B = Signer("b.example", B_KEY.key_id, B_KEY.secret)
KEYS = {
    ("a.example", KEY.key_id): VerifyKey(KEY.verify_key, NOW + 10**9),
    ("b.example", B_KEY.key_id): VerifyKey(B_KEY.verify_key, NOW + 10**9),
}
VERSIONS = tuple(ROOM_VERSIONS)
ELSEWHERE = "!space:a.example"


def run(steps: Generator[Any, Any, Any], answer: Callable[[Any], Any]) -> Any:
    try:
        question = next(steps)
        while True:
            question = steps.send(answer(question))
    except StopIteration as done:
        return done.value


class Resident:
    """a.example with a room, asked by `Request`s."""

    def __init__(self, version: RoomVersion, rule: str = "public", *, born: int = NOW - 1000, **rules: Any) -> None:
        self.version = version
        self.born = born
        self.all: list[Event] = []
        self.state: dict[tuple[str, str], Event] = {}
        self.room_id: str | None = None if version.room_ids_as_hashes else "!room:a.example"
        create = {"room_version": version.identifier}
        if not version.implicit_room_creator:
            create["creator"] = ALICE
        self.create = self.put("m.room.create", create)
        self.room_id = self.create.room_id
        self.put("m.room.member", {"membership": "join"}, ALICE)
        self.put("m.room.power_levels", {"users": {} if version.privileged_creators else {ALICE: 100}})
        self.put("m.room.join_rules", {"join_rule": rule, **rules})
        self.put("m.room.name", {"name": "Verona"})
        self.joined_elsewhere: dict[str, bool | None] = {}
        self.requests: list[Request] = []
        self.replies: dict[str, Any] = {}
        """By endpoint: a `Reply` instead, or a function that changes the answer."""

    def put(
        self, type: str, content: Mapping[str, Any], state_key: str = "", sender: str = ALICE, **more: Any
    ) -> Event:
        keys = auth_event_keys(version=self.version, type=type, sender=sender, state_key=state_key, content=content)
        event = events.build_event(
            self.version,
            room_id=self.room_id,
            sender=sender,
            type=type,
            content=content,
            state_key=state_key,
            prev_events=[self.all[-1].event_id] if self.all else [],
            auth_events=more.get("authorities") or [self.state[key].event_id for key in keys if key in self.state],
            depth=len(self.all) + 1,
            origin_server_ts=self.born + len(self.all),
            server_name="a.example",
            key_id=KEY.key_id,
            signing_key=KEY.secret,
            event_id=f"e{len(self.all)}",
            reference_hashes=self.hashes(),
        )
        self.all.append(event)
        self.state[type, state_key] = event
        return event

    def hashes(self) -> dict[str, str]:
        return {one.event_id: encode_base64(events.reference_hash(one.pdu_dict(), self.version)) for one in self.all}

    def place(self) -> Place:
        assert self.room_id is not None
        local = [key[1] for key, one in self.state.items() if one.membership == "join" and key[1].endswith("a.example")]
        last = [self.all[-1].event_id]
        return Place(self.version, self.room_id, self.state, last, len(self.all) + 1, local, self.hashes())

    def answer(self, question: Any) -> Any:
        match question:
            case FetchKeys(requests):
                wanted = {(one.server_name, key_id) for one in requests for key_id in one.key_ids}
                return {key: value for key, value in KEYS.items() if key in wanted}
            case IsJoined(room_id, user_id):
                assert (room_id, user_id) == (ELSEWHERE, BOB) or room_id != ELSEWHERE
                return self.joined_elsewhere.get(room_id)
            case Pause():
                return None
            case Request():
                return self.serve(question)

    def serve(self, request: Request) -> Reply | None:
        self.requests.append(request)
        if request.server_name != "a.example":
            return None
        version, endpoint, *parts = map(unquote, request.path.removeprefix("/_matrix/federation/").split("/"))
        special = self.replies.get(f"{version}/{endpoint}")
        if isinstance(special, Reply):
            return special
        try:
            content = self.handle(endpoint, parts, request)
        except MatrixError as error:
            return Reply(error.status, orjson.dumps(error.body()))
        if special is not None:
            content = special(content)
        return Reply(
            200, orjson.dumps([200, content] if version == "v1" and endpoint.startswith("send_j") else content)
        )

    def handle(self, endpoint: str, parts: list[str], request: Request) -> Any:
        kind = {"join": JOIN, "leave": LEAVE, "knock": KNOCK}[endpoint.partition("_")[2]]
        if endpoint.startswith("make_"):
            versions = [value for key, value in request.query if key == "ver"]
            steps = make_template(
                kind,
                self.place(),
                parts[1],
                origin="b.example",
                versions=versions,
                server_name="a.example",
                now_ms=NOW,
            )
            return run(steps, self.answer)
        received = self.receive(kind, orjson.dumps(request.content), parts[1])
        if kind is KNOCK:
            return {
                "knock_room_state": [orjson.loads(self.create.pdu), orjson.loads(self.state["m.room.name", ""].pdu)]
            }
        return self.join_answer(received.event, request) if kind is JOIN else {}

    def receive(self, kind: Kind, pdu: bytes, event_id: str) -> Any:
        steps = receive_membership(kind, pdu, self.place(), event_id=event_id, origin="b.example", signer=A, now_ms=NOW)
        return run(steps, self.answer)

    def join_answer(self, event: Event, request: Request) -> Any:
        graph = MemoryGraph(self.all)
        state = {key: graph.number(one.event_id) for key, one in self.state.items()}
        omit = ("omit_members", "true") in request.query
        answer = answer_join(event, state, graph, omit_members=omit, servers_in_room=["a.example"])
        return orjson.loads(b"".join(pieces(answer, graph)))

    def wish(self, *servers: str, **more: Any) -> Wish:
        assert self.room_id is not None
        return Wish(self.room_id, BOB, servers or ("a.example",), B, NOW, event_name="mine", **more)

    def join(self, *servers: str, omit_members: bool = False, **more: Any) -> Joined:
        found: Joined = run(join(self.wish(*servers, **more), omit_members=omit_members), self.answer)
        return found


class Case(SynchronousTestCase):
    def refused(self, errcode: str, call: Callable[..., Any], *args: Any, **more: Any) -> MatrixError:
        error = self.assertRaises(MatrixError, call, *args, **more)
        assert isinstance(error, MatrixError)
        self.assertEqual(error.errcode, errcode, error.error)
        return error


class JoinTests(Case):
    def test_every_room_version(self) -> None:
        for version in ROOM_VERSIONS.values():
            room = Resident(version)
            joined = room.join(content={"displayname": "Bob", "membership": "ban"})
            self.assertEqual(joined.event.content, {"displayname": "Bob", "membership": "join"})
            self.assertEqual(joined.event.origin_server_ts, NOW)
            self.assertEqual(
                {key: one.event_id for key, one in joined.state.items()},
                {key: one.event_id for key, one in room.state.items()},
                version,
            )
            self.assertEqual((joined.left_out, joined.partial, joined.version), ({}, False, version))

    def test_other_candidates_are_tried(self) -> None:
        room = Resident(ROOM_V11)
        self.assertEqual(room.join("x.example", "y.example", "a.example").resident, "a.example")
        self.assertEqual(
            [one.server_name for one in room.requests], ["x.example", "y.example", "a.example", "a.example"]
        )
        self.assertEqual(self.refused("M_UNKNOWN", room.join, "x.example").status, 502)
        self.refused("M_NOT_FOUND", run, join(msgspec.structs.replace(room.wish(), servers=())), room.answer)

    def test_the_most_telling_refusal_is_told(self) -> None:
        room = Resident(ROOM_V11, "invite")
        self.assertEqual(self.refused("M_FORBIDDEN", room.join, "x.example", "a.example", "y.example").status, 403)
        room.replies["v1/make_join"] = Reply(400, b'{"errcode":"M_INVALID_PARAM","error":"?"}')
        self.assertEqual(self.refused("M_INVALID_PARAM", room.join).status, 502)

    def test_room_versions(self) -> None:
        room = Resident(ROOM_V11)
        error = self.refused("M_INCOMPATIBLE_ROOM_VERSION", room.join, versions=["1", "2"])
        self.assertEqual((error.status, error.extra), (400, {"room_version": "11"}))
        room.replies["v1/make_join"] = lambda content: {**content, "room_version": "99"}
        self.refused("M_INCOMPATIBLE_ROOM_VERSION", room.join)
        room = Resident(ROOM_V10)
        room.replies["v1/make_join"] = lambda content: {**content, "room_version": "9"}
        self.assertIn("another version", self.refused("M_UNKNOWN", room.join).error)

    def test_a_template_of_something_else_is_refused(self) -> None:
        changes: list[dict[str, Any]] = [
            {"type": "m.room.message"},
            {"room_id": "!other:a.example"},
            {"sender": ALICE},
            {"state_key": ALICE},
            {"content": {"membership": "leave"}},
            {"content": None},
            {"auth_events": 7},
            {"depth": -1},
        ]
        for change in changes:
            room = Resident(ROOM_V11)
            room.replies["v1/make_join"] = lambda content, change=change: {
                **content,
                "event": {**content["event"], **change},
            }
            self.refused("M_UNKNOWN", room.join)
            self.assertEqual(len(room.requests), 1, "nothing was sent")

    def test_the_first_api(self) -> None:
        room = Resident(ROOM_V1)
        room.replies["v2/send_join"] = Reply(404, b'{"errcode":"M_UNRECOGNIZED","error":"?"}')
        self.assertEqual(len(room.join().state), len(room.state))
        self.assertTrue(room.requests[-1].path.startswith("/_matrix/federation/v1/send_join/"))

    def test_partial_state(self) -> None:
        for version in (ROOM_V1, ROOM_V11, ROOM_V12):
            room = Resident(version)
            joined = room.join(omit_members=True)
            self.assertTrue(joined.partial)
            self.assertEqual(joined.servers_in_room, ("a.example",))
            self.assertNotIn(("m.room.member", ALICE), joined.state)
            self.assertIn(("m.room.name", ""), joined.state)
            self.assertIn(ALICE, [one.state_key for one in joined.events])
        room.replies["v2/send_join"] = lambda content: {**content, "servers_in_room": []}
        self.refused("M_UNKNOWN", room.join, omit_members=True)
        room.replies["v2/send_join"] = lambda content: {**content, "members_omitted": True, "servers_in_room": ["a"]}
        self.refused("M_UNKNOWN", room.join)


class DescribedRoomTests(Case):
    """What the answer to a join may not get away with."""

    def change(self, version: RoomVersion, edit: Callable[[dict[str, Any]], Any]) -> Resident:
        room = Resident(version)

        def changed(content: dict[str, Any]) -> dict[str, Any]:
            edit(content)
            return content

        room.replies["v2/send_join"] = changed
        return room

    def test_malformed_answers(self) -> None:
        for body in (b"", b"[]", b"{}", b'{"state":7,"auth_chain":[]}', b'{"state":[],"auth_chain":[]}'):
            room = Resident(ROOM_V11)
            room.replies["v2/send_join"] = Reply(200, body)
            self.refused("M_UNKNOWN", room.join)

    def test_a_forged_event_is_left_out_with_what_builds_on_it(self) -> None:
        def forge(content: dict[str, Any]) -> None:
            for events_ in (content["state"], content["auth_chain"]):
                for pdu in events_:
                    if pdu["type"] == "m.room.name":
                        pdu["signatures"] = {"a.example": {KEY.key_id: "A" * 86}}

        for version in (ROOM_V11, ROOM_V12):
            joined = self.change(version, forge).join()
            self.assertNotIn(("m.room.name", ""), joined.state)
            self.assertEqual(len(joined.left_out), 1)

    def test_without_its_authority_the_join_fails(self) -> None:
        for kind in ("m.room.create", "m.room.power_levels", "m.room.join_rules"):

            def drop(content: dict[str, Any], kind: str = kind) -> None:
                for key in ("state", "auth_chain"):
                    content[key] = [pdu for pdu in content[key] if pdu["type"] != kind]

            for version in (ROOM_V11, ROOM_V12):
                self.refused("M_UNKNOWN", self.change(version, drop).join)

    def test_two_events_in_one_place(self) -> None:
        room = Resident(ROOM_V11)
        old = room.state["m.room.name", ""]
        room.put("m.room.name", {"name": "Padua"})
        room.replies["v2/send_join"] = lambda content: {
            **content,
            "state": [*content["state"], orjson.loads(old.pdu)],
        }
        self.refused("M_UNKNOWN", room.join)

    def test_events_of_another_room_are_left_out(self) -> None:
        other = Resident(ROOM_V12, born=7)
        other.put("m.room.topic", {"topic": "not here"})
        for foreign in (other.all[-1], other.create):
            pdu = foreign.pdu_dict()

            def add(content: dict[str, Any], pdu: dict[str, Any] = pdu) -> None:
                content["state"].append(pdu)

            joined = self.change(ROOM_V12, add).join()
            self.assertEqual(list(joined.left_out), [foreign.event_id])

    def test_an_event_with_authority_that_it_should_not_name_is_left_out(self) -> None:
        room = Resident(ROOM_V11)
        keys = ("m.room.create", "m.room.power_levels", "m.room.join_rules")
        authorities = [room.state[key, ""].event_id for key in keys] + [room.state["m.room.member", ALICE].event_id]
        topic = room.put("m.room.topic", {"topic": "x"}, authorities=authorities)
        joined = room.join()
        self.assertEqual(list(joined.left_out), [topic.event_id])

    def test_a_join_that_the_state_forbids(self) -> None:
        room = Resident(ROOM_V11)
        ban = room.put("m.room.member", {"membership": "ban"}, BOB)
        del room.state["m.room.member", BOB]
        room.replies["v2/send_join"] = lambda content: {
            **content,
            "state": [*content["state"], orjson.loads(ban.pdu)],
        }
        self.refused("M_UNKNOWN", room.join)

    def test_another_join_than_ours(self) -> None:
        changes: list[dict[str, Any]] = [{"content": {"membership": "join", "x": 1}}, {"sender": ALICE}, {"depth": "x"}]
        for change in changes:

            def replace(content: dict[str, Any], change: dict[str, Any] = change) -> None:
                content["event"].update(change)

            self.refused("M_UNKNOWN", self.change(ROOM_V11, replace).join)
        self.change(ROOM_V11, lambda content: content.pop("event")).join()

    @bounded
    @given(json_values, json_values)
    def test_no_answer_raises_anything_else(self, one: Any, two: Any) -> None:
        room = Resident(ROOM_V11)
        for endpoint in ("v1/make_join", "v2/send_join"):
            for body in (one, {"state": one, "auth_chain": two}, {"event": one, "room_version": two}):
                room.replies[endpoint] = Reply(200, orjson.dumps(body))
                self.assertRaises(MatrixError, room.join)
        room.replies["v2/send_join"] = lambda content: {
            **content,
            "state": [*content["state"], one],
            "auth_chain": [two],
        }
        try:
            room.join()
        except MatrixError:
            return


class RestrictedTests(Case):
    allow = ({"type": "m.room_membership", "room_id": ELSEWHERE},)

    def room(self, version: RoomVersion = ROOM_V11, rule: str = "restricted", **more: Any) -> Resident:
        return Resident(version, rule, allow=more.pop("allow", list(self.allow)))

    def test_who_meets_a_condition_is_vouched_for(self) -> None:
        for version, rule in ((ROOM_V10, "knock_restricted"), (ROOM_V11, "restricted"), (ROOM_V12, "restricted")):
            room = self.room(version, rule)
            room.joined_elsewhere[ELSEWHERE] = True
            joined = room.join()
            self.assertEqual(joined.event.content["join_authorised_via_users_server"], ALICE)
            self.assertEqual(set(events.signatures(joined.event)), {"a.example", "b.example"})

    def test_who_meets_none_is_refused(self) -> None:
        room = self.room()
        room.joined_elsewhere[ELSEWHERE] = False
        self.assertEqual(self.refused("M_FORBIDDEN", room.join).status, 403)
        for allow in ([], "x", [7, {}, {"type": "m.room_membership"}, {"type": "other", "room_id": ELSEWHERE}]):
            self.assertEqual(self.refused("M_FORBIDDEN", self.room(allow=allow).join).status, 403)

    def test_where_nothing_can_be_seen(self) -> None:
        self.assertEqual(self.refused("M_UNABLE_TO_AUTHORISE_JOIN", self.room().join).status, 400)

    def test_where_nobody_may_invite(self) -> None:
        room = self.room()
        room.put("m.room.power_levels", {"users": {ALICE: 100}, "invite": 101})
        room.joined_elsewhere[ELSEWHERE] = True
        self.assertEqual(self.refused("M_UNABLE_TO_GRANT_JOIN", room.join).status, 400)

    def test_the_invited_need_nobody(self) -> None:
        room = self.room()
        room.put("m.room.member", {"membership": "invite"}, BOB)
        self.assertNotIn("join_authorised_via_users_server", room.join().event.content)

    def test_a_voucher_that_was_never_given_is_not_signed(self) -> None:
        """Bob's server writes Alice's name into the join by itself."""
        room = self.room()
        room.joined_elsewhere[ELSEWHERE] = True
        forged: list[tuple[bytes, str]] = []
        room.replies["v1/make_join"] = lambda content: content
        wish = room.wish()
        for question in self.requests(join(wish), room):
            if "send_join" in question.path:
                forged.append((orjson.dumps(question.content), unquote(question.path.rpartition("/")[2])))
                break
        (pdu, event_id), *_ = forged
        self.assertIn("a.example", room.receive(JOIN, pdu, event_id).signatures)
        room.joined_elsewhere[ELSEWHERE] = False
        self.refused("M_FORBIDDEN", room.receive, JOIN, pdu, event_id)
        room.joined_elsewhere[ELSEWHERE] = True
        room.put("m.room.power_levels", {"users": {ALICE: 50, "@dora:a.example": 90}, "invite": 60})
        room.put("m.room.member", {"membership": "join"}, "@dora:a.example", "@dora:a.example")
        self.refused("M_UNABLE_TO_GRANT_JOIN", room.receive, JOIN, pdu, event_id)
        room.put("m.room.join_rules", {"join_rule": "invite"})
        self.refused("M_FORBIDDEN", room.receive, JOIN, pdu, event_id)
        room.put("m.room.member", {"membership": "invite"}, BOB)
        room.receive(JOIN, pdu, event_id)

    def requests(self, steps: Generator[Any, Any, Any], room: Resident) -> Generator[Request, None, None]:
        question = next(steps)
        while True:
            if isinstance(question, Request):
                yield question
            question = steps.send(room.answer(question))

    def test_an_answer_without_the_voucher_s_signature(self) -> None:
        room = self.room()
        room.joined_elsewhere[ELSEWHERE] = True
        room.replies["v2/send_join"] = lambda content: {key: one for key, one in content.items() if key != "event"}
        self.refused("M_UNKNOWN", room.join)


class ResidentTests(Case):
    """What a resident server does not take."""

    def sent(self, room: Resident, **change: Any) -> tuple[bytes, str]:
        joined = room.join()
        fields = {**joined.event.pdu_dict(), **change}
        if not change:
            return joined.event.pdu, joined.event.event_id
        signed = events.finish_event(
            fields, room.version, server_name="b.example", key_id=B.key_id, signing_key=B.secret
        )
        return signed.pdu, signed.event_id

    def test_what_is_no_join_of_the_asking_server(self) -> None:
        changes: list[dict[str, Any]] = [
            {"type": "m.room.message"},
            {"content": {"membership": "leave"}},
            {"content": {}},
            {"state_key": CAROL},
            {"room_id": "!other:a.example"},
        ]
        for change in changes:
            room = Resident(ROOM_V11)
            pdu, event_id = self.sent(room, **change)
            self.refused("M_INVALID_PARAM", room.receive, JOIN, pdu, event_id)
        room = Resident(ROOM_V11)
        for user in (ALICE, CAROL):
            pdu, event_id = self.sent(room, sender=user, state_key=user)
            self.assertIn("that asks", self.refused("M_FORBIDDEN", room.receive, JOIN, pdu, event_id).error)
        pdu, event_id = self.sent(room)
        room.receive(JOIN, pdu, event_id)
        self.refused("M_INVALID_PARAM", room.receive, JOIN, pdu, "$other")
        self.refused("M_INVALID_PARAM", room.receive, KNOCK, pdu, event_id)
        self.refused("M_FORBIDDEN", room.receive, JOIN, b"{}", event_id)
        self.refused("M_BAD_JSON", room.receive, JOIN, b'{"hashes":{},"signatures":{}}', event_id)
        self.refused("M_BAD_JSON", room.receive, JOIN, b"{", event_id)
        unsigned = orjson.dumps({**orjson.loads(pdu), "signatures": {}})
        self.refused("M_FORBIDDEN", room.receive, JOIN, unsigned, event_id)
        altered = orjson.loads(pdu)
        altered["content"]["displayname"] = "Mallory"
        self.refused("M_INVALID_PARAM", room.receive, JOIN, orjson.dumps(altered), event_id)

    def test_templates_are_for_users_of_the_asking_server(self) -> None:
        room = Resident(ROOM_V11)
        for user, origin in ((ALICE, "b.example"), ("x", "b.example"), (BOB, "c.example")):
            steps = make_template(
                JOIN, room.place(), user, origin=origin, versions=VERSIONS, server_name="a.example", now_ms=NOW
            )
            self.refused("M_FORBIDDEN", run, steps, room.answer)


class LeaveAndKnockTests(Case):
    def test_an_invite_is_refused_by_leaving(self) -> None:
        for version in (ROOM_V1, ROOM_V11, ROOM_V12):
            room = Resident(version, "invite")
            room.put("m.room.member", {"membership": "invite"}, BOB)
            left = run(leave(room.wish(content={"reason": "no"})), room.answer)
            self.assertEqual(left.event.content, {"membership": "leave", "reason": "no"})

    def test_who_is_not_there_cannot_leave(self) -> None:
        room = Resident(ROOM_V11)
        self.refused("M_FORBIDDEN", run, leave(room.wish()), room.answer)

    def test_knocking(self) -> None:
        for version in (ROOM_V7, ROOM_V11, ROOM_V12):
            room = Resident(version, "knock")
            knocked = run(knock(room.wish(content={"reason": "please"})), room.answer)
            self.assertEqual(knocked.event.content, {"membership": "knock", "reason": "please"})
            self.assertEqual([one["type"] for one in knocked.state], ["m.room.create", "m.room.name"])
        room = Resident(ROOM_V11, "public")
        self.refused("M_FORBIDDEN", run, knock(room.wish()), room.answer)


class InviteTests(Case):
    def invited(self, version: RoomVersion) -> tuple[Resident, Event]:
        room = Resident(version)
        return room, room.put("m.room.member", {"membership": "invite"}, BOB)

    def body(self, room: Resident, event: Event, /, **change: Any) -> dict[str, Any]:
        return {
            "room_version": room.version.identifier,
            "event": event.pdu_dict(),
            "invite_room_state": [room.create.pdu_dict(), room.state["m.room.name", ""].pdu_dict()],
            **change,
        }

    def receive(self, room: Resident, event: Event, body: dict[str, Any], **change: Any) -> Any:
        arguments = {
            "room_id": event.room_id,
            "event_id": event.event_id,
            "origin": "a.example",
            "signer": B,
            "now_ms": NOW,
        }
        return run(receive_invite(body, **{**arguments, **change}), room.answer)

    def test_both_sides(self) -> None:
        for version in (ROOM_V1, ROOM_V11, ROOM_V12):
            room, event = self.invited(version)
            shown: list[dict[str, Any]] = []

            def answer(question: Any, room: Resident = room, event: Event = event, shown: list[Any] = shown) -> Any:
                if not isinstance(question, Request):
                    return room.answer(question)
                self.assertEqual(question.server_name, "b.example")
                found = self.receive(room, event, orjson.loads(orjson.dumps(question.content)))
                shown.extend(found.state)
                return Reply(200, orjson.dumps(answer_invite(found.event)))

            signed = run(invite(event, [room.create, room.state["m.room.name", ""]], now_ms=NOW), answer)
            self.assertEqual(set(events.signatures(signed)), {"a.example", "b.example"})
            self.assertEqual([one["type"] for one in shown], ["m.room.create", "m.room.name"])

    def test_the_first_api(self) -> None:
        room, event = self.invited(ROOM_V1)
        paths = []

        def answer(question: Any) -> Any:
            if not isinstance(question, Request):
                return room.answer(question)
            paths.append(question.path.split("/")[3])
            if paths[-1] == "v2":
                return Reply(404, b"")
            body = orjson.loads(orjson.dumps(question.content))
            steps = receive_old_invite(
                body, room_id=event.room_id, event_id=event.event_id, origin="a.example", signer=B, now_ms=NOW
            )
            found = run(steps, room.answer)
            self.assertEqual([one["type"] for one in found.state], ["m.room.create"])
            return Reply(200, orjson.dumps(answer_invite(found.event, old=True)))

        signed = run(invite(event, [room.create], now_ms=NOW), answer)
        self.assertEqual(paths, ["v2", "v1"])
        self.assertIn("b.example", events.signatures(signed))

    def test_an_inviter_wants_a_real_signature(self) -> None:
        room, event = self.invited(ROOM_V11)
        forged = {"event": {"signatures": {"b.example": {B.key_id: "A" * 86}}}}
        bodies: list[Any] = [{}, [], {"event": event.pdu_dict()}, forged, {"event": {"signatures": 7}}, None]
        for body in bodies:
            reply = None if body is None else Reply(200, orjson.dumps(body))
            error = self.refused("M_UNKNOWN", self.ask, room, event, reply)
            self.assertEqual(error.status, 502)
        unfit = Reply(200, orjson.dumps({"event": {**event.pdu_dict(), "extra": 1.5}}))
        self.assertEqual(self.refused("M_BAD_JSON", self.ask, room, event, unfit).status, 400)
        refusal = Reply(403, b'{"errcode":"M_INVITE_BLOCKED","error":"no"}')
        self.assertEqual(self.refused("M_INVITE_BLOCKED", self.ask, room, event, refusal).status, 403)

    def ask(self, room: Resident, event: Event, reply: Reply | None) -> Any:
        def answer(question: Any) -> Any:
            return reply if isinstance(question, Request) else room.answer(question)

        return run(invite(event, [room.create], now_ms=NOW), answer)

    def test_what_is_no_invite_of_a_user_here(self) -> None:
        for version in (ROOM_V11, ROOM_V12):
            room, event = self.invited(version)
            self.receive(room, event, self.body(room, event))
            join_of_alice = room.state["m.room.member", ALICE]
            to_carol = room.put("m.room.member", {"membership": "invite"}, CAROL)
            for other in (join_of_alice, to_carol, room.create):
                self.refused("M_INVALID_PARAM", self.receive, room, other, self.body(room, other))
            self.refused("M_FORBIDDEN", self.receive, room, event, self.body(room, event), origin="c.example")
            self.refused("M_INVALID_PARAM", self.receive, room, event, self.body(room, event), event_id="$other")
            self.refused("M_INVALID_PARAM", self.receive, room, event, self.body(room, event), room_id="!other:x")
            unsigned = {**event.pdu_dict(), "signatures": {}}
            self.refused("M_FORBIDDEN", self.receive, room, event, self.body(room, event, event=unsigned))
            altered = {**event.pdu_dict(), "content": {"membership": "invite", "displayname": "Mallory"}}
            self.refused("M_INVALID_PARAM", self.receive, room, event, self.body(room, event, event=altered))
            self.refused("M_BAD_JSON", self.receive, room, event, self.body(room, event, event={}))
            self.refused("M_MISSING_PARAM", self.receive, room, event, {})
            unknown = self.body(room, event, room_version="99")
            error = self.refused("M_INCOMPATIBLE_ROOM_VERSION", self.receive, room, event, unknown)
            self.assertEqual(error.extra, {"room_version": "99"})

    def test_the_state_that_is_shown(self) -> None:
        stripped = {"type": "m.room.create", "state_key": "", "sender": ALICE, "content": {}}
        other = Resident(ROOM_V12, born=7)
        bad: list[Any] = [[], [7], [stripped], None, [other.create.pdu_dict()]]
        for state in bad:
            room, event = self.invited(ROOM_V12)
            body = self.body(room, event, invite_room_state=state)
            self.refused("M_INVALID_PARAM", self.receive, room, event, body)
        del body["invite_room_state"]
        self.refused("M_MISSING_PARAM", self.receive, room, event, body)
        room, event = self.invited(ROOM_V11)
        found = self.receive(room, event, self.body(room, event, invite_room_state=[stripped, 7, {"type": 1}]))
        self.assertEqual(found.state, [stripped])
        self.assertEqual(len(found.faults), 2)
        forged = {**room.create.pdu_dict(), "content": {"room_version": "11", "m.federate": False}}
        found = self.receive(room, event, self.body(room, event, invite_room_state=[forged]))
        self.assertEqual(found.state, [], "an event that was signed is not shown as stripped state")


class ThirdPartyTests(Case):
    def setUp(self) -> None:
        self.room = Resident(ROOM_V11)
        self.waiting = self.room.put("m.room.third_party_invite", {"display_name": "b…@…"}, "tok")
        self.signed = {"mxid": BOB, "token": "tok", "signatures": {"id.example": {"ed25519:0": "x"}}}
        entry = {"mxid": BOB, "room_id": self.room.room_id, "sender": ALICE, "signed": self.signed}
        self.onbind = {"medium": "email", "address": "b@b.example", "mxid": BOB, "invites": [entry]}

    def read(self, body: Mapping[str, Any], waiting: Event | None) -> Any:
        assert self.room.room_id is not None
        return read_exchange(body, room_id=self.room.room_id, third_party_invite=waiting, server_name="a.example")

    def test_the_whole_way(self) -> None:
        (bound,) = read_onbind(self.onbind, server_name="b.example")
        request = exchange_request(bound, "bob")
        self.assertEqual((request.server_name, request.method), ("a.example", "PUT"))
        assert request.content is not None
        self.assertEqual(exchange_token(request.content), "tok")
        exchange = self.read(request.content, self.waiting)
        self.assertEqual((exchange.sender, exchange.target), (ALICE, BOB))
        invited = {"display_name": "b…@…", "signed": self.signed}
        self.assertEqual(exchange.content, {"membership": "invite", "third_party_invite": invited})

    def test_what_is_refused(self) -> None:
        (bound,) = read_onbind(self.onbind, server_name="b.example")
        good = exchange_request(bound, "bob").content
        assert good is not None
        content = good["content"]
        malformed: list[dict[str, Any]] = [
            {"type": "m.room.message"},
            {"room_id": "!other:a.example"},
            {"sender": 7},
            {"state_key": "x"},
            {"state_key": CAROL},
            {"content": {}},
            {"content": {**content, "membership": "join"}},
            {"content": {**content, "third_party_invite": {"signed": {**self.signed, "token": 7}}}},
        ]
        for change in malformed:
            self.refused("M_INVALID_PARAM", self.read, {**good, **change}, self.waiting)
        self.refused("M_FORBIDDEN", self.read, {**good, "sender": CAROL}, self.waiting)
        self.refused("M_FORBIDDEN", self.read, {**good, "sender": "@dora:a.example"}, self.waiting)
        self.refused("M_FORBIDDEN", self.read, good, None)
        self.assertIsNone(exchange_token({}))

    def test_onbind(self) -> None:
        wrong: list[dict[str, Any]] = [{"mxid": ALICE}, {"mxid": "x"}, {"invites": 7}, {"invites": [{}] * 101}]
        for change in wrong:
            self.refused("M_INVALID_PARAM", read_onbind, {**self.onbind, **change}, server_name="b.example")
        (entry,) = self.onbind["invites"]
        assert isinstance(entry, dict)
        odd: list[dict[str, Any]] = [{"mxid": CAROL}, {"room_id": "x"}, {"sender": "x"}, {"signed": {}}, {"signed": 7}]
        for change in odd:
            body = {**self.onbind, "invites": [7, {**entry, **change}]}
            self.assertEqual(read_onbind(body, server_name="b.example"), [])
