"""The server-default push rules, in the order in which they are tried.

Client-Server API, "Predefined Rules" in the push notifications module.  A
condition that names the user carries `USER_ID` in the place of the name;
`for_user` puts the name in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

KINDS: Final = ("override", "content", "room", "sender", "underride")
"""The kinds of push rules, in the order in which they are tried."""

MASTER: Final = ".m.rule.master"
"""The one default rule that goes before the user's own."""

USER_ID: Final = "[user_id]"
"""Stands for the user's id in the conditions of default rules; no string a rule is compared with."""

Action = str | dict[str, Any]
Condition = Mapping[str, Any]


class PushRule(msgspec.Struct, frozen=True):
    """One rule.  `conditions` are for override and underride rules, `pattern` for content rules."""

    rule_id: str
    actions: tuple[Action, ...]
    conditions: tuple[Condition, ...] | None = None
    pattern: str | None = None
    enabled: bool = True
    default: bool = False

    def to_client(self, user_id: str) -> dict[str, Any]:
        """The rule as clients see it."""
        shown: dict[str, Any] = {
            "rule_id": self.rule_id,
            "default": self.default,
            "enabled": self.enabled,
            "actions": list(self.actions),
        }
        if self.conditions is not None:
            name = for_user if self.default else _as_it_is
            shown["conditions"] = [name(condition, user_id) for condition in self.conditions]
        if self.pattern is not None:
            shown["pattern"] = self.pattern
        return shown


def for_user(condition: Condition, user_id: str) -> Condition:
    """The condition of a default rule with the user's id in its place."""
    return {key: user_id if value is USER_ID else value for key, value in condition.items()}


def _as_it_is(condition: Condition, user_id: str) -> Condition:
    return condition


def _match(key: str, pattern: str) -> Condition:
    return {"kind": "event_match", "key": key, "pattern": pattern}


def _is(key: str, value: str | bool) -> Condition:
    return {"kind": "event_property_is", "key": key, "value": value}


def _members(count: str) -> Condition:
    return {"kind": "room_member_count", "is": count}


def _sound(name: str) -> Action:
    return {"set_tweak": "sound", "value": name}


def _rule(rule_id: str, conditions: list[Condition], actions: list[Action], enabled: bool = True) -> PushRule:
    return PushRule(rule_id, tuple(actions), tuple(conditions), enabled=enabled, default=True)


_HIGHLIGHT: Final[Action] = {"set_tweak": "highlight"}

_OVERRIDE: Final = (
    _rule(MASTER, [], [], enabled=False),
    _rule(".m.rule.suppress_notices", [_match("content.msgtype", "m.notice")], []),
    _rule(
        ".m.rule.invite_for_me",
        [
            _match("type", "m.room.member"),
            _match("content.membership", "invite"),
            _match("state_key", USER_ID),
        ],
        ["notify", _sound("default")],
    ),
    _rule(".m.rule.member_event", [_match("type", "m.room.member")], []),
    _rule(
        ".m.rule.is_user_mention",
        [{"kind": "event_property_contains", "key": r"content.m\.mentions.user_ids", "value": USER_ID}],
        ["notify", _sound("default"), _HIGHLIGHT],
    ),
    _rule(
        ".m.rule.is_room_mention",
        [
            _is(r"content.m\.mentions.room", True),
            {"kind": "sender_notification_permission", "key": "room"},
        ],
        ["notify", _HIGHLIGHT],
    ),
    _rule(
        ".m.rule.tombstone",
        [_match("type", "m.room.tombstone"), _match("state_key", "")],
        ["notify", _HIGHLIGHT],
    ),
    _rule(".m.rule.reaction", [_match("type", "m.reaction")], []),
    _rule(".m.rule.room.server_acl", [_match("type", "m.room.server_acl"), _match("state_key", "")], []),
    _rule(".m.rule.suppress_edits", [_is(r"content.m\.relates_to.rel_type", "m.replace")], []),
)

_UNDERRIDE: Final = (
    _rule(".m.rule.call", [_match("type", "m.call.invite")], ["notify", _sound("ring")]),
    _rule(
        ".m.rule.encrypted_room_one_to_one",
        [_members("2"), _match("type", "m.room.encrypted")],
        ["notify", _sound("default")],
    ),
    _rule(
        ".m.rule.room_one_to_one",
        [_members("2"), _match("type", "m.room.message")],
        ["notify", _sound("default")],
    ),
    _rule(".m.rule.message", [_match("type", "m.room.message")], ["notify"]),
    _rule(".m.rule.encrypted", [_match("type", "m.room.encrypted")], ["notify"]),
)

DEFAULT_RULES: Final[Mapping[str, tuple[PushRule, ...]]] = {
    "override": _OVERRIDE,
    "content": (),
    "room": (),
    "sender": (),
    "underride": _UNDERRIDE,
}
"""The default rules of each kind, most important first."""
