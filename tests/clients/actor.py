"""What a user does with a client and expects to see, whichever SDK the client is made with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.clients.witness import Seen, Witness


class Actor(ABC):
    """One user and the device that is logged in at the moment.

    Event ids are returned by what sends. What has ``sees`` in its name waits until the client shows it.
    """

    def __init__(self, url: str, localpart: str, password: str, folder: Path) -> None:
        self.url = url
        self.localpart = localpart
        self.password = password
        self.folder = folder
        self.user_id = ""
        self.device_id = ""
        self.witness = Witness()

    @abstractmethod
    async def login(self) -> None:
        """Log in on a new device that knows nothing, and sync."""

    @abstractmethod
    async def logout(self) -> None:
        """Log the device out and forget its keys."""

    @abstractmethod
    async def leave(self) -> None:
        """End the client, logged in or not."""

    @abstractmethod
    async def create_encrypted_room(self, name: str, invite: Sequence[str]) -> str:
        """A private encrypted room; its id."""

    @abstractmethod
    async def join(self, room: str) -> None:
        """Accept an invitation."""

    @abstractmethod
    async def say(self, room: str, text: str) -> str:
        """Send a text message."""

    @abstractmethod
    async def edit(self, room: str, target: str, text: str) -> str:
        """Replace the text of a message."""

    @abstractmethod
    async def reply(self, room: str, to: str, text: str) -> str:
        """Answer to a message."""

    @abstractmethod
    async def in_thread(self, room: str, root: str, text: str) -> str:
        """Say something in the thread below a message."""

    @abstractmethod
    async def react(self, room: str, target: str, key: str) -> str:
        """Annotate a message."""

    @abstractmethod
    async def send_image(self, room: str, name: str, data: bytes) -> str:
        """Encrypt and upload a PNG image, and send it."""

    @abstractmethod
    async def open_image(self, content: Mapping[str, Any]) -> bytes:
        """Download and decrypt the image of an ``m.image`` content."""

    @abstractmethod
    async def read(self, room: str, target: str) -> None:
        """Send a read receipt."""

    @abstractmethod
    async def set_typing(self, room: str, typing: bool) -> None:
        """Begin or end typing."""

    @abstractmethod
    async def keep_keys(self) -> str:
        """Prepare for the loss of the device; what :meth:`recover_keys` needs."""

    @abstractmethod
    async def all_keys_kept(self) -> None:
        """Wait until what is kept covers every room key of the device."""

    @abstractmethod
    async def recover_keys(self, secret: str) -> None:
        """Fetch the room keys that were kept."""

    @abstractmethod
    async def read_back(self, room: str) -> dict[str, Seen]:
        """The room's history as far as a page of it reaches, by event id."""

    async def sees_invite(self, room: str) -> None:
        """Being invited to the room."""
        await self.witness.until(f"{self.user_id} invited to {room}", lambda: self._is(room, self.user_id, "invite"))

    async def sees_member(self, room: str, user_id: str) -> None:
        """Somebody's join."""
        await self.witness.until(f"{user_id} in {room}", lambda: self._is(room, user_id, "join"))

    async def sees(self, event_id: str) -> Seen:
        """An event, readable."""

        def look() -> Seen | None:
            event = self.witness.events.get(event_id)
            return event if event is not None and not event.unreadable else None

        return await self.witness.until(f"{self.user_id} reads {event_id}", look)

    async def sees_text(self, event_id: str, text: str) -> None:
        """A message with its text as last edited."""
        await self.witness.until(
            f"{event_id} says {text!r} to {self.user_id}", lambda: self.witness.texts.get(event_id) == text
        )

    async def sees_receipt(self, room: str, event_id: str, user_id: str) -> None:
        """Somebody's read receipt."""
        receipt = (room, event_id, user_id)
        await self.witness.until(f"{user_id} has read {event_id}", lambda: receipt in self.witness.receipts)

    async def sees_typing(self, room: str, user_id: str, typing: bool) -> None:
        """Somebody who types, or has stopped."""
        expected = (room, user_id)
        await self.witness.until(f"{user_id} typing: {typing}", lambda: (expected in self.witness.typing) is typing)

    def _is(self, room: str, user_id: str, membership: str) -> bool:
        return self.witness.memberships.get((room, user_id)) == membership
