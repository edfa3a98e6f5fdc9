"""What a file may not say, though every value is of the right type; and what this version cannot do.

`check` finds what Dendrite refuses too.  `NOT_YET` lists the keys whose feature does not exist here yet:
setting one to something other than its default is answered by one sentence in the log.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from dendrite_tw.config.problems import Problem
from dendrite_tw.config.tree import JetStream, LogHook, OldPrivateKey, Section, Tree, fields
from dendrite_tw.jetstream.addresses import is_loopback, parse_address, parse_listen
from dendrite_tw.matrix.identifiers import is_server_name
from dendrite_tw.matrix.room_versions import ROOM_VERSIONS

KNOWN_MSCS = frozenset({"msc2444", "msc2753", "msc2836", "msc2946"})

_STREAM_PREFIX = re.compile(r"[^\s.*>/\\]{0,100}")
_HOST_AND_PORT = re.compile(r"(\[[0-9A-Fa-f:.]*\]|[^\s:/\[\]]*):[0-9]{1,5}")

# Key, or the section above keys -> what its absence means for the operator.
NOT_YET: dict[str, str] = {
    "app_service_api.config_files": "Application services are not served yet: these files are not read.",
    "federation_api.enable_relays": "Relay servers are not available yet.",
    "global.report_stats.enabled": "Usage figures are not available yet: none are sent.",
    "global.sentry.enabled": "Sentry is not available yet: errors are only logged.",
    "mscs.mscs": "None of these proposals is available yet.",
    "sync_api.search.enabled": "Search is not available yet.",
    "tracing.enabled": "Tracing is not available yet: no traces are sent.",
}

# Component -> the key that holds its database.  The last two are only opened if used.
DATABASES = {
    "room_server": "room_server.database",
    "user_api": "user_api.account_database",
    "key_server": "key_server.database",
    "sync_api": "sync_api.database",
    "media_api": "media_api.database",
    "federation_api": "federation_api.database",
    "relay_api": "relay_api.database",
    "mscs": "mscs.database",
}

Findings = Iterator[Problem]
_REQUIRED = "This key is required, but empty or missing."


def value_at(tree: Section, path: str) -> Any:
    """The value of a dotted key such as ``global.cache.max_age``; `KeyError` if there is no such key."""
    value: Any = tree
    for name in path.split("."):
        field = next((field for field in fields(type(value)) if field.name == name), None)
        if field is None:
            raise KeyError(path)
        value = getattr(value, field.attribute)
    return value


def check(tree: Tree, allow_open_registration: bool) -> list[Problem]:
    """Everything in the tree that stops a start, and notes on what is doubtful; lines are not filled in."""
    rules: list[Callable[[Tree], Findings]] = [_identity, _old_keys, _well_known, _databases]
    rules += [_queue, _metrics, _registration, _federation, _rooms_and_media, _logging]
    problems = [problem for rule in rules for problem in rule(tree)]
    client = tree.client_api
    proven = client.enable_registration_captcha or client.registration_requires_token
    if not (client.registration_disabled or proven or allow_open_registration):
        problems.append(
            _error(
                "client_api.registration_disabled",
                "Anybody could register here without any check, which invites spam and gets servers banned.",
                "Set it to true, switch on enable_registration_captcha or registration_requires_token, or, if you are "
                "certain, start with -really-enable-open-registration.",
            )
        )
    return problems


def not_yet(tree: Tree) -> list[Problem]:
    """One sentence for each feature that is asked for and missing."""
    blank = Tree()
    return [
        Problem("unavailable", key, sentence)
        for key, sentence in NOT_YET.items()
        if value_at(tree, key) != value_at(blank, key)
    ]


def complete(tree: Tree) -> Tree:
    """The tree with what Dendrite fills in after reading: captcha addresses, the statistics endpoint; and IPv6."""
    client, general = tree.client_api, tree.global_
    if client.enable_registration_captcha:
        google = "https://www.google.com/recaptcha/api"
        client = msgspec.structs.replace(
            client,
            recaptcha_siteverify_api=client.recaptcha_siteverify_api or f"{google}/siteverify",
            recaptcha_api_js_url=client.recaptcha_api_js_url or f"{google}.js",
            recaptcha_form_field=client.recaptcha_form_field or "g-recaptcha-response",
            recaptcha_sitekey_class=client.recaptcha_sitekey_class or "g-recaptcha",
        )
    if general.report_stats.endpoint == "https://matrix.org/report-usage-stats/push":
        report = msgspec.structs.replace(general.report_stats, endpoint="https://panopticon.matrix.org/push")
        general = msgspec.structs.replace(general, report_stats=report)
    federation = tree.federation_api
    if federation.allow_networks == ("0.0.0.0/0",):
        # Dendrite's sample means everything by it, from before it spoke IPv6; what is denied is in the other list.
        federation = msgspec.structs.replace(federation, allow_networks=("0.0.0.0/0", "::/0"))
    return msgspec.structs.replace(tree, client_api=client, global_=general, federation_api=federation)


def _error(key: str, text: str, remedy: str = "") -> Problem:
    return Problem("error", key, text, remedy)


def _note(key: str, text: str, remedy: str = "") -> Problem:
    return Problem("note", key, text, remedy)


def _identity(tree: Tree) -> Findings:
    name = tree.global_.server_name
    if not name:
        yield _error("global.server_name", _REQUIRED, "Set it to the domain of your user IDs: example.com.")
    elif not is_server_name(name):
        yield _error(
            "global.server_name",
            f"{name[:80]!r} is not a server name.",
            "Write a domain, with a port if need be, without https:// or slashes.",
        )
    if not tree.global_.private_key:
        yield _error(
            "global.private_key",
            _REQUIRED,
            'Make a key with "generate-keys --private-key matrix_key.pem" and name that file here.',
        )


def _old_keys(tree: Tree) -> Findings:
    for index, old in enumerate(tree.global_.old_private_keys):
        yield from _old_key(f"global.old_private_keys[{index}]", old)


def _old_key(where: str, old: OldPrivateKey) -> Findings:
    if old.private_key:
        return
    if not old.public_key:
        yield _error(where, "Which key this was is not said.", "Set private_key, or public_key and key_id.")
    elif not old.key_id:
        yield _error(f"{where}.key_id", "This is needed beside public_key.", "Write it as ed25519:name.")
    elif not re.fullmatch(r"[A-Za-z0-9+/_-]{43}=?", old.public_key):
        yield _error(f"{where}.public_key", "This is not 32 bytes in base64.")


def _well_known(tree: Tree) -> Findings:
    general = tree.global_
    for name in ("well_known_client_name", "well_known_sliding_sync_proxy"):
        value: str = getattr(general, name)
        if value and not value.startswith(("http://", "https://")):
            yield _error(f"global.{name}", f"{value[:80]!r} is not a base URL.", "Begin it with https:// or http://.")
    delegated = general.well_known_server_name
    if delegated and not is_server_name(delegated):
        yield _error(
            "global.well_known_server_name",
            f"{delegated[:80]!r} is not a server name.",
            "Write host or host:port, without https://.",
        )
    if general.well_known_sliding_sync_proxy and not general.well_known_client_name:
        text = "This has no effect while well_known_client_name is empty."
        yield _note("global.well_known_sliding_sync_proxy", text)


def _databases(tree: Tree) -> Findings:
    if tree.global_.database.connection_string:
        return
    used = list(DATABASES.values())[:6]
    used += ["mscs.database"] * bool(tree.mscs.mscs)
    used += ["relay_api.database"] * tree.federation_api.enable_relays
    missing = [key for key in used if not value_at(tree, key).connection_string]
    if missing == used:
        yield _error(
            "global.database.connection_string",
            "No database is named, neither here nor in the sections of the components.",
            "Set it to a PostgreSQL URI, or give each component a `database` (file:name.db for SQLite).",
        )
        return
    for key in missing:
        yield _error(
            f"{key}.connection_string",
            _REQUIRED,
            "Set it (file:name.db for SQLite), or global.database.connection_string for all components.",
        )


def _queue(tree: Tree) -> Findings:
    queue = tree.global_.jetstream
    for index, address in enumerate(queue.addresses):
        try:
            parse_address(address)
        except ValueError:
            yield _error(
                f"global.jetstream.addresses[{index}]",
                "This is not the address of a NATS server.",
                "Write host:4222, nats://user:password@host:4222 or tls://host:4222.",
            )
    if not _STREAM_PREFIX.fullmatch(queue.topic_prefix):
        yield _error(
            "global.jetstream.topic_prefix",
            f"No stream can have a name that begins with {queue.topic_prefix[:80]!r}.",
            "Use letters, digits, _ and -.",
        )
    if queue.listen:
        yield from _listener(queue)


def _listener(queue: JetStream) -> Findings:
    """The port of the built-in queue."""
    key = "global.jetstream.listen"
    if queue.addresses:
        yield _note(key, "This has no effect with jetstream.addresses: only the built-in queue listens.")
    try:
        host, _ = parse_listen(queue.listen)
    except ValueError:
        host = ""
    if not host or not _HOST_AND_PORT.fullmatch(queue.listen):
        yield _error(key, f"{queue.listen[:80]!r} is not an address.", "Write host:port.")
    elif not queue.listen_token and not is_loopback(host):
        yield _error(
            key,
            f"Whoever reaches {host[:80]} could read and change what is in the queue.",
            "Set global.jetstream.listen_token, or listen on 127.0.0.1.",
        )


def _metrics(tree: Tree) -> Findings:
    metrics = tree.global_.metrics
    if metrics.enabled and not (metrics.basic_auth.username and metrics.basic_auth.password):
        yield _note("global.metrics.basic_auth", "Username or password is empty: anybody can read /metrics.")
    if tree.global_.report_stats.enabled and not tree.global_.report_stats.endpoint:
        yield _error("global.report_stats.endpoint", _REQUIRED)


def _registration(tree: Tree) -> Findings:
    client = tree.client_api
    if client.enable_registration_captcha:
        for name in ("recaptcha_public_key", "recaptcha_private_key"):
            if not getattr(client, name):
                yield _error(f"client_api.{name}", "The captcha is switched on, but this is empty.")


def _federation(tree: Tree) -> Findings:
    for name in ("deny_networks", "allow_networks"):
        networks: tuple[str, ...] = getattr(tree.federation_api, name)
        for index, network in enumerate(networks):
            try:
                ipaddress.ip_network(network, strict=False)
            except ValueError:
                yield _error(
                    f"federation_api.{name}[{index}]",
                    f"{network[:60]!r} is not a network.",
                    "Write it as 10.0.0.0/8 or fc00::/7.",
                )


def _rooms_and_media(tree: Tree) -> Findings:
    version = tree.room_server.default_room_version
    if version not in ROOM_VERSIONS:
        yield _error(
            "room_server.default_room_version",
            f"{version[:60]!r} is not a room version that is known here.",
            "Use one of " + ", ".join(ROOM_VERSIONS) + ".",
        )
    if not tree.media_api.base_path:
        yield _error("media_api.base_path", _REQUIRED, "Name a directory for uploaded files: ./media_store.")
    search = tree.sync_api.search
    if search.enabled:
        for name in ("index_path", "language"):
            if not getattr(search, name):
                yield _error(f"sync_api.search.{name}", "Search is switched on, but this is empty.")
    for index, msc in enumerate(tree.mscs.mscs):
        if msc not in KNOWN_MSCS:
            yield _note(f"mscs.mscs[{index}]", f"{msc[:60]!r} is not a proposal that is known here.")


def _logging(tree: Tree) -> Findings:
    for index, hook in enumerate(tree.logging):
        yield from _log_hook(f"logging[{index}].params", hook)


def _log_hook(where: str, hook: LogHook) -> Findings:
    wanted = {"file": ("path",), "syslog": ("address", "protocol")}.get(hook.type, ())
    for name in wanted:
        value = hook.params.get(name)
        if not isinstance(value, str) or not value:
            yield _error(f"{where}.{name}", f"A log of type {hook.type} needs this.", "Set it to text.")
    protocol = hook.params.get("protocol")
    if hook.type == "syslog" and protocol and protocol not in ("udp", "tcp"):
        yield _error(f"{where}.protocol", "This must be udp or tcp.")
