"""Where a PostgreSQL server is: connection strings, and the addresses behind their names.

A connection string may name several servers, as with libpq and Go's lib/pq: of a primary and its
standbys, with ``target_session_attrs=read-write``, the one that takes writes is used.  Each address
is tried by itself, so that one that does not answer leaves time for the others.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from typing import Any

import psycopg2
from psycopg2.extensions import make_dsn, parse_dsn
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.threads import deferToThreadPool

CONNECT_SECONDS = 10.0
"""How long the servers of a connection string may take to let us in, all together."""

MOST_ADDRESSES = 4
"""How many addresses of a host are tried."""

_UNKNOWN = re.compile(r'invalid (?:URI query parameter|connection option)[ :]+"\w+"')
"""What libpq says of a parameter that it does not know; its other complaints may quote a password."""

_GO_ONLY = ("binary_parameters", "disable_prepared_binary_result")


def dsn_of(connection_string: str) -> str:
    """What libpq wants to hear for a connection string of Go's lib/pq.

    Takes ``postgres://``, ``postgresql://`` and ``key=value``; the host is localhost where none is
    named, as with Go's driver.  Raises `ValueError` for what is neither.
    """
    text = connection_string
    for name in _GO_ONLY:
        text = _without(text, name)
    try:
        given = parse_dsn(text)
    except (psycopg2.Error, UnicodeError) as error:
        unknown = _UNKNOWN.search(str(error))
        raise ValueError(unknown.group(0) if unknown else "neither a URI nor key=value") from None
    known = {
        "host": "localhost",
        "connect_timeout": str(int(CONNECT_SECONDS)),
        "keepalives_idle": "30",
        "keepalives_interval": "10",
        "keepalives_count": "3",
        "tcp_user_timeout": "30000",
        "application_name": "dendrite_tw",
    }
    if "hostaddr" in given or "service" in given:
        del known["host"]
    return str(make_dsn(**{**known, **given, "client_encoding": "UTF8"}))


def _without(text: str, name: str) -> str:
    """The connection string without a parameter that only Go's driver knows."""
    if "://" in text:
        base, mark, query = text.partition("?")
        kept = [part for part in query.split("&") if part.partition("=")[0] != name]
        return base + (mark + "&".join(kept) if any(kept) else "")
    return " ".join(part for part in text.split(" ") if part.partition("=")[0] != name)


def servers_of(dsn: str) -> list[dict[str, str]]:
    """The servers that a connection string names, in order: what it says of each (host, hostaddr, port)."""
    given = parse_dsn(dsn)
    lists = {key: given[key].split(",") for key in ("host", "hostaddr", "port") if key in given}
    count = max((len(lists[key]) for key in ("host", "hostaddr") if key in lists), default=1)
    servers = []
    for index in range(count):
        own = {key: values[index] if index < len(values) else values[-1] for key, values in lists.items()}
        servers.append({key: value for key, value in own.items() if value})
    return servers


def each_server(dsn: str) -> list[str]:
    """A connection string for each server to try, names as they are."""
    common = _common(dsn)
    return [str(make_dsn(**common, **server)) for server in servers_of(dsn)]


def _common(dsn: str) -> dict[str, str]:
    """What a connection string says that is not of one server."""
    return {key: value for key, value in parse_dsn(dsn).items() if key not in ("host", "hostaddr", "port")}


async def places_of(dsn: str, reactor: Any) -> list[str]:
    """A connection string for each address to try: libpq would look names up while all else waits."""
    common = _common(dsn)
    places = []
    refused: OSError | None = None
    for server in servers_of(dsn):
        try:
            found = await _addresses(server, reactor)
        except OSError as error:
            refused = error
            continue
        places += [str(make_dsn(**common, **server, **more)) for more in found]
    if not places and refused is not None:
        raise refused
    return places


async def _addresses(server: dict[str, str], reactor: Any) -> Sequence[dict[str, str]]:
    """The addresses of a server's name; nothing to add where it has an address or a socket."""
    host = server.get("host", "")
    if not host or host.startswith(("/", "@")) or "hostaddr" in server or isIPAddress(host) or isIPv6Address(host):
        return [{}]
    found = await deferToThreadPool(
        reactor, reactor.getThreadPool(), socket.getaddrinfo, host, None, 0, socket.SOCK_STREAM
    )
    addresses = dict.fromkeys(str(entry[4][0]) for entry in found)
    return [{"hostaddr": address} for address in addresses][:MOST_ADDRESSES]
