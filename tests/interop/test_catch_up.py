"""A server is away for a while, in order or not; afterwards it and the others have all that was said meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote

from tests.interop.devices import Keys
from tests.interop.homeservers import Homeserver, OurHomeserver
from tests.interop.pair import PairTestCase, Play
from tests.interop.people import Person, eventually
from tests.interop.stories import meet, same_state

MANY = 70
"""More events than one transaction carries."""


def talk(person: Person, room: str, count: int = MANY) -> list[str]:
    """So many messages; their ids."""
    return [person.say(room, f"{person} {number}") for number in range(count)]


def has_all(person: Person, room: str, expected: list[str]) -> None:
    """Wait until the events are in the history as it is read, each once and in this order."""

    def look() -> bool:
        seen = [event["event_id"] for event in person.history(room)][::-1]
        assert len(seen) == len(set(seen)), "an event was shown twice"
        return [event for event in seen if event in set(expected)] == expected

    eventually(look, f"{person} reads {len(expected)} events of {room}", 40)


class AwayTests(PairTestCase):
    """Each scene is played with either server away."""

    def setUp(self) -> None:
        super().setUp()
        self.addCleanup(self.all_back)

    def all_back(self) -> None:
        """Whatever a failed scene left behind, the next one begins with two running servers."""
        for server in self.pair.both():
            if server.process.ended():
                server.start()

    def away_and_back(self, away: Homeserver, stays: Homeserver, leave: Callable[[], None]) -> None:
        """One room of each, talk and changes in both while `away` is away, and both go on afterwards."""
        version = "11"
        here, there, room = meet(Play(stays, away, version))
        guest, owner, other = meet_as_guest(stays, away, version)
        here.sees_membership(room, there, "join")
        # Settled: who is away has heard of everything so far.
        there.sees(room, here.say(room, "before"))
        owner.sees(other, guest.say(other, "before"))
        leave()
        said = talk(here, room)
        heard = talk(guest, other)
        here.set_state(room, "m.room.topic", {"topic": "While you were out"})
        newcomer = stays.person("newcomer")
        newcomer.join(room, stays.server_name)
        away.start()
        has_all(there, room, said)
        has_all(owner, other, heard)
        eventually(lambda: there.content(room, "m.room.topic")["topic"] == "While you were out", "the topic", 40)
        there.sees_membership(room, newcomer, "join")
        here.sees(room, there.say(room, "back"))
        guest.sees(other, owner.say(other, "back"))
        same_state(room, here, there)
        same_state(other, guest, owner)

    def test_synapse_is_away(self) -> None:
        """Synapse is stopped and started: our queue waits and delivers."""
        ours, synapse = self.pair.both()
        self.play(lambda: self.away_and_back(synapse, ours, synapse.stop))

    def test_ours_is_away(self) -> None:
        """Ours is stopped and started: it takes what Synapse kept for it."""
        ours, synapse = self.pair.both()
        self.play(lambda: self.away_and_back(ours, synapse, ours.stop))

    def test_ours_is_killed(self) -> None:
        """The same after ``kill -9``."""
        ours, synapse = self.pair.both()
        self.play(lambda: self.away_and_back(ours, synapse, ours.kill))

    def test_killed_while_it_sends_and_receives(self) -> None:
        """``kill -9`` of ours while both talk: nothing that was answered is lost, and nothing is there twice."""
        ours, synapse = self.pair.both()

        def scene() -> None:
            here, there, room = meet(Play(ours, synapse, "10"))
            here.sees_membership(room, there, "join")
            mine, theirs = [], []
            for _ in range(3):
                for _ in range(12):
                    mine.append(here.say(room, "from ours"))
                    theirs.append(there.say(room, "from Synapse"))
                ours.kill()
                theirs += [there.say(room, "while ours is gone") for _ in range(5)]
                ours.start()
            has_all(there, room, mine)
            has_all(here, room, theirs)
            same_state(room, here, there)

        self.play(scene)

    def test_both_go_on_alone(self) -> None:
        """Each talks and changes things while the other is away; then they agree."""
        ours, synapse = self.pair.both()

        def scene() -> None:
            here, there, room = meet(Play(ours, synapse, "10"))
            levels = here.content(room, "m.room.power_levels")
            levels["users"] = {**levels.get("users", {}), there.user_id: 50}
            here.set_state(room, "m.room.power_levels", levels)
            eventually(lambda: there.content(room, "m.room.power_levels") == levels, "power")
            synapse.stop()
            mine = talk(here, room, 20)
            here.set_state(room, "m.room.name", {"name": "ours"})
            banned = ours.person("banned")
            banned.join(room, ours.server_name)
            here.ban(room, banned)
            ours.stop()
            synapse.start()
            theirs = talk(there, room, 20)
            there.set_state(room, "m.room.name", {"name": "synapse's"})
            ours.start()
            here.sees(room, there.say(room, "again"))
            there.sees(room, here.say(room, "again"))
            has_all(there, room, mine)
            has_all(here, room, theirs)
            there.sees_membership(room, banned, "ban")
            same_state(room, here, there)

        self.play(scene)

    def test_messages_between_devices_wait(self) -> None:
        """To-device messages and the keys of a new device reach a server that was away."""
        for away, stays in (self.pair.both(), self.pair.both()[::-1]):
            self.play(lambda away=away, stays=stays: self.devices_wait(away, stays))  # type: ignore[misc]

    def devices_wait(self, away: Homeserver, stays: Homeserver) -> None:
        here, there, room = meet(Play(stays, away, "10"))
        here.sees_membership(room, there, "join")
        Keys(here).upload()
        there.post("/keys/query", {"device_keys": {here.user_id: []}})
        there.sync()
        away.stop()
        for number in range(3):
            body = {"messages": {there.user_id: {there.device_id: {"n": number}}}}
            here.put(f"/sendToDevice/org.example.note/{here.device_id}{number}", body)
        second = here.login()
        Keys(second).upload()
        away.start()
        arrived: list[int] = []

        def all_three() -> bool:
            events = there.sync(timeout=250).get("to_device", {}).get("events", [])
            arrived.extend(event["content"]["n"] for event in events)
            return len(arrived) >= 3

        eventually(all_three, "three messages", 40)
        self.assertEqual(arrived, [0, 1, 2])

        def devices() -> set[str]:
            return set(there.post("/keys/query", {"device_keys": {here.user_id: []}})["device_keys"][here.user_id])

        eventually(lambda: devices() == {here.device_id, second.device_id}, "the second device", 40)


def meet_as_guest(guest_at: Homeserver, host_at: Homeserver, version: str) -> tuple[Person, Person, str]:
    """A guest of one server in a room of the other."""
    owner, guest, room = meet(Play(host_at, guest_at, version))
    owner.sees_membership(room, guest, "join")
    return guest, owner, room


class CertificateTests(PairTestCase):
    """Certificates of an authority that is unknown are refused, unless nobody cares."""

    def test_an_unknown_authority(self) -> None:
        """With ``disable_tls_validation`` a certificate of a stranger will do; without, it will not."""
        ours, synapse = self.pair.both()
        if not isinstance(ours, OurHomeserver):
            return
        self.addCleanup(self.settle, ours, True)

        def scene() -> None:
            owner = synapse.person("owner")
            room = owner.create_room("10")
            self.settle(ours, trusting=False)
            guest = ours.person("guest")
            guest.failed("POST", f"/join/{quote(room)}?via={synapse.server_name}")
            ours.validate = False
            self.settle(ours, trusting=False)
            guest.join(room, synapse.server_name)
            owner.sees(room, guest.say(room, "Never mind who you are."))
            guest.sees(room, owner.say(room, "Hello"))

        self.play(scene)

    def settle(self, ours: OurHomeserver, trusting: bool) -> None:
        """Start ours anew, with the tests' authority trusted or not."""
        ours.stop()
        if trusting:
            ours.validate = True
        ours.trusts_authority = trusting
        ours.configure()
        ours.start()
