"""What happens between two homeservers: a scene for each thing that users of one do with users of the other.

`STORIES` is the table; `tests.interop.test_synapse` plays each row with either server as the host and with each room
version that has the feature.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from PIL import Image

from tests.interop.devices import Keys
from tests.interop.pair import Play, Scene
from tests.interop.people import Person, eventually

ALL = ("6", "9", "10", "11", "12")
SINCE_9 = ALL[1:]
SINCE_10 = ALL[2:]
FEW = ("6", "12")
ANY = ("10",)


@dataclass(frozen=True)
class Story:
    """A row: a scene, the room versions that it is played with, and which server can be the host in it."""

    scene: Scene
    versions: Sequence[str]
    hosts: Sequence[str] = ("ours", "synapse")

    @property
    def name(self) -> str:
        return self.scene.__name__


def meet(play: Play, **options: Any) -> tuple[Person, Person, str]:
    """Somebody on each server, and a room of the host's that both are in."""
    host, guest = play.host.person("host"), play.guest.person("guest")
    room = host.create_room(play.version, **options)
    guest.join(room, play.via)
    return host, guest, room


def same_state(room: str, *people: Person) -> dict[tuple[str, str], str]:
    """Wait until all see the same current state; what it is."""
    eventually(lambda: len({str(sorted(person.state_ids(room).items())) for person in people}) == 1, "the same state")
    return people[0].state_ids(room)


# --- memberships ---


def join_by_alias(play: Play) -> None:
    """A guest finds a room by its name, joins, and both talk and see each other."""
    host, guest = play.host.person("host"), play.guest.person("guest")
    name = f"garden-of-{host.localpart}"
    room = host.create_room(play.version, room_alias_name=name, name="Garden")
    alias = f"#{name}:{play.host.server_name}"
    found = guest.get(f"/directory/room/{quote(alias)}")
    assert found["room_id"] == room
    assert play.via in found["servers"], found
    assert guest.join(alias, play.via) == room
    assert guest.content(room, "m.room.name") == {"name": "Garden"}
    host.sees_membership(room, guest, "join")
    there = host.say(room, "Welcome.")
    back = guest.say(room, "Thank you.")
    guest.sees(room, there)
    host.sees(room, back)
    for person in (host, guest):
        members = person.get(f"/rooms/{quote(room)}/joined_members")["joined"]
        assert set(members) == {host.user_id, guest.user_id}, members
    same_state(room, host, guest)


def many_messages(play: Play) -> None:
    """What is said quickly on both sides arrives once, in the order of each speaker."""
    host, guest, room = meet(play)
    spoken: dict[Person, list[str]] = {host: [], guest: []}
    for number in range(25):
        for person in spoken:
            text = f"{person} {number}"
            person.say(room, text)
            spoken[person].append(text)
    for person in spoken:
        eventually(lambda person=person: len(person.texts(room)) >= 50, f"{person} sees fifty messages")  # type: ignore[misc]
        seen = person.texts(room)
        for speaker, texts in spoken.items():
            assert [text for text in seen if text.startswith(str(speaker))] == texts, seen


def restricted_join(play: Play) -> None:
    """Members of one room may join another without being asked; others may not."""
    host, guest, stranger = play.host.person("host"), play.guest.person("guest"), play.guest.person("stranger")
    lobby = host.create_room(play.version)
    rule = {"join_rule": "restricted", "allow": [{"type": "m.room_membership", "room_id": lobby}]}
    room = host.create_room(
        play.version,
        preset="private_chat",
        initial_state=[{"type": "m.room.join_rules", "state_key": "", "content": rule}],
    )
    stranger.refused("POST", f"/join/{quote(room)}?via={play.via}&server_name={play.via}")
    guest.join(lobby, play.via)
    guest.join(room, play.via)
    host.sees_membership(room, guest, "join")
    joined = guest.content(room, "m.room.member", guest.user_id)
    assert joined["join_authorised_via_users_server"] == host.user_id, joined
    host.sees(room, guest.say(room, "In."))
    # The guest's server has members now, but none who could authorise a join: it must ask the host's.
    stranger.join(lobby, play.via)
    stranger.join(room, play.via)
    host.sees_membership(room, stranger, "join")
    same_state(room, host, guest)


def knock(play: Play) -> None:
    """Someone knocks from outside, is let in, and another one is turned away."""
    host, guest, other = play.host.person("host"), play.guest.person("guest"), play.guest.person("other")
    rules = {"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": "knock"}}
    room = host.create_room(play.version, preset="private_chat", name="Club", initial_state=[rules])
    guest.refused("POST", f"/join/{quote(room)}?via={play.via}&server_name={play.via}")
    guest.knock(room, play.via)
    told = guest.synced(lambda sync: sync["rooms"]["knock"][room], "the knock")
    shown = {event["type"]: event["content"] for event in told["knock_state"]["events"]}
    assert shown["m.room.name"] == {"name": "Club"}, shown
    host.sees_membership(room, guest, "knock")
    host.invite(room, guest)
    guest.synced(lambda sync: sync["rooms"]["invite"][room], "the invite")
    guest.join(room, play.via)
    host.sees_membership(room, guest, "join")
    other.knock(room, play.via)
    host.sees_membership(room, other, "knock")
    host.kick(room, other)
    other.synced(lambda sync: room in sync["rooms"]["leave"], "the knock was turned away")


def knock_withdrawn(play: Play) -> None:
    """Someone knocks from outside and thinks better of it."""
    host, guest = play.host.person("host"), play.guest.person("guest")
    rules = {"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": "knock"}}
    room = host.create_room(play.version, preset="private_chat", initial_state=[rules])
    guest.knock(room, play.via)
    host.sees_membership(room, guest, "knock")
    guest.leave(room)
    host.sees_membership(room, guest, "leave")


def invite_and_join(play: Play) -> None:
    """Someone is invited from another server, sees to what, and comes."""
    host, guest = play.host.person("host"), play.guest.person("guest")
    room = host.create_room(play.version, preset="private_chat", name="Tea", is_direct=True)
    host.invite(room, guest)
    told = guest.synced(lambda sync: sync["rooms"]["invite"][room], "the invite")
    shown = {event["type"]: event for event in told["invite_state"]["events"]}
    assert shown["m.room.name"]["content"] == {"name": "Tea"}, shown
    assert shown["m.room.member"]["sender"] == host.user_id, shown
    guest.join(room, play.via)
    host.sees_membership(room, guest, "join")
    host.sees(room, guest.say(room, "Here I am."))
    guest.sees(room, host.say(room, "Sit down."))
    same_state(room, host, guest)


def invite_when_created(play: Play) -> None:
    """A room is made with its guests invited, who look at it before they come."""
    host, guest = play.host.person("host"), play.guest.person("guest")
    room = host.create_room(play.version, preset="trusted_private_chat", invite=[guest.user_id])
    guest.synced(lambda sync: sync["rooms"]["invite"][room], "the invite")
    guest.join(room, play.via)
    guest.set_state(room, "m.room.topic", {"topic": "As trusted as you."})
    eventually(lambda: host.content(room, "m.room.topic") == {"topic": "As trusted as you."}, "the topic")
    same_state(room, host, guest)


def invite_and_reject(play: Play) -> None:
    """Someone declines, and may be invited again."""
    host, guest = play.host.person("host"), play.guest.person("guest")
    room = host.create_room(play.version, preset="private_chat")
    host.invite(room, guest)
    guest.synced(lambda sync: sync["rooms"]["invite"][room], "the invite")
    guest.leave(room)
    host.sees_membership(room, guest, "leave")
    assert room not in guest.get("/sync").get("rooms", {}).get("invite", {})
    host.invite(room, guest)
    guest.synced(lambda sync: sync["rooms"]["invite"][room], "the second invite")
    guest.join(room, play.via)
    host.sees_membership(room, guest, "join")


def invite_revoked(play: Play) -> None:
    """An invite is taken back before it was answered."""
    host, guest = play.host.person("host"), play.guest.person("guest")
    room = host.create_room(play.version, preset="private_chat")
    host.invite(room, guest)
    guest.synced(lambda sync: sync["rooms"]["invite"][room], "the invite")
    host.kick(room, guest)
    guest.synced(lambda sync: room in sync["rooms"]["leave"], "the invite is gone")
    guest.refused("POST", f"/join/{quote(room)}?via={play.via}&server_name={play.via}")


def leave_and_return(play: Play) -> None:
    """A guest leaves, does not hear what is said then, and comes back to it."""
    host, guest, room = meet(play)
    host.sees_membership(room, guest, "join")
    guest.leave(room)
    host.sees_membership(room, guest, "leave")
    missed = host.say(room, "Are you gone?")
    host.set_state(room, "m.room.topic", {"topic": "Gone"})
    guest.join(room, play.via)
    host.sees_membership(room, guest, "join")
    assert guest.content(room, "m.room.topic") == {"topic": "Gone"}
    guest.sees(room, host.say(room, "There you are."))
    host.sees(room, guest.say(room, "Here I am."))
    eventually(lambda: missed in [event["event_id"] for event in guest.history(room)], "what was missed")
    same_state(room, host, guest)


def kick(play: Play) -> None:
    """A guest is put out, can say nothing more, and returns."""
    host, guest, room = meet(play)
    host.sees_membership(room, guest, "join")
    guest.sync()
    host.kick(room, guest)
    guest.synced(lambda sync: sync["rooms"]["leave"][room], "being kicked")
    guest.refused("PUT", f"/rooms/{quote(room)}/send/m.room.message/x", {"msgtype": "m.text", "body": "But"})
    guest.join(room, play.via)
    host.sees_membership(room, guest, "join")
    host.sees(room, guest.say(room, "Sorry."))
    same_state(room, host, guest)


def ban_and_unban(play: Play) -> None:
    """A banned guest stays out until unbanned."""
    host, guest, room = meet(play)
    host.sees_membership(room, guest, "join")
    guest.sync()
    host.ban(room, guest)
    guest.synced(lambda sync: sync["rooms"]["leave"][room], "being banned")
    guest.refused("POST", f"/join/{quote(room)}?via={play.via}&server_name={play.via}")
    host.unban(room, guest)
    guest.join(room, play.via)
    host.sees_membership(room, guest, "join")
    host.sees(room, guest.say(room, "Better now."))
    same_state(room, host, guest)


def guest_moderates(play: Play) -> None:
    """A guest who is given power bans a user of the host's server."""
    host, guest, room = meet(play)
    third = play.host.person("third")
    third.join(room, play.via)
    levels = host.content(room, "m.room.power_levels")
    levels["users"] = {**levels.get("users", {}), guest.user_id: 50}
    host.set_state(room, "m.room.power_levels", levels)
    eventually(lambda: guest.content(room, "m.room.power_levels") == levels, "the guest has power")
    guest.sees_membership(room, third, "join")
    guest.ban(room, third)
    host.sees_membership(room, third, "ban")
    third.refused("POST", f"/join/{quote(room)}?via={play.via}&server_name={play.via}")
    same_state(room, host, guest)


def server_acl(play: Play) -> None:
    """A server that is shut out can bring nothing more into the room."""
    host, guest, room = meet(play)
    host.sees(room, guest.say(room, "Before."))
    acl = {"allow": ["*"], "deny": [play.guest.domain], "allow_ip_literals": True}
    host.set_state(room, "m.room.server_acl", acl)
    eventually(lambda: guest.content(room, "m.room.server_acl") == acl, "the guest's server knows")
    after = guest.ask("PUT", f"/rooms/{quote(room)}/send/m.room.message/after", {"msgtype": "m.text", "body": "After"})
    marker = host.say(room, "Later.")
    guest.sees(room, marker)
    if after.status == 200:
        host.refused("GET", f"/rooms/{quote(room)}/event/{quote(after.json['event_id'])}")


# --- events ---


def history_is_fetched(play: Play) -> None:
    """A guest who comes late reads the whole conversation, page by page."""
    host, guest = play.host.person("host"), play.guest.person("guest")
    room = host.create_room(play.version, name="Old room")
    said = [host.say(room, f"line {number}") for number in range(130)]
    guest.join(room, play.via)
    host.sees_membership(room, guest, "join")

    def complete() -> bool:
        seen = [event["event_id"] for event in guest.history(room, 40)]
        assert len(seen) == len(set(seen)), "an event was shown twice"
        return [event for event in seen[::-1] if event in set(said)] == said

    eventually(complete, "all 130 messages in order")
    first = guest.history(room, 50)[-1]
    assert first["type"] == "m.room.create", first


def hidden_history(play: Play) -> None:
    """What was said before a guest joined stays hidden where the room says so."""
    rule = {"type": "m.room.history_visibility", "state_key": "", "content": {"history_visibility": "joined"}}
    host, guest = play.host.person("host"), play.guest.person("guest")
    room = host.create_room(play.version, initial_state=[rule])
    secret = host.say(room, "between us")
    guest.join(room, play.via)
    shown = host.say(room, "for all")
    guest.sees(room, shown)
    seen = [event["event_id"] for event in guest.history(room)]
    assert shown in seen
    assert secret not in seen
    guest.refused("GET", f"/rooms/{quote(room)}/event/{quote(secret)}")


def state_changes(play: Play) -> None:
    """State set on either side is the state on both, also when both set it at once."""
    host, guest, room = meet(play)
    levels = host.content(room, "m.room.power_levels")
    levels["users"] = {**levels.get("users", {}), guest.user_id: 50}
    host.set_state(room, "m.room.power_levels", levels)
    eventually(lambda: guest.content(room, "m.room.power_levels") == levels, "the guest has power")
    host.set_state(room, "m.room.topic", {"topic": "by the host"})
    eventually(lambda: guest.content(room, "m.room.topic") == {"topic": "by the host"}, "the host's topic")
    guest.set_state(room, "m.room.topic", {"topic": "by the guest"})
    eventually(lambda: host.content(room, "m.room.topic") == {"topic": "by the guest"}, "the guest's topic")
    guest.set_state(room, "org.example.thing", {"n": 1}, "a/b c")
    eventually(lambda: host.content(room, "org.example.thing", "a/b c") == {"n": 1}, "another type")
    for number in range(5):
        host.set_state(room, "m.room.name", {"name": f"host {number}"})
        guest.set_state(room, "m.room.name", {"name": f"guest {number}"})
        host.set_state(room, "org.example.counter", {"by": "host", "n": number}, str(number % 2))
        guest.set_state(room, "org.example.counter", {"by": "guest", "n": number}, str(number % 2))
    for person in (host, guest):
        person.say(room, "And now we agree.")
    same_state(room, host, guest)


def redaction(play: Play) -> None:
    """Each takes back what was said, the host also what the guest said."""
    host, guest, room = meet(play)
    own, others = host.say(room, "oops"), guest.say(room, "rude")
    third = guest.say(room, "slip")
    for person, event in ((guest, own), (host, others), (host, third)):
        person.sees(room, event)
    host.redact(room, own)
    host.redact(room, others)
    guest.redact(room, third)
    for person in (host, guest):
        for event in (own, others, third):
            eventually(lambda p=person, e=event: not p.text_of(room, e), f"{person} sees {event} without text")  # type: ignore[misc]
            assert person.event(room, event)["unsigned"]["redacted_because"]["type"] == "m.room.redaction"


def relations(play: Play) -> None:
    """A reaction, an edit and a thread reach the other server as what they are."""
    host, guest, room = meet(play)
    root = host.say(room, "root")
    guest.sees(room, root)
    thread = {"rel_type": "m.thread", "event_id": root}
    answer = guest.send(room, "m.room.message", {"msgtype": "m.text", "body": "in it", "m.relates_to": thread})
    host.sees(room, answer)
    path = f"/_matrix/client/v1/rooms/{quote(room)}/relations/{quote(root)}/m.thread"
    eventually(lambda: [event["event_id"] for event in host.get(path)["chunk"]] == [answer], "the thread")
    edit = {"rel_type": "m.replace", "event_id": root}
    new = {"msgtype": "m.text", "body": "better root"}
    host.send(room, "m.room.message", {**new, "body": "* better root", "m.new_content": new, "m.relates_to": edit})

    def edited() -> bool:
        bundled = guest.event(room, root)["unsigned"]["m.relations"]["m.replace"]
        return bool(bundled["content"]["m.new_content"]["body"] == "better root")

    eventually(edited, "the edit")


def upgrade(play: Play) -> None:
    """A room moves on to another version, and the guest follows."""
    host, guest, room = meet(play, name="Moving")
    newer = "11" if play.version != "11" else "12"
    successor = host.post(f"/rooms/{quote(room)}/upgrade", {"new_version": newer})["replacement_room"]
    stone = eventually(lambda: guest.content(room, "m.room.tombstone"), "the tombstone")
    assert stone["replacement_room"] == successor, stone
    guest.join(successor, play.via)
    created = guest.content(successor, "m.room.create")
    assert created["room_version"] == newer, created
    assert created["predecessor"]["room_id"] == room, created
    assert guest.content(successor, "m.room.name") == {"name": "Moving"}
    host.sees(successor, guest.say(successor, "Moved."))
    same_state(successor, host, guest)


def timestamp_to_event(play: Play) -> None:
    """An event is found by its time, also if only the other server has it."""
    host, guest = play.host.person("host"), play.guest.person("guest")
    room = host.create_room(play.version)
    events = [host.say(room, f"line {number}") for number in range(3)]
    moment = host.event(room, events[1])["origin_server_ts"]
    for number in range(40):
        host.say(room, f"more {number}")
    guest.join(room, play.via)
    path = f"/_matrix/client/v1/rooms/{quote(room)}/timestamp_to_event"
    found = guest.get(path, ts=str(moment), dir="f")
    assert found["origin_server_ts"] >= moment, found
    assert found["event_id"] in events, (found, events)


# --- what passes ---


def typing(play: Play) -> None:
    """Both see when the other one types, and when that ends."""
    host, guest, room = meet(play)
    host.sees_membership(room, guest, "join")
    for writer, reader in ((host, guest), (guest, host)):
        reader.sync()
        path = f"/rooms/{quote(room)}/typing/{quote(writer.user_id)}"

        def typists(sync: Any) -> Any:
            events = sync["rooms"]["join"][room]["ephemeral"]["events"]
            return [event["content"]["user_ids"] for event in events if event["type"] == "m.typing"]

        writer.put(path, {"typing": True, "timeout": 30000})
        seen = reader.synced(typists, f"{reader} sees {writer} type")
        assert seen[-1] == [writer.user_id], seen
        writer.put(path, {"typing": False})
        assert reader.synced(typists, f"{reader} sees {writer} stop")[-1] == []


def receipts(play: Play) -> None:
    """Both see how far the other one has read, in the room and in a thread; private receipts stay at home."""
    host, guest, room = meet(play)
    host.sees_membership(room, guest, "join")
    for writer, reader in ((host, guest), (guest, host)):
        event = writer.say(room, "Read this.")
        reader.sees(room, event)
        thread = {"rel_type": "m.thread", "event_id": event}
        content = {"msgtype": "m.text", "body": "and this", "m.relates_to": thread}
        inner = writer.send(room, "m.room.message", content)
        reader.sees(room, inner)
        writer.sync()

        def read_by(sync: Any, reader: Person = reader, target: str = event) -> Any:
            events = sync["rooms"]["join"][room]["ephemeral"]["events"]
            found = [event["content"][target] for event in events if target in event["content"]]
            return found and found[-1]["m.read"][reader.user_id]

        reader.post(f"/rooms/{quote(room)}/receipt/m.read.private/{quote(event)}")
        reader.post(f"/rooms/{quote(room)}/receipt/m.read/{quote(event)}", {"thread_id": "main"})
        told = writer.synced(read_by, f"{writer} sees that {reader} has read")
        assert told["thread_id"] == "main", told
        reader.post(f"/rooms/{quote(room)}/receipt/m.read/{quote(inner)}", {"thread_id": event})
        told = writer.synced(lambda sync, inner=inner: read_by(sync, target=inner), "a receipt in a thread")  # type: ignore[misc]
        assert told["thread_id"] == event, told


def presence(play: Play) -> None:
    """Both see that the other one is there, and what they say about it."""
    host, guest, room = meet(play)
    host.sees_membership(room, guest, "join")
    for watched, watcher in ((host, guest), (guest, host)):
        watcher.sync()
        path = f"/presence/{quote(watched.user_id)}/status"
        watched.put(path, {"presence": "unavailable", "status_msg": "lunch"})

        def status(sync: Any, watched: Person = watched) -> Any:
            events = sync["presence"]["events"]
            contents = [event["content"] for event in events if event["sender"] == watched.user_id]
            return [content for content in contents if content.get("status_msg") == "lunch"]

        told = watcher.synced(status, f"{watcher} sees that {watched} has lunch")
        assert told[-1]["presence"] == "unavailable", told


def profile(play: Play) -> None:
    """A name is asked for across servers, and a changed one shows in the rooms that both are in."""
    host, guest, room = meet(play)
    host.put(f"/profile/{quote(host.user_id)}/displayname", {"displayname": "Rosa"})
    host.put(f"/profile/{quote(host.user_id)}/avatar_url", {"avatar_url": "mxc://example.org/rose"})
    asked = eventually(lambda: guest.get(f"/profile/{quote(host.user_id)}"), "the profile")
    eventually(lambda: guest.get(f"/profile/{quote(host.user_id)}")["displayname"] == "Rosa", "the name")
    asked = guest.get(f"/profile/{quote(host.user_id)}")
    assert asked["avatar_url"] == "mxc://example.org/rose", asked
    assert guest.get(f"/profile/{quote(host.user_id)}/displayname") == {"displayname": "Rosa"}
    nobody = f"@nobody:{play.host.server_name}"
    assert guest.refused("GET", f"/profile/{quote(nobody)}").status == 404
    eventually(lambda: guest.content(room, "m.room.member", host.user_id)["displayname"] == "Rosa", "the new name")


def directory(play: Play) -> None:
    """The host's public rooms are listed on the guest's server, whole and searched."""
    host, guest = play.host.person("host"), play.guest.person("guest")
    name = f"Orangery of {host.localpart}"
    room = host.create_room(play.version, name=name, topic="Plants", visibility="public")

    def listed() -> Any:
        told = guest.get("/publicRooms", server=play.via, limit="1000")
        return [found for found in told["chunk"] if found["room_id"] == room]

    (found,) = eventually(listed, "the room is listed")
    assert (found["name"], found["topic"], found["num_joined_members"]) == (name, "Plants", 1), found
    searched = guest.post(f"/publicRooms?server={play.via}", {"filter": {"generic_search_term": name}})
    assert [found["room_id"] for found in searched["chunk"]] == [room], searched


def aliases(play: Play) -> None:
    """A name is found, is gone after it was removed, and an unknown one never is."""
    host, guest = play.host.person("host"), play.guest.person("guest")
    room = host.create_room(play.version)
    alias = f"#pond-{room[1:9].lower()}:{play.host.server_name}"
    path = f"/directory/room/{quote(alias)}"
    assert guest.refused("GET", path).status == 404
    host.put(path, {"room_id": room})
    assert guest.get(path)["room_id"] == room
    host.call("DELETE", path)
    assert guest.refused("GET", path).status == 404
    assert guest.refused("POST", f"/join/{quote(alias)}").status == 404


def spaces(play: Play) -> None:
    """The tree of a space with rooms of both servers shows from either."""
    host, guest = play.host.person("host"), play.guest.person("guest")
    space = host.create_room(play.version, creation_content={"type": "m.space"}, name="Village")
    here = host.create_room(play.version, name="Square")
    there = guest.create_room(play.version, name="Mill")
    hidden = host.create_room(play.version, preset="private_chat", name="Vault")
    for child, via in ((here, host), (there, guest), (hidden, host)):
        host.set_state(space, "m.space.child", {"via": [via.server_name], "suggested": child == here}, child)
    path = f"/_matrix/client/v1/rooms/{quote(space)}/hierarchy"
    # Only who is in the space, or may join it, sees it; its own server has it, the guest's asks for it.
    guest.join(space, play.via)

    def tree(person: Person, **query: str) -> set[str]:
        return {entry["room_id"] for entry in person.get(path, **query)["rooms"]}

    eventually(lambda: tree(guest) == {space, here, there}, "the guest sees the tree")
    eventually(lambda: tree(host) == {space, here, there, hidden}, "the host sees the tree")
    eventually(lambda: tree(guest, suggested_only="true") == {space, here}, "only what is suggested")
    entry = next(entry for entry in guest.get(path)["rooms"] if entry["room_id"] == here)
    assert (entry["name"], entry["num_joined_members"], entry["join_rule"]) == ("Square", 1, "public"), entry


def media(play: Play) -> None:
    """What one uploads the other downloads, as it is and small."""
    host, guest = play.host.person("host"), play.guest.person("guest")
    picture = io.BytesIO()
    Image.new("RGB", (640, 480), (200, 40, 40)).save(picture, "PNG")
    for owner, reader in ((host, guest), (guest, host)):
        reply = owner.ask("POST", "/_matrix/media/v3/upload?filename=red.png", picture.getvalue(), "image/png")
        assert reply.status == 200, reply
        place = reply.json["content_uri"].removeprefix("mxc://")
        got = reader.ask("GET", f"/_matrix/client/v1/media/download/{place}")
        assert got.status == 200, got
        assert got.body == picture.getvalue(), f"{len(got.body)} bytes came"
        small = reader.ask("GET", f"/_matrix/client/v1/media/thumbnail/{place}?width=32&height=32&method=crop")
        assert small.status == 200, small
        assert Image.open(io.BytesIO(small.body)).size == (32, 32)
        missing = f"{owner.server_name}/doesnotexist"
        assert reader.refused("GET", f"/_matrix/client/v1/media/download/{missing}").status == 404


def openid(play: Play) -> None:
    """A token that proves who somebody is holds at the federation API of their server."""
    host = play.host.person("host")
    told = host.post(f"/user/{quote(host.user_id)}/openid/request_token")
    assert told["matrix_server_name"] == play.host.server_name, told
    path = "/_matrix/federation/v1/openid/userinfo"
    assert play.host.ask(f"{path}?access_token={told['access_token']}").json == {"sub": host.user_id}
    assert play.host.ask(f"{path}?access_token=nonsense").status == 401


# --- encryption ---


def device_keys(play: Play) -> None:
    """Keys are asked for and claimed across servers, and their signatures hold."""
    host, guest, room = meet(play)
    host.sees_membership(room, guest, "join")
    for owner, other in ((host, guest), (guest, host)):
        other.sync()
        keys = Keys(owner)
        keys.upload(one_time=2)
        other.synced(lambda sync, owner=owner: owner.user_id in sync["device_lists"]["changed"], "a device has changed")  # type: ignore[misc]

        def asked(owner: Person = owner, other: Person = other) -> Any:
            told = other.post("/keys/query", {"device_keys": {owner.user_id: []}})
            return told["device_keys"][owner.user_id][owner.device_id]

        found = eventually(asked, "the device's keys")
        keys.verify(found)
        claimed = set()
        for _ in range(2):
            wanted = {"one_time_keys": {owner.user_id: {owner.device_id: "signed_curve25519"}}}
            told = other.post("/keys/claim", wanted)["one_time_keys"][owner.user_id][owner.device_id]
            ((name, key),) = told.items()
            keys.verify(key)
            claimed.add(name)
        assert claimed == set(keys.one_time), (claimed, keys.one_time)
        told = other.post("/keys/claim", wanted)["one_time_keys"]
        ((name, key),) = told[owner.user_id][owner.device_id].items()
        assert key.get("fallback"), "after the last one the fallback key is given"


def cross_signing(play: Play) -> None:
    """Cross-signing keys reach the other server, and a signature by them does."""
    host, guest, room = meet(play)
    host.sees_membership(room, guest, "join")
    for owner, other in ((host, guest), (guest, host)):
        keys = Keys(owner)
        keys.upload()
        other.post("/keys/query", {"device_keys": {owner.user_id: []}})
        other.sync()
        keys.upload_cross_signing()

        def asked(owner: Person = owner, other: Person = other) -> Any:
            return other.post("/keys/query", {"device_keys": {owner.user_id: []}})

        def signed(owner: Person = owner, keys: Keys = keys) -> bool:
            told = asked(owner)
            device = told["device_keys"][owner.user_id][owner.device_id]
            master = told["master_keys"][owner.user_id]
            return list(master["keys"].values()) == [keys.master_public] and keys.is_signed_by_self(device)

        eventually(signed, f"{other} sees the keys of {owner}")


def to_device(play: Play) -> None:
    """Encrypted messages between devices arrive once each, in order, also at all devices of a user."""
    host, guest, room = meet(play)
    host.sees_membership(room, guest, "join")
    for writer, reader in ((host, guest), (guest, host)):
        reader.sync()
        for number in range(5):
            content = {"algorithm": "m.olm.v1.curve25519-aes-sha2", "sender_key": "k", "ciphertext": {"n": number}}
            device = "*" if number == 4 else reader.device_id
            body = {"messages": {reader.user_id: {device: content}}}
            writer.put(f"/sendToDevice/m.room.encrypted/{writer.device_id}{number}", body)
        arrived: list[int] = []

        def more(sync: Any, arrived: list[int] = arrived, writer: Person = writer) -> bool:
            for event in sync["to_device"]["events"]:
                assert (event["sender"], event["type"]) == (writer.user_id, "m.room.encrypted"), event
                arrived.append(event["content"]["ciphertext"]["n"])
            return len(arrived) >= 5

        reader.synced(more, "five messages")
        assert arrived == [0, 1, 2, 3, 4], arrived
        assert not reader.sync().get("to_device", {}).get("events")


def new_device(play: Play) -> None:
    """A new device of one is told to the other, and so is that it is gone."""
    host, guest, room = meet(play)
    host.sees_membership(room, guest, "join")
    for owner, other in ((host, guest), (guest, host)):
        Keys(owner).upload()
        other.post("/keys/query", {"device_keys": {owner.user_id: []}})
        second = owner.login()
        Keys(second).upload()

        def devices(owner: Person = owner, other: Person = other) -> set[str]:
            return set(other.post("/keys/query", {"device_keys": {owner.user_id: []}})["device_keys"][owner.user_id])

        eventually(lambda d=devices, o=owner, s=second: d() == {o.device_id, s.device_id}, "both devices")  # type: ignore[misc]
        second.post("/logout")
        eventually(lambda d=devices, o=owner: d() == {o.device_id}, "the second device is gone")  # type: ignore[misc]


STORIES = (
    Story(join_by_alias, ALL),
    Story(many_messages, FEW),
    Story(restricted_join, SINCE_9),
    Story(knock, SINCE_9),
    Story(knock_withdrawn, SINCE_10, hosts=["synapse"]),  # Synapse withdraws a knock for itself only
    Story(invite_and_join, ALL),
    Story(invite_when_created, FEW),
    Story(invite_and_reject, ALL),
    Story(invite_revoked, FEW),
    Story(leave_and_return, ALL),
    Story(kick, ALL),
    Story(ban_and_unban, ALL),
    Story(guest_moderates, FEW),
    Story(server_acl, ANY),
    Story(history_is_fetched, ALL),
    Story(hidden_history, ANY),
    Story(state_changes, ALL),
    Story(redaction, ALL),
    Story(relations, ANY),
    Story(upgrade, ALL),
    Story(timestamp_to_event, ANY),
    Story(typing, ANY),
    Story(receipts, ANY),
    Story(presence, ANY),
    Story(profile, ANY),
    Story(directory, ANY),
    Story(aliases, ANY),
    Story(spaces, ("10", "12")),
    Story(media, ANY),
    Story(openid, ANY),
    Story(device_keys, ANY),
    Story(cross_signing, ANY),
    Story(to_device, ANY),
    Story(new_device, ANY),
)
