"""How events relate to each other: replies, edits, threads, references, annotations.

Only what is in the clear counts, in ``content`` under ``m.relates_to``.  A
relation that is not well formed, or breaks the rules of its type, is no
relation.  The server gathers the children of an event by type and shows them
in ``unsigned`` under ``m.relations``: the last edit, the references, and what
there is of a thread.  Annotations are not gathered.

Client-Server API, "Forming relationships between events" and the modules on
event replacements, annotations, threading and references.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from itertools import islice
from typing import Any, Final, Protocol

import msgspec

from dendrite_tw.matrix.errors import MatrixError

REPLACE: Final = "m.replace"
THREAD: Final = "m.thread"
REFERENCE: Final = "m.reference"
ANNOTATION: Final = "m.annotation"

AGGREGATED: Final = frozenset({REPLACE, THREAD, REFERENCE})
"""The relations that are shown with the parent."""

MAIN_TIMELINE: Final = "main"
"""The thread id of events that are in no thread."""

MAX_HOPS: Final = 3
"""How many parents are looked at to find the thread of an event."""

MAX_REFERENCES: Final = 1000
"""References shown with an event; ``/relations`` gives them all."""

MAX_NAME: Final = 255
"""Characters of a ``rel_type`` or an event id."""

_ENCRYPTED: Final = "m.room.encrypted"


class RelatedEvent(Protocol):
    """The part of an event that relations depend on."""

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
    def origin_server_ts(self) -> int: ...
    @property
    def content(self) -> dict[str, Any]: ...


class Relation(msgspec.Struct, frozen=True):
    """The relation of an event to its parent.

    `key`: what an annotation says, such as an emoji.
    """

    rel_type: str
    event_id: str
    key: str | None = None


def relation_of(content: Mapping[str, Any]) -> Relation | None:
    """The relation in the content of an event, if there is a well-formed one."""
    relates_to = content.get("m.relates_to")
    if not isinstance(relates_to, dict):
        return None
    rel_type, event_id = relates_to.get("rel_type"), _event_id(relates_to)
    if not isinstance(rel_type, str) or not 0 < len(rel_type) <= MAX_NAME or event_id is None:
        return None
    key = relates_to.get("key")
    return Relation(rel_type, event_id, key if isinstance(key, str) else None)


def reply_of(content: Mapping[str, Any]) -> str | None:
    """The event that one replies to, by ``m.in_reply_to``.

    A reply that is only there for clients without threads (``is_falling_back``) is
    none.
    """
    relates_to = content.get("m.relates_to")
    if not isinstance(relates_to, dict) or is_falling_back(content):
        return None
    target = relates_to.get("m.in_reply_to")
    return _event_id(target) if isinstance(target, dict) else None


def is_falling_back(content: Mapping[str, Any]) -> bool:
    """Whether the reply in an event of a thread is there for clients without threads alone."""
    relates_to = content.get("m.relates_to")
    if not isinstance(relates_to, dict) or relates_to.get("rel_type") != THREAD:
        return False
    return relates_to.get("is_falling_back") is True


def _event_id(holder: Mapping[str, Any]) -> str | None:
    event_id = holder.get("event_id")
    is_id = isinstance(event_id, str) and event_id.startswith("$") and len(event_id) <= MAX_NAME
    return event_id if is_id else None


# What may relate to what


def fault_of_child(parent: RelatedEvent, child: RelatedEvent) -> str | None:
    """Why `child` does not relate to `parent`, though it may say so; ``None`` if it does."""
    relation = relation_of(child.content)
    if relation is None or relation.event_id != parent.event_id:
        return "The event does not name the other one as its parent."
    if child.room_id != parent.room_id:
        return "The events are not in the same room."
    match relation.rel_type:
        case "m.replace":
            return _fault_of_replacement(parent, child)
        case "m.thread":
            return _fault_of_root(parent)
        case "m.annotation":
            return _fault_of_annotated(parent, relation)
    return None


def _fault_of_replacement(original: RelatedEvent, edit: RelatedEvent) -> str | None:
    if edit.sender != original.sender:
        return "An edit must have the sender of the original event."
    if edit.type != original.type:
        return "An edit must have the type of the original event."
    if edit.state_key is not None or original.state_key is not None:
        return "State events cannot be edited."
    relation = relation_of(original.content)
    if relation is not None and relation.rel_type == REPLACE:
        return "An edit cannot be edited."
    if edit.type != _ENCRYPTED and not isinstance(edit.content.get("m.new_content"), dict):
        return "An edit must have m.new_content."
    return None


def _fault_of_root(root: RelatedEvent) -> str | None:
    if relation_of(root.content) is not None:
        return "A thread cannot start from an event that relates to another."
    return None


def _fault_of_annotated(parent: RelatedEvent, relation: Relation) -> str | None:
    if relation.key is None:
        return "An annotation must have a key."
    own = relation_of(parent.content)
    if own is not None and own.rel_type in (ANNOTATION, REPLACE):
        return "Annotations and edits cannot be annotated."
    return None


def check_sent(content: Mapping[str, Any], parent: RelatedEvent | None, already_annotated: bool) -> None:
    """Refuse what a client may not send, though other servers may.

    `content`: that of the new event.  `parent`: the event it relates to, if that is
    known.  `already_annotated`: whether the sender has annotated that event, with the
    same type and key, by an event that is not redacted.  Raises 400 ``M_UNKNOWN`` for
    a thread from an event that cannot have one, ``M_DUPLICATE_ANNOTATION`` for a
    second annotation.
    """
    relation = relation_of(content)
    if relation is None:
        return
    if relation.rel_type == THREAD and parent is not None:
        fault = _fault_of_root(parent)
        if fault is not None:
            raise MatrixError(400, "M_UNKNOWN", fault)
    if relation.rel_type == ANNOTATION and already_annotated:
        raise MatrixError(400, "M_DUPLICATE_ANNOTATION", "You have annotated the event in this way before.")


# Threads


def thread_questions(event: RelatedEvent) -> Generator[str, RelatedEvent | None, str]:
    """Find the thread of an event.

    Yields the ids of events it must know, and takes each or ``None``; returns the id
    of the thread's root, or `MAIN_TIMELINE`.  An event that relates to one in a thread
    is in that thread, over at most `MAX_HOPS` parents.
    """
    seen = event
    for _ in range(MAX_HOPS):
        relation = relation_of(seen.content)
        if relation is None:
            return MAIN_TIMELINE
        if relation.rel_type == THREAD:
            return relation.event_id
        parent = yield relation.event_id
        if parent is None or parent.room_id != event.room_id:
            return MAIN_TIMELINE
        seen = parent
    relation = relation_of(seen.content)
    return relation.event_id if relation is not None and relation.rel_type == THREAD else MAIN_TIMELINE


def thread_of(event: RelatedEvent, lookup: Callable[[str], RelatedEvent | None]) -> str:
    """The thread of an event: `thread_questions`, with `lookup` to answer."""
    questions = thread_questions(event)
    try:
        wanted = next(questions)
        while True:
            wanted = questions.send(lookup(wanted))
    except StopIteration as end:
        return str(end.value)


class ThreadSummary(msgspec.Struct, frozen=True):
    """What is shown of a thread with its root.

    `latest_event`: id of the last event.  `participated`: whether the user who asks
    sent the root or an event of the thread.
    """

    latest_event: str
    count: int
    participated: bool


def summarise_thread(
    root: RelatedEvent, children: Iterable[RelatedEvent], user_id: str, ignored: Collection[str] = ()
) -> ThreadSummary | None:
    """What a user is shown of a thread, or ``None`` if there is none.

    `children`: the events that name `root` as their parent, oldest first as the
    server orders the room.  `ignored`: users whose events do not count for the one who asks.
    """
    latest, count, participated = None, 0, root.sender == user_id
    for child in children:
        if child.sender in ignored or not _is_in_thread(root, child):
            continue
        latest, count = child.event_id, count + 1
        participated = participated or child.sender == user_id
    return ThreadSummary(latest, count, participated) if latest is not None else None


def _is_in_thread(root: RelatedEvent, child: RelatedEvent) -> bool:
    relation = relation_of(child.content)
    return relation is not None and relation.rel_type == THREAD and fault_of_child(root, child) is None


# What is shown with the parent


def latest_replacement(original: RelatedEvent, children: Iterable[RelatedEvent]) -> RelatedEvent | None:
    """The edit of `original` that counts: the valid one with the latest time, then the greatest id."""
    edits = (child for child in children if _is_edit(original, child))
    return max(edits, key=lambda edit: (edit.origin_server_ts, edit.event_id), default=None)


def _is_edit(original: RelatedEvent, child: RelatedEvent) -> bool:
    relation = relation_of(child.content)
    return relation is not None and relation.rel_type == REPLACE and fault_of_child(original, child) is None


def bundle(
    *,
    replacement: object | None = None,
    references: Iterable[str] = (),
    thread: ThreadSummary | None = None,
    thread_latest: object | None = None,
    redacted: bool = False,
) -> dict[str, Any]:
    """The object ``m.relations`` of an event; empty if there is nothing to show.

    `replacement`, `thread_latest`: the last edit and the last event of the thread, as
    clients see them and with relations of their own; any value that can stand in a
    response.  `references`: ids of the events that refer to the parent.  `redacted`:
    the parent is; then its edits are not shown.  State events are shown without.
    """
    relations: dict[str, Any] = {}
    if replacement is not None and not redacted:
        relations[REPLACE] = replacement
    chunk = [{"event_id": event_id} for event_id in islice(references, MAX_REFERENCES)]
    if chunk:
        relations[REFERENCE] = {"chunk": chunk}
    if thread is not None and thread_latest is not None:
        relations[THREAD] = {
            "latest_event": thread_latest,
            "count": thread.count,
            "current_user_participated": thread.participated,
        }
    return relations
