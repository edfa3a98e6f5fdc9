"""``create-account``: a new account on a running server, by means of the registration shared secret.

The server gives a nonce, and takes an account if the request carries an HMAC-SHA1 of nonce, name, password
and kind, keyed with ``client_api.registration_shared_secret`` (Synapse's shared-secret registration).
"""

from __future__ import annotations

import getpass
import hashlib
import hmac
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dendrite_tw.commands.goflags import Flag, FlagSet
from dendrite_tw.config import ConfigError, load
from dendrite_tw.matrix.identifiers import is_valid_localpart_for_registration

_INTRODUCTION = """\
Creates an account on the running homeserver and prints an access token for it.

    create-account --config dendrite.yaml -username alice                        # asks for the password
    create-account --config dendrite.yaml -username alice -passwordfile my.pass
    create-account --config dendrite.yaml -username alice -passwordstdin < my.pass
    create-account --config dendrite.yaml -username alice -password foobarbaz    # others may see it"""

_MAX_ANSWER = 1 << 20


class StopError(Exception):
    """Why there is no account, and what to do about it: a sentence for the user."""


class _Flags:
    def __init__(self) -> None:
        self.set = FlagSet("create-account", _INTRODUCTION)
        self.config = self.set.string("config", "dendrite.yaml", "The configuration file of the server")
        self.username = self.set.string("username", "", "Localpart of the account: alice for @alice:example.com")
        self.password = self.set.string("password", "", "The password; better leave it out and be asked")
        self.password_file = self.set.string("passwordfile", "", "File that holds the password")
        self.password_stdin = self.set.boolean("passwordstdin", "Read the password from standard input")
        self.admin = self.set.boolean("admin", "Make the account an administrator")
        self.reset_password = self.set.boolean("reset-password", "Gone: use the admin API")
        self.url = self.set.string("url", "http://localhost:8008", "Where the server answers")
        self.timeout: Flag[float] = self.set.duration("timeout", 30.0, "How long to wait for the server")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit code."""
    flags = _Flags()
    flags.set.parse_only(sys.argv[1:] if arguments is None else arguments)
    if not flags.username.value and not flags.reset_password.value:
        flags.set.print_usage()
        return 1
    try:
        token = _create(flags)
    except (StopError, ConfigError) as error:
        print(f"create-account: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ncreate-account: given up; no account was made.", file=sys.stderr)
        return 1
    print(f"Created account: {flags.username.value} (AccessToken: {token})")
    return 0


def _create(flags: _Flags) -> str:
    if flags.reset_password.value:
        raise StopError(
            "passwords are reset with POST /_dendrite/admin/resetPassword/{localpart}, "
            "by an administrator's access token."
        )
    config = load(flags.config.value, allow_open_registration=True)
    secret = config.client_api.registration_shared_secret
    if not secret:
        raise StopError(
            f"{flags.config.value} has no client_api.registration_shared_secret. "
            "Set it to a long random word, restart the server, and try again."
        )
    check_username(flags.username.value, config.global_.server_name)
    password = _password(flags)
    check_password(password)
    if flags.timeout.value <= 0:
        raise StopError("-timeout must be longer than nothing: 30s.")
    return register(flags.url.value, secret, flags.username.value, password, flags.admin.value, flags.timeout.value)


def check_username(localpart: str, server_name: str) -> None:
    """`StopError` unless the localpart can be registered (Appendices, "User Identifiers")."""
    if not is_valid_localpart_for_registration(localpart):
        raise StopError(
            f"{localpart!r} cannot be a username: it may hold a-z, 0-9 and _-+=./ only, without @ and server name."
        )
    if localpart.startswith("_"):
        raise StopError("a username cannot begin with _.")
    if len(f"@{localpart}:{server_name}") > 255:
        raise StopError("the username is too long: the whole user ID has room for 255 characters.")


def check_password(password: str) -> None:
    """`StopError` unless it is of a length that the server takes."""
    if len(password.encode()) < 8:
        raise StopError("the password is too short: it needs 8 characters.")
    if len(password.encode()) > 512:
        raise StopError("the password is too long: it has room for 512 characters.")


def _password(flags: _Flags) -> str:
    try:
        if flags.password_file.value:
            return Path(flags.password_file.value).read_text(encoding="utf-8").strip()
        if flags.password_stdin.value:
            return sys.stdin.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StopError(f"the password cannot be read: {error}.") from None
    if flags.password.value:
        return flags.password.value
    try:
        first = getpass.getpass("Enter Password: ").strip()
        second = getpass.getpass("Confirm Password: ").strip()
    except EOFError:
        raise StopError("no password was entered; there is -passwordstdin for scripts.") from None
    if first != second:
        raise StopError("the two passwords are not the same.")
    return first


def register(url: str, secret: str, username: str, password: str, admin: bool, timeout: float) -> str:
    """Register over HTTP and return the access token; `StopError` with the reason if that fails."""
    if not url.startswith(("http://", "https://")):
        raise StopError(f"-url must begin with http:// or https://, not {url[:80]!r}.")
    endpoint = f"{url.strip('/')}/_synapse/admin/v1/register"
    nonce = _ask(endpoint, None, timeout).get("nonce")
    if not isinstance(nonce, str):
        raise StopError(f"what answers at {url} is not a homeserver with shared-secret registration.")
    kind = "admin" if admin else "notadmin"
    message = "\0".join((nonce, username, password, kind)).encode()
    mac = hmac.new(secret.encode(), message, hashlib.sha1).hexdigest()
    body = {"nonce": nonce, "username": username, "password": password, "admin": admin, "mac": mac}
    token = _ask(endpoint, body, timeout).get("access_token")
    if not isinstance(token, str):
        raise StopError("the server made the account but gave no access token.")
    return token


def _ask(endpoint: str, body: dict[str, Any] | None, timeout: float) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(endpoint, data, {"Content-Type": "application/json"})  # noqa: S310
    try:
        with _opener(endpoint).open(request, timeout=timeout) as response:
            answer = response.read(_MAX_ANSWER)
    except urllib.error.HTTPError as error:
        raise StopError(_refusal(error, endpoint)) from None
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise StopError(f"no answer from {endpoint}: {reason}. Is the server running, and is -url right?") from None
    try:
        parsed = json.loads(answer)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise StopError(f"what answers at {endpoint} is not a homeserver.")
    return parsed


def _opener(endpoint: str) -> urllib.request.OpenerDirector:
    """Proxies of the environment are for other machines, not for this one."""
    host = urlsplit(endpoint).hostname or ""
    local = host in ("localhost", "::1") or host.startswith("127.")
    return urllib.request.build_opener(urllib.request.ProxyHandler({} if local else None))


def _refusal(error: urllib.error.HTTPError, endpoint: str) -> str:
    try:
        said = json.loads(error.read(_MAX_ANSWER))
        code, text = str(said.get("errcode", "")), str(said.get("error", ""))
    except (ValueError, AttributeError, OSError):
        code, text = "", ""
    if code == "M_USER_IN_USE":
        return "there is an account of this name already."
    if code == "M_FORBIDDEN" or error.code == 403:
        return (
            "the server does not take the shared secret: it runs with another configuration file, "
            f"or was not restarted since the secret was set. ({text})"
        )
    if error.code == 404:
        return (
            f"{endpoint} does not exist: the server runs without client_api.registration_shared_secret, "
            "or -url is not that of a homeserver."
        )
    return f"the server answered {error.code}: {code} {text}".strip()
