"""TLS towards others: one context for all connections, and the name that each certificate must be for.

Server-Server API, "TLS".  The chain is checked against the authorities that the operating system trusts, the name by
service-identity.  The name is sent (SNI) unless it is an address.
"""

from __future__ import annotations

import ipaddress
from typing import Any

from OpenSSL import SSL
from service_identity.exceptions import CertificateError, VerificationError
from service_identity.hazmat import DNS_ID, IPAddress_ID, ServiceID, verify_service_identity
from service_identity.pyopenssl import extract_patterns
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import CertificateOptions, platformTrust
from zope.interface import implementer


class ClientTls:
    """Makes TLS clients.  `validate` false is ``disable_tls_validation``: any certificate will do."""

    def __init__(self, validate: bool = True, trust_root: Any = None) -> None:
        """`trust_root` stands in for the authorities of the operating system."""
        self._validate = validate
        options = CertificateOptions(trustRoot=trust_root or platformTrust()) if validate else CertificateOptions()
        self._context = options.getContext()

    def creator(self, name: str) -> IOpenSSLClientConnectionCreator:
        """For one connection whose other end must be `name`: a DNS name, or an address without brackets.

        `ValueError` for a name that no certificate can be for.
        """
        return _Creator(self._context, name, self._validate)


@implementer(IOpenSSLClientConnectionCreator)
class _Creator:
    def __init__(self, context: SSL.Context, name: str, validate: bool) -> None:
        self._context = context
        is_address = _is_address(name)
        self._server_name = None if is_address else name.encode("ascii")
        self._wanted = (IPAddress_ID(name) if is_address else DNS_ID(name)) if validate else None

    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        connection = SSL.Connection(self._context, None)
        connection.set_app_data(tlsProtocol)
        if self._server_name is not None:
            connection.set_tlsext_host_name(self._server_name)
        if self._wanted is not None:
            connection.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, _checker(self._wanted))
        else:
            connection.set_verify(SSL.VERIFY_NONE, lambda *_: True)
        return connection


def _checker(wanted: ServiceID) -> Any:
    """A verification callback that holds the other end's own certificate against `wanted`."""

    def check(connection: SSL.Connection, certificate: Any, error: int, depth: int, trusted: int) -> bool:
        if not trusted or depth != 0:
            return bool(trusted)
        try:
            verify_service_identity(extract_patterns(certificate), [wanted], [])
        except (VerificationError, CertificateError, ValueError):
            return False
        return True

    return check


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
