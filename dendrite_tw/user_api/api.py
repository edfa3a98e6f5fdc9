"""What may be asked of the user component: who a token belongs to, accounts, and what a sync needs of a user.

Changes are told on streams, each message with its *position*, the user part
of a sync token: ``OutputClientData`` (account data), ``OutputReceiptEvent``,
``OutputSendToDeviceEvent``, ``OutputKeyChangeEvent`` and
``OutputNotificationData`` (unread counts).
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from ..links.routing import routed
from ..matrix.errors import MatrixError

OUTPUT_CLIENT_DATA = "OutputClientData"
OUTPUT_RECEIPT_EVENT = "OutputReceiptEvent"
OUTPUT_SEND_TO_DEVICE_EVENT = "OutputSendToDeviceEvent"
OUTPUT_KEY_CHANGE_EVENT = "OutputKeyChangeEvent"
OUTPUT_NOTIFICATION_DATA = "OutputNotificationData"

SESSIONS = "sessions"
"""The topic of the echoes that tell of changed sessions; the payload is a `SessionsChanged`."""

KEY_COUNTS = "key_counts"
"""The topic of the echoes that tell of a device with other counts of one-time keys; the payload is a `DeviceName`."""

UNREAD = "unread"
RESYNC = "resync"
"""Leases whose holders alone answer what is routed to them: who counts what is unread, who fetches lists of devices."""


class Caller(msgspec.Struct, frozen=True, kw_only=True, gc=False):
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
    is_suspended: bool = False
    expires_ts: int = 0
    """When the token ceases to be valid, in milliseconds; 0: never.  Who remembers a caller asks again after that."""

    @property
    def localpart(self) -> str:
        return self.user_id[1:].split(":", 1)[0]

    def require_not_suspended(self) -> None:
        """Raise ``M_USER_SUSPENDED`` where the user may look and leave, but not act ("Account suspension")."""
        if self.is_suspended:
            raise MatrixError(403, "M_USER_SUSPENDED", "You cannot perform this action while suspended.")


class SessionsChanged(msgspec.Struct, frozen=True, array_like=True):
    """What `UserAPI.caller_of` says of these access tokens, known by their SHA-256, may be another thing now."""

    user_id: str
    hashes: list[bytes]


TYPE_USER = 1
TYPE_GUEST = 2
TYPE_ADMIN = 3
TYPE_APPSERVICE = 4


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """An account of this server; ``account_type`` is one of the ``TYPE_`` constants, Dendrite's numbers."""

    user_id: str
    account_type: int
    created_ts: int
    appservice_id: str | None = None
    has_password: bool = False
    deactivated: bool = False
    erased: bool = False
    locked: bool = False
    suspended: bool = False


class NewAccount(msgspec.Struct, frozen=True, kw_only=True):
    """An account to be made.

    Without ``localpart`` the server picks one.  ``registration_token`` is used up with the
    registration.  ``upgrades_guest`` names the guest account that becomes a user's.
    """

    localpart: str | None = None
    password: str | None = None
    account_type: int = TYPE_USER
    appservice_id: str | None = None
    registration_token: str | None = None
    upgrades_guest: str | None = None


class NewLogin(msgspec.Struct, frozen=True, kw_only=True):
    """A session to be made: on the device named, or on a new one.

    ``refreshable``: the access token expires and comes with a refresh token.
    """

    user_id: str = ""
    device_id: str | None = None
    display_name: str | None = None
    refreshable: bool = False
    ip: str = ""
    user_agent: str = ""


class Login(msgspec.Struct, frozen=True, kw_only=True):
    """A session with its tokens; ``expires_in_ms`` is set where the access token expires."""

    user_id: str
    device_id: str
    access_token: str
    refresh_token: str | None = None
    expires_in_ms: int | None = None


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """A device of a user, with where and when it was last seen (0: never)."""

    device_id: str
    display_name: str | None = None
    last_seen_ip: str = ""
    last_seen_ts: int = 0
    user_agent: str = ""


class DeviceSeen(msgspec.Struct, frozen=True):
    """A device was used at ``ts`` from ``ip``."""

    user_id: str
    device_id: str
    ts: int
    ip: str
    user_agent: str


class RegistrationToken(msgspec.Struct, frozen=True):
    """A token for registering; `None` for ``uses_allowed`` or ``expiry_time`` (milliseconds) is without limit.

    ``pending`` is there for Dendrite's tools: a use is taken together with the account, so none is ever pending.
    """

    token: str
    uses_allowed: int | None = None
    pending: int = 0
    completed: int = 0
    expiry_time: int | None = None


class ExpiringToken(msgspec.Struct, frozen=True):
    token: str
    expires_in_ms: int


class UIASession(msgspec.Struct, frozen=True, kw_only=True):
    """A user-interactive authentication on its way; ``completed`` maps each passed stage to what it yielded.

    It is for one ``purpose`` and, where one is known, one user; ``expires_ts`` is in milliseconds.
    """

    id: str
    purpose: str
    user_id: str | None
    flows: list[list[str]]
    params: dict[str, Any]
    expires_ts: int
    completed: dict[str, str] = {}


class Pusher(msgspec.Struct, frozen=True, kw_only=True):
    """Where a user is to be told of events; ``data`` is what the client gave, with ``url`` for kind ``http``."""

    app_id: str
    pushkey: str
    kind: str
    app_display_name: str
    device_display_name: str
    lang: str
    data: dict[str, Any]
    profile_tag: str | None = None


class Notification(msgspec.Struct, frozen=True, kw_only=True):
    """An event that a user was notified of; ``actions`` are those of the push rule, ``ts`` is in milliseconds."""

    room_id: str
    event_id: str
    position: int
    ts: int
    read: bool
    highlight: bool
    actions: list[Any]


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
    """A message for one device; ``event`` is the JSON object that sync shows (sender, type, content).

    One for a user of another server goes there: those with the same ``message_id`` in one EDU.  Its
    ``device_id`` may be ``*``.
    """

    user_id: str
    device_id: str
    event: bytes
    position: int = 0
    message_id: str = ""


class KeyChange(msgspec.Struct, frozen=True, kw_only=True):
    """The devices or cross-signing keys of a user changed.

    ``device_id`` names the device, empty where it was the cross-signing keys (or
    those of a user of another server, whatever changed); ``previous`` is the
    position of the change of this user's devices before.  ``only_for`` is set
    where only that user may see the change: they signed the master key of
    ``user_id``.
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
    """Unread counts of a user in a room changed by something other than a new event for everybody.

    Namely because a thread (empty: all of them) is read up to the event at position ``read_upto``.
    """

    user_id: str
    room_id: str
    position: int = 0
    thread_id: str = ""
    read_upto: int = 0


class DeviceName(msgspec.Struct, frozen=True, array_like=True):
    """A device of a user."""

    user_id: str
    device_id: str


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
    """All devices of a local user that have identity keys, as other servers are told.

    ``stream_id`` is the position of the newest change of a device.
    """

    user_id: str
    stream_id: int
    devices: list[DeviceEntry]
    master_key: bytes | None = None
    self_signing_key: bytes | None = None


class DeviceListUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """A change of one device of a user of another server: ``m.device_list_update``.

    ``prev_id`` names the updates directly before this one.  Without ``keys`` the device has none.
    """

    user_id: str
    device_id: str
    stream_id: int
    prev_id: list[int] = []
    deleted: bool = False
    device_display_name: str | None = None
    keys: dict[str, Any] | None = None


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

    @routed(repeat=True)
    async def caller_of(self, access_token: str) -> Caller:
        """Who the token belongs to.

        Raises 401: ``M_UNKNOWN_TOKEN`` where nobody (``soft_logout`` where it has expired),
        ``M_USER_LOCKED`` where the account is locked.
        """

    @routed(repeat=True)
    async def session_of(self, access_token: str) -> Caller:
        """As `caller_of`, for the endpoints that serve locked accounts too (logging out)."""

    @routed(repeat=True)
    async def acting_as(self, appservice_id: str, user_id: str, device_id: str | None) -> Caller:
        """An application service as one of its users ("Identity assertion").

        Raises 403 ``M_EXCLUSIVE`` for a user not of its namespaces, 403 ``M_FORBIDDEN`` for one without
        account, 400 ``M_UNKNOWN_DEVICE`` for a device that the user does not have.
        """

    @routed(repeat=True)
    async def devices_seen(self, seen: list[DeviceSeen]) -> None:
        """Note when and where devices were last used."""

    # --- accounts ---

    @routed(repeat=True)
    async def account(self, user_id: str) -> Account | None:
        """A local account, deactivated ones too."""

    @routed(repeat=True)
    async def is_local_account(self, user_id: str) -> bool:
        """Whether an account of this server exists and is not deactivated."""

    @routed(repeat=True)
    async def check_localpart(self, localpart: str, appservice_id: str | None) -> str:
        """The localpart in lower case if it can be registered.

        Raises 400 ``M_INVALID_USERNAME``, ``M_USER_IN_USE`` or ``M_EXCLUSIVE``.
        """

    async def register(self, account: NewAccount, login: NewLogin | None) -> tuple[str, Login | None]:
        """Make an account, and a session on it if `login` is given; returns the user ID and the session.

        Raises as `check_localpart`, 400 ``M_WEAK_PASSWORD``, and 401 ``M_UNAUTHORIZED`` for a
        registration token that is not valid.
        """

    @routed(repeat=True)
    async def ensure_own_account(self, user_id: str, profile: dict[str, str]) -> None:
        """See that the server has an account of its own by that name, which nobody can log in to, with `profile`.

        Raises 409 where a person has it.
        """

    @routed(repeat=True)
    async def check_password(self, user_id: str, password: str) -> bool:
        """Whether `password` is that of the account, which is not deactivated."""

    async def set_password(self, user_id: str, password: str, logout_devices: bool, keep_device: str | None) -> None:
        """Set a password; with `logout_devices` all devices but `keep_device` are deleted."""

    async def deactivate(self, user_id: str, erase: bool) -> None:
        """Close an account for good: sessions, profile and pushers go, and the user leaves all rooms."""

    async def set_locked(self, user_id: str, locked: bool) -> None: ...

    async def set_suspended(self, user_id: str, suspended: bool) -> None: ...

    @routed(repeat=True)
    async def registration_tokens(self) -> list[RegistrationToken]: ...

    @routed(repeat=True)
    async def is_valid_registration_token(self, token: str) -> bool: ...

    async def new_registration_token(
        self, token: str | None, length: int, uses_allowed: int | None, expiry_time: int | None
    ) -> RegistrationToken:
        """Store a registration token, made up where `token` is `None`; 409 where there is one already."""

    async def update_registration_token(
        self, token: str, uses_allowed: int | None, expiry_time: int | None
    ) -> RegistrationToken: ...

    async def delete_registration_token(self, token: str) -> None: ...

    # --- proofs on their way ---

    @routed(repeat=True)
    async def uia_session(self, id: str) -> UIASession | None:
        """A session of user-interactive authentication that has not expired."""

    @routed(repeat=True)
    async def put_uia_session(self, session: UIASession) -> None:
        """Store a session, new or in the place of what was stored of it."""

    async def end_uia_session(self, id: str) -> bool:
        """Forget a session; whether there was one, which is true for one of those who end it at the same time."""

    # --- sessions and devices ---

    async def log_in(self, login: NewLogin) -> Login:
        """Make a session; tokens that the device had before end.  403 ``M_USER_DEACTIVATED`` where it applies."""

    async def refresh(self, refresh_token: str) -> Login:
        """New tokens for a refresh token; 401 ``M_UNKNOWN_TOKEN`` where it is not valid (any more)."""

    async def new_login_token(self, user_id: str) -> ExpiringToken:
        """A token that logs one client in as the user, once."""

    async def use_login_token(self, token: str) -> str | None:
        """The user whom a login token stands for; the token is used up."""

    @routed(repeat=True)
    async def devices(self, user_id: str) -> list[Device]: ...

    async def put_device(self, user_id: str, device_id: str, display_name: str | None, create: bool) -> None:
        """Name a device; with `create` it is made where there is none, otherwise that is 404."""

    async def delete_devices(self, user_id: str, device_ids: list[str] | None, keep: str | None) -> None:
        """Delete devices with their tokens and keys; `None` means all but `keep`."""

    async def new_openid_token(self, user_id: str) -> ExpiringToken: ...

    @routed(repeat=True)
    async def owner_of_openid_token(self, token: str) -> str | None:
        """Whom an OpenID token stands for, for ``/_matrix/federation/v1/openid/userinfo``."""

    # --- user data ---

    @routed(repeat=True)
    async def profile(self, user_id: str) -> dict[str, str]:
        """``displayname`` and ``avatar_url`` of a user, those that are set; empty where there is no such user.

        Empty, too, where the server of a user of another one does not say.
        """

    @routed(repeat=True)
    async def profile_fields(self, user_id: str, field: str | None = None) -> dict[str, Any] | None:
        """All fields of a user's profile, or the one that is named; `None` where there is no such user.

        The server of a user of another one is asked.  Raises `Unreachable`, or 403 where it does not tell.
        """

    async def set_profile_field(self, user_id: str, field: str, value: Any) -> None:
        """Set a field, and show it in the user's rooms if it is one that rooms show.

        Raises 400 ``M_PROFILE_TOO_LARGE``, ``M_KEY_TOO_LARGE`` or ``M_INVALID_PARAM``.
        """

    async def delete_profile_field(self, user_id: str, field: str) -> None: ...

    async def put_account_data(self, user_id: str, room_id: str, type: str, content: bytes) -> None:
        """Store account data, `content` being a JSON object; `room_id` is empty for global data."""

    async def put_tag(self, user_id: str, room_id: str, tag: str, content: dict[str, Any] | None) -> None:
        """Set a tag of a room, or remove it where `content` is `None`."""

    @routed(repeat=True)
    async def push_rules(self, user_id: str) -> dict[str, Any]:
        """The user's push rules as ``GET /pushrules/`` shows them."""

    @routed(repeat=True)
    async def push_rule(self, user_id: str, kind: str, rule_id: str) -> dict[str, Any]: ...

    async def put_push_rule(
        self, user_id: str, kind: str, rule_id: str, rule: dict[str, Any], before: str | None, after: str | None
    ) -> None: ...

    async def delete_push_rule(self, user_id: str, kind: str, rule_id: str) -> None: ...

    async def set_push_rule_enabled(self, user_id: str, kind: str, rule_id: str, enabled: bool) -> None: ...

    async def set_push_rule_actions(self, user_id: str, kind: str, rule_id: str, actions: list[Any]) -> None: ...

    async def copy_push_rules_to_room(self, user_id: str, old_room: str, new_room: str) -> None:
        """Make the user's rules about `old_room` for `new_room` too, where a room is upgraded."""

    @routed(repeat=True)
    async def pushers(self, user_id: str) -> list[Pusher]: ...

    async def put_pusher(self, user_id: str, session_id: int, pusher: Pusher, append: bool) -> None:
        """Set a pusher; without `append` other users lose theirs with the same key."""

    async def delete_pusher(self, user_id: str, app_id: str, pushkey: str) -> None: ...

    @routed(repeat=True)
    async def put_receipts(self, receipts: list[Receipt]) -> None:
        """Take receipts, of local users or from other servers; those that are behind what is stored are dropped."""

    async def read_up_to(self, user_id: str, room_id: str, receipts: dict[str, str], thread_id: str | None) -> None:
        """A local user has read: `receipts` is receipt type (``m.fully_read`` too) to event ID.

        Raises 403 unless the user is joined, 404 for an event not of this room, 400
        ``M_INVALID_PARAM`` for a thread that the event is not of.
        """

    @routed(repeat=True)
    async def notifications(
        self, user_id: str, before: int | None, limit: int, only_highlight: bool
    ) -> list[Notification]:
        """What the user was notified of, newest first, with positions below `before`."""

    # --- what a sync needs ---

    @routed(repeat=True)
    async def position(self) -> int:
        """The newest position that is on disk."""

    @routed(repeat=True)
    async def account_data_since(self, user_id: str, after: int, upto: int) -> list[AccountDataChange]:
        """Account data, global and of rooms, that changed in (after, upto]; ``m.push_rules`` and ``m.tag`` too."""

    @routed(repeat=True)
    async def account_data(self, user_id: str, room_id: str, type: str) -> bytes | None:
        """One piece of account data as JSON."""

    @routed(repeat=True)
    async def receipts_since(self, room_ids: list[str], after: int, upto: int) -> list[Receipt]:
        """Receipts of these rooms that changed in (after, upto]; private ones too, for the caller to leave out."""

    @routed(share="lease", repeat=True)
    async def unread(
        self, user_id: str, room_ids: list[str], room_position: int, lease: str = UNREAD
    ) -> dict[str, Unread]:
        """Unread counts in these rooms, with every event up to `room_position` taken into account.

        `lease` is always `UNREAD`: only its holder knows.

        ``notification_count`` and ``highlight_count`` are of the main timeline; the caller adds
        ``threads`` to them where the client did not ask for threads apart.
        """

    @routed(share="lease", repeat=True)
    async def unread_of(
        self, rooms_of: dict[str, list[str]], room_position: int, lease: str = UNREAD
    ) -> dict[str, dict[str, Unread]]:
        """As `unread`, for many users at once: those to whom the same event came."""

    @routed(repeat=True)
    async def forget_room(self, room_id: str) -> int:
        """Delete receipts and unread counts of a room that is purged; returns how many rows went."""

    @routed(repeat=True)
    async def ignored_users(self, user_id: str) -> frozenset[str]: ...


class KeyAPI(Protocol):
    """Everything that other components may ask of devices' keys and of messages between devices.

    Served by the user component, from its database and with its positions.
    """

    @routed(repeat=True)
    async def to_device_since(
        self, user_id: str, device_id: str, after: int, upto: int, limit: int
    ) -> list[ToDeviceMessage]:
        """Waiting messages with positions in (after, upto], oldest first."""

    @routed(repeat=True)
    async def delete_to_device(self, user_id: str, device_id: str, upto: int) -> None:
        """The device has these messages; forget them."""

    @routed(repeat=True)
    async def key_changes_since(self, after: int, upto: int) -> list[str]:
        """Users whose keys changed in (after, upto], local and remote."""

    @routed(repeat=True)
    async def key_counts(self, user_id: str, device_id: str) -> KeyCounts: ...

    @routed(repeat=True)
    async def key_counts_of(self, devices: list[DeviceName]) -> list[KeyCounts]:
        """As `key_counts`, for many devices at once, in their order."""

    @routed(repeat=True)
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

    @routed(repeat=True)
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

    @routed(repeat=True)
    async def device_list(self, user_id: str) -> DeviceList:
        """All devices with keys of a local user, for ``/user/devices``; 404 for one who never had a device."""

    # --- lists of other servers ---

    @routed(repeat=True)
    async def device_list_update(self, origin: str, update: DeviceListUpdate) -> None:
        """The server `origin` says that a device of one of its users changed; tells those who share rooms.

        What is not that server's to say, or about a user who shares no room with one of ours, is dropped;
        where something before it was missed the whole list is fetched.
        """

    @routed(repeat=True)
    async def signing_key_update(
        self,
        origin: str,
        user_id: str,
        master_key: dict[str, Any] | None,
        self_signing_key: dict[str, Any] | None,
    ) -> None:
        """The server `origin` says that the cross-signing keys of one of its users changed; as `device_list_update`."""

    @routed(share="lease", repeat=True)
    async def settle_lists(self, user_ids: list[str], timeout_ms: int, lease: str = RESYNC) -> None:
        """Wait, where lists of these users of other servers are about to be fetched, until they were or that failed.

        `lease` is always `RESYNC`: only its holder knows.
        """

    @routed(repeat=True)
    async def refresh_device_list(self, user_id: str) -> None:
        """Fetch the list of a user of another server anew; 400 ``M_INVALID_PARAM`` for a local user."""

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

    @routed(repeat=True)
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

    @routed(repeat=True)
    async def backup(self, user_id: str, version: str | None) -> BackupInfo:
        """A backup, or (`None`) the current one; ``M_NOT_FOUND`` where there is none."""

    async def update_backup(self, user_id: str, version: str, algorithm: str, auth_data: bytes) -> None: ...

    async def delete_backup(self, user_id: str, version: str) -> None: ...

    async def put_backup_keys(self, user_id: str, version: str, keys: list[BackupKey]) -> BackupState:
        """Store keys where they are better than those that are there; ``M_WRONG_ROOM_KEYS_VERSION`` …"""

    @routed(repeat=True)
    async def backup_keys(self, user_id: str, version: str, room_id: str | None, session_id: str | None) -> bytes:
        """JSON: all rooms, the sessions of a room, or one key (``M_NOT_FOUND`` without it)."""

    async def delete_backup_keys(
        self, user_id: str, version: str, room_id: str | None, session_id: str | None
    ) -> BackupState: ...
