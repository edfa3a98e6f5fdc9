"""Two sync processes that are asked by turns: a token of one is always used at the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any

from dendrite_tw.matrix.errors import MatrixError
from dendrite_tw.sync_api.api import NowKnown, SyncAPI
from dendrite_tw.sync_api.component import SyncComponent
from tests.fakes import Hall
from tests.harness import Web, serve
from tests.sync_api.scene import SyncCase
from tests.turns import Turns


class Beside:
    """The processes beside one, of which the first that runs answers, as they do over NATS."""

    def __init__(self, case: ByTurns, place: int) -> None:
        self._case = case
        self._place = place

    def _other(self) -> SyncAPI:
        for place, component in self._case.processes.items():
            if place != self._place:
                return component
        raise MatrixError(503, "M_UNKNOWN", "Nobody is there.")

    async def typing_now(self) -> NowKnown:
        return await self._other().typing_now()

    async def presences_after(self, position: int, limit: int) -> NowKnown:
        return await self._other().presences_after(position, limit)


class ByTurns(SyncCase):
    """A mix-in: the tests of a `SyncCase` with two processes.  One of them starts anew where the test's one would."""

    process_count = 2

    def setUp(self) -> None:
        self.processes: dict[int, SyncComponent] = {}
        self.web = Turns()
        self.hall = Hall()
        super().setUp()

    def restart(self, wait: bool = True) -> None:
        places = (1 - self.web.last,) if self.processes else (0, 1)
        for place in places:
            if place in self.processes:
                self.processes.pop(place).stop()
            queue, echoes = self.queue_of(place), self.hall.echoes()
            self.processes[place] = self.process(wait, self.beside(place), f"process {place}", queue, echoes)
            self.web.webs[place] = self.serve(self.processes[place])
        # They ask each other what is known of this moment.
        self.clock.pump([0.1] * 20)

    def queue_of(self, place: int) -> Any:
        return self.queue

    def beside(self, place: int) -> Beside:
        """The processes beside that one."""
        return Beside(self, place)

    def serve(self, component: SyncComponent) -> Web:
        return serve(component.routes(), self.clock, self.callers)

    @property
    def component(self) -> SyncComponent:  # type: ignore[override]
        """The process that was asked last."""
        return self.processes[self.web.last]

    def sync(self, token: str, since: str | None = None, **query: Any) -> Any:
        answer = super().sync(token, since, **query)
        if since is not None and answer["next_batch"] != since:
            before, after = ([int(part) for part in text[1:].split("_")] for text in (since, answer["next_batch"]))
            self.assertTrue(all(a <= b for a, b in zip(before, after, strict=False)), f"{since} led to {after}")
        return answer


class LaggingQueue:
    """A queue whose messages a process hears in order, and as late as the test wants."""

    def __init__(self, queue: Any) -> None:
        self._queue = queue
        self._waiting: deque[Callable[[], object]] = deque()

    def listen(self, stream: str, handler: Callable[[Any], object], on_begun: Callable[[], None]) -> Any:
        return self._queue.listen(stream, lambda m: self._waiting.append(lambda: handler(m)), on_begun)

    async def publish(self, *args: Any, **options: Any) -> None:
        await self._queue.publish(*args, **options)

    def hear(self, count: int) -> None:
        """Have the process hear so many messages."""
        for _ in range(min(count, len(self._waiting))):
            self._waiting.popleft()()


class Lagging(ByTurns):
    """A mix-in: as `ByTurns`, where each process hears of things at a time of its own."""

    def setUp(self) -> None:
        self.chance = Random(self.id())
        self.queues: dict[int, LaggingQueue] = {}
        super().setUp()

    def queue_of(self, place: int) -> LaggingQueue:
        self.queues[place] = LaggingQueue(self.queue)
        return self.queues[place]

    def sync(self, token: str, since: str | None = None, **query: Any) -> Any:
        """One process is up to date, the other is behind; it answers all the same once it has heard enough."""
        first = self.chance.choice(list(self.queues.values()))
        first.hear(10_000)
        for queue in self.queues.values():
            queue.hear(self.chance.randrange(4))
        answer = self.ask(token, since, **query)
        for _ in range(1000):
            self.settle()
            if answer.done:
                break
            self.queues[self.web.last].hear(1)
        self.assertEqual(answer.status, 200, answer)
        return answer.json
