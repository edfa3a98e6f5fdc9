"""What a push rule may ask about an event: the conditions, checked once and compiled once.

A condition asks either about the event and its room, which has one answer for
all users, or about the user as well.  The two are kept apart: the first kind is
what makes it possible to evaluate an event once for everybody.

Client-Server API, "Conditions" in the push notifications module.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Protocol

from dendrite_tw.matrix.errors import MatrixError, bad_json, missing_param
from dendrite_tw.matrix.globs import compile_glob, literal_occurs, parse_path, property_at, words_of

MAX_PATTERN: Final = 255
"""Characters of one glob."""

MAX_KEY: Final = 512
"""Characters of one dotted path or condition kind."""

MAX_VALUE: Final = 1024
"""Characters of a string that a property is compared with."""

DEFAULT_NOTIFICATION_LEVEL: Final = 50
"""The power that a mention of the room takes where ``m.room.power_levels`` does not say."""

_MAX_INTEGER: Final = 2**53 - 1
_MEMBER_COUNT: Final = re.compile(r"(==|<=|>=|<|>)?([0-9]{1,15})")
_COMPARISONS: Final[Mapping[str, Callable[[int, int], bool]]] = {
    "==": int.__eq__,
    "<": int.__lt__,
    ">": int.__gt__,
    "<=": int.__le__,
    ">=": int.__ge__,
}


class RoomEvent(Protocol):
    """The part of an event that push rules can ask about."""

    @property
    def event_id(self) -> str: ...
    @property
    def room_id(self) -> str: ...
    @property
    def sender(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def state_key(self) -> str | None: ...
    @property
    def content(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class PushEvent:
    """An event as push rules see it; made once, and shared by the evaluations for all users.

    `properties`: the event as a JSON object, in the clients' format.
    """

    properties: Mapping[str, Any]
    sender: str
    room_id: str
    type: str

    @classmethod
    def of(cls, event: RoomEvent) -> PushEvent:
        properties = {
            "event_id": event.event_id,
            "room_id": event.room_id,
            "sender": event.sender,
            "type": event.type,
            "content": event.content,
        }
        if event.state_key is not None:
            properties["state_key"] = event.state_key
        return cls(properties, event.sender, event.room_id, event.type)

    @cached_property
    def body(self) -> str | None:
        """``content.body`` in lower case, if it is a string."""
        body = property_at(self.properties, ("content", "body"))
        return body.lower() if isinstance(body, str) else None

    @cached_property
    def words(self) -> frozenset[str]:
        """The words of `body`."""
        return words_of(self.body) if self.body is not None else frozenset()


@dataclass(frozen=True)
class RoomContext:
    """What rules may ask about the room, as it is when the event arrives.

    `member_count`: users joined.  `sender_power`: the sender's power level;
    ``math.inf`` for those who stand above all levels.  `notification_levels`: the
    object ``notifications`` of the content of ``m.room.power_levels``.
    """

    member_count: int
    sender_power: float = 0
    notification_levels: Mapping[str, Any] = field(default_factory=dict)

    def sender_may_notify(self, key: str) -> bool:
        """Whether the sender has the power for notifications of the kind `key`, such as ``room``."""
        return self.sender_power >= _power_level(self.notification_levels.get(key))


def _power_level(value: object) -> int:
    """A level as rooms hold it: an integer, or in old room versions a string of one."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,15}\s*", value):
        return int(value)
    return DEFAULT_NOTIFICATION_LEVEL


@dataclass(frozen=True)
class Recipient:
    """The user a rule belongs to, with the display name they have in the room."""

    user_id: str
    display_name: str | None = None


Matcher = Callable[[PushEvent, RoomContext], bool]


def compile_condition(condition: Mapping[str, Any]) -> Matcher | None:
    """The test that a condition makes of an event and its room.

    ``None`` for ``contains_display_name``, the one condition that asks about the
    user.  A condition that is unknown or malformed matches nothing, as the
    specification wants of those it does not know.
    """
    kind = condition.get("kind")
    if kind == "contains_display_name":
        return None
    compiler = _COMPILERS.get(kind) if isinstance(kind, str) else None
    if compiler is None or fault_of(condition) is not None:
        return _never
    return compiler(condition)


def _never(event: PushEvent, room: RoomContext) -> bool:
    return False


def body_matcher(pattern: str) -> Matcher:
    """The test of a content rule: `pattern` occurs in ``content.body`` between word boundaries."""
    glob = compile_glob(pattern)
    word = glob.word
    if word is not None:
        return lambda event, room: word in event.words
    return lambda event, room: event.body is not None and glob.occurs_in(event.body)


def contains_name(event: PushEvent, name: str | None) -> bool:
    """Whether the body of `event` contains a display name between word boundaries, in any case."""
    if not name or event.body is None:
        return False
    return literal_occurs(name.lower(), event.body)


def _event_match(condition: Mapping[str, Any]) -> Matcher:
    names = parse_path(condition["key"])
    if names == ("content", "body"):
        return body_matcher(condition["pattern"])
    glob = compile_glob(condition["pattern"])

    def match(event: PushEvent, room: RoomContext) -> bool:
        value = property_at(event.properties, names)
        return isinstance(value, str) and glob.matches(value)

    return match


def _event_property_is(condition: Mapping[str, Any]) -> Matcher:
    names = parse_path(condition["key"])
    wanted = condition["value"]
    kind = type(wanted)

    def match(event: PushEvent, room: RoomContext) -> bool:
        value = property_at(event.properties, names)
        return type(value) is kind and bool(value == wanted)

    return match


def _event_property_contains(condition: Mapping[str, Any]) -> Matcher:
    names = parse_path(condition["key"])
    wanted = condition["value"]
    kind = type(wanted)

    def match(event: PushEvent, room: RoomContext) -> bool:
        values = property_at(event.properties, names)
        return isinstance(values, list) and any(type(value) is kind and value == wanted for value in values)

    return match


def _room_member_count(condition: Mapping[str, Any]) -> Matcher:
    parsed = _MEMBER_COUNT.fullmatch(condition["is"])
    assert parsed is not None
    compare = _COMPARISONS[parsed[1] or "=="]
    bound = int(parsed[2])
    return lambda event, room: compare(room.member_count, bound)


def _sender_notification_permission(condition: Mapping[str, Any]) -> Matcher:
    key: str = condition["key"]
    return lambda event, room: room.sender_may_notify(key)


_COMPILERS: Final[Mapping[str, Callable[[Mapping[str, Any]], Matcher]]] = {
    "event_match": _event_match,
    "event_property_is": _event_property_is,
    "event_property_contains": _event_property_contains,
    "room_member_count": _room_member_count,
    "sender_notification_permission": _sender_notification_permission,
}

_PARAMETERS: Final[Mapping[str, tuple[str, ...]]] = {
    "event_match": ("key", "pattern"),
    "event_property_is": ("key", "value"),
    "event_property_contains": ("key", "value"),
    "contains_display_name": (),
    "room_member_count": ("is",),
    "sender_notification_permission": ("key",),
}


def fault_of(condition: object) -> MatrixError | None:
    """Why `condition` cannot be part of a rule, or ``None``.

    Kinds that are not known pass, so that clients may keep rules for features
    that they alone understand.
    """
    if not isinstance(condition, dict):
        return bad_json("A condition must be an object.")
    kind = condition.get("kind")
    if not isinstance(kind, str) or len(kind) > MAX_KEY:
        return missing_param("A condition must have a 'kind', a string.")
    for name in _PARAMETERS.get(kind, ()):
        if name not in condition:
            return missing_param(f"A condition of the kind '{kind}' must have the property '{name}'.")
        if not _PARAMETER_CHECKS[name](condition[name]):
            return bad_json(f"The property '{name}' of a condition of the kind '{kind}' is not valid.")
    return None


def _is_key(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_KEY


def is_pattern(value: object) -> bool:
    """Whether `value` can be a glob of a rule."""
    return isinstance(value, str) and len(value) <= MAX_PATTERN


def _is_simple_value(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_VALUE
    if isinstance(value, bool) or value is None:
        return True
    return isinstance(value, int) and abs(value) <= _MAX_INTEGER


def _is_member_count(value: object) -> bool:
    return isinstance(value, str) and _MEMBER_COUNT.fullmatch(value) is not None


_PARAMETER_CHECKS: Final[Mapping[str, Callable[[object], bool]]] = {
    "key": _is_key,
    "pattern": is_pattern,
    "value": _is_simple_value,
    "is": _is_member_count,
}
