"""The protocol as bytes: every operation there and back, cut anywhere; what is malformed is refused, not
raised.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.jetstream import wire
from dendrite_tw.jetstream.wire import Connect, Err, Info, Msg, Op, Parser, ProtocolError, Pub, Sub, Unsub

HEADERS = b"NATS/1.0\r\na: b\r\n\r\n"
OPS: list[Op] = [
    Connect({"verbose": False, "name": "ö"}),
    Pub("a.b", "", b"", b"hello"),
    Pub("a.b", "r", b"", b""),
    Pub("a", "", HEADERS, b"with \r\n in it"),
    Pub("a", "r", HEADERS, b""),
    Sub("a.>", "", "1"),
    Sub("a.*", "group", "2"),
    Unsub("1"),
    Unsub("2", 5),
    wire.PING,
    wire.PONG,
    Info({"server_id": "X", "max_payload": 1}),
    Msg("a", "1", "", b"", b"x"),
    Msg("a", "1", "r", HEADERS, b"x"),
    wire.OK,
    Err("Unknown Protocol Operation"),
]


def parse(data: bytes, **limits: int) -> list[Op]:
    return list(Parser(**limits).feed(data))


class RoundTripTests(SynchronousTestCase):
    def test_each_operation(self) -> None:
        for op in OPS:
            self.assertEqual(parse(wire.encode(op)), [op])

    def test_cut_anywhere(self) -> None:
        data = b"".join(map(wire.encode, OPS))
        for cut in range(len(data)):
            parser = Parser()
            self.assertEqual([*parser.feed(data[:cut]), *parser.feed(data[cut:])], OPS, cut)

    def test_byte_by_byte(self) -> None:
        parser = Parser()
        data = b"".join(map(wire.encode, OPS))
        self.assertEqual([op for byte in data for op in parser.feed(bytes([byte]))], OPS)

    def test_messages_are_read_alike_by_the_short_way_and_the_long_one(self) -> None:
        lines = [
            b"a 1 1",
            b"a 1 r 1",
            b"a  1   r 1",
            b"a\t1 1",
            b" a 1 1 ",
            "ö 1 1".encode(),
            b"\xff 1 1",
            b"a 1",
            b"a 1 r s 1",
            b"a 1 -1",
            b"a 1 +1",
            b"a 1 1_0",
            b"a 1 x",
            b"a 1 2",
            b"a 1 11",
            b"a 1 " + b"9" * 5000,
            b"a" * 5000 + b" 1 1",
        ]
        for line in lines:
            found = []
            for name in (b"MSG", b"msg"):
                try:
                    found.append(parse(name + b" " + line + b"\r\nx\r\n", max_payload=10, max_line=4096))
                except ProtocolError as error:
                    found.append(str(error))  # type: ignore[arg-type]
            self.assertEqual(found[0], found[1], line[:20])
        self.assertEqual(parse(b"MSG a 1 r 1\r\nx\r\n"), [Msg("a", "1", "r", b"", b"x")])

    @settings(max_examples=80, deadline=None, derandomize=True)
    @given(st.lists(st.sampled_from(OPS), max_size=8), st.lists(st.integers(0, 400), max_size=6))
    def test_any_sequence_cut_in_any_pieces(self, ops: list[Op], cuts: list[int]) -> None:
        data = b"".join(map(wire.encode, ops))
        parser, found, at = Parser(), [], 0
        for cut in [*sorted(cuts), len(data)]:
            found.extend(parser.feed(data[at:cut]))
            at = max(at, cut)
        self.assertEqual(found, ops)

    def test_names_in_any_case_and_spaces_in_any_number(self) -> None:
        self.assertEqual(
            parse(b"pub  a   2\r\nhi\r\nPing\r\nsub\ta\t1\r\n"),
            [
                Pub("a", "", b"", b"hi"),
                wire.PING,
                Sub("a", "", "1"),
            ],
        )


class RefusalTests(SynchronousTestCase):
    def refused(self, data: bytes, text: str = "", **limits: int) -> None:
        with self.assertRaises(ProtocolError) as caught:
            parse(data, **limits)
        self.assertIn(text, str(caught.exception))

    def test_malformed(self) -> None:
        for data in (
            b"NONSENSE\r\n",
            b"\r\n",
            b"PUB\r\n",
            b"PUB a\r\n",
            b"PUB a b c 1\r\nx\r\n",
            b"PUB a x\r\n",
            b"PUB a -1\r\n",
            b"PUB a 99999999999\r\n",
            b"PUB a 2\r\nhiXX",
            b"PUB \xff\xfe 2\r\nhi\r\n",
            b"HPUB a 4 2\r\nhi\r\n",
            b"HPUB a 12 14\r\nNATS/2.0\r\n\r\nhi\r\n",
            b"HPUB a 12 14\r\nNATS/1.0XXXXhi\r\n",
            b"SUB a\r\n",
            b"SUB a b c d\r\n",
            b"UNSUB\r\n",
            b"UNSUB 1 x\r\n",
            b"CONNECT {\r\n",
            b"CONNECT []\r\n",
            b"PUB a \xc2\xb2\r\nhi\r\n",
        ):
            self.refused(data)

    def test_limits(self) -> None:
        self.refused(b"PUB a 11\r\n", "Maximum Payload", max_payload=10)
        self.refused(b"SUB " + b"a" * 5000 + b" 1\r\n", "Maximum Control Line")
        self.refused(b"SUB " + b"a" * 5000, "Maximum Control Line")
        self.refused(b"CONNECT " + b"a" * wire.MAX_JSON_LINE + b"\r\n", "Maximum Control Line")
        self.assertEqual(len(parse(b'CONNECT {"a":"' + b"a" * 5000 + b'"}\r\n')), 1)

    def test_what_came_before_the_fault_is_kept(self) -> None:
        found = []
        with self.assertRaises(ProtocolError):
            found.extend([])
            for op in Parser().feed(b"PING\r\nPING\r\nNONSENSE\r\n"):
                found.append(op)
        self.assertEqual(found, [wire.PING, wire.PING])

    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(st.lists(st.binary(max_size=60), max_size=6))
    def test_nothing_else_is_raised(self, pieces: list[bytes]) -> None:
        parser = Parser()
        try:
            for piece in pieces:
                for op in parser.feed(piece + b"\r\n"):
                    self.assertIsInstance(op, Op)
        except ProtocolError:
            pass


class HeaderTests(SynchronousTestCase):
    def test_there_and_back(self) -> None:
        block = wire.encode_headers((("A", "1"), ("B", "x: y"), ("A", "2")))
        self.assertEqual(wire.decode_headers(block), {"A": ["1", "2"], "B": ["x: y"]})
        self.assertEqual(wire.header(block, "B"), "x: y")
        self.assertEqual(wire.header(block, "C"), "")
        self.assertEqual(wire.decode_status(block), (0, ""))

    def test_status(self) -> None:
        block = wire.encode_headers((("Nats-Pending-Messages", "3"),), 408, "Request Timeout")
        self.assertEqual(block, b"NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: 3\r\n\r\n")
        self.assertEqual(wire.decode_status(block), (408, "Request Timeout"))
        self.assertEqual(wire.decode_status(b"NATS/1.0 503\r\n\r\n"), (503, ""))
        self.assertEqual(wire.decode_status(b"NATS/1.0 x y\r\n\r\n"), (0, "y"))

    def test_headers_for_the_server(self) -> None:
        block = b"NATS/1.0\r\nA: b\r\nNats-Msg-Id: 7\r\nNats-Msg-Id: 8\r\nNats-TTL:1s\r\nX-Nats-Y: n\r\n\r\n"
        self.assertEqual(wire.nats_headers(block), {"Msg-Id": "7", "TTL": "1s"})

    def test_replacement(self) -> None:
        block = wire.encode_headers((("A", "1"), ("B", "2")))
        self.assertEqual(wire.decode_headers(wire.replace_headers(block, ("A",), {"C": "3"})), {"B": ["2"], "C": ["3"]})
        self.assertEqual(wire.replace_headers(block, ("A", "B"), {}), b"")
        self.assertEqual(wire.decode_headers(wire.replace_headers(b"", (), {"C": "3"})), {"C": ["3"]})

    def test_no_breaking_out(self) -> None:
        for name, value in (("a", "b\r\nc: d"), ("a\r\n", "b"), ("a:", "b"), ("", "b"), ("a", "b\n")):
            with self.assertRaises(ValueError):
                wire.encode_headers(((name, value),))

    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(st.binary(max_size=80))
    def test_odd_blocks_raise_nothing(self, block: bytes) -> None:
        wire.decode_headers(block)
        wire.decode_status(block)
        wire.nats_headers(block)
        wire.header(block, "Nats-Msg-Id")
