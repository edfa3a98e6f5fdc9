"""The endpoints for keys, and one server as the notary of others."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.federation_api.api import (
    FederationAPI,
    FederationRequest,
    KeysWanted,
    NoFederation,
    SignatureCheck,
    Unreachable,
)
from dendrite_tw.federation_api.keyring import Perspective
from dendrite_tw.links.handle import Answerer, Direct, Encoded, handle
from dendrite_tw.matrix import signing
from dendrite_tw.matrix.errors import MatrixError
from dendrite_tw.matrix.keys import OldVerifyKey
from tests.harness import Web

from .network import FederationServer, Network, key_of

NOW = 1_700_000_000_000
OLD = OldVerifyKey("ed25519:old", key_of(5).verify_key_base64, NOW - 1000)


class RoutesTests(SynchronousTestCase):
    def setUp(self) -> None:
        clock = Clock()
        clock.advance(NOW // 1000)
        self.network = Network(clock)
        self.alpha = FederationServer(self.network, "alpha.test", "192.0.2.1", key_of(1), old_keys=[OLD])
        self.beta = FederationServer(self.network, "beta.test", "192.0.2.2", key_of(2))
        self.web = Web(self.alpha.site.resource, clock)

    def get(self, path: str) -> Any:
        answer = self.web.get("/_matrix/key/v2" + path)
        for _ in range(3):
            self.network.flush()
            self.network.advance(0.3)
        return answer

    def test_our_document(self) -> None:
        for path in ("/server", "/server/", "/server/ed25519%3Aone", "/server/ed25519:nothing"):
            answer = self.get(path)
            self.assertEqual(answer.status, 200)
            document = answer.json
            signing.verify_json(document, "alpha.test", "ed25519:one", key_of(1).verify_key)
            self.assertEqual(document["server_name"], "alpha.test")
            self.assertEqual(document["verify_keys"], {"ed25519:one": {"key": key_of(1).verify_key_base64}})
            self.assertEqual(
                document["old_verify_keys"], {"ed25519:old": {"key": OLD.verify_key_base64, "expired_ts": NOW - 1000}}
            )
            self.assertAlmostEqual(document["valid_until_ts"], NOW + 7 * 86_400_000, delta=60_000)

    def test_the_document_is_renewed(self) -> None:
        first = self.get("/server").json["valid_until_ts"]
        self.network.clock.advance(3600)
        self.assertGreater(self.get("/server").json["valid_until_ts"], first + 3_000_000)

    def test_the_version(self) -> None:
        answer = self.web.get("/_matrix/federation/v1/version")
        self.assertEqual(answer.json["server"]["name"], "dendrite_tw")
        self.assertIsInstance(answer.json["server"]["version"], str)

    def test_the_keys_of_another(self) -> None:
        for path in ("/query/beta.test", "/query/beta.test?minimum_valid_until_ts=5", "/query/beta.test/ed25519:one"):
            (document,) = self.get(path).json["server_keys"]
            signing.verify_json(document, "beta.test", "ed25519:one", key_of(2).verify_key)
            signing.verify_json(document, "alpha.test", "ed25519:one", key_of(1).verify_key)

    def test_the_keys_of_one_that_is_not_there(self) -> None:
        self.assertEqual(self.get("/query/nowhere.test").json, {"server_keys": []})

    def test_the_keys_of_several(self) -> None:
        body: dict[str, Any] = {"server_keys": {"beta.test": {}, "alpha.test": {"ed25519:one": {}}, "nowhere.test": {}}}
        answer = self.web.post("/_matrix/key/v2/query", body)
        self.network.advance(0.3)
        self.network.advance(0.3)
        self.network.advance(0.3)
        names = [document["server_name"] for document in answer.json["server_keys"]]
        self.assertEqual(names, ["beta.test", "alpha.test"])

    def test_bad_questions(self) -> None:
        for path in (
            "/query/a%20b",
            "/query/beta.test?minimum_valid_until_ts=soon",
            "/query/beta.test?minimum_valid_until_ts=-1",
            f"/query/beta.test?minimum_valid_until_ts={2**60}",
        ):
            self.assertEqual(self.web.get("/_matrix/key/v2" + path).status, 400, path)
        bodies: tuple[Any, ...] = (
            {},
            {"server_keys": []},
            {"server_keys": {"beta.test": []}},
            {"server_keys": {"beta.test": {"ed25519:one": 1}}},
            {"server_keys": {"beta.test": {"ed25519:one": {"minimum_valid_until_ts": 1.5}}}},
            {"server_keys": {"beta.test": {"ed25519:one": {"minimum_valid_until_ts": -5}}}},
            {"server_keys": {f"s{n}.test": {} for n in range(51)}},
            {"server_keys": {"beta.test": {f"ed25519:{n}": {} for n in range(21)}}},
            b"nonsense",
        )
        for body in bodies:
            answer = self.web.post("/_matrix/key/v2/query", body)
            self.assertEqual(answer.status, 400, body)
        self.assertEqual(self.network.connections, [])

    def test_a_server_that_is_gone_is_believed_by_a_notary(self) -> None:
        self.get("/query/beta.test")
        self.beta.go_offline()
        notary = Perspective("alpha.test", {"ed25519:one": key_of(1).verify_key})
        gamma = FederationServer(self.network, "gamma.test", "192.0.2.3", key_of(3), perspectives=[notary])
        signature = signing.sign_bytes(b"{}", key_of(2).secret)
        checks = [
            SignatureCheck("beta.test", "ed25519:one", b"{}", signature, NOW),
            SignatureCheck("beta.test", "ed25519:one", b"[]", signature, NOW),
        ]
        reasons = self.successResultOf(self.network.begin(gamma.component.check_signatures(checks)))
        self.assertEqual(reasons, [None, "signature does not match"])


class ContractTests(SynchronousTestCase):
    """The component behind its handle, in this process and over bytes."""

    def setUp(self) -> None:
        clock = Clock()
        clock.advance(NOW // 1000)
        self.network = Network(clock)
        self.alpha = FederationServer(self.network, "alpha.test", "192.0.2.1", key_of(1))
        FederationServer(self.network, "beta.test", "192.0.2.2", key_of(2))

    def handles(self) -> list[Any]:
        direct = Direct()
        direct.connect(self.alpha.component)
        return [
            handle(FederationAPI, direct),
            handle(FederationAPI, Encoded(FederationAPI, Answerer(FederationAPI, self.alpha.component))),
        ]

    def test_questions_and_refusals_cross(self) -> None:
        for federation in self.handles():
            ask = FederationRequest(method="GET", destination="beta.test", path="/_matrix/federation/v1/version")
            answer = self.successResultOf(self.network.begin(federation.request(ask)))
            self.assertEqual(answer["server"]["name"], "dendrite_tw")
            nobody = msgspec.structs.replace(ask, destination="nowhere.test", despite_backoff=True)
            error = self.failureResultOf(self.network.begin(federation.request(nobody)), MatrixError, Unreachable)
            self.assertEqual(error.value.status, 502)
            signature = signing.sign_bytes(b"{}", key_of(2).secret)
            check = SignatureCheck("beta.test", "ed25519:one", b"{}", signature)
            self.assertEqual(self.successResultOf(self.network.begin(federation.check_signatures([check]))), [None])
            raw = self.successResultOf(self.network.begin(federation.ask(ask)))
            self.assertEqual((raw.status, orjson.loads(raw.body)), (200, answer))
            wanted = [KeysWanted("beta.test", ["ed25519:one"], NOW)]
            (key,) = self.successResultOf(self.network.begin(federation.fetch_keys(wanted)))
            self.assertEqual(key.key, key_of(2).verify_key)

    def test_without_federation_nobody_is_there(self) -> None:
        for federation in (
            NoFederation(),
            handle(FederationAPI, Encoded(FederationAPI, Answerer(FederationAPI, NoFederation()))),
        ):
            ask = FederationRequest(method="GET", destination="beta.test", path="/x")
            for question in (federation.request, federation.ask):
                error = self.failureResultOf(self.network.begin(question(ask)), MatrixError, Unreachable).value
                self.assertEqual((error.status, error.error), (502, "this server does not federate"))
            check = SignatureCheck("beta.test", "ed25519:one", b"{}", "AA")
            (reason,) = self.successResultOf(self.network.begin(federation.check_signatures([check])))
            self.assertIn("does not federate", reason or "")
            wanted = [KeysWanted("beta.test", ["ed25519:one"], NOW)]
            self.assertEqual(self.successResultOf(self.network.begin(federation.fetch_keys(wanted))), [])
