"""Which servers this process sends to, where several share the work, and what these processes tell each other of it.

What waits for a server may be stored by any process that reads a stream, and is sent by the one that has the server's
share (`shares`).  That one is told by echoes of what was stored.  An echo may be lost with a process or a connection;
therefore who begins to read a stream has all others look at what is on disk (`announce`), for the one that read it
before may have been killed, and who has missed something looks by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

import msgspec

from ..links.echoes import Echoes
from .queue import Moment, PresenceMoment
from .shares import Shares

NEWS = "federation_post"
MOMENTS = "federation_moments"
BEHIND = "federation_behind"
SURVEY = "federation_survey"
"""The topics."""

NEWS_AT_ONCE = 5_000
"""Servers that one message is about."""


class News(msgspec.Struct, frozen=True, array_like=True):
    """What was stored for a server; ``linger`` is for how many seconds it may wait for company."""

    server: str
    events: int
    edus: bool
    rooms: bool
    linger: float


class _Moment(msgspec.Struct, frozen=True, array_like=True):
    servers: list[str]
    key: str
    linger: float
    typing: Moment | None = None
    presence: PresenceMoment | None = None


class _Behind(msgspec.Struct, frozen=True, array_like=True):
    server: str
    is_behind: bool


_NEWS = msgspec.msgpack.Decoder(list[News])
_MOMENT = msgspec.msgpack.Decoder(_Moment)
_BEHIND = msgspec.msgpack.Decoder(_Behind)


class Spread:
    """The share of this process, and its voice and ears."""

    def __init__(self, echoes: Echoes) -> None:
        self.shares = Shares("d")
        self.on_news: Callable[[Sequence[News]], None] = lambda news: None
        """Is told what others stored for servers of this process."""
        self.on_moment: Callable[[Collection[str], str, Moment | PresenceMoment, float], None] = lambda *moment: None
        """Is told what is of the moment: for which servers of this process, by which key, and how long it may wait."""
        self.on_behind: Callable[[str, bool], None] = lambda server, is_behind: None
        """Is told of servers for which only the newest event of each room is kept, or no longer so."""
        self.on_survey: Callable[[], None] = lambda: None
        """Is told when there may be something on disk that nobody told of."""
        self._echoes = echoes
        echoes.hear(NEWS, self._heard_news)
        echoes.hear(MOMENTS, self._heard_moment)
        echoes.hear(BEHIND, self._heard_behind)
        echoes.hear(SURVEY, lambda payload: self.on_survey())
        echoes.on_missed(self._missed)

    def mine(self, server: str) -> bool:
        """Whether this process sends to a server."""
        return self.shares.mine(server)

    # --- telling ---

    def tell_news(self, news: Iterable[News]) -> None:
        """Something was stored for servers of other processes."""
        told = list(news)
        for start in range(0, len(told), NEWS_AT_ONCE):
            self._echoes.tell(NEWS, msgspec.msgpack.encode(told[start : start + NEWS_AT_ONCE]))

    def tell_moment(self, servers: Iterable[str], key: str, moment: Moment | PresenceMoment, linger: float) -> None:
        """Servers of other processes are to be told something now or never."""
        told = list(servers)
        typing, presence = (moment, None) if isinstance(moment, Moment) else (None, moment)
        for start in range(0, len(told), NEWS_AT_ONCE):
            some = _Moment(told[start : start + NEWS_AT_ONCE], key, linger, typing, presence)
            self._echoes.tell(MOMENTS, msgspec.msgpack.encode(some))

    def tell_behind(self, server: str, is_behind: bool) -> None:
        self._echoes.tell(BEHIND, msgspec.msgpack.encode(_Behind(server, is_behind)))

    def announce(self) -> None:
        """This process begins to read a stream: see, all of you, what the one before it stored and did not tell."""
        self._echoes.tell(SURVEY, b"")
        self.on_survey()

    # --- hearing ---

    def _heard_news(self, payload: bytes) -> None:
        news = [one for one in _NEWS.decode(payload) if self.mine(one.server)]
        if news:
            self.on_news(news)

    def _heard_moment(self, payload: bytes) -> None:
        told = _MOMENT.decode(payload)
        servers = [server for server in told.servers if self.mine(server)]
        moment = told.typing or told.presence
        if servers and moment is not None:
            self.on_moment(servers, told.key, moment, told.linger)

    def _heard_behind(self, payload: bytes) -> None:
        told = _BEHIND.decode(payload)
        self.on_behind(told.server, told.is_behind)

    def _missed(self) -> None:
        if self._echoes.hearing:
            self.on_survey()
