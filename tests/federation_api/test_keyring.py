"""Keys of other servers: whom they are fetched from, how long they are believed, and what is not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.database.engines import SQLiteDatabase
from dendrite_tw.database.migrate import migrate, steps_of
from dendrite_tw.federation_api.api import KeysWanted, ServerKey, SignatureCheck, Unreachable
from dendrite_tw.federation_api.key_documents import DocumentError, read_document
from dendrite_tw.federation_api.keyring import FETCHES, KeyRing, KeyUnavailable, Perspective
from dendrite_tw.federation_api.signing_keys import OwnKeys
from dendrite_tw.federation_api.tables import keys as tables
from dendrite_tw.federation_api.tables.keys import KEPT_MS
from dendrite_tw.matrix import signing
from dendrite_tw.matrix.keys import DAY_MS, OldVerifyKey, SigningKey, server_keys_document
from dendrite_tw.matrix.signing import SignatureError
from dendrite_tw.world import ReactorClock

from .network import key_of

NOW = 1_700_000_000_000
KEY = key_of(1)
OTHER = key_of(2, "ed25519:two")
NOTARY = key_of(9, "ed25519:auto")
MESSAGE = b"{}"


def document(
    name: str = "a.test",
    keys: Iterable[SigningKey] = (KEY,),
    old: Iterable[OldVerifyKey] = (),
    until: int = NOW + DAY_MS,
) -> dict[str, Any]:
    return server_keys_document(name, keys, old, until)


def by_notary(signed: dict[str, Any], key: SigningKey = NOTARY) -> dict[str, Any]:
    return signing.sign_json(signed, "notary.test", key.key_id, key.secret)


class Fetcher:
    """Answers questions for keys from dicts, when it is told to."""

    def __init__(self) -> None:
        self.documents: dict[str, Any] = {}
        self.notary: list[Any] | None = None
        self.asked: list[str] = []
        self.questions: list[dict[str, Any]] = []
        self.waiting: Deferred[None] | None = None

    async def server_keys(self, server_name: str) -> dict[str, Any]:
        self.asked.append(server_name)
        if self.waiting is not None:
            await self.waiting
        if server_name not in self.documents:
            raise Unreachable("nobody is there")
        found: dict[str, Any] = self.documents[server_name]
        return found

    async def notary_keys(self, notary: str, question: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(notary)
        self.questions.append(question)
        if self.notary is None:
            raise Unreachable("nobody is there")
        return {"server_keys": self.notary}


class KeyRingCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(NOW // 1000)
        self.fetcher = Fetcher()
        self.database = SQLiteDatabase(":memory:", None)
        self.database.prepare(migrate, "federation_api", steps_of("dendrite_tw.federation_api"))
        self.ring = self.make()

    def make(self, perspectives: Iterable[str] = (), prefer_direct: bool = False) -> KeyRing:
        clock = ReactorClock(self.clock)
        self.own = OwnKeys("us.test", key_of(7), [], 7 * DAY_MS, clock)
        notaries = [Perspective(name, {NOTARY.key_id: NOTARY.verify_key}) for name in perspectives]
        return KeyRing(self.own, self.database, self.fetcher, self.clock, clock, notaries, prefer_direct)

    def verify(
        self, at: int = NOW, name: str = "a.test", key: SigningKey = KEY, message: bytes = MESSAGE, key_id: str = ""
    ) -> Deferred[None]:
        signature = signing.sign_bytes(MESSAGE, key.secret)
        return Deferred.fromCoroutine(self.ring.verify(name, key_id or key.key_id, message, signature, at))

    def good(self, *args: Any, **options: Any) -> None:
        self.assertIsNone(self.successResultOf(self.verify(*args, **options)))

    def bad(self, *args: Any, kind: type[Exception] = SignatureError, **options: Any) -> None:
        self.failureResultOf(self.verify(*args, **options), kind)


class KeyRingTests(KeyRingCase):
    def test_a_key_is_fetched_once_and_kept_over_a_restart(self) -> None:
        self.fetcher.documents["a.test"] = document()
        self.good()
        self.good()
        self.ring = self.make()
        self.good()
        self.assertEqual(self.fetcher.asked, ["a.test"])

    def test_a_wrong_signature_is_refused(self) -> None:
        self.fetcher.documents["a.test"] = document()
        self.bad(message=b"[]")
        self.bad(key=OTHER, key_id=KEY.key_id)
        self.assertEqual(self.fetcher.asked, ["a.test"])

    def test_an_unknown_key_is_asked_for_but_not_again_and_again(self) -> None:
        self.fetcher.documents["a.test"] = document()
        for _ in range(10):
            self.bad(key=OTHER, kind=KeyUnavailable)
        self.assertEqual(self.fetcher.asked, ["a.test"])
        self.fetcher.documents["a.test"] = document(keys=[KEY, OTHER])
        self.clock.advance(5)
        self.good(key=OTHER)

    def test_invented_key_ids_do_not_lengthen_the_wait(self) -> None:
        self.fetcher.documents["a.test"] = document()
        for _ in range(20):
            self.bad(key=OTHER, kind=KeyUnavailable)
            self.clock.advance(5)
        self.assertEqual(len(self.fetcher.asked), 20)

    def test_a_server_that_does_not_answer_is_asked_ever_less_often(self) -> None:
        asked = []
        for _ in range(3600):
            self.bad(kind=KeyUnavailable)
            asked.append(len(self.fetcher.asked))
            self.clock.advance(1)
        self.assertEqual((asked[0], asked[6], asked[59], asked[-1]), (1, 2, 4, 12))

    def test_an_expired_key_is_fetched_again(self) -> None:
        self.fetcher.documents["a.test"] = document()
        self.good()
        self.clock.advance(2 * 86_400)
        later = NOW + 2 * DAY_MS
        self.bad(later)
        self.clock.advance(10)
        self.fetcher.documents["a.test"] = document(until=later + DAY_MS)
        self.good(later)
        self.good(NOW)

    def test_no_key_counts_for_more_than_seven_days(self) -> None:
        self.fetcher.documents["a.test"] = document(until=NOW + 1000 * DAY_MS)
        self.good(NOW + 7 * DAY_MS)
        self.bad(NOW + 7 * DAY_MS + 1)

    def test_an_old_key_is_for_what_is_old(self) -> None:
        old = OldVerifyKey(OTHER.key_id, OTHER.verify_key_base64, NOW - DAY_MS)
        self.fetcher.documents["a.test"] = document(old=[old])
        self.good(NOW - DAY_MS, key=OTHER)
        self.bad(NOW - DAY_MS + 1, key=OTHER)
        self.bad(NOW, key=OTHER)
        self.good(0, key=OTHER)

    def test_an_old_key_is_not_for_the_future_whatever_is_said(self) -> None:
        old = OldVerifyKey(OTHER.key_id, OTHER.verify_key_base64, NOW + 100 * DAY_MS)
        self.fetcher.documents["a.test"] = document(old=[old])
        self.bad(NOW, key=OTHER)

    def test_a_key_that_became_old(self) -> None:
        self.fetcher.documents["a.test"] = document(until=NOW + 6 * DAY_MS)
        self.good()
        old = OldVerifyKey(KEY.key_id, KEY.verify_key_base64, NOW - 1000)
        self.fetcher.documents["a.test"] = document(keys=[OTHER], old=[old], until=NOW + DAY_MS)
        self.good(key=OTHER)
        self.bad(NOW)
        self.good(NOW - 1000)
        self.ring = self.make()
        self.bad(NOW)

    def test_our_own_keys_need_no_asking(self) -> None:
        self.good(name="us.test", key=key_of(7))
        self.bad(name="us.test", key=OTHER)
        self.assertEqual(self.fetcher.asked, [])

    def test_names_and_key_ids_that_are_none_are_not_asked_for(self) -> None:
        for name in ("", "a b", "a.test/x"):
            self.bad(name=name, kind=KeyUnavailable)
        for key_id in ("x", "rsa:1", "ed25519:" + "x" * 300):
            self.bad(key_id=key_id, kind=KeyUnavailable)
        self.assertEqual(self.fetcher.asked, [])

    def test_those_who_want_one_servers_keys_share_a_fetch_even_if_the_first_goes_away(self) -> None:
        self.fetcher.documents["a.test"] = document()
        self.fetcher.waiting = Deferred()
        waiting = [self.verify() for _ in range(5)]
        waiting[0].cancel()
        self.failureResultOf(waiting[0])
        self.fetcher.waiting.callback(None)
        for one in waiting[1:]:
            self.successResultOf(one)
        self.assertEqual(self.fetcher.asked, ["a.test"])

    def test_only_so_many_servers_are_asked_at_once(self) -> None:
        self.fetcher.waiting = Deferred()
        checks = [SignatureCheck(f"s{n}.test", "ed25519:1", b"", "") for n in range(3000)]
        answer = Deferred.fromCoroutine(self.ring.verify_all(checks))
        self.assertEqual(len(self.fetcher.asked), FETCHES)
        self.fetcher.waiting.callback(None)
        for _ in range(100):
            self.clock.advance(0)
        self.assertEqual(len(self.fetcher.asked), 2000)
        self.assertNotIn(None, self.successResultOf(answer))

    def test_a_server_that_has_ever_new_keys_is_not_remembered_for_all_of_them(self) -> None:
        self.fetcher.documents["a.test"] = document()
        self.good()
        for number in range(100):
            self.clock.advance(3600)
            keys = [key_of(10, f"ed25519:{number}_{one}") for one in range(20)]
            self.fetcher.documents["a.test"] = document(keys=keys, until=NOW + 100 * DAY_MS)
            self.successResultOf(Deferred.fromCoroutine(self.ring.renew("a.test")))
        self.good(NOW + 4 * DAY_MS, key=keys[0])
        self.assertEqual(len(self.database.prepare(tables.keys_of, ["a.test"])), tables.KEYS_OF_SERVER)
        self.assertEqual(len(self.ring._known["a.test"]), tables.KEYS_OF_SERVER)
        self.bad(kind=KeyUnavailable)
        self.ring = self.make()
        self.good(NOW + 4 * DAY_MS, key=keys[-1])

    def test_keys_that_nobody_confirms_are_pruned(self) -> None:
        self.fetcher.documents["a.test"] = document()
        self.good()
        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(self.ring.prune())), 0)
        self.clock.advance(KEPT_MS // 1000 + 1)
        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(self.ring.prune())), 2)

    def test_the_surplus_is_pruned_the_least_lately_confirmed_first(self) -> None:
        self.patch(tables, "ROWS_LIMIT", 700)
        for second in range(3):
            rows = [(f"s{n}.test", f"ed25519:{second}", b"k" * 32, NOW, 0, NOW, NOW + second) for n in range(600)]
            self.database.prepare(tables.store_keys, rows)
        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(self.ring.prune())), 1200)
        left = self.database.prepare(tables.keys_of, [f"s{n}.test" for n in range(600)])
        self.assertEqual({row.key_id for row in left}, {"ed25519:2"})


class BatchTests(KeyRingCase):
    def check(self, name: str, key: SigningKey, signer: SigningKey | None = None) -> SignatureCheck:
        return SignatureCheck(name, key.key_id, MESSAGE, signing.sign_bytes(MESSAGE, (signer or key).secret), NOW)

    def verify_all(self, checks: list[SignatureCheck]) -> list[str | None]:
        answer = Deferred.fromCoroutine(self.ring.verify_all(checks))
        for _ in range(10):
            self.clock.advance(0)
        return self.successResultOf(answer)

    def test_each_signature_is_judged_for_itself(self) -> None:
        self.fetcher.documents = {"a.test": document(), "b.test": document("b.test", [OTHER])}
        reasons = self.verify_all(
            [
                self.check("a.test", KEY),
                self.check("a.test", KEY, OTHER),
                self.check("b.test", OTHER),
                self.check("c.test", KEY),
                self.check("us.test", key_of(7)),
                self.check("a.test", OTHER),
            ]
        )
        self.assertEqual([reason is None for reason in reasons], [True, False, True, False, True, False])
        self.assertEqual(sorted(self.fetcher.asked), ["a.test", "b.test", "c.test"])

    def test_keys_for_who_checks_by_themselves(self) -> None:
        old = OldVerifyKey(OTHER.key_id, OTHER.verify_key_base64, NOW - 5000)
        self.fetcher.documents["a.test"] = document(old=[old])
        wanted = [
            KeysWanted("a.test", [KEY.key_id, OTHER.key_id, "ed25519:nothing"], NOW),
            KeysWanted("nowhere.test", [KEY.key_id], NOW),
            KeysWanted("us.test", [self.own.key.key_id, "ed25519:nothing"], NOW),
            KeysWanted("not a name", [KEY.key_id], NOW),
        ]
        keys = self.successResultOf(Deferred.fromCoroutine(self.ring.fetch(wanted)))
        self.assertEqual(
            keys,
            [
                ServerKey("a.test", KEY.key_id, KEY.verify_key, NOW + DAY_MS),
                ServerKey("a.test", OTHER.key_id, OTHER.verify_key, NOW - 5000, NOW - 5000),
                ServerKey("us.test", self.own.key.key_id, self.own.key.verify_key, NOW + 7 * DAY_MS),
            ],
        )

    def test_a_copy_that_is_too_old_is_fetched_again_but_better_than_none(self) -> None:
        self.fetcher.documents["a.test"] = document()
        wanted = [KeysWanted("a.test", [KEY.key_id], NOW)]
        self.successResultOf(Deferred.fromCoroutine(self.ring.fetch(wanted)))
        self.successResultOf(Deferred.fromCoroutine(self.ring.fetch(wanted)))
        self.assertEqual(len(self.fetcher.asked), 1)
        later = [KeysWanted("a.test", [KEY.key_id], NOW + 3 * DAY_MS)]
        (key,) = self.successResultOf(Deferred.fromCoroutine(self.ring.fetch(later)))
        self.assertEqual((key.valid_until_ts, len(self.fetcher.asked)), (NOW + DAY_MS, 2))

    def test_nothing_to_check(self) -> None:
        self.assertEqual(self.verify_all([]), [])

    def test_many_signatures_let_others_have_a_turn(self) -> None:
        self.fetcher.documents["a.test"] = document()
        answer = Deferred.fromCoroutine(self.ring.verify_all([self.check("a.test", KEY)] * 300))
        self.assertNoResult(answer)
        for _ in range(3):
            self.clock.advance(0)
        self.assertEqual(self.successResultOf(answer), [None] * 300)

    def test_a_notary_is_asked_for_all_at_once(self) -> None:
        self.ring = self.make(["notary.test"])
        self.fetcher.notary = [by_notary(document()), by_notary(document("b.test", [OTHER]))]
        reasons = self.verify_all([self.check("a.test", KEY), self.check("b.test", OTHER)])
        self.assertEqual(reasons, [None, None])
        self.assertEqual(self.fetcher.asked, ["notary.test"])
        self.assertEqual(
            self.fetcher.questions,
            [
                {
                    "server_keys": {
                        "a.test": {"ed25519:one": {"minimum_valid_until_ts": NOW}},
                        "b.test": {"ed25519:two": {"minimum_valid_until_ts": NOW}},
                    }
                }
            ],
        )


class NotaryTests(KeyRingCase):
    def test_notaries_come_first_unless_the_configuration_says_otherwise(self) -> None:
        self.fetcher.documents["a.test"] = document()
        for prefer_direct, asked in ((False, ["notary.test", "a.test"]), (True, ["a.test"])):
            self.setUp()
            self.fetcher.documents["a.test"] = document()
            self.ring = self.make(["notary.test"], prefer_direct)
            self.good()
            self.assertEqual(self.fetcher.asked, asked)

    def test_a_notary_is_asked_when_the_server_does_not_answer(self) -> None:
        self.ring = self.make(["notary.test"], prefer_direct=True)
        self.fetcher.notary = [by_notary(document())]
        self.good()
        self.assertEqual(self.fetcher.asked, ["a.test", "notary.test"])

    def test_the_next_notary_is_asked_for_what_the_first_does_not_have(self) -> None:
        self.ring = self.make(["other.test", "notary.test"])
        self.fetcher.notary = [by_notary(document())]
        self.good()
        self.assertEqual(self.fetcher.asked, ["other.test", "notary.test"])

    def test_what_the_notary_or_the_server_did_not_sign_is_not_believed(self) -> None:
        forged = {**document(), "verify_keys": {"ed25519:two": {"key": OTHER.verify_key_base64}}}
        cases: tuple[Any, ...] = (
            [document()],
            [by_notary(document(), key_of(8, NOTARY.key_id))],
            [by_notary(document(), key_of(9, "ed25519:other"))],
            [{**by_notary(document()), "valid_until_ts": NOW + 2 * DAY_MS}],
            [by_notary(forged)],
            [by_notary(document("b.test"))],
            [by_notary({"server_name": "a.test"})],
            [None, 1, "x", [], {}],
            "nonsense",
            {"a.test": by_notary(document())},
        )
        for documents in cases:
            self.setUp()
            self.ring = self.make(["notary.test"])
            self.fetcher.notary = documents
            self.bad(kind=KeyUnavailable)
            self.bad(key=OTHER, kind=KeyUnavailable)

    def test_an_old_document_does_not_replace_a_new_one(self) -> None:
        self.fetcher.documents["a.test"] = document(
            keys=[OTHER], old=[OldVerifyKey(KEY.key_id, KEY.verify_key_base64, NOW - DAY_MS)]
        )
        self.good(key=OTHER)
        self.ring = self.make(["notary.test"])
        self.fetcher.notary = [by_notary(document(until=NOW + 6 * DAY_MS))]
        self.bad(NOW)
        self.bad(key=key_of(3, "ed25519:three"))
        self.ring = self.make()
        self.bad(NOW)


class DocumentTests(SynchronousTestCase):
    def read(self, value: Any) -> list[str]:
        return sorted(row.key_id for row in read_document("a.test", value, NOW, True).keys)

    def test_a_key_must_have_signed(self) -> None:
        both = document(keys=[KEY, OTHER])
        self.assertEqual(self.read(both), ["ed25519:one", "ed25519:two"])
        del both["signatures"]["a.test"]["ed25519:two"]
        self.assertEqual(self.read(both), ["ed25519:one"])
        del both["signatures"]["a.test"]["ed25519:one"]
        self.assertRaises(DocumentError, self.read, both)

    def test_malformed_documents(self) -> None:
        def signed(**changes: Any) -> dict[str, Any]:
            unsigned = {key: value for key, value in document().items() if key != "signatures"}
            return signing.sign_json({**unsigned, **changes}, "a.test", KEY.key_id, KEY.secret)

        self.assertEqual(self.read(signed()), ["ed25519:one"])
        cases: tuple[Any, ...] = (
            None,
            [],
            {},
            signed(server_name="b.test"),
            signed(valid_until_ts="soon"),
            signed(valid_until_ts=True),
            signed(valid_until_ts=-1),
            signed(valid_until_ts=None),
            signed(verify_keys=[]),
            signed(verify_keys={"ed25519:one": KEY.verify_key_base64}),
            signed(verify_keys={"ed25519:one": {"key": "AAAA"}}),
            signed(verify_keys={"ed25519:one": {"key": "!"}}),
            signed(verify_keys={"rsa:one": {"key": KEY.verify_key_base64}}),
            {**signed(), "signatures": []},
            {**signed(), "signatures": {"a.test": {"ed25519:one": 1}}},
            {**signed(), "extra": 1.5},
        )
        for bad in cases:
            self.assertRaises(DocumentError, self.read, bad)

    def test_malformed_old_keys_are_passed_over(self) -> None:
        cases: tuple[Any, ...] = (
            [],
            {"ed25519:two": None},
            {"ed25519:two": {"key": OTHER.verify_key_base64}},
            {"ed25519:two": {"key": OTHER.verify_key_base64, "expired_ts": "x"}},
            {"ed25519:two": {"key": OTHER.verify_key_base64, "expired_ts": -1}},
            {"ed25519:one": {"key": OTHER.verify_key_base64, "expired_ts": 1}},
        )
        for old in cases:
            unsigned = {**document(), "old_verify_keys": old}
            del unsigned["signatures"]
            self.assertEqual(self.read(signing.sign_json(unsigned, "a.test", KEY.key_id, KEY.secret)), ["ed25519:one"])
