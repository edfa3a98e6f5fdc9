"""Long messages in parts: nothing more is sent than the receiver can keep up with, and nothing odd is taken."""

from __future__ import annotations

import struct

from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.links import frames
from dendrite_tw.links.frames import OVERHEAD, WINDOW, BrokenFrameError, Budget, Incoming, Outgoing


def part(number: int, size: int, data: bytes) -> bytes:
    return struct.pack(">cIQ", b"\x04", number, size) + data


class OutgoingTests(SynchronousTestCase):
    def test_all_of_a_message_arrives_whatever_its_length(self) -> None:
        for length in (1, 9, 10, 11, 99, 100, 1001):
            message = bytes(number % 251 for number in range(length))
            outgoing, incoming = Outgoing(message, 10), Incoming(Budget())
            wire: list[bytes] = []
            outgoing.fill(wire.append)
            most = 0
            while not outgoing.is_received:
                most = max(most, outgoing.sent - outgoing.received)
                complete = incoming.add(wire.pop(0))
                outgoing.acknowledge(incoming.acknowledgement())
                outgoing.fill(wire.append)
                self.assertEqual(complete, outgoing.is_received)
            self.assertEqual((wire, incoming.message()), ([], message))
            self.assertLessEqual(most, WINDOW)

    def test_without_acknowledgement_a_window_is_sent_and_no_more(self) -> None:
        outgoing = Outgoing(bytes(1000), 10)
        wire: list[bytes] = []
        outgoing.fill(wire.append)
        outgoing.fill(wire.append)
        self.assertEqual([len(each) for each in wire], [OVERHEAD + 10] * WINDOW)
        self.assertFalse(outgoing.is_sent)

    def test_odd_acknowledgements_are_refused(self) -> None:
        for frame in (b"\x05", b"\x05\0\0\0\x03", b"\x05\0\0\0\x02\0"):
            outgoing = Outgoing(bytes(1000), 10)
            outgoing.fill(lambda frame: None)
            with self.assertRaises(BrokenFrameError):
                outgoing.acknowledge(frame)
        outgoing = Outgoing(bytes(1000), 10)
        outgoing.fill(lambda frame: None)
        outgoing.acknowledge(b"\x05\0\0\0\x02")
        with self.assertRaises(BrokenFrameError):
            outgoing.acknowledge(b"\x05\0\0\0\x01")


class IncomingTests(SynchronousTestCase):
    def test_what_does_not_fit_is_refused(self) -> None:
        cases = {
            "lost": [part(0, 6, b"ab"), part(2, 6, b"ef")],
            "twice": [part(0, 6, b"ab"), part(0, 6, b"ab")],
            "another size": [part(0, 6, b"ab"), part(1, 7, b"cd")],
            "too much": [part(0, 6, b"abcdefg")],
            "nothing": [part(0, 6, b"")],
            "no size": [part(0, 0, b"a")],
            "huge": [part(0, frames.MAX_BYTES + 1, b"a")],
            "short": [b"\x04\0\0"],
        }
        for name, wire in cases.items():
            budget = Budget()
            incoming = Incoming(budget)
            with self.assertRaises(BrokenFrameError, msg=name):
                for frame in wire:
                    incoming.add(frame)
            incoming.close()
            self.assertEqual((budget.bytes, budget.count), (0, 0), name)

    def test_room_is_given_back_once(self) -> None:
        budget = Budget()
        incoming = Incoming(budget)
        incoming.add(part(0, 6, b"ab"))
        self.assertEqual((budget.bytes, budget.count), (6, 1))
        incoming.close()
        incoming.close()
        self.assertEqual((budget.bytes, budget.count), (0, 0))

    def test_there_is_room_for_so_many_bytes_and_messages(self) -> None:
        self.patch(frames, "MAX_ALL_BYTES", 10)
        budget = Budget()
        Incoming(budget).add(part(0, 6, b"ab"))
        with self.assertRaises(BrokenFrameError):
            Incoming(budget).add(part(0, 5, b"ab"))
        Incoming(budget).add(part(0, 4, b"ab"))
        self.patch(frames, "MAX_ALL_BYTES", 1000)
        self.patch(frames, "MAX_INCOMING", 2)
        with self.assertRaises(BrokenFrameError):
            Incoming(budget).add(part(0, 4, b"ab"))
