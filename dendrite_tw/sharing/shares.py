"""What is shared, and who is to have it.

Rooms are too many to be leased one by one; they are leased in `SHARES` parts.  Who of the live processes is to hold
which lease everybody works out alike, from nothing but the names (`spread`), so there is nobody who deals them out.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Final

SHARES: Final = 64
"""In how many parts rooms are leased; every process of a deployment must count alike, so it never changes."""


def share_of(key: str) -> int:
    """The share that a room (or what else is shared) belongs to: 0 to `SHARES` - 1."""
    return zlib.crc32(key.encode("utf-8", "surrogatepass")) % SHARES


def lease_of(share: int) -> str:
    """The name of the lease on a share of the rooms."""
    return f"r{share}"


ROOM_LEASES: Final = tuple(map(lease_of, range(SHARES)))


def spread(wants: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Lease to process, given what each live process wants: evenly, and mostly the same when one comes or goes.

    Rendezvous hashing: each lease goes to the process that scores highest for it, unless that one has its full part.
    """
    wanted: dict[str, list[str]] = {}
    for process, names in wants.items():
        for name in names:
            wanted.setdefault(name, []).append(process)
    most = -(-len(wanted) // len(wants)) if wants else 0
    loads = dict.fromkeys(wants, 0)
    chosen: dict[str, str] = {}
    for name in sorted(wanted):
        ranked = sorted(wanted[name], key=lambda process: _score(name, process), reverse=True)
        chosen[name] = next((process for process in ranked if loads[process] < most), ranked[0])
        loads[chosen[name]] += 1
    return chosen


def _score(name: str, process: str) -> bytes:
    return blake2b(f"{name} {process}".encode(), digest_size=8).digest()
