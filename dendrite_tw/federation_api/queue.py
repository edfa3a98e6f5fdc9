"""The queue of one destination as it is in memory, and how what waits is put into batches.

What waits is on disk.  In memory is what has to be known of a queue that has something waiting: which batch is open,
whether the server is far behind, when it is tried again; and what is of the moment (typing, presence), which is worth
nothing once the moment is over and goes to no disk.

A *batch* is what goes into one transaction (Server-Server API, "Transactions").  Rows are put into the open batch of
their destination; it is closed when it is full or about to be sent.  So what a transaction holds is known before it is
sent, without a write of its own, and a crash repeats it with the same name and the same content.

Where several processes share the database, who stores rows and who sends them need not be the same, so a batch is
closed as soon as it is stored and has no name yet: its number is `UNNAMED` plus an ordinary one.  Who sends puts
together what fits and gives it a name, on disk, just before it is sent the first time (`shared_post`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import msgspec
from twisted.internet.interfaces import IDelayedCall

from ..matrix.edus import Presence, PresenceUpdate, edu_content
from ..matrix.transactions import MAX_EDUS, MAX_PDUS
from ..world import Clock, Random

TIME_BITS = 16
"""Bits of a batch's number below its time."""

UNNAMED = 1 << 62
"""Numbers from here on are of batches that have not been given their name yet: they come after those that have one."""

MOMENTS_LIMIT = MAX_EDUS
"""How many things of the moment one destination may have waiting; the oldest make way."""


class OutgoingEvent(msgspec.Struct, frozen=True):
    """An event that these servers are to be told of."""

    position: int
    room_id: str
    event_id: str
    servers: Collection[str]


class OutgoingEdu(msgspec.Struct, frozen=True):
    """An EDU that these servers are to have; ``content`` is JSON.

    Of those with the same ``collapse_key`` the newest is enough for a server that did not have the others.
    ``linger`` is for how many seconds it may wait for company.
    """

    edu_type: str
    content: bytes
    servers: Collection[str]
    collapse_key: str = ""
    linger: float = 0.0


class Moment(msgspec.Struct, frozen=True):
    """An EDU that is worth something now or never."""

    edu_type: str
    content: bytes


class PresenceMoment(msgspec.Struct, frozen=True):
    """The presence of a user, as it was last known at ``last_active_ts`` (milliseconds)."""

    update: PresenceUpdate
    last_active_ts: int


class Numbers:
    """Names batches and EDUs: each number is higher than all before it, also after a restart.

    A number begins with the time, so that it is new even where nothing is left of the old ones, and goes on with
    chance, lest a clock that was set back give one again.
    """

    def __init__(self, clock: Clock, random: Random, kind: int = 0, kinds: int = 1) -> None:
        """Of `kinds` that give numbers at the same time in several processes, no two give the same."""
        self._clock = clock
        self._random = random
        self._kind = kind
        self._kinds = kinds
        self.highest = 0

    def next(self) -> int:
        chance = int.from_bytes(self._random.bytes(2), "big") >> 1
        number = max(self.highest + self._kinds, (self._clock.now_ms() << TIME_BITS) + chance)
        self.highest = number - number % self._kinds + self._kind
        return self.highest


def time_of(number: int) -> int:
    """When a number was given, in milliseconds: the ``origin_server_ts`` of its transaction, the same each time."""
    return number >> TIME_BITS


class OpenBatch:
    """The places that are given to what is new for one destination."""

    __slots__ = ("batch", "behind", "placed", "placed_edus", "placed_events", "places")

    def __init__(self, behind: bool = False) -> None:
        self.behind = behind
        """Whether only the newest event of each room is kept from now on."""
        self.batch = 0
        """The batch that is open; 0 if none is."""
        self.placed = 0
        """How often something was given a place."""
        self.placed_events = 0
        self.placed_edus = 0
        self.places: dict[str, int] = {}
        """Where in the open batch the EDU of a collapse key stands."""

    def place_event(self, numbers: Numbers) -> tuple[int, int]:
        """Batch and number of the next event."""
        if not self.batch or self.placed_events >= MAX_PDUS:
            self._open(numbers)
        self.placed_events += 1
        self.placed += 1
        return self.batch, self.placed_events

    def place_edu(self, numbers: Numbers, replaces: str) -> tuple[int, int]:
        """Batch and number of the next EDU: those of the one with the same key in the open batch, if there is one."""
        self.placed += 1
        place = self.places.get(replaces) if replaces and self.batch else None
        if place is None:
            if not self.batch or self.placed_edus >= MAX_EDUS:
                self._open(numbers)
            self.placed_edus = place = self.placed_edus + 1
            if replaces:
                self.places[replaces] = place
        return self.batch, place

    def _open(self, numbers: Numbers) -> None:
        self.close()
        self.batch = numbers.next()

    def close(self) -> None:
        """Nothing more goes into the open batch."""
        self.batch = self.placed_events = self.placed_edus = 0
        self.places.clear()


class Queue(OpenBatch):
    """What is known of a destination for which something waits, or of which something is remembered."""

    __slots__ = (
        "again",
        "busy",
        "edus",
        "events",
        "heard",
        "moments",
        "ready",
        "sent_ts",
        "server",
        "timer",
        "trouble",
    )

    def __init__(self, server: str) -> None:
        super().__init__()
        self.server = server
        self.events = 0
        """How many events are on disk, in batches."""
        self.edus = False
        """Whether there may be EDUs on disk."""
        self.moments: dict[str, Moment | PresenceMoment] = {}
        self.ready = False
        """Whether it waits for its turn to send."""
        self.busy = False
        """Whether it is its turn."""
        self.again = False
        """Whether something came since its turn began."""
        self.timer: IDelayedCall | None = None
        self.heard = 0.0
        """When the server was last heard of while it was left in peace."""
        self.sent_ts = 0
        self.trouble = ""
        """Why the last attempt failed, where that does not count against the server."""

    # --- what is of the moment ---

    def add_moment(self, key: str, moment: Moment | PresenceMoment) -> None:
        """Have something sent soon or never, in the place of what has the same key."""
        self.moments.pop(key, None)
        self.moments[key] = moment
        if len(self.moments) > MOMENTS_LIMIT:
            del self.moments[next(iter(self.moments))]

    def take_moments(self, count: int, now: int) -> list[Moment]:
        """At most `count` EDUs of what is of the moment; the presence of all users is one."""
        taken: list[Moment] = []
        present: list[PresenceMoment] = []
        for key in list(self.moments):
            if len(taken) + bool(present) >= count:
                break
            moment = self.moments.pop(key)
            if isinstance(moment, PresenceMoment):
                present.append(moment)
            else:
                taken.append(moment)
        return [*taken, presence_moment(present, now)] if present else taken

    # --- timing ---

    def cancel(self) -> None:
        """Forget when it was to be woken."""
        if self.timer is not None and self.timer.active():
            self.timer.cancel()
        self.timer = None

    @property
    def empty(self) -> bool:
        """Whether there is nothing to be sent."""
        return not (self.events or self.edus or self.behind or self.moments)

    @property
    def idle(self) -> bool:
        """Whether nothing is known that has to be remembered."""
        return self.empty and not (self.ready or self.busy or self.timer)


def presence_moment(moments: Iterable[PresenceMoment], now: int) -> Moment:
    """The EDU with the presence of several users, as it is at `now` (milliseconds)."""
    updates = [
        msgspec.structs.replace(moment.update, last_active_ago=max(0, now - moment.last_active_ts))
        for moment in moments
    ]
    return Moment("m.presence", edu_content(Presence(tuple(updates))))
