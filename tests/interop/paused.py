"""A process of a shared database that writes for ever; a test stops it in the middle of a transaction.

    python -m tests.interop.paused CONNECTION-STRING

Prints the key of each write that was promised, and ``fenced`` when it was told that others took over.
"""

from __future__ import annotations

import sys

from twisted.internet import reactor, task
from twisted.internet.defer import Deferred

from dendrite_tw.database.addresses import dsn_of
from dendrite_tw.database.engines import Fenced, Unavailable
from dendrite_tw.database.postgresql import PostgreSQLDatabase
from dendrite_tw.database.statements import Transaction, one
from tests.database.test_engines import insert

ALIVE = "SELECT EXISTS (SELECT 1 FROM alive WHERE name = 'paused')"


@one(int, "SELECT COUNT(*) FROM pg_sleep(0.6)")
def slow(txn: Transaction) -> None: ...


async def slowly(txn: Transaction, key: str) -> None:
    """A transaction in whose middle there is time to be stopped."""
    await insert(txn, 1, f"{key} first")
    await slow(txn)
    await insert(txn, 1, f"{key} second")


def say(text: str) -> None:
    print(text, flush=True)


async def work(database: PostgreSQLDatabase) -> None:
    for number in range(1000):
        say(f"begun {number}")
        try:
            await database.write(slowly, f"paused {number}")
            say(f"stored {number}")
        except Fenced:
            await task.deferLater(reactor, 0.02, lambda: None)  # type: ignore[arg-type]
        except Unavailable:
            say("lost")


def main() -> None:
    database = PostgreSQLDatabase(dsn_of(sys.argv[1]), reactor, shared="pairs")
    database.fence(ALIVE, lambda: say("fenced"))
    reactor.callWhenRunning(lambda: Deferred.fromCoroutine(work(database)))  # type: ignore[attr-defined]
    reactor.run()  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
