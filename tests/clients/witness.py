"""What a client has seen of its rooms, in one shape for every SDK, with waiting for what is still to come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

PATIENCE = 20.0

Found = TypeVar("Found")


class NeverSeenError(AssertionError):
    """What was waited for did not come; the message holds what did."""


@dataclass(frozen=True, slots=True)
class Seen:
    """An event as a client shows it: decrypted if it could be."""

    event_id: str
    room_id: str
    sender: str
    type: str
    content: Mapping[str, Any]
    encrypted: bool
    unreadable: bool

    @property
    def relation(self) -> Mapping[str, Any]:
        """Its ``m.relates_to``, empty for none."""
        relates_to: Mapping[str, Any] = self.content.get("m.relates_to", {})
        return relates_to


@dataclass(slots=True)
class Witness:
    """Everything one device was shown since its login."""

    events: dict[str, Seen] = field(default_factory=dict)
    receipts: set[tuple[str, str, str]] = field(default_factory=set)
    typing: set[tuple[str, str]] = field(default_factory=set)
    memberships: dict[tuple[str, str], str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    lost: str | None = None
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def tell(self, change: Callable[[], object]) -> None:
        """Take note of something, and let those who wait look again."""
        async with self._changed:
            change()
            self._changed.notify_all()

    async def until(self, what: str, look: Callable[[], Found | None]) -> Found:
        """The first true answer of ``look``; :class:`NeverSeenError` after :data:`PATIENCE` seconds."""
        found: Found | None = None

        def seen() -> bool:
            nonlocal found
            found = look()
            return bool(found) or self.lost is not None

        try:
            async with self._changed:
                await asyncio.wait_for(self._changed.wait_for(seen), PATIENCE)
        except TimeoutError:
            raise NeverSeenError(f"{what}; seen: {self._summary()}") from None
        if not found:
            raise NeverSeenError(f"{what}; the client ended: {self.lost}")
        return found

    def _summary(self) -> str:
        events = [
            (event.sender, event.type, "unreadable" if event.unreadable else event.content.get("body"))
            for event in self.events.values()
        ]
        return f"{events} {self.memberships} {self.receipts} {self.typing}"
