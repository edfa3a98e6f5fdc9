"""The server as a service: ``twistd -n dendrite --config dendrite.yaml``.

This is where the process meets the system: configuration file, sockets (`sockets`), log.  What is served comes
from `dendrite_tw.assemble`.  Whatever the operator can mend (a mistake in the configuration, a port in use,
a certificate that cannot be read) ends the start with a sentence and exit code 1, without a traceback.

Heavy modules are imported inside functions: ``--help`` and ``--version`` answer at once, and TLS costs only those
who use it.
"""

from __future__ import annotations

import atexit
import importlib
import os
import resource
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

import msgspec
from twisted.application.service import IService, MultiService
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger, globalLogPublisher
from twisted.python import usage
from twisted.python.failure import Failure

from dendrite_tw import __version__, readiness
from dendrite_tw.components import addresses, run_by, sections_named
from dendrite_tw.config import Config, ConfigError, load
from dendrite_tw.sockets import Listener, StartError, tcp_sockets, tls_options, unix_socket

if TYPE_CHECKING:
    from twisted.internet.protocol import Factory

__all__ = ["Listener", "Options", "Settings", "StartError", "Whole", "makeService", "make_service", "tls_options"]

log = Logger()

FEW_FILES = 65535
TRIM_SECONDS = 20.0


class Settings(msgspec.Struct, frozen=True):
    """The command line: addresses are ``host:port`` or ``:port``; an empty path means not given.

    HTTPS is served only if both certificate and key are given; with a unix socket, TCP is not served at all.
    ``components`` names sections of the file, as `components.SECTIONS` has them; none means the whole server.  HTTP is
    served on port 8008 by the whole server and where the file says by some components, unless an address is given.
    """

    config: str = "dendrite.yaml"
    http_bind_address: str = ""
    https_bind_address: str = ":8448"
    tls_cert: str = ""
    tls_key: str = ""
    unix_socket: str = ""
    unix_socket_permission: str = "755"
    really_enable_open_registration: bool = False
    components: tuple[str, ...] = ()


class Monolith(Protocol):
    """What `assemble.monolith` returns, and `assemble.polylith`: a service with what is served on its sockets.

    ``serves`` fires when they may be served, ``started`` when all has started, or it fails with the reason why that
    will never be.
    """

    serves: Deferred[None]
    started: Deferred[None]

    def factory(self, reactor: Any) -> Factory:
        """The protocol factory of every listening socket."""


Assemble = Callable[[Config, Any], Any]


class Options(usage.Options):
    """Options of ``twistd dendrite``; they are those of Dendrite's server."""

    synopsis = "[options]"
    longdesc = "A Matrix homeserver that reads Dendrite's configuration."
    optParameters = [  # noqa: RUF012
        ["config", "c", Settings().config, "The configuration file."],
        ["http-bind-address", None, "", "Where to listen for HTTP: by default :8008, or where the file says."],
        ["https-bind-address", None, Settings().https_bind_address, "Where to listen for HTTPS."],
        ["tls-cert", None, "", "Certificate chain for HTTPS, in PEM format."],
        ["tls-key", None, "", "Key of that certificate, in PEM format."],
        ["unix-socket", None, "", "Listen on this unix socket instead of TCP."],
        ["unix-socket-permission", None, "755", "Permissions of the unix socket, in octal."],
    ]
    optFlags = [  # noqa: RUF012
        ["really-enable-open-registration", None, "Allow open registration without any check."],
    ]

    def __init__(self) -> None:
        super().__init__()
        self._components: list[str] = []

    def opt_component(self, words: str) -> None:
        """Run only this component, or several with commas between; may be given again. Needs NATS and PostgreSQL."""
        try:
            self._components += sections_named([words])
        except ValueError as error:
            raise usage.UsageError(str(error)) from None

    def opt_version(self) -> None:
        """Print the version and exit."""
        print(version_text())
        raise SystemExit(0)

    def settings(self) -> Settings:
        given = {name.replace("-", "_"): value for name, value in self.items()}
        given["really_enable_open_registration"] = bool(given["really_enable_open_registration"])
        given["components"] = tuple(dict.fromkeys(self._components))
        return Settings(**{name: given[name] for name in Settings.__struct_fields__})


def version_text() -> str:
    return f"dendrite_tw {__version__}"


def makeService(options: Options) -> IService:
    """Twisted's hook: the service for these options; exits with a sentence if there can be none."""
    try:
        service = make_service(options.settings())
    except (ConfigError, StartError) as error:
        raise SystemExit(f"{error}") from None
    atexit.register(_exit_with_code_of, service)
    return service


def _exit_with_code_of(service: Whole) -> None:
    """End with the server's own exit code; `twistd` knows none but 0 for a reactor that was stopped."""
    if getattr(service, "exit_code", 0):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(service.exit_code)


def make_service(settings: Settings, reactor: Any = None, assemble: Assemble | None = None, world: Any = None) -> Whole:
    """The whole server: reads the configuration, takes the sockets, assembles what is served on them.

    Raises `ConfigError` or `StartError`.  The arguments after ``settings`` are for tests; otherwise the running
    reactor, `assemble.monolith` or `assemble.polylith`, and the system's own world are used.
    """
    some = settings.components
    config = load(
        settings.config,
        allow_open_registration=settings.really_enable_open_registration,
        polylith=bool(some),
    )
    if reactor is None:
        from twisted.internet import reactor
    begin_logging(config)
    check_file_limit()
    listeners = open_sockets(settings, reactor, config)
    try:
        if world is None:
            from dendrite_tw.world import system_world

            world = system_world(reactor)
        if assemble is None:
            assemble = assemble_some(some) if some else importlib.import_module("dendrite_tw.assemble").monolith
        monolith = cast(Assemble, assemble)(config, world)
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    whole = Whole(monolith, listeners, reactor)
    if IReactorTime.providedBy(reactor):
        spare_memory(whole, reactor)
    if some:
        end_in_order(reactor)
    factory = monolith.factory(reactor)
    for listener in listeners:
        listener.factory = factory
    return whole


def assemble_some(sections: Sequence[str]) -> Assemble:
    """What puts together a process that serves these sections of the file."""
    polylith = importlib.import_module("dendrite_tw.assemble").polylith
    return lambda config, world: polylith(config, world, run_by(sections))


class Whole(MultiService):
    """The server with its sockets, which are served once everything behind them has started.

    Who connects before that waits.  A server that cannot start stops the reactor; ``exit_code`` is 1 then.
    """

    def __init__(self, monolith: Any, listeners: Sequence[Listener], reactor: Any) -> None:
        super().__init__()
        self.exit_code = 0
        self._listeners = listeners
        self._reactor = reactor
        monolith.setServiceParent(self)
        monolith.serves.addCallback(self._serve)
        monolith.started.addCallbacks(self._ready, self._give_up)

    def _serve(self, result: None) -> None:
        if self.running:
            for listener in self._listeners:
                listener.setServiceParent(self)

    def _ready(self, result: None) -> None:
        if self.running:
            readiness.tell(readiness.READY)

    def _give_up(self, failure: Failure) -> None:
        if not self.running:
            return
        if failure.check(ConfigError, StartError, OSError):
            log.critical("The server cannot start: {reason}", reason=failure.getErrorMessage())
        else:
            log.failure("The server cannot start", failure)
        self.exit_code = 1
        self._reactor.callWhenRunning(self._reactor.stop)

    def stopService(self) -> Deferred[Any]:
        readiness.tell(readiness.STOPPING)
        for listener in self._listeners:
            if listener.parent is None:
                listener.close()
        stopped: Deferred[Any] = super().stopService()
        return stopped


def begin_logging(config: Config) -> None:
    """Add the observers the configuration asks for, and say what is doubtful in it."""
    from dendrite_tw import logs

    try:
        for observer in logs.observers(config.logging):
            globalLogPublisher.addObserver(observer)
    except (OSError, ValueError) as error:
        raise config.error(
            "logging", f"The log cannot be written: {error}.", "Change the entry or the permissions."
        ) from None
    log.info("{version}, configured by {path}", version=version_text(), path=config.path)
    for problem in config.problems:
        log.warn("{problem}", problem=problem.render(config.path))
    if config.registration_open:
        log.warn("Registration is open: anybody can make an account.")


def check_file_limit() -> None:
    """Let the process open as many files as it may, and warn if a busy server could run out of them."""
    soft, hard = (
        FEW_FILES if limit == resource.RLIM_INFINITY else limit for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    if soft < min(hard, FEW_FILES):
        soft = min(hard, FEW_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    if soft < FEW_FILES:
        log.warn(
            "This process may open {soft} files only; raise the limit to {wanted} or more "
            "(LimitNOFILE= in systemd, ulimit -n in a shell).",
            soft=soft,
            wanted=FEW_FILES,
        )


def end_in_order(reactor: Any) -> None:
    """Let a process that was told to stop, and has finished what it had, end with exit code 0.

    `twistd` would kill itself by the signal that it was stopped with, for the sake of shells; whoever moves processes
    about takes that for a death.
    """

    def forget() -> None:
        reactor._exitSignal = None

    reactor.addSystemEventTrigger("after", "shutdown", forget)


def spare_memory(whole: MultiService, reactor: Any) -> None:
    """Let threads share one heap, give back now and then what it does not use, and let the collector
    leave alone what the start made.

    The C library gives each thread a heap of its own, and keeps the holes that a busy hour leaves.
    Where the library is another one, nothing is done.
    """
    import ctypes
    import gc

    arena_max = -8
    gc.collect()
    gc.freeze()
    try:
        library = ctypes.CDLL(None)
        library.mallopt(arena_max, 1)
        trim = library.malloc_trim
    except (OSError, AttributeError):
        log.debug("The C library has no mallopt; each thread keeps a heap of its own.")
        return
    from twisted.application.internet import TimerService

    timer = TimerService(TRIM_SECONDS, trim, 0)
    timer.clock = reactor
    timer.setServiceParent(whole)


def open_sockets(settings: Settings, reactor: Any, config: Config) -> list[Listener]:
    """Take every socket that is asked for, on the command line or else in the file; where one cannot be had,
    `StartError` or `ConfigError`, and none is kept.
    """
    if settings.unix_socket:
        bound = unix_socket(settings.unix_socket, settings.unix_socket_permission)
        return [Listener(reactor, bound)]
    if bool(settings.tls_cert) != bool(settings.tls_key):
        raise StartError("--tls-cert and --tls-key are only of use together.")
    tls = tls_options(settings.tls_cert, settings.tls_key) if settings.tls_cert else None
    listeners: list[Listener] = []
    try:
        for address, said in _http_addresses(settings, config):
            listeners += [Listener(reactor, bound) for bound in tcp_sockets(address, said)]
        if tls is not None:
            bounds = tcp_sockets(settings.https_bind_address, "--https-bind-address")
            listeners += [Listener(reactor, bound, tls) for bound in bounds]
    except StartError:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _http_addresses(settings: Settings, config: Config) -> list[tuple[str, str]]:
    """Where HTTP is served, each with what says so: an option, or a key of the file with its place."""
    if settings.http_bind_address or not settings.components:
        return [(settings.http_bind_address or ":8008", "--http-bind-address")]
    return [
        (one.address, f"{one.key} ({config.path}:{config.lines.get(one.key, 0)})")
        for one in addresses(config, settings.components)
    ]
