"""This server as the notary of others: what it hands on, what it remembers, and how much strangers can make it do."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from dendrite_tw.federation_api.notary import FETCHES, RENEWAL_MS, RENEWALS, Notary
from dendrite_tw.federation_api.tables.keys import KEPT_MS, RETIRED_OF_SERVER
from dendrite_tw.matrix import signing
from dendrite_tw.matrix.keys import DAY_MS
from dendrite_tw.world import ReactorClock
from tests.harness import ask

from .network import key_of
from .test_keyring import KEY, NOW, OTHER, KeyRingCase, document


class NotaryTests(KeyRingCase):
    def setUp(self) -> None:
        super().setUp()
        self.notary = Notary(self.ring, self.own, self.database, ReactorClock(self.clock))

    def test_being_a_notary(self) -> None:
        self.fetcher.documents["a.test"] = document()
        answer = Deferred.fromCoroutine(
            self.notary.documents({"a.test": {}, "us.test": {}, "gone.test": {}, "a b": {}})
        )
        found = {one["server_name"]: one for one in self.successResultOf(answer)}
        self.assertEqual(set(found), {"a.test", "us.test"})
        signing.verify_json(found["a.test"], "us.test", "ed25519:one", key_of(7).verify_key)
        signing.verify_json(found["a.test"], "a.test", "ed25519:one", KEY.verify_key)
        signing.verify_json(found["us.test"], "us.test", "ed25519:one", key_of(7).verify_key)

    def test_strangers_cannot_make_a_notary_ask_any_number_of_servers(self) -> None:
        self.fetcher.waiting = Deferred()
        wants: dict[str, dict[str, int]] = {f"s{n}.test": {} for n in range(50)}
        answer = Deferred.fromCoroutine(self.notary.documents(wants))
        self.assertEqual(len(self.fetcher.asked), FETCHES)
        self.fetcher.waiting.callback(None)
        self.assertEqual(self.successResultOf(answer), [])

    def documents_of(self, wanted: dict[str, int]) -> list[dict[str, Any]]:
        return self.successResultOf(Deferred.fromCoroutine(self.notary.documents({"a.test": wanted})))

    def test_a_document_is_handed_on_for_half_its_time(self) -> None:
        self.fetcher.documents["a.test"] = document()
        self.documents_of({})
        self.clock.advance(86_400 // 2 - 1)
        self.documents_of({KEY.key_id: 0})
        self.assertEqual(self.fetcher.asked, ["a.test"])
        self.clock.advance(2)
        self.documents_of({})
        self.assertEqual(self.fetcher.asked, ["a.test", "a.test"])

    def test_a_document_is_fetched_for_a_key_or_a_time_that_it_does_not_cover(self) -> None:
        self.fetcher.documents["a.test"] = document()
        self.documents_of({})
        for wanted in ({"ed25519:new": 0}, {KEY.key_id: NOW + 2 * DAY_MS}):
            before = len(self.fetcher.asked)
            (found,) = self.documents_of(wanted)
            self.assertEqual((found["verify_keys"].keys(), len(self.fetcher.asked)), ({KEY.key_id}, before + 1))

    def test_a_document_that_counts_for_long_enough_need_not_be_fresh(self) -> None:
        self.fetcher.documents["a.test"] = document(until=NOW - DAY_MS)
        self.documents_of({})
        self.documents_of({KEY.key_id: NOW - DAY_MS})
        self.assertEqual(len(self.fetcher.asked), 1)
        self.documents_of({KEY.key_id: NOW - DAY_MS + 1})
        self.assertEqual(len(self.fetcher.asked), 2)

    def test_strangers_cannot_make_a_notary_ask_a_server_again_and_again(self) -> None:
        for _ in range(RENEWALS + 20):
            self.documents_of({"ed25519:new": 0})
        self.assertEqual(len(self.fetcher.asked), RENEWALS)
        self.clock.advance(RENEWAL_MS / 1000)
        for _ in range(5):
            self.documents_of({"ed25519:new": 0})
        self.assertEqual(len(self.fetcher.asked), RENEWALS + 1)

    def test_a_key_that_its_server_forgot_is_remembered(self) -> None:
        self.fetcher.documents["a.test"] = document()
        self.documents_of({})
        self.fetcher.documents["a.test"] = document(keys=[OTHER])
        (found,) = self.documents_of({KEY.key_id: NOW + 2 * DAY_MS})
        self.assertEqual(found["verify_keys"].keys(), {KEY.key_id})
        signing.verify_json(found, "us.test", "ed25519:one", key_of(7).verify_key)
        both = self.documents_of({KEY.key_id: 0, OTHER.key_id: 0})
        self.assertEqual([list(one["verify_keys"]) for one in both], [[KEY.key_id], [OTHER.key_id]])
        (newest,) = self.documents_of({})
        self.assertEqual(newest["verify_keys"].keys(), {OTHER.key_id})

    def test_only_so_many_forgotten_keys_of_a_server_are_remembered(self) -> None:
        for number in range(RETIRED_OF_SERVER + 5):
            self.fetcher.documents["a.test"] = document(keys=[key_of(100 + number, f"ed25519:{number}")])
            self.successResultOf(Deferred.fromCoroutine(self.ring.renew("a.test")))
            self.clock.advance(1)
        rows = ask(self.database, "SELECT key_id FROM retired_key_documents ORDER BY fetched_ts")
        self.assertEqual(
            [key_id for (key_id,) in rows or []], [f"ed25519:{n}" for n in range(4, RETIRED_OF_SERVER + 4)]
        )
        self.clock.advance(KEPT_MS / 1000 + 1)
        self.successResultOf(Deferred.fromCoroutine(self.ring.prune()))
        self.assertEqual(ask(self.database, "SELECT COUNT(*) FROM retired_key_documents"), [(0,)])

    def test_the_document_of_a_server_that_is_gone_is_still_handed_on(self) -> None:
        self.fetcher.documents["a.test"] = document()
        self.documents_of({})
        del self.fetcher.documents["a.test"]
        self.clock.advance(30 * 86_400)
        self.assertEqual([one["server_name"] for one in self.documents_of({})], ["a.test"])
