"""Which thread of a room an event is in (Client-Server API, "Threaded read receipts", "Threading")."""

from __future__ import annotations

from ..room_api.api import RoomAPI, RoomEvent
from .counts import MAIN

THREAD = "m.thread"
HOPS = 3
"""How many relations are followed to find a thread; the specification's recommendation."""


async def thread_of(rooms: RoomAPI, event: RoomEvent) -> str:
    """The root of the thread that `event` is in, or `MAIN`."""
    for _ in range(HOPS):
        if event.rel_type is None or event.relates_to is None:
            return MAIN
        if event.rel_type == THREAD:
            return event.relates_to
        parents = await rooms.events([event.relates_to])
        if not parents or parents[0].room_id != event.room_id:
            return MAIN
        event = parents[0]
    return event.relates_to if event.rel_type == THREAD and event.relates_to else MAIN


async def is_of_thread(rooms: RoomAPI, event: RoomEvent, thread_id: str) -> bool:
    """Whether a receipt for `event` may name `thread_id`: its own thread, or one whose root it is or relates to."""
    if await thread_of(rooms, event) == thread_id:
        return True
    for _ in range(HOPS):
        if event.event_id == thread_id:
            return True
        if event.relates_to is None:
            return False
        parents = await rooms.events([event.relates_to])
        if not parents or parents[0].room_id != event.room_id:
            return False
        event = parents[0]
    return event.event_id == thread_id
