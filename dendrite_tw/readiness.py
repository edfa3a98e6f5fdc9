"""What a service manager is told: systemd waits with ``systemctl restart`` until a unit of ``Type=notify`` is ready."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

from twisted.logger import Logger

READY = "READY=1"
STOPPING = "STOPPING=1"

log = Logger()


def tell(state: str, environment: Mapping[str, str] = os.environ) -> None:
    """Tell the service manager, where one asks to be told (``NOTIFY_SOCKET``, see sd_notify(3))."""
    address = environment.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.connect(address)
            sender.send(state.encode())
    except OSError as error:
        log.warn("The service manager cannot be told {state}: {error}", state=state, error=error)
