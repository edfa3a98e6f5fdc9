"""What waits for other servers where several processes share the database: one stores it, another sends it.

**Storing.**  Any process that reads a stream stores what follows from it (one process a stream), a parcel at a time.
What a parcel has for a server is a batch, or several, that nothing is added to later: so nobody has to agree with
anybody about what is open.  Such a batch has no name yet (`queue.UNNAMED`).

**Sending.**  The process that has the server's share takes the oldest that wait, as many as fit into a transaction,
and gives them one name, on disk, before it sends them: one write more than where a process is alone.  What has a name
is sent as it is until it is answered, by whoever has the share then.  Those who store do not touch it.

Who stores does not see the queues of servers that others send to.  Whether one is far behind it is told; to be wrong
about that for a moment costs nothing but a row of the other kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from ..database.engines import Database, Unavailable
from ..database.statements import Transaction
from ..links.echoes import Echoes
from ..matrix.transactions import MAX_EDUS, MAX_PDUS
from ..room_api.api import RoomAPI
from ..world import World
from .destinations import Destinations
from .post import ALWAYS_NEWEST, Batch, Parcel, Post, Rows, store_rows
from .queue import UNNAMED, Numbers, OpenBatch, Queue
from .spread import News, Spread
from .tables import queues as table
from .tables.queues import PlacedEdu, PlacedEvent, QueuedEdu, QueuedEvent

log = Logger()

SURVEY_AGAIN_SECONDS = 2.0
"""After this time what waits is looked through again where that failed."""


class SharedPost(Post):
    """`Post` of one process of several; ``queues`` holds those of the servers that it sends to."""

    def __init__(
        self,
        database: Database,
        rooms: RoomAPI,
        destinations: Destinations,
        numbers: Numbers,
        storing: Mapping[str, Numbers],
        spread: Spread,
        time: IReactorTime,
    ) -> None:
        """`numbers` give names; `storing` has the numbers of each consumer, so that no two give the same."""
        super().__init__(database, rooms, destinations, numbers)
        self.on_waiting: Callable[[Mapping[str, float]], None] = lambda lingers: None
        """Is told of servers for which something waits, each with how many seconds it may wait for company."""
        self._storing = storing
        self.spread = spread
        self._time = time
        self._behind: set[str] = set()
        """Servers of all processes of which only the newest event of each room is kept."""
        self._surveying = False
        self._survey_again = False
        spread.on_news = self._hear_news
        spread.on_behind = self._hear_behind
        spread.on_survey = self.survey

    def prepare(self) -> None:
        """Nothing yet: what waits is read when servers become this process's."""

    # --- what is on disk ---

    def survey(self) -> None:
        """See in a moment for which of this process's servers anything waits."""
        self._survey_again = True
        if not self._surveying:
            self._surveying = True
            self._time.callLater(0, self._begin_survey)

    def _begin_survey(self) -> None:
        Deferred.fromCoroutine(self._survey()).addErrback(
            lambda failure: log.failure("it is not known what waits for other servers", failure=failure)
        )

    async def _survey(self) -> None:
        try:
            while self._survey_again:
                self._survey_again = False
                self._take_in(*await self._database.read_long(_all_waiting))
        except Unavailable as error:
            log.info("it is not known yet what waits for other servers: {error}", error=error.error)
            self._time.callLater(SURVEY_AGAIN_SECONDS, self.survey)
        finally:
            self._surveying = False

    def _take_in(
        self, events: Sequence[table.ServerCount], rooms: Sequence[table.ServerCount], edus: Sequence[table.ServerCount]
    ) -> None:
        self._behind = {row.destination for row in rooms}
        found = dict[str, float]()
        for rows in (events, rooms, edus):
            for row in rows:
                if self.spread.mine(row.destination):
                    queue = self.queue(row.destination)
                    queue.placed += 1
                    if rows is events:
                        queue.events = max(queue.events, row.rows)
                    elif rows is rooms:
                        queue.behind = True
                    else:
                        queue.edus = True
                    found[row.destination] = 0.0
        if found:
            self.on_waiting(found)

    async def waiting(self) -> list[str]:
        return await self._database.read_long(table.destinations_waiting)

    # --- putting in ---

    async def begin(self, consumer: str) -> None:
        """This process stores what follows from a consumer's stream from now on."""
        highest = await self._database.read_long(table.highest_number)
        numbers = self._storing[consumer]
        numbers.highest = max(numbers.highest, highest)
        self.spread.announce()

    async def put(self, parcel: Parcel, consumer: str, position: int) -> dict[str, float]:
        opened: dict[str, OpenBatch] = {}

        def batch_of(server: str) -> OpenBatch:
            batch = opened.get(server)
            if batch is None:
                batch = opened[server] = OpenBatch(server in self._behind)
            return batch

        rows = unnamed(self._addressed(parcel, batch_of, self._storing[consumer]))
        await self._database.write(store_rows, rows, consumer, position, table.drop_replaced_unnamed)
        lingers = parcel.lingers()
        news = news_of(rows, lingers)
        mine = [one for one in news if self.spread.mine(one.server)]
        if len(mine) < len(news):
            self.spread.tell_news(one for one in news if not self.spread.mine(one.server))
        self._note_news(mine)
        return {one.server: one.linger for one in mine}

    def _hear_news(self, news: Sequence[News]) -> None:
        self._note_news(news)
        self.on_waiting({one.server: one.linger for one in news})

    def _note_news(self, news: Sequence[News]) -> None:
        for one in news:
            queue = self.queue(one.server)
            queue.placed += 1
            queue.events += one.events
            queue.edus = queue.edus or one.edus
            queue.behind = queue.behind or one.rooms

    # --- taking out ---

    async def _oldest(self, queue: Queue) -> Batch | None:
        while queue.events or queue.edus:
            placed = queue.placed
            events, edus = await self._database.read(_oldest_rows, queue.server)
            if events or edus:
                chosen = Chosen(queue.server, events, edus, self.numbers)
                if not chosen.is_new or await self._database.write(chosen.store):
                    return chosen.batch
            elif placed == queue.placed:
                queue.events, queue.edus = 0, False
        return None

    # --- far behind ---

    def _note_behind(self, queue: Queue, is_behind: bool) -> None:
        if is_behind != queue.behind or is_behind != (queue.server in self._behind):
            self.spread.tell_behind(queue.server, is_behind)
        queue.behind = is_behind
        self._hear_behind(queue.server, is_behind)

    def _hear_behind(self, server: str, is_behind: bool) -> None:
        if is_behind:
            self._behind.add(server)
        else:
            self._behind.discard(server)


class Chosen:
    """What goes into the next transaction to a server, of the rows that wait the longest: as many as fit.

    A batch that has a name is what it is; of others several become one.
    """

    def __init__(self, server: str, events: Sequence[PlacedEvent], edus: Sequence[PlacedEdu], numbers: Numbers) -> None:
        first = self._first = min([row.batch for row in events[:1]] + [row.batch for row in edus[:1]])
        self.is_new = first >= UNNAMED
        self._server = server
        self._dropped: list[PlacedEdu] = []
        if self.is_new:
            edus, self._dropped = _newest_only(edus)
            name = numbers.next()
        else:
            name = first
            events = [row for row in events if row.batch == first]
            edus = [row for row in edus if row.batch == first]
        self._events, self._edus = events, edus
        self.batch = Batch(
            name,
            [QueuedEvent(row.position, row.room_id, row.event_id) for row in events],
            [QueuedEdu(row.edu_type, row.content) for row in edus],
        )

    async def store(self, txn: Transaction) -> bool:
        """Give it its name on disk; false if these rows are not the oldest any more.

        Of a process that was taken for dead, what it wanted last may come after its successor has read the same rows.
        """
        if await table.first_batch(txn, self._server) != self._first:
            return False
        await table.delete_places(txn, [(self._server, row.batch, row.number) for row in self._dropped])
        await table.name_events(txn, self._moves(self._events))
        await table.name_edus(txn, self._moves(self._edus))
        return True

    def _moves(self, rows: Sequence[PlacedEvent | PlacedEdu]) -> list[tuple[int, int, str, int, int]]:
        """For each batch: where it goes in the one of that name, and up to which of its places."""
        upto: dict[int, int] = {}
        for row in rows:
            upto[row.batch] = row.number
        moves, shift = list[tuple[int, int, str, int, int]](), 0
        for batch, number in upto.items():
            moves.append((self.batch.number, shift, self._server, batch, number))
            shift += number
        return moves


def _newest_only(rows: Sequence[PlacedEdu]) -> tuple[list[PlacedEdu], list[PlacedEdu]]:
    """Of EDUs that replace each other the newest; and the others."""
    newest = {row.collapse_key: row for row in rows if row.edu_type == ALWAYS_NEWEST and row.collapse_key}
    kept, dropped = list[PlacedEdu](), list[PlacedEdu]()
    for row in rows:
        (kept if newest.get(row.collapse_key, row) is row else dropped).append(row)
    return kept, dropped


def unnamed(rows: Rows) -> Rows:
    """The rows of a parcel in batches that have no name yet."""
    rows.events = [(server, batch + UNNAMED, *rest) for server, batch, *rest in rows.events]  # type: ignore[misc]
    rows.addressed = {
        place: (server, batch + UNNAMED, *rest)  # type: ignore[misc]
        for place, (server, batch, *rest) in rows.addressed.items()
    }
    return rows


def news_of(rows: Rows, lingers: Mapping[str, float]) -> list[News]:
    """What a parcel brings for each of its servers."""
    events: dict[str, int] = {}
    for server, *_ in rows.events:
        events[server] = events.get(server, 0) + 1
    edus = {server for server, *_ in rows.addressed.values()}
    rooms = {server for server, *_ in rows.rooms}
    return [
        News(server, events.get(server, 0), server in edus, server in rooms, linger)
        for server, linger in lingers.items()
    ]


async def _oldest_rows(txn: Transaction, server: str) -> tuple[list[PlacedEvent], list[PlacedEdu]]:
    return await table.oldest_events(txn, server, MAX_PDUS), await table.oldest_edus(txn, server, MAX_EDUS)


async def _all_waiting(
    txn: Transaction,
) -> tuple[list[table.ServerCount], list[table.ServerCount], list[table.ServerCount]]:
    return await table.event_counts(txn), await table.room_counts(txn), await table.edu_counts(txn)


def shared_post(
    database: Database,
    rooms: RoomAPI,
    destinations: Destinations,
    world: World,
    echoes: Echoes,
    consumers: Sequence[str],
) -> SharedPost:
    """The queues of a process, for consumers of these names, which are the same in the same order in all processes.

    Each consumer, and whoever sends, has numbers of its own.
    """
    kinds = len(consumers) + 1
    storing = {name: Numbers(world.clock, world.random, kind, kinds) for kind, name in enumerate(consumers)}
    numbers = Numbers(world.clock, world.random, kinds - 1, kinds)
    return SharedPost(database, rooms, destinations, numbers, storing, Spread(echoes), world.time)
