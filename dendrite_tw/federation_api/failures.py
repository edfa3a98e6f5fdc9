"""Who signs wrongly too often is not listened to for a while.

To check a request's signature its body must be read and written in canonical form, and its server may have to be asked
for keys: work that anybody can cause who names a server and signs with nonsense.  A success forgives what was wrong
before, so that a server whose keys could not be had for a moment loses nothing.
"""

from __future__ import annotations

from collections import OrderedDict

from ..matrix.errors import limit_exceeded
from ..world import Clock

BURST_OF_NAME = 20
BURST_OF_ADDRESS = 200
"""How many requests in a row may fail that come from one address in the name of one server, and in all names."""

FORGIVEN_MS = 3_000
"""After so long one failure of a name at an address is forgotten; of an address as a whole, ten of them are."""

REMEMBERED = 50_000
"""How many names and addresses are kept in mind; those that failed longest ago are forgotten first."""


class FailedRequests:
    """Counts the requests that were not signed by whom they named."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._buckets: OrderedDict[tuple[str, str], tuple[float, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def check(self, address: str, server_name: str) -> None:
        """Raise ``M_LIMIT_EXCEEDED`` if too much of what came from there was signed wrongly."""
        for name, burst, forgiven in self._measures(server_name):
            above = self._level(address, name, forgiven) + 1 - burst
            if above > 0:
                raise limit_exceeded(max(1, int(above * forgiven)))

    def failed(self, address: str, server_name: str) -> None:
        """A request was not signed as it should be."""
        now = self._clock.now_ms()
        for name, burst, forgiven in self._measures(server_name):
            level = min(self._level(address, name, forgiven) + 1, float(burst))
            self._buckets[address, name] = (level, now)
            self._buckets.move_to_end((address, name))
        while len(self._buckets) > REMEMBERED:
            self._buckets.popitem(last=False)

    def passed(self, address: str, server_name: str) -> None:
        """A request was signed by the server that it named."""
        self._buckets.pop((address, server_name), None)

    def _measures(self, server_name: str) -> list[tuple[str, int, float]]:
        return [(server_name, BURST_OF_NAME, FORGIVEN_MS), ("", BURST_OF_ADDRESS, FORGIVEN_MS / 10)]

    def _level(self, address: str, name: str, forgiven: float) -> float:
        level, since = self._buckets.get((address, name), (0.0, 0))
        return max(0.0, level - max(0, self._clock.now_ms() - since) / forgiven)
