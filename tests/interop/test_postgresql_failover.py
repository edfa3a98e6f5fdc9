"""A primary that dies in the middle of load, and its standby in its place; servers that do not answer."""

from __future__ import annotations

import signal
import socket
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from bench.processes import free_port
from dendrite_tw.database import connections
from dendrite_tw.database.statements import Transaction, one
from tests.database.cluster import Cluster
from tests.database.test_engines import count, insert
from tests.interop.database_load import Load, pause, run


class FailoverTests(Load):
    """The standby must have a commit before it is answered, as whoever must not lose any has it set."""

    def setUp(self) -> None:
        self.primary = Cluster(free_port())
        self.addCleanup(self.primary.remove)
        self.primary.new()
        self.standby = Cluster(free_port(), self.primary)
        self.addCleanup(self.standby.remove)
        self.primary.wait_for_standby()

    def uri(self, *ports: int) -> str:
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
        return f"postgresql://postgres@{hosts}/postgres?options=-csearch_path%3Dt1&sslmode=disable"

    def key_value(self) -> str:
        ports = f"port={self.primary.port},{self.standby.port}"
        return (
            f"host=127.0.0.1,localhost {ports} user=postgres dbname=postgres sslmode=disable "
            "target_session_attrs=read-write options=-csearch_path=t1 binary_parameters=yes"
        )

    async def fail_over(self) -> None:
        self.primary.stop(signal.SIGQUIT)
        await pause(0.3)
        self.standby.promote()

    def test_one_process(self) -> Deferred[Any]:
        self.begin([self.join(self.uri(self.primary.port, self.standby.port))])
        return run(self.under_load(self.fail_over()))

    def test_several_processes(self) -> Deferred[Any]:
        strings = [
            self.key_value(),
            self.uri(self.standby.port, self.primary.port) + "&target_session_attrs=read-write",
        ]
        self.begin([self.join(string, shared="pairs") for string in strings])
        return run(self.under_load(self.fail_over(), each=6))

    async def test_a_standby_is_never_asked(self) -> None:
        """Even where it is named first, and nothing says that it will not do."""
        database = self.join(self.uri(self.standby.port, self.primary.port))

        @one(bool, "SELECT pg_is_in_recovery()")
        def is_standby(txn: Transaction) -> None: ...

        reads = [database.read_long(is_standby) for _ in range(10)]
        self.assertEqual(await gatherResults(reads), [False] * 10)
        self.assertFalse(await database.write(is_standby))


class UnreachableTests(Load):
    async def test_a_server_that_never_answers_leaves_time_for_the_next(self) -> None:
        silent = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(silent.close)
        server = Cluster(free_port())
        self.addCleanup(server.remove)
        self.patch(connections, "CONNECT_SECONDS", 2.0)
        dsn = server.new().replace("localhost:", f"127.0.0.1:{silent.getsockname()[1]},127.0.0.1:")
        database = self.join(dsn + "&connect_timeout=2")
        await database.write(insert, 1, "a")
        self.assertEqual(await database.read(count), 1)
