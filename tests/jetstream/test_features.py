"""The rarer promises: transforms, republishing, mirrors, sources, atomic batches, schedules, counters,
accounts.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import orjson

from dendrite_tw.jetstream import wire
from dendrite_tw.jetstream.engine import Limits
from dendrite_tw.jetstream.times import SECOND, format_time
from tests.jetstream.support import DiskCase, ServerBench


class FeatureCase(DiskCase):
    def setUp(self) -> None:
        super().setUp()
        self.folder = Path(self.mktemp())
        self.begin()

    def begin(self, **more: Any) -> None:
        self.bench = ServerBench(self.folder, **more)
        self.talk = self.bench.talker

    def restart(self) -> None:
        self.bench.crash()
        self.begin(clock=self.bench.clock)
        self.bench.advance(0.1)

    def create(self, name: str, **config: Any) -> dict[str, Any]:
        answer = self.talk.api(f"STREAM.CREATE.{name}", {"name": name, **config})
        self.assertNotIn("error", answer)
        self.bench.advance(0.1)
        return answer

    def get(self, stream: str, seq: int) -> tuple[str, bytes, dict[str, str]]:
        message = self.talk.api(f"STREAM.MSG.GET.{stream}", {"seq": seq})["message"]
        headers = wire.decode_headers(base64.b64decode(message.get("hdrs", "")))
        return message["subject"], base64.b64decode(message["data"]), {k: v[0] for k, v in headers.items()}

    def all(self, stream: str) -> list[tuple[str, bytes]]:
        state = self.talk.api(f"STREAM.INFO.{stream}")["state"]
        found = []
        for seq in range(state["first_seq"], state["last_seq"] + 1):
            if "message" in self.talk.api(f"STREAM.MSG.GET.{stream}", {"seq": seq}):
                found.append(self.get(stream, seq)[:2])
        return found


class TransformTests(FeatureCase):
    def test_subjects_are_stored_transformed(self) -> None:
        self.create("T", subjects=["in.*.*"], subject_transform={"src": "in.*.*", "dest": "out.$2.$1"})
        self.talk.put("in.a.b", b"x")
        self.assertEqual(self.all("T"), [("out.b.a", b"x")])
        body = {"stream_name": "T", "config": {"name": "C", "filter_subject": "out.>"}}
        self.assertEqual(self.talk.api("CONSUMER.CREATE.T.C", body)["num_pending"], 1)

    def test_refused(self) -> None:
        config = {"name": "T", "subjects": ["a.*"], "subject_transform": {"src": "a.*", "dest": "b.$2"}}
        self.assertEqual(self.talk.refused("STREAM.CREATE.T", config), 10156)

    def test_republishing(self) -> None:
        self.talk.subscribe("copy.>", "9")
        self.create("R", subjects=["r.>"], republish={"src": "r.>", "dest": "copy.>"})
        self.talk.put("r.a", b"1")
        self.talk.put("r.b", b"2")
        self.talk.put("r.a", b"3")
        copies = [op for op in self.talk.take() if op.subject.startswith("copy")]
        self.assertEqual(
            [(op.subject, op.payload) for op in copies],
            [("copy.a", b"1"), ("copy.b", b"2"), ("copy.a", b"3")],
        )
        headers = [wire.nats_headers(op.headers) for op in copies]
        self.assertEqual([(h["Sequence"], h["Last-Sequence"]) for h in headers], [("1", "0"), ("2", "0"), ("3", "1")])

    def test_republishing_headers_only(self) -> None:
        self.talk.subscribe("copy.>", "9")
        self.create("R", subjects=["r.>"], republish={"dest": "copy.>", "headers_only": True})
        self.talk.put("r.a", b"123")
        [copy] = [op for op in self.talk.take() if op.subject == "copy.r.a"]
        self.assertEqual((copy.payload, wire.nats_headers(copy.headers)["Msg-Size"]), (b"", "3"))

    def test_republishing_in_a_circle(self) -> None:
        config = {"name": "R", "subjects": ["r.>"], "republish": {"src": "r.>", "dest": "r.x.>"}}
        self.assertEqual(self.talk.refused("STREAM.CREATE.R", config), 10052)


class OriginTests(FeatureCase):
    def test_mirror(self) -> None:
        self.create("A", subjects=["a.>"])
        for number in range(3):
            self.talk.put("a.x", b"%d" % number)
        self.talk.api("STREAM.MSG.DELETE.A", {"seq": 2})
        self.create("M", mirror={"name": "A"})
        self.talk.put("a.y", b"3")
        self.assertEqual(self.all("M"), [("a.x", b"0"), ("a.x", b"2"), ("a.y", b"3")])
        info = self.talk.api("STREAM.INFO.M")
        self.assertEqual((info["mirror"]["lag"], info["state"]["last_seq"]), (0, 4))

    def test_mirror_goes_on_after_a_restart(self) -> None:
        self.create("A", subjects=["a.>"])
        self.create("M", mirror={"name": "A", "filter_subject": "a.x"})
        self.talk.put("a.x", b"1")
        self.talk.put("a.y", b"2")
        self.restart()
        self.talk.put("a.x", b"3")
        self.assertEqual(self.all("M"), [("a.x", b"1"), ("a.x", b"3")])

    def test_mirror_becomes_a_stream(self) -> None:
        self.create("A", subjects=["a.>"])
        self.talk.put("a.x", b"1")
        self.create("M", mirror={"name": "A"})
        self.assertEqual(self.talk.refused("STREAM.UPDATE.M", {"name": "M", "mirror": {"name": "B"}}), 10055)
        self.talk.api("STREAM.UPDATE.M", {"name": "M", "subjects": ["m"]})
        self.talk.put("a.x", b"unseen")
        self.talk.put("m", b"2")
        self.assertEqual(self.all("M"), [("a.x", b"1"), ("m", b"2")])

    def test_sources(self) -> None:
        self.create("A", subjects=["a.>"])
        self.create("B", subjects=["b.>"])
        for number in range(3):
            self.talk.put("a.x", b"a%d" % number)
        rows = [{"src": "b.*", "dest": "from.b.$1"}]
        self.create("S", sources=[{"name": "A", "opt_start_seq": 2}, {"name": "B", "subject_transforms": rows}])
        self.talk.put("b.y", b"b")
        self.assertEqual(self.all("S"), [("a.x", b"a1"), ("a.x", b"a2"), ("from.b.y", b"b")])
        self.assertEqual(self.get("S", 1)[2]["Nats-Stream-Source"], "A 2 > > a.x")

    def test_sources_repeat_nothing_after_a_restart(self) -> None:
        self.create("A", subjects=["a.>"])
        self.create("S", sources=[{"name": "A"}])
        for number in range(3):
            self.talk.put("a.x", b"%d" % number)
        self.restart()
        self.talk.put("a.x", b"3")
        self.assertEqual([payload for _, payload in self.all("S")], [b"0", b"1", b"2", b"3"])

    def test_source_from_a_time_on(self) -> None:
        self.create("A", subjects=["a.>"])
        self.talk.put("a.x", b"old")
        self.bench.advance(5)
        now = format_time(self.bench.engine.now() - SECOND)
        self.talk.put("a.x", b"new")
        self.create("S", sources=[{"name": "A", "opt_start_time": now}])
        self.assertEqual(self.all("S"), [("a.x", b"new")])

    def test_lifetimes_go_along_where_they_are_heeded(self) -> None:
        self.create("A", subjects=["a.>"], allow_msg_ttl=True)
        self.create("M", mirror={"name": "A"}, allow_msg_ttl=True)
        self.create("S", sources=[{"name": "A"}])
        self.talk.put("a.x", b"1", TTL="2s")
        self.restart()
        self.bench.advance(3)
        self.assertEqual([self.all(name) for name in "AMS"], [[], [], [("a.x", b"1")]])

    def test_origin_that_comes_later(self) -> None:
        self.create("S", sources=[{"name": "A"}])
        self.create("A", subjects=["a.>"])
        self.talk.put("a.x", b"1")
        self.assertEqual(self.all("S"), [("a.x", b"1")])
        self.talk.api("STREAM.DELETE.A")
        self.talk.api("STREAM.DELETE.S")

    def test_an_origin_that_keeps_what_is_wanted(self) -> None:
        self.create("A", subjects=["a.>"], retention="interest")
        self.create("S", sources=[{"name": "A", "filter_subject": "a.x"}])
        self.talk.put("a.x", b"1")
        self.talk.put("a.y", b"2")
        self.assertEqual(self.all("S"), [("a.x", b"1")])
        self.assertEqual(self.talk.api("STREAM.INFO.A")["state"]["messages"], 0)

    def test_long_backlog_in_portions(self) -> None:
        self.create("A", subjects=["a.>"], storage="memory")
        for number in range(700):
            self.talk.publish("a.x", b"%d" % number)
        self.create("M", mirror={"name": "A"}, storage="memory")
        self.bench.advance(0.5)
        self.assertEqual(self.talk.api("STREAM.INFO.M")["state"]["messages"], 700)

    def test_refusals(self) -> None:
        for config, code in (
            ({"mirror": {"name": "A"}, "subjects": ["x"]}, 10034),
            ({"mirror": {"name": "A"}, "sources": [{"name": "B"}]}, 10031),
            ({"mirror": {"name": "a.b"}}, 10052),
            ({"sources": [{"name": "A", "external": {"api": "x"}}]}, 10052),
            ({"sources": [{"name": "A", "subject_transforms": [{"src": ">"}, {"src": "a.>"}]}]}, 10147),
            ({"sources": [{"name": "A", "opt_start_time": "soon"}]}, 10025),
        ):
            self.assertEqual(self.talk.refused("STREAM.CREATE.S", {"name": "S", **config}), code, config)


class BatchTests(FeatureCase):
    def setUp(self) -> None:
        super().setUp()
        self.create("S", subjects=["s.>"], allow_atomic=True)

    def part(self, number: int, commit: str = "", name: str = "b", subject: str = "s.a", **more: str) -> dict[str, Any]:
        headers = {"Batch_Id": name, "Batch_Sequence": str(number), **more}
        if commit:
            headers["Batch_Commit"] = commit
        return self.talk.put(subject, b"%d" % number, **headers)

    def code(self, answer: dict[str, Any]) -> int:
        return int(answer.get("error", {}).get("err_code", 0))

    def test_all_at_once(self) -> None:
        self.assertEqual(self.part(1), {})
        self.assertEqual(self.part(2), {})
        self.assertEqual(self.all("S"), [])
        self.assertEqual(self.part(3, "1"), {"stream": "S", "seq": 3, "batch": "b", "count": 3})
        self.assertEqual([payload for _, payload in self.all("S")], [b"1", b"2", b"3"])

    def test_end_without_a_message(self) -> None:
        self.part(1)
        self.assertEqual(self.part(2, "eob")["count"], 1)
        self.assertEqual(self.code(self.part(1, "eob")), 10176)

    def test_none_if_one_is_refused(self) -> None:
        self.part(1)
        self.assertEqual(self.code(self.part(2, "1", Expected_Last_Sequence="99")), 10071)
        self.part(1, Msg_Id="x")
        self.assertEqual(self.code(self.part(2, "1", Msg_Id="x")), 10201)
        self.assertEqual(self.all("S"), [])

    def test_expectations_see_the_batch(self) -> None:
        self.part(1, Expected_Last_Sequence="0")
        self.assertEqual(self.part(2, "1", Expected_Last_Sequence="1")["seq"], 2)

    def test_gaps_and_nonsense(self) -> None:
        self.assertEqual(self.code(self.part(2)), 10176)
        self.part(1)
        self.assertEqual(self.code(self.part(3)), 10176)
        self.assertEqual(self.code(self.part(2, "1")), 10176)
        self.assertEqual(self.code(self.talk.put("s.a", Batch_Id="b")), 10175)
        self.assertEqual(self.code(self.talk.put("s.a", Batch_Id="b", Batch_Sequence="x")), 10175)
        self.assertEqual(self.code(self.part(1, name="n" * 65)), 10179)
        self.assertEqual(self.code(self.part(1, "maybe")), 10200)
        self.create("N", subjects=["n"])
        self.assertEqual(self.code(self.part(1, subject="n")), 10174)

    def test_bounds(self) -> None:
        for number in range(1, 1001):
            self.assertEqual(self.part(number), {})
        self.assertEqual(self.code(self.part(1001)), 10199)
        for number in range(50):
            self.assertEqual(self.part(1, name=f"open{number}"), {})
        self.assertEqual(self.code(self.part(1, name="one too many")), 10176)
        self.bench.advance(11, 1.0)
        self.assertEqual(self.part(1, name="one too many"), {})

    def test_half_a_batch_does_not_survive_a_crash(self) -> None:
        self.talk.put("s.a", b"before")
        self.part(1, subject="s.first")
        self.part(2, "1", subject="s.second")
        self.restart()
        self.assertEqual(len(self.all("S")), 3)
        self.part(1, subject="s.first")
        self.part(2, "1", subject="s.second")
        self.bench.crash()
        [segment] = (self.folder / "streams").glob("S~*/*.seg")
        segment.write_bytes(segment.read_bytes()[:-3])
        self.begin(clock=self.bench.clock)
        self.assertEqual(len(self.all("S")), 3)


class ScheduleTests(FeatureCase):
    def setUp(self) -> None:
        super().setUp()
        self.create("S", subjects=["s.>"], allow_msg_schedules=True, allow_msg_ttl=True)

    def at(self, seconds: float) -> str:
        return "@at " + format_time(self.bench.engine.now() + int(seconds * SECOND))

    def test_at_its_time(self) -> None:
        self.talk.ask(
            "s.plan",
            b"x",
            {
                "Nats-Schedule": self.at(3),
                "Nats-Schedule-Target": "s.out",
                "Nats-Schedule-TTL": "1h",
                "X": "y",
            },
        )
        self.bench.advance(2.5)
        self.assertEqual(self.all("S"), [("s.plan", b"x")])
        self.bench.advance(1)
        self.assertEqual(self.all("S"), [("s.out", b"x")])
        headers = self.get("S", 2)[2]
        self.assertEqual(
            headers, {"X": "y", "Nats-Scheduler": "s.plan", "Nats-Schedule-Next": "purge", "Nats-TTL": "1h"}
        )

    def test_again_and_again(self) -> None:
        self.talk.put("s.plan", b"x", Schedule="@every 2s", Schedule_Target="s.out")
        self.bench.advance(7)
        self.assertEqual(self.all("S"), [("s.plan", b"x"), *[("s.out", b"x")] * 3])

    def test_survives_a_restart(self) -> None:
        self.talk.put("s.plan", b"x", Schedule=self.at(5), Schedule_Target="s.out")
        self.restart()
        self.bench.advance(6)
        self.assertEqual(self.all("S"), [("s.out", b"x")])

    def test_a_new_plan_replaces_the_old_one(self) -> None:
        self.talk.put("s.plan", b"1", Schedule=self.at(2), Schedule_Target="s.out")
        self.talk.put("s.plan", b"2", Schedule=self.at(4), Schedule_Target="s.out")
        self.bench.advance(6)
        self.assertEqual(self.all("S"), [("s.out", b"2")])

    def test_refusals(self) -> None:
        for headers, code in (
            ({"Schedule": "@at soon", "Schedule_Target": "s.out"}, 10189),
            ({"Schedule": "@every 1ms", "Schedule_Target": "s.out"}, 10189),
            ({"Schedule": "* * * * *", "Schedule_Target": "s.out"}, 10189),
            ({"Schedule": self.at(1)}, 10190),
            ({"Schedule": self.at(1), "Schedule_Target": "other"}, 10190),
            ({"Schedule": self.at(1), "Schedule_Target": "s.*"}, 10190),
            ({"Schedule": self.at(1), "Schedule_Target": "s.out", "Schedule_TTL": "x"}, 10165),
        ):
            self.assertEqual(self.talk.put("s.a", **headers)["error"]["err_code"], code, headers)
        self.create("N", subjects=["n"])
        answer = self.talk.put("n", Schedule=self.at(1), Schedule_Target="n")
        self.assertEqual(answer["error"]["err_code"], 10188)


class CounterTests(FeatureCase):
    def test_adding_up(self) -> None:
        self.create("C", subjects=["c.>"], allow_msg_counter=True)
        values = [self.talk.put("c.a", Incr=text)["val"] for text in ("+5", "-7", "100000000000000000000")]
        self.assertEqual(values, ["5", "-2", "99999999999999999998"])
        self.assertEqual(self.all("C")[-1], ("c.a", b'{"val":"99999999999999999998"}'))
        self.assertEqual(self.talk.put("c.b", Incr="1")["val"], "1")

    def test_refusals(self) -> None:
        self.create("C", subjects=["c.>"], allow_msg_counter=True)
        self.create("N", subjects=["n"])
        for subject, payload, headers, code in (
            ("c.a", b"", {}, 10169),
            ("c.a", b"x", {"Incr": "1"}, 10170),
            ("c.a", b"", {"Incr": "x"}, 10171),
            ("n", b"", {"Incr": "1"}, 10168),
        ):
            self.assertEqual(self.talk.put(subject, payload, **headers)["error"]["err_code"], code)


class AccountTests(FeatureCase):
    def test_limits(self) -> None:
        self.bench.engine.limits = Limits(
            max_streams=2,
            storage_max_stream_bytes=1000,
            max_storage=1500,
            max_bytes_required=True,
            max_ack_pending=5,
        )
        for config, code in (({}, 10113), ({"max_bytes": 2000}, 10122)):
            self.assertEqual(self.talk.refused("STREAM.CREATE.A", {"name": "A", **config}), code)
        self.create("A", max_bytes=1000)
        self.assertEqual(self.talk.refused("STREAM.CREATE.B", {"name": "B", "max_bytes": 1000}), 10047)
        self.create("B", max_bytes=500)
        self.assertEqual(self.talk.refused("STREAM.CREATE.C", {"name": "C", "max_bytes": 1}), 10027)
        body = {"config": {"name": "C", "ack_policy": "explicit", "max_ack_pending": 6}}
        self.assertEqual(self.talk.refused("CONSUMER.CREATE.A.C", body), 10121)
        info = self.talk.api("INFO")
        self.assertEqual((info["limits"]["max_streams"], info["api"]["errors"]), (2, 5))

    def test_domain(self) -> None:
        self.begin(domain="hub")
        answer = orjson.loads(self.talk.ask("$JS.hub.API.INFO").payload)
        self.assertEqual(answer["domain"], "hub")
        self.assertEqual(wire.decode_status(self.talk.ask("$JS.other.API.INFO").headers)[0], 503)

    def test_advisories(self) -> None:
        self.talk.subscribe("$JS.EVENT.ADVISORY.>", "9")
        self.create("A")
        self.talk.api("CONSUMER.CREATE.A.C", {"config": {"name": "C"}})
        self.talk.api("CONSUMER.DELETE.A.C")
        self.talk.api("STREAM.UPDATE.A", {"name": "A", "max_msgs": 5})
        self.talk.api("STREAM.DELETE.A")
        self.assertEqual(
            [op.subject.removeprefix("$JS.EVENT.ADVISORY.") for op in self.talk.take()],
            [
                "STREAM.CREATED.A",
                "CONSUMER.CREATED.A.C",
                "CONSUMER.DELETED.A.C",
                "STREAM.UPDATED.A",
                "STREAM.DELETED.A",
            ],
        )
