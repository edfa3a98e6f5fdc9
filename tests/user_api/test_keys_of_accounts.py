"""Keys beside the accounts and sessions that they belong to, in one database."""

from __future__ import annotations

import orjson

from dendrite_tw.cache import CacheBudget
from dendrite_tw.user_api.keys_component import KeyComponent
from tests.user_api.harness import UsersCase
from tests.user_api.keys_support import Device


class AccountKeysTests(UsersCase):
    def setUp(self) -> None:
        super().setUp()
        users, world, budget = self.users, self.users.memory.world, CacheBudget(1 << 20)
        self.keys = KeyComponent(users.database, users.outbox, world, "test", budget, users.rooms, users.federation)
        self.api.on_device_deleted.append(self.keys.device_deleted)
        self.api.on_account_deactivated.append(self.keys.account_deactivated)
        self.make("alice", device_id="PHONE", display_name="Alice's phone")
        self.phone = Device("@alice:test", "PHONE")

    def upload(self) -> None:
        keys, one_time = self.phone.keys(), self.phone.one_time("a")
        self.wait(self.keys.upload_keys("@alice:test", "PHONE", keys, one_time, {}))

    def shown(self) -> list[str]:
        found = self.wait(self.keys.query_keys("@bob:test", {"@alice:test": []}, 0))
        return list(found.device_keys.get("@alice:test", ()))

    def test_names_come_from_the_session(self) -> None:
        self.upload()
        found = self.wait(self.keys.query_keys("@bob:test", {"@alice:test": []}, 0))
        unsigned = orjson.loads(found.device_keys["@alice:test"]["PHONE"])["unsigned"]
        self.assertEqual(unsigned, {"device_display_name": "Alice's phone"})

    def test_messages_reach_the_devices_of_sessions(self) -> None:
        self.wait(self.keys.send_to_device("@bob:test", "B", "m.test", "1", {"@alice:test": {"*": {}, "NONE": {}}}))
        self.assertEqual(len(self.wait(self.keys.to_device_since("@alice:test", "PHONE", 0, 99, 10))), 1)
        self.assertEqual(self.users.streams(), ["OutputSendToDeviceEvent"])

    def test_logging_out_takes_the_keys(self) -> None:
        self.upload()
        self.assertEqual(self.shown(), ["PHONE"])
        self.wait(self.api.delete_devices("@alice:test", ["PHONE"], None))
        self.assertEqual(self.shown(), [])
        self.assertEqual(self.wait(self.keys.key_counts("@alice:test", "PHONE")).one_time_keys["signed_curve25519"], 0)
        self.assertEqual(self.wait(self.keys.key_changes_since(1, 99)), ["@alice:test"])

    def test_deactivation_takes_all(self) -> None:
        self.upload()
        version = self.wait(self.keys.create_backup("@alice:test", "m.test", b"{}"))
        self.wait(self.api.deactivate("@alice:test", False))
        self.assertEqual(self.shown(), [])
        self.assertEqual(self.refused(self.keys.backup("@alice:test", version)).errcode, "M_NOT_FOUND")
