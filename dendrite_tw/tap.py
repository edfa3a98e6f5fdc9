"""The server as a service: ``twistd -n dendrite --config dendrite.yaml``.

This is where the process meets the system: configuration file, listening sockets, TLS, log.  What is served comes
from `dendrite_tw.assemble`.  Whatever the operator can mend (a mistake in the configuration, a port in use,
a certificate that cannot be read) ends the start with a sentence and exit code 1, without a traceback.

Heavy modules are imported inside functions: ``--help`` and ``--version`` answer at once, and TLS costs only those
who use it.
"""

from __future__ import annotations

import atexit
import errno
import importlib
import os
import resource
import socket
import stat
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import msgspec
from twisted.application.service import IService, MultiService, Service
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger, globalLogPublisher
from twisted.python import usage
from twisted.python.failure import Failure

from dendrite_tw import __version__
from dendrite_tw.config import Config, ConfigError, load

if TYPE_CHECKING:
    from twisted.internet.interfaces import IListeningPort
    from twisted.internet.protocol import Factory
    from twisted.web.resource import IResource

log = Logger()

FEW_FILES = 65535
TRIM_SECONDS = 20.0
_BACKLOG = 1024


class StartError(Exception):
    """Why the server cannot start, and what to do about it: a sentence for the operator."""


class Settings(msgspec.Struct, frozen=True):
    """The command line: addresses are ``host:port`` or ``:port``; an empty path means not given.

    HTTPS is served only if both certificate and key are given; with a unix socket, TCP is not served at all.
    """

    config: str = "dendrite.yaml"
    http_bind_address: str = ":8008"
    https_bind_address: str = ":8448"
    tls_cert: str = ""
    tls_key: str = ""
    unix_socket: str = ""
    unix_socket_permission: str = "755"
    really_enable_open_registration: bool = False


class Monolith(Protocol):
    """What `assemble.monolith` returns: a service whose ``site`` is the root of all resources.

    ``started`` fires when requests may be served, or fails with the reason why they never will.
    """

    site: IResource
    started: Deferred[None]


Assemble = Callable[[Config, Any], Any]


class Options(usage.Options):
    """Options of ``twistd dendrite``; they are those of Dendrite's server."""

    synopsis = "[options]"
    longdesc = "A Matrix homeserver that reads Dendrite's configuration."
    optParameters = [  # noqa: RUF012
        ["config", "c", Settings().config, "The configuration file."],
        ["http-bind-address", None, Settings().http_bind_address, "Where to listen for HTTP."],
        ["https-bind-address", None, Settings().https_bind_address, "Where to listen for HTTPS."],
        ["tls-cert", None, "", "Certificate chain for HTTPS, in PEM format."],
        ["tls-key", None, "", "Key of that certificate, in PEM format."],
        ["unix-socket", None, "", "Listen on this unix socket instead of TCP."],
        ["unix-socket-permission", None, "755", "Permissions of the unix socket, in octal."],
    ]
    optFlags = [  # noqa: RUF012
        ["really-enable-open-registration", None, "Allow open registration without any check."],
    ]

    def opt_version(self) -> None:
        """Print the version and exit."""
        print(version_text())
        raise SystemExit(0)

    def settings(self) -> Settings:
        given = {name.replace("-", "_"): value for name, value in self.items()}
        given["really_enable_open_registration"] = bool(given["really_enable_open_registration"])
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


def make_service(
    settings: Settings, reactor: Any = None, assemble: Assemble | None = None, world: Any = None
) -> Whole:
    """The whole server: reads the configuration, takes the sockets, assembles what is served on them.

    Raises `ConfigError` or `StartError`.  The arguments after ``settings`` are for tests; otherwise the running
    reactor, `assemble.monolith` and the system's own world are used.
    """
    config = load(settings.config, allow_open_registration=settings.really_enable_open_registration)
    if reactor is None:
        from twisted.internet import reactor
    begin_logging(config)
    check_file_limit()
    listeners = open_sockets(settings, reactor)
    try:
        if world is None:
            from dendrite_tw.world import system_world

            world = system_world(reactor)
        if assemble is None:
            assemble = cast(Assemble, importlib.import_module("dendrite_tw.assemble").monolith)
        monolith = assemble(config, world)
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    whole = Whole(monolith, listeners, reactor)
    if IReactorTime.providedBy(reactor):
        spare_memory(whole, reactor)
    factory = http_factory(monolith.site)
    for listener in listeners:
        listener.factory = factory
    return whole


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
        monolith.started.addCallbacks(self._serve, self._give_up)

    def _serve(self, result: None) -> None:
        if self.running:
            for listener in self._listeners:
                listener.setServiceParent(self)

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


def http_factory(root: IResource) -> Factory:
    """The protocol factory that serves a tree of resources: HTTP/1.1 without an access log."""
    from twisted.internet import reactor

    from dendrite_tw.web.site import make_site

    return cast("Factory", make_site(cast(Any, root), reactor))


class Listener(Service):
    """One listening socket, taken while the server is put together and served once it starts.

    Taking it early lets a port in use end the start at once, and lets a port below 1024 be taken before
    privileges are given up.
    """

    factory: Factory
    name: str | None = None

    def __init__(self, reactor: Any, bound: socket.socket, tls: Any = None) -> None:
        self._reactor = reactor
        self._socket = bound
        self._tls = tls
        self._port: IListeningPort | None = None
        self.address: Any = bound.getsockname()

    def startService(self) -> None:
        """Serve.  A listener that joins its parent while that one starts is started by both, and serves once."""
        if self.running:
            return
        super().startService()
        factory: Any = self.factory
        if self._tls is not None:
            from twisted.protocols.tls import TLSMemoryBIOFactory

            factory = TLSMemoryBIOFactory(self._tls, False, factory)
        self._port = self._reactor.adoptStreamPort(self._socket.fileno(), self._socket.family, factory)
        self._socket.close()
        kind = "HTTPS" if self._tls is not None else "HTTP"
        log.info("Serving {kind} on {place}", kind=kind, place=_place(self.address))

    def stopService(self) -> Deferred[Any]:
        super().stopService()
        port, self._port = self._port, None
        stopped: Deferred[Any] = maybeDeferred(port.stopListening) if port else succeed(None)
        return stopped.addBoth(self._gone)

    def _gone(self, result: Any) -> Any:
        self.close()
        return result

    def close(self) -> None:
        """Give the socket back; a unix socket disappears from the file system too."""
        self._socket.close()
        if isinstance(self.address, str):
            Path(self.address).unlink(missing_ok=True)


def _place(address: Any) -> str:
    if isinstance(address, str):
        return address
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    return f"{host}:{address[1]}"


def open_sockets(settings: Settings, reactor: Any) -> list[Listener]:
    """Take every socket the command line asks for; `StartError` if one cannot be had, and none is kept then."""
    if settings.unix_socket:
        bound = _unix_socket(settings.unix_socket, settings.unix_socket_permission)
        return [Listener(reactor, bound)]
    if bool(settings.tls_cert) != bool(settings.tls_key):
        raise StartError("--tls-cert and --tls-key are only of use together.")
    tls = tls_options(settings.tls_cert, settings.tls_key) if settings.tls_cert else None
    listeners: list[Listener] = []
    try:
        for bound in _tcp_sockets(settings.http_bind_address, "--http-bind-address"):
            listeners.append(Listener(reactor, bound))
        if tls is not None:
            for bound in _tcp_sockets(settings.https_bind_address, "--https-bind-address"):
                listeners.append(Listener(reactor, bound, tls))
    except StartError:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _tcp_sockets(address: str, option: str) -> list[socket.socket]:
    """Listening sockets for ``host:port``; without a host, on all addresses of IPv4 and of IPv6."""
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise StartError(f"{option} must be host:port or :port, not {address[:80]!r}.")
    try:
        if host:
            found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            return [_tcp_socket(found[0][0], found[0][4])]
        bound = [_tcp_socket(socket.AF_INET, ("0.0.0.0", int(port)))]  # noqa: S104
    except OSError as error:
        raise StartError(_cannot_listen(address, option, error)) from None
    try:
        bound.append(_tcp_socket(socket.AF_INET6, ("::", bound[0].getsockname()[1])))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            bound[0].close()
            raise StartError(_cannot_listen(address, option, error)) from None
        log.debug("No IPv6 on this machine: {error}", error=error)
    return bound


def _tcp_socket(family: int, address: Any) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.setblocking(False)
        bound.bind(address)
        bound.listen(_BACKLOG)
    except BaseException:
        bound.close()
        raise
    return bound


def _cannot_listen(address: str, option: str, error: OSError) -> str:
    hints = {
        errno.EADDRINUSE: f"Another process has it, perhaps another homeserver; stop that, or change {option}.",
        errno.EACCES: "Ports below 1024 need privileges; choose a higher one.",
    }
    hint = hints.get(error.errno or 0, f"Check {option}.")
    return f"Cannot listen on {address}: {error.strerror or error}. {hint}"


def _unix_socket(path: str, permission: str) -> socket.socket:
    try:
        mode = int(permission, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise StartError(f"--unix-socket-permission must be octal, such as 755, not {permission[:20]!r}.")
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_dead_socket(path)
        bound.setblocking(False)
        bound.bind(path)
        Path(path).chmod(mode)
        bound.listen(_BACKLOG)
    except OSError as error:
        bound.close()
        raise StartError(f"Cannot listen on {path}: {error.strerror or error}. Check --unix-socket.") from None
    return bound


def _remove_dead_socket(path: str) -> None:
    """Remove a socket that a killed server left behind; leave alone one that somebody answers on."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):  # noqa: PTH116
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()


def tls_options(cert_path: str, key_path: str) -> Any:
    """What TLS is served with: the certificate, the chain behind it and the key, from PEM files.

    Raises `StartError` if they cannot be read or do not belong together.
    """
    from OpenSSL.crypto import Error as PemError
    from OpenSSL.SSL import Error as SSLError
    from twisted.internet.ssl import Certificate, CertificateOptions, KeyPair

    try:
        chain = _pem_blocks(cert_path)
        certificates = [Certificate.loadPEM(block).original for block in chain]
        key = KeyPair.load(Path(key_path).read_bytes(), _PEM_FORMAT).original
        options = CertificateOptions(
            privateKey=key,
            certificate=certificates[0],
            extraCertChain=certificates[1:],
            acceptableProtocols=[b"http/1.1"],
        )
        options.getContext()
    except OSError as error:
        name = error.filename or cert_path
        raise StartError(f"{name} cannot be read: {error.strerror or error}. Check --tls-cert and --tls-key.") from None
    except (PemError, SSLError, ValueError, IndexError):
        raise StartError(
            f"{cert_path} and {key_path} are not a certificate and its key in PEM format. "
            'Make a pair with "generate-keys -tls-cert … -tls-key …".'
        ) from None
    return options


_PEM_FORMAT = 1  # OpenSSL.crypto.FILETYPE_PEM
_PEM_END = b"-----END CERTIFICATE-----"


def _pem_blocks(path: str) -> list[bytes]:
    parts = Path(path).read_bytes().split(_PEM_END)
    return [part[part.index(b"-----BEGIN") :] + _PEM_END + b"\n" for part in parts[:-1]]
