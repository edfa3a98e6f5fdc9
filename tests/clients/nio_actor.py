"""A user with matrix-nio, its encryption store in a folder."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import nio  # type: ignore[import-untyped]
from nio.crypto.attachments import decrypt_attachment  # type: ignore[import-untyped]

from tests.clients.actor import Actor
from tests.clients.witness import Seen, Witness

EXPORT_ROUNDS = 1000
POLL_MILLISECONDS = 10000

logging.getLogger("nio").setLevel(logging.CRITICAL)  # what a new device can not read yet is part of the story


class ActorFailedError(AssertionError):
    """The server's answer was an error to the SDK."""


class NioActor(Actor):
    """See :class:`Actor`; nio knows no key backup, so keys are kept in an export file."""

    _devices = 0
    _client: nio.AsyncClient
    _syncing: asyncio.Task[None] | None = None

    async def login(self) -> None:
        self.witness = Witness()
        self._devices += 1
        store = self.folder / f"{self.localpart}-{self._devices}"
        store.mkdir()
        config = nio.AsyncClientConfig(encryption_enabled=True, store_sync_tokens=False, max_timeouts=1)
        self._client = nio.AsyncClient(self.url, self.localpart, store_path=str(store), config=config)
        answer = self._good(await self._client.login(self.password, device_name="nio"), nio.LoginResponse)
        self.user_id, self.device_id = answer.user_id, answer.device_id
        self._client.add_response_callback(self._note_sync, nio.SyncResponse)
        synced = asyncio.create_task(self._client.synced.wait())
        self._syncing = asyncio.create_task(self._client.sync_forever(timeout=POLL_MILLISECONDS, full_state=True))
        self._syncing.add_done_callback(lambda task: asyncio.ensure_future(self._ended(task)))
        await asyncio.wait({synced, self._syncing}, return_when=asyncio.FIRST_COMPLETED)
        if self._syncing.done():
            await self._syncing

    async def logout(self) -> None:
        await self._stop_syncing()
        self._good(await self._client.logout(), nio.LogoutResponse)
        await self._client.close()

    async def leave(self) -> None:
        if self._syncing is not None:
            await self._stop_syncing()
            await self._client.close()

    async def create_encrypted_room(self, name: str, invite: Sequence[str]) -> str:
        encryption = {
            "type": "m.room.encryption",
            "state_key": "",
            "content": {"algorithm": "m.megolm.v1.aes-sha2"},
        }
        answer = await self._client.room_create(
            name=name, invite=list(invite), preset=nio.RoomPreset.private_chat, initial_state=[encryption]
        )
        room = str(self._good(answer, nio.RoomCreateResponse).room_id)
        await self.witness.until(f"{self.user_id} is in {room}", lambda: room in self._client.rooms)
        return room

    async def join(self, room: str) -> None:
        self._good(await self._client.join(room), nio.JoinResponse)
        await self.witness.until(f"{self.user_id} is in {room}", lambda: room in self._client.rooms)

    async def say(self, room: str, text: str) -> str:
        return await self._send(room, {"msgtype": "m.text", "body": text})

    async def edit(self, room: str, target: str, text: str) -> str:
        content = {
            "msgtype": "m.text",
            "body": f"* {text}",
            "m.new_content": {"msgtype": "m.text", "body": text},
            "m.relates_to": {"rel_type": "m.replace", "event_id": target},
        }
        return await self._send(room, content)

    async def reply(self, room: str, to: str, text: str) -> str:
        relation = {"m.in_reply_to": {"event_id": to}}
        return await self._send(room, {"msgtype": "m.text", "body": text, "m.relates_to": relation})

    async def in_thread(self, room: str, root: str, text: str) -> str:
        relation = {
            "rel_type": "m.thread",
            "event_id": root,
            "is_falling_back": True,
            "m.in_reply_to": {"event_id": root},
        }
        return await self._send(room, {"msgtype": "m.text", "body": text, "m.relates_to": relation})

    async def react(self, room: str, target: str, key: str) -> str:
        relation = {"rel_type": "m.annotation", "event_id": target, "key": key}
        return await self._send(room, {"m.relates_to": relation}, "m.reaction")

    async def send_image(self, room: str, name: str, data: bytes) -> str:
        answer, keys = await self._client.upload(
            lambda _limited, _timeouts: io.BytesIO(data), "image/png", name, encrypt=True, filesize=len(data)
        )
        url = self._good(answer, nio.UploadResponse).content_uri
        content = {
            "msgtype": "m.image",
            "body": name,
            "info": {"mimetype": "image/png", "size": len(data)},
            "file": {**(keys or {}), "url": url},
        }
        return await self._send(room, content)

    async def open_image(self, content: Mapping[str, Any]) -> bytes:
        file = content["file"]
        answer = self._good(await self._client.download(file["url"]), nio.DownloadResponse)
        plain: bytes = decrypt_attachment(answer.body, file["key"]["k"], file["hashes"]["sha256"], file["iv"])
        return plain

    async def read(self, room: str, target: str) -> None:
        answer = await self._client.update_receipt_marker(room, target)
        self._good(answer, nio.UpdateReceiptMarkerResponse)

    async def set_typing(self, room: str, typing: bool) -> None:
        self._good(await self._client.room_typing(room, typing), nio.RoomTypingResponse)

    async def keep_keys(self) -> str:
        return "a passphrase for the export file"

    async def all_keys_kept(self) -> None:
        export = self.folder / f"{self.localpart}.keys"
        await self._client.export_keys(str(export), await self.keep_keys(), EXPORT_ROUNDS)

    async def recover_keys(self, secret: str) -> None:
        await self._client.import_keys(str(self.folder / f"{self.localpart}.keys"), secret)

    async def read_back(self, room: str) -> dict[str, Seen]:
        page = self._good(await self._client.room_messages(room, limit=100), nio.RoomMessagesResponse)
        return {event.event_id: self._seen(room, event) for event in page.chunk}

    async def _send(self, room: str, content: Mapping[str, Any], kind: str = "m.room.message") -> str:
        if self._client.should_query_keys:
            self._good(await self._client.keys_query(), nio.KeysQueryResponse)
        answer = await self._client.room_send(room, kind, dict(content), ignore_unverified_devices=True)
        return str(self._good(answer, nio.RoomSendResponse).event_id)

    async def _stop_syncing(self) -> None:
        if self._syncing is not None:
            self._syncing.cancel()
            await asyncio.wait({self._syncing})
            self._syncing = None

    async def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            await self.witness.tell(lambda: setattr(self.witness, "lost", repr(error)))

    async def _note_sync(self, answer: nio.SyncResponse) -> None:
        await self.witness.tell(lambda: self._note(answer))

    def _note(self, answer: nio.SyncResponse) -> None:
        for room_id in answer.rooms.invite:
            self.witness.memberships[room_id, self.user_id] = "invite"
        for room_id, room in answer.rooms.join.items():
            for event in [*room.state, *room.timeline.events]:
                if isinstance(event, nio.RoomMemberEvent):
                    self.witness.memberships[room_id, event.state_key] = event.membership
            for event in room.timeline.events:
                self._note_event(self._seen(room_id, event))
            for ephemeral in room.ephemeral:
                self._note_ephemeral(room_id, ephemeral)

    def _note_event(self, event: Seen) -> None:
        self.witness.events[event.event_id] = event
        if event.relation.get("rel_type") == "m.replace" and not event.unreadable:
            self.witness.texts[event.relation["event_id"]] = event.content["m.new_content"]["body"]

    def _note_ephemeral(self, room_id: str, event: nio.EphemeralEvent) -> None:
        if isinstance(event, nio.TypingNoticeEvent):
            others = {entry for entry in self.witness.typing if entry[0] != room_id}
            self.witness.typing = others | {(room_id, user) for user in event.users}
        elif isinstance(event, nio.ReceiptEvent):
            for receipt in event.receipts:
                self.witness.receipts.add((room_id, receipt.event_id, receipt.user_id))

    def _seen(self, room_id: str, event: nio.Event) -> Seen:
        unreadable = isinstance(event, nio.MegolmEvent)
        return Seen(
            event_id=event.event_id,
            room_id=room_id,
            sender=event.sender,
            type=event.source["type"],
            content=event.source["content"],
            encrypted=bool(event.decrypted) or unreadable,
            unreadable=unreadable,
        )

    def _good(self, answer: Any, kind: type[Any]) -> Any:
        if not isinstance(answer, kind):
            raise ActorFailedError(f"{self.localpart}: {answer!r}")
        return answer
