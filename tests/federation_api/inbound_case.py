"""A server of which there is the federation alone, and rooms, users and keys that say what a test tells them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.federation_api.inbound import Inbound
from dendrite_tw.matrix.errors import MatrixError, forbidden, not_found
from dendrite_tw.matrix.events import Event, build_event
from dendrite_tw.matrix.room_versions import ROOM_VERSIONS
from dendrite_tw.room_api.api import Alias, Membership, PublicRoom
from dendrite_tw.user_api.api import ClaimedKeys, DeviceList, QueriedKeys, Receipt
from dendrite_tw.world import test_world
from tests.fakes import FakeQueue
from tests.harness import Answer, Web, empty_database

from .network import FederationServer, Network, key_of
from .whole import Stranger

ROOM = "!room:alpha.test"
V1 = "/v1"


def escaped(text: str) -> str:
    """A part of a path."""
    return quote(text, safe="")


def event_of(
    number: int, room_id: str = ROOM, sender: str = "@bob:beta.test", version: str = "11", **fields: Any
) -> Event:
    """An event that its sender's server signed; another `number` makes another event."""
    given = {
        "type": "m.room.message",
        "content": {"body": f"message {number}", "msgtype": "m.text"},
        "prev_events": ["$" + "p" * 43],
        "auth_events": ["$" + "a" * 43],
        "depth": number,
        "origin_server_ts": 1_700_000_000_000 + number,
        **fields,
    }
    key = key_of(77)
    server_name = sender.partition(":")[2]
    return build_event(
        ROOM_VERSIONS[version],
        room_id=room_id,
        sender=sender,
        server_name=server_name,
        key_id=key.key_id,
        signing_key=key.secret,
        **given,
    )


class Rooms:
    """Rooms that keep what they are given; ``answers`` and ``errors`` are by the name of the method."""

    def __init__(self) -> None:
        self.versions = {ROOM: "11"}
        self.kept_out: set[tuple[str, str]] = set()
        self.joined: set[tuple[str, str]] = {(ROOM, "@bob:beta.test")}
        self.received: list[tuple[str, str, list[bytes]]] = []
        self.refusals: dict[str, str] = {}
        self.troubles: dict[str, list[Exception]] = {}
        self.waiting: dict[str, Deferred[None]] = {}
        self.events: dict[str, bytes] = {}
        self.reads: list[int] = []
        self.asked: list[tuple[Any, ...]] = []
        self.answers: dict[str, Any] = {}

    async def room_version(self, room_id: str) -> str | None:
        return self.versions.get(room_id)

    async def check_server(self, room_id: str, server: str) -> None:
        if room_id not in self.versions:
            raise not_found("This server does not know the room.")
        if (room_id, server) in self.kept_out:
            raise forbidden("This server is kept out of the room by its access control list.")

    async def receive(self, origin: str, room_id: str, pdus: list[bytes]) -> dict[str, str]:
        if room_id in self.waiting:
            await self.waiting[room_id]
        troubles = self.troubles.get(room_id)
        if troubles:
            raise troubles.pop(0)
        self.received.append((origin, room_id, pdus))
        return self.refusals

    async def membership(self, room_id: str, user_id: str) -> Membership | None:
        if (room_id, user_id) not in self.joined:
            return None
        return Membership(
            room_id=room_id, user_id=user_id, membership="join", event_id="$x", sender=user_id, position=1
        )

    async def pdus(self, event_ids: list[str]) -> dict[str, bytes]:
        self.reads.append(len(event_ids))
        return {event_id: self.events[event_id] for event_id in event_ids if event_id in self.events}

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_") or name not in self.answers:
            raise AttributeError(name)

        async def call(*args: Any) -> Any:
            self.asked.append((name, *args))
            answer = self.answers[name]
            if isinstance(answer, Exception):
                raise answer
            return answer

        return call


class Users:
    """Users with profiles; keeps receipts."""

    def __init__(self) -> None:
        self.profiles: dict[str, dict[str, Any]] = {}
        self.receipts: list[Receipt] = []

    async def profile_fields(self, user_id: str) -> dict[str, Any] | None:
        return self.profiles.get(user_id)

    async def put_receipts(self, receipts: list[Receipt]) -> None:
        self.receipts += receipts


class Keys:
    """Keys of devices; keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.trouble: list[Exception] = []
        self.lists: dict[str, DeviceList] = {}
        self.queried = QueriedKeys()
        self.claimed = ClaimedKeys()

    async def send_to_device(self, *args: Any) -> None:
        if self.trouble:
            raise self.trouble.pop(0)
        self.told.append(("to_device", *args))

    async def device_list_update(self, *args: Any) -> None:
        self.told.append(("device_list", *args))

    async def signing_key_update(self, *args: Any) -> None:
        self.told.append(("signing_keys", *args))

    async def device_list(self, user_id: str) -> DeviceList:
        if user_id not in self.lists:
            raise not_found("There is no such user, or they have no devices.")
        return self.lists[user_id]

    async def query_keys(self, *args: Any) -> QueriedKeys:
        self.told.append(("query", *args))
        return self.queried

    async def claim_keys(self, *args: Any) -> ClaimedKeys:
        self.told.append(("claim", *args))
        return self.claimed


class InboundCase(SynchronousTestCase):
    """``alpha.test`` is asked by ``beta.test``."""

    takes_presence = True

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_700_000_000)
        self.network = Network(self.clock)
        self.rooms, self.users, self.keys, self.queue = Rooms(), Users(), Keys(), FakeQueue()
        self.database = empty_database()
        self.start()
        self.beta = self.stranger("beta.test", 77)

    def start(self) -> None:
        """The server, also again after a crash."""
        world = test_world(self.clock, self.id())
        self.inbound = Inbound(
            self.database,
            self.rooms,  # type: ignore[arg-type]
            self.users,  # type: ignore[arg-type]
            self.keys,  # type: ignore[arg-type]
            self.queue,
            world,
            "alpha.test",
            self.takes_presence,
        )
        self.alpha = FederationServer(
            self.network, "alpha.test", "192.0.2.1", key_of(1), routes=self.inbound.routes, database=self.database
        )
        self.web = Web(self.alpha.site.resource, self.clock)
        self.successResultOf(Deferred.fromCoroutine(self.inbound.start()))

    def crash(self) -> None:
        """The server is gone, and what was only in its memory with it; then it starts again."""
        self.successResultOf(Deferred.fromCoroutine(self.inbound.stop()))
        self.start()

    def stranger(self, name: str, seed: int) -> Stranger:
        """Another server, whose key has been fetched already."""
        stranger = Stranger(self.network, self.send, name, seed, "alpha.test")
        answer = stranger.get("/v1/query/nothing")
        for _ in range(4):
            self.turns(0.3)
        assert answer.status == 404
        return stranger

    def send(self, method: str, uri: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        answer = self.web.request(method, uri, body, headers=headers)
        self.turns()
        return answer

    def turns(self, seconds: float = 0.0) -> None:
        """Let what is due happen, and what follows from it."""
        self.clock.advance(seconds)
        for _ in range(8):
            self.network.flush()
            self.clock.advance(0)

    def refused(self, answer: Answer, status: int, errcode: str) -> None:
        self.assertEqual((answer.status, answer.errcode), (status, errcode), answer)

    def transaction(self, *events: Event, edus: Any = (), origin: str = "beta.test") -> dict[str, Any]:
        """The body of a transaction."""
        return {
            "origin": origin,
            "origin_server_ts": 1_700_000_000_000,
            "pdus": [event.pdu_dict() for event in events],
            "edus": list(edus),
        }


__all__ = ["ROOM", "Alias", "InboundCase", "MatrixError", "PublicRoom", "escaped", "event_of"]
