"""A sync component on fakes, and clients that sync."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.cache import CacheBudget
from dendrite_tw.links.echoes import Echoes
from dendrite_tw.sync_api.api import SyncAPI
from dendrite_tw.sync_api.component import SyncComponent
from dendrite_tw.user_api.api import Caller
from tests.fakes import FakeQueue
from tests.harness import ALICE, BOB, CALLERS, Answer, Memory, serve
from tests.sync_api.fakes import FakeKeys, FakeRooms, FakeUsers

CAROL = Caller(user_id="@carol:test", device_id="CAROLDEV", session_id=7)
ALICE2 = Caller(user_id="@alice:test", device_id="SECOND", session_id=8)
A, B, C = ALICE.user_id, BOB.user_id, CAROL.user_id
ROOM = "!room:test"


class SyncCase(SynchronousTestCase):
    """A test with `rooms`, `users` and `keys` behind a served sync component."""

    cache_bytes = 64 << 20
    process_count = 1
    component: SyncComponent
    web: Any

    def setUp(self) -> None:
        memory = Memory()
        self.memory = memory
        self.clock = memory.clock
        self.queue = FakeQueue()
        self.rooms = FakeRooms(self.queue, memory.world.clock)
        self.users = FakeUsers(self.queue)
        self.keys = FakeKeys(self.queue, self.users)
        self.database = memory.database()
        self.callers = {**CALLERS, "carol": CAROL, "alice2": ALICE2}
        self.restart()

    def restart(self, wait: bool = True) -> None:
        """A new process over the same rooms and users."""
        if hasattr(self, "component"):
            self.component.stop()
        self.component = self.process(wait)
        self.web = serve(self.component.routes(), self.clock, self.callers)

    def process(
        self,
        wait: bool = True,
        others: SyncAPI | None = None,
        name: str = "",
        queue: Any = None,
        echoes: Echoes | None = None,
    ) -> SyncComponent:
        """A component that has started; where there are `others` it has a name among them, and hears their echoes."""
        component = SyncComponent(
            self.rooms,  # type: ignore[arg-type]
            self.users,  # type: ignore[arg-type]
            self.keys,  # type: ignore[arg-type]
            queue or self.queue,
            self.database,
            self.memory.world,
            CacheBudget(self.cache_bytes),
            "test",
            presence_enabled=True,
            others=others,
            process=name,
            echoes=echoes,
        )
        component.prepare()
        started = Deferred.fromCoroutine(component.start())
        if wait:
            self.successResultOf(started)
        return component

    def run_now(self, coroutine: Any) -> Any:
        return self.successResultOf(Deferred.fromCoroutine(coroutine))

    def ask(self, token: str, since: str | None = None, **query: Any) -> Answer:
        """Send a sync; dicts among `query` become JSON."""
        fields = {key: json.dumps(v) if isinstance(v, dict | bool) else v for key, v in query.items()}
        fields.setdefault("set_presence", "offline")
        if since is not None:
            fields["since"] = since
        return self.web.get("/_matrix/client/v3/sync?" + urlencode(fields), token)

    def settle(self) -> None:
        """Let woken requests go on."""
        for _ in range(5):
            self.clock.advance(0)

    def sync(self, token: str, since: str | None = None, **query: Any) -> Any:
        answer = self.ask(token, since, **query)
        self.settle()
        self.assertTrue(answer.done, "the sync waits")
        self.assertEqual(answer.status, 200, answer.body)
        return answer.json


def joined(answer: Any, room_id: str = ROOM) -> Any:
    return answer["rooms"]["join"][room_id]


def ids(section: Any) -> list[str]:
    return [event["event_id"] for event in section["events"]]


def timeline_ids(answer: Any, room_id: str = ROOM) -> list[str]:
    return ids(joined(answer, room_id)["timeline"])
