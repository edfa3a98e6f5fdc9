"""A user's push rules: the server's defaults, what the user changed in them, and the user's own.

A `RuleSet` is a value.  Each operation answers a new one, or raises the error
that the client is told; what is stored is the difference from the defaults, so
that a user who never touched the rules costs nothing, and a default that a
later version of the specification changes is changed for them too.

How rules are applied to events is in `push_evaluation`.  Client-Server API,
"Push Rules: API" in the push notifications module.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final

import msgspec
import orjson

from dendrite_tw.matrix.errors import MatrixError, bad_json, invalid_param, not_found
from dendrite_tw.matrix.globs import compile_glob
from dendrite_tw.matrix.push_conditions import fault_of
from dendrite_tw.matrix.push_defaults import DEFAULT_RULES, KINDS, Action, Condition, PushRule
from dendrite_tw.matrix.push_input import MAX_RULE_ID, actions_from, check_new_id, rule_from

MAX_RULES: Final[Mapping[str, int]] = {
    "override": 2000,
    "content": 500,
    "room": 2000,
    "sender": 2000,
    "underride": 500,
}
"""Rules that a user may have of each kind."""

MAX_SEARCHED: Final = 8192
"""Characters of all globs of a user that are searched for in texts: it bounds the time an event may take."""

_DEFAULTS_BY_ID: Final = {kind: {rule.rule_id: rule for rule in rules} for kind, rules in DEFAULT_RULES.items()}


class Change(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a user changed in a default rule; ``None`` is as by default."""

    enabled: bool | None = None
    actions: tuple[Action, ...] | None = None

    def applied_to(self, rule: PushRule) -> PushRule:
        return msgspec.structs.replace(
            rule,
            enabled=rule.enabled if self.enabled is None else self.enabled,
            actions=rule.actions if self.actions is None else self.actions,
        )


@dataclass(frozen=True)
class Reach:
    """The events that a user's own rules can match, so far as it can be told without looking hard.

    An event in none of `rooms` (in lower case), from none of `senders`, of none of
    `types`, with none of `words` or `globs` in its body matches no own rule of the
    user, unless `everywhere`.
    """

    everywhere: bool = False
    rooms: frozenset[str] = frozenset()
    senders: frozenset[str] = frozenset()
    types: frozenset[str] = frozenset()
    words: frozenset[str] = frozenset()
    globs: frozenset[str] = frozenset()


@dataclass(frozen=True)
class RuleSet:
    """The push rules of one user.

    `own`: by kind, the user's rules, most important first.  `changes`: by rule id,
    what the user changed in default rules.
    """

    own: Mapping[str, tuple[PushRule, ...]] = field(default_factory=dict)
    changes: Mapping[str, Change] = field(default_factory=dict)

    # What there is

    @property
    def is_default(self) -> bool:
        """Whether these are the server's default rules and nothing else."""
        return not self.own and not self.changes

    @cached_property
    def profile(self) -> bytes:
        """The changes in default rules, as a key: equal for users who changed the same.

        Users of one profile have the same outcome for any event that none of their
        own rules matches.
        """
        return profile_of(self.changes)

    def own_rules(self, kind: str) -> tuple[PushRule, ...]:
        return self.own.get(kind, ())

    def in_order(self, kind: str) -> list[PushRule]:
        """All rules of one kind as they apply to the user, most important first."""
        defaults = default_rules(self.changes, kind)
        if kind == "override":
            return [defaults[0], *self.own_rules(kind), *defaults[1:]]
        return [*self.own_rules(kind), *defaults]

    def get(self, kind: str, rule_id: str) -> PushRule:
        """The rule of that kind and id.  Raises 404 ``M_NOT_FOUND``, or 400 for an unknown kind."""
        _check_kind(kind)
        default = _DEFAULTS_BY_ID[kind].get(rule_id)
        if default is not None:
            return self.changes.get(rule_id, Change()).applied_to(default)
        for rule in self.own_rules(kind):
            if rule.rule_id == rule_id:
                return rule
        raise not_found("The push rule was not found.")

    def to_client(self, user_id: str) -> dict[str, Any]:
        """The answer to ``GET /pushrules/``, which is the content of ``m.push_rules`` as well."""
        return {"global": {kind: [rule.to_client(user_id) for rule in self.in_order(kind)] for kind in KINDS}}

    # What users do

    def put(
        self, kind: str, rule_id: str, body: object, before: str | None = None, after: str | None = None
    ) -> RuleSet:
        """Add a rule, or change the one of that id.

        `body`: the client's JSON object with ``actions`` and, by kind, ``conditions``
        or ``pattern``.  `before`, `after`: the own rule that the rule shall go right
        before or after; `before` counts if both are given.  Without them a new rule
        goes first and a changed one stays.  Raises a `MatrixError` with status 400.
        """
        _check_kind(kind)
        check_new_id(rule_id)
        rule = rule_from(kind, rule_id, body)
        rules = list(self.own_rules(kind))
        place = next((index for index, old in enumerate(rules) if old.rule_id == rule_id), None)
        if place is not None:
            rule = msgspec.structs.replace(rule, enabled=rules[place].enabled)
            del rules[place]
        elif len(rules) >= MAX_RULES[kind]:
            raise invalid_param(f"There can be at most {MAX_RULES[kind]} push rules of the kind '{kind}'.")
        rules.insert(_place_for(rules, rule_id, place or 0, before, after), rule)
        return self._with_own(kind, rules)

    def delete(self, kind: str, rule_id: str) -> RuleSet:
        """Without an own rule.  Raises 404 ``M_NOT_FOUND`` if the user has no such rule of their own."""
        if self.get(kind, rule_id).default:
            raise not_found("A predefined push rule cannot be deleted; it can be disabled.")
        return self._with_own(kind, (rule for rule in self.own_rules(kind) if rule.rule_id != rule_id))

    def set_enabled(self, kind: str, rule_id: str, enabled: object) -> RuleSet:
        """With a rule switched on or off.  Raises 404 if there is none, 400 if `enabled` is no boolean."""
        rule = self.get(kind, rule_id)
        if not isinstance(enabled, bool):
            raise bad_json("The property 'enabled' must be true or false.")
        return self._with_rule(kind, msgspec.structs.replace(rule, enabled=enabled))

    def set_actions(self, kind: str, rule_id: str, actions: object) -> RuleSet:
        """With other actions for a rule.  Raises 404 if there is none, 400 if `actions` are not valid."""
        rule = self.get(kind, rule_id)
        return self._with_rule(kind, msgspec.structs.replace(rule, actions=actions_from(actions)))

    def copied_to_room(self, old_room: str, new_room: str) -> RuleSet:
        """With the rules about `old_room` made for `new_room` too, where a room is upgraded."""
        result = self
        for kind in ("override", "underride"):
            for rule in reversed(self.own_rules(kind)):
                conditions = _about_room(rule, old_room, new_room)
                rule_id = f"{rule.rule_id}_{new_room}" if rule.rule_id != old_room else new_room
                if conditions is not None:
                    result = result._added(kind, msgspec.structs.replace(rule, rule_id=rule_id, conditions=conditions))
        for rule in self.own_rules("room"):
            if rule.rule_id == old_room:
                result = result._added("room", msgspec.structs.replace(rule, rule_id=new_room))
        return result

    # What rules can match

    @cached_property
    def reach(self) -> Reach:
        """The events that need more than the verdict for the user's `profile`."""
        found: dict[str, set[str]] = {name: set() for name in ("room", "sender", "type", "word", "glob")}
        everywhere = False
        for kind, rules in self.own.items():
            for rule in rules:
                if rule.enabled:
                    trigger = _trigger(kind, rule)
                    everywhere = everywhere or trigger is None
                    if trigger is not None:
                        found[trigger[0]].add(trigger[1])
        return Reach(everywhere, *(frozenset(found[name]) for name in found))

    def differs_for_room(self, room_id: str) -> bool:
        """Whether some event in that room could meet an own rule of this user."""
        reach = self.reach
        wide = reach.everywhere or reach.senders or reach.types or reach.words or reach.globs
        return bool(wide) or room_id.lower() in reach.rooms

    # What is stored

    def to_stored(self) -> dict[str, Any]:
        """The difference from the defaults as a JSON object; empty if there is none."""
        stored: dict[str, Any] = {kind: [_to_stored(rule) for rule in self.own[kind]] for kind in self.own}
        if self.changes:
            stored["changes"] = orjson.loads(self.profile)
        return stored

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> RuleSet:
        """What `to_stored` made.  Changes of default rules that are no more are left out."""
        kinds = [kind for kind in KINDS if stored.get(kind)]
        own = {kind: msgspec.convert(stored[kind], tuple[PushRule, ...]) for kind in kinds}
        changes = msgspec.convert(stored.get("changes", {}), dict[str, Change])
        known = {rule_id for rules in _DEFAULTS_BY_ID.values() for rule_id in rules}
        return cls(own, {rule_id: change for rule_id, change in changes.items() if rule_id in known})

    @classmethod
    def from_client(cls, shown: Mapping[str, Any]) -> RuleSet:
        """The rules in an ``m.push_rules`` of another server; what is not valid there is left out."""
        result = cls()
        everything = shown.get("global")
        for kind in KINDS:
            rules = everything.get(kind) if isinstance(everything, dict) else None
            for rule in reversed(rules) if isinstance(rules, list) else ():
                try:
                    result = result._imported(kind, rule)
                except MatrixError:
                    continue
        return result

    # How

    def _with_own(self, kind: str, rules: Iterable[PushRule]) -> RuleSet:
        own = {**self.own, kind: tuple(rules)}
        if sum(_searched(rule) for kind_rules in own.values() for rule in kind_rules) > MAX_SEARCHED:
            raise invalid_param("The patterns of all push rules are too long together.")
        return replace(self, own={name: own[name] for name in KINDS if own.get(name)})

    def _with_rule(self, kind: str, rule: PushRule) -> RuleSet:
        """With `rule` in the place of the rule that has its id."""
        if not rule.default:
            rules = self.own_rules(kind)
            return self._with_own(kind, (rule if old.rule_id == rule.rule_id else old for old in rules))
        default = _DEFAULTS_BY_ID[kind][rule.rule_id]
        change = Change(
            enabled=None if rule.enabled == default.enabled else rule.enabled,
            actions=None if rule.actions == default.actions else rule.actions,
        )
        changes = {rule_id: old for rule_id, old in self.changes.items() if rule_id != rule.rule_id}
        if change != Change():
            changes[rule.rule_id] = change
        return replace(self, changes=changes)

    def _added(self, kind: str, rule: PushRule) -> RuleSet:
        """With `rule` as the most important own rule, unless there is one of its id or no room for it."""
        rules = self.own_rules(kind)
        known = any(old.rule_id == rule.rule_id for old in rules)
        if known or len(rules) >= MAX_RULES[kind] or len(rule.rule_id) > MAX_RULE_ID:
            return self
        return self._with_own(kind, (rule, *rules))

    def _imported(self, kind: str, rule: object) -> RuleSet:
        if not isinstance(rule, dict) or not isinstance(rule.get("rule_id"), str):
            return self
        rule_id = rule["rule_id"]
        if rule_id.startswith("."):
            result = self.set_actions(kind, rule_id, rule.get("actions"))
        else:
            result = self.put(kind, rule_id, rule)
        return result.set_enabled(kind, rule_id, rule.get("enabled", True))


DEFAULT: Final = RuleSet()
"""The rules of a user who never changed them."""


def profile_of(changes: Mapping[str, Change]) -> bytes:
    """The key of a set of changes; see `RuleSet.profile`."""
    return orjson.dumps(msgspec.to_builtins(dict(changes)), option=orjson.OPT_SORT_KEYS)


def changes_of(profile: bytes) -> dict[str, Change]:
    """The changes that `profile_of` made a key of."""
    return msgspec.json.decode(profile, type=dict[str, Change])


def default_rules(changes: Mapping[str, Change], kind: str) -> list[PushRule]:
    """The default rules of a kind with a user's changes in them."""
    if not changes:
        return list(DEFAULT_RULES[kind])
    return [changes.get(rule.rule_id, Change()).applied_to(rule) for rule in DEFAULT_RULES[kind]]


def _check_kind(kind: str) -> None:
    if kind not in DEFAULT_RULES:
        raise invalid_param(f"There are no push rules of the kind '{kind[:32]}'.")


def _place_for(rules: list[PushRule], rule_id: str, otherwise: int, before: str | None, after: str | None) -> int:
    """Where in `rules` a rule goes."""
    anchor = before if before is not None else after
    if anchor is None or anchor == rule_id:
        return otherwise
    for index, rule in enumerate(rules):
        if rule.rule_id == anchor:
            return index if before is not None else index + 1
    raise MatrixError(400, "M_UNKNOWN", f"before/after rule not found: {anchor[:MAX_RULE_ID]}")


def _about_room(rule: PushRule, old_room: str, new_room: str) -> tuple[Condition, ...] | None:
    """The conditions of a rule about `old_room`, made about `new_room`; ``None`` for other rules."""
    conditions = rule.conditions or ()
    if not any(_names_room(condition, old_room) for condition in conditions):
        return None
    return tuple(
        {**condition, "pattern": new_room} if _names_room(condition, old_room) else condition
        for condition in conditions
    )


def _names_room(condition: Condition, room_id: str) -> bool:
    is_match = condition.get("kind") == "event_match" and condition.get("key") == "room_id"
    return is_match and condition.get("pattern") == room_id


def _searched(rule: PushRule) -> int:
    """The characters of a rule's globs that cannot be compared, but must be searched for."""
    patterns = [rule.pattern] if rule.pattern is not None else []
    for condition in rule.conditions or ():
        pattern = condition.get("pattern")
        if condition.get("kind") != "event_match" or not isinstance(pattern, str):
            continue
        if condition.get("key") == "content.body" or compile_glob(pattern).literal is None:
            patterns.append(pattern)
    return sum(len(pattern) for pattern in patterns)


_TRIGGER_OF_KEY: Final = {"room_id": "room", "sender": "sender", "type": "type"}


def _trigger(kind: str, rule: PushRule) -> tuple[str, str] | None:
    """A thing that any event which `rule` matches must have: its kind and its name in lower case."""
    if kind in ("room", "sender"):
        return kind, rule.rule_id.lower()
    if kind == "content":
        return _body_trigger(rule.pattern or "")
    found = None
    for condition in rule.conditions or ():
        if condition.get("kind") != "event_match" or fault_of(condition) is not None:
            continue
        literal = compile_glob(condition["pattern"]).literal
        key = condition["key"]
        if key in _TRIGGER_OF_KEY and literal is not None:
            return _TRIGGER_OF_KEY[key], literal
        if key == "content.body":
            found = _body_trigger(condition["pattern"])
    return found


def _body_trigger(pattern: str) -> tuple[str, str]:
    word = compile_glob(pattern).needs
    return ("glob", pattern) if word is None else ("word", word)


def _to_stored(rule: PushRule) -> dict[str, Any]:
    stored: dict[str, Any] = {"rule_id": rule.rule_id, "actions": list(rule.actions)}
    if rule.conditions is not None:
        stored["conditions"] = list(rule.conditions)
    if rule.pattern is not None:
        stored["pattern"] = rule.pattern
    if not rule.enabled:
        stored["enabled"] = False
    return stored
