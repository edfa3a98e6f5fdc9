"""Every stream of the server, in one table: name, subjects, storage and age.

The names, their storage and their ages are Dendrite's, so that an operator's tools and an external NATS
server that once served Dendrite find what they expect.  All streams have *interest* retention: a message is
kept until each consumer that wants it has acknowledged it.
"""

from __future__ import annotations

from dendrite_tw.jetstream.configs import StreamConfig
from dendrite_tw.jetstream.times import SECOND

MINUTE = 60 * SECOND
HOUR = 60 * MINUTE

DEFAULT_PREFIX = "Dendrite"


DUPLICATE_WINDOW = 20 * SECOND
"""How long a message is known to have come: an outbox repeats what was not confirmed sooner than that,
and consumers know what they have by its position.
"""


def _row(name: str, *, memory: bool = False, max_age: int = 0) -> tuple[str, StreamConfig]:
    storage = "memory" if memory else "file"
    return name, StreamConfig(
        name=name,
        subjects=[name, f"{name}.>"],
        retention="interest",
        storage=storage,
        max_age=max_age,
        duplicate_window=DUPLICATE_WINDOW,
    )


CATALOGUE: dict[str, StreamConfig] = dict(
    [
        _row("InputRoomEvent", max_age=24 * HOUR),
        _row("InputDeviceListUpdate"),
        _row("InputSigningKeyUpdate"),
        _row("OutputRoomEvent"),
        _row("OutputAppserviceEvent"),
        _row("OutputSendToDeviceEvent"),
        _row("OutputKeyChangeEvent"),
        _row("OutputClientData"),
        _row("OutputNotificationData"),
        _row("OutputReceiptEvent"),
        _row("OutputTypingEvent", memory=True, max_age=MINUTE),
        _row("OutputPresenceEvent", memory=True, max_age=5 * MINUTE),
    ]
)
"""The streams by their short names, as they are without a prefix."""
