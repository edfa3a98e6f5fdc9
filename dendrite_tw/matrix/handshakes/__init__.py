"""Join, leave, knock, invite: how a server gets into rooms that it is not in, and lets others in.

Specification: Server-Server API, "Joining Rooms", "Knocking upon a room", "Inviting to a
room", "Leaving Rooms", "Third-party invites".  `asking` and `invites.invite` are the
side that wants something, `resident` and `invites.receive_invite` the side that is
asked.  All are functions, or generators that yield what they need to know: a
`Request` to another server, `admission.FetchKeys`, `resident.IsJoined`.
"""

from __future__ import annotations

from dendrite_tw.matrix.handshakes.asking import Knocked, Left, Wish, join, knock, leave
from dendrite_tw.matrix.handshakes.invites import (
    BoundInvite,
    Exchange,
    Invited,
    answer_invite,
    exchange_request,
    exchange_token,
    invite,
    read_exchange,
    read_onbind,
    receive_invite,
    receive_old_invite,
)
from dendrite_tw.matrix.handshakes.join_check import Joined
from dendrite_tw.matrix.handshakes.messages import (
    JOIN,
    KNOCK,
    LEAVE,
    HandshakeError,
    Kind,
    Pause,
    Reply,
    Request,
    Signer,
)
from dendrite_tw.matrix.handshakes.resident import (
    IsJoined,
    JoinAnswer,
    Place,
    answer_join,
    authorise_join,
    make_template,
    pieces,
    receive_membership,
)
from dendrite_tw.matrix.handshakes.room_check import Described, Pile, check_room

__all__ = [
    "JOIN",
    "KNOCK",
    "LEAVE",
    "BoundInvite",
    "Described",
    "Exchange",
    "HandshakeError",
    "Invited",
    "IsJoined",
    "JoinAnswer",
    "Joined",
    "Kind",
    "Knocked",
    "Left",
    "Pause",
    "Pile",
    "Place",
    "Reply",
    "Request",
    "Signer",
    "Wish",
    "answer_invite",
    "answer_join",
    "authorise_join",
    "check_room",
    "exchange_request",
    "exchange_token",
    "invite",
    "join",
    "knock",
    "leave",
    "make_template",
    "pieces",
    "read_exchange",
    "read_onbind",
    "receive_invite",
    "receive_membership",
    "receive_old_invite",
]
