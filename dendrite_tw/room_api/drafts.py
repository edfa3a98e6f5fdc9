"""Drafts become events: built on top of the room's newest, hashed, signed, and checked against the state there."""

from __future__ import annotations

from collections.abc import Sequence

from ..matrix.auth_rules import AuthError, MalformedError, auth_event_keys, check_auth, redaction_applies
from ..matrix.errors import MatrixError, bad_json, forbidden, invalid_param
from ..matrix.events import Event, EventFormatError, EventTooLargeError, build_event, redact_event, reference_hash
from ..matrix.identifiers import server_name_of
from ..matrix.keys import SigningKey
from ..matrix.signing import encode_base64
from ..world import Clock, Random
from .room import Draft, Head, Room
from .snapshots import advance
from .states import States
from .steps import CREATE, Batch, Step
from .store import EventStore, stored_event
from .tables.names import Slot

NEVER_REDACTED = ("m.room.create", "m.room.server_acl")
"""State that would shut everybody out if its content were gone."""


def is_local(user_id: str, server_name: str) -> bool:
    """Whether a user is one of the server with that name; not every member event has a user ID for a key."""
    return ":" in user_id and server_name_of(user_id) == server_name


class Drafting:
    """Makes the events of this server."""

    def __init__(
        self, *, states: States, store: EventStore, clock: Clock, random: Random, server_name: str, key: SigningKey
    ) -> None:
        self._states = states
        self._store = store
        self._clock = clock
        self._random = random
        self._server_name = server_name
        self._key = key

    async def prepare(self, batch: Batch, draft: Draft, event_nid: int, snapshot_nid: int) -> Step:
        """Make a draft into an event on top of what the batch has; `MatrixError` where it is refused."""
        room, head = batch.room, batch.head
        if "\0" in draft.type or "\0" in (draft.state_key or ""):
            raise bad_json("A type and a state key have no NUL characters.")
        keys = auth_event_keys(
            version=room.version,
            type=draft.type,
            sender=draft.sender,
            state_key=draft.state_key,
            content=draft.content,
        )
        wanted = keys if CREATE in keys or draft.type == "m.room.create" else [CREATE, *keys]
        authority = await self._states.at(head.state, wanted, batch)
        event = await self._build(room, head, draft, [authority[key] for key in keys if key in authority], batch)
        if not room.room_id:
            room.room_id = event.room_id
        self._authorise(event, authority)
        redacted_nid, redacted = await self._redaction_target(event, authority, batch)
        slot_nid = replaced_nid = link = replaced = None
        chain, state, tape, current_nid = head.chain, head.state, head.tape, head.snapshot_nid
        joined, local = head.joined, head.local
        if event.state_key is not None:
            slot_nid = await self._states.slot_nid((event.type, event.state_key))
            replaced_nid = state.get(slot_nid)
            if replaced_nid is not None:
                replaced = (await self._states.events([replaced_nid], batch))[replaced_nid]
            state = state.set(slot_nid, event_nid)
            chain, link = advance(chain, {slot_nid: event_nid}, state, snapshot_nid)
            tape, current_nid = state, snapshot_nid
            change = (event.membership == "join") - (replaced is not None and replaced.membership == "join")
            joined += change
            local += change if is_local(event.state_key, self._server_name) else 0
        after = Head(state, current_nid, tape, chain, (event.event_id,), event.depth, joined, local)
        return Step(
            draft=draft,
            event=event,
            event_nid=event_nid,
            before_nid=head.snapshot_nid,
            slot_nid=slot_nid,
            link=link,
            replaced_nid=replaced_nid,
            replaced=replaced,
            redacted_nid=redacted_nid,
            redacted=redacted,
            after=after,
        )

    async def _build(
        self, room: Room, head: Head, draft: Draft, authority: Sequence[Event], batch: Batch
    ) -> Event:
        hashes = None
        if room.version.event_format == "pairs":
            previous = [event for event in batch.events.values() if event.event_id in head.extremities]
            stored = [stored_event(row) for row in await self._store.rows(head.extremities)]
            hashes = {
                event.event_id: encode_base64(reference_hash(event.pdu_dict(), room.version))
                for event in [*authority, *previous, *stored]
            }
        try:
            return build_event(
                room.version,
                room_id=room.room_id or None,
                sender=draft.sender,
                type=draft.type,
                content=draft.content,
                state_key=draft.state_key,
                prev_events=head.extremities,
                auth_events=[event.event_id for event in authority],
                depth=head.depth + 1,
                origin_server_ts=self._clock.now_ms() if draft.timestamp is None else draft.timestamp,
                redacts=draft.redacts,
                server_name=self._server_name,
                key_id=self._key.key_id,
                signing_key=self._key.seed,
                event_id=self._random.token(18) if room.version.event_id_format == "origin" else None,
                reference_hashes=hashes,
            )
        except EventTooLargeError as error:
            raise MatrixError(413, "M_TOO_LARGE", str(error)) from None
        except EventFormatError as error:
            raise bad_json(str(error)) from None

    def _authorise(self, event: Event, authority: dict[Slot, Event]) -> None:
        try:
            check_auth(event, authority, power_levels=self._states.power_levels(authority))
        except MalformedError as error:
            raise bad_json(f"No room takes this: {error}.") from None
        except AuthError as error:
            raise forbidden(f"The room does not allow this: {error}.") from None

    async def _redaction_target(
        self, event: Event, authority: dict[Slot, Event], batch: Batch
    ) -> tuple[int | None, Event | None]:
        """The event that a redaction empties: its number and what is left of it."""
        if event.type != "m.room.redaction" or event.redacts is None:
            return None, None
        found = [(nid, other) for nid, other in batch.events.items() if other.event_id == event.redacts]
        if found:
            nid, target = found[0]
        else:
            row = await self._store.row(event.redacts)
            if row is None:
                return None, None
            nid, target = row.event_nid, stored_event(row)
        if target.room_id != event.room_id:
            raise invalid_param("The event to be redacted is of another room.")
        if target.type in NEVER_REDACTED and target.state_key == "":
            raise forbidden(f"An event of type {target.type} is never redacted: the room could not be used any more.")
        levels = self._states.power_levels(authority)
        if levels is None or not redaction_applies(event, target, levels):
            raise forbidden("You may not redact this event.")
        if target.sender != event.sender and levels.user_level(event.sender) < levels.redact:
            # The rules between servers let a server speak for all its users; the server does not.
            raise forbidden("You may not redact the events of others.")
        return nid, redact_event(target)
