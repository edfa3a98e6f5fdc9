"""A room may have a server recommend its events, and only those are sent and shown.

Server-Server API, "Policy Servers".
"""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime

from ..matrix.admission import POLICY_KEY_ID, PolicyServer, check_policy_signature, needs_policy, read_policy
from ..matrix.errors import MatrixError, forbidden
from ..matrix.event_format import EventFormatError
from ..matrix.events import Event, ReceivedEvent, add_signature, signed_bytes
from .peers import Deadline, Peers, Refused
from .room import Head
from .states import States
from .steps import Batch
from .tables.names import Names

POLICY = ("m.room.policy", "")

ASK_SECONDS = 10.0
"""How long a policy server may take; meanwhile an event waits, and the user who sends it."""


class Policies:
    """Asks the policy servers of rooms."""

    def __init__(self, names: Names, states: States, peers: Peers, time: IReactorTime) -> None:
        self._names = names
        self._states = states
        self._peers = peers
        self._time = time

    def has_none(self, head: Head) -> bool:
        """Whether a room has certainly no policy server; `False` leaves it open."""
        slot_nid = self._names.remembered_slot(POLICY)
        return slot_nid is not None and slot_nid not in head.state

    async def of(self, batch: Batch) -> PolicyServer | None:
        """The policy server of a room, if it has one with a member."""
        if await self._states.slot_nid(POLICY) not in batch.head.state:
            return None
        event = (await self._states.at(batch.head.state, [POLICY], batch)).get(POLICY)
        policy = read_policy(event)
        return policy if policy is not None and await self._states.has_member_of(batch, policy.via) else None

    async def recommended(self, event: Event, policy: PolicyServer) -> Event:
        """An event of this server with the signature that it needs; raises what the policy server says against it."""
        if not needs_policy(event):
            return event
        signature = await self._signature(event, policy)
        if not check_policy_signature(signed_bytes(event), signature, policy):
            raise forbidden("The policy server of the room signs with another key than the room names.")
        try:
            return add_signature(event, policy.via, POLICY_KEY_ID, signature)
        except EventFormatError as error:
            raise MatrixError(413, "M_TOO_LARGE", str(error)) from None

    async def _signature(self, event: Event, policy: PolicyServer) -> str:
        deadline = Deadline(self._time, ASK_SECONDS)
        try:
            return await self._peers.policy_signature(policy.via, POLICY_KEY_ID, event, deadline)
        except Refused as refused:
            raise refused.error from None

    async def asked(self, received: ReceivedEvent, policy: PolicyServer) -> ReceivedEvent:
        """An event of another server, with the signature if the policy server gives it."""
        try:
            signature = await self._signature(received.event, policy)
            event = add_signature(received.event, policy.via, POLICY_KEY_ID, signature)
        except (MatrixError, EventFormatError):
            return received
        signatures = {**received.signatures}
        signatures[policy.via] = {**signatures.get(policy.via, {}), POLICY_KEY_ID: signature}
        return ReceivedEvent(event, received.signed_bytes, signatures, received.redacted)
