"""Cross-signing: who may replace keys, which signatures hold, and who sees them."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson

from dendrite_tw.user_api.api import KeyChange, QueriedKeys
from tests.user_api.keys_support import ALICE, BOB, CAROL, Device, Identity, Key, KeysCase


class SigningCase(KeysCase):
    def setUp(self) -> None:
        super().setUp()
        self.alice = Identity(ALICE)
        self.bob = Identity(BOB)
        self.phone = Device(ALICE, "ALICEDEV")

    def publish(self, identity: Identity, replace: bool = False, **changes: Any) -> bool:
        return self.get(self.keys.upload_cross_signing_keys(identity.user_id, {**identity.keys(), **changes}, replace))

    def seen_by(self, requester: str, user_id: str) -> QueriedKeys:
        return self.get(self.keys.query_keys(requester, {user_id: []}, 10_000))

    def master_of(self, user_id: str, requester: str = ALICE) -> Any:
        return orjson.loads(self.seen_by(requester, user_id).master_keys[user_id])

    def sign(self, signer: str, user_id: str, key_id: str, value: dict[str, Any]) -> dict[str, Any]:
        return self.get(self.keys.upload_signatures(signer, {user_id: {key_id: value}}))

    def check_fails(self, signer: str, user_id: str, key_id: str, value: dict[str, Any], errcode: str) -> None:
        failures = self.sign(signer, user_id, key_id, value)
        self.assertEqual(failures[user_id][key_id]["errcode"], errcode)


class CrossSigningKeysTests(SigningCase):
    def test_the_user_signing_key_is_for_its_user(self) -> None:
        self.assertTrue(self.publish(self.alice))
        mine, theirs = self.seen_by(ALICE, ALICE), self.seen_by(BOB, ALICE)
        self.assertEqual(orjson.loads(mine.user_signing_keys[ALICE]), self.alice.public("user_signing"))
        self.assertEqual(theirs.user_signing_keys, {})
        for seen in (mine, theirs):
            self.assertEqual(orjson.loads(seen.master_keys[ALICE]), self.alice.public("master"))
            self.assertEqual(orjson.loads(seen.self_signing_keys[ALICE]), self.alice.public("self_signing"))
        listed = self.get(self.keys.device_list(ALICE))
        self.assertEqual(orjson.loads(listed.master_key or b""), self.alice.public("master"))
        self.assertEqual(self.changed(), [ALICE])

    def test_the_first_keys_and_the_same_again_need_no_more_proof(self) -> None:
        self.assertTrue(self.publish(self.alice))
        position = self.position()
        self.assertTrue(self.publish(self.alice))
        self.assertTrue(self.get(self.keys.upload_cross_signing_keys(ALICE, {}, False)))
        self.assertEqual(self.changed(position), [])

    def test_of_a_new_user_signing_key_its_user_alone_is_told(self) -> None:
        keys = self.alice.keys()
        self.get(self.keys.upload_cross_signing_keys(ALICE, {n: keys[n] for n in ("master", "self_signing")}, False))
        position = self.position()
        self.assertTrue(self.get(self.keys.upload_cross_signing_keys(ALICE, keys, True)))
        self.assertEqual(self.changed(position), [])
        here = self.position()
        self.assertEqual(self.get(self.keys.signatures_since(ALICE, position, here)), [ALICE])
        self.assertEqual(self.get(self.keys.signatures_since(ALICE, here, here)), [])
        self.assertEqual(self.get(self.keys.signatures_since(BOB, position, here)), [])
        self.assertEqual(msgspec.msgpack.decode(self.told[-1].payload, type=KeyChange).only_for, ALICE)

    def test_other_keys_need_proof(self) -> None:
        self.publish(self.alice)
        other = Identity(ALICE, "other")
        other.master = self.alice.master
        for changed in (Identity(ALICE, "new"), other):
            self.assertFalse(self.publish(changed))
            self.assertEqual(self.master_of(ALICE), self.alice.public("master"))
        partial = {"self_signing": other.public("self_signing")}
        self.assertFalse(self.get(self.keys.upload_cross_signing_keys(ALICE, partial, False)))
        self.assertTrue(self.get(self.keys.upload_cross_signing_keys(ALICE, partial, True)))
        seen = self.seen_by(ALICE, ALICE)
        self.assertEqual(orjson.loads(seen.self_signing_keys[ALICE]), other.public("self_signing"))
        self.assertEqual(orjson.loads(seen.user_signing_keys[ALICE]), self.alice.public("user_signing"))

    def test_keys_beside_a_master_key_need_proof_too(self) -> None:
        self.get(self.keys.upload_cross_signing_keys(ALICE, {"master": self.alice.public("master")}, False))
        self.assertFalse(self.publish(self.alice))
        self.assertTrue(self.publish(self.alice, replace=True))

    def test_a_new_master_key_ends_what_the_old_one_signed(self) -> None:
        self.publish(self.alice)
        new = Identity(ALICE, "new")
        self.get(self.keys.upload_cross_signing_keys(ALICE, {"master": new.public("master")}, True))
        seen = self.seen_by(ALICE, ALICE)
        self.assertEqual((seen.self_signing_keys, seen.user_signing_keys), ({}, {}))
        self.assertEqual(orjson.loads(seen.master_keys[ALICE]), new.public("master"))

    def check_upload(self, keys: dict[str, Any], status: int, errcode: str) -> None:
        self.check_refused(self.keys.upload_cross_signing_keys(ALICE, keys, True), status, errcode)

    def test_keys_that_do_not_fit_are_refused(self) -> None:
        good = self.alice.public("master")
        key = self.alice.master
        self.check_upload({"self_signing": self.alice.public("self_signing")}, 400, "M_MISSING_PARAM")
        self.check_upload({}, 400, "M_MISSING_PARAM")
        wrong: list[dict[str, Any]] = [
            {"user_id": BOB},
            {"usage": ["self_signing"]},
            {"usage": "master"},
            {"usage": ["master"] * 100},
            {"keys": {}},
            {"keys": []},
            {"keys": {key.id: key.public, "ed25519:x": "x"}},
            {"keys": {"ed25519:x": key.public}},
            {"keys": {"ed25519:abc": "abc"}},
            {"keys": {key.id: 7}},
            {"keys": {key.id + "=": key.public + "="}},
        ]
        for changes in wrong:
            self.check_upload({"master": {**good, **changes}}, 400, "M_INVALID_PARAM")
        self.check_upload({"master": {**good, "signatures": 7}}, 400, "M_BAD_JSON")
        self.check_upload({"master": {**good, "half": 0.5}}, 400, "M_BAD_JSON")
        self.check_upload({"master": {**good, "big": "x" * 20_000}}, 413, "M_TOO_LARGE")
        for usage in ("self_signing", "user_signing"):
            unsigned = {**self.alice.public(usage), "signatures": {}}
            self.check_upload({"master": good, usage: unsigned}, 400, "M_INVALID_SIGNATURE")
            forged = Key("stranger").sign(unsigned, ALICE, key.id)
            self.check_upload({"master": good, usage: forged}, 400, "M_INVALID_SIGNATURE")
        self.assertEqual(self.changed(), [])

    def test_a_key_and_a_device_may_not_share_a_name(self) -> None:
        self.devices[ALICE][self.alice.self_signing.public] = None
        self.check_upload(self.alice.keys(), 403, "M_FORBIDDEN")
        del self.devices[ALICE][self.alice.self_signing.public]
        self.publish(self.alice)
        self.devices[ALICE][self.alice.master.public] = None
        device = Device(ALICE, self.alice.master.public)
        self.check_refused(self.upload(device), 403, "M_FORBIDDEN")
        taken = self.database.write(self.keys.is_key_of, ALICE, self.alice.master.public)
        self.assertTrue(self.successResultOf(taken))
        self.assertFalse(self.successResultOf(self.database.write(self.keys.is_key_of, ALICE, "OTHER")))

    def test_a_master_key_may_come_with_its_devices_signatures(self) -> None:
        self.get(self.upload(self.phone))
        signed = self.phone.sign(self.alice.public("master"))
        forged = Key("x").sign(signed, ALICE, "ed25519:ALICE2")
        self.publish(self.alice, master=Key("y").sign(forged, BOB))
        self.assertEqual(self.master_of(ALICE, BOB), signed)


class SignaturesTests(SigningCase):
    def setUp(self) -> None:
        super().setUp()
        self.publish(self.alice)
        self.publish(self.bob)
        self.get(self.upload(self.phone))

    def signed_phone(self, key: Key | None = None) -> dict[str, Any]:
        return (key or self.alice.self_signing).sign({**self.phone.keys(), "signatures": {}}, ALICE)

    def phone_as_seen(self) -> Any:
        value = orjson.loads(self.seen_by(BOB, ALICE).device_keys[ALICE]["ALICEDEV"])
        del value["unsigned"]
        return value

    def test_everybody_sees_a_device_signed_by_its_user(self) -> None:
        position = self.position()
        self.assertEqual(self.sign(ALICE, ALICE, "ALICEDEV", self.signed_phone()), {})
        both = self.alice.self_signing.sign(self.phone.keys(), ALICE)
        self.assertEqual(self.phone_as_seen(), both)
        self.assertEqual(self.changed(position), [ALICE])
        position = self.position()
        self.assertEqual(self.sign(ALICE, ALICE, "ALICEDEV", both), {})
        self.get(self.upload(self.phone))
        self.assertEqual(self.phone_as_seen(), both, "the device's own upload does not take it away")
        self.assertEqual(self.changed(position), [])

    def test_a_device_that_did_not_sign_its_own_keys_can_be_signed(self) -> None:
        self.get(self.upload(self.phone, device_keys={**self.phone.keys(), "signatures": {}}))
        self.assertEqual(self.sign(ALICE, ALICE, "ALICEDEV", self.signed_phone()), {})
        self.assertEqual(self.phone_as_seen(), self.signed_phone())

    def test_other_keys_of_a_device_lose_the_signature(self) -> None:
        self.sign(ALICE, ALICE, "ALICEDEV", self.signed_phone())
        changed = self.phone.keys(algorithms=[])
        self.get(self.upload(self.phone, device_keys=changed))
        self.assertEqual(self.phone_as_seen(), changed)

    def test_a_device_may_bring_the_signature_itself(self) -> None:
        both = self.alice.self_signing.sign(self.phone.keys(), ALICE)
        self.get(self.upload(self.phone, device_keys=both))
        self.assertEqual(self.phone_as_seen(), both)

    def test_everybody_sees_a_master_key_signed_by_its_devices(self) -> None:
        signed = self.phone.sign(self.alice.public("master"))
        self.assertEqual(self.sign(ALICE, ALICE, self.alice.master.public, signed), {})
        self.assertEqual(self.master_of(ALICE, BOB), signed)
        position = self.position()
        self.assertEqual(self.sign(ALICE, ALICE, self.alice.master.public, signed), {})
        self.assertEqual(self.changed(position), [])

    def test_signatures_of_devices_that_are_gone_give_way(self) -> None:
        tablet = Device(ALICE, "ALICE2")
        self.get(self.upload(tablet))
        by_phone = self.phone.sign(self.alice.public("master"))
        self.sign(ALICE, ALICE, self.alice.master.public, by_phone)
        self.delete_device(ALICE, "ALICEDEV")
        self.assertEqual(self.sign(ALICE, ALICE, self.alice.master.public, tablet.sign(by_phone)), {})
        self.assertEqual(self.master_of(ALICE, BOB), tablet.sign(self.alice.public("master")))

    def test_what_one_says_of_another_is_for_oneself(self) -> None:
        signed = self.alice.user_signing.sign(self.bob.public("master"), ALICE)
        position = self.position()
        self.assertEqual(self.sign(ALICE, BOB, self.bob.master.public, signed), {})
        self.assertEqual(self.master_of(BOB, ALICE), signed)
        for other in (BOB, CAROL, ""):
            self.assertEqual(self.master_of(BOB, other), self.bob.public("master"))
        here = self.position()
        self.assertEqual(self.changed(position), [])
        self.assertEqual(self.get(self.keys.signatures_since(ALICE, position, here)), [BOB])
        self.assertEqual(self.get(self.keys.signatures_since(BOB, position, here)), [])
        change = msgspec.msgpack.decode(self.told[-1].payload, type=KeyChange)
        self.assertEqual((change.user_id, change.only_for), (BOB, ALICE))
        self.assertEqual(self.sign(ALICE, BOB, self.bob.master.public, signed), {})
        self.assertEqual(self.position(), here, "it was known")

    def test_signatures_end_with_either_key(self) -> None:
        signed = self.alice.user_signing.sign(self.bob.public("master"), ALICE)
        self.sign(ALICE, BOB, self.bob.master.public, signed)
        new_bob = Identity(BOB, "new")
        self.publish(new_bob, replace=True)
        self.assertEqual(self.master_of(BOB, ALICE), new_bob.public("master"))
        self.sign(ALICE, BOB, new_bob.master.public, self.alice.user_signing.sign(new_bob.public("master"), ALICE))
        self.assertIn("signatures", self.master_of(BOB, ALICE))
        self.publish(Identity(ALICE, "new"), replace=True)
        self.assertEqual(self.master_of(BOB, ALICE), new_bob.public("master"))

    def test_what_does_not_hold_fails_alone(self) -> None:
        stranger = Key("stranger")
        master, bobs = self.alice.master.public, self.bob.master.public
        bad_id = self.alice.self_signing.id
        for user_id, key_id, value, errcode in [
            (ALICE, "ALICEDEV", self.phone.keys(), "M_INVALID_SIGNATURE"),
            (ALICE, "ALICEDEV", self.signed_phone(stranger), "M_INVALID_SIGNATURE"),
            (ALICE, "ALICEDEV", stranger.sign(self.phone.keys(), ALICE, bad_id), "M_INVALID_SIGNATURE"),
            (ALICE, "ALICEDEV", self.alice.self_signing.sign({"x": 1}, ALICE), "M_INVALID_SIGNATURE"),
            (ALICE, "ALICEDEV", {**self.signed_phone(), "signatures": 1}, "M_BAD_JSON"),
            (ALICE, "ALICEDEV", {**self.signed_phone(), "half": 0.5}, "M_BAD_JSON"),
            (ALICE, "NONE", self.signed_phone(), "M_NOT_FOUND"),
            (ALICE, "a\0", self.signed_phone(), "M_INVALID_PARAM"),
            (ALICE, self.alice.self_signing.public, self.alice.public("self_signing"), "M_NOT_FOUND"),
            (ALICE, master, Device(ALICE, "ALICE2").sign(self.alice.public("master")), "M_INVALID_SIGNATURE"),
            (BOB, bobs, self.bob.public("master"), "M_INVALID_SIGNATURE"),
            (BOB, bobs, self.alice.master.sign(self.bob.public("master"), ALICE), "M_INVALID_SIGNATURE"),
            (BOB, bobs, self.alice.user_signing.sign({"x": 1}, ALICE), "M_INVALID_SIGNATURE"),
            (BOB, "BOBDEV", self.alice.user_signing.sign(Device(BOB, "BOBDEV").keys(), ALICE), "M_NOT_FOUND"),
            ("@nobody:test", "x", {}, "M_NOT_FOUND"),
            (CAROL, "x", {}, "M_NOT_FOUND"),
        ]:
            self.check_fails(ALICE, user_id, key_id, value, errcode)
        both = {ALICE: {"ALICEDEV": self.signed_phone(), "NONE": {}}}
        failures = self.get(self.keys.upload_signatures(ALICE, both))
        self.assertEqual({user_id: set(failed) for user_id, failed in failures.items()}, {ALICE: {"NONE"}})

    def test_without_own_keys_there_is_nothing_to_sign_with(self) -> None:
        guest = Device("@1:test", "GUESTDEV")
        self.get(self.upload(guest))
        self.check_fails("@1:test", "@1:test", "GUESTDEV", guest.keys(), "M_NOT_FOUND")
        self.check_fails("@1:test", BOB, self.bob.master.public, self.bob.public("master"), "M_NOT_FOUND")

    def test_uploads_of_another_shape_are_refused(self) -> None:
        self.check_refused(self.keys.upload_signatures(ALICE, {"bob": {}}), 400, "M_INVALID_PARAM")
        self.check_refused(self.keys.upload_signatures(ALICE, {ALICE: {"D": 1}}), 400, "M_BAD_JSON")
        many: dict[str, Any] = {ALICE: {str(number): {} for number in range(501)}}
        self.check_refused(self.keys.upload_signatures(ALICE, many), 413, "M_TOO_LARGE")


class RemoteSignaturesTests(SigningCase):
    def setUp(self) -> None:
        super().setUp()
        self.carol = Identity(CAROL)
        self.answer(self.carol.public("master"))
        self.publish(self.alice)

    def answer(self, master: Any) -> None:
        """What Carol's server says of her master key."""
        path = "/_matrix/federation/v1/user/keys/query"
        self.federation.answers["elsewhere", path] = {"device_keys": {CAROL: {}}, "master_keys": {CAROL: master}}

    def test_users_of_other_servers_can_be_signed(self) -> None:
        signed = self.alice.user_signing.sign(self.carol.public("master"), ALICE)
        self.assertEqual(self.sign(ALICE, CAROL, self.carol.master.public, signed), {})
        self.assertEqual(self.master_of(CAROL, ALICE), signed)
        self.assertEqual(self.master_of(CAROL, BOB), self.carol.public("master"))

    def test_a_strange_answer_harms_nobody(self) -> None:
        signed = self.alice.user_signing.sign(self.carol.public("master"), ALICE)
        self.sign(ALICE, CAROL, self.carol.master.public, signed)
        keys = self.carol.public("master")
        answers: list[Any] = [{}, 7, {"keys": []}, {**keys, "signatures": 7}, {**keys, "user_id": ALICE}]
        for strange in answers:
            self.answer(strange)
            found = self.seen_by(ALICE, CAROL)
            self.assertEqual((found.device_keys, found.master_keys), ({CAROL: {}}, {}))
