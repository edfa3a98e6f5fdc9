"""Identity keys: what may be uploaded, who sees what, who is told."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson

from dendrite_tw.links.codec import InterfaceCodec
from dendrite_tw.user_api.api import OUTPUT_KEY_CHANGE_EVENT, ClaimedKeys, KeyAPI, KeyChange, QueriedKeys
from tests.harness import trace
from tests.user_api.keys_support import ALICE, BOB, CAROL, Device, Key, KeysCase


class DeviceKeysTests(KeysCase):
    def setUp(self) -> None:
        super().setUp()
        self.phone = Device(ALICE, "ALICEDEV")

    def query(self, requester: str = BOB, device_ids: tuple[str, ...] = ()) -> dict[str, Any]:
        found = self.get(self.keys.query_keys(requester, {ALICE: list(device_ids)}, 0))
        return {device_id: orjson.loads(keys) for device_id, keys in found.device_keys[ALICE].items()}

    def test_keys_are_shown_as_they_were_uploaded(self) -> None:
        keys = self.phone.keys(extra={"of": ["any", "shape"]})
        self.get(self.upload(self.phone, device_keys={**keys, "unsigned": {"device_display_name": "forged"}}))
        self.assertEqual(self.query(), {"ALICEDEV": {**keys, "unsigned": {"device_display_name": "Alice's phone"}}})

    def test_a_device_without_a_name_has_nothing_unsigned(self) -> None:
        tablet = Device(ALICE, "ALICE2")
        self.get(self.upload(tablet))
        self.assertEqual(self.query(), {"ALICE2": {**tablet.keys(), "unsigned": {}}})

    def test_named_devices_alone_are_shown(self) -> None:
        for device_id in ("ALICEDEV", "ALICE2"):
            self.get(self.upload(Device(ALICE, device_id)))
        self.assertEqual(set(self.query()), {"ALICEDEV", "ALICE2"})
        self.assertEqual(set(self.query(BOB, ("ALICE2", "NONE"))), {"ALICE2"})

    def test_a_user_without_keys_is_there_and_one_without_account_is_not(self) -> None:
        found = self.get(self.keys.query_keys(ALICE, {BOB: [], "@nobody:test": []}, 0))
        self.assertEqual((found.device_keys, found.failures), ({BOB: {}}, {}))

    def test_a_change_is_told_once(self) -> None:
        self.get(self.upload(self.phone))
        position = self.position()
        self.assertEqual(self.changed(), [ALICE])
        self.get(self.upload(self.phone))
        self.assertEqual((self.position(), self.changed(position)), (position, []))
        self.get(self.upload(self.phone, device_keys=self.phone.keys(algorithms=[])))
        self.assertEqual(self.changed(position), [ALICE])
        changes = [msgspec.msgpack.decode(row.payload, type=KeyChange) for row in self.told]
        self.assertEqual({row.stream for row in self.told}, {OUTPUT_KEY_CHANGE_EVENT})
        self.assertEqual([change.position for change in changes], [row.id for row in self.told])
        self.assertEqual(
            [(change.user_id, change.device_id, change.previous) for change in changes],
            [(ALICE, "ALICEDEV", 0), (ALICE, "ALICEDEV", position)],
        )

    def test_a_deleted_device_takes_its_keys_with_it(self) -> None:
        self.get(self.upload(self.phone))
        position = self.position()
        self.delete_device(ALICE, "ALICE2")
        self.assertEqual(self.changed(position), [ALICE], "it had no keys, and was listed")
        position = self.position()
        self.delete_device(ALICE, "ALICEDEV")
        self.assertEqual(self.changed(position), [ALICE])
        self.assertEqual(self.query(), {})
        self.assertTrue(msgspec.msgpack.decode(self.told[-1].payload, type=KeyChange).deleted)
        self.check_refused(self.upload(self.phone), 401, "M_UNKNOWN_TOKEN")

    def test_a_change_of_name_is_told(self) -> None:
        self.get(self.upload(self.phone))
        position = self.position()
        self.successResultOf(self.database.write(self.keys.device_changed, ALICE, "ALICEDEV"))
        self.assertEqual(self.changed(position), [ALICE])

    def test_keys_that_do_not_fit_are_refused(self) -> None:
        good = self.phone.keys()
        lacking = [{n: part for n, part in good.items() if n != lack} for lack in good if lack != "signatures"]
        for bad in lacking:
            self.check_refused(self.upload(self.phone, device_keys=bad), 400, "M_BAD_JSON")
        ed25519 = "ed25519:ALICEDEV"
        wrong: list[tuple[dict[str, Any], str]] = [
            ({"user_id": BOB}, "M_INVALID_PARAM"),
            ({"device_id": "ALICE2"}, "M_INVALID_PARAM"),
            ({"algorithms": "m.olm"}, "M_BAD_JSON"),
            ({"algorithms": [1]}, "M_BAD_JSON"),
            ({"algorithms": ["x"] * 100}, "M_BAD_JSON"),
            ({"keys": []}, "M_BAD_JSON"),
            ({"keys": {ed25519: 1}}, "M_BAD_JSON"),
        ]
        for changes, errcode in wrong:
            self.check_refused(self.upload(self.phone, device_keys=self.phone.keys(**changes)), 400, errcode)
        for signatures, errcode in [
            ([], "M_BAD_JSON"),
            ({ALICE: []}, "M_BAD_JSON"),
            ({ALICE: {ed25519: 7}}, "M_BAD_JSON"),
        ]:
            bad = {**good, "signatures": signatures}
            self.check_refused(self.upload(self.phone, device_keys=bad), 400, errcode)
        self.check_refused(self.upload(self.phone, device_keys={**good, "number": 1.5}), 400, "M_BAD_JSON")
        self.check_refused(self.upload(self.phone, device_keys=self.phone.keys(big="x" * 20_000)), 413, "M_TOO_LARGE")
        self.assertEqual((self.query(), self.changed()), ({}, []))

    def test_keys_of_another_make_are_kept_as_they_are(self) -> None:
        for keys in ({}, {"ed25519:ALICEDEV": "ed25519+key", "curve25519:ALICEDEV": "short"}, {"x:ALICEDEV": "y"}):
            value = self.phone.keys(keys=keys)
            self.get(self.upload(self.phone, device_keys=value))
            self.assertEqual(self.query()["ALICEDEV"]["keys"], keys)
        value = {name: part for name, part in value.items() if name != "signatures"}
        self.get(self.upload(self.phone, device_keys=value))
        self.assertNotIn("signatures", self.query()["ALICEDEV"])

    def test_signatures_of_others_are_not_kept(self) -> None:
        signed = Key("x").sign(Key("y").sign(self.phone.keys(), BOB), ALICE)
        self.get(self.upload(self.phone, device_keys=signed))
        self.assertEqual(self.query()["ALICEDEV"]["signatures"], self.phone.keys()["signatures"])

    def test_nothing_is_stored_where_a_part_is_refused(self) -> None:
        self.check_refused(
            self.upload(self.phone, device_keys=self.phone.keys(), one_time={"nocolon": "x"}), 400, "M_INVALID_PARAM"
        )
        self.assertEqual(self.query(), {})

    def test_other_servers_may_have_the_list(self) -> None:
        self.get(self.upload(self.phone))
        listed = self.get(self.keys.device_list(ALICE))
        self.assertEqual(listed.stream_id, self.position())
        self.assertEqual(
            [(entry.device_id, orjson.loads(entry.keys), entry.display_name) for entry in listed.devices],
            [("ALICEDEV", self.phone.keys(), "Alice's phone")],
        )
        self.check_refused(self.keys.device_list("@nobody:test"), 404, "M_NOT_FOUND")
        self.check_refused(self.keys.device_list("nobody"), 400, "M_INVALID_PARAM")

    def test_queries_are_bounded_and_checked(self) -> None:
        self.check_refused(self.keys.query_keys(ALICE, {"alice": []}, 0), 400, "M_INVALID_PARAM")
        self.check_refused(self.keys.query_keys(ALICE, {"@a\0:test": []}, 0), 400, "M_INVALID_PARAM")
        many: dict[str, list[str]] = {f"@u{number}:test": [] for number in range(10_001)}
        self.check_refused(self.keys.query_keys(ALICE, many, 0), 413, "M_TOO_LARGE")
        many.popitem()
        self.assertEqual(self.get(self.keys.query_keys(ALICE, many, 0)), QueriedKeys())

    def test_a_query_of_many_users_takes_few_statements(self) -> None:
        for number in range(200):
            self.devices[f"@u{number}:test"] = {"D": None}
            self.get(self.upload(Device(f"@u{number}:test", "D")))
        statements = trace(self.database)
        wanted: dict[str, list[str]] = {f"@u{number}:test": [] for number in range(200)}
        found = self.get(self.keys.query_keys(ALICE, wanted, 0))
        self.assertEqual(len(found.device_keys), 200)
        self.assertLessEqual(len(statements), 3)

    def test_the_interface_crosses_processes(self) -> None:
        self.assertIn("upload_keys", InterfaceCodec(KeyAPI).methods)

    def test_an_account_leaves_nothing(self) -> None:
        self.get(self.upload(self.phone, device_keys=self.phone.keys(), one_time=self.phone.one_time("a", "b")))
        self.get(self.keys.send_to_device(BOB, "BOBDEV", "m.test", "1", {ALICE: {"*": {}}}))
        version = self.get(self.keys.create_backup(ALICE, "a", b"{}"))
        position = self.position()
        self.successResultOf(self.database.write(self.keys.account_deactivated, ALICE))
        self.assertEqual(self.changed(position), [ALICE])
        self.assertEqual(self.query(), {})
        self.assertEqual(self.get(self.keys.claim_keys({ALICE: {"ALICEDEV": "signed_curve25519"}}, 0)), ClaimedKeys())
        self.assertEqual(self.get(self.keys.to_device_since(ALICE, "ALICEDEV", 0, 10**9, 10)), [])
        self.check_refused(self.keys.backup(ALICE, version), 404, "M_NOT_FOUND")


class ChangesTests(KeysCase):
    def change(self, user_id: str) -> None:
        self.successResultOf(self.database.write(self.keys.device_changed, user_id, "DEVICE"))

    def test_a_row_for_each_user_with_the_newest_position(self) -> None:
        for number in range(5):
            self.change(f"@u{number % 2}:elsewhere")
        self.assertEqual(self.get(self.keys.key_changes_since(0, 3)), [])
        self.assertEqual(self.get(self.keys.key_changes_since(3, 5)), ["@u1:elsewhere", "@u0:elsewhere"])
        self.assertEqual(self.get(self.keys.key_changes_since(4, 5)), ["@u0:elsewhere"])

    def test_where_nothing_changed_nothing_is_read(self) -> None:
        self.change(CAROL)
        again = self.make()
        self.assertEqual(self.get(again.key_changes_since(1, 9)), [])
        statements = trace(self.database)
        self.assertEqual(self.get(again.key_changes_since(1, 9)), [])
        self.assertEqual(statements, [])
        shared = self.make(exclusive=False)
        self.assertEqual(self.get(shared.key_changes_since(0, 9)), [CAROL])
        self.assertEqual(len(statements), 1)
