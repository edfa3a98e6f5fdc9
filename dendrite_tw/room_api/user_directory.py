"""The user directory: whom one can find.

Client-Server API, "User directory".  A user finds those who are joined to a
room that anybody may join or read and that somebody of this server is in, and those with whom they share a room, by
the beginnings of the words of their names and IDs.

The words are kept up with the events of members.  What members of this server
call themselves in one room is not told to those in others: they are found by
the profile of their first join or its latest renewal, and shown with their profile.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from ..database.engines import Database
from ..database.statements import Transaction
from ..matrix.events import Event
from ..user_api.api import UserAPI
from .api import FoundUser
from .tables import user_directory as table
from .tables.names import Names

WORD_BYTES = 64
WORDS_LIMIT = 12
"""Words of one user, and of one search."""

SCANNED = 5000
"""Words that one search looks at."""

CANDIDATES = 500
RESULTS_LIMIT = 100

_WORD = re.compile(r"[^\W_]+")


def folded(text: str) -> str:
    """Text as it is compared: without regard to case and to forms of writing."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def words_of(user_id: str, display_name: str) -> set[bytes]:
    """The words by whose beginnings a user is found: those of the name, and of the ID both the whole and the parts."""
    whole = folded(user_id[1:])
    parts = [whole, *_WORD.findall(whole.partition(":")[0]), *_WORD.findall(folded(display_name))]
    return {_cut(part) for part in parts[:WORDS_LIMIT]}


def _cut(word: str) -> bytes:
    return word.encode("utf-8", "replace")[:WORD_BYTES]


def searched(term: str) -> list[bytes]:
    """The words of a search, the longest first; an ID is one word."""
    term = folded(term.strip())
    if term.startswith("@") or (":" in term and " " not in term):
        whole = term.removeprefix("@")
        return [_cut(whole)] if whole else []
    words = {_cut(word) for word in _WORD.findall(term)[:WORDS_LIMIT]}
    return sorted(words, key=len, reverse=True)


class UserDirectory:
    """Keeps the directory up with events, and searches it."""

    def __init__(self, database: Database, names: Names, users: UserAPI) -> None:
        self._database = database
        self._names = names
        self._users = users

    # --- kept up ---

    async def follow(
        self,
        txn: Transaction,
        room_nid: int,
        changes: Iterable[tuple[tuple[str, str], Event | None, bool]],
        nids: Mapping[str, int],
    ) -> None:
        """Take in changes of a room's state, in their transaction.

        Each is a type with a state key, the event that is there now, and whether a member is of this server.
        """
        joined: dict[int, tuple[Event, bool]] = {}
        gone: set[int] = set()
        for (type, state_key), event, local in changes:
            if type == "m.room.member":
                nid = nids[state_key]
                if event is not None and event.membership == "join":
                    joined[nid] = (event, local)
                    gone.discard(nid)
                else:
                    joined.pop(nid, None)
                    gone.add(nid)
            elif state_key == "":
                await self._open_or_close(txn, room_nid, type, event)
        if joined:
            await self._take_in(txn, joined)
        if gone:
            await table.forget_unjoined(txn, list(gone))

    async def _open_or_close(self, txn: Transaction, room_nid: int, type: str, event: Event | None) -> None:
        content = {} if event is None else event.content
        if type == "m.room.join_rules":
            reason, is_open = "join", content.get("join_rule") == "public"
        elif type == "m.room.history_visibility":
            reason, is_open = "read", content.get("history_visibility") == "world_readable"
        else:
            return
        await (table.open_rooms if is_open else table.close_rooms)(txn, [(room_nid, reason)])

    async def _take_in(self, txn: Transaction, joined: Mapping[int, tuple[Event, bool]]) -> None:
        known = set(await table.known_users(txn, [nid for nid, (_, local) in joined.items() if local]))
        rows = []
        for nid, (event, _) in joined.items():
            if nid not in known and event.state_key is not None:
                rows.append((nid, event.state_key, _text(event, "displayname"), _text(event, "avatar_url")))
        await self._put(txn, rows)

    async def _put(self, txn: Transaction, rows: Sequence[tuple[int, str, str, str]]) -> None:
        await table.put_users(txn, [(nid, name, avatar) for nid, _, name, avatar in rows])
        await table.delete_words(txn, [nid for nid, _, _, _ in rows])
        words = [(word, nid) for nid, user_id, name, _ in rows for word in words_of(user_id, name)]
        await table.put_words(txn, words)

    async def renew(self, user_id: str, profile: Mapping[str, str]) -> None:
        """A user of this server has another profile."""
        await self._database.write(self._renew, user_id, profile.get("displayname", ""), profile.get("avatar_url", ""))

    async def _renew(self, txn: Transaction, user_id: str, name: str, avatar: str) -> None:
        nid = await self._names.find(txn, user_id)
        if nid is not None and await table.known_users(txn, [nid]):
            await self._put(txn, [(nid, user_id, _plain(name), _plain(avatar))])

    # --- searched ---

    async def search(self, user_id: str, term: str, limit: int) -> tuple[list[FoundUser], bool]:
        """Users whom `user_id` may know of, the best matches first; and whether there are more of them."""
        wanted = searched(term)
        asking = await self._database.read(self._names.find, user_id) or 0
        if not wanted:
            return [], False
        first = wanted[0]
        rows = await self._database.read_long(
            table.visible_with_word, first, first + b"\xff", SCANNED, asking, CANDIDATES
        )
        limit = max(1, min(limit, RESULTS_LIMIT))
        ranked = sorted((rank, row.user_id, row) for row in rows if (rank := _rank(row, wanted)) is not None)
        found = [await self._shown(row) for _, _, row in ranked[:limit]]
        return found, len(ranked) > limit or len(rows) == CANDIDATES

    async def _shown(self, row: table.FoundRow) -> FoundUser:
        name, avatar = row.display_name, row.avatar_url
        profile = await self._users.profile(row.user_id)
        if profile:
            name, avatar = profile.get("displayname", ""), profile.get("avatar_url", "")
        return FoundUser(user_id=row.user_id, display_name=name or None, avatar_url=avatar or None)


def _rank(row: table.FoundRow, wanted: Sequence[bytes]) -> tuple[int, bool] | None:
    """How well a user matches: whole words before beginnings, then those with a name; `None` for no match."""
    words = words_of(row.user_id, row.display_name)
    if not all(any(word.startswith(part) for word in words) for part in wanted):
        return None
    return -sum(part in words for part in wanted), not row.display_name


def _text(event: Event, key: str) -> str:
    value = event.content.get(key)
    return _plain(value) if isinstance(value, str) else ""


def _plain(text: str) -> str:
    """Text that every database takes, of a length that a name may have."""
    return text.replace("\0", "")[:1000]
