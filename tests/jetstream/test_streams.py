"""What streams promise, asked through the API: limits, retention, conditions, deduplication, lifetimes,
reading.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from dendrite_tw.jetstream import wire
from dendrite_tw.jetstream.streams import parse_ttl
from dendrite_tw.jetstream.times import SECOND, format_time, parse_duration, parse_time
from tests.jetstream.support import DiskCase, ServerBench


class StreamCase(DiskCase):
    storage = "memory"

    def setUp(self) -> None:
        super().setUp()
        self.folder = Path(self.mktemp())
        self.bench = ServerBench(self.folder)
        self.talk = self.bench.talker

    def restart(self) -> None:
        """Go down hard, and come up again."""
        self.bench.crash()
        self.bench = ServerBench(self.folder, self.bench.clock)
        self.talk = self.bench.talker

    def create(self, **config: Any) -> dict[str, Any]:
        full = {"name": "S", "subjects": ["s.>"], "storage": self.storage, **config}
        answer = self.talk.api(f"STREAM.CREATE.{full['name']}", full)
        self.assertNotIn("error", answer)
        return answer

    def state(self, name: str = "S", **asked: Any) -> dict[str, Any]:
        state: dict[str, Any] = self.talk.api(f"STREAM.INFO.{name}", asked or b"")["state"]
        return state

    def contents(self, name: str = "S") -> dict[int, str]:
        state, found = self.state(name), {}
        for seq in range(state["first_seq"], state["last_seq"] + 1):
            answer = self.talk.api(f"STREAM.MSG.GET.{name}", {"seq": seq})
            if "message" in answer:
                found[seq] = base64.b64decode(answer["message"]["data"]).decode()
        return found


class LimitTests(StreamCase):
    def fill(self, *subjects: str) -> None:
        for number, subject in enumerate(subjects):
            self.talk.put(subject, b"%d" % number)

    def test_oldest_goes_first(self) -> None:
        self.create(max_msgs=3)
        self.fill(*["s.a"] * 5)
        self.assertEqual(self.contents(), {3: "2", 4: "3", 5: "4"})

    def test_bytes(self) -> None:
        self.create(max_bytes=200)
        for _ in range(20):
            self.talk.put("s.a", b"x" * 40)
        state = self.state()
        self.assertLessEqual(state["bytes"], 200)
        self.assertGreaterEqual(state["messages"], 2)

    def test_per_subject(self) -> None:
        self.create(max_msgs_per_subject=2)
        self.fill("s.a", "s.b", "s.a", "s.a", "s.b", "s.b")
        self.assertEqual(self.contents(), {3: "2", 4: "3", 5: "4", 6: "5"})

    def test_new_ones_are_refused(self) -> None:
        self.create(max_msgs=2, discard="new")
        self.fill("s.a", "s.a")
        self.assertEqual(self.talk.put("s.a")["error"]["err_code"], 10077)
        self.talk.api("STREAM.PURGE.S")
        self.assertEqual(self.talk.put("s.a")["seq"], 3)

    def test_new_ones_are_refused_by_bytes(self) -> None:
        self.create(max_bytes=100, discard="new")
        self.talk.put("s.a", b"x" * 40)
        self.assertEqual(self.talk.put("s.a", b"x" * 40)["error"]["err_code"], 10077)

    def test_new_ones_are_refused_per_subject(self) -> None:
        self.create(max_msgs_per_subject=1, discard="new", discard_new_per_subject=True)
        self.fill("s.a", "s.b")
        self.assertEqual(self.talk.put("s.a")["error"]["err_code"], 10077)
        self.assertEqual(self.contents(), {1: "0", 2: "1"})

    def test_size_of_a_message(self) -> None:
        self.create(max_msg_size=5)
        self.assertEqual(self.talk.put("s.a", b"12345")["seq"], 1)
        self.assertEqual(self.talk.put("s.a", b"123456")["error"]["err_code"], 10054)

    def test_age(self) -> None:
        self.create(max_age=5 * SECOND, duplicate_window=SECOND)
        self.talk.put("s.a", b"old")
        self.bench.advance(3)
        self.talk.put("s.a", b"young")
        self.bench.advance(2.5)
        self.assertEqual(self.contents(), {2: "young"})
        self.bench.advance(3)
        self.assertEqual(self.contents(), {})

    def test_limits_that_shrink(self) -> None:
        self.create()
        self.fill(*["s.a", "s.b"] * 5)
        config = {"name": "S", "subjects": ["s.>"], "storage": self.storage, "max_msgs_per_subject": 1}
        self.talk.api("STREAM.UPDATE.S", config)
        self.assertEqual(self.contents(), {9: "8", 10: "9"})

    def test_sealed(self) -> None:
        self.create()
        self.fill("s.a")
        config = {"name": "S", "subjects": ["s.>"], "storage": self.storage, "sealed": True}
        self.talk.api("STREAM.UPDATE.S", config)
        self.assertEqual(self.talk.put("s.a")["error"]["err_code"], 10109)
        self.assertEqual(self.talk.refused("STREAM.PURGE.S"), 10109)
        self.assertEqual(self.talk.refused("STREAM.MSG.DELETE.S", {"seq": 1}), 10109)
        self.assertEqual(self.talk.refused("STREAM.UPDATE.S", {**config, "sealed": False}), 10052)

    def test_what_may_not_be_deleted(self) -> None:
        self.create(deny_delete=True, deny_purge=True)
        self.fill("s.a")
        self.assertEqual(self.talk.refused("STREAM.PURGE.S"), 10110)
        self.assertEqual(self.talk.refused("STREAM.MSG.DELETE.S", {"seq": 1}), 10057)


class ConditionTests(StreamCase):
    def test_deduplication(self) -> None:
        self.create(duplicate_window=10 * SECOND)
        self.assertEqual(self.talk.put("s.a", Msg_Id="1"), {"stream": "S", "seq": 1})
        self.assertEqual(self.talk.put("s.b", Msg_Id="1"), {"stream": "S", "seq": 1, "duplicate": True})
        self.assertEqual(self.talk.put("s.a", Msg_Id="2")["seq"], 2)
        self.bench.advance(11)
        self.assertEqual(self.talk.put("s.a", Msg_Id="1")["seq"], 3)

    def test_expectations(self) -> None:
        self.create()
        self.talk.put("s.a", Msg_Id="first")
        self.talk.put("s.b")
        for headers, code in (
            ({"Expected_Stream": "S"}, 0),
            ({"Expected_Stream": "T"}, 10060),
            ({"Expected_Last_Msg_Id": "first"}, 0),
            ({"Expected_Last_Msg_Id": "other"}, 10070),
            ({"Expected_Last_Sequence": "4"}, 0),
            ({"Expected_Last_Sequence": "4"}, 10071),
            ({"Expected_Last_Subject_Sequence": "5"}, 0),
            ({"Expected_Last_Subject_Sequence": "0"}, 10071),
        ):
            answer = self.talk.put("s.a", **headers)
            self.assertEqual(answer.get("error", {}).get("err_code", 0), code, headers)
        self.assertEqual(self.talk.put("s.new", Expected_Last_Subject_Sequence="0")["seq"], 7)

    def test_expectation_of_other_subjects(self) -> None:
        self.create()
        self.talk.put("s.a.x")
        headers = {"Expected_Last_Subject_Sequence": "1", "Expected_Last_Subject_Sequence_Subject": "s.a.*"}
        self.assertEqual(self.talk.put("s.b", **headers)["seq"], 2)
        headers["Expected_Last_Subject_Sequence"] = "9"
        self.assertEqual(self.talk.put("s.b", **headers)["error"]["err_code"], 10071)

    def test_rollup(self) -> None:
        self.create(allow_rollup_hdrs=True)
        for subject in ("s.a", "s.b", "s.a"):
            self.talk.put(subject)
        self.talk.put("s.a", b"sub", Rollup="sub")
        self.assertEqual(self.contents(), {2: "", 4: "sub"})
        self.talk.put("s.a", b"all", Rollup="all")
        self.assertEqual(self.contents(), {5: "all"})
        self.assertEqual(self.talk.put("s.a", Rollup="other")["error"]["err_code"], 10111)

    def test_rollup_must_be_allowed(self) -> None:
        self.create()
        self.assertEqual(self.talk.put("s.a", Rollup="all")["error"]["err_code"], 10111)


class LifetimeTests(StreamCase):
    def test_message_lives_as_long_as_it_says(self) -> None:
        self.create(allow_msg_ttl=True)
        self.talk.put("s.a", b"short", TTL="2s")
        self.talk.put("s.a", b"long", TTL="1h")
        self.talk.put("s.a", b"ever", TTL="never")
        self.bench.advance(2.5)
        self.assertEqual(self.contents(), {2: "long", 3: "ever"})

    def test_must_be_allowed_and_sensible(self) -> None:
        self.create()
        self.assertEqual(self.talk.put("s.a", TTL="2s")["error"]["err_code"], 10166)
        self.create(name="T", subjects=["t"], allow_msg_ttl=True)
        for text in ("0", "-1", "x", "10ms", "1x", "1h x"):
            self.assertEqual(self.talk.put("t", TTL=text)["error"]["err_code"], 10165, text)

    def test_marker_for_the_last_of_a_subject(self) -> None:
        self.create(subject_delete_marker_ttl=5 * SECOND)
        self.talk.put("s.a", b"x", TTL="1")  # raised to the lifetime of the marker
        self.talk.put("s.b", b"stays")
        self.bench.advance(3)
        self.assertEqual(len(self.contents()), 2)
        self.bench.advance(3)
        answer = self.talk.api("STREAM.MSG.GET.S", {"last_by_subj": "s.a"})["message"]
        headers = wire.nats_headers(base64.b64decode(answer["hdrs"]))
        self.assertEqual((headers, answer["data"]), ({"Marker-Reason": "MaxAge", "TTL": "5"}, ""))
        self.bench.advance(6)
        self.assertEqual(self.contents(), {2: "stays"})

    def test_words(self) -> None:
        self.assertEqual(
            [parse_ttl(text) for text in ("5", "1m30s", "never", "1.5s")],
            [
                5 * SECOND,
                90 * SECOND,
                -1,
                3 * SECOND // 2,
            ],
        )
        self.assertEqual(
            [parse_duration(text) for text in ("1h", "250ms", "", "x", "5")],
            [
                3600 * SECOND,
                SECOND // 4,
                0,
                0,
                0,
            ],
        )


class ReadingTests(StreamCase):
    def setUp(self) -> None:
        super().setUp()
        self.create(allow_direct=True)
        for number, subject in enumerate(("s.a", "s.b", "s.a", "s.c")):
            self.talk.put(subject, b"%d" % number)

    def test_by_sequence_and_subject(self) -> None:
        for asked, seq in (
            ({"seq": 2}, 2),
            ({"last_by_subj": "s.a"}, 3),
            ({"last_by_subj": "s.*"}, 4),
            ({"seq": 2, "next_by_subj": "s.a"}, 3),
            ({"next_by_subj": "s.>"}, 1),
        ):
            self.assertEqual(self.talk.api("STREAM.MSG.GET.S", asked)["message"]["seq"], seq, asked)
        for asked in ({"seq": 9}, {"last_by_subj": "s.z"}, {"seq": 4, "next_by_subj": "s.a"}):
            self.assertEqual(self.talk.refused("STREAM.MSG.GET.S", asked), 10037)
        for asked in ({}, {"seq": -1}, {"seq": "x"}):
            self.assertEqual(self.talk.refused("STREAM.MSG.GET.S", asked), 10003)

    def test_directly(self) -> None:
        answer = self.talk.ask("$JS.API.DIRECT.GET.S", {"seq": 2})
        headers = wire.nats_headers(answer.headers)
        self.assertEqual((answer.payload, headers["Subject"], headers["Sequence"]), (b"1", "s.b", "2"))
        self.assertEqual(self.talk.ask("$JS.API.DIRECT.GET.S.s.a").payload, b"2")
        for asked, code in (({"seq": 9}, 404), ({}, 408), (b"x", 408), ({"seq": -1}, 408)):
            answer = self.talk.ask("$JS.API.DIRECT.GET.S", asked)
            self.assertEqual(wire.decode_status(answer.headers)[0], code, asked)

    def test_directly_only_where_allowed(self) -> None:
        self.create(name="T", subjects=["t"])
        for name in ("T", "NONE"):
            answer = self.talk.ask(f"$JS.API.DIRECT.GET.{name}", {"seq": 1})
            self.assertEqual(wire.decode_status(answer.headers)[0], 503)

    def many(self, asked: dict[str, Any]) -> tuple[list[bytes], dict[str, str]]:
        self.talk.publish("$JS.API.DIRECT.GET.S", str(asked).replace("'", '"').encode(), "_INBOX.many")
        *messages, end = self.talk.take()
        self.assertEqual(wire.decode_status(end.headers), (204, "EOB"))
        return [message.payload for message in messages], wire.nats_headers(end.headers)

    def test_several_at_once(self) -> None:
        payloads, end = self.many({"batch": 2, "next_by_subj": "s.>", "seq": 2})
        self.assertEqual((payloads, end["Num-Pending"], end["Last-Sequence"]), ([b"1", b"2"], "1", "3"))
        payloads, end = self.many({"multi_last": ["s.a", "s.b", "s.z"]})
        self.assertEqual((payloads, end["UpTo-Sequence"]), ([b"1", b"2"], "4"))
        payloads, _ = self.many({"batch": 9, "start_time": "2020-01-01T00:00:00Z"})
        self.assertEqual(payloads, [b"0", b"1", b"2", b"3"])

    def test_deletion(self) -> None:
        self.assertTrue(self.talk.api("STREAM.MSG.DELETE.S", {"seq": 2})["success"])
        self.assertEqual(self.talk.refused("STREAM.MSG.DELETE.S", {"seq": 2}), 10057)
        state = self.state(deleted_details=True, subjects_filter="s.>")
        self.assertEqual((state["deleted"], state["num_deleted"]), ([2], 1))
        self.assertEqual(state["subjects"], {"s.a": 2, "s.c": 1})

    def test_purge(self) -> None:
        for asked, purged, left in (
            ({"filter": "s.a", "keep": 1}, 1, [2, 3, 4]),
            ({"seq": 3}, 1, [3, 4]),
            ({"filter": "s.z"}, 0, [3, 4]),
            ({}, 2, []),
        ):
            self.assertEqual(self.talk.api("STREAM.PURGE.S", asked)["purged"], purged)
            self.assertEqual(list(self.contents()), left)
        self.assertEqual(self.talk.refused("STREAM.PURGE.S", {"seq": 1, "keep": 1}), 10003)


class ManagementTests(StreamCase):
    def test_same_configuration_again(self) -> None:
        self.create()
        self.create()
        other = {"name": "S", "subjects": ["other"], "storage": self.storage}
        self.assertEqual(self.talk.refused("STREAM.CREATE.S", other), 10058)

    def test_refusals(self) -> None:
        self.create()
        for request, body, code in (
            ("STREAM.CREATE.T", {"name": "U"}, 10056),
            ("STREAM.CREATE.T", b"{", 10025),
            ("STREAM.CREATE.T", b"[]", 10025),
            ("STREAM.CREATE.T", {"name": "T", "subjects": "x"}, 10025),
            ("STREAM.CREATE.T", {"name": "T", "max_msgs": "x"}, 10025),
            ("STREAM.CREATE.T", {"name": "T", "subjects": ["s.a"]}, 10065),
            ("STREAM.CREATE.T", {"name": "T", "subjects": ["a..b"]}, 10052),
            ("STREAM.CREATE.T", {"name": "T", "subjects": ["a", "a"]}, 10052),
            ("STREAM.CREATE.T", {"name": "T", "subjects": [">"]}, 10052),
            ("STREAM.CREATE.T", {"name": "T", "subjects": ["$JS.API.>"]}, 10052),
            ("STREAM.CREATE.T", {"name": "T", "num_replicas": 3}, 10074),
            ("STREAM.CREATE.T", {"name": "T", "num_replicas": 9}, 10052),
            ("STREAM.CREATE.T", {"name": "T", "retention": "x"}, 10025),
            ("STREAM.CREATE.T", {"name": "T", "max_age": 5}, 10052),
            ("STREAM.CREATE.T", {"name": "T", "max_age": SECOND, "duplicate_window": 2 * SECOND}, 10052),
            ("STREAM.CREATE.T", {"name": "T", "duplicate_window": -1}, 10052),
            ("STREAM.CREATE.T", {"name": "T", "discard_new_per_subject": True}, 10052),
            ("STREAM.CREATE.T", {"name": "T", "mirror_direct": True}, 10052),
            ("STREAM.CREATE.T", {"name": "T", "subject_delete_marker_ttl": 1}, 10052),
            ("STREAM.CREATE.T", {"name": "T", "persist_mode": "x"}, 10025),
            ("STREAM.CREATE.T", {"name": "T", "description": "x" * 5000}, 10052),
            ("STREAM.INFO.T", b"", 10059),
            ("STREAM.DELETE.T", b"", 10059),
            ("STREAM.UPDATE.T", {"name": "T"}, 10059),
            ("STREAM.PURGE.T", b"", 10059),
            ("STREAM.INFO.S.x", b"", 10003),
        ):
            self.assertEqual(self.talk.refused(request, body), code, (request, body))
        names = ("a.b", "a b", "a*", "a/b", "", "x" * 300)
        for name in names:
            self.assertIn(self.talk.refused("STREAM.CREATE.T", {"name": name}), (10052, 10056))

    def test_what_cannot_change(self) -> None:
        self.create(max_consumers=5)
        base = {"name": "S", "subjects": ["s.>"], "storage": self.storage, "max_consumers": 5}
        other = "file" if self.storage == "memory" else "memory"
        for change in ({"storage": other}, {"max_consumers": 6}, {"retention": "workqueue"}):
            self.assertEqual(self.talk.refused("STREAM.UPDATE.S", {**base, **change}), 10052)

    def test_new_subjects(self) -> None:
        self.create()
        self.talk.api("STREAM.UPDATE.S", {"name": "S", "subjects": ["t"], "storage": self.storage})
        self.assertEqual(self.talk.put("t")["seq"], 1)
        self.assertEqual(wire.decode_status(self.talk.ask("s.a").headers)[0], 503)

    def test_lists(self) -> None:
        for name in ("A", "B", "C"):
            self.create(name=name, subjects=[f"{name.lower()}.>"])
        self.assertEqual(self.talk.api("STREAM.NAMES")["streams"], ["A", "B", "C"])
        self.assertEqual(self.talk.api("STREAM.NAMES", {"offset": 1})["streams"], ["B", "C"])
        self.assertEqual(self.talk.api("STREAM.NAMES", {"subject": "b.x"})["streams"], ["B"])
        self.assertEqual(self.talk.api("STREAM.NAMES", {"offset": 99})["offset"], 3)
        names = [row["config"]["name"] for row in self.talk.api("STREAM.LIST")["streams"]]
        self.assertEqual(names, ["A", "B", "C"])
        self.assertEqual(self.talk.refused("STREAM.LIST", {"offset": -1}), 10003)
        self.assertEqual(self.talk.api("INFO")["streams"], 3)

    def test_deleted_and_made_anew(self) -> None:
        self.create()
        self.talk.put("s.a")
        self.assertTrue(self.talk.api("STREAM.DELETE.S")["success"])
        self.assertEqual(self.talk.refused("STREAM.INFO.S"), 10059)
        self.assertEqual(wire.decode_status(self.talk.ask("s.a").headers)[0], 503)
        self.create()
        self.assertEqual((self.talk.put("s.a")["seq"], self.contents()), (1, {1: ""}))

    def test_without_acknowledgement(self) -> None:
        self.create(no_ack=True)
        self.talk.publish("s.a", b"x", "_INBOX.none")
        self.assertEqual((self.talk.take(), self.state()["messages"]), ([], 1))

    def test_unknown_requests_have_nobody(self) -> None:
        for request in ("NOTHING", "STREAM.NOTHING.S", "CONSUMER.MSG.NEXT.S.C", "DIRECT.X"):
            answer = self.talk.ask(f"$JS.API.{request}")
            self.assertEqual(wire.decode_status(answer.headers)[0], 503, request)

    def test_first_sequence(self) -> None:
        self.create(first_seq=100)
        self.assertEqual(self.state()["first_seq"], 100)
        self.assertEqual(self.talk.put("s.a")["seq"], 100)

    def test_times(self) -> None:
        for text in ("2024-02-29T12:00:00Z", "2024-02-29T12:00:00.123456789Z"):
            self.assertEqual(format_time(parse_time(text)), text)
        self.assertEqual(parse_time("2024-02-29T12:00:00+02:00"), parse_time("2024-02-29T10:00:00Z"))
        self.assertEqual(parse_time("0001-01-01T00:00:00Z"), 0)
        for text in ("", "2024", "2024-13-01T00:00:00Z", "yesterday"):
            with self.assertRaises(ValueError):
                parse_time(text)


class FileLimitTests(LimitTests):
    storage = "file"


class FileConditionTests(ConditionTests):
    storage = "file"


class FileLifetimeTests(LifetimeTests):
    storage = "file"


class FileReadingTests(ReadingTests):
    storage = "file"


class FileManagementTests(ManagementTests):
    storage = "file"


class CrashTests(StreamCase):
    storage = "file"

    def test_all_that_was_answered_is_there(self) -> None:
        self.create(max_msgs_per_subject=2, allow_msg_ttl=True, metadata={"a": "b"})
        for number, subject in enumerate(("s.a", "s.b", "s.a", "s.a", "s.c")):
            self.talk.put(subject, b"%d" % number, Msg_Id=str(number))
        self.talk.put("s.d", b"brief", TTL="5s")
        self.talk.api("STREAM.MSG.DELETE.S", {"seq": 2})
        before = self.talk.api("STREAM.INFO.S")
        self.restart()
        after = self.talk.api("STREAM.INFO.S")
        for part in ("config", "created", "state"):
            self.assertEqual(after[part], before[part])
        self.assertEqual(self.contents(), {3: "2", 4: "3", 5: "4", 6: "brief"})
        self.assertTrue(self.talk.put("s.c", Msg_Id="4")["duplicate"])
        self.bench.advance(6)
        self.assertEqual(self.contents(), {3: "2", 4: "3", 5: "4"})

    def test_purged_stays_purged(self) -> None:
        self.create()
        for _ in range(5):
            self.talk.put("s.a")
        self.talk.api("STREAM.PURGE.S", {"seq": 4})
        self.restart()
        self.assertEqual(list(self.contents()), [4, 5])
        self.talk.api("STREAM.PURGE.S")
        self.restart()
        self.assertEqual((self.contents(), self.talk.put("s.a")["seq"]), ({}, 6))

    def test_deleted_stays_deleted(self) -> None:
        self.create()
        self.talk.put("s.a")
        self.talk.api("STREAM.DELETE.S")
        self.restart()
        self.assertEqual(self.talk.refused("STREAM.INFO.S"), 10059)
        self.assertEqual(list((self.folder / "streams").iterdir()), [])

    def test_memory_streams_go(self) -> None:
        self.create(storage="memory")
        self.restart()
        self.assertEqual(self.talk.refused("STREAM.INFO.S"), 10059)

    def test_damaged_descriptions_are_set_aside(self) -> None:
        for text in (b"", b"{", b"[]", b'{"config":{"name":"other"},"created":1}'):
            self.create()
            [description] = (self.folder / "streams").glob("S~*/stream.json")
            description.write_bytes(text)
            self.restart()
            self.assertEqual(self.bench.engine.degraded, ["S"])
            self.assertEqual(self.talk.refused("STREAM.INFO.S"), 10059)
        self.assertEqual(len(list((self.folder / "damaged").iterdir())), 4)

    def test_same_stream_twice_on_disk(self) -> None:
        """A crash between a deletion and the removal of the folder: the newer one counts."""
        self.create()
        self.talk.put("s.a", b"old")
        [folder] = (self.folder / "streams").iterdir()
        kept = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.talk.api("STREAM.DELETE.S")
        self.bench.advance(1)
        self.create()
        self.talk.put("s.a", b"new")
        folder.mkdir()
        for name, data in kept.items():
            (folder / name).write_bytes(data)
        self.restart()
        self.assertEqual(self.contents(), {1: "new"})
        self.assertFalse(folder.exists())
