"""The server, in the reactor: sessions of clients, and the routing of messages between subjects.

A `Session` is the server's half of one connection, whatever carries it: it is handed operations and hands
back others.  `Server.publish` is the heart: from a subject to all who subscribed, one of each queue group,
and the internal subscribers (streams, the JetStream API).

Reference: NATS documentation, "Client Protocol" and "Core NATS".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from dendrite_tw import __version__
from dendrite_tw.jetstream import wire
from dendrite_tw.jetstream.subjects import Interest, is_literal, is_valid
from dendrite_tw.jetstream.wire import Err, Info, Msg, Op, Pub

if TYPE_CHECKING:
    from dendrite_tw.jetstream.accounts import Gate, Permissions, User

ROUTES_REMEMBERED: Final = 4096
MAX_SUBSCRIPTIONS: Final = 100_000
"""Subscriptions that one session may hold."""
PROTOCOL_VERSION: Final = "2.12.0"
"""The release of nats-server whose behaviour clients may count on."""

Receive = Callable[[str, str, bytes, bytes], "bool | None"]
"""Takes a message: subject, reply subject, headers, payload.  False says that nobody is there for it."""


class Subscription:
    """An interest in a subject: of a session, or of a part of the server."""

    __slots__ = ("limit", "queue", "receive", "received", "session", "sid", "subject")

    def __init__(self, subject: str, queue: str, receive: Receive, session: Session | None, sid: str) -> None:
        self.subject = subject
        self.queue = queue
        self.receive = receive
        self.session = session
        self.sid = sid
        self.limit = 0
        self.received = 0


class Route:
    """Who gets the messages of one subject."""

    __slots__ = ("groups", "only", "plain", "turn")

    def __init__(self, members: list[Subscription]) -> None:
        self.plain: list[Subscription] = []
        by_name: dict[str, list[Subscription]] = {}
        for member in members:
            if member.queue:
                by_name.setdefault(member.queue, []).append(member)
            else:
                self.plain.append(member)
        self.groups = list(by_name.values())
        self.only = self.plain[0] if len(self.plain) == 1 and not self.groups else None
        """The one who gets them, where it is only one: a stream mostly, or who asked."""
        self.turn = 0


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a server demands of its clients, and says of itself."""

    name: str = "dendrite-queue"
    server_id: str = "DENDRITEQUEUE"
    host: str = "127.0.0.1"
    port: int = 0
    max_payload: int = wire.DEFAULT_MAX_PAYLOAD
    jetstream: bool = True
    domain: str = ""


class Server:
    """Routes messages.  Sessions are opened by whatever carries them: a link in the process, or TCP."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.gate: Gate | None = None
        """Who may enter; ``None`` lets everybody in."""
        self.sessions: dict[int, Session] = {}
        self.in_messages = self.out_messages = self.in_bytes = self.out_bytes = 0
        self.interest_lost: Callable[[str], None] = lambda subject: None
        self.interest_gained: Callable[[str], None] = lambda subject: None
        self._interest: Interest[Subscription] = Interest()
        self._routes: dict[str, Route] = {}
        self._next_session = 0

    # --- subscriptions ---

    def subscribe(self, subject: str, receive: Receive, *, queue: str = "") -> Subscription:
        """An interest of the server's own parts."""
        subscription = Subscription(subject, queue, receive, None, "")
        self.add(subscription)
        return subscription

    def add(self, subscription: Subscription) -> None:
        self._interest.add(subscription.subject, subscription)
        self._routes.clear()

    def remove(self, subscription: Subscription) -> None:
        self._interest.remove(subscription.subject, subscription)
        self._routes.clear()
        self.interest_lost(subscription.subject)

    def _route(self, subject: str) -> Route:
        route = Route(self._interest.match(subject))
        if len(self._routes) >= ROUTES_REMEMBERED:
            self._routes.clear()
        self._routes[subject] = route
        return route

    def reaches(self, subject: str, group: str = "") -> bool:
        """Whether a message on this subject would find anybody (of a queue group, if named)."""
        route = self._routes.get(subject) or self._route(subject)
        if group:
            return any(members[0].queue == group for members in route.groups)
        return bool(route.plain or route.groups)

    # --- messages ---

    def publish(self, subject: str, reply: str, headers: bytes, payload: bytes, origin: Session | None = None) -> int:
        """Hand a message to all who subscribed; returns to how many."""
        self.in_messages += 1
        route = self._routes.get(subject)
        if route is not None and route.only is not None and (origin is None or route.only.session is not origin):
            return int(self._give(route.only, subject, reply, headers, payload))
        if route is None:
            if subject.startswith(("_INBOX.", "$JS.ACK.")):
                # Such subjects are used once: remembering their routes would only drive out others.
                members = self._interest.match(subject)
                if len(members) == 1:
                    return int(self._give(members[0], subject, reply, headers, payload))
                route = Route(members)
            else:
                route = self._route(subject)
        return self._hand_out(route, subject, reply, headers, payload, origin)

    def forward(self, destination: str, subject: str, reply: str, headers: bytes, payload: bytes) -> int:
        """Hand a message to the subscribers of ``destination`` under another subject, its own."""
        route = self._routes.get(destination) or self._route(destination)
        return self._hand_out(route, subject, reply, headers, payload, None)

    def _hand_out(
        self, route: Route, subject: str, reply: str, headers: bytes, payload: bytes, origin: Session | None
    ) -> int:
        count = 0
        silent = origin is not None and not origin.echo
        for member in route.plain:
            if not (silent and member.session is origin):
                count += self._give(member, subject, reply, headers, payload)
        if route.groups:
            route.turn += 1
            for group in route.groups:
                count += self._give(group[route.turn % len(group)], subject, reply, headers, payload)
        return count

    def _give(self, member: Subscription, subject: str, reply: str, headers: bytes, payload: bytes) -> bool:
        session = member.session
        if session is None:
            return member.receive(subject, reply, headers, payload) is not False
        if session.hears_not_all and not session.may_hear(subject):
            return False
        self.out_messages += 1
        self.out_bytes += len(headers) + len(payload)
        session.send(Msg(subject, member.sid, reply, headers, payload))
        member.received += 1
        if 0 < member.limit <= member.received:
            session.unsubscribe(member)
        return True

    # --- sessions ---

    def open(self, send: Callable[[Op], None], close: Callable[[], None], *, trusted: bool = False) -> Session:
        """A new session; it introduces the server at once.  ``trusted`` ones need no credentials."""
        self._next_session += 1
        session = Session(self, self._next_session, send, close, trusted)
        session.server.sessions[session.number] = session
        session.send(Info(self.introduction(session)))
        return session

    def introduction(self, session: Session) -> dict[str, Any]:
        settings = self.settings
        options: dict[str, Any] = {
            "server_id": settings.server_id,
            "server_name": settings.name,
            "version": PROTOCOL_VERSION,
            "proto": 1,
            "host": settings.host,
            "port": settings.port,
            "headers": True,
            "max_payload": settings.max_payload,
            "client_id": session.number,
            "software": f"dendrite_tw/{__version__}",
        }
        if settings.jetstream:
            options["jetstream"] = True
        if settings.domain:
            options["domain"] = settings.domain
        if self.demands_login and not session.trusted:
            options["auth_required"] = True
        return options

    @property
    def demands_login(self) -> bool:
        return self.gate is not None and self.gate.demands_login


class Session:
    """The server's half of a connection: takes operations in `handle`, answers through ``send``."""

    def __init__(
        self,
        server: Server,
        number: int,
        send: Callable[[Op], None],
        close: Callable[[], None],
        trusted: bool,
    ) -> None:
        self.server = server
        self.number = number
        self.send = send
        self.trusted = trusted
        self.echo = True
        self.verbose = False
        self.pedantic = False
        self.no_responders = trusted
        self.name = ""
        self.pings_out = 0
        self._close = close
        self._subscriptions: dict[str, Subscription] = {}
        self._gate = None if trusted else server.gate
        self._user: User | None = None
        self.hears_not_all = False
        self._may_publish: Permissions | None = None
        """Where the client may publish, unless it may everywhere."""
        self._admitted = trusted or not server.demands_login
        if self._gate is not None and self._admitted:
            self._enter(self._gate.admit({}))
        self._handlers: dict[type[Op], Callable[[Any], None]] = {
            Pub: self._publish,
            wire.Sub: self._subscribe,
            wire.Unsub: self._unsubscribe,
            wire.Ping: lambda op: self.send(wire.PONG),
            wire.Pong: self._pong,
            wire.Connect: self._connect,
        }

    def may_hear(self, subject: str) -> bool:
        """Whether a message of this subject may be given to the client, whatever pattern it subscribed to."""
        user = self._user
        return user is None or not user.subscribe.deny or user.subscribe.admits(subject)

    @property
    def subscription_count(self) -> int:
        return len(self._subscriptions)

    @property
    def is_admitted(self) -> bool:
        return self._admitted

    def handle(self, op: Op) -> None:
        """Do what the client asks."""
        handler = self._handlers.get(type(op))
        if handler is None:
            self.refuse("Unknown Protocol Operation")
        elif self._admitted or type(op) is wire.Connect:
            handler(op)
        else:
            self.refuse("Authorization Violation")

    def refuse(self, reason: str) -> None:
        """Say what is wrong, and hang up."""
        self.send(Err(reason))
        self._close()

    def closed(self) -> None:
        """The connection is gone."""
        self.server.sessions.pop(self.number, None)
        subscriptions, self._subscriptions = self._subscriptions, {}
        for subscription in subscriptions.values():
            self.server.remove(subscription)

    def _connect(self, op: wire.Connect) -> None:
        options = op.options
        if self._gate is not None:
            user = self._gate.admit(options)
            if user is None:
                self.refuse("Authorization Violation")
                return
            self._enter(user)
        self._admitted = True
        self.verbose = bool(options.get("verbose"))
        self.pedantic = bool(options.get("pedantic"))
        self.echo = bool(options.get("echo", True))
        self.no_responders = bool(options.get("no_responders")) and bool(options.get("headers"))
        self.name = str(options.get("name") or "")
        if self.verbose:
            self.send(wire.OK)

    def _enter(self, user: User | None) -> None:
        """Go over to the account of a user."""
        if user is None:
            return
        self._user = user
        self._may_publish = None if user.publish.is_open else user.publish
        self.hears_not_all = bool(user.subscribe.deny)
        if user.server is not self.server:
            self.closed()
            self.server = user.server
            self.server.sessions[self.number] = self

    def _pong(self, op: wire.Pong) -> None:
        self.pings_out = 0

    def _publish(self, op: Pub) -> None:
        if self.verbose:
            self.send(wire.OK)
        if len(op.headers) + len(op.payload) > self.server.settings.max_payload:
            self.refuse("Maximum Payload Violation")
            return
        if self.pedantic and not (is_valid(op.subject) and is_literal(op.subject)):
            self.send(Err("Invalid Publish Subject"))
        if self._may_publish is not None and not self._may_publish.admits(op.subject):
            self.send(Err(f'Permissions Violation for Publish to "{op.subject}"'))
            return
        self.server.in_bytes += len(op.headers) + len(op.payload)
        count = self.server.publish(op.subject, op.reply, op.headers, op.payload, self)
        if not count and op.reply and self.no_responders:
            self._say_no_responders(op)

    def _say_no_responders(self, op: Pub) -> None:
        status = wire.encode_headers((("Nats-Subject", op.subject),), 503)
        self.server.publish(op.reply, "", status, b"")

    def _subscribe(self, op: wire.Sub) -> None:
        if not is_valid(op.subject):
            self.send(Err("Invalid Subject"))
            return
        if self._user is not None and not self._user.subscribe.admits(op.subject):
            self.send(Err(f'Permissions Violation for Subscription to "{op.subject}"'))
            return
        if len(self._subscriptions) >= MAX_SUBSCRIPTIONS:
            self.refuse("maximum subscriptions exceeded")
            return
        if op.sid not in self._subscriptions:
            subscription = Subscription(op.subject, op.queue, self._never, self, op.sid)
            self._subscriptions[op.sid] = subscription
            self.server.add(subscription)
        if self.verbose:
            self.send(wire.OK)
        self.server.interest_gained(op.subject)

    def _never(self, subject: str, reply: str, headers: bytes, payload: bytes) -> None:
        raise AssertionError("a session's messages go through send")

    def _unsubscribe(self, op: wire.Unsub) -> None:
        if self.verbose:
            self.send(wire.OK)
        subscription = self._subscriptions.get(op.sid)
        if subscription is None:
            return
        if op.limit > subscription.received:
            subscription.limit = op.limit
        else:
            self.unsubscribe(subscription)

    def unsubscribe(self, subscription: Subscription) -> None:
        if self._subscriptions.pop(subscription.sid, None) is not None:
            self.server.remove(subscription)
