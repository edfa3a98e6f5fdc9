"""What may be asked of the user component: who a token belongs to, accounts, and what a sync needs of a user.

Changes are told on streams, each message with its *position*, the user part
of a sync token: ``OutputClientData`` (account data), ``OutputReceiptEvent``,
``OutputSendToDeviceEvent``, ``OutputKeyChangeEvent`` and
``OutputNotificationData`` (unread counts).
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

OUTPUT_CLIENT_DATA = "OutputClientData"
OUTPUT_RECEIPT_EVENT = "OutputReceiptEvent"
OUTPUT_SEND_TO_DEVICE_EVENT = "OutputSendToDeviceEvent"
OUTPUT_KEY_CHANGE_EVENT = "OutputKeyChangeEvent"
OUTPUT_NOTIFICATION_DATA = "OutputNotificationData"


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who is behind an access token.

    ``session_id`` names the login (it outlives a refresh of the token);
    ``device_id`` is `None` for an application service that acts as no device.
    ``appservice_id`` is set where the token is an application service's.
    """

    user_id: str
    device_id: str | None
    session_id: int = 0
    is_guest: bool = False
    is_admin: bool = False
    appservice_id: str | None = None

    @property
    def localpart(self) -> str:
        return self.user_id[1:].split(":", 1)[0]


class AccountDataChange(msgspec.Struct, frozen=True, kw_only=True):
    """Account data of a user, of one room or (``room_id`` empty) global; ``content`` is JSON."""

    user_id: str
    room_id: str
    type: str
    content: bytes
    position: int = 0


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """A receipt: ``receipt_type`` is ``m.read`` or ``m.read.private``; ``thread_id`` `None` where unthreaded."""

    room_id: str
    user_id: str
    receipt_type: str
    event_id: str
    ts: int
    thread_id: str | None = None
    position: int = 0


class ToDeviceMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message for one device; ``event`` is the JSON object that sync shows (sender, type, content)."""

    user_id: str
    device_id: str
    event: bytes
    position: int = 0


class KeyChange(msgspec.Struct, frozen=True, kw_only=True):
    """The devices or cross-signing keys of a user changed.

    ``device_id`` names the device, empty where it was the cross-signing keys (or a
    remote user, whose device is not known); ``previous`` is the position of
    this user's change before.  ``only_for`` is set where only that user may
    see the change: they signed the master key of ``user_id``.
    """

    user_id: str
    position: int = 0
    device_id: str = ""
    deleted: bool = False
    previous: int = 0
    only_for: str = ""


class Unread(msgspec.Struct, frozen=True, kw_only=True):
    """Unread counts of a user in a room: the main timeline (or all, see `UserAPI.unread`), and each thread."""

    room_id: str
    notification_count: int = 0
    highlight_count: int = 0
    threads: dict[str, tuple[int, int]] = {}
    """Thread root to (notification_count, highlight_count)."""


class UnreadChange(msgspec.Struct, frozen=True, kw_only=True):
    """Unread counts of a user in a room changed by something other than a new event for everybody."""

    user_id: str
    room_id: str
    position: int = 0


class KeyCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What ``device_one_time_keys_count`` and ``device_unused_fallback_key_types`` show."""

    one_time_keys: dict[str, int]
    unused_fallback_types: list[str]


class QueriedKeys(msgspec.Struct, frozen=True, kw_only=True):
    """What ``/keys/query`` answers; keys are JSON objects, ready to be spliced."""

    device_keys: dict[str, dict[str, bytes]] = {}
    master_keys: dict[str, bytes] = {}
    self_signing_keys: dict[str, bytes] = {}
    user_signing_keys: dict[str, bytes] = {}
    failures: dict[str, dict[str, Any]] = {}
    """Server name to what went wrong with it."""


class ClaimedKeys(msgspec.Struct, frozen=True, kw_only=True):
    """What ``/keys/claim`` answers: user, device, ``algorithm:key_id``, JSON of the key."""

    one_time_keys: dict[str, dict[str, dict[str, bytes]]] = {}
    failures: dict[str, dict[str, Any]] = {}


class DeviceEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A device with identity keys (JSON)."""

    device_id: str
    keys: bytes
    display_name: str | None = None


class DeviceList(msgspec.Struct, frozen=True, kw_only=True):
    """All devices of a local user that have identity keys, as other servers are told."""

    user_id: str
    stream_id: int
    devices: list[DeviceEntry]
    master_key: bytes | None = None
    self_signing_key: bytes | None = None


class BackupInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A backup of room keys; ``auth_data`` is JSON."""

    version: str
    algorithm: str
    auth_data: bytes
    count: int
    etag: str


class BackupKey(msgspec.Struct, frozen=True, kw_only=True):
    """The key of a Megolm session; ``session_data`` is JSON that the server cannot read."""

    room_id: str
    session_id: str
    first_message_index: int
    forwarded_count: int
    is_verified: bool
    session_data: bytes


class BackupState(msgspec.Struct, frozen=True, kw_only=True):
    """What a change of a backup answers."""

    count: int
    etag: str


class UserAPI(Protocol):
    """Everything that other components may ask of users; each concern adds its part below."""

    # --- who asks ---

    async def caller_of(self, access_token: str) -> Caller:
        """Who the token belongs to; ``M_UNKNOWN_TOKEN`` (401, ``soft_logout``) where nobody, ``M_USER_LOCKED`` …"""

    async def profile(self, user_id: str) -> dict[str, str]:
        """``displayname`` and ``avatar_url`` of a local user, those that are set; empty where there is no such user."""

    async def is_local_account(self, user_id: str) -> bool:
        """Whether an account of this server exists and is not deactivated."""

    # --- what a sync needs ---

    async def position(self) -> int:
        """The newest position that is on disk."""

    async def account_data_since(self, user_id: str, after: int, upto: int) -> list[AccountDataChange]:
        """Account data, global and of rooms, that changed in (after, upto]; ``m.push_rules`` and ``m.tag`` too."""

    async def account_data(self, user_id: str, room_id: str, type: str) -> bytes | None:
        """One piece of account data as JSON."""

    async def receipts_since(self, room_ids: list[str], after: int, upto: int) -> list[Receipt]:
        """Receipts of these rooms that changed in (after, upto]; private ones too, for the caller to leave out."""

    async def unread(self, user_id: str, room_ids: list[str], room_position: int) -> dict[str, Unread]:
        """Unread counts in these rooms, with every event up to `room_position` taken into account.

        ``notification_count`` and ``highlight_count`` are of the main timeline; the caller adds
        ``threads`` to them where the client did not ask for threads apart.
        """

    async def ignored_users(self, user_id: str) -> frozenset[str]: ...


class KeyAPI(Protocol):
    """Everything that other components may ask of devices' keys and of messages between devices.

    Served by the user component, from its database and with its positions.
    """

    async def to_device_since(
        self, user_id: str, device_id: str, after: int, upto: int, limit: int
    ) -> list[ToDeviceMessage]:
        """Waiting messages with positions in (after, upto], oldest first."""

    async def delete_to_device(self, user_id: str, device_id: str, upto: int) -> None:
        """The device has these messages; forget them."""

    async def key_changes_since(self, after: int, upto: int) -> list[str]:
        """Users whose keys changed in (after, upto], local and remote."""

    async def key_counts(self, user_id: str, device_id: str) -> KeyCounts: ...

    async def signatures_since(self, user_id: str, after: int, upto: int) -> list[str]:
        """Users whose master key `user_id` signed in (after, upto]: changed in the eyes of `user_id` alone."""

    # --- keys of devices ---

    async def upload_keys(
        self,
        user_id: str,
        device_id: str,
        device_keys: dict[str, Any] | None,
        one_time_keys: dict[str, Any],
        fallback_keys: dict[str, Any],
    ) -> KeyCounts:
        """Store what ``/keys/upload`` brings, all of it or nothing; `MatrixError` says what is wrong with it."""

    async def query_keys(
        self, requester: str, device_keys: dict[str, list[str]], timeout_ms: int, local_only: bool = False
    ) -> QueriedKeys:
        """The keys of users' devices (an empty list: of all) and their cross-signing keys, as `requester` may see them.

        Users of other servers are asked for within `timeout_ms`, unless `local_only`.
        """

    async def claim_keys(
        self, one_time_keys: dict[str, dict[str, str]], timeout_ms: int, local_only: bool = False
    ) -> ClaimedKeys:
        """Take a one-time key (user, device, algorithm) of each; a fallback key where none is left."""

    async def device_list(self, user_id: str) -> DeviceList:
        """All devices with keys of a local user, for ``/user/devices`` of the federation."""

    async def remote_keys_changed(self, user_ids: list[str]) -> None:
        """Users of other servers changed their devices or cross-signing keys; tell those who share rooms."""

    # --- cross-signing ---

    async def upload_cross_signing_keys(self, user_id: str, keys: dict[str, dict[str, Any]], replace: bool) -> bool:
        """Store keys by usage (``master``, ``self_signing``, ``user_signing``).

        Returns `False`, with nothing stored, where that would put a new key beside or in the
        place of existing ones and `replace` was not granted.
        """

    async def upload_signatures(
        self, user_id: str, signed: dict[str, dict[str, Any]]
    ) -> dict[str, dict[str, dict[str, str]]]:
        """Add signatures to keys: user, key, signed JSON; returns user, key, error of those that failed."""

    # --- messages between devices ---

    async def send_to_device(
        self, sender: str, device_id: str, event_type: str, txn_id: str, messages: dict[str, dict[str, Any]]
    ) -> None:
        """Send messages (user, device or ``*``, content), once for each `txn_id` of a device and type.

        For a sender of another server `device_id` is empty, `txn_id` the EDU's ``message_id``, and only users
        of this server are reached.
        """

    # --- backup of room keys ---

    async def create_backup(self, user_id: str, algorithm: str, auth_data: bytes) -> str:
        """Make a backup, now the current one; returns its version."""

    async def backup(self, user_id: str, version: str | None) -> BackupInfo:
        """A backup, or (`None`) the current one; ``M_NOT_FOUND`` where there is none."""

    async def update_backup(self, user_id: str, version: str, algorithm: str, auth_data: bytes) -> None: ...

    async def delete_backup(self, user_id: str, version: str) -> None: ...

    async def put_backup_keys(self, user_id: str, version: str, keys: list[BackupKey]) -> BackupState:
        """Store keys where they are better than those that are there; ``M_WRONG_ROOM_KEYS_VERSION`` …"""

    async def backup_keys(self, user_id: str, version: str, room_id: str | None, session_id: str | None) -> bytes:
        """JSON: all rooms, the sessions of a room, or one key (``M_NOT_FOUND`` without it)."""

    async def delete_backup_keys(
        self, user_id: str, version: str, room_id: str | None, session_id: str | None
    ) -> BackupState: ...
