"""From a server name to addresses, as a generator that asks.

Specification: Server-Server API, "Resolving server names".  `resolve` yields
questions (`FetchWellKnown`, `LookUpSRV`, `LookUpAddresses`), is sent the answers, and
returns `Target`s in the order in which they are to be tried.  Who answers decides
about the network: time limits, redirects, address filters, caches.

What TLS must prove is always the name that was asked for or delegated to over
HTTPS, never one that came from DNS alone.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Generator, Iterable, Sequence
from typing import NamedTuple

import msgspec
import orjson

from dendrite_tw.matrix.identifiers import is_server_name

DEFAULT_PORT = 8448

HOUR_MS = 60 * 60 * 1000
WELL_KNOWN_DEFAULT_MS = 24 * HOUR_MS
WELL_KNOWN_MAXIMUM_MS = 48 * HOUR_MS
WELL_KNOWN_MINIMUM_MS = 5 * 60 * 1000
"""A server that forbids caching would else be asked again for every request to it."""
WELL_KNOWN_FIRST_ERROR_MS = 60 * 1000
WELL_KNOWN_MAXIMUM_ERROR_MS = HOUR_MS

MAX_WELL_KNOWN_BYTES = 51_200
MAX_WELL_KNOWN_REDIRECTS = 5
MAX_SRV_RECORDS = 16
MAX_ADDRESSES = 16
"""How much of an answer is used; the rest is forgotten."""

_SERVICES = ("_matrix-fed._tcp", "_matrix._tcp")


class NoAddress(Exception):
    """The name exists nowhere that could be asked; the text says what was looked for."""


class ServerName(NamedTuple):
    """A server name taken apart."""

    host: str
    """A DNS name, an IPv4 address or an IPv6 address without brackets."""
    port: int | None
    literal: bool
    """Whether the host is an IP address."""


def parse_server_name(name: str) -> ServerName:
    """Take a server name apart; `ValueError` if it is none (appendices, "Server Name")."""
    if not is_server_name(name):
        raise ValueError("not a server name")
    if name.startswith("["):
        host, _, port = name[1:].partition("]")
        return ServerName(host, int(port[1:]) if port else None, True)
    host, _, port = name.partition(":")
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        literal = False
    else:
        literal = True
    return ServerName(host, int(port) if port else None, literal)


# --- questions and answers ------------------------------------------------------------------------


class FetchWellKnown(msgspec.Struct, frozen=True):
    """``GET https://<host>/.well-known/matrix/server``, with ordinary certificate checks.

    Follow at most `MAX_WELL_KNOWN_REDIRECTS`, and read no more than `MAX_WELL_KNOWN_BYTES`.  The answer is the
    value of ``m.server`` (`WellKnown.server` of `read_well_known`, which may be cached), or `None`.
    """

    host: str


class LookUpSRV(msgspec.Struct, frozen=True):
    """SRV records; the answer is a sequence of `SRVRecord`, empty if there are none or the query failed."""

    name: str


class LookUpAddresses(msgspec.Struct, frozen=True):
    """A and AAAA records, through CNAME if ``alias``; the answer is a sequence of addresses as text."""

    host: str
    alias: bool = True


class SRVRecord(msgspec.Struct, frozen=True):
    """One answer to `LookUpSRV`, as in RFC 2782."""

    priority: int
    weight: int
    port: int
    target: str


Question = FetchWellKnown | LookUpSRV | LookUpAddresses
Answer = str | None | Sequence[SRVRecord] | Sequence[str]
Discovery = Generator[Question, Answer, list["Target"]]


class Target(msgspec.Struct, frozen=True):
    """One address to connect to, with all that the connection needs."""

    address: str
    """An IPv4 or IPv6 address."""
    port: int
    host_header: str
    certificate_name: str
    """What the certificate must be for: a DNS name or an IP address."""
    sni: str | None
    """The server name to send in TLS; `None` for an IP address, which has none."""


# --- the steps ------------------------------------------------------------------------------------


def resolve(server_name: str) -> Discovery:
    """Where the server of that name is to be found, best first; at least one target.

    Raises `ValueError` if it is no server name, and `NoAddress`.
    """
    name = parse_server_name(server_name)
    if name.literal or name.port is not None:
        return (yield from _direct(name, server_name))
    delegated = yield FetchWellKnown(name.host)
    if isinstance(delegated, str) and is_server_name(delegated):
        return (yield from _delegated(delegated))
    return (yield from _by_records(name.host))


def _delegated(server_name: str) -> Discovery:
    name = parse_server_name(server_name)
    if name.literal or name.port is not None:
        return (yield from _direct(name, server_name))
    return (yield from _by_records(name.host))


def _direct(name: ServerName, host_header: str) -> Discovery:
    """Steps 1 and 2, 3.1 and 3.2: an address, or a name with its port."""
    port = DEFAULT_PORT if name.port is None else name.port
    if name.literal:
        return [Target(name.host, port, host_header, name.host, None)]
    addresses = yield from _addresses(name.host)
    return _targets(addresses, port, host_header, name.host) or _nowhere(name.host)


def _by_records(host: str) -> Discovery:
    """Steps 3.3 to 3.5, and 4 to 6: SRV records under either service, else the name itself."""
    for service in _SERVICES:
        records = yield LookUpSRV(f"{service}.{host}")
        found = _srv_order(records)
        if found is not None:
            return (yield from _by_srv(host, found))
    addresses = yield from _addresses(host)
    return _targets(addresses, DEFAULT_PORT, host, host) or _nowhere(host)


def _by_srv(host: str, records: Sequence[SRVRecord]) -> Discovery:
    targets: list[Target] = []
    for record in records:
        # The target of an SRV record must not be an alias (RFC 2782).
        addresses = yield from _addresses(record.target.rstrip("."), alias=False)
        targets += _targets(addresses, record.port, host, host)
        if len(targets) >= MAX_ADDRESSES:
            break
    return targets[:MAX_ADDRESSES] or _nowhere(host)


def _addresses(host: str, *, alias: bool = True) -> Generator[Question, Answer, list[str]]:
    answer = yield LookUpAddresses(host, alias)
    found = answer if isinstance(answer, Sequence) and not isinstance(answer, str) else ()
    return [one for one in found if isinstance(one, str)][:MAX_ADDRESSES]


def _targets(addresses: Iterable[str], port: int, host_header: str, name: str) -> list[Target]:
    return [Target(address, port, host_header, name, name) for address in addresses]


def _nowhere(host: str) -> list[Target]:
    raise NoAddress(f"no address for {host}")


def _srv_order(records: Answer) -> list[SRVRecord] | None:
    """The records by priority and weight, or `None` if there are none.

    Where records share a priority, the heavier come first: a choice by chance is left to who answers, by
    the order in which equals are given.  A single record for the root says that the service is not
    offered here (RFC 2782); no record then remains to be tried.
    """
    if records is None or isinstance(records, str):
        return None
    found = [record for record in records if isinstance(record, SRVRecord)][:MAX_SRV_RECORDS]
    if not found:
        return None
    offered = [record for record in found if record.target.rstrip(".") and 0 < record.port < 65536]
    return sorted(offered, key=lambda record: (record.priority, -record.weight))


# --- well-known -----------------------------------------------------------------------------------


class WellKnown(msgspec.Struct, frozen=True):
    """What a fetch of ``/.well-known/matrix/server`` told, to be cached."""

    server: str | None
    """The delegated server name; `None` after a failure of any kind."""
    fresh_for_ms: int
    failures: int = 0
    """How many fetches have failed in a row, this one included."""


def read_well_known(
    status: int,
    body: bytes,
    *,
    cache_control: str | None = None,
    age: str | None = None,
    expires_in_ms: int | None = None,
) -> WellKnown | None:
    """Read a response; `None` if it is not valid, to be counted with `well_known_failed`.

    ``cache_control`` and ``age`` are the headers of these names (several joined by commas); ``expires_in_ms`` is
    the time from the response's ``Date`` to its ``Expires``, if it has both.
    """
    if status != 200 or len(body) > MAX_WELL_KNOWN_BYTES:
        return None
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    server = document.get("m.server") if isinstance(document, dict) else None
    if not is_server_name(server):
        return None
    return WellKnown(server, _freshness(cache_control, age, expires_in_ms))


def well_known_failed(previous: WellKnown | None) -> WellKnown:
    """What to cache when a fetch failed: for a minute, then twice as long each time, up to an hour.

    ``previous`` is what was cached before, if anything.
    """
    failures = 1 + (previous.failures if previous is not None else 0)
    delay = WELL_KNOWN_FIRST_ERROR_MS << min(failures - 1, 16)
    return WellKnown(None, min(delay, WELL_KNOWN_MAXIMUM_ERROR_MS), failures)


def _freshness(cache_control: str | None, age: str | None, expires_in_ms: int | None) -> int:
    directives = _directives(cache_control or "")
    if "no-store" in directives or "no-cache" in directives:
        return WELL_KNOWN_MINIMUM_MS
    seconds = _seconds(directives.get("max-age"))
    if seconds is not None:
        fresh = (seconds - (_seconds(age) or 0)) * 1000
    elif expires_in_ms is not None:
        fresh = expires_in_ms
    else:
        fresh = WELL_KNOWN_DEFAULT_MS
    return max(WELL_KNOWN_MINIMUM_MS, min(fresh, WELL_KNOWN_MAXIMUM_MS))


def _directives(cache_control: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in cache_control.split(","):
        name, _, value = part.partition("=")
        found.setdefault(name.strip().lower(), value.strip().strip('"'))
    return found


def _seconds(text: str | None) -> int | None:
    text = (text or "").strip()
    if not (text.isascii() and text.isdigit()):
        return None
    return min(int(text[:10]), 2**31)
