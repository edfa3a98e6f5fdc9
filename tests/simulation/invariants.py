"""What must hold when a storm is over."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import orjson

from tests.simulation.host import Host

if TYPE_CHECKING:
    from tests.simulation.people import Person
    from tests.simulation.storm import Storm

Slot = tuple[str, str]

ACCEPTED, SOFT_FAILED, REJECTED = 0, 1, 2


def statuses(host: Host, room: str) -> dict[str, tuple[int, int]]:
    """Every event of a room that a server has: its status and position."""
    sql = f"SELECT event_id, status, position FROM events JOIN rooms USING (room_nid) WHERE room_id = '{room}'"
    return {event_id: (status, position) for event_id, status, position in host.rows("room_server", sql)}


def timeline(host: Host, room: str) -> list[str]:
    """What clients were shown as it came, in that order."""
    found = statuses(host, room)
    live = [(place, event_id) for event_id, (status, place) in found.items() if place > 0 and status == ACCEPTED]
    return [event_id for _, event_id in sorted(live)]


def in_history(host: Host, room: str) -> set[str]:
    """What can be read in a room's history, or was held back."""
    found = statuses(host, room)
    shown = {event_id for event_id, (status, place) in found.items() if status != ACCEPTED or place != 0}
    return shown | hidden_redactions(host, room).keys()


def hidden_redactions(host: Host, room: str) -> dict[str, bool]:
    """Redactions that came before what they redact, and so are not shown; whether they still say what that is.

    One that was itself redacted by then does not, and nothing comes of it.
    """
    sql = f"SELECT event_id, pdu FROM events JOIN rooms USING (room_nid) WHERE room_id = '{room}' AND position = 0"
    read = {event_id: orjson.loads(pdu) for event_id, pdu in host.rows("room_server", sql)}
    return {
        event_id: "redacts" in event or "redacts" in event["content"]
        for event_id, event in read.items()
        if event["type"] == "m.room.redaction"
    }


def shown_since_all_joined(storm: Storm, room: str) -> set[str]:
    """What clients were shown anywhere since the last of the servers joined."""
    return {event_id for host in storm.hosts for event_id in timeline(host, room)} - storm.early


def states(storm: Storm, room: str) -> dict[str, dict[Slot, str]]:
    """The room's current state as each anchor is told it, by the server's name."""
    found: dict[str, dict[Slot, str]] = {}

    async def look(anchor: Person) -> None:
        response = await anchor.ask("GET", f"/rooms/{room}/state".replace("!", "%21"))
        told = response.json if response.status == 200 else []
        found[anchor.host.name] = {(event["type"], event["state_key"]): event["event_id"] for event in told}

    for anchor in storm.anchors:
        storm.finish(look(anchor), 60)
    return found


def agreed(storm: Storm) -> bool:
    """Whether all servers have the same state and have heard of the same events, in every room."""
    for room in storm.rooms:
        told = states(storm, room)
        if any(state != told[storm.hosts[0].name] for state in told.values()):
            return False
        if storm.network.under_way:
            return False
        everything = shown_since_all_joined(storm, room)
        if any(everything - in_history(host, room) for host in storm.hosts):
            return False
    return True


def check(storm: Storm) -> None:
    """Write down whatever does not hold."""
    for room in storm.rooms:
        check_states(storm, room)
        check_events(storm, room)
        check_contents(storm, room)
        for person in storm.people:
            check_view(storm, room, person)
    check_promises(storm)
    check_notes(storm)


def check_states(storm: Storm, room: str) -> None:
    """All servers have the same current state, and none is empty."""
    told = states(storm, room)
    first, *others = told
    if not told[first]:
        storm.trace.problem(first, f"has no state of {room}")
    for other in others:
        differing = {slot for slot in told[first] | told[other] if told[first].get(slot) != told[other].get(slot)}
        for slot in sorted(differing):
            here, there = told[first].get(slot), told[other].get(slot)
            storm.trace.problem(first, f"{slot} of {room} is {here}, but at {other} {there}")


def check_events(storm: Storm, room: str) -> None:
    """All servers show the same events, but for those that one of them held back; nobody rejects an honest one.

    What a server missed at the time it has fetched when somebody read back so far.
    """
    have = {host.name: statuses(host, room) for host in storm.hosts}
    everything = shown_since_all_joined(storm, room)
    for host in storm.hosts:
        found = have[host.name]
        for event_id, (status, _) in sorted(found.items()):
            if status == REJECTED:
                storm.trace.problem(host.name, f"rejected {event_id} of {room}")
        for event_id in sorted(everything - in_history(host, room)):
            what = "does not show" if event_id in found else "never heard of"
            storm.trace.problem(host.name, f"{what} {event_id} of {room}")


def check_contents(storm: Storm, room: str) -> None:
    """All servers have the same of each event: what was redacted is gone everywhere.

    Not where one of them held the redaction back, or got it only when it had itself been redacted.
    """
    unsettled = {
        target
        for person in storm.people
        for redaction, target in person.redactions.items()
        if any(not carried_out(host, room, redaction) for host in storm.hosts)
    }
    sql = f"SELECT event_id, pdu FROM events JOIN rooms USING (room_nid) WHERE room_id = '{room}' AND status = 0"
    first, *others = storm.hosts
    here = dict(first.rows("room_server", sql))
    for other in others:
        for event_id, pdu in other.rows("room_server", sql):
            same = orjson.loads(pdu)["content"] == orjson.loads(here.get(event_id, pdu))["content"]
            if not same and event_id not in unsettled:
                storm.trace.problem(first.name, f"has another content of {event_id} of {room} than {other.name}")


def carried_out(host: Host, room: str, redaction: str) -> bool:
    """Whether a server has a redaction, did not hold it back, and can know of what it is."""
    status, _ = statuses(host, room).get(redaction, (SOFT_FAILED, 0))
    return status == ACCEPTED and hidden_redactions(host, room).get(redaction, True)


def check_view(storm: Storm, room: str, person: Person) -> None:
    """A client was shown each event once, none left out, in its server's order, and has its server's state."""
    view = person.rooms.get(room)
    if view is None:
        return
    order = {event_id: number for number, event_id in enumerate(timeline(person.host, room))}
    last = -1
    for stretch in view.stretches:
        places = [order.get(event_id, -1) for event_id in stretch]
        if any(place <= before for place, before in zip(places, [last, *places], strict=False)):
            storm.trace.problem(person.name, f"was shown {stretch} of {room} in another order than {list(order)}")
        elif places and places[-1] - places[0] != len(places) - 1:
            skipped = set(list(order)[places[0] : places[-1]]) - set(stretch)
            storm.trace.problem(person.name, f"was not shown {sorted(skipped)} of {room}")
        last = places[-1] if places else last
    if not view.joined:
        return
    anchor = next(anchor for anchor in storm.anchors if anchor.host is person.host)
    told = states(storm, room)[anchor.host.name]
    # That a place of the state is empty again, which a resolution can bring about, no sync can say.
    for slot in sorted(slot for slot in told if told[slot] != view.state.get(slot)):
        here, there = view.state.get(slot), told[slot]
        storm.trace.problem(person.name, f"is shown {here} as {slot} of {room}, and its server has {there}")


def check_promises(storm: Storm) -> None:
    """What was answered with 200 is there, accepted, and once."""
    for person in storm.people:
        for said in person.said:
            found = statuses(person.host, said.room).get(said.event_id)
            if found is None or found[0] != ACCEPTED or found[1] <= 0:
                storm.trace.problem(person.host.name, f"answered {said.event_id} of {person.name}, and has {found}")
    for room in storm.rooms:
        for host in storm.hosts:
            sql = f"SELECT pdu FROM events JOIN rooms USING (room_nid) WHERE room_id = '{room}'"
            bodies = [orjson.loads(pdu) for (pdu,) in host.rows("room_server", sql)]
            texts = Counter(body["content"].get("body") for body in bodies if body["type"] == "m.room.message")
            for text, count in texts.items():
                if text is not None and count > 1:
                    storm.trace.problem(host.name, f"has {text} {count} times in {room}")


def check_notes(storm: Storm) -> None:
    """Messages between devices came once, and in the order of each sender."""
    for reader in storm.people:
        for writer in storm.people:
            sent = [text for whom, text in writer.notes_sent if whom == reader.user_id]
            came = [text for sender, text in reader.notes if sender == writer.user_id]
            if sent != came:
                storm.trace.problem(reader.name, f"was written {sent} by {writer.name}, and got {came}")
