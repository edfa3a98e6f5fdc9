"""What an event means to its recipients: once for everybody, and again for the few it differs for.

The default rules ask about the event and the room, but for two that name the
user: those mentioned, and the one invited.  So a `SharedEvaluator` walks the
rules once and answers with the outcome for anybody, and the outcomes of those
whom the event names.  Users who changed default rules in the same way share an
evaluator; own rules are tried only for the users whose rules could match, whom
an `Interests` index finds without asking each.  The cost of an event follows
the number of those users, not the number of members.

Client-Server API, push notifications module; "Server behaviour" there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, Final

import msgspec

from dendrite_tw.matrix.globs import compile_glob, parse_path, property_at
from dendrite_tw.matrix.push_conditions import (
    Matcher,
    PushEvent,
    Recipient,
    RoomContext,
    body_matcher,
    compile_condition,
    contains_name,
)
from dendrite_tw.matrix.push_defaults import USER_ID, Action, Condition, PushRule
from dendrite_tw.matrix.push_input import is_forgotten
from dendrite_tw.matrix.push_rules import Change, Reach, RuleSet, changes_of, default_rules


class Outcome(msgspec.Struct, frozen=True):
    """What shall happen to a user for an event.

    `sound`: the name of the sound, if there shall be one.  `actions`: those of the
    rule that matched, as JSON values, for ``GET /notifications``.
    """

    notify: bool
    highlight: bool = False
    sound: str | None = None
    actions: tuple[Action, ...] = ()

    def tweaks(self) -> dict[str, Any]:
        """The tweaks for the push gateway, those it knows and those it does not."""
        return _tweaks(self.actions)


SILENT: Final = Outcome(False)
"""Nothing happens: no rule matched, or one that says so."""


def outcome_of(actions: Iterable[Action]) -> Outcome:
    """The outcome that a list of actions stands for."""
    kept = tuple(action for action in actions if not is_forgotten(action))
    if "notify" not in kept:
        return SILENT
    tweaks = _tweaks(kept)
    sound = tweaks.get("sound")
    return Outcome(True, tweaks.get("highlight") is True, sound if isinstance(sound, str) else None, kept)


def _tweaks(actions: Iterable[Action]) -> dict[str, Any]:
    tweaks: dict[str, Any] = {}
    for action in actions:
        name = action.get("set_tweak") if isinstance(action, dict) else None
        if isinstance(action, dict) and isinstance(name, str):
            absent = True if name == "highlight" else None
            tweaks[name] = action.get("value", absent)
    return tweaks


Named = Callable[[PushEvent], Iterable[str]]


class CompiledRule(msgspec.Struct, frozen=True):
    """A rule ready to be tried.

    It matches a user if all of `shared` hold, if `named` is ``None`` or has the
    user, and if, with `asks_name`, the body contains the user's display name.
    """

    shared: tuple[Matcher, ...]
    outcome: Outcome
    named: Named | None = None
    asks_name: bool = False

    def matches_all(self, event: PushEvent, room: RoomContext) -> bool:
        """Whether the conditions hold that are the same for all users."""
        return all(matcher(event, room) for matcher in self.shared)

    def matches(self, event: PushEvent, room: RoomContext, user: Recipient) -> bool:
        if not self.matches_all(event, room):
            return False
        if self.named is not None and user.user_id not in self.named(event):
            return False
        return not self.asks_name or contains_name(event, user.display_name)


def _compile(rule: PushRule) -> CompiledRule:
    """Compile an override, underride or content rule."""
    outcome = outcome_of(rule.actions)
    if rule.pattern is not None:
        return CompiledRule((body_matcher(rule.pattern),), outcome)
    shared, named, asks_name = [], None, False
    for condition in rule.conditions or ():
        if rule.default and USER_ID in condition.values():
            named = _named_by(condition)
            continue
        matcher = compile_condition(condition)
        if matcher is None:
            asks_name = True
        else:
            shared.append(matcher)
    return CompiledRule(tuple(shared), outcome, named, asks_name)


def _named_by(condition: Condition) -> Named:
    """The users for whom a condition with the user's id in it holds: an id is compared exactly."""
    names = parse_path(condition["key"])
    if condition["kind"] == "event_property_contains":
        return lambda event: _strings(property_at(event.properties, names))
    return lambda event: _string(property_at(event.properties, names))


def _strings(value: object) -> tuple[str, ...]:
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()


def _string(value: object) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else ()


class EventVerdict(msgspec.Struct, frozen=True):
    """The outcomes of an event for all users of one profile whose own rules it does not meet.

    `base`: for anybody but those in `special`, who are the users that the event
    names; they need not be members of the room.  `sender`: has no outcome.
    """

    base: Outcome
    special: dict[str, Outcome]
    sender: str

    def outcome_for(self, user_id: str) -> Outcome:
        if user_id == self.sender:
            return SILENT
        return self.special.get(user_id, self.base)


class SharedEvaluator:
    """The default rules with one set of changes, ready to be tried for everybody at once.

    `evaluator_for` makes and remembers them.
    """

    def __init__(self, changes: Mapping[str, Change]) -> None:
        rules = [*default_rules(changes, "override"), *default_rules(changes, "underride")]
        self._rules = tuple(_compile(rule) for rule in rules if rule.enabled)

    def evaluate_event(self, event: PushEvent, room: RoomContext) -> EventVerdict:
        """The outcome of `event` for each user who has these rules and no others."""
        special: dict[str, Outcome] = {}
        for rule in self._rules:
            if not rule.matches_all(event, room):
                continue
            if rule.named is None:
                return EventVerdict(rule.outcome, special, event.sender)
            for user_id in rule.named(event):
                special.setdefault(user_id, rule.outcome)
        return EventVerdict(SILENT, special, event.sender)


@lru_cache(maxsize=1024)
def evaluator_for(profile: bytes) -> SharedEvaluator:
    """The evaluator for users whose `RuleSet.profile` is `profile`."""
    return SharedEvaluator(changes_of(profile))


class PersonalEvaluator:
    """All rules of one user, ready to be tried."""

    def __init__(self, rules: RuleSet) -> None:
        def enabled(kind: str) -> tuple[CompiledRule, ...]:
            return tuple(_compile(rule) for rule in rules.in_order(kind) if rule.enabled)

        def by_id(kind: str) -> dict[str, Outcome]:
            return {rule.rule_id: outcome_of(rule.actions) for rule in rules.own_rules(kind) if rule.enabled}

        self._before = (*enabled("override"), *enabled("content"))
        self._rooms = by_id("room")
        self._senders = by_id("sender")
        self._after = enabled("underride")

    def evaluate(self, event: PushEvent, room: RoomContext, user: Recipient) -> Outcome:
        """The outcome of `event` for `user`: that of the first rule which matches."""
        if event.sender == user.user_id:
            return SILENT
        for rule in self._before:
            if rule.matches(event, room, user):
                return rule.outcome
        if event.room_id in self._rooms:
            return self._rooms[event.room_id]
        if event.sender in self._senders:
            return self._senders[event.sender]
        for rule in self._after:
            if rule.matches(event, room, user):
                return rule.outcome
        return SILENT


def evaluate(rules: RuleSet, event: PushEvent, room: RoomContext, user: Recipient) -> Outcome:
    """The outcome of one event for one user; a `PersonalEvaluator` serves who has many events."""
    return PersonalEvaluator(rules).evaluate(event, room, user)


class Interests:
    """Whose own rules an event could match, of many users, without asking each.

    The answer may name users whose rules do not match in the end; it leaves out none
    whose rules do.
    """

    def __init__(self) -> None:
        self._reaches: dict[str, Reach] = {}
        self._everywhere: set[str] = set()
        self._rooms: dict[str, set[str]] = {}
        self._senders: dict[str, set[str]] = {}
        self._types: dict[str, set[str]] = {}
        self._words: dict[str, set[str]] = {}
        self._globs: dict[str, set[str]] = {}

    def put(self, user_id: str, rules: RuleSet) -> None:
        """Take note of the rules of a user, in the place of those they had."""
        self.discard(user_id)
        reach = rules.reach
        if reach == Reach():
            return
        self._reaches[user_id] = reach
        if reach.everywhere:
            self._everywhere.add(user_id)
        for table, keys in self._tables(reach):
            for key in keys:
                table.setdefault(key, set()).add(user_id)

    def discard(self, user_id: str) -> None:
        """Forget a user."""
        reach = self._reaches.pop(user_id, None)
        if reach is None:
            return
        self._everywhere.discard(user_id)
        for table, keys in self._tables(reach):
            for key in keys:
                table[key].discard(user_id)
                if not table[key]:
                    del table[key]

    def candidates(self, event: PushEvent) -> set[str]:
        """The users, in the room or not, who need a `PersonalEvaluator` for `event`."""
        found = set(self._everywhere)
        for table, key in (
            (self._rooms, event.room_id),
            (self._senders, event.sender),
            (self._types, event.type),
        ):
            found |= table.get(key.lower(), _NOBODY)
        if event.body is not None:
            if self._words:
                for word in self._words.keys() & event.words:
                    found |= self._words[word]
            for pattern, users in self._globs.items():
                if compile_glob(pattern).occurs_in(event.body):
                    found |= users
        return found

    def _tables(self, reach: Reach) -> tuple[tuple[dict[str, set[str]], frozenset[str]], ...]:
        return (
            (self._rooms, reach.rooms),
            (self._senders, reach.senders),
            (self._types, reach.types),
            (self._words, reach.words),
            (self._globs, reach.globs),
        )


_NOBODY: Final[frozenset[str]] = frozenset()
