"""Devices that really sign, over a component with an empty database."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from nacl.bindings import crypto_sign_seed_keypair
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.cache import CacheBudget
from dendrite_tw.database.engines import Database
from dendrite_tw.database.migrate import migrate, steps_of
from dendrite_tw.database.outbox import Outbox, OutboxRow
from dendrite_tw.database.statements import Transaction
from dendrite_tw.matrix.errors import MatrixError
from dendrite_tw.matrix.signing import encode_base64, sign_json
from dendrite_tw.user_api.api import KeyCounts
from dendrite_tw.user_api.keys_component import KeyComponent
from tests.harness import Memory
from tests.user_api.fakes import FakeFederation, FakeRooms

T = TypeVar("T")

ALICE, BOB, CAROL = "@alice:test", "@bob:test", "@carol:elsewhere"


class Key:
    """An Ed25519 key pair out of a name."""

    def __init__(self, name: str) -> None:
        public, self.secret = crypto_sign_seed_keypair(name.encode().ljust(32, b".")[:32])
        self.public = encode_base64(public)
        self.id = f"ed25519:{self.public}"

    def sign(self, value: dict[str, Any], user_id: str, key_id: str | None = None) -> dict[str, Any]:
        """`value` with a signature of this key added."""
        return sign_json(value, user_id, key_id or self.id, self.secret)


class Device:
    """A device with its keys."""

    def __init__(self, user_id: str, device_id: str, seed: str = "") -> None:
        self.user_id = user_id
        self.device_id = device_id
        self.key = Key(f"{seed}{user_id}{device_id}")
        self.key_id = f"ed25519:{device_id}"

    def sign(self, value: dict[str, Any]) -> dict[str, Any]:
        return self.key.sign(value, self.user_id, self.key_id)

    def keys(self, **changes: Any) -> dict[str, Any]:
        """Identity keys, signed."""
        value = {
            "user_id": self.user_id,
            "device_id": self.device_id,
            "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
            "keys": {
                f"curve25519:{self.device_id}": Key(self.device_id).public,
                self.key_id: self.key.public,
            },
        }
        return self.sign({**value, **changes})

    def one_time(self, *names: str, text: str = "", **more: Any) -> dict[str, Any]:
        """Signed one-time keys with these IDs."""
        return {f"signed_curve25519:{name}": self.sign({"key": Key(text + name).public, **more}) for name in names}


class Identity:
    """A user's three cross-signing keys."""

    def __init__(self, user_id: str, seed: str = "") -> None:
        self.user_id = user_id
        self.master = Key(f"{seed}M{user_id}")
        self.self_signing = Key(f"{seed}S{user_id}")
        self.user_signing = Key(f"{seed}U{user_id}")

    def public(self, usage: str) -> dict[str, Any]:
        key: Key = getattr(self, usage)
        value = {"user_id": self.user_id, "usage": [usage], "keys": {key.id: key.public}}
        return value if usage == "master" else self.master.sign(value, self.user_id)

    def keys(self) -> dict[str, dict[str, Any]]:
        return {usage: self.public(usage) for usage in ("master", "self_signing", "user_signing")}

    def body(self) -> dict[str, Any]:
        return {f"{usage}_key": value for usage, value in self.keys().items()}


class KeysCase(SynchronousTestCase):
    """A `KeyComponent`; ``devices`` is what the user component would know of devices."""

    def setUp(self) -> None:
        self.memory = Memory()
        self.database = self.make_database()
        self.database.prepare(migrate, "user_api", steps_of("dendrite_tw.user_api"))
        self.told: list[OutboxRow] = []
        self.outbox = self.make_outbox(self.database)
        self.devices: dict[str, dict[str, str | None]] = {
            ALICE: {"ALICEDEV": "Alice's phone", "ALICE2": None},
            BOB: {"BOBDEV": "Bob's laptop"},
            "@1:test": {"GUESTDEV": None},
        }
        self.rooms: Any = FakeRooms()
        self.federation = FakeFederation()
        self.keys = self.make()

    def make_database(self) -> Database:
        database = self.memory.database()
        self.addCleanup(database.close)
        return database

    def make_outbox(self, database: Database) -> Outbox:
        outbox = Outbox("user_api", database)
        database.prepare(outbox.create)
        outbox.on_commit = self.told.extend
        return outbox

    def make(self, exclusive: bool | None = None) -> KeyComponent:
        return self.make_keys(self.database, self.outbox, exclusive)

    def make_keys(self, database: Database, outbox: Outbox, exclusive: bool | None = None, **more: Any) -> KeyComponent:
        return KeyComponent(
            database,
            outbox,
            self.memory.world,
            "test",
            CacheBudget(1 << 20),
            self.rooms,
            self.federation,
            2,
            self.devices_of,
            exclusive,
            **more,
        )

    async def devices_of(self, txn: Transaction, user_ids: Sequence[str]) -> dict[str, dict[str, str | None]]:
        return {user_id: self.devices[user_id] for user_id in user_ids if user_id in self.devices}

    def get(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The result of a call."""
        return self.successResultOf(Deferred.fromCoroutine(coroutine))

    def begin(self, coroutine: Coroutine[Any, Any, T]) -> Deferred[T]:
        """A call that may take its time."""
        return Deferred.fromCoroutine(coroutine)

    def refused(self, coroutine: Coroutine[Any, Any, Any]) -> MatrixError:
        """What a call was refused with."""
        error = self.failureResultOf(Deferred.fromCoroutine(coroutine), MatrixError).value
        assert isinstance(error, MatrixError)
        return error

    def check_refused(self, coroutine: Coroutine[Any, Any, Any], status: int, errcode: str) -> None:
        error = self.refused(coroutine)
        self.assertEqual((error.status, error.errcode), (status, errcode), error.error)

    def delete_device(self, user_id: str, device_id: str) -> None:
        """What the user component does."""
        del self.devices[user_id][device_id]
        self.successResultOf(self.database.write(self.keys.device_deleted, user_id, device_id))

    def upload(self, device: Device, **parts: Any) -> Coroutine[Any, Any, KeyCounts]:
        """Upload keys of a device; without parts its identity keys."""
        device_keys = parts.get("device_keys", None if parts else device.keys())
        return self.keys.upload_keys(
            device.user_id, device.device_id, device_keys, parts.get("one_time", {}), parts.get("fallback", {})
        )

    def position(self) -> int:
        """The newest position that is on disk."""
        return self.get(self.outbox.newest())

    def changed(self, after: int = 0) -> list[str]:
        return self.get(self.keys.key_changes_since(after, self.position()))
