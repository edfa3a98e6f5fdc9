"""Bad input from other servers, end to end: refused as specified, logged once, never a 500, and no memory grows.

A whole server of ours, a user on it, and `tests.simulation.villain`, which is in one of its rooms.
"""

from __future__ import annotations

import gc
import random
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson
from twisted.internet.defer import Deferred
from twisted.logger import LogLevel, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

import dendrite_tw
from dendrite_tw.matrix.events import Event
from dendrite_tw.matrix.keys import signing_key
from dendrite_tw.matrix.transactions import MAX_TRANSACTION_BYTES
from tests.simulation.host import Host
from tests.simulation.invariants import ACCEPTED, statuses
from tests.simulation.network import Network, Request, Weather
from tests.simulation.people import Person
from tests.simulation.storm import SHARED_MEMORY
from tests.simulation.timing import EPOCH, SharedClock
from tests.simulation.trace import Trace
from tests.simulation.villain import NAME, Seat, Villain, response

GROWTH_BYTES = 100_000
"""What may be left behind by a hundred attacks, names of servers in lists that are bounded and not full yet."""


PATIENCE = 150.0
"""Seconds that a user waits at most: for media, of which the whole file must come in that time."""


class HostileCase(SynchronousTestCase):
    """``a.test`` with Alice on it, and the villain in her room."""

    version = "10"

    def setUp(self) -> None:
        where = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
        folder = tempfile.TemporaryDirectory(prefix="hostile-", dir=where)
        self.addCleanup(folder.cleanup)
        self.clock = SharedClock()
        self.trace = Trace(lambda: self.clock.seconds() - EPOCH)
        self.network = Network(self.clock, self.trace, Weather("calm"))
        self.host = Host("a.test", Path(folder.name) / "a", self.network, "hostile")
        self.logged: list[str] = []
        globalLogPublisher.addObserver(self._log)
        self.addCleanup(globalLogPublisher.removeObserver, self._log)
        self.addCleanup(self.host.stop)
        started = self.host.start()
        self.clock.run_until(lambda: bool(started.called), 30)
        self.alice = Person(self.host, "alice", self.trace, "hostile")
        self.finish(self.alice.register())
        self.watching = Deferred.fromCoroutine(self.alice.watch())
        self.villain = Villain(self.network, "a.test")
        self.room = self.create()
        self.seat = Seat(self.villain, self.room, self.version)
        self.clock.run(1)
        self.addCleanup(self.still_well)

    def still_well(self) -> None:
        """Whatever was done to it, the server works and has nothing to complain of."""
        self.villain.answers.clear()
        self.finish(self.alice.say(self.room, "I am still here."))
        self.alice.gone = True
        self.assertEqual(self.alice.said[-1].text, "I am still here.")
        self.assertEqual(self.trace.problems, [])

    def _log(self, event: Any) -> None:
        text = formatEvent(event)
        if event.get("log_level") in (LogLevel.error, LogLevel.critical):
            self.trace.problem("log", text)
        self.logged.append(text)

    def finish(self, coroutine: Any, seconds: float = 200.0) -> Any:
        """What comes of it, with all that happens meanwhile."""
        done = Deferred.fromCoroutine(coroutine)
        if not self.clock.run_until(lambda: bool(done.called), seconds):
            self.fail("it takes too long:\n" + "\n".join(self.trace.lines[-15:]))
        return self.successResultOf(done)

    def create(self, **options: Any) -> str:
        """A public room of Alice's."""
        body = {"preset": "public_chat", "room_version": self.version, **options}
        room: str = self.finish(self.alice.do("creates", "POST", "/createRoom", body)).json["room_id"]
        return room

    def call(self, method: str, path: str, body: Any = None, seconds: float = 200.0) -> Any:
        """The answer to a request of Alice's."""
        return self.finish(self.alice.ask(method, path, body), seconds)

    def status(self, event_id: str, room: str = "") -> int | None:
        """What the server thinks of an event: nothing if it has not kept it."""
        found = statuses(self.host, room or self.room).get(event_id)
        return None if found is None else found[0]

    def is_shown(self, event_id: str, room: str = "") -> bool:
        """Whether Alice's client has an event."""
        view = self.alice.rooms.get(room or self.room)
        return view is not None and event_id in view.shown

    def assert_refused(self, event_id: str, room: str = "") -> None:
        """The event is nowhere to be seen, and the log says so once."""
        self.assertNotEqual(self.status(event_id, room), ACCEPTED)
        self.assertFalse(self.is_shown(event_id, room))
        path = f"/rooms/{quote(room or self.room)}/event/{quote(event_id)}"
        self.assertEqual(self.call("GET", path).status, 404)
        mentioned = [text for text in self.logged if event_id in text]
        self.assertEqual(len(mentioned), 1, mentioned)

    def assert_taken(self, event: Event) -> None:
        """What comes as it should is taken: the refusals are not for another reason."""
        answer = self.villain.send([event])
        self.assertEqual((answer.status, answer.json), (200, {"pdus": {event.event_id: {}}}))
        self.assertEqual(self.status(event.event_id, event.room_id), ACCEPTED)
        self.assertTrue(self.is_shown(event.event_id, event.room_id))


class EventsTests(HostileCase):
    """Events that are not what they should be."""

    def test_a_forged_signature(self) -> None:
        """Signed by another key than that of the sender's server, or not at all."""
        self.assert_taken(self.seat.make("honest"))
        honest = self.villain.key
        self.villain.key = signing_key(honest.key_id, b"f" * 32)
        forged = self.seat.make("forged").pdu_dict()
        self.villain.key = honest
        unsigned = {**self.seat.make("unsigned").pdu_dict(), "signatures": {}}
        nonsense = self.seat.make("nonsense").pdu_dict()
        nonsense["signatures"][NAME][honest.key_id] = "A" * 86
        for pdu in (forged, unsigned, nonsense):
            answer = self.villain.send([pdu])
            self.assertEqual(answer.status, 200)
            (event_id,) = answer.json["pdus"]
            self.assert_refused(event_id)

    def test_an_event_in_the_name_of_another_server(self) -> None:
        """The villain's signature under a sender whose server never saw it."""
        for sender in (self.alice.user_id, "@nobody:far.test"):
            event = self.seat.make("never said", sender=sender)
            self.villain.send([event])
            self.assert_refused(event.event_id)

    def test_a_wrong_hash(self) -> None:
        """Content that was changed after it was signed is taken as redacted (receipt of a PDU, step 3)."""
        pdu = self.seat.make("before").pdu_dict()
        pdu["content"]["body"] = "after"
        answer = self.villain.send([pdu])
        (event_id,) = answer.json["pdus"]
        self.assertEqual(self.status(event_id), ACCEPTED)
        shown = self.call("GET", f"/rooms/{quote(self.room)}/event/{quote(event_id)}").json
        self.assertEqual(shown["content"], {})

    def test_events_of_other_rooms(self) -> None:
        """A room that the villain is not in; auth events and history of another room."""
        other = self.create(preset="private_chat")
        self.clock.run(1)
        intruder = self.seat.make("intruder", room_id=other)
        self.villain.send([intruder])
        self.assert_refused(intruder.event_id, other)
        public = self.create()
        self.clock.run(1)
        seat = Seat(self.villain, public, self.version)
        borrowed = seat.make("borrowed authority", auth_events=self.seat.auth())
        self.villain.send([borrowed])
        self.assert_refused(borrowed.event_id, public)
        strange = seat.make("strange past", prev_events=[self.seat.last.event_id])
        self.villain.send([strange])
        self.assertNotEqual(self.status(strange.event_id, public), ACCEPTED)
        self.assertFalse(self.is_shown(strange.event_id, public))
        self.assert_taken(seat.make("honest"))

    def test_an_unknown_room(self) -> None:
        """Of which version it is nobody can say, and so not how its events are called."""
        event = self.seat.make("hello", room_id="!nowhere:evil.test")
        answer = self.villain.send([event])
        self.assertEqual((answer.status, answer.json), (200, {"pdus": {}}))
        self.assertIsNone(self.status(event.event_id, "!nowhere:evil.test"))

    def test_more_references_than_are_allowed(self) -> None:
        """21 prev_events, 11 auth_events, and ten thousand of either."""
        known = self.seat.last.event_id
        for count in (21, 500):
            self.refused_or_ignored({"prev_events": [known, *("$" + f"{n:043}" for n in range(count - 1))]})
            self.refused_or_ignored({"auth_events": [*self.seat.auth(), *("$" + f"{n:043}" for n in range(count))]})
        pdu = {**self.seat.make("x").pdu_dict(), "prev_events": ["$" + f"{n:043}" for n in range(10_000)]}
        self.assertEqual(self.villain.send([pdu]).status, 200)
        self.assertLess(len(self.villain.asked), 40, "the villain was believed too much")

    def refused_or_ignored(self, fields: dict[str, Any]) -> None:
        """A PDU that is none: it is not taken, and nothing is asked for its sake."""
        pdu = {**self.seat.make("x").pdu_dict(), **fields}
        before = len(self.villain.asked)
        answer = self.villain.send([pdu])
        self.assertEqual(answer.status, 200)
        self.assertEqual([text for text in self.villain.asked[before:] if "missing" in text or "state" in text], [])

    def test_a_past_that_nobody_has(self) -> None:
        """Events that refer to ever more events which the villain will not give."""
        before = len(self.villain.asked)
        for number in range(30):
            unknown = ["$" + f"{number * 20 + n:043}" for n in range(20)]
            event = self.seat.make("lost", prev_events=unknown)
            self.villain.send([event])
            self.assertNotEqual(self.status(event.event_id), ACCEPTED)
        self.assertLess(len(self.villain.asked) - before, 100, "it is asked less and less")

    def test_a_past_without_end(self) -> None:
        """Whatever is asked for, there is something before it."""

        def earlier(request: Request) -> Any:
            wanted = orjson.loads(request.body or b"{}")["latest_events"]
            return {
                "events": [
                    self.seat.make("x", prev_events=["$" + f"{hash(one) % 10**43:043}"]).pdu_dict() for one in wanted
                ]
            }

        self.villain.answers["get_missing_events"] = earlier
        before = len(self.villain.asked)
        event = self.seat.make("x", prev_events=["$" + "1" * 43])
        self.villain.send([event])
        self.assertNotEqual(self.status(event.event_id), ACCEPTED)
        self.assertLess(len(self.villain.asked) - before, 40)

    def test_a_depth_beyond_measure(self) -> None:
        """The greatest depth there is: rooms go on after it."""
        deep = self.seat.make("deep", depth=2**53 - 1)
        self.villain.send([deep])
        self.finish(self.alice.say(self.room, "after the deep one"))
        self.seat.last = deep
        self.assert_taken(self.seat.make("deeper", depth=2**53 - 1))
        for depth in (-1, 2**53, 2**70, 1.5, "7", None):
            answer = self.villain.send([{**self.seat.make("x").pdu_dict(), "depth": depth}])
            self.assertEqual(answer.status, 200)

    def test_nested_without_measure(self) -> None:
        """JSON as deep as it may be, and much deeper: in a PDU, in an EDU, around them."""
        for levels in (60, 300, 5_000, 100_000):
            bomb = b"[" * levels + b"]" * levels
            pdu = orjson.dumps(self.seat.make("bomb").pdu_dict()).replace(b'"bomb"', bomb)
            for body in (
                b'{"origin":"evil.test","origin_server_ts":1,"pdus":[%b]}' % pdu,
                b'{"origin":"evil.test","origin_server_ts":1,"pdus":[],"edus":[{"edu_type":"m.typing","content":%b}]}'
                % bomb,
                b'{"origin":"evil.test","origin_server_ts":1,"pdus":%b}' % bomb,
                bomb,
            ):
                answer = self.villain.ask("PUT", f"/_matrix/federation/v1/send/n{levels}{len(body)}", body)
                self.assertIn(answer.status, (200, 400, 401), answer)
        self.clock.run(5)

    def test_ten_megabytes(self) -> None:
        """A body that is too large is refused as such; so is an event."""
        body = b'{"origin":"evil.test","origin_server_ts":1,"pdus":[],"edus":[],"x":"%b"}' % (
            b"x" * MAX_TRANSACTION_BYTES
        )
        answer = self.villain.ask("PUT", "/_matrix/federation/v1/send/big", body)
        self.assertEqual((answer.status, answer.json["errcode"]), (413, "M_TOO_LARGE"))
        pdu = self.seat.make("x").pdu_dict()
        pdu["content"]["body"] = "x" * 70_000
        answer = self.villain.send([pdu])
        self.assertEqual(answer.status, 200)
        self.assertEqual([view for view in self.alice.rooms[self.room].shown if view in answer.json["pdus"]], [])

    def test_anything_at_all(self) -> None:
        """Honest events with parts of them replaced, left out, or doubled: some are taken, and none does harm."""
        chance = random.Random("anything at all")
        junk: list[Any] = [
            None,
            True,
            -1,
            2**60,
            1.5,
            "",
            "x",
            "\x00",
            "$",
            "@",
            "@:",
            "é" * 300,
            [],
            [[]],
            {},
            {"x": {}},
        ]
        for _ in range(25):
            pdus = []
            for number in range(12):
                pdu = self.seat.make(f"{number}").pdu_dict()
                for _ in range(chance.randint(1, 3)):
                    part = chance.choice([*pdu, "state_key", "redacts", "unsigned", "event_id", "origin"])
                    if chance.random() < 0.2:
                        pdu.pop(part, None)
                    else:
                        pdu[part] = chance.choice(junk)
                pdus.append(pdu)
            self.assertEqual(self.villain.send(pdus).status, 200)
        self.assert_taken(self.seat.make("honest"))

    def test_edus_of_any_kind(self) -> None:
        """Every kind of EDU with every kind of content, and for users who are not the villain's."""
        junk: list[Any] = [None, True, -1, 2**60, 1.5, "", "x", [], [[]], {}, {"x": {}}, {self.room: {"m.read": {}}}]
        kinds = (
            "m.typing",
            "m.receipt",
            "m.presence",
            "m.direct_to_device",
            "m.device_list_update",
            "m.signing_key_update",
        )
        fields = (
            "room_id",
            "user_id",
            "typing",
            "push",
            "sender",
            "messages",
            "message_id",
            "type",
            "device_id",
            "stream_id",
            "keys",
            "master_key",
            self.room,
        )
        chance = random.Random("edus")
        for kind in (*kinds, "org.example.unknown", "", 7, None):
            edus: list[Any] = [{"edu_type": kind, "content": content} for content in junk]
            for _ in range(40):
                content = {field: chance.choice([*junk, self.alice.user_id, self.villain.user_id]) for field in fields}
                edus.append({"edu_type": kind, "content": content})
            self.assertEqual(self.villain.send([], edus).status, 200)
        self.assertEqual(self.alice.notes, [])


class FirstRoomsTests(HostileCase):
    """Rooms of version 1, whose events have names that servers choose."""

    version = "1"

    def test_a_circle(self) -> None:
        """Two events that each come after the other."""
        first = self.seat.make("first", event_id="$one:evil.test", prev_events=["$two:evil.test"])
        second = self.seat.make("second", event_id="$two:evil.test", prev_events=["$one:evil.test"])
        by_id = {event.event_id: event for event in (first, second)}
        self.villain.answers["get_missing_events"] = lambda request: {"events": [second.pdu_dict(), first.pdu_dict()]}
        self.villain.answers["/event/"] = lambda request: {
            "pdus": [by_id["$one:evil.test" if "one" in request.target else "$two:evil.test"].pdu_dict()]
        }
        before = len(self.villain.asked)
        self.villain.send([first, second])
        self.assertLess(len(self.villain.asked) - before, 60)
        for event in (first, second):
            self.assertFalse(self.is_shown(event.event_id))

    def test_an_event_after_itself(self) -> None:
        """It names itself as what came before, or as what authorises it."""
        for number, fields in enumerate(({"prev_events": ["$self0:evil.test"]}, {"auth_events": ["$self1:evil.test"]})):
            event = self.seat.make("self", event_id=f"$self{number}:evil.test", **fields)
            self.villain.answers["get_missing_events"] = lambda request, event=event: {"events": [event.pdu_dict()]}  # type: ignore[misc]
            self.villain.answers["/event/"] = lambda request, event=event: {"pdus": [event.pdu_dict()]}  # type: ignore[misc]
            self.villain.answers["event_auth"] = lambda request, event=event: {"auth_chain": [event.pdu_dict()]}  # type: ignore[misc]
            self.villain.send([event])
            self.assertFalse(self.is_shown(event.event_id))

    def test_two_events_with_one_name(self) -> None:
        """The first one counts."""
        first = self.seat.make("first", event_id="$same:evil.test")
        self.villain.send([first])
        self.villain.send([self.seat.make("second", event_id="$same:evil.test")])
        shown = self.call("GET", f"/rooms/{quote(self.room)}/event/{quote('$same:evil.test')}").json
        self.assertEqual(shown["content"]["body"], "first")

    def test_a_name_of_ours(self) -> None:
        """An event that takes the name of one of Alice's changes nothing about hers."""
        self.finish(self.alice.say(self.room, "mine"))
        mine = self.alice.said[-1].event_id
        pdu = {**self.seat.make("yours", event_id="$yours:evil.test").pdu_dict(), "event_id": mine}
        self.villain.send([pdu])
        shown = self.call("GET", f"/rooms/{quote(self.room)}/event/{quote(mine)}").json
        self.assertEqual((shown["sender"], shown["content"]["body"]), (self.alice.user_id, "mine"))


class KeysTests(HostileCase):
    """Keys that expired, and servers that do not give theirs."""

    def test_an_event_by_a_key_that_had_expired(self) -> None:
        """The villain says itself since when the key is not to be trusted."""
        old = self.villain.key
        self.villain.key = signing_key("ed25519:new", b"n" * 32)
        expired = self.villain.now_ms() - 3_600_000
        self.villain.old_keys = {old.key_id: {"key": old.verify_key_base64, "expired_ts": expired}}
        self.clock.run(2 * 3600)
        self.assert_taken(self.seat.make("with the new key"))
        new, self.villain.key = self.villain.key, old
        late = self.seat.make("with the old key")
        self.villain.key = new
        self.villain.send([late])
        self.assert_refused(late.event_id)

    def test_a_request_by_a_key_that_expired(self) -> None:
        """It is not believed."""
        self.villain.valid_ms = -1000
        self.clock.run(2 * 3600)
        answer = self.villain.ask("GET", f"/_matrix/federation/v1/state_ids/{quote(self.room)}?event_id=x")
        self.assertEqual((answer.status, answer.json["errcode"]), (401, "M_UNAUTHORIZED"))

    def test_keys_that_are_nonsense(self) -> None:
        """Whatever the villain publishes, its requests are not believed, and nobody else's suffer."""
        stranger = Villain(self.network, "a.test", "stranger.test")
        for said in nonsense():
            stranger.answers["/key/"] = lambda request, said=said: said  # type: ignore[misc]
            answer = stranger.ask("GET", "/_matrix/federation/v1/query/profile?user_id=%40alice%3Aa.test", seconds=120)
            self.assertEqual((answer.status, answer.json["errcode"]), (401, "M_UNAUTHORIZED"))
            self.clock.run(4000)
        self.assert_taken(self.seat.make("honest"))

    def test_keys_that_never_come(self) -> None:
        """A server that does not answer for its keys keeps nobody waiting but itself."""
        silent = Villain(self.network, "a.test", "silent.test")
        silent.answers["/key/"] = lambda request: None
        before = self.clock.seconds()
        answer = silent.ask("GET", "/_matrix/federation/v1/query/profile?user_id=%40alice%3Aa.test", seconds=120)
        self.assertEqual(answer.status, 401)
        self.assertLess(self.clock.seconds() - before, 60)
        self.assert_taken(self.seat.make("honest"))


def nonsense() -> list[Any]:
    """Answers that are none."""
    return [
        b"",
        b"null",
        b"[]",
        b"7",
        b'"x"',
        b"{",
        b"{}",
        b"<html>Gateway</html>",
        b"[" * 10_000 + b"]" * 10_000,
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        b"\xff\xfe\x00",
        b'{"x": 1e999}',
        {"server_keys": None, "verify_keys": [], "state": None, "pdus": 7, "events": {}, "event": [], "rooms": 1},
        {"state": [None], "pdus": [[]], "events": [1], "auth_chain": {}, "event": {"type": 7}, "members_omitted": "x"},
        {"state": [{}], "auth_chain": [{}], "event": {}, "servers_in_room": 7, "room_version": "10", "origin": 1},
        {"event": {"room_id": "!x", "type": "m.room.member"}, "room_version": "10", "chunk": [{}], "children": [7]},
        {"room_id": 7, "servers": "x", "displayname": 7, "device_keys": {"@x:y": 7}, "one_time_keys": [], "devices": 1},
        {"room_version": "99", "event": {}},
        b'{"x":"' + b"x" * (6 << 20) + b'"}',
        response({"errcode": 7, "error": []}, 400),
        response(b"", 500),
        response(b"<html>", 502),
        response({"errcode": "M_LIMIT_EXCEEDED", "retry_after_ms": "soon"}, 429),
        response(b"", 302, {"location": "http://127.0.0.1/"}),
    ]


class AnswersTests(HostileCase):
    """What Alice asks another server for, and that one answers slowly, with nonsense, or not at all."""

    def questions(self) -> list[tuple[str, str, Any]]:
        """Everything that clients may ask of other servers."""
        them = quote(self.villain.user_id)
        room, alias = quote("!far:evil.test"), quote("#far:evil.test")
        here = quote(self.room)
        return [
            ("POST", f"/join/{room}?via={NAME}", {}),
            ("POST", f"/join/{alias}", {}),
            ("POST", f"/knock/{room}?via={NAME}", {}),
            ("GET", f"/directory/room/{alias}", None),
            ("GET", f"/publicRooms?server={NAME}", None),
            ("POST", f"/publicRooms?server={NAME}", {"filter": {"generic_search_term": "x"}}),
            ("GET", f"/profile/{them}", None),
            ("POST", "/keys/query", {"device_keys": {self.villain.user_id: []}}),
            ("POST", "/keys/claim", {"one_time_keys": {self.villain.user_id: {"X": "signed_curve25519"}}}),
            ("POST", f"/rooms/{here}/invite", {"user_id": f"@other:{NAME}"}),
            ("GET", f"/_matrix/client/v1/room_summary/{room}?via={NAME}", None),
            ("GET", f"/_matrix/client/v1/media/download/{NAME}/something", None),
            ("GET", f"/_matrix/client/v1/media/thumbnail/{NAME}/something?width=32&height=32", None),
            ("GET", f"/_matrix/client/v1/rooms/{here}/timestamp_to_event?ts=1&dir=f", None),
        ]

    def asked(self, method: str, path: str, body: Any) -> None:
        """One question: there is an answer in time, and no 500 (which the network notes by itself)."""
        answer = self.call(method, path, body, PATIENCE)
        self.assertNotEqual(answer.status, 500, f"{method} {path}")
        self.trace.note("alice", f"{method} {path}: {answer.status}")

    def test_nonsense(self) -> None:
        """Each question with each kind of nonsense."""
        for said in nonsense():
            self.villain.answers[""] = lambda request, said=said: said  # type: ignore[misc]
            before = len(self.villain.asked)
            for question in self.questions():
                self.asked(*question)
            self.assertGreater(len(self.villain.asked) - before, 5, f"what was asked: {self.villain.asked[before:]}")
            del self.villain.answers[""]
            # Whoever answered with nonsense is left in peace; a request of its own ends that.
            self.villain.ask("GET", "/_matrix/federation/v1/query/profile?user_id=%40alice%3Aa.test")

    def test_silence(self) -> None:
        """Nothing at all comes back."""
        self.villain.answers[""] = lambda request: None
        for question in self.questions():
            self.asked(*question)
            self.villain.answers.clear()
            self.villain.ask("GET", "/_matrix/federation/v1/query/profile?user_id=%40alice%3Aa.test")
            self.villain.answers[""] = lambda request: None

    def test_one_that_is_silent_does_not_keep_others_waiting(self) -> None:
        """The state that an event needs is never told; another server's events are taken meanwhile."""
        other = Villain(self.network, "a.test", "other.test")
        seat = Seat(other, self.room, self.version)
        public = self.create()
        quick = Seat(other, public, self.version)
        self.villain.answers[""] = lambda request: None
        event = self.seat.make("waits", prev_events=["$" + "9" * 43])
        self.villain._transactions += 1
        self.villain.ask(
            "PUT",
            "/_matrix/federation/v1/send/slow",
            {"origin": NAME, "origin_server_ts": 1, "pdus": [event.pdu_dict()]},
        )
        said = quick.make("quick")
        other.send([said])
        self.assertTrue(self.is_shown(said.event_id, public), "another room had to wait")
        self.clock.run(300)
        late = seat.make("late")
        other.send([late])
        self.assertTrue(self.is_shown(late.event_id), "the room never went on")


def allocated() -> int:
    """Bytes that the server's own code has allocated and holds, whatever the runner of the tests does meanwhile."""
    ours = tracemalloc.Filter(True, str(Path(dendrite_tw.__file__).parent / "*"))
    return sum(found.size for found in tracemalloc.take_snapshot().filter_traces([ours]).statistics("filename"))


class MemoryTests(HostileCase):
    """Attacks that are repeated leave nothing behind."""

    def growth(self, attack: Callable[[int], None]) -> int:
        """Bytes that a hundred attacks leave behind, after a hundred that fill what is bounded.

        The lesser of two hundreds: a table that doubles does so once, what is left behind is left by each.
        """
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        self.repeat(attack, range(100))
        first = allocated()
        self.repeat(attack, range(100, 200))
        second = allocated()
        self.repeat(attack, range(200, 300))
        return min(second - first, allocated() - second)

    def repeat(self, attack: Callable[[int], None], numbers: range) -> None:
        """Attack again and again, and forget what the test itself remembers of it."""
        for number in numbers:
            attack(number)
            self.logged.clear()
            self.trace.lines.clear()
            self.trace._names.clear()
            self.villain.asked.clear()
        gc.collect()

    def test_forgeries(self) -> None:
        """Ever new events with bad signatures."""

        def attack(number: int) -> None:
            pdus = [{**self.seat.make(f"{number} {n}").pdu_dict(), "signatures": {}} for n in range(20)]
            self.villain.send(pdus)

        self.assertLess(self.growth(attack), GROWTH_BYTES)

    def test_lost_pasts(self) -> None:
        """Ever new events after ever new events that nobody has."""

        def attack(number: int) -> None:
            unknown = ["$" + f"{number * 20 + n:043}" for n in range(20)]
            self.villain.send([self.seat.make("lost", prev_events=unknown)])

        self.assertLess(self.growth(attack), GROWTH_BYTES)

    def test_rooms_and_servers_that_are_not(self) -> None:
        """Ever new rooms, and requests in ever new names."""

        def attack(number: int) -> None:
            self.villain.send([self.seat.make("x", room_id=f"!{number}n{n}:evil.test") for n in range(20)])
            nobody = Villain(self.network, "a.test", f"n{number}.test")
            nobody.answers["/key/"] = lambda request: {}
            nobody.ask("GET", "/_matrix/federation/v1/version")
            nobody.ask("GET", "/_matrix/federation/v1/query/profile?user_id=%40alice%3Aa.test", seconds=120)
            del self.network.hosts[nobody.name]

        self.assertLess(self.growth(attack), GROWTH_BYTES)
