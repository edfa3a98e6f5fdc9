"""One-time keys and fallback keys: stored once, handed out once, counted exactly.

Client-Server API, "One-time and fallback keys".  A one-time key leaves the
table in the transaction that hands it out, so no two requests can get the same
one; its name and digest stay behind, so an upload that is repeated cannot bring
it back.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ..cache import CacheBudget
from ..database.engines import Database
from ..database.statements import Transaction
from ..links.echoes import Echoes
from ..matrix.errors import MatrixError, invalid_param, too_large
from ..world import Clock
from .api import KEY_COUNTS, DeviceName, KeyCounts
from .key_checks import UPLOAD_LIMIT, NewKey, identifier
from .recent import Recent
from .tables import one_time_keys as table

COUNTS_BYTES = 700
"""What the remembered counts of a device take, about."""

CLAIM_LIMIT = 5_000
"""Keys that one request may claim."""

Claimed = dict[str, dict[str, dict[str, bytes]]]
"""User, device, ``algorithm:key_id`` to the key's JSON."""


class OneTimeKeys:
    """The one-time and fallback keys of local devices.

    Counts are remembered by a process that is alone (`exclusive`), or hears by `echoes` of what others change.
    """

    def __init__(
        self, database: Database, clock: Clock, budget: CacheBudget, exclusive: bool, echoes: Echoes | None = None
    ) -> None:
        self._database = database
        self._clock = clock
        self._exclusive = exclusive
        self._echoes = echoes
        self._counts: Recent[tuple[str, str], KeyCounts] = Recent("one_time_key_counts", budget, COUNTS_BYTES)
        if echoes is not None:
            echoes.hear(KEY_COUNTS, self._heard)
            echoes.on_missed(self.forget_all)

    async def store(self, txn: Transaction, user_id: str, device_id: str, keys: Sequence[NewKey]) -> None:
        """Put up one-time keys.

        A key that waits or was claimed already is left alone; one of the same name that says something
        else is refused while the other still waits.
        """
        key_ids = [key.key_id for key in keys]
        waiting = {
            (key.algorithm, key.key_id): key.digest
            for key in await table.waiting_named(txn, user_id, device_id, key_ids)
        }
        claimed = {
            (key.algorithm, key.key_id): key.digest
            for key in await table.claimed_named(txn, user_id, device_id, key_ids)
        }
        for key in keys:
            if waiting.get(key.name, key.digest) != key.digest:
                raise invalid_param(f"There is another one-time key {key.algorithm}:{key.key_id} already.")
        new = [key for key in keys if key.name not in waiting and claimed.get(key.name) != key.digest]
        if not new:
            return
        if sum(count.count for count in await table.counts(txn, user_id, device_id)) + len(new) > UPLOAD_LIMIT:
            raise too_large(f"A device may have {UPLOAD_LIMIT} one-time keys at most.")
        rows = [(user_id, device_id, key.algorithm, key.key_id, key.digest, key.content) for key in new]
        await table.add(txn, rows)
        self._touch(txn, user_id, device_id)

    async def store_fallback(self, txn: Transaction, user_id: str, device_id: str, keys: Sequence[NewKey]) -> None:
        """Replace the fallback keys of these algorithms; the same key again does not count as unused anew."""
        present = {key.algorithm: key for key in await table.fallbacks(txn, user_id, device_id)}
        for key in keys:
            old = present.get(key.algorithm)
            if old is not None and old.key_id == key.key_id and old.digest == key.digest:
                continue
            await table.store_fallback(txn, user_id, device_id, key.algorithm, key.key_id, key.digest, key.content)
            self._touch(txn, user_id, device_id)

    async def claim(self, wanted: Sequence[tuple[str, str, str]]) -> Claimed:
        """Hand out a key for each (user, device, algorithm); what has none is left out."""
        for _, device_id, algorithm in wanted:
            identifier(device_id, "device ID")
            identifier(algorithm, "algorithm")
        return await self._database.write(self._claim, wanted) if wanted else {}

    async def _claim(self, txn: Transaction, wanted: Sequence[tuple[str, str, str]]) -> Claimed:
        claimed: Claimed = {}
        gone = []
        now = self._clock.now_ms()
        for user_id, device_id, algorithm in wanted:
            key = await self._take(txn, user_id, device_id, algorithm)
            if key is not None:
                gone.append((user_id, device_id, algorithm, key.key_id, key.digest, now))
                self._touch(txn, user_id, device_id)
                name, content = f"{algorithm}:{key.key_id}", key.content
            else:
                fallback = await table.fallback(txn, user_id, device_id, algorithm)
                if fallback is None:
                    continue
                if not fallback.used:
                    await table.use_fallback(txn, user_id, device_id, algorithm)
                    self._touch(txn, user_id, device_id)
                name, content = f"{algorithm}:{fallback.key_id}", fallback.content
            claimed.setdefault(user_id, {})[device_id] = {name: content}
        await table.remember_claimed(txn, gone)
        return claimed

    async def _take(self, txn: Transaction, user_id: str, device_id: str, algorithm: str) -> table.StoredKey | None:
        """The oldest key, taken away; asked again where another transaction was faster and more keys wait."""
        while True:
            key = await table.take_oldest(txn, user_id, device_id, algorithm)
            if key is not None or await table.any_waiting(txn, user_id, device_id, algorithm) is None:
                return key

    async def counts(self, user_id: str, device_id: str) -> KeyCounts:
        """How many keys wait, and which fallback keys are unused; from memory where nothing changed."""
        key = user_id, device_id
        counts = self._counts.get(key) if self._remembers else None
        if counts is None:
            generation = self._counts.generation
            counts = await self._database.read(self.read_counts, user_id, device_id)
            if self._remembers:
                self._counts.keep(key, counts, generation)
        return counts

    async def counts_of(self, devices: Sequence[DeviceName]) -> list[KeyCounts]:
        """As `counts`; what is not in memory is read at once for all of them."""
        keys = [(device.user_id, device.device_id) for device in devices]
        found = {key: self._counts.get(key) if self._remembers else None for key in keys}
        missing = [key for key, counts in found.items() if counts is None]
        if missing:
            generation = self._counts.generation
            read = await self._database.read(self._read_counts_of, missing)
            found |= read
            for key, one in read.items() if self._remembers else ():
                self._counts.keep(key, one, generation)
        return [counts for key in keys if (counts := found[key]) is not None]

    async def _read_counts_of(
        self, txn: Transaction, devices: Sequence[tuple[str, str]]
    ) -> dict[tuple[str, str], KeyCounts]:
        found: dict[tuple[str, str], tuple[dict[str, int], list[str]]] = {
            device: ({"signed_curve25519": 0}, []) for device in devices
        }
        users, names = sorted({user for user, _ in devices}), sorted({name for _, name in devices})
        for count in await table.counts_of(txn, users, names):
            if (count.user_id, count.device_id) in found:
                found[count.user_id, count.device_id][0][count.algorithm] = count.count
        for fallback in await table.unused_fallbacks_of(txn, users, names):
            if (fallback.user_id, fallback.device_id) in found:
                found[fallback.user_id, fallback.device_id][1].append(fallback.algorithm)
        return {
            device: KeyCounts(one_time_keys=counts, unused_fallback_types=unused)
            for device, (counts, unused) in found.items()
        }

    @property
    def _remembers(self) -> bool:
        return self._exclusive or (self._echoes is not None and self._echoes.hearing)

    def forget_all(self) -> None:
        """Ask the database again for every device."""
        self._counts.forget_all()

    def _heard(self, payload: bytes) -> None:
        """Another process changed what a device has."""
        device = msgspec.msgpack.decode(payload, type=DeviceName)
        self._counts.forget((device.user_id, device.device_id))

    async def read_counts(self, txn: Transaction, user_id: str, device_id: str) -> KeyCounts:
        """The counts as they are in this transaction.

        ``signed_curve25519`` is always among them: clients make new keys only when they see a number.
        """
        counts = {"signed_curve25519": 0}
        counts.update((count.algorithm, count.count) for count in await table.counts(txn, user_id, device_id))
        unused = [key.algorithm for key in await table.fallbacks(txn, user_id, device_id) if not key.used]
        return KeyCounts(one_time_keys=counts, unused_fallback_types=unused)

    async def device_deleted(self, txn: Transaction, user_id: str, device_id: str) -> None:
        await table.delete_waiting(txn, user_id, device_id)
        await table.delete_claimed(txn, user_id, device_id)
        await table.delete_fallbacks(txn, user_id, device_id)
        self._touch(txn, user_id, device_id)

    async def account_deactivated(self, txn: Transaction, user_id: str) -> None:
        for device_id in await table.devices_with_keys(txn, user_id):
            await self.device_deleted(txn, user_id, device_id)

    async def prune(self) -> None:
        """Forget the names of keys that were claimed long ago."""
        await self._database.write(table.prune_claimed, self._clock.now_ms() - table.CLAIMED_RETENTION_MS)

    def _touch(self, txn: Transaction, user_id: str, device_id: str) -> None:
        def touched() -> None:
            self._counts.forget((user_id, device_id))
            if self._echoes is not None:
                self._echoes.tell(KEY_COUNTS, msgspec.msgpack.encode(DeviceName(user_id, device_id)))

        txn.after_commit(touched)


def flatten(one_time_keys: dict[str, dict[str, str]]) -> list[tuple[str, str, str]]:
    """The body of ``/keys/claim`` as a list; ``M_TOO_LARGE`` beyond `CLAIM_LIMIT`."""
    wanted = [
        (user_id, device_id, algorithm)
        for user_id, devices in one_time_keys.items()
        for device_id, algorithm in devices.items()
    ]
    if len(wanted) > CLAIM_LIMIT:
        raise MatrixError(413, "M_TOO_LARGE", f"One request may claim {CLAIM_LIMIT} keys at most.")
    return wanted
