"""The user component: makes its parts, introduces them to each other, and answers `UserAPI` through them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.task import LoopingCall

from ..cache import CacheBudget
from ..database.engines import Database
from ..database.migrate import migrate, steps_of
from ..database.outbox import Outbox
from ..database.statements import Transaction
from ..federation_api.api import FederationAPI
from ..links.echoes import Echoes, NoEchoes
from ..room_api.api import RoomAPI
from ..sharing.leases import Leases, Sole
from ..world import World
from .account_data import AccountData
from .accounts import AccountHook, Accounts, in_background
from .api import UNREAD
from .appservices import AppServices
from .auto_join import AutoJoin
from .devices import Devices
from .notifications import Notifications
from .profiles import Profiles
from .push_rules import PushRules
from .pushers import Pushers
from .receipts import Receipts
from .registration_tokens import RegistrationTokens
from .remote_profiles import RemoteProfiles
from .settings import UserSettings
from .tables import unread as unread_table
from .tokens import DeviceHook, DeviceIdCheck, Tokens
from .uia_sessions import UIASessions
from .unread import PRUNE_SECONDS, UnreadCounts
from .unread_store import UnreadStore
from .verdicts import Judge

PACKAGE = "dendrite_tw.user_api"

CHORES = "chores"
"""The lease of who goes on with what others left undone, and deletes what is kept for a while only."""

RESUME_SECONDS = 60.0
FORGET_SECONDS = 60.0
"""How old what is remembered of sessions may be, where processes share a database."""

NO_ECHOES = NoEchoes()


def repeated(work: Callable[[], object], world: World) -> LoopingCall:
    loop = LoopingCall(work)
    loop.clock = world.time
    return loop


def halt(loop: LoopingCall) -> None:
    if loop.running:
        loop.stop()


class UserComponent:
    """Everything about local users, over one database and one outbox.

    It is a `UserAPI`: each method is that of the part which knows.  Whoever keeps more of users
    in the same database (their keys) adds to ``on_device_deleted``, ``on_device_changed``,
    ``is_device_id_taken`` and ``on_account_deactivated``, which run in the transaction of the change,
    and to ``on_memberships``.
    """

    def __init__(
        self,
        settings: UserSettings,
        database: Database,
        outbox: Outbox,
        queue: Any,
        world: World,
        rooms: RoomAPI,
        budget: CacheBudget,
        federation: FederationAPI,
        appservices: AppServices | None = None,
        *,
        echoes: Echoes = NO_ECHOES,
        leases: Leases | None = None,
    ) -> None:
        self.settings = settings
        self.database = database
        self.outbox = outbox
        services = appservices or AppServices()
        self.leases = leases or Sole()
        self.tokens = Tokens(settings, database, world, budget, echoes)
        self.accounts = Accounts(settings, database, world, self.tokens, services, rooms)
        elsewhere = RemoteProfiles(federation, world.time, budget)
        self.profiles = Profiles(settings, database, rooms, self.accounts, elsewhere)
        self.data = AccountData(database, outbox, budget)
        self.rules = PushRules(database, self.data, echoes)
        self.unread_store = UnreadStore(database, budget, echoes)
        judge = Judge(settings, rooms, self.rules, self.profiles, budget)
        self.counts = UnreadCounts(
            settings, outbox, self.unread_store, judge, self.rules, rooms, world, database.shared
        )
        self.receipts = Receipts(settings, database, outbox, self.data, self.unread_store, rooms, world)
        self._queue = queue
        self._pruning = repeated(self._prune, world)
        self._resuming = repeated(self._resume, world)
        self._forgetting = repeated(self._forget, world)
        self.leases.want([UNREAD], self._count, self._count_no_more)
        self.leases.want([CHORES], self._begin_chores, self._end_chores)
        self.on_device_deleted: list[DeviceHook] = self.tokens.on_device_deleted
        self.on_device_changed: list[DeviceHook] = self.tokens.on_device_changed
        self.is_device_id_taken: list[DeviceIdCheck] = self.tokens.is_device_id_taken
        self.on_account_deactivated: list[AccountHook] = self.accounts.on_account_deactivated
        self.on_account_deactivated.append(self._forget_deactivated)
        self.on_memberships = self.counts.on_memberships
        if settings.auto_join_rooms:
            self.accounts.on_registered.append(AutoJoin(settings, rooms, self.profiles).join)
        self._offer_accounts(Devices(database), RegistrationTokens(database, world))
        self._offer_data(Pushers(database, world), Notifications(database, self.unread_store, rooms))
        self._offer_proofs(UIASessions(database, world.clock))

    def _offer_accounts(self, devices: Devices, registration_tokens: RegistrationTokens) -> None:
        """The methods of `UserAPI` about accounts and sessions, each from the part that has it."""
        self.caller_of = self.accounts.caller_of
        self.session_of = self.tokens.session_of
        self.acting_as = self.accounts.acting_as
        self.devices_seen = self.tokens.devices_seen
        self.account = self.accounts.account
        self.is_local_account = self.accounts.is_local_account
        self.check_localpart = self.accounts.check_localpart
        self.register = self.accounts.register
        self.ensure_own_account = self.accounts.ensure_own_account
        self.check_password = self.accounts.check_password
        self.set_password = self.accounts.set_password
        self.deactivate = self.accounts.deactivate
        self.set_locked = self.accounts.set_locked
        self.set_suspended = self.accounts.set_suspended
        self.registration_tokens = registration_tokens.registration_tokens
        self.is_valid_registration_token = registration_tokens.is_valid_registration_token
        self.new_registration_token = registration_tokens.new_registration_token
        self.update_registration_token = registration_tokens.update_registration_token
        self.delete_registration_token = registration_tokens.delete_registration_token
        self.log_in = self.tokens.log_in
        self.refresh = self.tokens.refresh
        self.new_login_token = self.tokens.new_login_token
        self.use_login_token = self.tokens.use_login_token
        self.devices = devices.devices
        self.put_device = self.tokens.put_device
        self.delete_devices = self.tokens.delete_devices
        self.new_openid_token = self.tokens.new_openid_token
        self.owner_of_openid_token = self.tokens.owner_of_openid_token

    def _offer_proofs(self, sessions: UIASessions) -> None:
        """The methods of `UserAPI` about proofs on their way."""
        self.uia_session = sessions.uia_session
        self.put_uia_session = sessions.put_uia_session
        self.end_uia_session = sessions.end_uia_session

    def _offer_data(self, pushers: Pushers, notifications: Notifications) -> None:
        """The methods of `UserAPI` about users' data."""
        self.profile = self.profiles.profile
        self.profile_fields = self.profiles.profile_fields
        self.set_profile_field = self.profiles.set_profile_field
        self.delete_profile_field = self.profiles.delete_profile_field
        self.put_account_data = self.data.put_account_data
        self.put_tag = self.data.put_tag
        self.account_data_since = self.data.account_data_since
        self.account_data = self.data.account_data
        self.ignored_users = self.data.ignored_users
        self.push_rules = self.rules.push_rules
        self.push_rule = self.rules.push_rule
        self.put_push_rule = self.rules.put_push_rule
        self.delete_push_rule = self.rules.delete_push_rule
        self.set_push_rule_enabled = self.rules.set_push_rule_enabled
        self.set_push_rule_actions = self.rules.set_push_rule_actions
        self.copy_push_rules_to_room = self.rules.copy_push_rules_to_room
        self.pushers = pushers.pushers
        self.put_pusher = pushers.put_pusher
        self.delete_pusher = pushers.delete_pusher
        self.put_receipts = self.receipts.put_receipts
        self.read_up_to = self.receipts.read_up_to
        self.receipts_since = self.receipts.receipts_since
        self.unread = self.counts.unread
        self.unread_of = self.counts.unread_of
        self.notifications = notifications.notifications

    async def position(self) -> int:
        return await self.outbox.newest()

    async def _forget_deactivated(self, txn: Transaction, user_id: str) -> None:
        await self.rules.forget(txn, user_id)
        txn.after_commit(lambda: self.data.forget(user_id))

    # --- life ---

    def prepare(self) -> None:
        """Bring the database to its newest step, before the reactor runs."""
        self.database.prepare(migrate, "user_api", steps_of(PACKAGE))
        self.database.prepare(self.outbox.create)

    async def start(self) -> None:
        """Take up what an earlier run left, and begin to consume."""
        if self.database.shared:
            self._forgetting.start(FORGET_SECONDS, now=False)
        await self.leases.start()

    async def stop(self) -> None:
        """Consume no more, and store what is only in memory."""
        halt(self._forgetting)
        await self.leases.stop()

    async def _count(self, lease: str) -> None:
        await self.counts.start(self._queue)

    async def _count_no_more(self, lease: str, kept: bool) -> None:
        await self.counts.stop(kept)

    async def _begin_chores(self, lease: str) -> None:
        self._pruning.start(PRUNE_SECONDS, now=False)
        if self.database.shared:
            self._resuming.start(RESUME_SECONDS, now=False)
        self._resume()

    async def _end_chores(self, lease: str, kept: bool) -> None:
        halt(self._pruning)
        halt(self._resuming)

    def _resume(self) -> None:
        """Go on with what a process that has ended, this one in an earlier life maybe, left undone."""
        in_background(self.accounts.resume(), "going on with what was left undone for accounts")
        in_background(self.profiles.resume(), "going on with showing profiles in rooms")

    def _forget(self) -> None:
        """Ask the database again, for a process may have been killed before it told others of a change."""
        self.tokens.forget_all()
        self.counts.look_at_rules()

    async def forget_room(self, room_id: str) -> int:
        """Delete everything about a room that is purged; returns the number of rows that went."""
        return await self.receipts.delete_room(room_id) + await self.unread_store.delete_room(room_id)

    def _prune(self) -> None:
        in_background(self.database.write(unread_table.prune, self.counts.oldest_kept()), "deleting old notifications")
