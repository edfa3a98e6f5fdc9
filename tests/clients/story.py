"""What two people do in an encrypted room, told once for every pair of clients."""

from __future__ import annotations

import struct
import zlib

from tests.clients.actor import Actor
from tests.clients.witness import Seen


def picture() -> bytes:
    """A PNG image of 64 by 64 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes((4 * x, 4 * y, 128)[c] for x in range(64) for c in range(3)) for y in range(64))
    header = struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def assert_message(event: Seen, sender: Actor, text: str) -> None:
    """The message arrived encrypted, from that sender, with that text."""
    assert event.encrypted, f"sent in the clear: {event}"
    assert event.sender == sender.user_id, event
    assert event.content["body"] == text, event


async def meet(alice: Actor, bob: Actor) -> str:
    """Alice makes an encrypted room and Bob joins it; its id."""
    room = await alice.create_encrypted_room("Verona", [bob.user_id])
    await bob.sees_invite(room)
    await bob.join(room)
    await bob.sees_member(room, alice.user_id)
    await alice.sees_member(room, bob.user_id)
    return room


async def talk(room: str, alice: Actor, bob: Actor) -> str:
    """A message each way, read by the other; the id of Alice's."""
    hello = await alice.say(room, "How camest thou hither?")
    assert_message(await bob.sees(hello), alice, "How camest thou hither?")
    answer = await bob.say(room, "With love's light wings.")
    assert_message(await alice.sees(answer), bob, "With love's light wings.")
    return hello


async def refer(room: str, alice: Actor, bob: Actor, hello: str) -> None:
    """Edit, reaction, reply and thread, all about the first message."""
    edit = await alice.edit(room, hello, "How camest thou hither, tell me?")
    assert (await bob.sees(edit)).relation == {"rel_type": "m.replace", "event_id": hello}
    await bob.sees_text(hello, "How camest thou hither, tell me?")
    reaction = await bob.react(room, hello, "🌹")
    found = await alice.sees(reaction)
    assert found.type == "m.reaction", found
    assert found.relation == {"rel_type": "m.annotation", "event_id": hello, "key": "🌹"}, found
    reply = await bob.reply(room, hello, "By love, that first did prompt me to inquire.")
    found = await alice.sees(reply)
    assert_message(found, bob, "By love, that first did prompt me to inquire.")
    assert found.relation == {"m.in_reply_to": {"event_id": hello}}, found
    threaded = await bob.in_thread(room, hello, "He lent me counsel.")
    found = await alice.sees(threaded)
    assert_message(found, bob, "He lent me counsel.")
    assert (found.relation["rel_type"], found.relation["event_id"]) == ("m.thread", hello), found


async def show(room: str, alice: Actor, bob: Actor) -> str:
    """An encrypted image, opened by the other side; the event's id."""
    image = picture()
    sent = await alice.send_image(room, "balcony.png", image)
    found = await bob.sees(sent)
    assert_message(found, alice, "balcony.png")
    assert await bob.open_image(found.content) == image
    return sent


async def attend(room: str, alice: Actor, bob: Actor) -> None:
    """Typing seen to begin and to end, and a read receipt."""
    await bob.set_typing(room, True)
    await alice.sees_typing(room, bob.user_id, True)
    await bob.set_typing(room, False)
    await alice.sees_typing(room, bob.user_id, False)
    last = await alice.say(room, "Good night, good night!")
    await bob.sees(last)
    await bob.read(room, last)
    await alice.sees_receipt(room, last, bob.user_id)


async def return_on_a_new_device(room: str, alice: Actor, bob: Actor, secret: str, *old: str) -> None:
    """Alice loses her device, recovers her keys on a new one, reads what was said, and goes on talking."""
    await alice.all_keys_kept()
    first_device = alice.device_id
    await alice.logout()
    await alice.login()
    assert alice.device_id != first_device
    await alice.recover_keys(secret)
    history = await alice.read_back(room)
    for event_id in old:
        assert event_id in history, f"{event_id} is not in the history: {history}"
        assert history[event_id].encrypted, history[event_id]
        assert not history[event_id].unreadable, history[event_id]
    again = await alice.say(room, "It is my lady.")
    assert_message(await bob.sees(again), alice, "It is my lady.")
    answer = await bob.say(room, "O, that she knew she were!")
    assert_message(await alice.sees(answer), bob, "O, that she knew she were!")


async def whole_evening(alice: Actor, bob: Actor) -> tuple[str, str]:
    """Everything above in its order; the room and the first message."""
    secret = await alice.keep_keys()
    room = await meet(alice, bob)
    hello = await talk(room, alice, bob)
    await refer(room, alice, bob, hello)
    image = await show(room, alice, bob)
    await attend(room, alice, bob)
    await return_on_a_new_device(room, alice, bob, secret, hello, image)
    return room, hello
