"""The authorisation rules: one row for each rule, tried in every room version.

A row says in which versions its rule holds, which event it concerns, and the reason for which
the event is refused there (`None`: it is allowed).  In all other versions ``otherwise`` must come
out.  Rows of refusals have a neighbour that differs in the one point that matters, and is allowed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.matrix import auth_rules, signing
from dendrite_tw.matrix.auth_rules import (
    AuthError,
    check_auth,
    power_levels,
)
from dendrite_tw.matrix.events import Event
from dendrite_tw.matrix.keys import signing_key
from dendrite_tw.matrix.room_versions import (
    ROOM_VERSIONS,
    RoomVersion,
)
from tests.matrix.builders import ALICE, BOB, CAROL, DAVE, RoomBuilder

ALL = list(ROOM_VERSIONS.values())
IDENTITY_KEY = signing_key("ed25519:0", b"\3" * 32)


Outcome = str | None | Callable[[RoomVersion], str | None]


class Row(NamedTuple):
    name: str
    reason: str | None
    scene: Callable[[RoomBuilder], Event]
    where: Callable[[RoomVersion], bool]
    otherwise: Outcome


ROWS: list[Row] = []


def everywhere(version: RoomVersion) -> bool:
    return True


def row(
    reason: str | None,
    *,
    where: Callable[[RoomVersion], bool] = everywhere,
    otherwise: Outcome = None,
) -> Callable[[Callable[[RoomBuilder], Event]], Callable[[RoomBuilder], Event]]:
    """Add a scene to the table.  It sets up the room's state and returns the event to judge."""

    def add(scene: Callable[[RoomBuilder], Event]) -> Callable[[RoomBuilder], Event]:
        ROWS.append(Row(scene.__name__, reason, scene, where, otherwise))
        return scene

    return add


def joined(room: RoomBuilder, *users: str, **levels: int) -> None:
    """Let these users, and Alice, be in the room; levels are for bob, carol and dave."""
    for user in (ALICE, *users):
        room.member(user, "join")
    if levels:
        names = {"bob": BOB, "carol": CAROL, "dave": DAVE}
        set_levels(room, users={names[name]: level for name, level in levels.items()})


def set_levels(room: RoomBuilder, **content: Any) -> None:
    room.put("m.room.power_levels", ALICE, content)


def set_join_rule(room: RoomBuilder, rule: Any) -> None:
    room.put("m.room.join_rules", ALICE, {"join_rule": rule})


def membership(room: RoomBuilder, sender: str, target: str, value: Any, **content: Any) -> Event:
    return room.event("m.room.member", sender, {"membership": value} | content, target)


# --- create -----------------------------------------------------------------------------------------


@row(None)
def create(room):
    return room.create


@row("no previous events")
def create_with_previous_events(room):
    return room.event("m.room.create", ALICE, dict(room.create.content), "", [room.create], **hashed_create(room))


def hashed_create(room: RoomBuilder) -> dict[str, Any]:
    return {"room_id": None} if room.version.room_ids_as_hashes else {}


@row("another server", where=lambda v: not v.room_ids_as_hashes)
def create_by_another_server(room):
    return room.event("m.room.create", BOB, dict(room.create.content), "", [], **hashed_create(room))


@row("version is unknown")
def create_of_unknown_version(room):
    content = room.create.content | {"room_version": "org.example.unknown"}
    return room.event("m.room.create", ALICE, content, "", [], **hashed_create(room))


@row("version is unknown")
def create_of_malformed_version(room):
    return room.event(
        "m.room.create", ALICE, room.create.content | {"room_version": ["1"]}, "", [], **hashed_create(room)
    )


@row(None)
def create_without_version(room):
    content = {key: value for key, value in room.create.content.items() if key != "room_version"}
    return room.event("m.room.create", ALICE, content, "", [], **hashed_create(room))


@row("no creator", where=lambda v: not v.implicit_room_creator)
def create_without_creator(room):
    return room.event("m.room.create", ALICE, {}, "", [], **hashed_create(room))


for _name, _value in (
    ("text", "@bob:b.example"),
    ("mixed", [BOB, 7]),
    ("invalid", [BOB, "bob"]),
    ("null", None),
):

    def _additional(room, value=_value):
        content = room.create.content | {"additional_creators": value}
        return room.event("m.room.create", ALICE, content, "", [], **hashed_create(room))

    _additional.__name__ = f"create_with_additional_creators_{_name}"
    row("additional_creators", where=lambda v: v.privileged_creators)(_additional)


@row(None)
def create_with_additional_creators(room):
    content = room.create.content | {"additional_creators": [BOB, "@Historic User:c.example"]}
    return room.event("m.room.create", ALICE, content, "", [], **hashed_create(room))


# --- the room ---------------------------------------------------------------------------------------


@row("no create event")
def room_without_create(room):
    joined(room)
    del room.state["m.room.create", ""]
    return room.event("m.room.message", ALICE, {})


@row("not of the room")
def event_of_another_room(room):
    joined(room)
    other = "!" + "A" * 43 if room.version.room_ids_as_hashes else "!other:a.example"
    return room.event("m.room.message", ALICE, {}, room_id=other)


def closed(room: RoomBuilder, value: Any) -> None:
    room.room_id = None if room.version.room_ids_as_hashes else room.room_id
    content = room.create.content | {"m.federate": value}
    room.room_id = room.put("m.room.create", ALICE, content, prev_events=[]).room_id
    joined(room, BOB, DAVE)


@row("closed to other servers")
def closed_room_to_others(room):
    closed(room, False)
    return room.event("m.room.message", BOB, {})


@row(None)
def closed_room_to_its_own(room):
    closed(room, False)
    return room.event("m.room.message", DAVE, {})


@row(None)
def open_room(room):
    closed(room, True)
    return room.event("m.room.message", BOB, {})


@row(None)
def room_closed_by_something_else_than_false(room):
    closed(room, "false")
    return room.event("m.room.message", BOB, {})


# --- aliases ----------------------------------------------------------------------------------------


@row(None, where=lambda v: v.special_case_aliases_auth, otherwise="not in the room")
def aliases_of_own_server_without_membership(room):
    return room.event("m.room.aliases", BOB, {"aliases": []}, "b.example")


@row("set by their own server", where=lambda v: v.special_case_aliases_auth)
def aliases_of_another_server(room):
    joined(room)
    set_levels(room, users={ALICE: 100} if not room.version.privileged_creators else {})
    return room.event("m.room.aliases", ALICE, {"aliases": []}, "b.example")


@row("have a state key", where=lambda v: v.special_case_aliases_auth)
def aliases_without_state_key(room):
    joined(room)
    return room.event("m.room.aliases", ALICE, {"aliases": []})


# --- membership: in general -------------------------------------------------------------------------


@row("has a state key")
def member_without_state_key(room):
    joined(room)
    return room.event("m.room.member", ALICE, {"membership": "join"})


@row("states no membership")
def member_without_membership(room):
    joined(room)
    return room.event("m.room.member", ALICE, {}, ALICE)


@row("not a user id")
def member_that_is_no_user(room):
    joined(room)
    return membership(room, ALICE, "bob", "invite")


@row("membership is unknown")
def member_with_unknown_membership(room):
    joined(room)
    return membership(room, ALICE, ALICE, "dance")


@row("membership is unknown")
def member_with_malformed_membership(room):
    joined(room)
    return membership(room, ALICE, ALICE, ["join"])


# --- membership: join -------------------------------------------------------------------------------


@row(None)
def join_of_creator_after_create(room):
    return room.event("m.room.member", ALICE, {"membership": "join"}, ALICE, [room.create])


@row("not invited")
def join_of_creator_later(room):
    return membership(room, ALICE, ALICE, "join")


@row("not invited")
def join_of_another_after_create(room):
    return room.event("m.room.member", BOB, {"membership": "join"}, BOB, [room.create])


@row("not invited")
def join_of_additional_creator_after_create(room):
    room.room_id = None if room.version.room_ids_as_hashes else room.room_id
    content = room.create.content | {"additional_creators": [BOB]}
    create = room.put("m.room.create", ALICE, content, prev_events=[])
    room.room_id = create.room_id
    return room.event("m.room.member", BOB, {"membership": "join"}, BOB, [create])


@row(None, where=lambda v: v.implicit_room_creator, otherwise="not invited")
def join_of_sender_where_another_is_named_creator(room):
    room.room_id = None if room.version.room_ids_as_hashes else room.room_id
    create = room.put("m.room.create", ALICE, room.create.content | {"creator": BOB}, prev_events=[])
    room.room_id = create.room_id
    return room.event("m.room.member", ALICE, {"membership": "join"}, ALICE, [create])


@row("make another user join")
def join_for_another(room):
    joined(room)
    set_join_rule(room, "public")
    return membership(room, ALICE, BOB, "join")


@row("banned")
def join_of_banned(room):
    joined(room)
    set_join_rule(room, "public")
    room.member(BOB, "ban", ALICE)
    return membership(room, BOB, BOB, "join")


@row(None)
def join_of_public_room(room):
    joined(room)
    set_join_rule(room, "public")
    return membership(room, BOB, BOB, "join")


@row(None)
def join_of_public_room_after_leaving(room):
    joined(room)
    set_join_rule(room, "public")
    room.member(BOB, "leave")
    return membership(room, BOB, BOB, "join")


@row("not invited")
def join_without_invite(room):
    joined(room)
    set_join_rule(room, "invite")
    return membership(room, BOB, BOB, "join")


@row("not invited")
def join_without_invite_nor_join_rules(room):
    joined(room)
    return membership(room, BOB, BOB, "join")


@row(None)
def join_with_invite(room):
    joined(room)
    set_join_rule(room, "invite")
    room.member(BOB, "invite", ALICE)
    return membership(room, BOB, BOB, "join")


@row(None)
def join_again(room):
    joined(room, BOB)
    set_join_rule(room, "invite")
    return membership(room, BOB, BOB, "join", displayname="Bob")


for _rule in ("private", "unknown", None, 7, ["public"]):

    def _closed_rule(room, rule=_rule):
        joined(room)
        set_join_rule(room, rule)
        room.member(BOB, "invite", ALICE)
        return membership(room, BOB, BOB, "join")

    _closed_rule.__name__ = f"join_under_rule_{_rule}"
    row("join rule does not allow")(_closed_rule)


@row(None, where=lambda v: v.knocking, otherwise="join rule does not allow")
def join_under_knock_with_invite(room):
    joined(room)
    set_join_rule(room, "knock")
    room.member(BOB, "invite", ALICE)
    return membership(room, BOB, BOB, "join")


@row("not invited", where=lambda v: v.knocking, otherwise="join rule does not allow")
def join_under_knock_without_invite(room):
    joined(room)
    set_join_rule(room, "knock")
    room.member(BOB, "knock")
    return membership(room, BOB, BOB, "join")


def restricted_rules(rule: str, trait: str) -> None:
    def where(version: RoomVersion) -> bool:
        return bool(getattr(version, trait))

    def add(name: str, reason: str | None, scene: Callable[[RoomBuilder], Event]) -> None:
        def set_up(room: RoomBuilder) -> Event:
            joined(room, CAROL)
            set_join_rule(room, rule)
            return scene(room)

        set_up.__name__ = f"join_under_{rule}_{name}"
        row(reason, where=where, otherwise="join rule does not allow")(set_up)

    def join(room: RoomBuilder, **content: Any) -> Event:
        return membership(room, BOB, BOB, "join", **content)

    def invited(room: RoomBuilder) -> Event:
        room.member(BOB, "invite", ALICE)
        return join(room)

    def again(room: RoomBuilder) -> Event:
        room.member(BOB, "join")
        return join(room)

    def authorised(room: RoomBuilder) -> Event:
        return join(room, join_authorised_via_users_server=CAROL)

    def authorised_by_nobody(room: RoomBuilder) -> Event:
        return join(room, join_authorised_via_users_server=["x"])

    def authorised_by_leaver(room: RoomBuilder) -> Event:
        room.member(CAROL, "leave")
        return authorised(room)

    def authorised_by_powerful(room: RoomBuilder) -> Event:
        set_levels(room, invite=50, users={CAROL: 50})
        return authorised(room)

    def authorised_by_powerless(room: RoomBuilder) -> Event:
        set_levels(room, invite=50, users={CAROL: 49})
        return authorised(room)

    add("with_invite", None, invited)
    add("again", None, again)
    add("unauthorised", "not authorised by a member", join)
    add("authorised", None, authorised)
    add("authorised_malformed", "not authorised by a member", authorised_by_nobody)
    add("authorised_by_leaver", "not authorised by a member", authorised_by_leaver)
    add("authorised_by_powerful", None, authorised_by_powerful)
    add("authorised_by_powerless", "may not invite", authorised_by_powerless)


restricted_rules("restricted", "restricted_joins")
restricted_rules("knock_restricted", "knock_restricted")


# --- membership: invite -----------------------------------------------------------------------------


@row("not in the room")
def invite_by_outsider(room):
    joined(room)
    return membership(room, BOB, CAROL, "invite")


@row(None)
def invite(room):
    joined(room, BOB)
    return membership(room, BOB, CAROL, "invite")


@row(None)
def invite_again(room):
    joined(room, BOB)
    room.member(CAROL, "invite", BOB)
    return membership(room, BOB, CAROL, "invite")


@row("joined or banned")
def invite_of_joined(room):
    joined(room, BOB, CAROL)
    return membership(room, BOB, CAROL, "invite")


@row("joined or banned")
def invite_of_banned(room):
    joined(room, BOB)
    room.member(CAROL, "ban", ALICE)
    return membership(room, BOB, CAROL, "invite")


@row("may not invite")
def invite_without_power(room):
    joined(room, BOB)
    set_levels(room, invite=50, users={BOB: 49})
    return membership(room, BOB, CAROL, "invite")


@row(None)
def invite_with_power(room):
    joined(room, BOB)
    set_levels(room, invite=50, users={BOB: 50})
    return membership(room, BOB, CAROL, "invite")


def third_party(
    room: RoomBuilder,
    *,
    sender: str = BOB,
    key: str = "public_key",
    offered: Any = None,
    signed_change: dict[str, Any] | None = None,
    after_signing: dict[str, Any] | None = None,
) -> Event:
    """Bob, who is in the room, has invited an address that turns out to be Carol's."""
    joined(room, BOB)
    public = signing.encode_base64(IDENTITY_KEY.verify_key, urlsafe=key == "urlsafe")
    keys = {
        "public_key": {"public_key": public},
        "urlsafe": {"public_key": public},
        "public_keys": {"public_key": "AAAA", "public_keys": [7, {}, {"public_key": public}]},
        "none": {},
        "wrong": {"public_key": signing.encode_base64(b"\1" * 32), "public_keys": "x"},
    }[key]
    room.put("m.room.third_party_invite", BOB, {"display_name": "C"} | keys, "token")
    signed = {"mxid": CAROL, "token": "token"} | (signed_change or {})
    signed = {name: value for name, value in signed.items() if value is not ...}
    signed = signing.sign_json(signed, "id.example", IDENTITY_KEY.key_id, IDENTITY_KEY.secret)
    signed |= after_signing or {}
    invite = {"display_name": "C", "signed": signed} if offered is None else offered
    return membership(room, sender, CAROL, "invite", third_party_invite=invite)


for _key in ("public_key", "urlsafe", "public_keys"):

    def _third_party(room, key=_key):
        return third_party(room, key=key)

    _third_party.__name__ = f"third_party_invite_with_{_key}"
    row(None)(_third_party)

for _key in ("none", "wrong"):

    def _third_party_wrong(room, key=_key):
        return third_party(room, key=key)

    _third_party_wrong.__name__ = f"third_party_invite_with_{_key}"
    row("not signed by its keys")(_third_party_wrong)

for _name, _offered in (
    ("null", False),
    ("empty", {}),
    ("unsigned", {"display_name": "C"}),
    ("odd", {"signed": "x"}),
):

    def _third_party_odd(room, offered=_offered):
        return third_party(room, offered=offered)

    _third_party_odd.__name__ = f"third_party_invite_{_name}"
    row("is not signed")(_third_party_odd)


@row("is not signed")
def third_party_invite_without_token(room):
    return third_party(room, signed_change={"token": ...})


@row("is not signed")
def third_party_invite_without_mxid(room):
    return third_party(room, signed_change={"mxid": ...})


@row("for another user")
def third_party_invite_of_another(room):
    return third_party(room, signed_change={"mxid": DAVE})


@row("no such third-party invite")
def third_party_invite_with_unknown_token(room):
    return third_party(room, signed_change={"token": "other"})


@row("another sender")
def third_party_invite_by_another_sender(room):
    return third_party(room, sender=ALICE)


@row("not signed by its keys")
def third_party_invite_changed_after_signing(room):
    return third_party(room, after_signing={"more": 1})


@row("not signed by its keys")
def third_party_invite_with_malformed_signatures(room):
    return third_party(room, after_signing={"signatures": {"id.example": "x", "other": {"ed25519:0": 7}}})


@row("not signed by its keys")
def third_party_invite_without_signatures(room):
    return third_party(room, after_signing={"signatures": []})


@row("not signed by its keys")
def third_party_invite_signed_by_another_algorithm(room):
    event = third_party(room)
    by_key = event.content["third_party_invite"]["signed"]["signatures"]["id.example"]
    by_key["rsa:0"] = by_key.pop(IDENTITY_KEY.key_id)
    return event


@row(None, where=lambda v: not v.strict_canonical_json, otherwise="not signed by its keys")
def third_party_invite_with_float(room):
    event = third_party(room)
    signed = event.content["third_party_invite"]["signed"]
    signed["float"] = 1.5
    payload = signing.signed_payload(signed, lenient=True)
    signed["signatures"]["id.example"][IDENTITY_KEY.key_id] = signing.sign_bytes(payload, IDENTITY_KEY.secret)
    return event


@row("is banned")
def third_party_invite_of_banned(room):
    event = third_party(room)
    room.member(CAROL, "ban", ALICE)
    return event


@row(None)
def third_party_invite_by_leaver(room):
    event = third_party(room)
    room.member(BOB, "leave")
    return event


# --- membership: leave ------------------------------------------------------------------------------

for _membership in ("join", "invite"):

    def _leave(room, current=_membership):
        joined(room)
        room.member(BOB, current, ALICE)
        return membership(room, BOB, BOB, "leave")

    _leave.__name__ = f"leave_after_{_membership}"
    row(None)(_leave)


@row(None, where=lambda v: v.knocking, otherwise="nothing to leave")
def leave_after_knock(room):
    joined(room)
    room.member(BOB, "knock")
    return membership(room, BOB, BOB, "leave")


for _membership in ("leave", "ban", None):

    def _leave_nothing(room, current=_membership):
        joined(room)
        if current is not None:
            room.member(BOB, current, ALICE)
        return membership(room, BOB, BOB, "leave")

    _leave_nothing.__name__ = f"leave_after_{_membership}"
    row("nothing to leave")(_leave_nothing)


@row("not in the room")
def kick_by_outsider(room):
    joined(room, CAROL)
    set_levels(room, users={BOB: 90})
    return membership(room, BOB, CAROL, "leave")


@row(None)
def kick(room):
    joined(room, BOB, CAROL, bob=50, carol=49)
    return membership(room, BOB, CAROL, "leave")


@row("may not kick")
def kick_without_power(room):
    joined(room, BOB, CAROL, bob=49, carol=0)
    return membership(room, BOB, CAROL, "leave")


@row("no less power")
def kick_of_equal(room):
    joined(room, BOB, CAROL, bob=50, carol=50)
    return membership(room, BOB, CAROL, "leave")


@row("may not kick")
def kick_at_raised_level(room):
    joined(room, BOB, CAROL)
    set_levels(room, kick=60, users={BOB: 59})
    return membership(room, BOB, CAROL, "leave")


@row("may not lift a ban")
def unban_without_power(room):
    joined(room, BOB)
    set_levels(room, ban=60, users={BOB: 59})
    room.member(CAROL, "ban", ALICE)
    return membership(room, BOB, CAROL, "leave")


@row(None)
def unban(room):
    joined(room, BOB)
    set_levels(room, ban=60, users={BOB: 60})
    room.member(CAROL, "ban", ALICE)
    return membership(room, BOB, CAROL, "leave")


@row("may not kick")
def unban_with_power_to_ban_only(room):
    joined(room, BOB)
    set_levels(room, ban=10, kick=60, users={BOB: 50})
    room.member(CAROL, "ban", ALICE)
    return membership(room, BOB, CAROL, "leave")


# --- membership: ban --------------------------------------------------------------------------------


@row("not in the room")
def ban_by_outsider(room):
    joined(room, CAROL)
    set_levels(room, users={BOB: 90})
    return membership(room, BOB, CAROL, "ban")


@row(None)
def ban(room):
    joined(room, BOB, CAROL, bob=50, carol=49)
    return membership(room, BOB, CAROL, "ban")


@row(None)
def ban_of_outsider(room):
    joined(room, BOB, bob=50)
    return membership(room, BOB, CAROL, "ban")


@row("may not ban")
def ban_without_power(room):
    joined(room, BOB, CAROL, bob=49, carol=0)
    return membership(room, BOB, CAROL, "ban")


@row("no less power")
def ban_of_equal(room):
    joined(room, BOB, CAROL, bob=50, carol=50)
    return membership(room, BOB, CAROL, "ban")


@row("no less power", where=lambda v: v.privileged_creators)
def ban_of_creator(room):
    joined(room, BOB, bob=100)
    return membership(room, BOB, ALICE, "ban")


# --- membership: knock ------------------------------------------------------------------------------

for _rule in ("public", "invite", "restricted", "private", None):

    def _knock_elsewhere(room, rule=_rule):
        joined(room)
        if rule is not None:
            set_join_rule(room, rule)
        return membership(room, BOB, BOB, "knock")

    _knock_elsewhere.__name__ = f"knock_under_rule_{_rule}"
    row("not allow to knock", where=lambda v: v.knocking, otherwise="membership is unknown")(_knock_elsewhere)


@row(None, where=lambda v: v.knocking, otherwise="membership is unknown")
def knock(room):
    joined(room)
    set_join_rule(room, "knock")
    return membership(room, BOB, BOB, "knock")


@row(None, where=lambda v: v.knocking, otherwise="membership is unknown")
def knock_again(room):
    joined(room)
    set_join_rule(room, "knock")
    room.member(BOB, "knock")
    return membership(room, BOB, BOB, "knock")


def no_knock_restricted(version: RoomVersion) -> str:
    return "not allow to knock" if version.knocking else "membership is unknown"


@row(None, where=lambda v: v.knock_restricted, otherwise=no_knock_restricted)
def knock_under_knock_restricted(room):
    joined(room)
    set_join_rule(room, "knock_restricted")
    return membership(room, BOB, BOB, "knock")


@row("knock for another", where=lambda v: v.knocking, otherwise="membership is unknown")
def knock_for_another(room):
    joined(room)
    set_join_rule(room, "knock")
    return membership(room, ALICE, BOB, "knock")


for _membership in ("ban", "invite", "join"):

    def _knock_late(room, current=_membership):
        joined(room)
        set_join_rule(room, "knock")
        room.member(BOB, current, ALICE)
        return membership(room, BOB, BOB, "knock")

    _knock_late.__name__ = f"knock_after_{_membership}"
    row("banned, invited or joined", where=lambda v: v.knocking, otherwise="membership is unknown")(_knock_late)


# --- sending ----------------------------------------------------------------------------------------


@row(None)
def message(room):
    joined(room, BOB)
    return room.event("m.room.message", BOB, {"body": "x"})


for _membership in ("invite", "leave", "ban", "knock", None):

    def _message_by_outsider(room, current=_membership):
        joined(room)
        if current is not None:
            room.member(BOB, current, ALICE)
        return room.event("m.room.message", BOB, {"body": "x"})

    _message_by_outsider.__name__ = f"message_after_{_membership}"
    row("not in the room")(_message_by_outsider)


@row("may not invite")
def third_party_invitation_without_power(room):
    joined(room, BOB)
    set_levels(room, invite=50, users={BOB: 49})
    return room.event("m.room.third_party_invite", BOB, {}, "token")


@row(None)
def third_party_invitation_is_not_ruled_by_events(room):
    joined(room, BOB)
    set_levels(room, invite=50, events={"m.room.third_party_invite": 100}, users={BOB: 50})
    return room.event("m.room.third_party_invite", BOB, {}, "token")


@row("may not send")
def message_above_level(room):
    joined(room, BOB)
    set_levels(room, events={"m.room.message": 10}, users={BOB: 9})
    return room.event("m.room.message", BOB, {})


@row(None)
def message_at_level(room):
    joined(room, BOB)
    set_levels(room, events={"m.room.message": 10}, events_default=90, users={BOB: 10})
    return room.event("m.room.message", BOB, {})


@row("may not send")
def message_above_default(room):
    joined(room, BOB)
    set_levels(room, events_default=10, users_default=9)
    return room.event("m.room.message", BOB, {})


@row("may not send")
def state_above_default(room):
    joined(room, BOB, bob=49)
    return room.event("m.room.topic", BOB, {}, "")


@row(None)
def state_at_default(room):
    joined(room, BOB, bob=50)
    return room.event("m.room.topic", BOB, {}, "")


@row("may not send")
def state_without_power_levels(room):
    joined(room, BOB)
    return room.event("m.room.topic", BOB, {}, "")


@row(None)
def state_by_creator_without_power_levels(room):
    joined(room)
    return room.event("m.room.topic", ALICE, {}, "")


@row(None, where=lambda v: v.privileged_creators, otherwise="may not send")
def state_by_creator_who_is_not_listed(room):
    joined(room)
    set_levels(room, state_default=100)
    return room.event("m.room.topic", ALICE, {}, "")


@row(None, where=lambda v: v.privileged_creators, otherwise="may not send")
def state_by_additional_creator(room):
    room.room_id = None if room.version.room_ids_as_hashes else room.room_id
    content = room.create.content | {"additional_creators": [BOB]}
    room.room_id = room.put("m.room.create", ALICE, content, prev_events=[]).room_id
    joined(room, BOB)
    return room.event("m.room.topic", BOB, {}, "")


@row("another user")
def state_of_another_user(room):
    joined(room, BOB, bob=90)
    return room.event("org.example.state", BOB, {}, CAROL)


@row(None)
def state_of_oneself(room):
    joined(room, BOB, bob=90)
    return room.event("org.example.state", BOB, {}, BOB)


@row(None)
def state_key_that_only_contains_a_user(room):
    joined(room, BOB, bob=90)
    return room.event("org.example.state", BOB, {}, "_" + CAROL)


# --- redactions -------------------------------------------------------------------------------------


@row("may not redact", where=lambda v: v.redaction_in_auth_rules)
def redaction_of_another_server(room):
    joined(room, BOB)
    return room.event("m.room.redaction", BOB, {}, redacts="$x:c.example")


@row("may not redact", where=lambda v: v.redaction_in_auth_rules)
def redaction_of_nothing(room):
    joined(room, BOB)
    return room.event("m.room.redaction", BOB, {})


@row("may not redact", where=lambda v: v.redaction_in_auth_rules)
def redaction_of_a_hash(room):
    joined(room, BOB)
    return room.event("m.room.redaction", BOB, {}, redacts="$hash")


@row(None)
def redaction_of_own_server(room):
    joined(room, BOB)
    return room.event("m.room.redaction", BOB, {}, redacts="$x:a.example", event_id="$y:a.example")


@row(None)
def redaction_with_power(room):
    joined(room, BOB, bob=50)
    return room.event("m.room.redaction", BOB, {}, redacts="$x:c.example")


@row("may not send")
def redaction_without_power_to_send(room):
    joined(room, BOB)
    set_levels(room, events={"m.room.redaction": 60}, users={BOB: 59})
    return room.event("m.room.redaction", BOB, {}, redacts="$x:a.example")


# --- power levels -----------------------------------------------------------------------------------


def new_levels(room: RoomBuilder, **content: Any) -> Event:
    """Power levels by Bob, who has 60 of at most 100."""
    return room.event("m.room.power_levels", BOB, content, "")


def levels_row(
    name: str,
    reason: str | None,
    new: dict[str, Any],
    old: dict[str, Any] | None = None,
    *,
    where: Callable[[RoomVersion], bool] = everywhere,
    otherwise: Outcome = None,
) -> None:
    """Bob, with power 60, changes the levels; ``users`` of both get his own added."""

    def scene(room: RoomBuilder) -> Event:
        joined(room, BOB)
        before = {"users": {BOB: 60}} | (old or {})
        if isinstance(before["users"], dict):
            before["users"] = {BOB: 60} | before["users"]
        set_levels(room, **before)
        after = {"users": {}} | new
        if isinstance(after["users"], dict):
            after["users"] = {BOB: 60} | after["users"]
        return new_levels(room, **{key: value for key, value in after.items() if value is not ...})

    scene.__name__ = f"levels_{name}"
    row(reason, where=where, otherwise=otherwise)(scene)


levels_row("unchanged", None, {})
levels_row("with_unknown_keys", None, {"org.example": "x", "historical": [1]})

for _odd in ("x", [], 7, None):
    levels_row(f"users_{_odd}", "users is not an object", {"users": _odd})
    levels_row(f"events_{_odd}", "events is not an object", {"events": _odd})
    levels_row(
        f"notifications_{_odd}",
        "notifications is not an object",
        {"notifications": _odd},
        where=lambda v: v.limit_notifications_power_levels,
    )

for _user in ("carol", "@carol", "", "@carol:", "@a\0:b.example", "@" + "a" * 300 + ":b.example"):
    levels_row(f"users_key_{_user[:9]!r}", "not a user id", {"users": {_user: 1}})
levels_row("users_key_historical", None, {"users": {"@Carol C.:c.example": 1}})

for _odd in ("x", "", "1.5", "0x10", "1_0", "--1", [], {}, None, True):
    levels_row(f"users_value_{_odd!r}", "users holds", {"users": {CAROL: _odd}})
    levels_row(f"events_value_{_odd!r}", "events holds", {"events": {"m.x": _odd}})
    for _key in auth_rules._NAMED_LEVELS:
        levels_row(f"{_key}_value_{_odd!r}", f"{_key} is not a power level", {_key: _odd})
    levels_row(
        f"notifications_value_{_odd!r}",
        "notifications holds",
        {"notifications": {"room": _odd}},
        where=lambda v: v.limit_notifications_power_levels,
    )

for _text in ("50", " 50 ", "+50", "0050", "-5", "\t\n 000"):
    for _new in ({"users": {CAROL: _text}}, {"events": {"m.x": _text}}, {"ban": _text}):
        levels_row(
            f"as_text_{_text!r}_{next(iter(_new))}",
            None,
            _new,
            where=lambda v: not v.integer_power_levels,
            otherwise="not a power level" if "ban" in _new else "holds something",
        )

levels_row(
    "text_is_compared_as_number",
    None,
    {"ban": " 70 "},
    {"ban": 70},
    where=lambda v: not v.integer_power_levels,
    otherwise="not a power level",
)
levels_row(
    "text_above_own",
    "so high",
    {"ban": "61"},
    where=lambda v: not v.integer_power_levels,
    otherwise="not a power level",
)

for _key in auth_rules._NAMED_LEVELS:
    # Power levels are named among the events, so that none of these levels keeps Bob from sending them.
    _events = {"events": {"m.room.power_levels": 60}}
    levels_row(f"{_key}_added", None, _events | {_key: 60}, _events)
    levels_row(f"{_key}_added_above", "so high", _events | {_key: 61}, _events)
    levels_row(f"{_key}_changed", None, _events | {_key: 10}, _events | {_key: 60})
    levels_row(f"{_key}_changed_above", "so high", _events | {_key: 61}, _events | {_key: 60})
    levels_row(f"{_key}_changed_from_above", "may not change", _events | {_key: 60}, _events | {_key: 61})
    levels_row(f"{_key}_removed", None, _events, _events | {_key: 60})
    levels_row(f"{_key}_removed_from_above", "may not change", _events, _events | {_key: 61})
    levels_row(f"{_key}_kept_above", None, _events | {_key: 61}, _events | {_key: 61})

for _key, _where in (
    ("events", everywhere),
    ("notifications", lambda v: v.limit_notifications_power_levels),
):
    levels_row(f"{_key}_added", None, {_key: {"m.x": 60}})
    levels_row(f"{_key}_added_above", "so high", {_key: {"m.x": 61}}, where=_where)
    levels_row(f"{_key}_changed", None, {_key: {"m.x": 1}}, {_key: {"m.x": 60}})
    levels_row(f"{_key}_changed_from_above", "may not change", {_key: {"m.x": 1}}, {_key: {"m.x": 61}}, where=_where)
    levels_row(f"{_key}_changed_to_above", "so high", {_key: {"m.x": 61}}, {_key: {"m.x": 1}}, where=_where)
    levels_row(f"{_key}_removed", None, {_key: {}}, {_key: {"m.x": 60}})
    levels_row(f"{_key}_removed_from_above", "may not change", {}, {_key: {"m.x": 61}}, where=_where)
    levels_row(f"{_key}_kept_above", None, {_key: {"m.x": 61}}, {_key: {"m.x": 61}})

levels_row("user_added", None, {"users": {CAROL: 60}})
levels_row("user_added_above", "so high", {"users": {CAROL: 61}})
levels_row("user_raised_to_above", "so high", {"users": {CAROL: 61}}, {"users": {CAROL: 1}})
levels_row("user_lowered", None, {"users": {CAROL: 1}}, {"users": {CAROL: 59}})
levels_row("user_lowered_from_equal", "may not change", {"users": {CAROL: 1}}, {"users": {CAROL: 60}})
levels_row("user_removed", None, {}, {"users": {CAROL: 59}})
levels_row("user_removed_from_equal", "may not change", {}, {"users": {CAROL: 60}})
levels_row("user_kept_above", None, {"users": {CAROL: 61}}, {"users": {CAROL: 61}})
levels_row("own_lowered", None, {"users": {BOB: 1}})
levels_row("own_raised", "so high", {"users": {BOB: 61}})
levels_row("creator_listed", "creators do not appear", {"users": {ALICE: 60}}, where=lambda v: v.privileged_creators)


@row(None)
def levels_removing_oneself(room):
    joined(room, BOB, bob=60)
    return new_levels(room, users={})


@row(None)
def levels_without_users(room):
    joined(room, BOB, bob=60)
    return new_levels(room, ban=50)


@row("may not send")
def levels_without_power(room):
    joined(room, BOB, bob=49)
    return new_levels(room)


@row(None)
def first_levels(room):
    joined(room)
    users = {} if room.version.privileged_creators else {ALICE: 100}
    return room.event("m.room.power_levels", ALICE, {"users": users, "ban": 1000}, "")


@row("not a power level")
def first_levels_malformed(room):
    joined(room)
    return room.event("m.room.power_levels", ALICE, {"ban": "much"}, "")


@row("creators do not appear", where=lambda v: v.privileged_creators)
def first_levels_with_creator(room):
    joined(room)
    return room.event("m.room.power_levels", ALICE, {"users": {ALICE: 100}}, "")


@row("creators do not appear", where=lambda v: v.privileged_creators)
def first_levels_with_additional_creator(room):
    room.room_id = None if room.version.room_ids_as_hashes else room.room_id
    content = room.create.content | {"additional_creators": [CAROL]}
    room.room_id = room.put("m.room.create", ALICE, content, prev_events=[]).room_id
    joined(room)
    return room.event("m.room.power_levels", ALICE, {"users": {CAROL: 100}}, "")


@row(None)
def levels_of_creator_above_all(room):
    joined(room, BOB)
    users = {BOB: 100} | ({} if room.version.privileged_creators else {ALICE: 101})
    set_levels(room, users=users)
    users = users | {BOB: 1}
    return room.event("m.room.power_levels", ALICE, {"users": users}, "")


# --- the table is tried -----------------------------------------------------------------------------


class RuleTests(SynchronousTestCase):
    def judge(self, scene: Callable[[RoomBuilder], Event], version: RoomVersion) -> str | None:
        room = RoomBuilder(version)
        event = scene(room)
        try:
            check_auth(event, room.state)
        except AuthError as error:
            outcome = str(error)
        else:
            outcome = None
        if ("m.room.create", "") in room.state:
            try:
                check_auth(event, room.state, power_levels=power_levels(room.state))
            except AuthError as error:
                self.assertEqual(str(error), outcome)
            else:
                self.assertIsNone(outcome)
        return outcome

    def test_table(self):
        names = [row.name for row in ROWS]
        self.assertEqual(len(names), len(set(names)), "two rows have one name")
        wrong = []
        for name, reason, scene, where, otherwise in ROWS:
            self.assertTrue(any(map(where, ALL)), f"{name} holds nowhere")
            for version in ALL:
                outcome = self.judge(scene, version)
                expected = reason if where(version) else otherwise
                if callable(expected):
                    expected = expected(version)
                if (outcome is None) != (expected is None) or (expected or "") not in (outcome or ""):
                    wrong.append(f"{name} in version {version.identifier}: {outcome!r} instead of {expected!r}")
        self.assertEqual(wrong, [])

    def test_levels_of_the_caller_are_taken(self):
        for version in ALL:
            room = RoomBuilder(version)
            joined(room, BOB)
            check_auth(room.event("m.room.message", BOB, {}), room.state)
            set_levels(room, events_default=1)
            strict = power_levels(room.state)
            del room.state["m.room.power_levels", ""]
            event = room.event("m.room.message", BOB, {})
            check_auth(event, room.state)
            self.assertRaises(AuthError, check_auth, event, room.state, power_levels=strict)

    def test_work_on_third_party_invites_is_bounded(self):
        """The signature that counts may be the tenth by the tenth key, and no later."""
        good = signing.encode_base64(IDENTITY_KEY.verify_key)
        bad = signing.encode_base64(signing_key("ed25519:0", b"\4" * 32).verify_key)
        for keys_before, signatures_before, allowed in ((9, 9, True), (10, 0, False), (0, 10, False)):
            room = RoomBuilder(ROOM_VERSIONS["12"])
            event = third_party(room)
            content = {
                "public_key": bad,
                "public_keys": [{"public_key": bad}] * (keys_before - 1) + [{"public_key": good}],
            }
            room.put("m.room.third_party_invite", BOB, content, "token")
            signed = event.content["third_party_invite"]["signed"]
            ours = signed["signatures"]["id.example"][IDENTITY_KEY.key_id]
            by_key = {f"ed25519:{n}": "AAAA" for n in range(signatures_before)} | {"ed25519:z": ours}
            signed["signatures"] = {"ignored": {"rsa:1": "x"}, "id.example": by_key}
            if allowed:
                check_auth(event, room.state)
            else:
                self.assertRaises(AuthError, check_auth, event, room.state)

    def test_every_reason_is_in_the_table(self):
        """A rule without a row would go unnoticed: each refusal of the source occurs in the outcomes."""
        outcomes = {self.judge(row.scene, version) for row in ROWS for version in ALL}
        source = set(_reasons())
        missing = {text for text in source if not any(outcome and text in outcome for outcome in outcomes)}
        self.assertEqual(missing, set())


def _reasons() -> list[str]:
    """The longest fixed part of each reason that the rules give, but for the check of auth events."""
    import ast
    import inspect

    tree = ast.parse(inspect.getsource(auth_rules))
    found = []
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef) or function.name == "check_event_auth_events":
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "AuthError":
                text = [part.value for part in ast.walk(node.args[0]) if isinstance(part, ast.Constant)]
                found.append(max((str(part) for part in text), key=len))
    return found
