"""Accounts: who exists here, how one comes to be, changes and is closed.

Client-Server API, "Account registration", "Account management" and "Account
moderation"; the grammar of localparts is in the Appendices, "User Identifiers".
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import orjson
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from ..database.engines import Database, Unavailable
from ..database.statements import Transaction
from ..matrix.errors import MatrixError
from ..matrix.identifiers import is_valid_localpart_for_registration
from ..room_api.api import MembershipChange, RoomAPI
from ..world import World
from .api import TYPE_APPSERVICE, TYPE_GUEST, TYPE_USER, Account, Caller, Login, NewAccount, NewLogin
from .appservices import AppServices
from .passwords import Passwords, check_strength
from .settings import UserSettings
from .tables import account_data, profiles, pushers, registration_tokens, sessions, short_tokens
from .tables import accounts as table
from .tokens import Tokens

log = Logger()

AccountHook = Callable[[Transaction, str], Awaitable[None]]
"""Told in the transaction that deactivates an account: the user ID."""

GENERATED_LENGTH = 12
USER_ID_LIMIT = 255


class Accounts:
    """The accounts of this server."""

    def __init__(
        self,
        settings: UserSettings,
        database: Database,
        world: World,
        tokens: Tokens,
        appservices: AppServices,
        rooms: RoomAPI,
    ) -> None:
        self._settings = settings
        self._database = database
        self._clock = world.clock
        self._random = world.random
        self._tokens = tokens
        self._appservices = appservices
        self._rooms = rooms
        self._passwords = Passwords(settings.bcrypt_cost, world.random, world.threads)
        self._leaving: set[str] = set()
        self.on_account_deactivated: list[AccountHook] = []
        self.on_registered: list[Callable[[str], Awaitable[None]]] = []

    # --- questions ---

    async def caller_of(self, access_token: str) -> Caller:
        """As `Tokens.caller_of`, with the tokens of application services."""
        service = self._appservices.of_token(access_token)
        if service is not None:
            return Caller(user_id=service.sender, device_id=None, appservice_id=service.id)
        return await self._tokens.caller_of(access_token)

    async def acting_as(self, appservice_id: str, user_id: str, device_id: str | None) -> Caller:
        service = self._appservices.get(appservice_id)
        if service is None or not service.is_interested(user_id):
            raise MatrixError(403, "M_EXCLUSIVE", "The user is in no namespace of the application service.")
        if user_id != service.sender and not await self.is_local_account(user_id):
            raise MatrixError(403, "M_FORBIDDEN", "The application service has not registered this user.")
        session_id = 0
        if device_id is not None:
            device = await self._database.read(sessions.device, user_id, device_id)
            if device is None:
                raise MatrixError(400, "M_UNKNOWN_DEVICE", "The user has no such device.")
            session_id = device.session_id
        return Caller(user_id=user_id, device_id=device_id, session_id=session_id, appservice_id=appservice_id)

    async def account(self, user_id: str) -> Account | None:
        row = await self._database.read(table.account, user_id)
        if row is None:
            return None
        return Account(
            user_id=row.user_id,
            account_type=row.account_type,
            created_ts=row.created_ts,
            appservice_id=row.appservice_id,
            has_password=row.password_hash is not None,
            deactivated=bool(row.deactivated),
            erased=bool(row.erased),
            locked=bool(row.locked),
            suspended=bool(row.suspended),
        )

    async def is_local_account(self, user_id: str) -> bool:
        if not self._settings.is_local(user_id):
            return False
        row = await self._database.read(table.account, user_id)
        return row is not None and not row.deactivated

    async def check_password(self, user_id: str, password: str) -> bool:
        row = await self._database.read(table.account, user_id) if self._settings.is_local(user_id) else None
        return await self._passwords.matches(password, row.password_hash if row is not None else None)

    # --- registration ---

    async def check_localpart(self, localpart: str, appservice_id: str | None) -> str:
        localpart = self._well_formed(localpart, appservice_id)
        user_id = self._settings.user_id(localpart)
        self._appservices.check_may_register(user_id, appservice_id)
        if await self._database.read(table.account, user_id) is not None:
            raise in_use()
        return localpart

    def _well_formed(self, localpart: str, appservice_id: str | None) -> str:
        """`localpart` in lower case; 400 ``M_INVALID_USERNAME`` or ``M_USER_IN_USE`` where nobody can have it."""
        localpart = localpart.lower()
        if not is_valid_localpart_for_registration(localpart):
            raise invalid_username("A username has the characters a-z, 0-9 and ._=-/+ only.")
        if len(self._settings.user_id(localpart)) > USER_ID_LIMIT:
            raise invalid_username(f"The user ID would be longer than {USER_ID_LIMIT} characters.")
        if appservice_id is None:
            if localpart.startswith("_"):
                raise invalid_username("Usernames that begin with _ are for application services.")
            if localpart.isdigit():
                raise invalid_username("Usernames of digits alone are for guests.")
        if localpart in self._settings.reserved_localparts:
            raise in_use()
        return localpart

    async def register(self, account: NewAccount, login: NewLogin | None) -> tuple[str, Login | None]:
        if account.upgrades_guest is not None:
            user_id = account.upgrades_guest
        elif account.localpart is not None:
            user_id = self._settings.user_id(await self.check_localpart(account.localpart, account.appservice_id))
        else:
            user_id = self._settings.user_id(self._new_localpart(account.account_type))
            self._appservices.check_may_register(user_id, account.appservice_id)
        hashed = None
        if account.password is not None:
            check_strength(account.password)
            hashed = await self._passwords.hash(account.password)
        drawn = self._tokens.draw(login) if login is not None else None
        made = await self._database.write(self._register, user_id, account, hashed, login, drawn)
        for hook in self.on_registered:
            in_background(hook(user_id), f"what follows the registration of {user_id}")
        return user_id, made

    def _new_localpart(self, account_type: int) -> str:
        if account_type == TYPE_GUEST:
            return str(10**15 + int.from_bytes(self._random.bytes(6)))
        return "u" + self._random.token(GENERATED_LENGTH).lower()

    async def _register(
        self,
        txn: Transaction,
        user_id: str,
        account: NewAccount,
        hashed: str | None,
        login: NewLogin | None,
        drawn: tuple[str, str, str | None] | None,
    ) -> Login | None:
        now = self._clock.now_ms()
        if account.upgrades_guest is not None:
            if not await table.change_type(txn, user_id, TYPE_GUEST, account.account_type, hashed):
                raise MatrixError(403, "M_FORBIDDEN", "This is no guest's account.")
            await self._tokens.forget_with(txn, user_id)
        elif not await table.insert(txn, user_id, account.account_type, hashed, now, account.appservice_id):
            raise in_use()
        if account.registration_token is not None:
            token = await registration_tokens.token(txn, account.registration_token)
            if token is None or not token.is_valid(now):
                raise MatrixError(401, "M_UNAUTHORIZED", "The registration token is not valid.")
            await registration_tokens.use(txn, account.registration_token)
        if account.account_type != TYPE_APPSERVICE and account.upgrades_guest is None:
            name = orjson.dumps(user_id[1:].split(":", 1)[0])
            await profiles.set_field(txn, user_id, "displayname", name)
        if login is None or drawn is None:
            return None
        owned = NewLogin(
            user_id=user_id,
            device_id=login.device_id,
            display_name=login.display_name,
            refreshable=login.refreshable,
            ip=login.ip,
            user_agent=login.user_agent,
        )
        return await self._tokens.create_session(txn, owned, drawn)

    async def ensure_own_account(self, user_id: str, profile: dict[str, str]) -> None:
        await self._database.write(self._ensure_own_account, user_id, profile)

    async def _ensure_own_account(self, txn: Transaction, user_id: str, profile: dict[str, str]) -> None:
        account = await table.account(txn, user_id)
        if account is None:
            await table.insert(txn, user_id, TYPE_USER, None, self._clock.now_ms(), None)
        elif account.password_hash is not None or account.deactivated:
            raise MatrixError(409, "M_USER_IN_USE", f"{user_id} is somebody's account; the server needs another.")
        for field, value in profile.items():
            await profiles.set_field(txn, user_id, field, orjson.dumps(value))

    # --- changes ---

    async def set_password(self, user_id: str, password: str, logout_devices: bool, keep_device: str | None) -> None:
        check_strength(password)
        hashed = await self._passwords.hash(password)
        await self._database.write(self._set_password, user_id, hashed, logout_devices, keep_device)

    async def _set_password(
        self, txn: Transaction, user_id: str, hashed: str, logout_devices: bool, keep_device: str | None
    ) -> None:
        if not await table.set_password(txn, user_id, hashed):
            raise no_such_user()
        if logout_devices:
            await self._tokens.end_sessions(txn, user_id, None, keep_device)

    async def set_locked(self, user_id: str, locked: bool) -> None:
        await self._database.write(self._set_locked, user_id, int(locked))

    async def _set_locked(self, txn: Transaction, user_id: str, locked: int) -> None:
        if not await table.set_locked(txn, user_id, locked):
            raise no_such_user()
        await self._tokens.forget_with(txn, user_id)

    async def set_suspended(self, user_id: str, suspended: bool) -> None:
        await self._database.write(self._set_suspended, user_id, int(suspended))

    async def _set_suspended(self, txn: Transaction, user_id: str, suspended: int) -> None:
        if not await table.set_suspended(txn, user_id, suspended):
            raise no_such_user()
        await self._tokens.forget_with(txn, user_id)

    # --- deactivation ---

    async def deactivate(self, user_id: str, erase: bool) -> None:
        await self._database.write(self._deactivate, user_id, erase)
        in_background(self.leave_rooms(user_id), f"leaving the rooms of {user_id}")

    async def _deactivate(self, txn: Transaction, user_id: str, erase: bool) -> None:
        if not await table.deactivate(txn, user_id, int(erase)):
            raise no_such_user()
        await self._tokens.end_sessions(txn, user_id, None, None)
        await short_tokens.delete_of_user(txn, user_id)
        await profiles.delete_profile(txn, user_id)
        await pushers.delete_all(txn, user_id)
        for hook in self.on_account_deactivated:
            await hook(txn, user_id)
        if erase:
            await account_data.delete_all(txn, user_id)

    async def leave_rooms(self, user_id: str) -> None:
        """Make a deactivated user leave every room; a room that fails now is tried again later."""
        if user_id in self._leaving:
            return
        self._leaving.add(user_id)
        try:
            await self._leave_rooms(user_id)
        finally:
            self._leaving.discard(user_id)

    async def _leave_rooms(self, user_id: str) -> None:
        left_all = True
        for membership in await self._rooms.memberships(user_id):
            if membership.membership in ("join", "invite", "knock"):
                change = MembershipChange(room_id=membership.room_id, sender=user_id, target=user_id, action="leave")
                try:
                    await self._rooms.change_membership(change)
                except MatrixError as error:
                    left_all = left_all and error.status in (403, 404)
        if left_all:
            await self._database.write(table.has_left, user_id)

    async def resume(self) -> None:
        """Go on with what the end of a process interrupted."""
        for user_id in await self._database.read(table.still_leaving):
            in_background(self.leave_rooms(user_id), f"leaving the rooms of {user_id}")


def in_background(work: Awaitable[object], what: str) -> None:
    """Let `work` go on by itself; a failure is logged, in a line where something is only not there now."""

    async def watched() -> None:
        try:
            await work
        except Unavailable as error:
            log.warn("{what} must wait: {error}", what=what, error=str(error))

    Deferred.fromCoroutine(watched()).addErrback(
        lambda failure: log.failure("{what} failed", what=what, failure=failure)
    )


def in_use() -> MatrixError:
    return MatrixError(400, "M_USER_IN_USE", "The user ID is already taken.")


def invalid_username(error: str) -> MatrixError:
    return MatrixError(400, "M_INVALID_USERNAME", error)


def no_such_user() -> MatrixError:
    return MatrixError(404, "M_NOT_FOUND", "There is no such user.")
