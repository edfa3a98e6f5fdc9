"""The typed tree of ``dendrite.yaml``, version 2.

One class per section, one attribute per key: its type, the value it has when the file does not mention
it, and a sentence for the operator.  The samples in ``conf/`` and ``docs/configuration.md`` are written from
these sentences, and the reader checks files against these types, so there is no second list of keys.

An attribute is named as its key, but for a trailing underscore where Python has the word for itself
(``global_``).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import unquote

import msgspec

NOTHING: Any = object()


class Key(msgspec.Struct, frozen=True):
    """What is known of a key beside its type and default.

    ``sample`` is the value in the sample files where that differs from the default; a key with
    ``commented`` is only shown there behind a ``#``.  ``example`` is what such a line or an empty
    list shows.  ``secret`` values never appear in messages.  ``polylith`` keys matter only when the
    components run as processes of their own.
    """

    doc: str
    sample: Any = NOTHING
    example: Any = NOTHING
    commented: bool = False
    secret: bool = False
    polylith: bool = False
    at_least: int | None = None
    at_most: int | None = None
    name: str = ""


class Unit(msgspec.Struct, frozen=True):
    """How the text of a scalar becomes its value: a Go duration, a size, or a file path."""

    name: Literal["duration", "size", "path"]


Seconds = Annotated[float, Unit("duration")]
Size = Annotated[int, Unit("size")]
FilePath = Annotated[str, Unit("path")]


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all sections."""


class Database(Section, frozen=True, kw_only=True):
    """A database and the pool of connections to it."""

    connection_string: Annotated[
        str,
        Key(
            "file:name.db for SQLite (file:///var/lib/… for an absolute path), otherwise a PostgreSQL URI or "
            "key=value string.",
            secret=True,
        ),
    ] = ""
    max_open_conns: Annotated[int, Key("Most connections at a time to PostgreSQL; 0 or less = no limit.")] = 90
    max_idle_conns: Annotated[int, Key("Idle connections that are kept; 0 or less = none.")] = 2
    conn_max_lifetime: Annotated[int, Key("Seconds after which a connection is replaced; 0 or less = never.")] = -1

    @property
    def is_sqlite(self) -> bool:
        """Whether this is an SQLite file; anything that does not begin with ``file:`` is PostgreSQL."""
        return self.connection_string.startswith("file:")

    @property
    def sqlite_path(self) -> str:
        """The file behind ``file:name.db``, ``file:name.db?mode=rw`` or ``file:///var/lib/name.db``.

        Relative names are relative to the current working directory; parameters are dropped.
        """
        name = self.connection_string.removeprefix("file:").partition("?")[0].partition("#")[0]
        if name.startswith("//"):
            name = name[2 + len(name[2:].partition("/")[0]) :]
        return unquote(name)


class ComponentDatabase(Database, frozen=True, kw_only=True):
    """The database of one component, where `global.database` does not serve them all."""

    max_open_conns: Annotated[int, Key("Most connections at a time to PostgreSQL; 0 or less = no limit.")] = 10


def _database(name: str) -> Key:
    example = ComponentDatabase(connection_string=f"file:dendrite_{name}.db")
    return Key("Database of this component, if global.database is empty.", example=example)


class InternalApi(Section, frozen=True, kw_only=True):
    """Where a polylith component shows how it is; components call each other elsewhere."""

    listen: Annotated[
        str,
        Key(
            "Another address on which this process serves HTTP, its health and figures among it: http://host:port. "
            "May be left out."
        ),
    ] = ""
    connect: Annotated[str, Key("Accepted, not needed: components find each other through NATS.")] = ""


class ExternalApi(Section, frozen=True, kw_only=True):
    """Where a polylith component listens for clients and other servers."""

    listen: Annotated[str, Key("Address on which this component serves HTTP: http://host:port.")] = ""


class OldPrivateKey(Section, frozen=True, kw_only=True):
    """A signing key of former days, which others may still need to check old events."""

    private_key: Annotated[FilePath, Key("Path of the old key file.", example="old_matrix_key.pem")] = ""
    public_key: Annotated[str, Key("Its public half in base64, where the file is lost.", commented=True)] = ""
    key_id: Annotated[str, Key("Its key ID, needed with public_key.", commented=True)] = ""
    expired_at: Annotated[int, Key("When it ceased to be used: milliseconds since 1970.", example=1601024554498)] = 0


class Cache(Section, frozen=True, kw_only=True):
    """Memory for what is read often."""

    max_size_estimated: Annotated[
        Size, Key("Budget for all caches together, in bytes or with kb, mb, gb or tb.", at_least=0)
    ] = 1024**3
    max_age: Annotated[Seconds, Key("How long an entry may stay in a cache.")] = 3600.0


class Presence(Section, frozen=True, kw_only=True):
    """Whether presence (online, away, offline) travels between servers."""

    enable_inbound: Annotated[bool, Key("Accept presence from other servers.")] = False
    enable_outbound: Annotated[bool, Key("Show the presence of our users, to each other and to other servers.")] = False


class ReportStats(Section, frozen=True, kw_only=True):
    """Anonymous usage figures, sent only if you switch it on."""

    enabled: Annotated[bool, Key("Send usage figures.")] = False
    endpoint: Annotated[str, Key("Where they are sent.")] = "https://panopticon.matrix.org/push"


class ServerNotices(Section, frozen=True, kw_only=True):
    """Messages from the administrators of this server to its users."""

    enabled: Annotated[bool, Key("Allow administrators to send server notices.")] = False
    local_part: Annotated[str, Key("Localpart of the user who sends them.", sample="_server")] = ""
    display_name: Annotated[str, Key("Display name of that user.", sample="Server Alerts")] = ""
    avatar_url: Annotated[str, Key("Avatar of that user, an mxc:// URI.")] = ""
    room_name: Annotated[str, Key("Name of the room in which they arrive.", sample="Server Alerts")] = ""


class JetStream(Section, frozen=True, kw_only=True):
    """The queue between the components: built in, or a NATS server with JetStream."""

    addresses: Annotated[
        tuple[str, ...],
        Key("Addresses of NATS servers. None = the queue that is built in.", example=("localhost:4222",)),
    ] = ()
    disable_tls_validation: Annotated[bool, Key("Do not check the certificate of NATS. Unsafe.")] = False
    storage_path: Annotated[
        FilePath,
        Key("Directory of the built-in queue. Keep it over restarts; losing it loses no message.", sample="./"),
    ] = "./"
    topic_prefix: Annotated[str, Key("Prefix of stream names, for several homeservers on one NATS deployment.")] = (
        "Dendrite"
    )
    js_domain: Annotated[str, Key("JetStream domain, if your NATS has domains.", commented=True)] = ""
    in_memory: Annotated[bool, Key("Keep the queue in memory only, for tests.", commented=True)] = False
    credentials_path: Annotated[FilePath, Key("File with credentials for NATS (.creds).", commented=True)] = ""
    listen: Annotated[
        str,
        Key(
            "Ours: address on which the built-in queue also serves NATS clients such as the nats tool, host:port. "
            "Without a host it is 127.0.0.1. Empty = it does not.",
            commented=True,
            example="127.0.0.1:4222",
        ),
    ] = ""
    listen_token: Annotated[
        str,
        Key(
            "Ours: the token that clients must show there (nats://token@host). Needed on an address that other "
            "machines reach, for these clients may read and change all that is in the queue.",
            commented=True,
        ),
    ] = ""


class BasicAuth(Section, frozen=True, kw_only=True):
    """User name and password for the metrics; if either is empty, none is asked."""

    username: Annotated[str, Key("User name for /metrics.", sample="metrics")] = ""
    password: Annotated[str, Key("Password for /metrics.", sample="metrics", secret=True)] = ""


class Metrics(Section, frozen=True, kw_only=True):
    """Figures for Prometheus at /metrics."""

    enabled: Annotated[bool, Key("Serve /metrics.")] = False
    basic_auth: Annotated[BasicAuth, Key("Who may read them; if either is empty, everybody.")] = BasicAuth()


class Sentry(Section, frozen=True, kw_only=True):
    """Reports of unexpected errors to a Sentry service."""

    enabled: Annotated[bool, Key("Send reports.", commented=True)] = False
    dsn: Annotated[str, Key("Address of the Sentry project.", secret=True, commented=True)] = ""
    environment: Annotated[str, Key("Name of this deployment in the reports.", commented=True)] = ""


class DnsCache(Section, frozen=True, kw_only=True):
    """A cache of name lookups, where no resolver nearby has one."""

    enabled: Annotated[bool, Key("Keep answers of the resolver.")] = False
    cache_size: Annotated[int, Key("Most names that are kept.", at_least=0)] = 256
    cache_lifetime: Annotated[Seconds, Key("How long an answer is kept.", at_least=0)] = 300.0


class Global(Section, frozen=True, kw_only=True):
    """What concerns all components."""

    server_name: Annotated[
        str, Key("Domain of this homeserver, the part after the colon of its user IDs.", sample="localhost")
    ] = ""
    private_key: Annotated[
        FilePath,
        Key(
            "File with the key that signs events and requests. It is not a TLS key. "
            'Make one with "generate-keys --private-key matrix_key.pem".',
            sample="matrix_key.pem",
        ),
    ] = ""
    old_private_keys: Annotated[
        tuple[OldPrivateKey, ...],
        Key(
            "Signing keys used before, still published so that old events can be checked.",
            example=(OldPrivateKey(private_key="old_matrix_key.pem", expired_at=1601024554498),),
        ),
    ] = ()
    key_validity_period: Annotated[
        Seconds,
        Key("How long other servers may keep our signing key before they ask again.", at_least=0),
    ] = 604800.0
    database: Annotated[
        Database,
        Key(
            "One PostgreSQL database for all components. Without it every component needs its own "
            "`database`, as it does with SQLite.",
            sample=Database(
                connection_string="postgresql://username:password@hostname/dendrite?sslmode=disable",
                max_idle_conns=5,
            ),
            example=Database(connection_string="postgresql://username:password@hostname/dendrite?sslmode=disable"),
        ),
    ] = Database()
    cache: Annotated[Cache, Key("Memory for what is read often.")] = Cache()
    well_known_server_name: Annotated[
        str,
        Key("Host, with port if need be, to which other servers are sent (/.well-known/matrix/server)."),
    ] = ""
    well_known_client_name: Annotated[
        str,
        Key("Base URL to which clients are sent (/.well-known/matrix/client): https://matrix.example.com"),
    ] = ""
    well_known_sliding_sync_proxy: Annotated[
        str, Key("URL of a sliding sync proxy for old clients. Needs well_known_client_name.")
    ] = ""
    trusted_third_party_id_servers: Annotated[
        tuple[str, ...],
        Key(
            "Identity servers we believe about e-mail addresses and telephone numbers.",
            sample=("matrix.org", "vector.im"),
        ),
    ] = ()
    disable_federation: Annotated[bool, Key("Talk to no other homeserver, in neither direction.")] = False
    presence: Annotated[Presence, Key("Presence between servers.")] = Presence()
    report_stats: Annotated[ReportStats, Key("Usage figures, with server name, for the Matrix.org Foundation.")] = (
        ReportStats()
    )
    server_notices: Annotated[ServerNotices, Key("Messages from the administrators to users.")] = ServerNotices()
    jetstream: Annotated[JetStream, Key("The queue between the components.")] = JetStream()
    metrics: Annotated[Metrics, Key("Figures for Prometheus.")] = Metrics()
    sentry: Annotated[Sentry, Key("Reports of unexpected errors.", commented=True)] = Sentry()
    dns_cache: Annotated[DnsCache, Key("Cache of name lookups, if there is no caching resolver nearby.")] = DnsCache()


class AppServiceApi(Section, frozen=True, kw_only=True):
    """Bridges and bots that act for many users."""

    internal_api: Annotated[InternalApi, Key("For your own machines only.", polylith=True)] = InternalApi()
    disable_tls_validation: Annotated[bool, Key("Do not check the certificates of application services. Unsafe.")] = (
        False
    )
    legacy_auth: Annotated[
        bool,
        Key("Send the token in the query too, for old application services; it then appears in their logs."),
    ] = False
    legacy_paths: Annotated[bool, Key("Use the unprefixed paths of old application services.")] = False
    config_files: Annotated[
        tuple[FilePath, ...],
        Key("Registration files of application services.", example=("/path/to/registration.yaml",)),
    ] = ()


class Turn(Section, frozen=True, kw_only=True):
    """TURN servers for calls."""

    turn_user_lifetime: Annotated[Seconds, Key("How long credentials for the TURN server are valid.", sample=300.0)] = (
        0.0
    )
    turn_uris: Annotated[
        tuple[str, ...],
        Key("URIs of TURN servers.", example=("turn:turn.example.com?transport=udp",)),
    ] = ()
    turn_shared_secret: Annotated[
        str, Key("Secret shared with the TURN server, from which credentials are made.", secret=True)
    ] = ""
    turn_username: Annotated[
        str, Key("Fixed user name, if the TURN server has no shared secret; clients see it.", commented=True)
    ] = ""
    turn_password: Annotated[str, Key("Password for it; clients see it.", commented=True, secret=True)] = ""


class RateLimiting(Section, frozen=True, kw_only=True):
    """How often a client may ask."""

    enabled: Annotated[bool, Key("Limit how often a client may ask.")] = True
    threshold: Annotated[int, Key("Requests in a burst before a client has to wait.", sample=20, at_least=0)] = 5
    cooloff_ms: Annotated[int, Key("Milliseconds after which one request of the burst is forgotten.", at_least=0)] = 500
    exempt_user_ids: Annotated[
        tuple[str, ...],
        Key(
            "Users without a limit. Administrators and application services have none anyway.",
            example=("@bot:example.com",),
        ),
    ] = ()


class ClientApi(Section, frozen=True, kw_only=True):
    """What clients ask: accounts, rooms, messages."""

    internal_api: Annotated[InternalApi, Key("For your own machines only.", polylith=True)] = InternalApi()
    external_api: Annotated[ExternalApi, Key("Where this component serves HTTP.", polylith=True)] = ExternalApi()
    registration_disabled: Annotated[bool, Key("Nobody can register, except with the shared secret below.")] = True
    registration_requires_token: Annotated[
        bool,
        Key("Registration asks for a token that an administrator made.", commented=True),
    ] = False
    guests_disabled: Annotated[
        bool, Key("No guest accounts. There are none either if registration is disabled.", sample=True)
    ] = False
    registration_shared_secret: Annotated[
        str,
        Key(
            "Whoever knows this secret can make accounts, with create-account; empty = nobody can.",
            secret=True,
        ),
    ] = ""
    enable_registration_captcha: Annotated[bool, Key("Registration asks for a captcha.")] = False
    recaptcha_public_key: Annotated[str, Key("Site key of the captcha.")] = ""
    recaptcha_private_key: Annotated[str, Key("Secret key of the captcha.", secret=True)] = ""
    recaptcha_bypass_secret: Annotated[
        str, Key("A response to the captcha that always passes, for scripts.", secret=True)
    ] = ""
    recaptcha_siteverify_api: Annotated[
        str,
        Key(
            "Where responses are checked; empty = Google.",
            commented=True,
            example="https://hcaptcha.com/siteverify",
        ),
    ] = ""
    recaptcha_api_js_url: Annotated[
        str,
        Key(
            "Script of the captcha; empty = Google.",
            commented=True,
            example="https://js.hcaptcha.com/1/api.js",
        ),
    ] = ""
    recaptcha_form_field: Annotated[
        str,
        Key("Form field of the response; empty = Google's.", commented=True, example="h-captcha-response"),
    ] = ""
    recaptcha_sitekey_class: Annotated[
        str, Key("HTML class of the captcha; empty = Google's.", commented=True, example="h-captcha")
    ] = ""
    turn: Annotated[Turn, Key("TURN servers for calls.")] = Turn()
    rate_limiting: Annotated[RateLimiting, Key("How often a client may ask.")] = RateLimiting()


class PerspectiveKey(Section, frozen=True, kw_only=True):
    """A key by which the answers of a key server are checked."""

    key_id: Annotated[str, Key("Key ID, such as ed25519:auto.")] = ""
    public_key: Annotated[str, Key("Public key in unpadded base64.")] = ""


class KeyPerspective(Section, frozen=True, kw_only=True):
    """A server that is asked for keys of servers which do not answer."""

    server_name: Annotated[str, Key("Name of the key server.")] = ""
    keys: Annotated[tuple[PerspectiveKey, ...], Key("The keys that sign its answers.")] = ()


MATRIX_ORG_KEYS = KeyPerspective(
    server_name="matrix.org",
    keys=(
        PerspectiveKey(key_id="ed25519:auto", public_key="Noi6WqcDj0QmPxCNQqgezwTlBKrfqehY1u2FyWP9uYw"),
        PerspectiveKey(key_id="ed25519:a_RXGa", public_key="l8Hft5qXKn1vfHrg3p4+W8gELQVo8N13JkluMfmn2sQ"),
    ),
)


class FederationApi(Section, frozen=True, kw_only=True):
    """Talk with other homeservers."""

    internal_api: Annotated[InternalApi, Key("For your own machines only.", polylith=True)] = InternalApi()
    external_api: Annotated[ExternalApi, Key("Where this component serves HTTP.", polylith=True)] = ExternalApi()
    database: Annotated[ComponentDatabase, _database("federationapi")] = ComponentDatabase()
    send_max_retries: Annotated[
        int,
        Key(
            "Failed attempts, 2**n seconds apart, before a server counts as gone until it calls us.",
            at_least=0,
            at_most=62,
        ),
    ] = 16
    enable_relays: Annotated[bool, Key("Send through relay servers to those that are offline.", commented=True)] = False
    p2p_retries_until_assumed_offline: Annotated[
        int, Key("Failed attempts before a relay server is used.", commented=True, at_least=0)
    ] = 1
    disable_tls_validation: Annotated[
        bool, Key("Do not check the certificates of other homeservers. Unsafe; for tests.")
    ] = False
    disable_http_keepalives: Annotated[bool, Key("Open a connection for every request instead of keeping it.")] = False
    key_perspectives: Annotated[
        tuple[KeyPerspective, ...],
        Key("Servers asked for the keys of homeservers that do not answer.", sample=(MATRIX_ORG_KEYS,)),
    ] = ()
    prefer_direct_fetch: Annotated[bool, Key("Ask a homeserver itself for its key before the servers above.")] = False
    deny_networks: Annotated[
        tuple[str, ...],
        Key("Networks to which no request on behalf of others is made; they win over allow_networks."),
    ] = (
        "127.0.0.1/8",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
        "169.254.0.0/16",
        "::1/128",
        "fe80::/64",
        "fc00::/7",
    )
    allow_networks: Annotated[
        tuple[str, ...],
        Key("Networks to which such requests may go. If both lists are empty, anywhere."),
    ] = ("0.0.0.0/0", "::/0")


class KeyServer(Section, frozen=True, kw_only=True):
    """End-to-end encryption keys."""

    internal_api: Annotated[InternalApi, Key("For your own machines only.", polylith=True)] = InternalApi()
    database: Annotated[ComponentDatabase, _database("keyserver")] = ComponentDatabase()


class ThumbnailSize(Section, frozen=True, kw_only=True):
    """A size in which every image is made ready."""

    width: Annotated[int, Key("Width in pixels.", at_least=0)] = 0
    height: Annotated[int, Key("Height in pixels.", at_least=0)] = 0
    method: Annotated[Literal["scale", "crop"], Key("scale = fit into the size, crop = fill it and cut the rest.")] = (
        "scale"
    )


class MediaApi(Section, frozen=True, kw_only=True):
    """Files and images."""

    internal_api: Annotated[InternalApi, Key("For your own machines only.", polylith=True)] = InternalApi()
    external_api: Annotated[ExternalApi, Key("Where this component serves HTTP.", polylith=True)] = ExternalApi()
    database: Annotated[ComponentDatabase, _database("mediaapi")] = ComponentDatabase()
    base_path: Annotated[FilePath, Key("Directory for uploaded files.", sample="./media_store")] = ""
    max_file_size_bytes: Annotated[
        int,
        Key(
            "Largest upload in bytes, 0 = no limit. A reverse proxy must allow as much.",
            at_least=0,
        ),
    ] = 10485760
    dynamic_thumbnails: Annotated[bool, Key("Make thumbnails of other sizes than those below when asked for.")] = False
    max_thumbnail_generators: Annotated[int, Key("Thumbnails made at the same time.", at_least=0)] = 10
    remote_media_lifetime: Annotated[
        Seconds,
        Key(
            "Media of other servers for which nobody asked so long is deleted; should anybody ask again, it is fetched "
            "again. 0 = never.",
            commented=True,
        ),
    ] = 8760 * 3600.0
    thumbnail_sizes: Annotated[
        tuple[ThumbnailSize, ...],
        Key(
            "Sizes made ready for every image.",
            sample=(
                ThumbnailSize(width=32, height=32, method="crop"),
                ThumbnailSize(width=96, height=96, method="crop"),
                ThumbnailSize(width=640, height=480, method="scale"),
            ),
        ),
    ] = ()


class RoomServer(Section, frozen=True, kw_only=True):
    """Rooms: their events and their state."""

    internal_api: Annotated[InternalApi, Key("For your own machines only.", polylith=True)] = InternalApi()
    database: Annotated[ComponentDatabase, _database("roomserver")] = ComponentDatabase()
    default_room_version: Annotated[str, Key("Version of rooms that are created without asking for one.")] = "12"


class Search(Section, frozen=True, kw_only=True):
    """Search in messages."""

    enabled: Annotated[bool, Key("Let users search in messages.")] = False
    index_path: Annotated[FilePath, Key("Directory of the search index.")] = "./searchindex"
    language: Annotated[str, Key("Language most used here, for the forms of words: en, de, fr …")] = "en"
    in_memory: Annotated[bool, Key("Keep the index in memory, for tests.", commented=True)] = False


class SyncApi(Section, frozen=True, kw_only=True):
    """What clients are told."""

    internal_api: Annotated[InternalApi, Key("For your own machines only.", polylith=True)] = InternalApi()
    external_api: Annotated[ExternalApi, Key("Where this component serves HTTP.", polylith=True)] = ExternalApi()
    database: Annotated[ComponentDatabase, _database("syncapi")] = ComponentDatabase()
    real_ip_header: Annotated[
        str,
        Key(
            "Header in which your reverse proxy gives the client's address. Set it only behind such a proxy.",
            commented=True,
            example="X-Forwarded-For",
        ),
    ] = ""
    search: Annotated[Search, Key("Search in messages.")] = Search()


class UserApi(Section, frozen=True, kw_only=True):
    """Accounts and devices."""

    internal_api: Annotated[InternalApi, Key("For your own machines only.", polylith=True)] = InternalApi()
    account_database: Annotated[ComponentDatabase, _database("userapi")] = ComponentDatabase()
    bcrypt_cost: Annotated[int, Key("Work to check a password; one more doubles it.", at_least=4, at_most=31)] = 10
    openid_token_lifetime_ms: Annotated[int, Key("How long an OpenID token is valid, in milliseconds.", at_least=0)] = (
        3600000
    )
    push_gateway_disable_tls_validation: Annotated[
        bool, Key("Do not check the certificates of push gateways. Unsafe.", commented=True)
    ] = False
    auto_join_rooms: Annotated[
        tuple[str, ...],
        Key(
            "Aliases of rooms that every new user joins; a missing one is created as a public room.",
            example=("#welcome:example.com",),
        ),
    ] = ()
    worker_count: Annotated[
        int,
        Key("Device lists of other servers that are fetched at the same time.", commented=True, at_least=0),
    ] = 8


class RelayApi(Section, frozen=True, kw_only=True):
    """Store and forward for servers that are offline."""

    internal_api: Annotated[InternalApi, Key("For your own machines only.", polylith=True)] = InternalApi()
    external_api: Annotated[ExternalApi, Key("Where this component serves HTTP.", polylith=True)] = ExternalApi()
    database: Annotated[ComponentDatabase, _database("relayapi")] = ComponentDatabase()


class Mscs(Section, frozen=True, kw_only=True):
    """Proposals that are not in the specification."""

    mscs: Annotated[
        tuple[str, ...],
        Key("Proposals to switch on: msc2444, msc2753, msc2836.", example=("msc2836",)),
    ] = ()
    database: Annotated[ComponentDatabase, _database("mscs")] = ComponentDatabase()


class Jaeger(Section, frozen=True, kw_only=True):
    """Settings of a Jaeger client."""

    service_name: Annotated[str, Key("Name of this service.", name="serviceName")] = ""
    disabled: Annotated[bool, Key("Send nothing after all.")] = False
    rpc_metrics: Annotated[bool, Key("Count calls too.")] = False
    tags: Annotated[tuple[Any, ...], Key("Tags on everything that is sent.")] = ()
    sampler: Annotated[Any, Key("Which traces are sent.")] = None
    reporter: Annotated[Any, Key("Where they are sent.")] = None
    headers: Annotated[Any, Key("Names of headers.")] = None
    baggage_restrictions: Annotated[Any, Key("Limits on baggage.")] = None
    throttler: Annotated[Any, Key("Limits on debug traces.")] = None


class Tracing(Section, frozen=True, kw_only=True):
    """Traces of requests, for Jaeger."""

    enabled: Annotated[bool, Key("Send traces.")] = False
    jaeger: Annotated[Jaeger, Key("Settings of the Jaeger client.")] = Jaeger()


LogLevel = Literal["trace", "debug", "info", "warn", "warning", "error", "fatal", "panic"]


class LogHook(Section, frozen=True, kw_only=True):
    """One place where the log goes."""

    type: Annotated[Literal["std", "file", "syslog"], Key("std, file or syslog.")] = "std"
    level: Annotated[LogLevel, Key("trace, debug, info, warn or error.")] = "info"
    params: Annotated[dict[str, Any], Key("file: path of a directory. syslog: protocol and address.")] = msgspec.field(
        default_factory=dict
    )


class Tree(Section, frozen=True, kw_only=True):
    """The whole file."""

    version: Annotated[int, Key("Version of the format of this file.")] = 2
    global_: Annotated[Global, Key("What concerns all components.", name="global")] = Global()
    app_service_api: Annotated[AppServiceApi, Key("Bridges and bots.")] = AppServiceApi()
    client_api: Annotated[ClientApi, Key("What clients ask: accounts, rooms, messages.")] = ClientApi()
    federation_api: Annotated[FederationApi, Key("Talk with other homeservers.")] = FederationApi()
    key_server: Annotated[KeyServer, Key("End-to-end encryption keys.")] = KeyServer()
    media_api: Annotated[MediaApi, Key("Files and images.")] = MediaApi()
    room_server: Annotated[RoomServer, Key("Rooms: their events and their state.")] = RoomServer()
    sync_api: Annotated[SyncApi, Key("What clients are told.")] = SyncApi()
    user_api: Annotated[UserApi, Key("Accounts and devices.")] = UserApi()
    relay_api: Annotated[
        RelayApi,
        Key(
            "Store and forward for servers that are offline.",
            example=RelayApi(database=ComponentDatabase(connection_string="file:dendrite_relayapi.db")),
            commented=True,
        ),
    ] = RelayApi()
    mscs: Annotated[Mscs, Key("Proposals that are not in the specification.")] = Mscs()
    tracing: Annotated[Tracing, Key("Traces of requests, for Jaeger.")] = Tracing()
    logging: Annotated[
        tuple[LogHook, ...],
        Key(
            "Where the log goes. Standard output at level info always gets it.",
            sample=(
                LogHook(type="std", level="info"),
                LogHook(type="file", level="info", params={"path": "./logs"}),
            ),
        ),
    ] = ()


class Field(msgspec.Struct, frozen=True):
    """A key as the reader and the writer of samples see it: unpacked annotation and default."""

    attribute: str
    name: str
    type: Any
    unit: str
    key: Key
    default: Any


_FIELDS: dict[type, tuple[Field, ...]] = {}


def fields(section: type[Section]) -> tuple[Field, ...]:
    """The keys of a section in the order of the file; worked out once per class."""
    known = _FIELDS.get(section)
    if known is None:
        known = _FIELDS[section] = tuple(_fields(section))
    return known


def _fields(section: type[Section]) -> list[Field]:
    found = []
    blank = section()
    for info in msgspec.structs.fields(section):
        key, unit, bare = Key(""), "", info.type
        while hasattr(bare, "__metadata__"):
            for mark in bare.__metadata__:
                if isinstance(mark, Key):
                    key = mark
                elif isinstance(mark, Unit):
                    unit = mark.name
            bare = bare.__origin__
        name = key.name or info.name
        found.append(Field(info.name, name, bare, unit, key, getattr(blank, info.name)))
    return found
