"""Whatever events contain, the rules answer with yes or with a reason, never with another error."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.matrix import signing
from dendrite_tw.matrix.auth_rules import AuthError, auth_event_keys, check_auth, check_event_auth_events
from dendrite_tw.matrix.room_versions import ROOM_VERSIONS
from tests.matrix.builders import ALICE, BOB, CAROL, RoomBuilder
from tests.matrix.strategies import bounded, json_values

TYPES = [
    "m.room.create",
    "m.room.member",
    "m.room.power_levels",
    "m.room.join_rules",
    "m.room.third_party_invite",
    "m.room.aliases",
    "m.room.redaction",
    "m.room.message",
]
KEYS = [
    "additional_creators",
    "creator",
    "m.federate",
    "room_version",
    "membership",
    "join_authorised_via_users_server",
    "third_party_invite",
    "join_rule",
    "public_key",
    "public_keys",
    "redacts",
    "users",
    "events",
    "notifications",
    "ban",
    "invite",
    "users_default",
]
MEANINGFUL = st.sampled_from(
    [
        "join",
        "invite",
        "leave",
        "ban",
        "knock",
        "restricted",
        "public",
        "12",
        ALICE,
        BOB,
        CAROL,
        50,
        "50",
        False,
    ]
)
VALUES = MEANINGFUL | json_values | st.dictionaries(st.sampled_from([ALICE, BOB, "signed", "room"]), json_values)
SIGNED = st.fixed_dictionaries(
    {"signed": st.fixed_dictionaries({"mxid": st.just(BOB), "token": st.just(""), "signatures": json_values})}
)
CONTENT = st.dictionaries(st.sampled_from(KEYS), VALUES | SIGNED, max_size=6)
USERS = st.sampled_from([ALICE, BOB, CAROL])


@st.composite
def scenes(draw: st.DrawFn) -> Any:
    room = RoomBuilder(draw(st.sampled_from(list(ROOM_VERSIONS.values()))), **draw(CONTENT))
    for user in (ALICE, BOB, CAROL):
        if draw(st.booleans()):
            room.put("m.room.member", ALICE, {"membership": "join"} | draw(CONTENT), user)
    for event_type in ("m.room.power_levels", "m.room.join_rules", "m.room.third_party_invite"):
        if draw(st.booleans()):
            room.put(event_type, draw(USERS), draw(CONTENT))
    event_type = draw(st.sampled_from(TYPES))
    create = event_type == "m.room.create"
    event = room.event(
        event_type,
        draw(USERS),
        draw(CONTENT),
        draw(st.none() | st.sampled_from(["", ALICE, BOB, "b.example"])),
        [] if create and draw(st.booleans()) else None,
        **({"room_id": None} if create and room.version.room_ids_as_hashes else {}),
    )
    return room, event


class NoiseTests(SynchronousTestCase):
    @bounded
    @given(scenes())
    def test_yes_or_a_reason(self, scene):
        room, event = scene
        try:
            check_auth(event, room.state)
        except AuthError as error:
            self.assertTrue(str(error))
        keys = auth_event_keys(
            version=event.version,
            type=event.type,
            sender=event.sender,
            state_key=event.state_key,
            content=event.content,
        )
        self.assertLessEqual(len(keys), 10)
        check_event_auth_events(event, [room.state[key] for key in keys if key in room.state])
        signing.required_signers(event)
