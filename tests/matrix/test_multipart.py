"""``multipart/mixed``: what is written is read again, however it is cut, and nonsense is refused."""

from __future__ import annotations

import random

from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.matrix.multipart import (
    HEAD_LIMIT,
    PREAMBLE_LIMIT,
    MultipartError,
    MultipartReader,
    PartHead,
    boundary_of,
    framed,
)

FILE = b"bytes\r\n--b\r\n--bound \r\n--boundaryX\r\n\r\n-- and the end\r\n"


def parts_of(events: list[PartHead | bytes]) -> list[tuple[dict[str, str], bytes]]:
    parts: list[tuple[dict[str, str], bytes]] = []
    for event in events:
        if isinstance(event, PartHead):
            parts.append((dict(event), b""))
        else:
            head, body = parts.pop()
            parts.append((head, body + event))
    return parts


def read(data: bytes, sizes: random.Random | None = None) -> tuple[list[tuple[dict[str, str], bytes]], bool]:
    """The parts in `data`, given in pieces of random sizes or at once, and whether the end was there."""
    reader, events, at = MultipartReader(b"boundary"), [], 0
    while at < len(data):
        size = sizes.choice([1, 2, 3, 7, 50]) if sizes else len(data)
        events += reader.feed(data[at : at + size])
        at += size
    return parts_of(events), reader.complete


class ReaderTests(SynchronousTestCase):
    def test_what_is_written_is_read_however_it_is_cut(self) -> None:
        head, tail = framed("boundary", "image/png", b'inline; filename="a.png"')
        wanted = [
            ({"content-type": "application/json"}, b"{}"),
            ({"content-type": "image/png", "content-disposition": 'inline; filename="a.png"'}, FILE),
        ]
        self.assertEqual(read(head + FILE + tail), (wanted, True))
        for seed in range(50):
            self.assertEqual(read(head + FILE + tail, random.Random(seed)), (wanted, True), seed)

    def test_what_surrounds_the_parts_is_left_out(self) -> None:
        data = b"before\r\n--boundary \t\r\n\r\n{}\r\n--boundary\r\nA: b\r\n\r\n\r\n--boundary--\r\nafter"
        self.assertEqual(read(data), ([({}, b"{}"), ({"a": "b"}, b"")], True))
        self.assertEqual(read(data, random.Random(1)), ([({}, b"{}"), ({"a": "b"}, b"")], True))

    def test_one_without_end_is_not_complete(self) -> None:
        head, _ = framed("boundary", "image/png", b"inline")
        parts, complete = read(head + FILE)
        self.assertEqual((len(parts), complete), (2, False))
        self.assertTrue(FILE.startswith(parts[1][1]))

    def test_nonsense_is_refused(self) -> None:
        begin = b"--boundary\r\n"
        for data in (
            begin + b"no header\r\n\r\n",
            begin + b"A: " + b"x" * HEAD_LIMIT,
            begin + b"A: " + b"x" * HEAD_LIMIT + b"\r\n\r\n",
            b"x" * (PREAMBLE_LIMIT + 100),
        ):
            with self.assertRaises(MultipartError):
                read(data)
        self.assertEqual(read(b""), ([], False))
        self.assertEqual(read(b"no parts at all"), ([], False))


class BoundaryTests(SynchronousTestCase):
    def test_boundaries(self) -> None:
        for value, boundary in {
            "multipart/mixed; boundary=abc": b"abc",
            'Multipart/Mixed;boundary="a b:c"': b"a b:c",
            "multipart/mixed; charset=utf-8; Boundary = abc ; x=y": b"abc",
        }.items():
            self.assertEqual(boundary_of(value), boundary)

    def test_what_names_none(self) -> None:
        for value in (
            "",
            "application/json",
            "multipart/mixed",
            "multipart/mixed; boundary=",
            'multipart/mixed; boundary=""',
            "multipart/form-data; boundary=abc",
            "multipart/mixed; boundary=" + "x" * 71,
            "multipart/mixed; boundary=a\r\nb",
            "multipart/mixed; " + "x" * 2000 + "; boundary=abc",
        ):
            with self.assertRaises(MultipartError, msg=value):
                boundary_of(value)
