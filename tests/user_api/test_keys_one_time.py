"""One-time and fallback keys: stored once, handed out once, oldest first, counted exactly."""

from __future__ import annotations

import threading
from typing import Any

import orjson
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from dendrite_tw.database.engines import Database, SQLiteDatabase
from dendrite_tw.user_api.api import KeyCounts
from dendrite_tw.user_api.key_checks import UPLOAD_LIMIT
from tests.harness import trace
from tests.user_api.keys_support import ALICE, Device, KeysCase

SIGNED = "signed_curve25519"


MANY = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.differing_executors]
)
"""The same tests run on one process and on two, which is as many classes."""


class OneTimeCase(KeysCase):
    def setUp(self) -> None:
        super().setUp()
        self.phone = Device(ALICE, "ALICEDEV")

    def put(self, *names: str, **more: Any) -> KeyCounts:
        return self.get(self.upload(self.phone, one_time=self.phone.one_time(*names, **more)))

    def claim(self, algorithm: str = SIGNED) -> dict[str, Any] | None:
        """The keys that a claim of Alice's phone gives, by name."""
        claimed = self.get(self.keys.claim_keys({ALICE: {"ALICEDEV": algorithm}}, 0)).one_time_keys
        keys = claimed.get(ALICE, {}).get("ALICEDEV")
        return keys and {name: orjson.loads(key) for name, key in keys.items()}

    def counts(self) -> dict[str, int]:
        return self.get(self.keys.key_counts(ALICE, "ALICEDEV")).one_time_keys

    def unused(self) -> list[str]:
        return self.get(self.keys.key_counts(ALICE, "ALICEDEV")).unused_fallback_types


class OneTimeTests(OneTimeCase):
    def test_a_key_is_handed_out_once_and_as_it_was_uploaded(self) -> None:
        keys = self.phone.one_time("b")
        self.assertEqual(self.put("b").one_time_keys, {SIGNED: 1})
        self.assertEqual(self.claim(), keys)
        self.assertIsNone(self.claim())
        self.assertEqual(self.counts(), {SIGNED: 0})

    def test_the_oldest_upload_goes_first(self) -> None:
        self.put("2")
        self.put("1")
        self.put("3")
        order = [next(iter(self.claim() or {})) for _ in range(3)]
        self.assertEqual(order, [f"{SIGNED}:2", f"{SIGNED}:1", f"{SIGNED}:3"])

    def test_repeating_an_upload_changes_nothing(self) -> None:
        self.put("a", "b", "c")
        self.assertEqual(self.put("b", "c", "d").one_time_keys, {SIGNED: 4})
        self.put("a", "b", "c", "d")
        again = self.phone.one_time("a")
        again[f"{SIGNED}:a"]["signatures"] = {ALICE: {"ed25519:ALICEDEV": "another"}}
        self.assertEqual(self.get(self.upload(self.phone, one_time=again)).one_time_keys, {SIGNED: 4})

    def test_another_key_of_the_same_name_is_refused(self) -> None:
        self.put("a")
        bad = self.upload(self.phone, one_time=self.phone.one_time("a", "b", text="other"))
        self.check_refused(bad, 400, "M_INVALID_PARAM")
        self.assertEqual(self.counts(), {SIGNED: 1})

    def test_a_claimed_key_does_not_come_back_with_a_late_repetition(self) -> None:
        self.put("a", "b")
        self.claim()
        self.assertEqual(self.put("a", "b").one_time_keys, {SIGNED: 1})
        self.claim()
        self.assertEqual(self.put("a", "b").one_time_keys, {SIGNED: 0})
        self.assertIsNone(self.claim())
        self.assertEqual(self.put("a", text="new").one_time_keys, {SIGNED: 1}, "the name, but not the key")

    def test_names_of_claimed_keys_are_forgotten_after_a_while(self) -> None:
        self.put("a")
        self.claim()
        self.memory.clock.advance(29 * 24 * 3600)
        self.get(self.keys.prune())
        self.assertEqual(self.put("a").one_time_keys, {SIGNED: 0})
        self.memory.clock.advance(2 * 24 * 3600)
        self.get(self.keys.prune())
        self.assertEqual(self.put("a").one_time_keys, {SIGNED: 1})

    def test_algorithms_are_apart_and_unsigned_keys_are_strings(self) -> None:
        one_time = {"curve25519:x": "base64+key", **self.phone.one_time("x")}
        counts = self.get(self.upload(self.phone, one_time=one_time))
        self.assertEqual(counts.one_time_keys, {SIGNED: 1, "curve25519": 1})
        self.assertEqual(self.claim("curve25519"), {"curve25519:x": "base64+key"})
        self.assertIsNone(self.claim("curve25519"))
        self.assertIsNone(self.claim("unheard_of"))

    def test_keys_that_do_not_fit_are_refused(self) -> None:
        good = self.phone.one_time("a")[f"{SIGNED}:a"]
        for name, value, status, errcode in [
            ("nocolon", good, 400, "M_INVALID_PARAM"),
            (":a", good, 400, "M_INVALID_PARAM"),
            ("a:", good, 400, "M_INVALID_PARAM"),
            ("a:\0", good, 400, "M_INVALID_PARAM"),
            ("a:" + "x" * 300, good, 400, "M_INVALID_PARAM"),
            (f"{SIGNED}:a", "unsigned", 400, "M_BAD_JSON"),
            ("curve25519:a", 7, 400, "M_BAD_JSON"),
            (f"{SIGNED}:a", {"key": "x"}, 400, "M_BAD_JSON"),
            (f"{SIGNED}:a", {"signatures": {}}, 400, "M_BAD_JSON"),
            (f"{SIGNED}:a", {**good, "more": "x" * 5000}, 413, "M_TOO_LARGE"),
        ]:
            self.check_refused(self.upload(self.phone, one_time={name: value}), status, errcode)

    def test_a_device_may_not_hoard(self) -> None:
        def some(start: int, count: int) -> dict[str, str]:
            return {f"curve25519:{number}": "x" for number in range(start, start + count)}

        self.check_refused(self.upload(self.phone, one_time=some(0, UPLOAD_LIMIT + 1)), 413, "M_TOO_LARGE")
        self.get(self.upload(self.phone, one_time=some(0, UPLOAD_LIMIT)))
        self.check_refused(self.upload(self.phone, one_time=some(UPLOAD_LIMIT, 1)), 413, "M_TOO_LARGE")
        self.assertIsNotNone(self.claim("curve25519"))
        self.get(self.upload(self.phone, one_time=some(UPLOAD_LIMIT, 1)))

    def test_claims_that_do_not_fit_are_refused(self) -> None:
        for wanted in ({"alice": {"D": "a"}}, {ALICE: {"\0": "a"}}, {ALICE: {"D": ""}}):
            self.check_refused(self.keys.claim_keys(wanted, 0), 400, "M_INVALID_PARAM")
        many = {ALICE: {str(number): "a" for number in range(5001)}}
        self.check_refused(self.keys.claim_keys(many, 0), 413, "M_TOO_LARGE")

    def test_an_upload_of_nothing_counts(self) -> None:
        self.put("a")
        self.assertEqual(self.get(self.keys.upload_keys(ALICE, "ALICEDEV", None, {}, {})).one_time_keys, {SIGNED: 1})

    def test_a_deleted_device_leaves_no_keys_to_a_successor(self) -> None:
        self.put("a")
        self.get(self.upload(self.phone, fallback=self.phone.one_time("f", fallback=True)))
        self.assertEqual(self.counts(), {SIGNED: 1})
        self.delete_device(ALICE, "ALICEDEV")
        self.assertIsNone(self.claim())
        self.devices[ALICE]["ALICEDEV"] = None
        self.assertEqual((self.counts(), self.unused()), ({SIGNED: 0}, []))


class FallbackTests(OneTimeCase):
    def put_fallback(self, name: str, text: str = "") -> None:
        self.get(self.upload(self.phone, fallback=self.phone.one_time(name, text=text, fallback=True)))

    def test_it_serves_when_the_others_are_gone_again_and_again(self) -> None:
        self.put("a")
        self.put_fallback("f")
        self.assertEqual(self.unused(), [SIGNED])
        self.claim()
        self.assertEqual(self.unused(), [SIGNED])
        fallback = self.phone.one_time("f", fallback=True)
        self.assertEqual([self.claim(), self.claim()], [fallback, fallback])
        self.assertEqual((self.unused(), self.counts()), ([], {SIGNED: 0}))

    def test_a_new_one_takes_its_place_and_the_same_stays_used(self) -> None:
        self.put_fallback("f")
        self.claim()
        self.put_fallback("f")
        self.assertEqual(self.unused(), [])
        self.put_fallback("g")
        self.assertEqual(self.unused(), [SIGNED])
        self.assertEqual(self.claim(), self.phone.one_time("g", fallback=True))
        self.put_fallback("g", text="the name, but another key")
        self.assertEqual(self.unused(), [SIGNED])

    def test_one_for_each_algorithm(self) -> None:
        two = self.phone.one_time("f", "g", fallback=True)
        self.check_refused(self.upload(self.phone, fallback=two), 400, "M_INVALID_PARAM")
        self.get(self.upload(self.phone, fallback={"x:f": "1", **self.phone.one_time("f", fallback=True)}))
        self.assertEqual(self.unused(), [SIGNED, "x"])


class CountsTests(OneTimeCase):
    def test_counts_that_did_not_change_are_not_read(self) -> None:
        self.put("a", "b")
        self.counts()
        statements = trace(self.database)
        self.assertEqual((self.counts(), statements), ({SIGNED: 2}, []))
        self.claim()
        statements.clear()
        self.assertEqual(self.counts(), {SIGNED: 1})
        self.assertGreater(len(statements), 0)

    def test_a_process_among_others_remembers_nothing(self) -> None:
        here, there = self.make(exclusive=False), self.make(exclusive=False)
        self.put("a")
        self.assertEqual(self.get(here.key_counts(ALICE, "ALICEDEV")).one_time_keys, {SIGNED: 1})
        self.get(there.claim_keys({ALICE: {"ALICEDEV": SIGNED}}, 0))
        self.assertEqual(self.get(here.key_counts(ALICE, "ALICEDEV")).one_time_keys, {SIGNED: 0})


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("upload"), st.sets(st.integers(0, 12), min_size=1, max_size=5)),
        st.tuples(st.just("claim"), st.integers(1, 4)),
        st.tuples(st.just("fallback"), st.integers(0, 2)),
    ),
    max_size=25,
)


class OnceTests(OneTimeCase):
    @MANY
    @given(ACTIONS)
    def test_no_key_is_handed_out_twice_whatever_is_repeated(self, actions: list[tuple[str, Any]]) -> None:
        self.doCleanups()
        self.setUp()
        handed: list[str] = []
        waiting: list[set[str]] = []
        known: set[str] = set()
        fallback: str | None = None
        for action, what in actions:
            if action == "upload":
                names = {str(number) for number in what}
                self.put(*names)
                waiting.append(names - known)
                known |= names
            elif action == "fallback":
                fallback = f"f{what}"
                self.get(self.upload(self.phone, fallback=self.phone.one_time(fallback, fallback=True)))
            else:
                for _ in range(what):
                    waiting = [batch for batch in waiting if batch]
                    claimed = self.claim()
                    name = next(iter(claimed)).partition(":")[2] if claimed else None
                    if waiting:
                        assert name is not None
                        self.assertIn(name, waiting[0])
                        waiting[0].remove(name)
                        handed.append(name)
                    else:
                        self.assertEqual(name, fallback)
            self.assertEqual(self.counts(), {SIGNED: sum(map(len, waiting))})
        self.assertEqual(len(handed), len(set(handed)))


class HeldThreads:
    """Keeps what the writer thread delivers until the test asks for it."""

    def __init__(self) -> None:
        self.delivered: list[Any] = []

    def call_in_thread(self, function: Any, *args: Any) -> None:
        function(*args)

    def call_from_thread(self, function: Any, *args: Any) -> None:
        self.delivered.append((function, args))


class TogetherTests(KeysCase):
    def make_database(self) -> Database:
        self.threads = HeldThreads()
        return SQLiteDatabase(self.mktemp() + ".db", self.threads)

    def test_claims_of_one_commit_share_no_key(self) -> None:
        phone = Device(ALICE, "ALICEDEV")
        gate = threading.Event()

        async def blocks(txn: Any) -> None:
            gate.wait(10)

        self.database.write(blocks)
        uploads = [
            Deferred.fromCoroutine(self.upload(phone, one_time=phone.one_time(*names))) for names in ("abcde", "defgh")
        ]
        claims = [Deferred.fromCoroutine(self.keys.claim_keys({ALICE: {"ALICEDEV": SIGNED}}, 0)) for _ in range(10)]
        gate.set()
        self.database.close()
        for function, args in self.threads.delivered:
            function(*args)
        self.assertEqual([self.successResultOf(one).one_time_keys[SIGNED] for one in uploads], [5, 8])
        given_out = [self.successResultOf(claim).one_time_keys for claim in claims]
        names = [name for one in given_out for name in one.get(ALICE, {}).get("ALICEDEV", {})]
        self.assertEqual(sorted(names), sorted(f"{SIGNED}:{name}" for name in "abcdefgh"))
