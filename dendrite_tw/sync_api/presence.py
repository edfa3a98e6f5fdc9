"""Who is online: the newest presence of each user, in memory.

Told to those who share a room with the user.  A position is the time of a
message in microseconds by the queue's clock, so it is the same in all processes.  Client-Server API, "Presence".
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

import orjson

from .api import Presence

USERS_KEPT = 100_000


class PresenceBoard:
    """The newest presence of each user, in the order of the changes.

    ``server_name`` is that of this server where its users show their presence, and empty where they do not.
    """

    def __init__(self, server_name: str = "", kept: int = USERS_KEPT) -> None:
        self.position = 0
        self._server_name = server_name
        self._kept = kept
        self._users: OrderedDict[str, tuple[int, Presence]] = OrderedDict()

    def hear(self, presence: Presence, position: int) -> bool:
        """Take in a message; says whether a client would see a difference."""
        before = self._users.get(presence.user_id)
        self.position = max(self.position + 1, position)
        same = before is not None and shown(before[1]) == shown(presence) and presence.currently_active
        self._users[presence.user_id] = (before[0] if before and same else self.position, presence)
        if not same:
            self._users.move_to_end(presence.user_id)
        if len(self._users) > self._kept:
            self._users.popitem(last=False)
        return not same

    def get(self, user_id: str) -> Presence | None:
        known = self._users.get(user_id)
        return None if known is None else known[1]

    def newly_shared(self, user_id: str) -> Presence | None:
        """What to tell of a user with whom a room is newly shared; of this server's users there is always something."""
        known = self.get(user_id)
        if known is None and self._server_name and user_id.endswith(":" + self._server_name):
            return Presence(user_id=user_id, presence="offline", last_active_ts=0)
        return known

    def since(self, after: int, upto: int) -> list[Presence]:
        """The presence of all users that changed in (after, upto], the oldest change first."""
        found = []
        for position, presence in reversed(self._users.values()):
            if position <= after:
                break
            if position <= upto:
                found.append(presence)
        found.reverse()
        return found

    def present(self) -> Iterator[Presence]:
        """The presence of those users of this server who are not offline."""
        own = ":" + self._server_name
        for _, presence in self._users.values():
            if presence.presence != "offline" and presence.user_id.endswith(own):
                yield presence

    # --- for other processes ---

    def after(self, position: int, limit: int) -> list[tuple[int, Presence]]:
        """The first `limit` that changed after `position`, with their positions, the oldest first."""
        found = []
        for known in reversed(self._users.values()):
            if known[0] <= position:
                break
            found.append(known)
        found.reverse()
        return found[:limit]

    def take(self, known: Sequence[tuple[int, Presence]]) -> None:
        """Take up what another process knows, where it heard of a user later than this one."""
        users = dict(self._users)
        for position, presence in known:
            before = users.get(presence.user_id)
            if before is None or (before[0], before[1].last_active_ts) < (position, presence.last_active_ts):
                users[presence.user_id] = position, presence
                self.position = max(self.position, position)
        in_order = sorted(users.items(), key=lambda entry: entry[1][0])
        self._users = OrderedDict(in_order[-self._kept :])


def shown(presence: Presence) -> tuple[str, str | None, bool]:
    return presence.presence, presence.status_msg, presence.currently_active


def presence_content(presence: Presence, now: int) -> dict[str, object]:
    """The content of the ``m.presence`` event, which is also what ``/presence`` answers."""
    content: dict[str, object] = {"presence": presence.presence}
    if presence.last_active_ts:
        content["last_active_ago"] = max(0, now - presence.last_active_ts)
    if presence.status_msg is not None:
        content["status_msg"] = presence.status_msg
    if presence.presence == "online":
        content["currently_active"] = presence.currently_active
    return content


def presence_event(presence: Presence, now: int) -> bytes:
    """The ``m.presence`` event that sync shows."""
    return orjson.dumps({"type": "m.presence", "sender": presence.user_id, "content": presence_content(presence, now)})
