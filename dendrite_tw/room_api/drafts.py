"""Drafts become events: built on top of the room's newest, hashed, signed, and checked against the state there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..matrix.auth_rules import AuthError, MalformedError, auth_event_keys, check_auth
from ..matrix.errors import MatrixError, bad_json, forbidden
from ..matrix.events import Event, EventFormatError, EventTooLargeError, build_event, reference_hash
from ..matrix.keys import SigningKey
from ..matrix.signing import encode_base64
from ..world import Clock, Random
from .placing import Placing
from .policies import Policies
from .redactions import Redactions
from .room import Draft, Head, State
from .states import States
from .steps import CREATE, Batch, Step
from .store import EventStore, stored_event
from .tables.names import Slot
from .tables.rooms import PARTIAL

PREV_EVENTS = 10
"""Ends of a timeline that one event brings together."""


class Drafting:
    """Makes the events of this server."""

    def __init__(
        self,
        *,
        states: States,
        store: EventStore,
        placing: Placing,
        redactions: Redactions,
        policies: Policies,
        clock: Clock,
        random: Random,
        server_name: str,
        key: SigningKey,
    ) -> None:
        self._states = states
        self._store = store
        self._placing = placing
        self._redactions = redactions
        self._policies = policies
        self._clock = clock
        self._random = random
        self._server_name = server_name
        self._key = key

    async def compose(self, batch: Batch, draft: Draft) -> tuple[Event, State, dict[Slot, Event]]:
        """The event that a draft makes on top of what the batch has, the state before it, and what authorises it.

        `MatrixError` where it is refused.
        """
        if "\0" in draft.type or "\0" in (draft.state_key or ""):
            raise bad_json("A type and a state key have no NUL characters.")
        room = batch.room
        keys = auth_event_keys(
            version=room.version,
            type=draft.type,
            sender=draft.sender,
            state_key=draft.state_key,
            content=draft.content,
        )
        wanted = keys if CREATE in keys or draft.type == "m.room.create" else [CREATE, *keys]
        prev_events, before = await self._foundation(batch)
        authority = await self._states.at(before.slots, wanted, batch)
        named = [authority[key] for key in keys if key in authority]
        event = await self._build(batch, draft, prev_events, named)
        if not room.room_id:
            room.room_id = event.room_id
        self._authorise(event, authority)
        return event, before, authority

    async def _foundation(self, batch: Batch) -> tuple[tuple[str, ...], State]:
        """What a new event follows, and the state there."""
        head = batch.head
        if len(head.extremities) <= PREV_EVENTS:
            return head.extremities, State(head.state, head.snapshot_nid)
        newest = head.extremities[-PREV_EVENTS:]
        before = await self._placing.before(batch, newest)
        if before is None:
            raise LookupError(f"an end of {batch.room.room_id} is not stored")
        return newest, before

    async def prepare(self, batch: Batch, draft: Draft, event_nid: int, snapshot_nids: Iterator[int]) -> Step:
        """Make a draft into an event on top of what the batch has; `MatrixError` where it is refused."""
        head = batch.head
        event, before, authority = await self.compose(batch, draft)
        if not self._policies.has_none(head):
            policy = await self._policies.of(batch)
            event = event if policy is None else await self._policies.recommended(event, policy)
        redacted_nid = redacted = None
        if event.redacts is not None:
            redacted_nid, redacted = await self._redactions.of_draft(batch, event, authority)
        slot_nid = None
        if event.state_key is not None:
            slot_nid = await self._states.slot_nid((event.type, event.state_key))
        place = await self._placing.live(batch, event, event_nid, slot_nid, before, snapshot_nids)
        replaced_nid = before.slots.get(slot_nid) if slot_nid is not None else None
        replaced = place.changes[0].replaced if replaced_nid and len(place.changes) == 1 else None
        if replaced_nid and replaced is None:
            replaced = (await self._states.events([replaced_nid], batch))[replaced_nid]
        return Step(
            event=event,
            event_nid=event_nid,
            before_nid=place.before_nid,
            current_nid=place.after.snapshot_nid,
            slot_nid=slot_nid,
            after=place.after,
            links=place.links,
            changes=place.changes,
            draft=draft,
            replaced_nid=replaced_nid,
            replaced=replaced,
            redacted_nid=redacted_nid,
            redacted=redacted,
            placed=place.placed,
            distribute=batch.room.standing == PARTIAL or _is_shared(head) or _is_shared(place.after),
        )

    async def _build(self, batch: Batch, draft: Draft, prev_events: Sequence[str], authority: Sequence[Event]) -> Event:
        room, hashes = batch.room, None
        if room.version.event_format == "pairs":
            previous = [batch.events[batch.nids[one]] for one in prev_events if one in batch.nids]
            stored = [stored_event(row) for row in await self._store.rows(prev_events)]
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
                prev_events=prev_events,
                auth_events=[event.event_id for event in authority],
                depth=batch.head.depth + 1,
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


def _is_shared(head: Head) -> bool:
    """Whether other servers are in the room."""
    return head.joined != head.local
