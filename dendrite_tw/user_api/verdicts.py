"""What an event means to the local users of its room: once for everybody, again for those it differs for.

The default rules are evaluated once.  Users who changed default rules in the
same way share an evaluation; own rules are tried for those alone whose rules
the event could match.  So the cost follows the number of those users, not that
of the members.  Client-Server API, push notifications module.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
import orjson

from ..cache import Cache, CacheBudget
from ..matrix.errors import MatrixError
from ..matrix.power_levels import parse_level
from ..matrix.push_conditions import PushEvent, Recipient, RoomContext
from ..matrix.push_evaluation import Outcome, evaluator_for
from ..matrix.push_rules import DEFAULT, RuleSet
from ..matrix.room_versions import RoomVersion, room_version
from ..room_api.api import OutputRoomEvent, RoomAPI, RoomEvent
from .profiles import Profiles
from .push_rules import PushRules
from .settings import UserSettings


class Verdict(msgspec.Struct):
    """``base``: the outcome for everybody with the default rules; ``personal``: for each user it is not it."""

    base: Outcome
    personal: dict[str, Outcome]


class Judge:
    """Evaluates push rules for the local users of rooms."""

    def __init__(
        self, settings: UserSettings, rooms: RoomAPI, rules: PushRules, profiles: Profiles, budget: CacheBudget
    ) -> None:
        self._settings = settings
        self._rooms = rooms
        self._rules = rules
        self._profiles = profiles
        self._ruled: Cache[tuple[int, str], set[str]] = Cache(
            "ruled_members", budget, lambda users: 300 + 120 * len(users)
        )
        self._epoch = 0
        rules.on_change.append(self._rules_changed)

    # --- members whose rules are not the defaults ---

    async def _ruled_members(self, room_id: str) -> set[str]:
        """The joined users of a room whose rules are not the defaults."""
        key = (self._epoch, room_id)
        members = self._ruled.get(key)
        if members is None:
            own = self._rules.with_own_rules()
            members = own & set(await self._rooms.joined_users(room_id)) if own else set()
            self._ruled.put(key, members)
        return members

    def forget_all(self) -> None:
        """Another process judges from now on."""
        self._ruled.clear()

    def _rules_changed(self, user_id: str, old: RuleSet, new: RuleSet) -> None:
        if old.is_default != new.is_default:
            self._epoch += 1

    def state_changed(self, told: OutputRoomEvent) -> None:
        """An event is new: memberships of local users may be others now."""
        room_id = told.event.room_id
        if told.rewrites_state:
            self._ruled.pop((self._epoch, room_id))
            return
        for event in ([told.event] if told.state_changed else []) + told.also_replaced:
            if event.type == "m.room.member" and event.state_key is not None:
                self._member_changed(room_id, event.state_key, event.membership)
        for type, state_key in told.also_removed:
            if type == "m.room.member":
                self._member_changed(room_id, state_key, None)

    def _member_changed(self, room_id: str, user_id: str, membership: str | None) -> None:
        members = self._ruled.peek((self._epoch, room_id))
        if members is None or not self._settings.is_local(user_id):
            return
        if membership == "join" and not self._rules.rules_of(user_id).is_default:
            members.add(user_id)
        elif membership != "join":
            members.discard(user_id)

    def room_changed(self, room_id: str) -> None:
        """The members of a room are others now: who they are is asked for when it is next needed."""
        self._ruled.pop((self._epoch, room_id))

    # --- evaluation ---

    async def judge(self, told: OutputRoomEvent) -> Verdict:
        """The outcomes of an event for the local users whom it concerns."""
        event = told.event
        properties = orjson.loads(event.client)
        properties["room_id"] = event.room_id
        pushed = PushEvent(properties, event.sender, event.room_id, event.type)
        members = await self._ruled_members(event.room_id)
        candidates = self._rules.interests.candidates(pushed) & members if members else set()
        context = RoomContext(told.joined_members)
        if candidates or _mentions_room(properties):
            context = await self._context(told)
        shared = evaluator_for(DEFAULT.profile).evaluate_event(pushed, context)
        personal: dict[str, Outcome] = {}
        for user_id in members:
            if user_id in candidates:
                personal[user_id] = await self._own(user_id, pushed, context)
            elif (profile := self._rules.rules_of(user_id).profile) != DEFAULT.profile:
                personal[user_id] = evaluator_for(profile).evaluate_event(pushed, context).outcome_for(user_id)
        for user_id, outcome in shared.special.items():
            if user_id not in personal and user_id != event.sender and await self._concerns(user_id, event):
                personal[user_id] = outcome
        personal.pop(event.sender, None)
        return Verdict(shared.base, personal)

    async def _own(self, user_id: str, pushed: PushEvent, context: RoomContext) -> Outcome:
        name = (await self._profiles.profile(user_id)).get("displayname")
        return self._rules.evaluator_of(user_id).evaluate(pushed, context, Recipient(user_id, name))

    async def _concerns(self, user_id: str, event: RoomEvent) -> bool:
        """Whether a user whom the event names is told of it: a member, or the one who is invited."""
        if not self._settings.is_local(user_id):
            return False
        if event.type == "m.room.member" and event.state_key == user_id and event.membership == "invite":
            return True
        standing = await self._rooms.membership(event.room_id, user_id)
        return standing is not None and standing.membership == "join"

    async def _context(self, told: OutputRoomEvent) -> RoomContext:
        """The room as rules may ask about it, with the power of the sender."""
        try:
            version = room_version(told.room_version)
        except KeyError:
            return RoomContext(told.joined_members)
        room_id, sender = told.event.room_id, told.event.sender
        levels = await self._content(room_id, sender, "m.room.power_levels")
        create = await self._state(room_id, sender, "m.room.create")
        creators = _creators(create, version) if create is not None else set()
        power: float = 0
        if sender in creators and (version.privileged_creators or levels is None):
            power = math.inf if version.privileged_creators else 100
        elif levels is not None:
            users = levels.get("users")
            named = parse_level(users.get(sender), version) if isinstance(users, dict) else None
            power = named if named is not None else parse_level(levels.get("users_default"), version) or 0
        notifications = (levels or {}).get("notifications")
        return RoomContext(told.joined_members, power, notifications if isinstance(notifications, dict) else {})

    async def _content(self, room_id: str, user_id: str, type: str) -> dict[str, Any] | None:
        event = await self._state(room_id, user_id, type)
        return None if event is None else _content_of(event)

    async def _state(self, room_id: str, user_id: str, type: str) -> RoomEvent | None:
        try:
            return await self._rooms.state_event(room_id, user_id, type, "")
        except MatrixError as error:
            if error.status not in (403, 404):
                raise
            return None


def _mentions_room(properties: dict[str, Any]) -> bool:
    content = properties.get("content")
    mentions = content.get("m.mentions") if isinstance(content, dict) else None
    return isinstance(mentions, dict) and mentions.get("room") is True


def _content_of(event: RoomEvent) -> dict[str, Any]:
    content = orjson.loads(event.client).get("content")
    return content if isinstance(content, dict) else {}


def _creators(create: RoomEvent, version: RoomVersion) -> set[str]:
    """The users whom the room counts as its creators."""
    content = _content_of(create)
    if not version.implicit_room_creator:
        creator = content.get("creator")
        return {creator} if isinstance(creator, str) else set()
    additional = content.get("additional_creators") if version.privileged_creators else None
    others = {user for user in additional if isinstance(user, str)} if isinstance(additional, list) else set()
    return {create.sender} | others
