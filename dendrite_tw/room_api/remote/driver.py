"""Answers what the generators of `matrix.handshakes` and `matrix.admission` ask.

A `Request` goes out through `FederationAPI`, `FetchKeys` to the key ring, `IsJoined` to the
rooms that this server is in; a `Pause` lets the reactor do something else.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeVar

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from ...federation_api.api import FederationAPI, FederationRequest, KeysWanted, Unreachable
from ...matrix.admission import FetchKeys, VerifyKey
from ...matrix.handshakes import IsJoined, Pause, Reply, Request

T = TypeVar("T")

REQUEST_SECONDS = 20.0
"""How long another server may take for a question that is answered at once: a template, say."""

ANSWER_LIMIT = 4 << 20
"""Bytes of such an answer: most of all, a hundred events that show what room it is."""

ROOM_SECONDS = 180.0
ROOM_LIMIT = 256 << 20
"""The same where the answer is a room's state."""

IN_ALL_SECONDS = 420.0
"""After this time nobody else is asked for the same wish."""

Progress = Callable[[int, int], None]
"""Is told at each pause how many events were looked at, and of how many."""

Joined = Callable[[str, str], Awaitable["bool | None"]]
"""Whether a user is joined to a room; `None` if this server is not in it."""


class Driver:
    """Carries generators to their end."""

    def __init__(self, federation: FederationAPI, time: IReactorTime, is_joined: Joined) -> None:
        self._federation = federation
        self._time = time
        self._is_joined = is_joined

    async def run(self, steps: Generator[Any, Any, T], progress: Progress | None = None) -> T:
        """What the generator returns; raises what it raises."""
        deadline = self._time.seconds() + IN_ALL_SECONDS
        answer: Any = None
        while True:
            try:
                question = steps.send(answer)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]
            if isinstance(question, Pause):
                if progress is not None:
                    progress(question.done, question.of)
                await self.pause()
                answer = None
            elif isinstance(question, FetchKeys):
                answer = await self.fetch_keys(question)
            elif isinstance(question, IsJoined):
                answer = await self._is_joined(question.room_id, question.user_id)
            elif isinstance(question, Request):
                answer = await self.ask(question) if self._time.seconds() < deadline else None
            else:
                raise TypeError(f"nobody answers {question!r}")

    async def pause(self) -> None:
        """Let others have the reactor."""
        await deferLater(self._time, 0, lambda: None)

    async def ask(self, request: Request) -> Reply | None:
        """The answer of another server, whatever it is; `None` if there is none."""
        is_room = request.path.split("/")[4:5] in (["send_join"], ["state"])
        asked = FederationRequest(
            method=request.method,
            destination=request.server_name,
            path=request.path,
            query=list(request.query),
            body=request.content,
            timeout_ms=int(1000 * (ROOM_SECONDS if is_room else REQUEST_SECONDS)),
            response_limit=ROOM_LIMIT if is_room else ANSWER_LIMIT,
            despite_backoff=True,
        )
        try:
            answer = await self._federation.ask(asked)
        except Unreachable:
            return None
        return Reply(answer.status, answer.body)

    async def fetch_keys(self, question: FetchKeys) -> dict[tuple[str, str], VerifyKey]:
        """The keys that anybody knows, by server and key id."""
        wanted = [KeysWanted(one.server_name, list(one.key_ids), one.ts) for one in question.requests]
        found = await self._federation.fetch_keys(wanted)
        return {(one.server_name, one.key_id): VerifyKey(one.key, one.valid_until_ts, one.expired_ts) for one in found}
