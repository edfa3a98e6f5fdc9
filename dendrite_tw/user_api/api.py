"""What may be asked of the user component: who a token belongs to, accounts, and what a sync needs of a user.

Changes are told on streams, each message with its *position*, the user part
of a sync token: ``OutputClientData`` (account data), ``OutputReceiptEvent``,
``OutputSendToDeviceEvent``, ``OutputKeyChangeEvent`` and
``OutputNotificationData`` (unread counts).
"""

from __future__ import annotations

from typing import Protocol

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
    """The devices or cross-signing keys of a user changed."""

    user_id: str
    position: int = 0


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
