"""Writing to a socket without waiting for the reactor's next turn."""

from __future__ import annotations

from typing import Any

from twisted.internet.tcp import Connection


def write_at_once(transport: Any, data: bytes) -> None:
    """Send at once what the socket takes at once: a turn of the reactor and two calls to epoll less.

    The rest, and what goes through TLS or to anything but a socket, is left to the transport.
    """
    if (
        isinstance(transport, Connection)
        and not transport.TLS
        and transport.connected
        and not transport.disconnecting
        and not transport.dataBuffer
        and not transport._tempDataBuffer
    ):
        sent = transport.writeSomeData(data)
        if isinstance(sent, int):
            data = data[sent:]
    if data:
        transport.write(data)
