"""The keys of other servers as several processes know them: what one stores the others read."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.federation_api.api import KeysWanted
from dendrite_tw.federation_api.keyring import KeyRing
from dendrite_tw.federation_api.signing_keys import OwnKeys
from dendrite_tw.world import ReactorClock

from .network import key_of
from .several import Deployment, Process
from .test_keyring import DAY_MS, KEY, NOW, OTHER, Fetcher, document


class Ring(Process):
    """A process that looks for keys."""

    def __init__(self, deployment: Deployment, name: str, fetcher: Fetcher) -> None:
        super().__init__(deployment, name)
        clock = ReactorClock(self.clock)
        own = OwnKeys("us.test", key_of(7), [], 7 * DAY_MS, clock)
        self.ring = KeyRing(own, self.database, fetcher, self.clock, clock, echoes=self.echoes)

    def known(self, ts: int = NOW) -> Deferred[list[str]]:
        """The ids of the keys that it finds, those with an end marked."""
        wanted = KeysWanted(server_name="a.test", key_ids=[KEY.key_id, OTHER.key_id], ts=ts)

        async def ids() -> list[str]:
            found = await self.ring.fetch([wanted])
            return sorted(f"{key.key_id}{'' if key.expired_ts is None else ' expired'}" for key in found)

        return Deferred.fromCoroutine(ids())


class SeveralRingsTests(SynchronousTestCase):
    def setUp(self) -> None:
        clock = Clock()
        clock.advance(NOW // 1000)
        self.fetcher = Fetcher()
        self.fetcher.documents["a.test"] = document()
        self.made = Deployment(clock, 1)
        self.one, self.other = (Ring(self.made, name, self.fetcher) for name in ("one", "other"))

    def ask(self, ring: Ring) -> list[str]:
        found = ring.known()
        self.made.pass_time(0.5)
        return self.successResultOf(found)

    def test_what_one_fetched_the_other_finds(self) -> None:
        self.assertEqual(self.ask(self.one), self.ask(self.other))
        self.fetcher.documents["a.test"] = document(keys=[KEY, OTHER])
        self.made.pass_time(6)
        self.assertEqual(self.ask(self.one), [KEY.key_id, OTHER.key_id])
        asked = len(self.fetcher.asked)
        self.assertEqual(self.ask(self.other), [KEY.key_id, OTHER.key_id])
        self.assertEqual(len(self.fetcher.asked), asked)

    def test_what_is_stored_while_it_is_read_is_read_again(self) -> None:
        self.ask(self.one)
        self.fetcher.documents["a.test"] = document(keys=[KEY, OTHER])
        self.made.pass_time(6)
        for seed in range(20):
            self.made.chance.seed(seed)
            self.other.ring.forget()
            self.one.ring._asked.clear()
            both = [self.one.known(), self.other.known()]
            self.made.pass_time(0.5)
            for found in both:
                self.successResultOf(found)
            self.assertEqual(self.ask(self.other), [KEY.key_id, OTHER.key_id], seed)

    def test_nothing_is_kept_that_may_be_out_of_date(self) -> None:
        self.ask(self.other)
        self.other.echoes.lose(1000)
        self.ask(self.other)
        self.fetcher.documents["a.test"] = document(keys=[KEY, OTHER])
        self.made.pass_time(6)
        self.ask(self.one)
        asked = len(self.fetcher.asked)
        self.assertEqual(self.ask(self.other), [KEY.key_id, OTHER.key_id])
        self.assertEqual(len(self.fetcher.asked), asked)
        self.made.pass_time(1000, 1)
        self.assertEqual(self.other.ring._known.keys(), set())
