"""``dendrite-nats-server``: the queue as a server of its own, with the flags of nats-server.

It serves several processes of one deployment where no nats-server is wanted, and lets the tools of NATS
look into a queue.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from tempfile import gettempdir
from typing import Any, Final

import msgspec
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import (
    FilteringLogObserver,
    LogLevel,
    LogLevelFilterPredicate,
    globalLogBeginner,
    textFileLogObserver,
)

from dendrite_tw.jetstream import conf
from dendrite_tw.jetstream.accounts import Gate, Permissions, User
from dendrite_tw.jetstream.api import Api
from dendrite_tw.jetstream.disk_thread import DiskThread
from dendrite_tw.jetstream.engine import JetStream, Limits
from dendrite_tw.jetstream.monitor import monitor_site
from dendrite_tw.jetstream.server import PROTOCOL_VERSION, Server, Settings
from dendrite_tw.jetstream.syncer import Syncer
from dendrite_tw.jetstream.tcp import ServerFactory
from dendrite_tw.jetstream.wire import DEFAULT_MAX_PAYLOAD

USAGE: Final = """\
usage: dendrite-nats-server [options]

  -a, --addr, --net HOST   address to listen on (127.0.0.1)
  -p, --port PORT          port for clients (4222)
  -m, --http_port PORT     port for monitoring over HTTP
  -n, --name NAME          name of the server
  -P, --pid FILE           where to write the process id
  -c, --config FILE        configuration in the language of nats-server
  -js, --jetstream         streams and consumers
  -sd, --store_dir DIR     where they are kept
  --user USER --pass PASSWORD
  --auth TOKEN             what clients must show
  -D, -V, -DV              say more in the log
  -v, --version
"""


class Options(msgspec.Struct):
    """What the command line and the configuration file say together."""

    host: str = "127.0.0.1"
    port: int = 4222
    http_port: int = 0
    name: str = ""
    pid: str = ""
    config: str = ""
    jetstream: bool = False
    store_dir: str = ""
    user: str = ""
    password: str = ""
    token: str = ""
    verbose: bool = False
    max_payload: int = DEFAULT_MAX_PAYLOAD
    domain: str = ""
    no_auth_user: str = ""
    accounts: dict[str, Any] = {}
    users: list[dict[str, Any]] = []


_FLAGS: Final = {
    "a": "host",
    "addr": "host",
    "net": "host",
    "p": "port",
    "port": "port",
    "m": "http_port",
    "http_port": "http_port",
    "n": "name",
    "name": "name",
    "server_name": "name",
    "P": "pid",
    "pid": "pid",
    "c": "config",
    "config": "config",
    "js": "jetstream",
    "jetstream": "jetstream",
    "sd": "store_dir",
    "store_dir": "store_dir",
    "user": "user",
    "pass": "password",
    "auth": "token",
    "D": "verbose",
    "V": "verbose",
    "DV": "verbose",
    "debug": "verbose",
    "trace": "verbose",
}
_SWITCHES: Final = ("jetstream", "verbose")
_NUMBERS: Final = ("port", "http_port")


class UsageError(Exception):
    """The command line is wrong."""


def parse_flags(arguments: list[str]) -> dict[str, Any]:
    """The flags of the command line, as Go's programs take them: ``-x v``, ``--x v``, ``-x=v``."""
    found: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        flag = rest.pop(0)
        name, equals, value = flag.lstrip("-").partition("=")
        field = _FLAGS.get(name) if flag.startswith("-") else None
        if field is None:
            raise UsageError(f"unknown option {flag}")
        if field in _SWITCHES:
            found[field] = value.lower() not in ("false", "0") if equals else True
            continue
        if not equals:
            if not rest:
                raise UsageError(f"{flag} needs a value")
            value = rest.pop(0)
        if field in _NUMBERS:
            if not value.isdecimal() or int(value) > 65535:
                raise UsageError(f"{flag}: not a port: {value}")
            found[field] = int(value)
        else:
            found[field] = value
    return found


def read_configuration(text: str) -> dict[str, Any]:
    """The fields of `Options` that a configuration file sets."""
    tree = {key.lower(): value for key, value in conf.parse(text).items()}
    found: dict[str, Any] = {}
    listen = tree.get("listen")
    if isinstance(listen, str) and ":" in listen:
        host, _, port = listen.rpartition(":")
        found.update(host=host, port=int(port))
    for key, field in (
        ("host", "host"),
        ("net", "host"),
        ("port", "port"),
        ("http_port", "http_port"),
        ("monitor_port", "http_port"),
        ("server_name", "name"),
        ("pid_file", "pid"),
        ("max_payload", "max_payload"),
        ("no_auth_user", "no_auth_user"),
        ("accounts", "accounts"),
    ):
        if key in tree:
            found[field] = tree[key]
    stream = tree.get("jetstream")
    if stream is not None:
        found["jetstream"] = stream not in (False, "disabled")
        if isinstance(stream, dict):
            found["store_dir"] = stream.get("store_dir", "")
            found["domain"] = stream.get("domain", "")
    login = tree.get("authorization")
    if isinstance(login, dict):
        found.update(user=str(login.get("user", "")), password=str(login.get("password", login.get("pass", ""))))
        found["token"] = str(login.get("token", ""))
        found["users"] = login.get("users", [])
    return found


def options_of(arguments: list[str]) -> Options:
    """Options from the command line, and from the file that it names; raises `UsageError`, `OSError`,
    `ValueError`.
    """
    flags = parse_flags(arguments)
    filed = {}
    if flags.get("config"):
        filed = read_configuration(Path(flags["config"]).read_text(encoding="utf-8"))
    return msgspec.convert({**filed, **flags}, Options)


def _permissions(tree: Any) -> Permissions:
    if isinstance(tree, str):
        return Permissions(allow=(tree,))
    if isinstance(tree, list):
        return Permissions(allow=tuple(map(str, tree)))
    if not isinstance(tree, dict):
        return Permissions()
    sides = {side: tree.get(side, []) for side in ("allow", "deny")}
    lists = {side: [value] if isinstance(value, str) else value for side, value in sides.items()}
    return Permissions(tuple(lists["allow"]), tuple(lists["deny"]))


def _user(tree: dict[str, Any], server: Server) -> User:
    permissions = tree.get("permissions") or {}
    return User(
        name=str(tree.get("user") or tree.get("username") or ""),
        password=str(tree.get("pass") or tree.get("password") or ""),
        server=server,
        publish=_permissions(permissions.get("publish")),
        subscribe=_permissions(permissions.get("subscribe")),
    )


class Node:
    """A whole server: its accounts with their streams, its listening ports."""

    def __init__(self, options: Options, reactor: Any) -> None:
        self._options = options
        self._reactor = reactor
        self._ports: list[Any] = []
        self._disk = DiskThread(reactor.callFromThread)
        self.syncer = Syncer(self._disk.run, reactor.callLater)
        self.settings = Settings(
            name=options.name or "dendrite-nats-server",
            host=options.host,
            port=options.port,
            max_payload=options.max_payload,
            jetstream=options.jetstream,
            domain=options.domain,
        )
        self.servers: list[Server] = []
        self.engines: list[JetStream] = []
        self.server = self._account("", None if options.jetstream else False)
        users = [_user(tree, self.server) for tree in options.users]
        if options.user:
            users.append(_user({"user": options.user, "pass": options.password}, self.server))
        for name, tree in options.accounts.items():
            account = self._account(name, tree.get("jetstream", False))
            users.extend(_user(row, account) for row in tree.get("users", []))
        gate = Gate(self.server, users=users, token=options.token, no_auth_user=options.no_auth_user)
        for server in self.servers:
            server.gate = gate

    def _account(self, name: str, jetstream: Any) -> Server:
        """An account; ``jetstream`` is false, or true, or its limits."""
        server = Server(self.settings)
        self.servers.append(server)
        if jetstream is not False and jetstream != "disabled":
            limits = Limits.of(jetstream if isinstance(jetstream, dict) else {})
            store = Path(self._options.store_dir or Path(gettempdir()) / "nats")
            folder = store / "jetstream" / (name or "$G")
            engine = JetStream(server, self._reactor, self.syncer, folder, limits)
            Api(engine, domain=self._options.domain)
            self.engines.append(engine)
        return server

    async def start(self) -> None:
        for engine in self.engines:
            await self._disk.run(engine.recover)
            engine.serve()
            engine.start()
        factory = ServerFactory(self.server, self._reactor, self.syncer.kick)
        options = self._options
        self._ports.append(self._reactor.listenTCP(options.port, factory, interface=options.host))
        if options.http_port:
            started = int(self._reactor.seconds() * 1_000_000_000)
            site = monitor_site(self.servers, self.engines, started)
            self._ports.append(self._reactor.listenTCP(options.http_port, site, interface=options.host))

    async def stop(self) -> None:
        for port in self._ports:
            await maybeDeferred(port.stopListening)
        for engine in self.engines:
            engine.stop()
        synced: Deferred[None] = Deferred()
        self.syncer.when_synced(lambda: synced.callback(None))
        await synced
        for engine in self.engines:
            engine.close_files()
        self._disk.stop()


def _begin_log(verbose: bool) -> None:
    level = LogLevel.debug if verbose else LogLevel.info
    observer = FilteringLogObserver(textFileLogObserver(sys.stderr), [LogLevelFilterPredicate(defaultLogLevel=level)])
    globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False, discardBuffer=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the server until it is told to stop; returns the exit status."""
    words = sys.argv[1:] if arguments is None else arguments
    if words in (["-h"], ["--help"]):
        sys.stdout.write(USAGE)
        return 0
    if words in (["-v"], ["--version"]):
        sys.stdout.write(f"dendrite-nats-server: v{PROTOCOL_VERSION}\n")
        return 0
    try:
        options = options_of(words)
    except (UsageError, OSError, ValueError) as error:
        sys.stderr.write(f"dendrite-nats-server: {error}\n{USAGE}")
        return 1
    return _serve(options)


def _serve(options: Options) -> int:
    reactor: Any = _reactor
    _begin_log(options.verbose)
    node = Node(options, reactor)
    status: list[int] = [0]

    def failed(failure: Any) -> None:
        sys.stderr.write(f"dendrite-nats-server: {failure.getErrorMessage()}\n")
        status[0] = 1
        reactor.stop()

    def begin() -> None:
        Deferred.fromCoroutine(node.start()).addErrback(failed)

    if options.pid:
        Path(options.pid).write_text(str(os.getpid()), encoding="ascii")
    reactor.callWhenRunning(begin)
    reactor.addSystemEventTrigger("before", "shutdown", lambda: Deferred.fromCoroutine(node.stop()))
    signal.signal(signal.SIGINT, lambda *ignored: reactor.callFromThread(reactor.stop))
    reactor.run()
    return status[0]


if __name__ == "__main__":
    raise SystemExit(main())
