"""What the operator says about users, and the limits that are the same everywhere."""

from __future__ import annotations

import msgspec

ACCESS_TOKEN_LIFETIME_MS = 3_600_000
"""How long an access token lives that comes with a refresh token."""

LOGIN_TOKEN_LIFETIME_MS = 120_000
"""How long a token of ``/login/get_token`` lives; the specification's recommendation."""

DEVICES_LIMIT = 1000
"""Devices that one user may have."""

DEVICE_ID_LIMIT = 255
DISPLAY_NAME_LIMIT = 512
"""Characters of a device's name."""

PASSWORD_MINIMUM = 8
PASSWORD_LIMIT = 512
"""Bytes of a password; the same as Dendrite's."""

ACCOUNT_DATA_LIMIT = 1 << 20
"""Bytes of one piece of account data."""

ACCOUNT_DATA_COUNT_LIMIT = 20_000
"""Pieces of account data that one user may have."""

TAGS_LIMIT = 200
"""Tags of one room."""

PROFILE_LIMIT = 65_536
"""Bytes of a whole profile as JSON; the specification's."""

PUSHERS_LIMIT = 100
"""Pushers of one user."""

LOG_LIMIT = 1000
"""Unread events of a room that are counted; a count that reaches it stays there."""

NOTIFICATION_DAYS = 90
"""Days for which personal notifications are kept."""


class UserSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The part of the configuration that the user component works by.

    ``reserved_localparts`` can be registered by nobody: that of the sender of server notices.
    """

    server_name: str
    bcrypt_cost: int = 10
    openid_token_lifetime_ms: int = 3_600_000
    auto_join_rooms: tuple[str, ...] = ()
    reserved_localparts: frozenset[str] = frozenset()

    def is_local(self, user_id: str) -> bool:
        return user_id.endswith(f":{self.server_name}") and user_id.partition(":")[2] == self.server_name

    def user_id(self, localpart: str) -> str:
        return f"@{localpart}:{self.server_name}"
