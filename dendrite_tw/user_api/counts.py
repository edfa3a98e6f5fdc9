"""Unread counts in memory: the log of a room, what one user has read of it, and the sum of both.

A room's log lists, by thread, the positions of the events that notify
everybody with the default rules.  A user's unread count is how many of them lie
behind the user's mark, found by bisection; own events need no exception, for
sending one moves the mark.  What an event means only for one user (a mention,
rules of their own) is a `Special` of that user, which corrects the sum.

Client-Server API, "Receiving notifications", "Marking notifications as read".
"""

from __future__ import annotations

import itertools
from array import array
from bisect import bisect_right
from collections.abc import Iterable

from .api import Unread
from .settings import LOG_LIMIT
from .tables.unread import LogRow, MarkRow, PersonalRow

MAIN = "main"
"""The thread ID of the main timeline."""

EVERYTHING = ""
"""The mark of an unthreaded receipt: it reads all threads."""

FOREVER = (1 << 62) - 1

Span = tuple[int, int]
"""After which position, and up to which, a room's log counts for a user."""

WHOLE: Span = (0, FOREVER)

Spans = dict[str, Span]
"""Those of one user by room, in lower case; that of "" holds for every room too."""


def span_in(spans: Spans, room_id: str) -> Span:
    """The part of a room's log that counts."""
    if not spans:
        return WHOLE
    everywhere, here = spans.get("", WHOLE), spans.get(room_id.lower(), WHOLE)
    return max(everywhere[0], here[0]), min(everywhere[1], here[1])


_VERSIONS = itertools.count()
"""Numbers that no two changes share, also not of a log that was forgotten and read again."""

Positions = dict[str, "array[int]"]
"""Positions of events in order, by thread: 8 bytes each, a fifth of what a list of them takes."""


class RoomLog:
    """The newest unread events of a room; ``version`` is another one after each change.

    ``threads`` has all of them, ``highlights`` those that highlight for everybody.
    """

    def __init__(self, rows: Iterable[LogRow]) -> None:
        self.threads: Positions = {}
        self.highlights: Positions = {}
        self.size = 0
        self.version = next(_VERSIONS)
        for row in rows:
            self.add(row.thread_id, row.position, bool(row.highlight))

    def add(self, thread_id: str, position: int, highlight: bool) -> None:
        """Take an event up; one that is there already changes nothing."""
        if not _insert(self.threads, thread_id, position):
            return
        if highlight:
            _insert(self.highlights, thread_id, position)
        self.size += 1
        self.version = next(_VERSIONS)

    def remove(self, position: int) -> None:
        """Take an event out, where it is there."""
        _remove(self.highlights, position)
        if _remove(self.threads, position):
            self.size -= 1
            self.version = next(_VERSIONS)

    def trim(self) -> int:
        """Keep the newest `LOG_LIMIT` events; returns the position up to which they went, 0 for none."""
        if self.size <= LOG_LIMIT:
            return 0
        newest = sorted((position for positions in self.threads.values() for position in positions), reverse=True)
        upto = newest[LOG_LIMIT]
        for table in (self.threads, self.highlights):
            for thread_id, positions in list(table.items()):
                del positions[: bisect_right(positions, upto)]
                if not positions:
                    del table[thread_id]
        self.size = LOG_LIMIT
        self.version = next(_VERSIONS)
        return upto


def _insert(table: Positions, thread_id: str, position: int) -> bool:
    """Put a position in its place; whether it was not there."""
    positions = table.get(thread_id)
    if positions is None:
        positions = table[thread_id] = array("q")
    if not positions or positions[-1] < position:
        positions.append(position)
        return True
    at = bisect_right(positions, position)
    if at and positions[at - 1] == position:
        return False
    positions.insert(at, position)
    return True


def _remove(table: Positions, position: int) -> bool:
    """Take a position out; whether it was there."""
    for thread_id, positions in table.items():
        at = bisect_right(positions, position) - 1
        if at >= 0 and positions[at] == position:
            del positions[at]
            if not positions:
                del table[thread_id]
            return True
    return False


class Special:
    """What an event means for one user: whether it notifies and highlights.

    ``logged``: 1 if the log has it too, 2 if it highlights there.
    """

    __slots__ = ("highlight", "logged", "notify", "position", "thread_id")

    def __init__(self, position: int, thread_id: str, notify: int, highlight: int, logged: int) -> None:
        self.position = position
        self.thread_id = thread_id
        self.notify = notify
        self.highlight = highlight
        self.logged = logged


class Reader:
    """One user in one room: how far each thread is read, and the user's specials."""

    __slots__ = ("_counted", "_counted_version", "marks", "specials", "version")

    def __init__(self, marks: Iterable[MarkRow], specials: Iterable[PersonalRow]) -> None:
        self.marks = {row.thread_id: row.event_position for row in marks}
        self.specials: dict[int, Special] = {}
        self.version = 0
        self._counted: Unread | None = None
        self._counted_version: tuple[int, int, Span] = (-1, -1, WHOLE)
        for row in specials:
            self.add(row)

    def mark(self, thread_id: str, position: int) -> bool:
        """Raise a mark; whether it rose."""
        if self.marks.get(thread_id, 0) >= position:
            return False
        self.marks[thread_id] = position
        if thread_id == EVERYTHING:
            self.marks = {thread: at for thread, at in self.marks.items() if thread == EVERYTHING or at > position}
        self.specials = {at: special for at, special in self.specials.items() if not self.has_read(special)}
        self.version += 1
        return True

    def read_upto(self, thread_id: str) -> int:
        """The position up to which a thread is read."""
        return max(self.marks.get(EVERYTHING, 0), self.marks.get(thread_id, 0))

    def has_read(self, special: Special) -> bool:
        return special.position <= self.read_upto(special.thread_id)

    def add(self, row: PersonalRow) -> None:
        special = Special(row.position, row.thread_id, row.notify, row.highlight, row.logged)
        if not self.has_read(special):
            self.specials[row.position] = special
            self.version += 1
            if len(self.specials) > LOG_LIMIT:
                del self.specials[next(iter(self.specials))]

    def remove(self, position: int) -> None:
        if self.specials.pop(position, None) is not None:
            self.version += 1

    def unread(self, room_id: str, log: RoomLog, span: Span) -> Unread:
        """The counts, computed again only after a change."""
        version = (log.version, self.version, span)
        if self._counted is None or self._counted_version != version:
            self._counted = self._count(room_id, log, span)
            self._counted_version = version
        return self._counted

    def _count(self, room_id: str, log: RoomLog, span: Span) -> Unread:
        after, upto = span
        counts: dict[str, list[int]] = {}
        for which, table in enumerate((log.threads, log.highlights)):
            for thread_id, positions in table.items():
                begin = bisect_right(positions, max(self.read_upto(thread_id), after))
                count = bisect_right(positions, upto) - begin
                if count > 0:
                    counts.setdefault(thread_id, [0, 0])[which] = count
        for special in self.specials.values():
            sums = counts.setdefault(special.thread_id, [0, 0])
            logged = special.logged if after < special.position <= upto else 0
            sums[0] += special.notify - (logged > 0)
            sums[1] += special.highlight - (logged > 1)
        main = counts.pop(MAIN, [0, 0])
        return Unread(
            room_id=room_id,
            notification_count=max(0, main[0]),
            highlight_count=max(0, main[1]),
            threads={thread: (max(0, sums[0]), max(0, sums[1])) for thread, sums in counts.items() if max(sums) > 0},
        )
