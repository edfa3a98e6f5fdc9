"""Listening sockets: taken while the server is put together, served once it has started.

What the operator can mend about them (a port in use, a certificate that cannot be read) is a `StartError`.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.logger import Logger

if TYPE_CHECKING:
    from twisted.internet.interfaces import IListeningPort
    from twisted.internet.protocol import Factory

log = Logger()

_BACKLOG = 1024


class StartError(Exception):
    """Why the server cannot start, and what to do about it: a sentence for the operator."""


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


def tcp_sockets(address: str, option: str) -> list[socket.socket]:
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


def unix_socket(path: str, permission: str) -> socket.socket:
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
