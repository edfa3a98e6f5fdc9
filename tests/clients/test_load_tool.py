"""The load tool's own parts: its HTTP client, its percentiles, its table."""

from __future__ import annotations

import asyncio

from twisted.trial.unittest import SynchronousTestCase

from bench.http import ConnectionLostError, Exchange, Response
from bench.report import Figures, ServerFigures, percentile, table

COUNTED = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"a": 12}'
CHUNKED = b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n0\r\n\r\n\r\n4;x=y\r\n1234\r\n0\r\n\r\n"


async def received(*pieces: bytes) -> Response | None:
    """What an exchange makes of bytes that arrive in these pieces; None for not yet complete."""
    exchange = Exchange()
    answer = exchange.expect()
    for piece in pieces:
        exchange.data_received(piece)
    return answer.result() if answer.done() else None


class ExchangeTests(SynchronousTestCase):
    """Bytes to responses."""

    def test_any_cut(self) -> None:
        """Answers with a length and in chunks, wherever the network cuts them."""
        for whole, expected in ((COUNTED, Response(200, b'{"a": 12}')), (CHUNKED, Response(404, b"0\r\n\r\n1234"))):
            for cut in range(len(whole) + 1):
                assert asyncio.run(received(whole[:cut], whole[cut:])) == expected, cut

    def test_incomplete(self) -> None:
        """No answer before its last byte."""
        for whole in (COUNTED, CHUNKED):
            for cut in range(len(whole)):
                assert asyncio.run(received(whole[:cut])) is None, cut

    def test_closed(self) -> None:
        """A connection that ends within an answer fails the request."""

        async def cut_off() -> BaseException | None:
            exchange = Exchange()
            answer = exchange.expect()
            exchange.data_received(COUNTED[:-1])
            exchange.connection_lost(None)
            return answer.exception()

        assert isinstance(asyncio.run(cut_off()), ConnectionLostError)


class ReportTests(SynchronousTestCase):
    """Figures to lines."""

    def test_percentile(self) -> None:
        """Of any number of values."""
        assert percentile([], 0.99) == 0
        assert percentile([3.0], 0.5) == 3
        values = [float(value) for value in range(100, 0, -1)]
        assert (percentile(values, 0.5), percentile(values, 0.99)) == (51, 100)

    def test_table(self) -> None:
        """The ratio of two servers, and what failed."""

        def server(cpu_ms: float, failures: int) -> ServerFigures:
            figures = Figures(10, failures, None, cpu_ms, 1.0, 2.0, 99.0, 50.0)
            return ServerFigures("a server", 0.5, 40.0, 60.0, {"send": figures})

        lines = table({"ours": server(0.25, 0), "synapse": server(10.0, 3)}, {"send": "a message"}).splitlines()
        assert lines[2] == "| send | a message | 0.25 | 1 / 2 | 99 | 10 (!) | 1 / 2 | 99 | 40.0 |"
