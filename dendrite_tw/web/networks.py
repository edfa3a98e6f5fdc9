"""Where requests on behalf of others may go: ``deny_networks`` and ``allow_networks``.

A stranger chooses the names that this server connects to: of homeservers, push gateways, previewed pages.
What counts is the address behind a name, checked once it is known and then connected to without asking again, so
that an answer of the DNS cannot change in between.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from functools import lru_cache

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_LOCAL = {
    ipaddress.ip_address("0.0.0.0"): ipaddress.ip_address("127.0.0.1"),  # noqa: S104
    ipaddress.ip_address("::"): ipaddress.ip_address("::1"),
}
"""A connection to the unspecified address reaches this machine."""


class Networks:
    """Says of an address whether it may be connected to.

    A denied network wins over an allowed one.  An empty list of allowed networks allows all that is not denied, so
    two empty lists check nothing.
    """

    def __init__(self, deny: Sequence[str], allow: Sequence[str]) -> None:
        """Networks as ``address/bits``; `ValueError` for one that is malformed."""
        self._deny = [ipaddress.ip_network(network, strict=False) for network in deny]
        self._allow = [ipaddress.ip_network(network, strict=False) for network in allow]

    @property
    def checks(self) -> bool:
        """Whether any address could be refused."""
        return bool(self._deny or self._allow)

    def permits(self, address: str) -> bool:
        """Whether `address`, an IPv4 or IPv6 literal, may be connected to; text of another kind may not."""
        if not self.checks:
            return True
        try:
            readings = _readings(address)
        except ValueError:
            return False
        if any(reading in network for reading in readings for network in self._deny):
            return False
        return not self._allow or any(readings[0] in network for network in self._allow)

    def permitted(self, addresses: Iterable[str]) -> list[str]:
        """Those of `addresses` that may be connected to, in their order."""
        return [address for address in addresses if self.permits(address)]


@lru_cache(maxsize=1024)
def _readings(text: str) -> list[Address]:
    """The address that a connection to `text` reaches, and what else it may reach: an IPv4 address inside it."""
    address = ipaddress.ip_address(text.partition("%")[0])
    address = _LOCAL.get(address, address)
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    if address.ipv4_mapped is not None:
        return [_LOCAL.get(address.ipv4_mapped, address.ipv4_mapped)]
    readings: list[Address] = [address]
    if address.sixtofour is not None:
        readings.append(address.sixtofour)
    if address in _NAT64:
        readings.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return readings
