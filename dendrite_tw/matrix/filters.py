"""Filters: which events a client wants, and which parts of them.

A filter is decoded and checked once, and compiled to sets and globs.  Most
filters ask for little or nothing, so a part that lets everything through says
so (`CompiledEventFilter.accepts_all`) and need not be asked about each event.

Client-Server API, "Filtering", ``POST /user/{userId}/filter``; the filters of
``/messages``, ``/context`` and ``/search`` are `RoomEventFilter` alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
import orjson
from msgspec import Meta, Struct, field

from dendrite_tw.matrix.errors import bad_json, invalid_param, not_json
from dendrite_tw.matrix.globs import Glob, compile_glob, parse_path

MAX_ENTRIES: Final = 1000
"""Entries of each list of a filter."""

MAX_FIELDS: Final = 200
"""Entries of ``event_fields``."""

MAX_FILTER_SIZE: Final = 65_536
"""Bytes of a filter as JSON."""

_MAX_MEMO: Final = 512

_Name = Annotated[str, Meta(max_length=255)]
_UserId = Annotated[str, Meta(max_length=255, pattern="^@")]
_RoomId = Annotated[str, Meta(max_length=255, pattern="^!")]
_Names = Annotated[list[_Name], Meta(max_length=MAX_ENTRIES)] | None
_UserIds = Annotated[list[_UserId], Meta(max_length=MAX_ENTRIES)] | None
_RoomIds = Annotated[list[_RoomId], Meta(max_length=MAX_ENTRIES)] | None
_Shape = TypeVar("_Shape")
_Path = Annotated[str, Meta(max_length=512)]


class EventFilter(Struct, frozen=True):
    """What is wanted of events that belong to no room.  ``None`` is as if the key were absent."""

    limit: Annotated[int, Meta(ge=0)] | None = None
    types: _Names = None
    not_types: _Names = None
    senders: _UserIds = None
    not_senders: _UserIds = None

    def bounded_limit(self, default: int, maximum: int) -> int:
        """How many events to answer: what the client asks for, up to `maximum`.

        None at all for a limit of 0, which the specification does not allow and clients use.
        """
        return default if self.limit is None else max(0, min(self.limit, maximum))


class RoomEventFilter(EventFilter, frozen=True):
    """What is wanted of the events of rooms.

    ``related_by_senders`` and ``related_by_rel_types``: only events which other
    events relate to, those senders' or of those relations.  ``rel_types`` and
    ``not_rel_types`` (MSC3874): only events that relate in those ways themselves.
    """

    rooms: _RoomIds = None
    not_rooms: _RoomIds = None
    contains_url: bool | None = None
    lazy_load_members: bool = False
    include_redundant_members: bool = False
    unread_thread_notifications: bool = False
    related_by_senders: _UserIds = None
    related_by_rel_types: _Names = None
    rel_types: _Names = field(name="org.matrix.msc3874.rel_types", default=None)
    not_rel_types: _Names = field(name="org.matrix.msc3874.not_rel_types", default=None)


class RoomFilter(Struct, frozen=True):
    """What is wanted of rooms.  `rooms` and `not_rooms` go before those of the parts."""

    rooms: _RoomIds = None
    not_rooms: _RoomIds = None
    include_leave: bool = False
    ephemeral: RoomEventFilter = RoomEventFilter()
    state: RoomEventFilter = RoomEventFilter()
    timeline: RoomEventFilter = RoomEventFilter()
    account_data: RoomEventFilter = RoomEventFilter()


class FilterDefinition(Struct, frozen=True):
    """A filter as the specification lays it out."""

    event_fields: Annotated[list[_Path], Meta(max_length=MAX_FIELDS)] | None = None
    event_format: Literal["client", "federation"] = "client"
    presence: EventFilter = EventFilter()
    account_data: EventFilter = EventFilter()
    room: RoomFilter = RoomFilter()


class _NameTest:
    """Whether a name is among some: as it stands, or by a glob with ``*``."""

    __slots__ = ("_exact", "_globs")

    def __init__(self, names: Iterable[str]) -> None:
        globs = [compile_glob(name, fold_case=False, question_mark=False) for name in names]
        self._exact = frozenset(glob.literal for glob in globs if glob.literal is not None)
        self._globs: tuple[Glob, ...] = tuple(glob for glob in globs if glob.literal is None)

    def holds(self, name: str) -> bool:
        return name in self._exact or any(glob.matches(name) for glob in self._globs)


def _set(values: Sequence[str] | None) -> frozenset[str] | None:
    return None if values is None else frozenset(values)


def _admits(value: str, wanted: frozenset[str] | None, unwanted: frozenset[str] | None) -> bool:
    """The rule of all pairs of lists: no list lets all through, and the second goes before the first."""
    return (wanted is None or value in wanted) and (unwanted is None or value not in unwanted)


class CompiledEventFilter:
    """One part of a filter, ready to be asked about events.

    `accepts_all`: `check` would say yes to any event.  `accepts_nothing`: it would
    say no to any.  `needs_relations`: `check_relations` must be asked too.
    """

    __slots__ = (
        "_contains_url",
        "_not_rel_types",
        "_not_rooms",
        "_not_senders",
        "_not_types",
        "_rel_types",
        "_related_by_rel_types",
        "_related_by_senders",
        "_rooms",
        "_senders",
        "_type_memo",
        "_types",
        "accepts_all",
        "accepts_nothing",
        "definition",
        "needs_relations",
    )

    def __init__(self, definition: EventFilter) -> None:
        room = definition if isinstance(definition, RoomEventFilter) else RoomEventFilter()
        self.definition = definition
        self._types = None if definition.types is None else _NameTest(definition.types)
        self._not_types = _NameTest(definition.not_types or ())
        self._type_memo: dict[str, bool] = {}
        self._senders, self._not_senders = _set(definition.senders), _set(definition.not_senders or None)
        self._rooms, self._not_rooms = _set(room.rooms), _set(room.not_rooms or None)
        self._rel_types, self._not_rel_types = _set(room.rel_types), _set(room.not_rel_types or None)
        self._contains_url = room.contains_url
        self._related_by_senders = _set(room.related_by_senders)
        self._related_by_rel_types = _set(room.related_by_rel_types)
        self.needs_relations = room.related_by_senders is not None or room.related_by_rel_types is not None
        included = (definition.types, definition.senders, room.rooms, room.rel_types)
        excluded = (definition.not_types, definition.not_senders, room.not_rooms, room.not_rel_types)
        self.accepts_all = (
            all(values is None for values in included) and not any(excluded) and room.contains_url is None
        )
        self.accepts_nothing = any(values == [] for values in included)

    def check(
        self,
        type_: str,
        sender: str,
        room_id: str | None = None,
        has_url: bool = False,
        rel_type: str | None = None,
    ) -> bool:
        """Whether the client wants an event.

        `has_url`: its content has the key ``url``.  `rel_type`: how it relates to
        another.  `room_id`: ``None`` for what is in no room, which lists of rooms let be.
        """
        if self.accepts_all:
            return True
        return (
            self.check_type(type_)
            and _admits(sender, self._senders, self._not_senders)
            and (room_id is None or self.check_room(room_id))
            and (self._contains_url is None or self._contains_url is has_url)
            and self._check_rel_type(rel_type)
        )

    def check_type(self, type_: str) -> bool:
        """Whether events of a type can be wanted at all."""
        known = self._type_memo.get(type_)
        if known is None:
            known = (self._types is None or self._types.holds(type_)) and not self._not_types.holds(type_)
            if len(self._type_memo) < _MAX_MEMO:
                self._type_memo[type_] = known
        return known

    def check_room(self, room_id: str) -> bool:
        """Whether events of a room can be wanted at all."""
        return _admits(room_id, self._rooms, self._not_rooms)

    def check_relations(self, children: Iterable[tuple[str, str]]) -> bool:
        """Whether an event is wanted for the events that relate to it.

        `children`: sender and ``rel_type`` of each of these.
        """
        if not self.needs_relations:
            return True
        senders, rel_types = self._related_by_senders, self._related_by_rel_types
        return any(
            (senders is None or sender in senders) and (rel_types is None or rel_type in rel_types)
            for sender, rel_type in children
        )

    def _check_rel_type(self, rel_type: str | None) -> bool:
        if rel_type is None:
            return self._rel_types is None
        return _admits(rel_type, self._rel_types, self._not_rel_types)


_FieldTree = dict[str, "_FieldTree | None"]


class FieldProjection:
    """The parts of an event that a client asked for, by the dotted paths of ``event_fields``."""

    __slots__ = ("_tree",)

    def __init__(self, paths: Iterable[str]) -> None:
        self._tree: _FieldTree = {}
        for path in paths:
            _plant(self._tree, parse_path(path))

    def apply(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """A new object with the wanted properties of `event`; the values are shared with it."""
        return _pick(event, self._tree)


def _plant(tree: _FieldTree, names: Sequence[str]) -> None:
    """Mark the property under `names` as wanted; the whole of an object takes its parts in."""
    for name in names[:-1]:
        branch = tree.setdefault(name, {})
        if branch is None:
            return
        tree = branch
    tree[names[-1]] = None


def _pick(value: Mapping[str, Any], tree: _FieldTree) -> dict[str, Any]:
    picked: dict[str, Any] = {}
    for name, branch in tree.items():
        if name not in value:
            continue
        inner = value[name]
        if branch is None:
            picked[name] = inner
        elif isinstance(inner, dict):
            part = _pick(inner, branch)
            if part:
                picked[name] = part
    return picked


@lru_cache(maxsize=256)
def _projection(paths: tuple[str, ...]) -> FieldProjection:
    return FieldProjection(paths)


def project_fields(event: Mapping[str, Any], fields: Iterable[str]) -> dict[str, Any]:
    """The properties of `event` that the dotted paths `fields` name; see `FieldProjection`."""
    return _projection(tuple(fields)).apply(event)


@dataclass(frozen=True)
class Filter:
    """A filter of a client: what it says, and its parts ready for use.

    `uploaded`: the object as the client sent it.
    """

    definition: FilterDefinition
    uploaded: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """What the client uploaded, for ``GET /user/{userId}/filter/{filterId}``."""
        return dict(self.uploaded)

    @property
    def federation_format(self) -> bool:
        """Whether events are wanted as they came over federation."""
        return self.definition.event_format == "federation"

    @property
    def include_leave(self) -> bool:
        return self.definition.room.include_leave

    @property
    def lazy_load_members(self) -> bool:
        """Whether only the members who matter are wanted in the state."""
        return self.definition.room.state.lazy_load_members

    @property
    def include_redundant_members(self) -> bool:
        return self.definition.room.state.include_redundant_members

    @property
    def unread_thread_notifications(self) -> bool:
        """Whether unread counts are wanted for each thread."""
        return self.definition.room.timeline.unread_thread_notifications

    @cached_property
    def projection(self) -> FieldProjection | None:
        """The wanted fields of events, or ``None`` for all."""
        fields = self.definition.event_fields
        return None if fields is None else _projection(tuple(fields))

    @cached_property
    def presence(self) -> CompiledEventFilter:
        return CompiledEventFilter(self.definition.presence)

    @cached_property
    def account_data(self) -> CompiledEventFilter:
        return CompiledEventFilter(self.definition.account_data)

    @cached_property
    def timeline(self) -> CompiledEventFilter:
        return CompiledEventFilter(self.definition.room.timeline)

    @cached_property
    def state(self) -> CompiledEventFilter:
        return CompiledEventFilter(self.definition.room.state)

    @cached_property
    def ephemeral(self) -> CompiledEventFilter:
        return CompiledEventFilter(self.definition.room.ephemeral)

    @cached_property
    def room_account_data(self) -> CompiledEventFilter:
        return CompiledEventFilter(self.definition.room.account_data)

    def allows_room(self, room_id: str) -> bool:
        """Whether anything of a room is wanted."""
        wanted, unwanted = self._rooms
        return _admits(room_id, wanted, unwanted)

    @cached_property
    def _rooms(self) -> tuple[frozenset[str] | None, frozenset[str] | None]:
        return _set(self.definition.room.rooms), _set(self.definition.room.not_rooms or None)


DEFAULT: Final = Filter(FilterDefinition(), {})
"""The filter of a client that gives none: it lets everything through."""


def parse_filter(value: object) -> Filter:
    """The filter that a client describes.

    `value`: a JSON value.  Keys that are not known are kept in `Filter.uploaded` and
    have no effect; ``null`` is as if a list were absent.  Raises 400 ``M_BAD_JSON`` if
    it is not laid out as the specification has it, or ``M_INVALID_PARAM`` if it is
    too large.
    """
    if not isinstance(value, dict):
        raise bad_json("A filter must be a JSON object.")
    _check_size(value)
    return Filter(_convert(value, FilterDefinition), value)


def parse_room_event_filter(value: object) -> RoomEventFilter:
    """The filter of ``/messages``, ``/context`` or ``/search``.  Raises as `parse_filter` does."""
    if not isinstance(value, dict):
        raise bad_json("A filter must be a JSON object.")
    _check_size(value)
    return _convert(value, RoomEventFilter)


def load_json(text: str | bytes) -> object:
    """The JSON value of a filter given in a query.  Raises 400 ``M_NOT_JSON`` or ``M_INVALID_PARAM``."""
    if len(text) > MAX_FILTER_SIZE:
        raise invalid_param("The filter is too large.")
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        raise not_json("The filter is not valid JSON.") from None


def is_inline(parameter: str) -> bool:
    """Whether the parameter ``filter`` of ``/sync`` is a filter itself, and not the id of one."""
    return parameter.startswith("{")


def _check_size(value: dict[Any, Any]) -> None:
    try:
        size = len(orjson.dumps(value))
    except orjson.JSONEncodeError:
        raise bad_json("The filter cannot be stored as JSON.") from None
    if size > MAX_FILTER_SIZE:
        raise invalid_param("The filter is too large.")


def _convert(value: dict[Any, Any], shape: type[_Shape]) -> _Shape:
    try:
        return msgspec.convert(value, shape)
    except msgspec.ValidationError as error:
        raise bad_json(f"The filter is not valid: {error}") from None
