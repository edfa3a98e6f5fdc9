"""`KeyAPI`, put together: devices' keys, cross-signing, messages between devices, backups.

The user component makes one, over its own database and outbox, and calls
`device_deleted` and `account_deactivated` in the transactions that delete
devices and accounts.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.task import LoopingCall

from ..cache import CacheBudget
from ..database.engines import Database
from ..database.outbox import Outbox
from ..database.statements import Transaction
from ..federation_api.api import FederationAPI
from ..links.echoes import Echoes, NoEchoes
from ..matrix.identifiers import server_name_of
from ..room_api.api import OutputRoomEvent, RoomAPI
from ..sharing.leases import Leases, Sole
from ..world import World
from . import key_checks
from .accounts import in_background
from .api import (
    RESYNC,
    BackupInfo,
    BackupKey,
    BackupState,
    ClaimedKeys,
    DeviceList,
    DeviceListUpdate,
    DeviceName,
    KeyAPI,
    KeyCounts,
    QueriedKeys,
    ToDeviceMessage,
)
from .cross_signing import CrossSigning
from .device_keys import DeviceKeys, DevicesOf, check_query, stored_devices
from .fetches import Fetches
from .key_backup import KeyBackup
from .key_changes import KeyChanges
from .one_time_keys import OneTimeKeys, flatten
from .remote_keys import RemoteKeys, bounded
from .remote_lists import RemoteLists
from .resync import Resyncs
from .tables import cross_signing as signing_table
from .to_device import ToDevice

REMOTE_TIMEOUT_MS = 10_000
"""How long other servers may take where no client says."""

STALE_LISTS = "stale_lists"
"""The topic of the echoes that tell of servers to ask for lists."""

LOOK_SECONDS = 30.0
FORGET_SECONDS = 60.0
"""How old remembered counts of keys may be, where a process may have been killed before it told of a change."""

NO_ECHOES = NoEchoes()

MESSAGES_LIMIT = 1_000
"""Waiting messages that one question may return."""


class KeyComponent:
    """Answers `KeyAPI`.

    `devices_of` reads devices in the transaction that it is given, by default from the user
    component's table.  `exclusive`
    says that this process alone writes the database, so that counts and
    positions may be remembered; by default it is what the database says.  `workers` lists of other servers are
    fetched at a time, by one process.  `keys` is what all processes answer, by default what this one does.
    """

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        world: World,
        server_name: str,
        budget: CacheBudget,
        rooms: RoomAPI,
        federation: FederationAPI,
        workers: int = 8,
        devices_of: DevicesOf = stored_devices,
        exclusive: bool | None = None,
        *,
        echoes: Echoes = NO_ECHOES,
        leases: Leases | None = None,
        keys: KeyAPI | None = None,
    ) -> None:
        clock = world.clock
        exclusive = not database.shared if exclusive is None else exclusive
        self._database = database
        self._server_name = server_name
        self._changes = KeyChanges(database, outbox, exclusive)
        self._devices = DeviceKeys(database, self._changes, devices_of)
        told = echoes if database.shared and echoes is not NO_ECHOES else None
        self._one_time = OneTimeKeys(database, clock, budget, exclusive, told)
        self._signing = CrossSigning(database, self._changes, devices_of, server_name)
        self._to_device = ToDevice(database, outbox, clock, world.random, devices_of, server_name, budget, exclusive)
        self._backup = KeyBackup(database)
        self.lists = RemoteLists(database, self._changes, rooms, server_name, Fetches(database, clock, world.random))
        self.resyncs = Resyncs(federation, self.lists, world, workers, database.shared)
        self.lists.on_stale = self._stale
        self._remote = RemoteKeys(federation, self.lists, keys or self, rooms, world.time)
        self._echoes = echoes
        self._looking = LoopingCall(self._look)
        self._looking.clock = world.time
        self._forgetting = LoopingCall(self._one_time.forget_all)
        self._forgetting.clock = world.time
        self._sole = Sole() if leases is None else None
        """The lease, where nobody else wants it."""
        self._leases: Leases = leases or self._sole or Sole()
        self._leases.want([RESYNC], self._fetch_lists, self._fetch_no_more)
        echoes.hear(STALE_LISTS, lambda payload: self.resyncs.wake(payload.decode()))
        echoes.on_missed(self._look)

    async def start(self) -> None:
        """Go on with what an earlier run left; where leases were given, once this process has that one."""
        if self._database.shared:
            self._forgetting.start(FORGET_SECONDS, now=False)
        if self._sole is not None:
            await self._sole.start()

    async def stop(self) -> None:
        if self._forgetting.running:
            self._forgetting.stop()
        if self._sole is not None:
            await self._sole.stop()
            await self.resyncs.stop()

    # --- who fetches lists of other servers ---

    async def _fetch_lists(self, lease: str) -> None:
        await self.resyncs.start()
        if self._database.shared:
            self._looking.start(LOOK_SECONDS, now=False)

    async def _fetch_no_more(self, lease: str, kept: bool) -> None:
        if self._looking.running:
            self._looking.stop()
        await self.resyncs.stop()

    def _stale(self, server_name: str) -> None:
        """A server is to be asked for lists, by whoever does that."""
        self.resyncs.wake(server_name)
        if self._database.shared:
            self._echoes.tell(STALE_LISTS, server_name.encode())

    def _look(self) -> None:
        """See on disk which servers are to be asked: a process may have been killed before it told."""
        if self.resyncs.is_running:
            in_background(self.resyncs.look(), "looking for lists of devices to fetch")

    # --- for the user component ---

    async def device_deleted(self, txn: Transaction, user_id: str, device_id: str) -> None:
        """Delete all that belongs to a device, in the transaction that deletes it."""
        await self._devices.device_deleted(txn, user_id, device_id)
        await self._one_time.device_deleted(txn, user_id, device_id)
        await self._to_device.device_deleted(txn, user_id, device_id)

    async def account_deactivated(self, txn: Transaction, user_id: str) -> None:
        """Delete all that belongs to a user, in the transaction that deactivates the account."""
        await self._devices.account_deactivated(txn, user_id)
        await self._one_time.account_deactivated(txn, user_id)
        await self._to_device.account_deactivated(txn, user_id)
        await self._signing.account_deactivated(txn, user_id)
        await self._backup.account_deactivated(txn, user_id)

    async def device_changed(self, txn: Transaction, user_id: str, device_id: str) -> None:
        """A device was made, or its display name changed, which others see beside the keys."""
        await self._devices.device_changed(txn, user_id, device_id)

    async def memberships_changed(self, told: OutputRoomEvent) -> None:
        """Lists of users who share no rooms any more are forgotten; at least once for each event."""
        await self.lists.memberships_changed(told)

    async def is_key_of(self, txn: Transaction, user_id: str, device_id: str) -> bool:
        """Whether a new device may not have this ID, because a cross-signing key of its user has it."""
        return any(key.public_key == device_id for key in await signing_table.of_user(txn, user_id))

    async def prune(self) -> None:
        """Delete what the tables keep for a while only; to be called every hour or so, one process does it."""
        if self._database.shared and not self._leases.holds(RESYNC):
            return
        await self.lists.fetches.prune()
        await self._one_time.prune()
        await self._to_device.prune()
        await self._backup.prune()

    # --- what a sync needs ---

    async def to_device_since(
        self, user_id: str, device_id: str, after: int, upto: int, limit: int
    ) -> list[ToDeviceMessage]:
        return await self._to_device.since(user_id, device_id, after, upto, max(0, min(limit, MESSAGES_LIMIT)))

    async def delete_to_device(self, user_id: str, device_id: str, upto: int) -> None:
        await self._to_device.delete(user_id, device_id, upto)

    async def key_changes_since(self, after: int, upto: int) -> list[str]:
        return await self._changes.since(after, upto)

    async def signatures_since(self, user_id: str, after: int, upto: int) -> list[str]:
        return await self._changes.signed_since(user_id, after, upto)

    async def key_counts(self, user_id: str, device_id: str) -> KeyCounts:
        return await self._one_time.counts(user_id, device_id)

    async def key_counts_of(self, devices: list[DeviceName]) -> list[KeyCounts]:
        return await self._one_time.counts_of(devices)

    # --- keys of devices ---

    async def upload_keys(
        self,
        user_id: str,
        device_id: str,
        device_keys: dict[str, Any] | None,
        one_time_keys: dict[str, Any],
        fallback_keys: dict[str, Any],
    ) -> KeyCounts:
        if device_keys is None and not one_time_keys and not fallback_keys:
            return await self._one_time.counts(user_id, device_id)
        signatures = key_checks.device_keys(device_keys, user_id, device_id) if device_keys is not None else {}
        new_keys = key_checks.one_time_keys(one_time_keys)
        new_fallbacks = key_checks.one_time_keys(fallback_keys, fallback=True)

        async def transaction(txn: Transaction) -> KeyCounts:
            await self._devices.require_device(txn, user_id, device_id)
            if device_keys is not None:
                await self._devices.store(txn, user_id, device_id, device_keys, signatures)
            await self._one_time.store(txn, user_id, device_id, new_keys)
            await self._one_time.store_fallback(txn, user_id, device_id, new_fallbacks)
            return await self._one_time.read_counts(txn, user_id, device_id)

        return await self._database.write(transaction)

    async def query_keys(
        self, requester: str, device_keys: dict[str, list[str]], timeout_ms: int, local_only: bool = False
    ) -> QueriedKeys:
        check_query(device_keys)
        local, remote = self._split(device_keys)
        found = await self._devices.query(requester, local)
        if remote and not local_only:
            there = await self._remote.query(requester, remote, timeout_ms)
            found.device_keys.update(there.device_keys)
            found.master_keys.update(await self._devices.add_signatures(requester, there.master_keys))
            found.self_signing_keys.update(there.self_signing_keys)
            found.failures.update(there.failures)
        return found

    async def claim_keys(
        self, one_time_keys: dict[str, dict[str, str]], timeout_ms: int, local_only: bool = False
    ) -> ClaimedKeys:
        for user_id in one_time_keys:
            key_checks.user_id(user_id)
        wanted = flatten(one_time_keys)
        local, remote = self._split(one_time_keys)
        claimed = await self._one_time.claim([row for row in wanted if row[0] in local])
        if not remote or local_only:
            return ClaimedKeys(one_time_keys=claimed)
        there = await self._remote.claim(remote, timeout_ms)
        return ClaimedKeys(one_time_keys={**claimed, **there.one_time_keys}, failures=there.failures)

    async def device_list(self, user_id: str) -> DeviceList:
        return await self._devices.list_of(key_checks.user_id(user_id))

    def _split(self, by_user: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """What concerns users of this server, and what concerns others."""
        local = {user: part for user, part in by_user.items() if server_name_of(user) == self._server_name}
        return local, {user: part for user, part in by_user.items() if user not in local}

    # --- lists of other servers ---

    async def device_list_update(self, origin: str, update: DeviceListUpdate) -> None:
        await self.lists.device_list_update(origin, update)

    async def signing_key_update(
        self,
        origin: str,
        user_id: str,
        master_key: dict[str, Any] | None,
        self_signing_key: dict[str, Any] | None,
    ) -> None:
        await self.lists.signing_key_update(origin, user_id, master_key, self_signing_key)

    async def settle_lists(self, user_ids: list[str], timeout_ms: int, lease: str = RESYNC) -> None:
        await self.resyncs.settle(user_ids, bounded(timeout_ms) / 1000)

    async def refresh_device_list(self, user_id: str) -> None:
        await self.lists.refresh(user_id)

    # --- cross-signing ---

    async def upload_cross_signing_keys(self, user_id: str, keys: dict[str, dict[str, Any]], replace: bool) -> bool:
        return await self._signing.upload_keys(user_id, keys, replace)

    async def upload_signatures(
        self, user_id: str, signed: dict[str, dict[str, Any]]
    ) -> dict[str, dict[str, dict[str, str]]]:
        for target in signed:
            key_checks.user_id(target)
        remote: dict[str, list[str]] = {user: [] for user in self._split(signed)[1]}
        masters = (await self._remote.query(user_id, remote, REMOTE_TIMEOUT_MS)).master_keys if remote else {}
        return await self._signing.upload_signatures(user_id, signed, masters)

    # --- messages between devices ---

    async def send_to_device(
        self, sender: str, device_id: str, event_type: str, txn_id: str, messages: dict[str, dict[str, Any]]
    ) -> None:
        await self._to_device.send(sender, device_id, event_type, txn_id, messages)

    # --- backup of room keys ---

    async def create_backup(self, user_id: str, algorithm: str, auth_data: bytes) -> str:
        return await self._backup.create(user_id, algorithm, auth_data)

    async def backup(self, user_id: str, version: str | None) -> BackupInfo:
        return await self._backup.info(user_id, version)

    async def update_backup(self, user_id: str, version: str, algorithm: str, auth_data: bytes) -> None:
        await self._backup.update(user_id, version, algorithm, auth_data)

    async def delete_backup(self, user_id: str, version: str) -> None:
        await self._backup.delete(user_id, version)

    async def put_backup_keys(self, user_id: str, version: str, keys: list[BackupKey]) -> BackupState:
        return await self._backup.put(user_id, version, keys)

    async def backup_keys(self, user_id: str, version: str, room_id: str | None, session_id: str | None) -> bytes:
        return await self._backup.get(user_id, version, room_id, session_id)

    async def delete_backup_keys(
        self, user_id: str, version: str, room_id: str | None, session_id: str | None
    ) -> BackupState:
        return await self._backup.delete_keys(user_id, version, room_id, session_id)
