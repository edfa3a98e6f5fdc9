"""A user with matrix-js-sdk: ``js/actor.mjs`` in a Node process, a JSON object a line."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.clients.actor import Actor
from tests.clients.witness import Seen, Witness

SCRIPT = Path(__file__).resolve().parent / "js" / "actor.mjs"
LONGEST_LINE = 2**24


class ActorFailedError(AssertionError):
    """The SDK threw, or its process ended; the message is what it said."""


def seen(told: Mapping[str, Any]) -> Seen:
    """An event as the script describes it."""
    return Seen(
        event_id=told["id"],
        room_id=told["room"],
        sender=told["sender"],
        type=told["type"],
        content=told["content"],
        encrypted=told["encrypted"],
        unreadable=told["unreadable"],
    )


class JsActor(Actor):
    """See :class:`Actor`; keys are kept in the key backup, under a recovery key in secret storage."""

    _process: asyncio.subprocess.Process | None = None
    _reader: asyncio.Task[None] | None = None

    async def login(self) -> None:
        if self._process is None:
            await self._spawn()
        self.witness = Witness()
        who = await self._do("login", url=self.url, user=self.localpart, password=self.password)
        self.user_id, self.device_id = who["user"], who["device"]

    async def logout(self) -> None:
        await self._do("logout")

    async def leave(self) -> None:
        if self._process is None or self._reader is None:
            return
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        await self._reader

    async def create_encrypted_room(self, name: str, invite: Sequence[str]) -> str:
        return str(await self._do("create_encrypted_room", name=name, invite=list(invite)))

    async def join(self, room: str) -> None:
        await self._do("join", room=room)

    async def say(self, room: str, text: str) -> str:
        return str(await self._do("say", room=room, text=text))

    async def edit(self, room: str, target: str, text: str) -> str:
        return str(await self._do("edit", room=room, target=target, text=text))

    async def reply(self, room: str, to: str, text: str) -> str:
        return str(await self._do("reply", room=room, to=to, text=text))

    async def in_thread(self, room: str, root: str, text: str) -> str:
        return str(await self._do("in_thread", room=room, root=root, text=text))

    async def react(self, room: str, target: str, key: str) -> str:
        return str(await self._do("react", room=room, target=target, key=key))

    async def send_image(self, room: str, name: str, data: bytes) -> str:
        return str(await self._do("send_image", room=room, name=name, data=base64.b64encode(data).decode()))

    async def open_image(self, content: Mapping[str, Any]) -> bytes:
        return base64.b64decode(await self._do("open_image", file=content["file"]))

    async def read(self, room: str, target: str) -> None:
        await self._do("read", room=room, target=target)

    async def set_typing(self, room: str, typing: bool) -> None:
        await self._do("typing", room=room, typing=typing)

    async def keep_keys(self) -> str:
        return str(await self._do("keep_keys"))

    async def all_keys_kept(self) -> None:
        while True:
            count = await self._do("kept_keys")
            if count["here"] and count["kept"] == count["here"]:
                return
            await asyncio.sleep(0.5)

    async def recover_keys(self, secret: str) -> None:
        recovered = await self._do("recover_keys", key=secret)
        assert recovered["imported"] > 0, "the backup held no room key"
        assert recovered["verified"], "the new device is not signed by its owner"

    async def read_back(self, room: str) -> dict[str, Seen]:
        return {told["id"]: seen(told) for told in await self._do("read_back", room=room)}

    async def thread_length(self, room: str, root: str) -> int:
        """How many replies the client counts in a thread."""
        return int(await self._do("thread_length", room=room, root=root))

    async def shown(self, room: str, target: str) -> str | None:
        """The text that the client shows for a message, edits applied."""
        text: str | None = await self._do("shown", room=room, target=target)
        return text

    async def _spawn(self) -> None:
        if not (SCRIPT.parent / "node_modules").is_dir():
            raise ActorFailedError(f"matrix-js-sdk is missing: run `npm ci --ignore-scripts` in {SCRIPT.parent}")
        self._log = self.folder / f"{self.localpart}.log"
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._numbers = itertools.count()
        with self._log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                "node",
                str(SCRIPT),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                limit=LONGEST_LINE,
            )
        self._reader = asyncio.create_task(self._read())

    async def _do(self, action: str, **arguments: Any) -> Any:
        assert self._process is not None and self._process.stdin is not None
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        line = json.dumps({"id": number, "do": action, **arguments})
        self._process.stdin.write(line.encode() + b"\n")
        return await answer

    async def _read(self) -> None:
        """Take in what the process says until it ends, then disappoint everybody who still waits."""
        try:
            await self._read_lines()
        finally:
            tail = self._log.read_text(errors="replace")[-3000:]
            for answer in self._answers.values():
                answer.set_exception(ActorFailedError(f"{self.localpart}: the client ended\n{tail}"))
            await self.witness.tell(lambda: setattr(self.witness, "lost", tail or "without a word"))

    async def _read_lines(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        while line := await self._process.stdout.readline():
            told = json.loads(line)
            if "seen" in told:
                await self._note(told)
            elif not (answer := self._answers.pop(told["id"])).done():
                if "error" in told:
                    answer.set_exception(ActorFailedError(f"{self.localpart}: {told['error']}"))
                else:
                    answer.set_result(told["result"])

    async def _note(self, told: Mapping[str, Any]) -> None:
        witness = self.witness
        match told["seen"]:
            case "event":
                event = seen(told)
                await witness.tell(lambda: witness.events.__setitem__(event.event_id, event))
            case "replaced":
                await witness.tell(lambda: witness.texts.__setitem__(told["id"], told["text"]))
            case "receipt":
                receipt = (told["room"], told["id"], told["user"])
                await witness.tell(lambda: witness.receipts.add(receipt))
            case "typing":
                change = witness.typing.add if told["typing"] else witness.typing.discard
                await witness.tell(lambda: change((told["room"], told["user"])))
            case "membership":
                key = (told["room"], told["user"])
                await witness.tell(lambda: witness.memberships.__setitem__(key, told["membership"]))
