"""Access tokens: whose they are, answered from memory; sessions, refreshing, and tokens for a single purpose.

Client-Server API, "Client Authentication".  Only the SHA-256 of a token is
kept, on disk and in memory.  What is kept in memory is forgotten in the moment
in which the change that ends it is on disk, so an answer is never older than
the database.  Other processes are told of it in the same moment (`SESSIONS`); what they did not hear, because this
one was killed between the two, they forget within `component.FORGET_SECONDS`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable

import msgspec

from ..cache import CacheBudget
from ..database.engines import Database
from ..database.statements import Transaction
from ..links.echoes import Echoes
from ..matrix.errors import MatrixError, invalid_param
from ..world import World
from .api import (
    SESSIONS,
    TYPE_ADMIN,
    TYPE_GUEST,
    Caller,
    DeviceSeen,
    ExpiringToken,
    Login,
    NewLogin,
    SessionsChanged,
)
from .recent import Recent
from .settings import (
    ACCESS_TOKEN_LIFETIME_MS,
    DEVICE_ID_LIMIT,
    DEVICES_LIMIT,
    DISPLAY_NAME_LIMIT,
    LOGIN_TOKEN_LIFETIME_MS,
    UserSettings,
)
from .tables import accounts, pushers, sessions, short_tokens

TOKEN_LENGTH = 43
"""Letters and digits of a token: 256 bits."""

DEVICE_ID_LENGTH = 10

KNOWN_BYTES = 700
"""What a token takes in memory, with its caller, about."""

DeviceHook = Callable[[Transaction, str, str], Awaitable[None]]
"""Told in the transaction that deletes or renames a device: user ID and device ID."""

DeviceIdCheck = Callable[[Transaction, str, str], Awaitable[bool]]
"""Asked in the transaction that makes a device whether its ID is something else's already."""


def digest(token: str) -> bytes:
    """What is kept of a token."""
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()


def unknown_token(soft_logout: bool = False) -> MatrixError:
    return MatrixError(401, "M_UNKNOWN_TOKEN", "The access token is unknown or has expired.", soft_logout=soft_logout)


class _Known:
    """A token in memory: its caller, when it expires (0: never), whether the account is locked."""

    __slots__ = ("caller", "expires_ts", "locked")

    def __init__(self, caller: Caller, expires_ts: int, locked: bool) -> None:
        self.caller = caller
        self.expires_ts = expires_ts
        self.locked = locked


class Tokens:
    """Sessions of local users and the tokens that belong to them."""

    def __init__(
        self, settings: UserSettings, database: Database, world: World, budget: CacheBudget, echoes: Echoes
    ) -> None:
        self._settings = settings
        self._database = database
        self._clock = world.clock
        self._random = world.random
        self._echoes = echoes
        self._known: Recent[bytes, _Known] = Recent("access_tokens", budget, KNOWN_BYTES)
        self.on_device_deleted: list[DeviceHook] = []
        self.on_device_changed: list[DeviceHook] = []
        self.is_device_id_taken: list[DeviceIdCheck] = []
        echoes.hear(SESSIONS, self._heard)
        echoes.on_missed(self._known.forget_all)

    # --- whose token is it ---

    async def caller_of(self, access_token: str) -> Caller:
        known = self._known.get(hashed := digest(access_token))
        if known is None:
            known = await self._look_up(hashed)
        if known.expires_ts and known.expires_ts <= self._clock.now_ms():
            raise unknown_token(soft_logout=True)
        if known.locked:
            raise MatrixError(401, "M_USER_LOCKED", "This account has been locked.", soft_logout=True)
        return known.caller

    async def session_of(self, access_token: str) -> Caller:
        hashed = digest(access_token)
        known = self._known.get(hashed) or await self._look_up(hashed)
        if known.expires_ts and known.expires_ts <= self._clock.now_ms():
            raise unknown_token(soft_logout=True)
        return known.caller

    async def _look_up(self, hashed: bytes) -> _Known:
        generation, row = await self._row(hashed)
        while row.parent_id is not None:
            await self._database.write(self._now_used, row.pair_id, row.parent_id, row.user_id)
            generation, row = await self._row(hashed)
        caller = Caller(
            user_id=row.user_id,
            device_id=row.device_id,
            session_id=row.session_id,
            is_guest=row.account_type == TYPE_GUEST,
            is_admin=row.account_type == TYPE_ADMIN,
            is_suspended=bool(row.suspended),
            expires_ts=row.expires_ts or 0,
        )
        known = _Known(caller, row.expires_ts or 0, bool(row.locked))
        if self._echoes.hearing:
            self._known.keep(hashed, known, generation)
        return known

    async def _row(self, hashed: bytes) -> tuple[int, sessions.TokenRow]:
        """What is stored of a token, and how new what was remembered before that is."""
        generation = self._known.generation
        row = await self._database.read(sessions.token, hashed)
        if row is None:
            raise unknown_token()
        return generation, row

    async def forget_with(self, txn: Transaction, user_id: str) -> None:
        """Ask the database again for every token that the user has now, once `txn` is on disk."""
        hashes = await sessions.access_hashes(txn, user_id)

        def forget() -> None:
            for hashed in hashes:
                self._known.forget(hashed)
            if hashes and self._database.shared:
                self._echoes.tell(SESSIONS, msgspec.msgpack.encode(SessionsChanged(user_id, hashes)))

        txn.after_commit(forget)

    def _heard(self, payload: bytes) -> None:
        """Another process changed sessions."""
        for hashed in msgspec.msgpack.decode(payload, type=SessionsChanged).hashes:
            self._known.forget(hashed)

    def forget_all(self) -> None:
        """Ask the database again for every token."""
        self._known.forget_all()

    async def _now_used(self, txn: Transaction, pair_id: int, parent_id: int, user_id: str) -> None:
        """A new token is used for the first time: the pair before it ends ("Refreshing access tokens").

        Nothing happens where the new token has ended meanwhile, or was used.
        """
        if await sessions.become_independent(txn, pair_id, parent_id):
            await self.forget_with(txn, user_id)
            await sessions.delete_pair(txn, parent_id)

    # --- sessions ---

    async def log_in(self, login: NewLogin) -> Login:
        return await self._database.write(self.create_session, login, self.draw(login))

    def draw(self, login: NewLogin) -> tuple[str, str, str | None]:
        """Random values for a session, drawn on the reactor's thread: device ID, access token, refresh token."""
        device_id = self._random.token(DEVICE_ID_LENGTH).upper()
        refresh = self._random.token(TOKEN_LENGTH) if login.refreshable else None
        return device_id, self._random.token(TOKEN_LENGTH), refresh

    async def create_session(self, txn: Transaction, login: NewLogin, drawn: tuple[str, str, str | None]) -> Login:
        """Make a session within `txn`, with values of `draw`."""
        account = await accounts.account(txn, login.user_id)
        if account is None:
            raise MatrixError(403, "M_FORBIDDEN", "There is no such user.")
        if account.deactivated:
            raise MatrixError(403, "M_USER_DEACTIVATED", "This account has been deactivated.")
        device_id, access_token, refresh_token = drawn
        device_id = check_device_id(login.device_id) if login.device_id else device_id
        session_id = await self._take_device(txn, login, device_id)
        expires_in = ACCESS_TOKEN_LIFETIME_MS if refresh_token else None
        expires_ts = self._clock.now_ms() + expires_in if expires_in else None
        hashed = digest(refresh_token) if refresh_token else None
        await sessions.insert_pair(txn, session_id, digest(access_token), hashed, expires_ts, None)
        return Login(
            user_id=login.user_id,
            device_id=device_id,
            access_token=access_token,
            refresh_token=refresh_token,
            expires_in_ms=expires_in,
        )

    async def _take_device(self, txn: Transaction, login: NewLogin, device_id: str) -> int:
        """The session of a device, which is made or loses the tokens it had."""
        device = await sessions.device(txn, login.user_id, device_id)
        if device is not None:
            await self.forget_with(txn, login.user_id)
            await sessions.delete_tokens(txn, device.session_id)
            return device.session_id
        return await self._insert_device(txn, login.user_id, device_id, login.display_name, login.ip, login.user_agent)

    async def _insert_device(
        self, txn: Transaction, user_id: str, device_id: str, display_name: str | None, ip: str, user_agent: str
    ) -> int:
        if await sessions.device_count(txn, user_id) >= DEVICES_LIMIT:
            raise MatrixError(403, "M_FORBIDDEN", f"A user may have {DEVICES_LIMIT} devices at most.")
        for is_taken in self.is_device_id_taken:
            if await is_taken(txn, user_id, device_id):
                raise MatrixError(403, "M_FORBIDDEN", "The device ID is that of a cross-signing key.")
        now = self._clock.now_ms()
        name = check_display_name(display_name)
        made = await sessions.insert_device(txn, user_id, device_id, name, now, now if ip else 0, ip, user_agent)
        for hook in self.on_device_changed:
            await hook(txn, user_id, device_id)
        return made

    async def put_device(self, user_id: str, device_id: str, display_name: str | None, create: bool) -> None:
        await self._database.write(self._put_device, user_id, device_id, display_name, create)

    async def _put_device(
        self, txn: Transaction, user_id: str, device_id: str, display_name: str | None, create: bool
    ) -> None:
        if await sessions.device(txn, user_id, device_id) is not None:
            if display_name is not None:
                await sessions.rename_device(txn, user_id, device_id, check_display_name(display_name))
                for hook in self.on_device_changed:
                    await hook(txn, user_id, device_id)
        elif create:
            await self._insert_device(txn, user_id, check_device_id(device_id), display_name, "", "")
        else:
            raise MatrixError(404, "M_NOT_FOUND", "The user has no such device.")

    async def devices_seen(self, seen: list[DeviceSeen]) -> None:
        rows = [(one.user_id, one.device_id, one.ts, one.ip, one.user_agent) for one in seen]
        await self._database.write(sessions.seen, [(u, d, ts, ip, agent) for u, d, ts, ip, agent in rows])

    async def delete_devices(self, user_id: str, device_ids: list[str] | None, keep: str | None) -> None:
        await self._database.write(self.end_sessions, user_id, device_ids, keep)

    async def end_sessions(
        self, txn: Transaction, user_id: str, device_ids: list[str] | None, keep: str | None
    ) -> None:
        """Delete devices with what belongs to them within `txn`; `None` means all but `keep`."""
        await self.forget_with(txn, user_id)
        wanted = None if device_ids is None else set(device_ids)
        for device in await sessions.devices(txn, user_id):
            if device.device_id == keep or (wanted is not None and device.device_id not in wanted):
                continue
            await sessions.delete_tokens(txn, device.session_id)
            await sessions.delete_device(txn, device.session_id)
            await pushers.delete_of_session(txn, device.session_id)
            for hook in self.on_device_deleted:
                await hook(txn, user_id, device.device_id)

    # --- refreshing ---

    async def refresh(self, refresh_token: str) -> Login:
        access, refresh = self._random.token(TOKEN_LENGTH), self._random.token(TOKEN_LENGTH)
        return await self._database.write(self._refresh, digest(refresh_token), access, refresh)

    async def _refresh(self, txn: Transaction, hashed: bytes, access_token: str, refresh_token: str) -> Login:
        pair = await sessions.pair_of_refresh_token(txn, hashed)
        if pair is None:
            raise MatrixError(401, "M_UNKNOWN_TOKEN", "The refresh token is unknown or was used.", soft_logout=False)
        if pair.locked:
            raise MatrixError(401, "M_USER_LOCKED", "This account has been locked.", soft_logout=True)
        await self.forget_with(txn, pair.user_id)
        if pair.parent_id is not None:
            await sessions.delete_pair(txn, pair.parent_id)
            await sessions.make_independent(txn, pair.pair_id)
        await sessions.delete_children(txn, pair.pair_id)
        expires_ts = self._clock.now_ms() + ACCESS_TOKEN_LIFETIME_MS
        await sessions.insert_pair(
            txn, pair.session_id, digest(access_token), digest(refresh_token), expires_ts, pair.pair_id
        )
        return Login(
            user_id=pair.user_id,
            device_id=pair.device_id,
            access_token=access_token,
            refresh_token=refresh_token,
            expires_in_ms=ACCESS_TOKEN_LIFETIME_MS,
        )

    # --- tokens for one purpose ---

    async def new_login_token(self, user_id: str) -> ExpiringToken:
        return await self._new_short_token("login", user_id, LOGIN_TOKEN_LIFETIME_MS)

    async def use_login_token(self, token: str) -> str | None:
        return await self._database.write(self._use_short_token, digest(token), "login")

    async def new_openid_token(self, user_id: str) -> ExpiringToken:
        return await self._new_short_token("openid", user_id, self._settings.openid_token_lifetime_ms)

    async def owner_of_openid_token(self, token: str) -> str | None:
        return await self._database.read(short_tokens.owner, digest(token), "openid", self._clock.now_ms())

    async def _new_short_token(self, purpose: str, user_id: str, lifetime_ms: int) -> ExpiringToken:
        token = self._random.token(TOKEN_LENGTH)
        await self._database.write(self._insert_short_token, digest(token), purpose, user_id, lifetime_ms)
        return ExpiringToken(token, lifetime_ms)

    async def _insert_short_token(
        self, txn: Transaction, hashed: bytes, purpose: str, user_id: str, lifetime_ms: int
    ) -> None:
        now = self._clock.now_ms()
        await short_tokens.delete_expired(txn, now)
        await short_tokens.insert(txn, hashed, purpose, user_id, now + lifetime_ms)

    async def _use_short_token(self, txn: Transaction, hashed: bytes, purpose: str) -> str | None:
        owner = await short_tokens.owner(txn, hashed, purpose, self._clock.now_ms())
        if owner is not None:
            await short_tokens.delete(txn, hashed)
        return owner


def check_device_id(device_id: str) -> str:
    """`device_id` if it can be one; 400 ``M_INVALID_PARAM`` otherwise."""
    if not device_id or len(device_id) > DEVICE_ID_LIMIT or not device_id.isprintable():
        raise invalid_param(f"A device ID has 1 to {DEVICE_ID_LIMIT} printable characters.")
    return device_id


def check_display_name(name: str | None) -> str | None:
    """`name` if a device can be called so; 400 ``M_INVALID_PARAM`` otherwise."""
    if name is not None and len(name) > DISPLAY_NAME_LIMIT:
        raise invalid_param(f"The name of a device may have {DISPLAY_NAME_LIMIT} characters at most.")
    return name
