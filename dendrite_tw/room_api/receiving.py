"""Events that another server sends: read, checked, completed with what they refer to, and handed to the writer.

Server-Server API, "Checks performed on receipt of a PDU".  Whatever another server sends or leaves out, the work for
one event is bounded in time, in questions and in what they may bring.  A server that cannot or will not give what
its events refer to is asked less and less often; its events are dropped meanwhile, and if they matter, a later event
brings them along.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import NamedTuple

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from ..matrix.errors import MatrixError, not_found
from ..matrix.events import Event, ReceivedEvent
from ..matrix.identifiers import server_name_of
from .input import RoomWriter
from .missing import Missing, Untold
from .participation import Participation
from .peers import Deadline
from .room import Arrival, Outcome, Room, Rooms
from .servers import Servers
from .snapshots import StateMap
from .verifying import Verifying

log = Logger()

EVENT_SECONDS = 90.0
"""How long all questions for one event may take."""

ATTEMPTS = 4
"""How often an event is judged again after something that it refers to was fetched."""

STATES_FETCHED = 3
"""Branches of one event's past whose states are fetched; if there are more, only its own is."""

TAKEN_AT_ONCE = 50
"""Earlier events that share a transaction."""

OTHERS_ASKED = 3
"""Servers that are asked for a state beside the one that sent the event."""

PATIENCE_SECONDS = 2.0
PATIENCE_LIMIT_SECONDS = 600.0
"""How long a server is not asked about a room after it failed to answer: the second time, and at most.

The first time may be the fault of one event.
"""

PATIENCE_KEPT = 2000

REFUSED_LOGGED = 5
"""Events that are named, with the reason, in the line that tells of those not accepted."""

Aside = Callable[[str, Room, Sequence[bytes]], Awaitable[dict[str, str]]]
"""Takes events of a room that this server is not in: it may be told how an invite or a knock ended."""


class _Impatience(NamedTuple):
    failures: int
    until: float


class Receiving:
    """Takes what other servers send."""

    def __init__(
        self,
        *,
        rooms: Rooms,
        writer: RoomWriter,
        servers: Servers,
        participation: Participation,
        verifying: Verifying,
        missing: Missing,
        time: IReactorTime,
        server_name: str,
    ) -> None:
        self._rooms = rooms
        self._writer = writer
        self._servers = servers
        self._participation = participation
        self._verifying = verifying
        self._missing = missing
        self.aside: Aside | None = None
        self._time = time
        self._server_name = server_name
        self._impatience: OrderedDict[tuple[str, str], _Impatience] = OrderedDict()

    async def receive(self, origin: str, room_id: str, pdus: list[bytes]) -> dict[str, str]:
        """Take events that `origin` sent, in order; returns, by event ID, why some were not accepted.

        Repeating it is harmless.  ``M_NOT_FOUND`` for a room that is not known here.
        """
        room = await self._rooms.get(room_id)
        if not room.is_here:
            if self.aside is None:
                raise not_found("This server is not in the room.")
            return await self.aside(origin, room, pdus)
        refused: dict[str, str] = {}
        try:
            await self._participation.check_server(room_id, origin)
        except MatrixError as error:
            unread = await self._verifying.parse(room, pdus, refused)
            return _told({**refused, **{one.event.event_id: error.error for one in unread}}, origin, room_id)
        received = await self._verifying.read(room, pdus, refused)
        outcomes = await self._writer.take(room, [Arrival(one) for one in received]) if received else []
        for one, first in zip(received, outcomes, strict=True):
            outcome = first
            if not outcome.is_settled:
                outcome = await self._complete(room, origin, one)
            if outcome.reason:
                refused[outcome.event_id] = outcome.reason
        return _told(refused, origin, room_id)

    # --- what events refer to ---

    async def _complete(self, room: Room, origin: str, received: ReceivedEvent) -> Outcome:
        """Judge an event again, after what it refers to and is not here was fetched."""
        deadline = Deadline(self._time, EVENT_SECONDS)
        arrival: Arrival | None = Arrival(received)
        [outcome] = await self._writer.take(room, [Arrival(received)])
        for _ in range(ATTEMPTS):
            if outcome.is_settled or arrival is None or not self._is_asked(origin, room):
                break
            arrival = await self._completed(room, origin, arrival, outcome, deadline)
            if arrival is not None:
                [outcome] = await self._writer.take(room, [arrival])
        self._note(origin, room, outcome.is_settled)
        return outcome

    async def _completed(
        self, room: Room, origin: str, arrival: Arrival, outcome: Outcome, deadline: Deadline
    ) -> Arrival | None:
        """An event once something that it refers to was fetched; `None` if it cannot be had."""
        received = arrival.received
        if self._lacks_authority(received.event, outcome):
            return arrival if await self._missing.authority(room, origin, received.event, deadline) else None
        if not _has_state(arrival):
            try:
                if await self._fetch_earlier(room, origin, received, deadline):
                    return arrival
            except Untold:
                # Whoever sends an event has those before it: one whose past is kept back is not taken.
                return None
        arrival = await self._with_state(room, origin, received, deadline)
        return arrival if _has_state(arrival) else None

    def _lacks_authority(self, event: Event, outcome: Outcome) -> bool:
        """Whether it is for its auth events that an event could not be judged."""
        return not set(outcome.missing) <= set(event.prev_events)

    async def _fetch_earlier(self, room: Room, origin: str, received: ReceivedEvent, deadline: Deadline) -> bool:
        """Take in the events before one; whether all that it refers to is here now."""
        earlier = await self._missing.earlier(room, origin, received, deadline)
        loose = {one.event.event_id for one in await self._missing.loose(room, earlier)}
        if earlier and len(loose) <= STATES_FETCHED:
            arrivals = []
            for one in earlier:
                is_loose = one.event.event_id in loose
                arrivals.append(await self._with_state(room, origin, one, deadline) if is_loose else Arrival(one))
            await self._take_all(room, origin, arrivals, deadline)
        return not await self._missing.loose(room, [received])

    async def _take_all(self, room: Room, origin: str, arrivals: list[Arrival], deadline: Deadline) -> None:
        """Take in events, together where nothing is missing to judge them."""
        for start in range(0, len(arrivals), TAKEN_AT_ONCE):
            await self._writer.take(room, arrivals[start : start + TAKEN_AT_ONCE])
        for arrival in arrivals:
            if not await self._missing.is_here(room, arrival.received.event.event_id):
                await self._missing.authority(room, origin, arrival.received.event, deadline)
                [outcome] = await self._writer.take(room, [arrival])
                if not outcome.is_settled:
                    return

    async def _with_state(self, room: Room, origin: str, received: ReceivedEvent, deadline: Deadline) -> Arrival:
        """An event with the states after those before it that are missing, or with the state before it, if told."""
        event = received.event
        await self._missing.authority(room, origin, event, deadline)
        candidates = await self._candidates(room, origin, event)
        absent = await self._missing.absent_before(room, event)
        if len(absent) > STATES_FETCHED:
            before = await _first(
                self._missing.state_before(room, server, event.event_id, deadline) for server in candidates
            )
            return Arrival(received, before=before)
        branches = []
        for event_id in absent:
            after = await _first(self._missing.state_after(room, server, event_id, deadline) for server in candidates)
            if after is None:
                return Arrival(received)
            branches.append(after)
        return Arrival(received, branches=tuple(branches))

    async def _candidates(self, room: Room, origin: str, event: Event) -> list[str]:
        """Whom to ask: who sent the event, the server of its sender, and some others that are in the room."""
        others = sorted(await self._servers.of(room.room_nid))
        ranked = dict.fromkeys([origin, server_name_of(event.sender), *others])
        return [server for server in ranked if server != self._server_name][: OTHERS_ASKED + 1]

    # --- patience ---

    def _is_asked(self, origin: str, room: Room) -> bool:
        """Whether a server is asked about events of a room now."""
        known = self._impatience.get((origin, room.room_id))
        return known is None or known.until <= self._time.seconds()

    def _note(self, origin: str, room: Room, succeeded: bool) -> None:
        """Remember whether a server gave what its event refers to."""
        key = (origin, room.room_id)
        known = self._impatience.pop(key, None)
        if succeeded:
            return
        if known is not None and known.until > self._time.seconds():
            self._impatience[key] = known
            return
        failures = known.failures + 1 if known is not None else 1
        wait = min(PATIENCE_SECONDS * 2 ** min(failures - 2, 20), PATIENCE_LIMIT_SECONDS) if failures > 1 else 0.0
        self._impatience[key] = _Impatience(failures, self._time.seconds() + wait)
        if len(self._impatience) > PATIENCE_KEPT:
            self._impatience.popitem(last=False)


def _told(refused: dict[str, str], origin: str, room_id: str) -> dict[str, str]:
    """What was not accepted, after it was logged: in one line, however much a server sends at once."""
    if refused:
        some = "; ".join(f"{event_id}: {reason}" for event_id, reason in list(refused.items())[:REFUSED_LOGGED])
        log.info(
            "{count} events of {origin} in {room_id} were not accepted: {some}",
            count=len(refused),
            origin=origin,
            room_id=room_id,
            some=some,
        )
    return refused


def _has_state(arrival: Arrival) -> bool:
    """Whether what is before an event was told by others."""
    return arrival.before is not None or bool(arrival.branches)


async def _first(answers: Iterator[Awaitable[StateMap | None]]) -> StateMap | None:
    """The first answer that is one; those after it are not asked for."""
    for answer in answers:
        found = await answer
        if found is not None:
            return found
    return None
