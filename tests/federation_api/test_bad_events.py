"""Events that no honest server sends: none of them breaks anything, stays waiting, or changes the room."""

from __future__ import annotations

import random
from typing import Any

import orjson

from .inbound_case import event_of
from .whole import WholeServerTestCase

BOB = "@bob:stranger.test"
HASH = "$" + "h" * 43


class BadEventCase(WholeServerTestCase):
    version = "11"

    def setUp(self) -> None:
        super().setUp()
        self.alice = self.register("alice")
        self.room_id = self.alice.create_room(room_version=self.version, preset="public_chat")
        self.event_id = self.alice.say(self.room_id, "hello")
        self.other = self.stranger()
        self.other.get("/v1/query/nothing")
        for _ in range(4):
            self.pump(0.3)
        self.sent = 0
        self.before = self.events()

    def events(self) -> list[str]:
        """What the room's member sees of it."""
        timeline = self.alice.get(f"/rooms/{self.room_id}/messages?dir=b&limit=100").json["chunk"]
        return [event["event_id"] for event in timeline]

    def good(self, number: int = 1, **fields: Any) -> dict[str, Any]:
        """An event that is well-formed and signed; but bob is not in the room."""
        given: dict[str, Any] = {"prev_events": [self.event_id], "auth_events": [HASH], **fields}
        return event_of(number, room_id=self.room_id, sender=BOB, version=self.version, **given).pdu_dict()

    def send(self, *pdus: Any) -> dict[str, Any]:
        """The answer to a transaction with these events, after what follows from it has happened."""
        self.sent += 1
        body = {"origin": "stranger.test", "origin_server_ts": 1, "pdus": list(pdus), "edus": []}
        answer = self.other.put(f"/v1/send/{self.sent}", body)
        self.assertEqual(answer.status, 200, answer)
        for _ in range(6):
            self.pump(0.3)
        return answer.json["pdus"]  # type: ignore[no-any-return]

    def nothing_happened(self) -> None:
        for _ in range(30):
            if not self.waiting():
                break
            self.pump(10)
        self.assertEqual(self.waiting(), 0)
        self.assertEqual(self.events(), self.before)
        self.assertEqual(self.flushLoggedErrors(), [])
        self.assertGreater(self.counted("pdus")["refused"], 0)
        self.assertEqual(self.counted("pdus")["accepted"], 0)

    def waiting(self) -> int:
        """How many events wait for their room."""
        return sum(one.inbound.inbox.waiting for one in self.federating())


class BadEventTests(BadEventCase):
    def test_each_sort(self) -> None:
        other_key = event_of(2, room_id=self.room_id, sender=BOB, version=self.version).pdu_dict()
        other_key["signatures"]["stranger.test"] = {"ed25519:one": "A" * 86}
        changed = self.good(3)
        changed["content"] = {"body": "something else", "msgtype": "m.text"}
        no_hash = self.good(4)
        del no_hash["hashes"]
        deep: Any = 1
        for _ in range(150):
            deep = [deep]
        cases: dict[str, dict[str, Any]] = {
            "not in the room": self.good(),
            "a forged signature": other_key,
            "no signature": {**self.good(5), "signatures": {}},
            "signatures of any shape": {**self.good(6), "signatures": {"stranger.test": [1]}},
            "very many signatures": {
                **self.good(7),
                "signatures": {"stranger.test": {f"ed25519:{number}": "A" * 86 for number in range(500)}},
            },
            "signatures of many servers": {
                **self.good(8),
                "signatures": {f"s{number}.test": {"ed25519:1": "A" * 86} for number in range(200)},
            },
            "a wrong hash": changed,
            "no hash": no_hash,
            "a hash of the wrong shape": {**self.good(9), "hashes": {"sha256": 7}},
            "in the name of another server's user": {**self.good(10), "sender": "@alice:test"},
            "too many prev_events": {**self.good(11), "prev_events": [HASH] * 21},
            "a huge number of prev_events": {**self.good(12), "prev_events": [f"${n:043}" for n in range(1000)]},
            "prev_events that nobody has": self.good(13, prev_events=[f"${number:043}" for number in range(20)]),
            "auth_events that nobody has": self.good(14, auth_events=[f"${number:043}" for number in range(10)]),
            "itself before itself": {**self.good(15), "prev_events": [HASH, HASH], "auth_events": [HASH, HASH]},
            "no prev_events": self.good(16, prev_events=[]),
            "another create event": self.good(17, type="m.room.create", state_key="", content={}, auth_events=[]),
            "a depth below zero": {**self.good(18), "depth": -1},
            "a depth beyond all": {**self.good(19), "depth": 2**63 - 1},
            "a depth that is none": {**self.good(20), "depth": "deep"},
            "a time that is none": {**self.good(21), "origin_server_ts": "now"},
            "a content that is none": {**self.good(22), "content": []},
            "a content that nests deeply": {**self.good(23), "content": {"x": deep}},
            "a content that is too large": {**self.good(24), "content": {"x": "x" * 70_000}},
            "a type that is none": {**self.good(25), "type": 7},
            "a type that is too long": {**self.good(26), "type": "x" * 300},
            "a state key that is none": {**self.good(27), "state_key": 7},
            "a sender that is none": {**self.good(28), "sender": "bob"},
            "an unsigned of any shape": {**self.good(29), "unsigned": [1]},
            "a membership of any shape": self.good(30, type="m.room.member", state_key=BOB, content={"membership": 7}),
            "power of any shape": self.good(31, type="m.room.power_levels", state_key="", content={"users": [1]}),
            "a list of servers of any shape": self.good(
                32, type="m.room.server_acl", state_key="", content={"deny": 7}
            ),
            "a redaction of nothing": self.good(33, type="m.room.redaction", content={"redacts": 7}),
            "a policy of any shape": self.good(34, type="m.room.policy", state_key="", content={"via": 7}),
        }
        for name, pdu in cases.items():
            with self.subTest(name):
                self.send(pdu)
        self.nothing_happened()

    def test_an_event_of_another_room(self) -> None:
        elsewhere = self.alice.create_room(room_version=self.version)
        event = event_of(1, room_id=elsewhere, sender=BOB, prev_events=[self.event_id], auth_events=[HASH])
        self.send(event.pdu_dict())
        self.nothing_happened()

    def test_many_at_once(self) -> None:
        self.send(*(self.good(number, prev_events=[f"${number:043}"]) for number in range(50)))
        self.nothing_happened()

    def test_damaged_events(self) -> None:
        """Good events with a few bytes changed, removed or doubled."""
        chance = random.Random(1)
        for number in range(40):
            data = bytearray(orjson.dumps(self.good(number)))
            for _ in range(chance.randint(1, 4)):
                at = chance.randrange(len(data))
                what = chance.randrange(3)
                if what == 0:
                    data[at] = chance.choice(b'"{}[]:,0aZ\\ -')
                elif what == 1:
                    del data[at : at + chance.randint(1, 30)]
                else:
                    data[at:at] = data[at : at + chance.randint(1, 30)]
            try:
                pdu = orjson.loads(bytes(data))
            except orjson.JSONDecodeError:
                continue
            self.send(pdu)
        self.nothing_happened()


class OldRoomTests(BadEventCase):
    version = "1"

    def good(self, number: int = 1, **fields: Any) -> dict[str, Any]:
        references = [*fields.get("prev_events", [self.event_id]), *fields.get("auth_events", [HASH])]
        hashes = dict.fromkeys(references, "h" * 43)
        given = {"event_id": f"$e{number}:stranger.test", "reference_hashes": hashes, **fields}
        return super().good(number, **given)

    def test_names_that_events_choose(self) -> None:
        cycle = [["$e2:stranger.test", {"sha256": "h" * 43}]]
        for name, pdu in {
            "an id of this server": self.good(1, event_id="$x:test"),
            "an id that is taken": self.good(2, event_id=self.event_id),
            "an id that is none": {**self.good(3), "event_id": 7},
            "one before the other": {**self.good(4), "event_id": "$e1:stranger.test", "prev_events": cycle},
            "the other before the one": {
                **self.good(5),
                "event_id": "$e2:stranger.test",
                "prev_events": [["$e1:stranger.test", {"sha256": "h" * 43}]],
            },
            "itself before itself": {**self.good(6), "event_id": "$e2:stranger.test", "prev_events": cycle},
            "references of any shape": {**self.good(7), "prev_events": [["$e2:stranger.test"]]},
            "a number that is no integer": {**self.good(8), "depth": 1.5},
        }.items():
            with self.subTest(name):
                self.send(pdu)
        self.nothing_happened()
