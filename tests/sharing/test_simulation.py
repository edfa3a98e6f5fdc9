"""Processes come, stop, die, stand still and lose the database, by a seed: one holder at a time, and soon one again."""

from __future__ import annotations

import random

from tests.sharing.support import Process
from tests.sharing.test_leases import NAMES, LeasesCase

SEEDS = 6
STEPS = 60
CALM = 5.0
"""Seconds after which every lease has a holder again."""


class SimulationTests(LeasesCase):
    def test_storms(self) -> None:
        for seed in range(SEEDS):
            self.setUp()
            self.storm(seed)

    def storm(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.seed = seed
        self.live: list[Process] = []
        self.stopping: list[Process] = []
        for _ in range(2):
            self.join()
        for _ in range(STEPS):
            self.something_happens()
            self.pass_time(self.chance.choice([0.05, 0.2, 0.5, 1.0, 3.0]))
        for process in self.live:
            process.paused = process.database.away = process.slow = False
            process.finish_draining()
        self.pass_time(CALM)
        self.assertTrue(self.all_held(), f"seed {seed}")
        loads = [len(process.held()) for process in self.live]
        self.assertLessEqual(max(loads), -(-len(NAMES) // len(self.live)), f"seed {seed}: {loads}")
        self.pass_time(3)
        self.assertEqual(loads, [len(process.held()) for process in self.live], f"seed {seed}: it does not settle")

    def join(self) -> None:
        process = Process(self.shore, self.chance.randrange(1 << 30), list(NAMES))
        process.slow = self.chance.random() < 0.3
        self.processes.append(process)
        self.live.append(process)
        process.start()
        process.database.delay = lambda: self.chance.choice([0.0, 0.0, 0.02, 0.1])

    def something_happens(self) -> None:
        process = self.chance.choice(self.live)
        match self.chance.randrange(7):
            case 0 if len(self.live) < 5:
                self.join()
            case 1 if len(self.live) > 2:
                self.live.remove(process)
                process.slow = False
                process.stop().addCallback(lambda _: process.kill())
                process.finish_draining()
            case 2 if len(self.live) > 1:
                self.live.remove(process)
                process.kill()
            case 3:
                process.paused = True
            case 4:
                process.paused = process.database.away = False
            case 5:
                process.database.away = True
            case _:
                process.finish_draining()

    def check(self) -> None:
        try:
            super().check()
        except self.failureException as error:
            raise self.failureException(f"seed {self.seed}: {error}") from error
