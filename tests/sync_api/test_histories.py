"""Any history, synced at any points: a client ends up with the room as the server has it.

Four clients of one user follow the same rooms: one that keeps state from
``state`` and the timeline, one that takes ``state_after``, one that loads
members lazily, one with a filter on the timeline.  Answers get lost, processes
start anew, the cache is too small.  Each event comes once and in order.
"""

from __future__ import annotations

from random import Random
from typing import Any

from twisted.internet.task import deferLater

from dendrite_tw.room_api.api import RoomEvent
from tests.harness import Answer
from tests.sync_api.fakes import MEMBER
from tests.sync_api.scene import A, B, C, SyncCase

ROOMS = ["!one:test", "!two:test"]
USERS = [A, B, C]
TYPES = ["m.room.name", "m.room.topic", "org.x"]
SEEDS = 40

Slot = tuple[str, str]


class Client:
    """What a client makes of the answers that it gets."""

    def __init__(self, state_after: bool, lazy: bool, limit: int, types: list[str] | None = None) -> None:
        self.token: str | None = None
        self.gaps: dict[str, set[int]] = {}
        self.state_after = state_after
        self.lazy = lazy
        self.types = types
        timeline: dict[str, Any] = {"limit": limit}
        if types is not None:
            timeline["types"] = types
        self.query: dict[str, Any] = {
            "filter": {"room": {"timeline": timeline, "state": {"lazy_load_members": lazy}}},
            "use_state_after": state_after,
        }
        self.starts: list[tuple[str, dict[Slot, str], set[Slot]]] = []
        """For each timeline of the last answer its first event, and the state that the client has before it
        at the slots that the timeline shows."""
        self.timelines: dict[str, list[str]] = {}
        self.states: dict[str, dict[Slot, str]] = {}

    def take(self, answer: Any) -> None:
        self.token = answer["next_batch"]
        self.starts.clear()
        rooms = answer.get("rooms", {})
        for room_id, room in rooms.get("join", {}).items():
            self._joined(room_id, room)
        for room_id in (*rooms.get("leave", {}), *rooms.get("invite", {})):
            self.timelines.pop(room_id, None)
            self.states.pop(room_id, None)

    def _joined(self, room_id: str, room: Any) -> None:
        events = [event["event_id"] for event in room["timeline"]["events"]]
        known = self.timelines.setdefault(room_id, [])
        if room["timeline"]["limited"]:
            known.clear()
        known += events
        assert len(set(known)) == len(known), f"an event came twice: {known}"
        state = self.states.setdefault(room_id, {})
        assert ("state_after" in room) is self.state_after
        assert ("state" in room) is not self.state_after
        positions = [int(event_id.removeprefix("$e")) for event_id in events]
        for gap in self.gaps.get(room_id, ()):
            crossed = bool(positions) and positions[0] < gap <= positions[-1]
            assert not crossed, f"a timeline crosses the gap before $e{gap}: {events}"
            assert gap not in positions or room["timeline"]["limited"], f"nothing is told of the gap before $e{gap}"
        for event in room["state_after" if self.state_after else "state"]["events"]:
            state[event["type"], event["state_key"]] = event["event_id"]
        if not self.state_after:
            if events:
                shown = {(e["type"], e["state_key"]) for e in room["timeline"]["events"] if "state_key" in e}
                self.starts.append((events[0], {slot: e for slot, e in state.items() if slot in shown}, shown))
            for event in room["timeline"]["events"]:
                if "state_key" in event:
                    state[event["type"], event["state_key"]] = event["event_id"]
        if self.lazy:
            for event in room["timeline"]["events"]:
                assert (MEMBER, event["sender"]) in state or event["type"] == "m.room.create", event


WEIGHTS = {
    "message": 20,
    "state": 14,
    "sync": 20,
    "lose": 5,
    "profile": 4,
    "join": 6,
    "leave": 2,
    "ban": 1,
    "unban": 2,
    "invite": 1,
    "many": 1,
    "resolve": 3,
    "restart": 2,
    "gap": 2,
    "rewrite": 1,
}

Play = tuple[str, int, int, int]


def history(chance: Random, length: int, without: str = "") -> list[Play]:
    """Actions, each with a room, a user and a number to choose details by."""
    names = chance.choices(list(WEIGHTS), list(WEIGHTS.values()), k=length)
    return [(name, chance.randrange(2), chance.randrange(3), chance.randrange(4)) for name in names if name != without]


class Slow:
    """An interface whose answers take their time: they are made before or after a wait of random length."""

    def __init__(self, target: Any, time: Any, chance: Random) -> None:
        self._target = target
        self._time = time
        self._chance = chance

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._target, name)

        async def ask(*args: Any) -> Any:
            early = self._chance.random() < 0.5
            result = await method(*args) if early else None
            if self._chance.random() < 0.7:
                await deferLater(self._time, self._chance.random() / 10, lambda: None)
            return result if early else await method(*args)

        return ask


class HistoriesCase(SyncCase):
    """What happens, and what has to come of it."""

    outliers = 0

    def play(self, plays: list[Play], cache_bytes: int, resolutions: bool) -> None:
        self.cache_bytes = cache_bytes
        self.resolved = False
        self.setUp()
        self.begin()
        for action, room, user, number in plays:
            self.act(action, ROOMS[room], USERS[user], number, resolutions)
        for client in self.clients:
            self.follow(client)
        self.check_all()

    def begin(self) -> None:
        self.clients = [
            Client(False, False, 3),
            Client(True, False, 3),
            Client(False, True, 2),
            Client(True, True, 4, ["m.room.message"]),
        ]
        self.gaps: dict[str, set[int]] = {room_id: set() for room_id in ROOMS}
        for client in self.clients:
            client.gaps = self.gaps
        for room_id, visibility in zip(ROOMS, ("shared", "joined"), strict=True):
            self.rooms.create(room_id, B, visibility=visibility)
            self.rooms.join(room_id, C)
        self.rooms.join(ROOMS[0], A)

    def check_all(self) -> None:
        for number, client in enumerate(self.clients):
            for room_id in ROOMS:
                self.compare(client, room_id, f"client {number}, {room_id}")

    def follow(self, client: Client) -> None:
        client.take(self.sync("alice", client.token, **client.query))
        for event_id, state, slots in client.starts:
            room = self.rooms.rooms[self.rooms.by_id[event_id].room_id]
            before = {slot: e.event_id for slot, e in room.before[event_id].items() if slot in slots}
            if client.lazy:
                before, state = ({s: e for s, e in m.items() if s[0] != MEMBER} for m in (before, state))
            if not self.resolved:
                self.assertEqual({slot: state.get(slot) for slot in before}, before, f"before {event_id}")

    def act(self, action: str, room_id: str, user: str, number: int, resolutions: bool) -> None:
        membership = self.membership(room_id, user)
        if action in ("message", "many", "state") and membership == "join":
            for n in range(40 if action == "many" else 1):
                if action == "state":
                    self.rooms.send(room_id, user, TYPES[number % 3], {"n": n}, "k" if number == 3 else "")
                else:
                    self.rooms.message(room_id, user, str(n))
        elif action == "profile" and membership == "join":
            self.rooms.join(room_id, user, displayname=str(number))
        elif action == "join" and membership not in ("join", "ban"):
            self.rooms.join(room_id, user)
        elif action == "leave" and membership in ("join", "invite") and user != B:
            self.rooms.leave(room_id, user)
        elif action in ("ban", "invite", "unban") and user != B:
            allowed = {"ban": ("join", "invite", "leave", None), "invite": ("leave", None), "unban": ("ban",)}
            if membership in allowed[action]:
                self.rooms.member(room_id, B, user, {"ban": "ban", "invite": "invite", "unban": "leave"}[action])
        elif action == "resolve" and resolutions:
            self.resolve(room_id, TYPES[number % 3])
        elif action == "gap":
            others = [self.elsewhere(room_id, TYPES[number % 3])] if resolutions else []
            self.gap(self.rooms.message(room_id, B, "after a gap", gap=True, also_replaced=others))
        elif action == "rewrite" and resolutions:
            others = [self.elsewhere(room_id, TYPES[number % 3]), self.elsewhere(room_id, MEMBER, "@far:far.test")]
            if membership in ("join", "leave") and user != B:
                others.append(self.elsewhere(room_id, MEMBER, user, {"join": "leave", "leave": "join"}[membership]))
            self.gap(self.rooms.message(room_id, B, "in a new light", gap=True, also_replaced=others, rewrites=True))
        elif action == "restart":
            self.restart()
        elif action == "sync":
            self.follow(self.clients[number])
        elif action == "lose":
            client = self.clients[number]
            self.sync("alice", client.token, **client.query)

    def resolve(self, room_id: str, type_: str) -> None:
        """An event after which an earlier state event is current again."""
        room = self.rooms.rooms[room_id]
        current = room.state.get((type_, ""))
        earlier = [e for e in room.events if (e.type, e.state_key) == (type_, "") and e is not current]
        if earlier:
            self.resolved = True
            self.rooms.message(room_id, B, also_replaced=[earlier[0]])

    def gap(self, event: RoomEvent) -> None:
        self.gaps[event.room_id].add(event.position)

    def elsewhere(self, room_id: str, type_: str, key: str = "", membership: str = "join") -> RoomEvent:
        """A state event that was never part of the timeline here."""
        self.outliers += 1
        self.resolved = True
        body = {"membership": membership} if type_ == MEMBER else {"n": self.outliers}
        sender = key if type_ == MEMBER else B
        return self.rooms.outlier(room_id, sender, type_, body, key, f"$outlier{self.outliers}")

    def membership(self, room_id: str, user: str) -> str | None:
        event = self.rooms.rooms[room_id].state.get((MEMBER, user))
        return None if event is None else event.membership

    def compare(self, client: Client, room_id: str, note: str) -> None:
        if self.membership(room_id, A) != "join":
            self.assertNotIn(room_id, client.states, note)
            return
        room = self.rooms.rooms[room_id]
        visible = self.run_now(self.rooms.visible(A, room.events))
        wanted = [e.event_id for e in visible if client.types is None or e.type in client.types]
        told = client.timelines[room_id]
        hidden_state = {e.event_id for e in room.events if e.state_key is not None} - set(wanted)
        known = [event_id for event_id in told if event_id not in hidden_state]
        self.assertEqual(known, wanted[len(wanted) - len(known) :], note)
        self.assertEqual(told, [e.event_id for e in room.events if e.event_id in set(told)], note)
        expected = {slot: event.event_id for slot, event in room.state.items()}
        if client.lazy:
            self.assertTrue(set(client.states[room_id].items()) <= set(expected.items()), note)
            others = {slot: event_id for slot, event_id in expected.items() if slot[0] != MEMBER}
            self.assertEqual({s: e for s, e in client.states[room_id].items() if s[0] != MEMBER}, others, note)
        else:
            self.assertEqual(client.states[room_id], expected, note)


class Histories(HistoriesCase):
    seeds = SEEDS

    def test_clients_follow(self) -> None:
        for seed in range(self.seeds):
            chance = Random(seed)
            with self.subTest(seed=seed):
                self.play(history(chance, 80), chance.choice([1, 20_000, 64 << 20]), resolutions=False)

    def test_clients_follow_resolutions(self) -> None:
        for seed in range(self.seeds):
            with self.subTest(seed=seed):
                chance = Random(seed)
                self.play(history(chance, 80), chance.choice([1, 20_000, 64 << 20]), resolutions=True)

    def test_clients_follow_while_answers_take_time(self) -> None:
        for seed in range(self.seeds):
            with self.subTest(seed=seed):
                self.play_slowly(Random(seed))

    def play_slowly(self, chance: Random) -> None:
        """Events go on happening while syncs are being answered; what is heard comes late."""
        self.cache_bytes = chance.choice([1, 20_000, 64 << 20])
        self.resolved = False
        self.setUp()
        self.begin()
        rooms = self.rooms
        self.rooms = Slow(rooms, self.clock, chance)  # type: ignore[assignment]
        self.restart_slow()
        self.rooms = rooms
        rooms.held = []
        pending: dict[int, Answer] = {}
        for action, room, user, number in history(chance, 80, without="resolve"):
            if action == "restart":
                self.component.notifier.clear()
            elif action in ("sync", "lose"):
                client = self.clients[number]
                if number not in pending:
                    pending[number] = self.ask("alice", client.token, timeout=chance.choice([0, 1000]), **client.query)
            else:
                self.act(action, ROOMS[room], USERS[user], number, False)
            rooms.release(chance.choice([0, 0, 1, 2, 10]))
            self.clock.advance(chance.random() / 10)
            self.collect(pending)
        rooms.release()
        self.clock.pump([0.05] * 400)
        self.collect(pending)
        self.assertEqual(pending, {})
        for number, client in enumerate(self.clients):
            pending[number] = self.ask("alice", client.token, **client.query)
        self.clock.pump([0.05] * 400)
        self.collect(pending)
        self.check_all()

    def restart_slow(self) -> None:
        """A process over slow interfaces, which takes a while to start."""
        self.restart(wait=False)
        self.clock.pump([0.05] * 20)

    def collect(self, pending: dict[int, Answer]) -> None:
        for number, answer in list(pending.items()):
            if answer.done:
                del pending[number]
                self.assertEqual(answer.status, 200, answer.body)
                self.clients[number].take(answer.json)
