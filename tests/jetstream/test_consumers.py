"""What consumers promise, asked through the API: order, acknowledgement, redelivery, requests, and the
clock.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from dendrite_tw.jetstream import wire
from dendrite_tw.jetstream.times import SECOND
from dendrite_tw.jetstream.wire import Msg, Unsub
from tests.jetstream.support import DiskCase, ServerBench


class ConsumerCase(DiskCase):
    storage = "memory"

    def setUp(self) -> None:
        super().setUp()
        self.folder = Path(self.mktemp())
        self.begin()
        self.stream()

    def begin(self, **more: Any) -> None:
        self.bench = ServerBench(self.folder, **more)
        self.talk = self.bench.talker

    def restart(self) -> None:
        self.bench.crash()
        self.begin(clock=self.bench.clock)

    def stream(self, **config: Any) -> None:
        full = {"name": "S", "subjects": ["s.>"], "storage": self.storage, **config}
        self.assertNotIn("error", self.talk.api("STREAM.CREATE.S", full))

    def fill(self, count: int, subject: str = "s.a") -> None:
        for number in range(count):
            self.talk.put(subject, b"%d" % number)

    def create(self, name: str = "C", *, action: str = "", **config: Any) -> dict[str, Any]:
        full = {"name": name, "durable_name": name, "ack_policy": "explicit", **config}
        if full["durable_name"] is None:
            del full["durable_name"]
        body = {"stream_name": "S", "config": full, "action": action}
        answer = self.talk.api(f"CONSUMER.CREATE.S.{name}", body)
        self.assertNotIn("error", answer)
        return answer

    def info(self, name: str = "C") -> dict[str, Any]:
        return self.talk.api(f"CONSUMER.INFO.S.{name}")

    def pull(self, name: str = "C", reply: str = "_INBOX.pull", **asked: Any) -> list[Msg]:
        asked = {"batch": 1, "no_wait": True, **asked}
        self.talk.publish(f"$JS.API.CONSUMER.MSG.NEXT.S.{name}", orjson.dumps(asked), reply)
        return self.talk.take()

    def answer(self, message: Msg, word: bytes = b"+ACK") -> None:
        self.talk.publish(message.reply, word)

    def bodies(self, messages: list[Msg]) -> list[bytes | int]:
        return [op.payload if op.reply else wire.decode_status(op.headers)[0] for op in messages]


class PullTests(ConsumerCase):
    def test_messages_in_order_then_none(self) -> None:
        self.fill(3)
        self.create()
        self.assertEqual(self.bodies(self.pull(batch=2)), [b"0", b"1"])
        self.assertEqual(self.bodies(self.pull(batch=2)), [b"2", 404])
        self.assertEqual(self.bodies(self.pull()), [404])

    def test_numbers_in_the_reply(self) -> None:
        self.fill(2)
        self.create()
        [message] = self.pull()
        parts = message.reply.split(".")
        self.assertEqual(parts[:7] + parts[8:], ["$JS", "ACK", "S", "C", "1", "1", "1", "1"])

    def test_request_waits_for_messages(self) -> None:
        self.create()
        self.assertEqual(self.pull(batch=2, no_wait=False, expires=SECOND), [])
        self.fill(1)
        self.assertEqual(self.bodies(self.talk.take()), [b"0"])
        self.bench.advance(1.1)
        [end] = self.talk.take()
        self.assertEqual(
            end.headers,
            b"NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: 1\r\nNats-Pending-Bytes: 0\r\n\r\n",
        )
        self.fill(1)
        self.assertEqual(self.talk.take(), [])

    def test_requests_are_served_in_turn(self) -> None:
        self.create()
        for number in range(3):
            self.pull(reply=f"_INBOX.p{number}", no_wait=False, expires=9 * SECOND)
        self.fill(3)
        self.assertEqual(self.bodies(self.talk.take()), [b"0", b"1", b"2"])

    def test_request_of_somebody_gone_is_passed_over(self) -> None:
        self.create()
        self.talk.subscribe("other", "9")
        self.pull(reply="other", no_wait=False, expires=9 * SECOND)
        self.talk.session.handle(Unsub("9"))
        self.pull(no_wait=False, expires=9 * SECOND)
        self.fill(1)
        self.assertEqual(self.bodies(self.talk.take()), [b"0"])

    def test_no_waiting_but_a_little_patience(self) -> None:
        self.create()
        self.assertEqual(self.pull(batch=5, expires=SECOND), [])
        self.fill(1)
        self.assertEqual(self.bodies(self.talk.take()), [b"0", 404])

    def test_bytes(self) -> None:
        self.create()
        self.fill(5)
        self.assertEqual(self.bodies(self.pull(batch=5, max_bytes=10)), [409])
        got = self.pull(batch=5, max_bytes=120, no_wait=False, expires=SECOND)
        self.assertEqual(self.bodies(got), [b"0", b"1", 409])
        self.assertEqual(self.bodies(self.pull(batch=3)), [b"2", b"3", b"4"])

    def test_limits_of_requests(self) -> None:
        self.create(max_batch=2, max_expires=SECOND, max_bytes=100, max_waiting=1)
        for asked in ({"batch": 3}, {"expires": 2 * SECOND}, {"max_bytes": 200}):
            self.assertEqual(self.bodies(self.pull(**asked)), [409])
        self.pull(no_wait=False, expires=SECOND)
        self.assertEqual(self.bodies(self.pull(no_wait=False, expires=SECOND)), [409])

    def test_odd_requests(self) -> None:
        self.create()
        self.fill(4)
        for body in (b"1", b"", b"nonsense", b'{"batch":-3}'):
            self.talk.publish("$JS.API.CONSUMER.MSG.NEXT.S.C", body, "_INBOX.pull")
        self.assertEqual(self.bodies(self.talk.take()), [b"0", b"1", b"2", b"3"])
        self.assertEqual(self.bodies(self.pull(batch="x")), [400])
        self.assertEqual(self.bodies(self.pull(idle_heartbeat=SECOND)), [400])

    def test_heartbeats(self) -> None:
        self.create()
        self.pull(no_wait=False, expires=3 * SECOND, idle_heartbeat=SECOND)
        self.bench.advance(2.5)
        beats = self.talk.take()
        self.assertEqual(self.bodies(beats), [100, 100])
        self.assertEqual(wire.nats_headers(beats[0].headers), {"Last-Consumer": "0", "Last-Stream": "0"})

    def test_only_headers(self) -> None:
        self.create(headers_only=True)
        self.talk.ask("s.a", b"12345", {"X": "y"})
        [message] = self.pull()
        self.assertEqual(wire.decode_headers(message.headers), {"X": ["y"], "Nats-Msg-Size": ["5"]})
        self.assertEqual(message.payload, b"")

    def test_deletion_ends_requests(self) -> None:
        self.create()
        self.pull(no_wait=False, expires=9 * SECOND)
        self.talk.api("CONSUMER.DELETE.S.C")
        self.assertEqual(self.bodies(self.talk.take()), [409])


class AcknowledgementTests(ConsumerCase):
    def test_explicit_in_any_order(self) -> None:
        self.fill(4)
        self.create()
        got = self.pull(batch=4)
        for position, floor in ((2, 0), (0, 1), (1, 3), (3, 4)):
            self.answer(got[position])
            self.assertEqual(self.info()["ack_floor"]["stream_seq"], floor)
        self.assertEqual(self.info()["num_ack_pending"], 0)

    def test_all_up_to_here(self) -> None:
        self.fill(4)
        self.create(ack_policy="all")
        got = self.pull(batch=4)
        self.answer(got[2])
        info = self.info()
        self.assertEqual((info["ack_floor"]["stream_seq"], info["num_ack_pending"]), (3, 1))
        self.answer(got[0])
        self.assertEqual(self.info()["ack_floor"]["stream_seq"], 3)

    def test_not_at_all(self) -> None:
        self.fill(2)
        self.create(ack_policy="none")
        self.pull(batch=2)
        info = self.info()
        self.assertEqual((info["ack_floor"]["stream_seq"], info["num_ack_pending"]), (2, 0))

    def test_unacknowledged_comes_again(self) -> None:
        self.fill(2)
        self.create(ack_wait=SECOND)
        first, _ = self.pull(batch=2)
        self.answer(first)
        self.bench.advance(1.2)
        [again, _] = self.pull(batch=2)
        self.assertEqual((again.payload, again.reply.split(".")[4:7]), (b"1", ["2", "2", "3"]))
        self.assertEqual(self.info()["num_redelivered"], 1)
        self.answer(again)
        self.assertEqual(self.info()["num_redelivered"], 0)

    def test_old_ones_come_before_new_ones(self) -> None:
        self.fill(3)
        self.create(ack_wait=SECOND)
        self.pull(batch=2)
        self.bench.advance(1.2)
        self.assertEqual(self.bodies(self.pull(batch=3)), [b"0", b"1", b"2"])

    def test_work_in_progress(self) -> None:
        self.fill(1)
        self.create(ack_wait=SECOND)
        [message] = self.pull()
        for _ in range(5):
            self.bench.advance(0.8)
            self.answer(message, b"+WPI")
        self.assertEqual(self.bodies(self.pull()), [404])

    def test_nak(self) -> None:
        self.fill(2)
        self.create()
        first, second = self.pull(batch=2)
        self.answer(second, b"-NAK")
        self.answer(first, b'-NAK {"delay": 2000000000}')
        self.assertEqual(self.bodies(self.pull(batch=2)), [b"1", 404])
        self.bench.advance(2.2)
        self.assertEqual(self.bodies(self.pull(batch=2)), [b"0", 404])

    def test_termination(self) -> None:
        self.talk.subscribe("$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.>", "9")
        self.fill(1)
        self.create(ack_wait=SECOND)
        [message] = self.pull()
        self.answer(message, b"+TERM no use")
        [advisory] = self.talk.take()
        self.assertEqual(orjson.loads(advisory.payload)["reason"], "no use")
        self.bench.advance(2)
        self.assertEqual(self.bodies(self.pull()), [404])

    def test_acknowledge_and_ask_for_the_next(self) -> None:
        self.fill(2)
        self.create()
        [message] = self.pull()
        self.talk.publish(message.reply, b"+NXT 1", "_INBOX.next")
        self.assertEqual(self.bodies(self.talk.take()), [b"1"])
        self.assertEqual(self.info()["ack_floor"]["stream_seq"], 1)

    def test_acknowledgement_is_confirmed_if_asked(self) -> None:
        self.fill(1)
        self.create()
        [message] = self.pull()
        self.assertEqual(self.talk.ask(message.reply, b"+ACK").payload, b"")

    def test_nonsense_changes_nothing(self) -> None:
        self.fill(1)
        self.create()
        [message] = self.pull()
        for subject, word in (
            (message.reply, b"+NONSENSE"),
            ("$JS.ACK.S.C.1.99.99.1.1", b"+ACK"),
            ("$JS.ACK.S.NONE.1.1.1.1.1", b"+ACK"),
            ("$JS.ACK.NONE.C.1.1.1.1.1", b"+ACK"),
            ("$JS.ACK.S.C.1.x.1.1.1", b"+ACK"),
            ("$JS.ACK.S.C", b"+ACK"),
        ):
            self.talk.publish(subject, word)
        self.assertEqual(self.info()["num_ack_pending"], 1)

    def test_backoff(self) -> None:
        self.fill(1)
        self.create(backoff=[SECOND, 3 * SECOND], max_deliver=3)
        self.pull(no_wait=False, batch=9, expires=20 * SECOND)
        moments = []
        for tenth in range(1, 100):
            self.bench.advance(0.1)
            if any(op.reply for op in self.talk.take()):
                moments.append(tenth)
        self.assertEqual([round(moment / 10) for moment in moments], [1, 4])

    def test_so_often_and_no_more(self) -> None:
        self.talk.subscribe("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.>", "9")
        self.fill(2)
        self.create(ack_wait=SECOND, max_deliver=2)
        self.pull(no_wait=False, batch=9, expires=20 * SECOND)
        self.bench.advance(10)
        heard = self.talk.take()
        advisories = [orjson.loads(op.payload) for op in heard if op.subject.startswith("$JS.EVENT")]
        self.assertEqual([(row["stream_seq"], row["deliveries"]) for row in advisories], [(1, 2), (2, 2)])
        info = self.info()
        self.assertEqual((info["num_ack_pending"], info["num_redelivered"], info["ack_floor"]["stream_seq"]), (0, 2, 0))

    def test_only_so_many_under_way(self) -> None:
        self.fill(5)
        self.create(max_ack_pending=2, ack_wait=5 * SECOND)
        got = self.pull(no_wait=False, batch=5, expires=20 * SECOND)
        self.assertEqual(self.bodies(got), [b"0", b"1"])
        self.answer(got[0])
        self.assertEqual(self.bodies(self.talk.take()), [b"2"])
        self.bench.advance(6)
        self.assertEqual(self.bodies(self.talk.take()), [b"1", b"2"])


class StartTests(ConsumerCase):
    def first(self, **config: Any) -> list[bytes | int]:
        name = f"C{len(self.talk.api('CONSUMER.NAMES.S')['consumers'])}"
        self.create(name, **config)
        return self.bodies(self.pull(name, batch=9))

    def test_policies(self) -> None:
        for number, subject in enumerate(("s.a", "s.b", "s.a", "s.b")):
            self.talk.put(subject, b"%d" % number)
            self.bench.advance(1)
        start = self.bench.engine.now() - 2 * SECOND - SECOND // 2
        from_there = self.talk.api("STREAM.MSG.GET.S", {"seq": 3})["message"]["time"]
        self.assertGreater(start, 0)
        for config, expected in (
            ({}, [b"0", b"1", b"2", b"3"]),
            ({"deliver_policy": "last"}, [b"3"]),
            ({"deliver_policy": "last", "filter_subject": "s.a"}, [b"2"]),
            ({"deliver_policy": "new"}, []),
            ({"deliver_policy": "by_start_sequence", "opt_start_seq": 3}, [b"2", b"3"]),
            ({"deliver_policy": "by_start_sequence", "opt_start_seq": 99}, []),
            ({"deliver_policy": "by_start_time", "opt_start_time": from_there}, [b"2", b"3"]),
            ({"deliver_policy": "last_per_subject", "filter_subject": "s.>"}, [b"2", b"3"]),
            ({"filter_subject": "s.b"}, [b"1", b"3"]),
            ({"filter_subjects": ["s.b", "s.c"]}, [b"1", b"3"]),
        ):
            self.assertEqual(self.first(**config), [*expected, 404], config)

    def test_pending_is_counted(self) -> None:
        for subject in ("s.a", "s.b", "s.a"):
            self.talk.put(subject)
        self.create("C", filter_subject="s.a")
        self.assertEqual(self.info()["num_pending"], 2)
        self.talk.put("s.a")
        self.talk.put("s.b")
        self.assertEqual(self.info()["num_pending"], 3)
        self.pull()
        self.assertEqual(self.info()["num_pending"], 2)
        self.talk.api("STREAM.PURGE.S", {"filter": "s.a"})
        self.assertEqual(self.info()["num_pending"], 0)


class PushTests(ConsumerCase):
    def test_pushed_to_whoever_listens(self) -> None:
        self.fill(2)
        self.create(deliver_subject="out", ack_policy="none")
        self.assertEqual(self.talk.take(), [])
        self.talk.subscribe("out", "9")
        self.talk.publish("nothing")
        self.assertEqual(self.talk.payloads(), [b"0", b"1"])
        self.fill(1)
        self.assertEqual(self.talk.payloads(), [b"0"])
        self.assertTrue(self.info()["push_bound"])

    def test_two_consumers_of_one_destination(self) -> None:
        self.fill(1)
        for name in ("A", "B"):
            self.create(name, deliver_subject="out", ack_policy="none")
        self.talk.subscribe("out", "9")
        self.assertEqual(self.talk.payloads(), [b"0", b"0"])
        self.talk.api("CONSUMER.DELETE.S.B")
        self.fill(1)
        self.assertEqual(self.talk.payloads(), [b"0"])

    def test_queue_group(self) -> None:
        self.create(deliver_subject="out", deliver_group="g", ack_policy="none")
        self.talk.subscribe("out", "8")
        self.fill(1)
        self.assertEqual(self.talk.take(), [])
        self.talk.subscribe("out", "9", "g")
        self.fill(1)
        self.assertEqual([op.sid for op in self.talk.take() if op.sid == "9"], ["9", "9"])

    def test_heartbeats_when_idle(self) -> None:
        self.talk.subscribe("out", "9")
        self.create(deliver_subject="out", idle_heartbeat=SECOND)
        self.bench.advance(2.3)
        self.assertEqual(self.bodies(self.talk.take()), [100, 100])
        self.fill(1)
        self.bench.advance(0.9)
        self.assertEqual(self.bodies(self.talk.take()), [b"0"])

    def test_flow_control(self) -> None:
        self.talk.subscribe("out", "9")
        self.create(deliver_subject="out", ack_policy="none", idle_heartbeat=SECOND, flow_control=True)
        for _ in range(20):
            self.talk.put("s.a", b"x" * 50_000)
        heard = self.talk.take()
        [question] = [op for op in heard if op.reply.startswith("$JS.FC")]
        self.assertLess(len(heard), 10)
        self.bench.advance(1.2)
        [beat] = self.talk.take()
        self.assertEqual(wire.nats_headers(beat.headers)["Consumer-Stalled"], question.reply)
        seen = len(heard) - 1
        while seen < 20:
            self.talk.publish(question.reply)
            heard = self.talk.take()
            questions = [op for op in heard if op.reply.startswith("$JS.FC")]
            seen += len(heard) - len(questions)
            question = questions[0] if questions else question
            self.assertTrue(heard)
        self.assertEqual(seen, 20)

    def test_rate_limit(self) -> None:
        self.talk.subscribe("out", "9")
        self.create(deliver_subject="out", ack_policy="none", rate_limit_bps=8000)
        for _ in range(5):
            self.talk.put("s.a", b"x" * 1000)
        counts = []
        self.bench.advance(0.5)
        for _ in range(5):
            counts.append(len(self.talk.take()))
            self.bench.advance(1)
        self.assertEqual(counts, [1, 1, 1, 1, 1])

    def test_replay_as_it_once_came(self) -> None:
        for _ in range(3):
            self.talk.put("s.a")
            self.bench.advance(2)
        self.talk.subscribe("out", "9")
        self.create(deliver_subject="out", ack_policy="none", replay_policy="original")
        counts = []
        self.bench.advance(0.5)
        for _ in range(5):
            counts.append(len(self.talk.take()))
            self.bench.advance(1)
        self.assertEqual(counts, [1, 0, 1, 0, 1])

    def test_redelivery_to_a_pushed_consumer(self) -> None:
        self.talk.subscribe("out", "9")
        self.create(deliver_subject="out", ack_wait=SECOND)
        self.fill(1)
        self.bench.advance(2.5)
        self.assertEqual(self.talk.payloads(), [b"0", b"0", b"0"])

    def test_requests_are_refused(self) -> None:
        self.create(deliver_subject="out")
        self.assertEqual(self.bodies(self.pull()), [409])


class PauseTests(ConsumerCase):
    def test_paused_and_resumed(self) -> None:
        self.create()
        self.fill(1)
        until = "2030-01-01T00:00:00Z"
        answer = self.talk.api("CONSUMER.PAUSE.S.C", {"pause_until": until})
        self.assertEqual((answer["paused"], answer["pause_until"]), (True, until))
        self.assertEqual(self.pull(no_wait=False, expires=99 * SECOND), [])
        self.assertEqual(self.info()["paused"], True)
        self.talk.api("CONSUMER.PAUSE.S.C", {})
        self.assertEqual(self.bodies(self.talk.take()), [b"0"])

    def test_ends_by_itself(self) -> None:
        from dendrite_tw.jetstream.times import format_time

        self.fill(1)
        until = format_time(self.bench.engine.now() + 3 * SECOND)
        self.assertTrue(self.create(pause_until=until)["paused"])
        self.pull(no_wait=False, expires=99 * SECOND)
        self.bench.advance(2.5)
        self.assertEqual(self.talk.take(), [])
        self.bench.advance(1)
        self.assertEqual(self.bodies(self.talk.take()), [b"0"])

    def test_not_a_time(self) -> None:
        self.create()
        self.assertEqual(self.talk.refused("CONSUMER.PAUSE.S.C", {"pause_until": "soon"}), 10003)


class RetentionTests(ConsumerCase):
    def stream(self, **config: Any) -> None:
        """Each test makes its own."""
        if config:
            super().stream(**config)

    def messages(self) -> int:
        count: int = self.talk.api("STREAM.INFO.S")["state"]["messages"]
        return count

    def test_interest(self) -> None:
        self.stream(retention="interest")
        self.fill(1)
        self.assertEqual(self.messages(), 0)
        self.create("A")
        self.create("B", filter_subject="s.b")
        self.fill(1, "s.a")
        self.fill(1, "s.b")
        self.assertEqual(self.messages(), 2)
        for message in self.pull("A", batch=2):
            self.answer(message)
        self.assertEqual(self.messages(), 1)
        [message] = self.pull("B")
        self.answer(message)
        self.assertEqual(self.messages(), 0)

    def test_interest_ends_with_the_consumer(self) -> None:
        self.stream(retention="interest")
        self.create("A")
        self.create("B")
        self.fill(3)
        for message in self.pull("A", batch=3):
            self.answer(message)
        self.assertEqual(self.messages(), 3)
        self.talk.api("CONSUMER.DELETE.S.B")
        self.assertEqual(self.messages(), 0)

    def test_interest_without_acknowledgement(self) -> None:
        self.stream(retention="interest")
        self.talk.subscribe("out", "9")
        self.create("A", deliver_subject="out", ack_policy="none")
        self.fill(3)
        self.assertEqual((len(self.talk.take()), self.messages()), (3, 0))

    def test_given_up_messages_stay(self) -> None:
        self.stream(retention="interest")
        self.create("A", max_deliver=1, ack_wait=SECOND)
        self.create("B")
        self.fill(1)
        self.pull("A")
        self.bench.advance(3)
        [message] = self.pull("B")
        self.answer(message)
        self.assertEqual(self.messages(), 1)

    def test_work_queue(self) -> None:
        self.stream(retention="workqueue")
        self.fill(2)
        self.create("A")
        first, second = self.pull("A", batch=2)
        self.answer(second)
        self.answer(first, b"+TERM")
        self.assertEqual(self.messages(), 0)

    def test_work_queue_has_one_consumer_for_a_message(self) -> None:
        self.stream(retention="workqueue")
        self.create("A", filter_subject="s.a")
        for config, code in (
            ({"ack_policy": "explicit"}, 10099),
            ({"ack_policy": "explicit", "filter_subject": "s.*"}, 10100),
            ({"ack_policy": "none", "filter_subject": "s.b"}, 10084),
            ({"ack_policy": "all", "filter_subject": "s.b", "deliver_subject": "out"}, 10098),
            ({"ack_policy": "explicit", "filter_subject": "s.b", "deliver_policy": "new"}, 10101),
        ):
            body = {"stream_name": "S", "config": {"name": "B", **config}}
            self.assertEqual(self.talk.refused("CONSUMER.CREATE.S.B", body), code, config)
        self.create("B", filter_subject="s.b")


class ManagementTests(ConsumerCase):
    def refused(self, config: dict[str, Any], name: str = "N", **more: Any) -> int:
        body = {"stream_name": "S", "config": {"name": name, **config}, **more}
        return self.talk.refused(f"CONSUMER.CREATE.S.{name}", body)

    def test_refusals(self) -> None:
        self.create()
        for config, code in (
            ({"ack_policy": "x"}, 10025),
            ({"deliver_policy": "x"}, 10025),
            ({"filter_subject": "t"}, 10093),
            ({"filter_subject": "s..a"}, 10093),
            ({"filter_subject": "s.a", "filter_subjects": ["s.b"]}, 10136),
            ({"filter_subjects": ["s.a", "s.*"]}, 10138),
            ({"deliver_subject": "a.*"}, 10079),
            ({"deliver_subject": "s.a"}, 10081),
            ({"deliver_subject": "d", "max_waiting": 1}, 10080),
            ({"deliver_subject": "d", "idle_heartbeat": 1}, 10083),
            ({"deliver_subject": "d", "flow_control": True}, 10108),
            ({"idle_heartbeat": SECOND}, 10088),
            ({"flow_control": True}, 10089),
            ({"rate_limit_bps": 1}, 10086),
            ({"deliver_policy": "by_start_sequence"}, 10094),
            ({"deliver_policy": "by_start_time"}, 10094),
            ({"deliver_policy": "last_per_subject"}, 10094),
            ({"opt_start_seq": 1}, 10094),
            ({"backoff": [1, 2], "max_deliver": 2}, 10116),
            ({"num_replicas": 3}, 10074),
            ({"durable_name": "other"}, 10017),
            ({"pause_until": "soon"}, 10025),
        ):
            self.assertEqual(self.refused(config), code, config)
        self.assertEqual(self.refused({}, action="update"), 10149)
        self.assertEqual(self.refused({"max_deliver": 7}, name="C", action="create"), 10148)
        for name in ("a*b", "x" * 300):
            self.assertIn(self.talk.refused(f"CONSUMER.CREATE.S.{name}", {"config": {}}), (10052, 10003))
        for request, body, code in (
            ("CONSUMER.CREATE.S", {"config": {"durable_name": "D"}}, 10020),
            ("CONSUMER.CREATE.S.N", {"stream_name": "T", "config": {}}, 10056),
            ("CONSUMER.CREATE.S.N.s.a", {"config": {"filter_subject": "s.b"}}, 10131),
            ("CONSUMER.CREATE.NONE.N", {"config": {}}, 10059),
            ("CONSUMER.DURABLE.CREATE.S.N", {"config": {}}, 10018),
            ("CONSUMER.DURABLE.CREATE.S.N", {"config": {"durable_name": "M"}}, 10017),
            ("CONSUMER.INFO.S.N", b"", 10014),
            ("CONSUMER.DELETE.S.N", b"", 10014),
            ("CONSUMER.INFO.S", b"", 10003),
            ("CONSUMER.LIST.NONE", b"", 10059),
        ):
            self.assertEqual(self.talk.refused(request, body), code, (request, body))

    def test_creation_when_it_exists(self) -> None:
        self.create()
        self.create()
        self.assertEqual(
            self.refused({"durable_name": "C", "ack_policy": "explicit", "max_deliver": 5}, "C", action="create"),
            10148,
        )
        changed = self.create(max_deliver=5, filter_subject="s.a")
        self.assertEqual((changed["config"]["max_deliver"], changed["config"]["filter_subject"]), (5, "s.a"))

    def test_limits(self) -> None:
        self.talk.api(
            "STREAM.CREATE.L",
            {
                "name": "L",
                "subjects": ["l"],
                "storage": "memory",
                "max_consumers": 1,
                "consumer_limits": {"max_ack_pending": 50, "inactive_threshold": 9 * SECOND},
            },
        )
        create = "CONSUMER.CREATE.L.N"
        for config, code in (({"max_ack_pending": 51}, 10121), ({"inactive_threshold": 10 * SECOND}, 10153)):
            body = {"config": {"name": "N", "ack_policy": "explicit", **config}}
            self.assertEqual(self.talk.refused(create, body), code)
        made = self.talk.api(create, {"config": {"name": "N", "ack_policy": "explicit"}})["config"]
        self.assertEqual((made["max_ack_pending"], made["inactive_threshold"]), (50, 9 * SECOND))
        self.assertEqual(self.talk.refused("CONSUMER.CREATE.L.M", {"config": {"name": "M"}}), 10026)

    def test_names_are_made_up(self) -> None:
        names = {self.talk.api("CONSUMER.CREATE.S", {"config": {}})["name"] for _ in range(5)}
        self.assertEqual(len(names), 5)
        self.assertEqual(set(self.talk.api("CONSUMER.NAMES.S")["consumers"]), names)
        self.assertEqual(len(self.talk.api("CONSUMER.LIST.S", {"offset": 2})["consumers"]), 3)

    def test_ephemeral_ones_go_when_nobody_cares(self) -> None:
        self.create("P", durable_name=None, inactive_threshold=3 * SECOND)
        self.create("D")
        self.talk.subscribe("out", "9")
        self.create("E", durable_name=None, deliver_subject="out", inactive_threshold=3 * SECOND)
        self.bench.advance(2)
        self.pull("P")
        self.bench.advance(2)
        self.assertEqual(self.talk.api("CONSUMER.NAMES.S")["consumers"], ["D", "E", "P"])
        self.talk.session.handle(Unsub("9"))
        self.bench.advance(5)
        self.assertEqual(self.talk.api("CONSUMER.NAMES.S")["consumers"], ["D"])

    def test_deliver_subject_of_a_busy_consumer_stays(self) -> None:
        self.talk.subscribe("out", "9")
        self.create(deliver_subject="out")
        busy = {"durable_name": "C", "ack_policy": "explicit", "deliver_subject": "other"}
        self.assertEqual(self.refused(busy, "C"), 10013)
        self.talk.session.handle(Unsub("9"))
        self.assertEqual(self.create(deliver_subject="other")["config"]["deliver_subject"], "other")

    def test_fixed_traits(self) -> None:
        self.create()
        for change in ({"ack_policy": "all"}, {"deliver_policy": "new"}, {"deliver_subject": "out"}):
            self.assertEqual(self.refused({"durable_name": "C", "ack_policy": "explicit", **change}, "C"), 10012)


class FilePullTests(PullTests):
    storage = "file"


class FileAcknowledgementTests(AcknowledgementTests):
    storage = "file"


class FileRetentionTests(RetentionTests):
    storage = "file"


class RestartTests(ConsumerCase):
    storage = "file"

    def test_progress_survives(self) -> None:
        self.fill(6)
        self.create(max_deliver=9)
        got = self.pull(batch=4)
        self.answer(got[0])
        self.answer(got[2])
        self.bench.advance(1.5)
        before = self.info()
        self.restart()
        after = self.info()
        for part in ("config", "created", "num_ack_pending", "num_pending"):
            self.assertEqual(after[part], before[part], part)
        self.assertEqual(self.bodies(self.pull(batch=9)), [b"1", b"3", b"4", b"5", 404])

    def test_without_its_progress_it_repeats(self) -> None:
        self.fill(3)
        self.create()
        for message in self.pull(batch=3):
            self.answer(message)
        self.bench.advance(1.5)
        for damage in (b"", b"garbage", b"\0" * 40):
            [progress] = (self.folder / "streams").glob("*/progress")
            progress.write_bytes(damage)
            self.restart()
            self.assertEqual(self.bodies(self.pull(batch=9))[:3], [b"0", b"1", b"2"])
            self.bench.advance(1.5)

    def test_progress_beyond_what_survived(self) -> None:
        """The queue's last messages were lost with the power; those that follow take their numbers."""
        self.fill(4)
        self.create()
        for message in self.pull(batch=4):
            self.answer(message)
        self.bench.advance(1.5)
        self.bench.crash()
        [segment] = (self.folder / "streams").glob("*/*.seg")
        data = segment.read_bytes()
        segment.write_bytes(data[: data.rindex(b"\xa7J\x01\x01")])
        self.begin(clock=self.bench.clock)
        self.assertEqual(self.talk.put("s.a", b"new")["seq"], 4)
        self.assertEqual(self.bodies(self.pull(batch=9)), [b"new", 404])

    @settings(max_examples=30, deadline=None, derandomize=True)
    @given(st.integers(0, 2**32))
    def test_nothing_is_lost_and_nothing_acknowledged_comes_back_for_ever(self, seed: int) -> None:
        """Publishing, pulling, acknowledging, refusing, waiting and crashing in any order."""
        chance = random.Random(seed)
        self.folder = Path(self.mktemp())
        self.begin()
        self.stream(retention=chance.choice(("limits", "interest")))
        self.create(ack_wait=SECOND, ack_policy=chance.choice(("explicit", "all")))
        published, seen, held = 0, set(), []
        for _ in range(60):
            action = chance.random()
            if action < 0.35:
                published += 1
                self.talk.put("s.a", b"%d" % published)
            elif action < 0.6:
                held.extend(op for op in self.pull(batch=chance.randint(1, 4)) if op.reply)
            elif action < 0.8 and held:
                message = held.pop(chance.randrange(len(held)))
                self.answer(message, chance.choice((b"+ACK", b"+ACK", b"-NAK", b"+WPI")))
            elif action < 0.9:
                self.bench.advance(chance.choice((0.3, 1.2)))
            else:
                self.restart()
                held.clear()
            seen.update(int(message.payload) for message in held)
        for _ in range(60):
            self.bench.advance(1.1)
            got = [op for op in self.pull(batch=50) if op.reply]
            seen.update(int(message.payload) for message in got)
            for message in got:
                self.answer(message)
            if not got:
                break
        self.assertEqual(seen, set(range(1, published + 1)), f"seed {seed}")
        self.assertEqual(self.info()["num_ack_pending"], 0, f"seed {seed}")
