"""Who signs wrongly too often is not listened to for a while.

To check a request's signature its body must be read and written in canonical form, and its server may have to be asked
for keys: work that anybody can cause who names a server and signs with nonsense.  A success forgives what was wrong
before, so that a server whose keys could not be had for a moment loses nothing.
"""

from __future__ import annotations

from ..matrix.errors import limit_exceeded
from ..world import Clock
from .buckets import Buckets

BURST_OF_NAME = 20
BURST_OF_ADDRESS = 200
"""How many requests in a row may fail that come from one address in the name of one server, and in all names."""

FORGIVEN_MS = 3_000
"""After so long one failure of a name at an address is forgotten; of an address as a whole, ten of them are."""

REMEMBERED = 50_000
"""How many names at addresses, and addresses, are kept in mind."""


class FailedRequests:
    """Counts the requests that were not signed by whom they named."""

    def __init__(self, clock: Clock) -> None:
        self._of_name: Buckets[tuple[str, str]] = Buckets(clock, BURST_OF_NAME, FORGIVEN_MS, REMEMBERED)
        self._of_address: Buckets[str] = Buckets(clock, BURST_OF_ADDRESS, FORGIVEN_MS / 10, REMEMBERED)

    def __len__(self) -> int:
        return len(self._of_name) + len(self._of_address)

    def check(self, address: str, server_name: str) -> None:
        """Raise ``M_LIMIT_EXCEEDED`` if too much of what came from there was signed wrongly."""
        wait = max(self._of_name.wait_ms((address, server_name)), self._of_address.wait_ms(address))
        if wait:
            raise limit_exceeded(wait)

    def failed(self, address: str, server_name: str) -> None:
        """A request was not signed as it should be."""
        self._of_name.add((address, server_name))
        self._of_address.add(address)

    def passed(self, address: str, server_name: str) -> None:
        """A request was signed by the server that it named."""
        self._of_name.empty((address, server_name))
