"""Device lists of users of other servers, kept up to date by what their servers tell.

Server-Server API, "Device Management".  A list is kept for a user who shares a room with one of ours: only such a
user's server tells us of changes.  It begins with an answer to ``/user/keys/query`` or ``/user/devices``, and
continues with updates, each of which names those directly before it.  One that names an update that is not known
here makes the list *stale*, and it is fetched as a whole (`resync`).

What happens to a list while it is being fetched is noted (`fetches`): the answer may be older.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import orjson

from ..database.engines import Database
from ..database.statements import Transaction
from ..matrix.errors import invalid_param
from ..matrix.identifiers import is_historical_user_id, server_name_of
from ..room_api.api import OutputRoomEvent, RoomAPI
from . import remote_checks
from .api import DeviceListUpdate
from .fetches import Fetch, Fetches, Heard
from .key_changes import KeyChanges
from .remote_checks import LARGEST_NUMBER, NEVER, UNNUMBERED, RemoteDevices
from .tables import remote_devices as table

SEEN_LIMIT = 100
"""Updates since the last whole list that are remembered one by one; those before them count as known."""

NO_UPDATES = b"[]"

INLINE_READ = 300
"""A question about more users is read beside the reactor."""


class Seen(msgspec.Struct, frozen=True):
    """Which updates a list contains: all up to that of a whole list, and single ones since."""

    upto: int
    since: tuple[int, ...] = ()

    def has(self, stream_id: int) -> bool:
        return 0 <= stream_id <= self.upto or stream_id in self.since

    def continued_by(self, update: DeviceListUpdate) -> bool:
        """Whether nothing is missing between the list and `update`.

        One that names nothing before it is the first of its user, or made by a server that does not number.
        """
        return bool(update.prev_id) and all(map(self.has, update.prev_id))

    def adding(self, stream_id: int) -> Seen:
        since = (*self.since, stream_id)
        if len(since) <= SEEN_LIMIT:
            return Seen(self.upto, since)
        oldest = min(since)
        return Seen(max(self.upto, oldest), tuple(one for one in since if one != oldest))


class RemoteLists:
    """The lists, and the rules by which they change.

    ``on_stale`` is told of a server that has to be asked for a list of one of its users.
    """

    def __init__(
        self, database: Database, changes: KeyChanges, rooms: RoomAPI, server_name: str, fetches: Fetches
    ) -> None:
        self._database = database
        self._changes = changes
        self._rooms = rooms
        self._server_name = server_name
        self.fetches = fetches
        self.on_stale: Callable[[str], None] = lambda server_name: None
        self.updates = 0
        """How many updates were taken in since the start."""

    # --- what other servers tell ---

    async def device_list_update(self, origin: str, update: DeviceListUpdate) -> None:
        """See `KeyAPI.device_list_update`."""
        if not await self._is_tracked(origin, update.user_id, update.stream_id):
            return
        content = None
        usable = True
        if not update.deleted and update.keys is not None:
            content = remote_checks.device(update.user_id, update.device_id, update.keys, update.device_display_name)
            usable = content is not None
        if not await self._database.write(self._update, update, content, usable):
            self.on_stale(origin)

    async def _update(self, txn: Transaction, update: DeviceListUpdate, content: bytes | None, usable: bool) -> bool:
        """Apply an update; `False` where that takes the whole list.

        An update that is known already, but says something else than what is stored, is one of a server that began
        to count anew.
        """
        await self.fetches.store(txn, update.user_id, update.stream_id)
        known = await self._fresh(txn, update.user_id)
        if known is None:
            return False
        seen = Seen(known.stream_id, tuple(orjson.loads(known.seen)))
        before = await table.device(txn, update.user_id, update.device_id)
        if usable and content == before and seen.has(update.stream_id):
            return True
        if not usable or seen.has(update.stream_id) or not seen.continued_by(update):
            await table.mark_stale(txn, update.user_id)
            return False
        if content != before:
            await self._put_device(txn, update.user_id, update.device_id, content, before is None)
        seen = seen.adding(update.stream_id)
        await table.put_seen(txn, update.user_id, seen.upto, orjson.dumps(seen.since))
        return True

    async def _fresh(self, txn: Transaction, user_id: str) -> table.ListRow | None:
        """What is known of a list that needs not be fetched; one that is not known yet becomes stale."""
        known = await table.of_user(txn, user_id)
        if known is None:
            await table.put(txn, server_name_of(user_id), user_id, 1, NEVER, NO_UPDATES, None, None)
        return known if known is not None and not known.stale else None

    async def _put_device(
        self, txn: Transaction, user_id: str, device_id: str, content: bytes | None, is_new: bool
    ) -> None:
        if content is None:
            await table.delete_devices(txn, user_id, [device_id])
        elif is_new and await table.device_count(txn, user_id) >= remote_checks.DEVICES_LIMIT:
            return
        else:
            await table.put_devices(txn, [(user_id, device_id, content)])
        await self._changes.record(txn, user_id)

    async def signing_key_update(
        self, origin: str, user_id: str, master_key: dict[str, Any] | None, self_signing_key: dict[str, Any] | None
    ) -> None:
        """See `KeyAPI.signing_key_update`."""
        if not await self._is_tracked(origin, user_id, LARGEST_NUMBER):
            return
        if not await self._database.write(self._update_keys, user_id, master_key, self_signing_key):
            self.on_stale(origin)

    async def _update_keys(
        self, txn: Transaction, user_id: str, master: dict[str, Any] | None, self_signing: dict[str, Any] | None
    ) -> bool:
        """Take new cross-signing keys; `False` where that takes the whole list."""
        await self.fetches.store(txn, user_id, LARGEST_NUMBER)
        known = await self._fresh(txn, user_id)
        if known is None:
            return False
        before = known.master_key, known.self_signing_key
        stored = [orjson.loads(key) if key is not None else None for key in before]
        keys = remote_checks.signing_keys(user_id, master or stored[0], self_signing or stored[1])
        if (master and keys[0] is None) or (self_signing and keys[1] is None):
            await table.mark_stale(txn, user_id)
            return False
        if keys != before:
            await table.put_keys(txn, user_id, *keys)
            await self._changes.record(txn, user_id)
        return True

    async def _is_tracked(self, origin: str, user_id: str, stream_id: int) -> bool:
        """Whether `origin` may speak of the user and somebody here wants to hear it; notes that it did."""
        if not is_historical_user_id(user_id) or server_name_of(user_id) != origin or origin == self._server_name:
            return False
        self.updates += 1
        self.fetches.note(user_id, stream_id)
        if await self.is_shared(user_id):
            return True
        await self.end([user_id])
        return False

    async def is_shared(self, user_id: str) -> bool:
        """Whether the user shares a room with a user of this server."""
        return self._server_name in await self._rooms.servers_of_user(user_id)

    async def refresh(self, user_id: str) -> None:
        """See `KeyAPI.refresh_device_list`."""
        if not is_historical_user_id(user_id) or server_name_of(user_id) == self._server_name:
            raise invalid_param("Only the list of a user of another server can be fetched.")
        if not await self.is_shared(user_id):
            await self.end([user_id])
            return
        self.fetches.note(user_id, LARGEST_NUMBER)
        await self._database.write(self._make_stale, user_id)
        self.on_stale(server_name_of(user_id))

    async def _make_stale(self, txn: Transaction, user_id: str) -> None:
        await self.fetches.store(txn, user_id, LARGEST_NUMBER)
        if await self._fresh(txn, user_id) is not None:
            await table.mark_stale(txn, user_id)

    # --- fetching ---

    async def put_list(self, fetch: Fetch, user_id: str, found: RemoteDevices) -> bool:
        """Store a whole list; `False` where something newer was told meanwhile, so that it stays stale."""

        async def put(txn: Transaction, noted: Heard) -> bool:
            heard = await self.fetches.heard(txn, fetch, noted)
            if user_id in heard:
                await self._put_list(txn, user_id, found, heard[user_id] > found.stream_id)
            return heard.get(user_id, -1) <= found.stream_id

        return await self._database.write(put, fetch.heard([user_id]))

    async def _put_list(self, txn: Transaction, user_id: str, found: RemoteDevices, stale: bool) -> None:
        known = await table.of_user(txn, user_id)
        if known is None:
            return
        changed = await table.replace_devices(txn, user_id, found.devices)
        keys = found.master_key, found.self_signing_key
        if changed or known.stream_id == NEVER or keys != (known.master_key, known.self_signing_key):
            await self._changes.record(txn, user_id)
        await table.put(txn, server_name_of(user_id), user_id, int(stale), found.stream_id, NO_UPDATES, *keys)

    async def begin_list(self, fetch: Fetch, user_id: str, found: RemoteDevices) -> None:
        """Begin a list with a whole one that a client waited for; one that has begun meanwhile and is newer stays."""

        async def begin(txn: Transaction, noted: Heard) -> bool:
            heard = await self.fetches.heard(txn, fetch, noted)
            if user_id in heard:
                await self._begin_list(txn, user_id, found, heard[user_id] > found.stream_id)
            return heard.get(user_id, -1) <= found.stream_id

        if not await self._database.write(begin, fetch.heard([user_id])):
            self.on_stale(server_name_of(user_id))

    async def _begin_list(self, txn: Transaction, user_id: str, found: RemoteDevices, stale: bool) -> None:
        known = await table.of_user(txn, user_id)
        if known is not None and not known.stale and known.stream_id >= found.stream_id:
            return
        if known is None:
            await table.put(txn, server_name_of(user_id), user_id, 1, NEVER, NO_UPDATES, None, None)
        await self._put_list(txn, user_id, found, stale)

    async def put_queried(self, fetch: Fetch, lists: dict[str, RemoteDevices]) -> None:
        """Begin lists with the answer to a query; those that are known already keep what was told of them."""

        async def put(txn: Transaction, noted: Heard) -> None:
            heard = await self.fetches.heard(txn, fetch, noted)
            await self._put_queried(txn, {user_id: lists[user_id] for user_id, newest in heard.items() if newest < 0})

        if lists:
            await self._database.write(put, fetch.heard(lists))

    async def _put_queried(self, txn: Transaction, lists: dict[str, RemoteDevices]) -> None:
        known = {row.user_id for row in await table.of_users(txn, list(lists))}
        for user_id, found in lists.items():
            if user_id not in known:
                keys = found.master_key, found.self_signing_key
                await table.put(txn, server_name_of(user_id), user_id, 0, UNNUMBERED, NO_UPDATES, *keys)
                await table.replace_devices(txn, user_id, found.devices)

    async def drop(self, user_id: str) -> None:
        """The user's server does not give the list: it is not known any more."""
        await self._database.write(self._drop, user_id)

    async def _drop(self, txn: Transaction, user_id: str) -> None:
        known = await table.of_user(txn, user_id)
        if known is not None:
            await table.forget(txn, user_id)
            await self._changes.record(txn, user_id)

    async def stale_servers(self) -> list[str]:
        """The servers that have to be asked for lists."""
        return await self._database.read(table.stale_servers)

    async def stale_users(self, server_name: str, after: str, count: int) -> list[str]:
        """Users of a server whose lists are stale, in order, behind `after`."""
        return await self._database.read(table.stale_users, server_name, after, count)

    # --- the end of tracking ---

    async def memberships_changed(self, told: OutputRoomEvent) -> None:
        """End what nobody needs any more: a list of one who left the last room shared with users of this server."""
        room_id = told.event.room_id
        left = {
            event.state_key
            for event in [told.event, *told.also_replaced]
            if event.type == "m.room.member" and event.state_key is not None and event.membership != "join"
        } | {state_key for type, state_key in told.also_removed if type == "m.room.member"}
        remote = {user_id for user_id in left if not user_id.endswith(f":{self._server_name}")}
        if remote != left and not told.local_members:
            remote.update(await self._rooms.joined_users(room_id))
        listed = await self._listed(sorted(remote))
        await self.end([user_id for user_id in listed if not await self._shared_besides(user_id, room_id)])

    async def _listed(self, user_ids: Sequence[str]) -> list[str]:
        """Those of whom there is a list, or is going to be."""
        if not user_ids:
            return []
        read = self._database.read_long if len(user_ids) > INLINE_READ else self._database.read
        return sorted(await read(self._known_users, user_ids) | self.fetches.fetched_here(user_ids))

    async def _known_users(self, txn: Transaction, user_ids: Sequence[str]) -> set[str]:
        return {*await table.known_users(txn, user_ids), *await self.fetches.fetched(txn, user_ids)}

    async def _shared_besides(self, user_id: str, room_id: str) -> bool:
        """Whether the user shares a room other than `room_id`.

        That one does not count even if they came back meanwhile: changes may have been missed.
        """
        for member in await self._rooms.memberships(user_id):
            elsewhere = member.membership == "join" and member.room_id != room_id
            if elsewhere and self._server_name in await self._rooms.room_servers(member.room_id):
                return True
        return False

    async def end(self, user_ids: Sequence[str]) -> None:
        """Forget the lists of users who share no rooms any more."""
        listed = await self._listed(user_ids)
        if listed:
            self.fetches.note_end(listed)
            await self._database.write(self._end, listed)

    async def _end(self, txn: Transaction, user_ids: Sequence[str]) -> None:
        await self.fetches.store_end(txn, user_ids)
        for user_id in user_ids:
            await table.forget(txn, user_id)

    # --- questions ---

    async def known(self, user_ids: Sequence[str]) -> tuple[dict[str, RemoteDevices], list[str]]:
        """The lists that are up to date, and whose are not."""
        if len(user_ids) > INLINE_READ:
            return await self._database.read_long(self._known, user_ids)
        return await self._database.read(self._known, user_ids)

    async def _known(self, txn: Transaction, user_ids: Sequence[str]) -> tuple[dict[str, RemoteDevices], list[str]]:
        rows = await table.of_users(txn, user_ids)
        fresh = {row.user_id: row for row in rows if not row.stale}
        devices: dict[str, dict[str, bytes]] = {user_id: {} for user_id in fresh}
        for device in await table.devices_of_users(txn, list(fresh)) if fresh else ():
            devices[device.user_id][device.device_id] = device.content
        lists = {
            user_id: RemoteDevices(devices[user_id], row.master_key, row.self_signing_key, row.stream_id)
            for user_id, row in fresh.items()
        }
        return lists, [row.user_id for row in rows if row.stale]
