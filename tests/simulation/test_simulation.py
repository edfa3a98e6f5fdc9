"""A few storms in every run of the tests, and the same one twice: see `tests.simulation.storm`.

Each is a process of its own, whose sets of strings have a known order, so that a failure can be repeated.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.simulation.host import Host
from tests.simulation.storm import Plan, run

REPOSITORY = Path(__file__).resolve().parent.parent.parent
SEEDS = range(1, 6)
SECONDS = 300


def simulate(*options: str) -> subprocess.CompletedProcess[str]:
    """``python -m tests.simulation`` with some options."""
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation", *options],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


class StormTests(SynchronousTestCase):
    """A test for each of `SEEDS`."""

    def held(self, *options: str) -> str:
        """Play storms; what they printed."""
        done = simulate(*options)
        self.assertEqual(done.returncode, 0, f"\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def test_the_same_seed_has_the_same_trace(self) -> None:
        """Two processes see the same, to the millisecond."""
        digests = [re.findall(r"trace (\w+)", self.held("--seeds", "1", "--seconds", "30")) for _ in range(2)]
        self.assertEqual(len(digests[0]), 1)
        self.assertEqual(digests[0], digests[1])

    def test_several_processes_federate(self) -> None:
        """Each server has three, and they are killed in turn."""
        self.held("--seeds", "2", "--federating", "3", "--seconds", "40")

    def test_many_servers(self) -> None:
        """Five servers with two people each."""
        self.held("--seeds", "1", "--servers", "5", "--people", "2", "--rooms", "1", "--seconds", "40")


def _test_of(seed: int) -> Callable[[StormTests], None]:
    def test(self: StormTests) -> None:
        self.held("--seeds", "1", "--first", str(seed))

    test.__doc__ = f"Seed {seed}."
    return test


for _seed in SEEDS:
    setattr(StormTests, f"test_seed_{_seed}", _test_of(_seed))


class NoticeTests(SynchronousTestCase):
    """What goes wrong is noticed: a simulation that finds nothing must be able to find something."""

    plan = Plan(servers=2, people=2, rooms=1, storm_seconds=10, heal_seconds=60)

    def problems(self, before_checks: Callable[[Host], object]) -> str:
        """What is found after `before_checks` did something to the first server when the storm was over."""
        outcome = run(1, self.plan, lambda storm: before_checks(storm.hosts[0]))
        return "\n".join(outcome.problems)

    def problems_of(self, change: str) -> str:
        """What is found after a change in a server's files, to its newest event by a user of its own."""
        sender = "(SELECT name_nid FROM names WHERE name = '@ant:a.test')"
        newest = f"(SELECT max(position) FROM events WHERE status = 0 AND sender_nid = {sender})"
        sql = f"UPDATE events SET {change} WHERE position = {newest}"
        return self.problems(lambda host: host.rows("room_server", sql))

    def test_all_is_well(self) -> None:
        """Nothing is done, nothing is found."""
        self.assertEqual(self.problems(lambda host: []), "")

    def test_a_lost_event(self) -> None:
        """An event is gone from the timeline."""
        told = self.problems_of("position = 0")
        self.assertIn("a.test: does not show", told)
        self.assertIn("a.test: answered", told)

    def test_an_event_that_was_rejected(self) -> None:
        """An honest event is held to be forged."""
        self.assertIn("a.test: rejected", self.problems_of("status = 2"))

    def test_an_event_out_of_order(self) -> None:
        """Clients were shown events in another order than the server's."""
        self.assertIn("in another order", self.problems_of("position = 1"))

    def test_a_message_between_devices_that_is_lost(self) -> None:
        """Somebody's device never got a message."""
        told = "\n".join(run(1, self.plan, lambda storm: storm.people[1].notes.append(("@ant:a.test", "x"))).problems)
        self.assertIn("was written", told)
