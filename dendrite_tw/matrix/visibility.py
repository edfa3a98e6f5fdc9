"""Who may see an event: history visibility, for users and for servers.

The state that counts is the state at the event, before it and, for two sorts of
events, after it.  So the functions take both sides; for all other events the
sides are the same.

Client-Server API, "Room History Visibility"; Server-Server API, "Backfilling and
retrieving missing events", for servers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from enum import StrEnum
from typing import Any, Final

MEMBER: Final = "m.room.member"
HISTORY_VISIBILITY: Final = "m.room.history_visibility"


class Visibility(StrEnum):
    """The values of ``m.room.history_visibility``, from the most open to the least."""

    WORLD_READABLE = "world_readable"
    SHARED = "shared"
    INVITED = "invited"
    JOINED = "joined"


_BY_NAME: Final[Mapping[str, Visibility]] = {str(visibility): visibility for visibility in Visibility}


def visibility_from(content: Mapping[str, Any] | None) -> Visibility:
    """The visibility that a room has.

    `content`: that of its ``m.room.history_visibility``, or ``None`` if it has none.
    Where there is no value, or none that is understood, history is shared.
    """
    value = content.get("history_visibility") if content is not None else None
    return _BY_NAME.get(value, Visibility.SHARED) if isinstance(value, str) else Visibility.SHARED


def may_see(visibility: Visibility, membership: str | None, joined_since: bool) -> bool:
    """Whether a user may see an event, by the state at it.

    `membership`: the user's own, ``None`` if there was none; a guest who only looks
    has none.  `joined_since`: whether the user joined the room at any point after
    the event, even if they left again.
    """
    if visibility is Visibility.WORLD_READABLE or membership == "join":
        return True
    if visibility is Visibility.SHARED:
        return joined_since
    return visibility is Visibility.INVITED and membership == "invite"


def may_see_event(
    *,
    visibility: Visibility,
    membership: str | None,
    joined_since: bool,
    visibility_after: Visibility | None = None,
    membership_after: str | None = None,
) -> bool:
    """Whether a user may see an event that may itself change what counts.

    `visibility`, `membership`: before the event.  `visibility_after`: what the event
    sets, if it is an ``m.room.history_visibility``.  `membership_after`: what the
    event sets, if it is the user's own ``m.room.member``.  Either side is enough.
    """
    visibilities = (visibility, visibility if visibility_after is None else visibility_after)
    memberships = (membership, membership if membership_after is None else membership_after)
    return any(may_see(one, other, joined_since) for one in visibilities for other in memberships)


def sides_of_event(
    type_: str, state_key: str | None, content: Mapping[str, Any], user_id: str
) -> tuple[Visibility | None, str | None]:
    """What an event sets for a user: `visibility_after` and `membership_after` of `may_see_event`."""
    if type_ == HISTORY_VISIBILITY and state_key == "":
        return visibility_from(content), None
    if type_ == MEMBER and state_key == user_id:
        membership = content.get("membership")
        return None, membership if isinstance(membership, str) else None
    return None, None


def span_visible(
    visibilities: Collection[Visibility], memberships: Collection[str | None], joined_since: bool
) -> bool | None:
    """Whether a user may see a whole run of events, where that can be said without a look at each.

    `visibilities`, `memberships`: all that were in force at any event of the run,
    before its first and after its last one too.  `joined_since`: whether the user
    joined after the last event of the run.  Answers ``True`` for all events, ``False``
    for none, ``None`` if each must be asked about.

    A user who is joined throughout has ``{"join"}`` and sees everything, whatever
    the visibility was.
    """
    if not visibilities or not memberships:
        raise ValueError("A run of events stands on some visibility and some membership.")
    answers = {may_see(one, other, joined_since) for one in visibilities for other in memberships}
    if len(answers) == 1:
        return answers.pop()
    return None


def may_peek(visibility: Visibility, membership: str | None) -> bool:
    """Whether a user may look at the room as it is now: its state, its timeline as it grows."""
    return visibility is Visibility.WORLD_READABLE or membership == "join"


def server_may_see(
    visibility: Visibility, memberships: Iterable[str | None], joined_since: bool, in_room_now: bool
) -> bool:
    """Whether a server may be given an event: whether one of its users may see it.

    `memberships`: those of the server's users at the event.  `joined_since`: whether
    one of them joined after it, even if they left again.  `in_room_now`: whether the
    server has a user in the room; only those have a part in its history, but for what
    all may read.
    """
    if visibility is Visibility.WORLD_READABLE:
        return True
    if visibility is Visibility.SHARED and (in_room_now or joined_since):
        return True
    return any(may_see(visibility, membership, joined_since) for membership in memberships)


def server_may_see_event(
    *,
    visibility: Visibility,
    memberships: Collection[str | None],
    joined_since: bool,
    in_room_now: bool,
    visibility_after: Visibility | None = None,
    membership_after: str | None = None,
) -> bool:
    """As `server_may_see`, for an event that may itself change what counts.

    `membership_after`: what the event sets, if it is the ``m.room.member`` of one of
    the server's users.
    """
    visibilities = (visibility, visibility if visibility_after is None else visibility_after)
    sides = memberships if membership_after is None else (*memberships, membership_after)
    return any(server_may_see(one, sides, joined_since, in_room_now) for one in visibilities)
