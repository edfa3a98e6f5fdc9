"""The keys of other servers: found, believed for a while, and used to check signatures.

Server-Server API, "Retrieving server keys".  A key is looked for in memory, in the database, with the server itself and
with notaries (``key_perspectives``), in the order that ``prefer_direct_fetch`` says.  Requests for the keys of one
server share a fetch; a server that does not answer, or whose answer does not help, is left in peace for a while; and
what a stranger can make this server do and keep is bounded.

Where several processes share the database, who stores keys of a server tells the others, which then read them anew; and
all is read anew now and then, for somebody may be killed before it tells.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import msgspec
import orjson
from twisted.internet.defer import Deferred, DeferredList, DeferredSemaphore
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from ..database.engines import Database
from ..database.statements import Transaction
from ..links.echoes import Echoes, NoEchoes
from ..matrix import signing
from ..matrix.errors import MatrixError
from ..matrix.identifiers import is_server_name
from ..matrix.signing import SignatureError
from ..world import Clock
from .api import KeysWanted, ServerKey, SignatureCheck
from .key_documents import CURRENT_LIMIT, KEY_ID_LIMIT, DocumentError, Published, read_document
from .shared import SharedCalls
from .signing_keys import OwnKeys
from .tables.keys import (
    KEYS_OF_SERVER,
    PRUNED_AT_ONCE,
    RETIRED_OF_SERVER,
    KeyRow,
    document_of,
    keys_of,
    prune,
    prune_keys_of,
    prune_retired_of,
    store_documents,
    store_keys,
    store_retired,
)

log = Logger()

SERVERS_IN_MEMORY = 10_000
SERVERS_ASKED = 100_000
"""Of how many servers it is remembered when they may be asked again."""

FETCHES = 100
"""How many servers are asked at the same time."""

FETCHES_WAITING = 2_000
NOTARY_SERVERS = 100
"""How many servers' keys one question to a notary is for."""

NOTARY_DOCUMENTS = 1_000
CHECKS_AT_ONCE = 128
"""After so many signatures others get a turn: about 6 ms."""

FIRST_WAIT_MS = 5_000
LONGEST_WAIT_MS = 600_000
"""How long a server is left in peace that was asked in vain: if it did not answer, twice as long each time."""

KEY_IDS_ASKED = 50
"""How many keys of one server are asked for together: forged events may name any number."""

STORED = "federation_keys"
"""The topic by which a process says of which servers it stored keys."""

REREAD_SECONDS = 60
"""How long keys are believed at most that another process may have replaced without anybody hearing of it."""

Wanted = dict[str, int]
"""Key ids, and the moment that each must have been valid at (milliseconds; 0 for any)."""


_NAMES = msgspec.msgpack.Decoder(list[str])


class KeyUnavailable(SignatureError):
    """The key cannot be had at present, so the signature cannot be checked."""


class Perspective(msgspec.Struct, frozen=True):
    """A notary, and the public keys (32 bytes) that its answers must be signed with."""

    server_name: str
    keys: Mapping[str, bytes]


def perspective(server_name: str, keys: Iterable[tuple[str, str]]) -> Perspective:
    """A notary from key ids and public keys in base64; `ValueError` for a key that is none."""
    decoded = {key_id: signing.decode_base64(text) for key_id, text in keys}
    if any(len(key) != signing.VERIFY_KEY_BYTES for key in decoded.values()):
        raise ValueError("a public key has 32 bytes")
    return Perspective(server_name, decoded)


class KeyFetcher(Protocol):
    """Asks others for keys; `MatrixError` where they do not answer."""

    async def server_keys(self, server_name: str) -> dict[str, Any]:
        """A server's own document."""

    async def notary_keys(self, notary: str, question: dict[str, Any]) -> dict[str, Any]:
        """A notary's answer."""


class _Asked(msgspec.Struct, frozen=True):
    """When a server may be asked again, and how often it did not answer in a row."""

    again_ts: int
    failures: int


class KeyRing:
    """Finds keys and checks signatures with them."""

    def __init__(
        self,
        own: OwnKeys,
        database: Database,
        fetcher: KeyFetcher,
        time: IReactorTime,
        clock: Clock,
        perspectives: Sequence[Perspective] = (),
        prefer_direct: bool = False,
        echoes: Echoes | None = None,
    ) -> None:
        self._own = own
        self._database = database
        self._fetcher = fetcher
        self._time = time
        self._clock = clock
        self._perspectives = [notary for notary in perspectives if notary.keys]
        self._prefer_direct = prefer_direct
        self._known: OrderedDict[str, dict[str, KeyRow]] = OrderedDict()
        self._asked: OrderedDict[str, _Asked] = OrderedDict()
        self._fetching: SharedCalls[str, None] = SharedCalls()
        self._turns = DeferredSemaphore(FETCHES)
        self._echoes: Echoes = echoes or NoEchoes()
        self._loads: dict[object, tuple[Sequence[str], set[str]]] = {}
        """The servers whose keys are being read, and those of them that were stored meanwhile."""
        self._echoes.hear(STORED, self._heard)
        self._echoes.on_missed(self.forget)

    # --- beside other processes ---

    def _heard(self, payload: bytes) -> None:
        """Another process stored keys of these servers."""
        names = _NAMES.decode(payload)
        for name in names:
            self._known.pop(name, None)
        for reading, outdated in self._loads.values():
            outdated.update(set(names).intersection(reading))

    def forget(self) -> None:
        """What is in memory may be out of date."""
        self._known.clear()
        for reading, outdated in self._loads.values():
            outdated.update(reading)

    # --- signatures ---

    async def verify(
        self, server_name: str, key_id: str, message: bytes, signature: str, minimum_valid_until_ts: int
    ) -> None:
        """Raise `SignatureError` unless `signature`, in base64, is by that key and the key was valid then.

        `KeyUnavailable` where the key cannot be had.
        """
        found = await self._keys({server_name: {key_id: minimum_valid_until_ts}})
        self._check(SignatureCheck(server_name, key_id, message, signature, minimum_valid_until_ts), found)

    async def verify_all(self, checks: Sequence[SignatureCheck]) -> list[str | None]:
        """For each check `None`, or the reason why the signature is not accepted."""
        wants: dict[str, Wanted] = {}
        for check in checks:
            wanted = wants.setdefault(check.server_name, {})
            wanted[check.key_id] = max(wanted.get(check.key_id, 0), check.minimum_valid_until_ts)
        found = await self._keys(wants)
        reasons: list[str | None] = []
        for index, check in enumerate(checks):
            if index and index % CHECKS_AT_ONCE == 0:
                await deferLater(self._time, 0)
            try:
                self._check(check, found)
            except SignatureError as error:
                reasons.append(str(error))
            else:
                reasons.append(None)
        return reasons

    def _check(self, check: SignatureCheck, found: Mapping[str, Mapping[str, KeyRow]]) -> None:
        if check.server_name == self._own.server_name:
            key = self._own.verify_key(check.key_id, check.minimum_valid_until_ts)
            if key is None:
                raise SignatureError(f"{check.key_id} is not a key of this server")
        else:
            row = found.get(check.server_name, {}).get(check.key_id)
            if row is None:
                raise KeyUnavailable(f"the key {check.key_id[:100]} of {check.server_name[:255]} is not to be had")
            if row.valid_until_ts < check.minimum_valid_until_ts:
                raise SignatureError(f"the key {row.key_id} of {row.server_name} was not valid any more")
            key = row.verify_key
        signing.verify_bytes(check.message, check.signature, key)

    # --- keys ---

    async def fetch(self, wanted: Sequence[KeysWanted]) -> list[ServerKey]:
        """The wanted keys that can be had; this server's own among them."""
        wants: dict[str, Wanted] = {}
        for one in wanted:
            ids = wants.setdefault(one.server_name, {})
            for key_id in one.key_ids:
                ids[key_id] = max(ids.get(key_id, 0), one.ts)
        found = await self._keys(wants)
        keys = [
            _server_key(row) for name, rows in found.items() for key_id, row in rows.items() if key_id in wants[name]
        ]
        return keys + self._own.keys(wants.get(self._own.server_name, ()))

    async def _keys(self, wants: Mapping[str, Wanted]) -> dict[str, dict[str, KeyRow]]:
        """What is known of the keys of these servers, after others were asked for what is missing."""
        if not self._echoes.hearing:
            self._known.clear()
        servers = [name for name in wants if name != self._own.server_name and is_server_name(name)]
        await self._load([name for name in servers if name not in self._known])
        missing = {name: lacking for name in servers if (lacking := self._lacking(name, wants[name]))}
        if missing:
            await self._fetch(missing)
            if self._database.shared:
                # What others stored meanwhile was forgotten here.
                await self._load([name for name in servers if name not in self._known])
        return {name: self._recall(name) for name in servers}

    def _recall(self, server_name: str) -> dict[str, KeyRow]:
        known = self._known.get(server_name)
        if known is None:
            return {}
        self._known.move_to_end(server_name)
        return known

    def _lacking(self, server_name: str, wanted: Wanted) -> Wanted:
        """Those of the wanted keys that are not known to have been valid then, but might be."""
        known = self._known.get(server_name, {})
        lacking = [
            (key_id, ts)
            for key_id, ts in wanted.items()
            if not (key_id in known and known[key_id].valid_until_ts >= ts)
            and len(key_id) <= KEY_ID_LIMIT
            and key_id.startswith("ed25519:")
        ]
        return dict(lacking[:KEY_IDS_ASKED])

    async def _load(self, server_names: Sequence[str]) -> None:
        """Bring what is stored to memory; again what is stored anew while it is read."""
        while server_names:
            load, outdated = object(), set[str]()
            self._loads[load] = (server_names, outdated)
            try:
                rows = await self._database.read(keys_of, server_names)
            finally:
                del self._loads[load]
            by_server: dict[str, list[KeyRow]] = {}
            for row in rows:
                by_server.setdefault(row.server_name, []).append(row)
            for name, stored in by_server.items():
                if name not in outdated:
                    self._remember(name, stored)
            server_names = [name for name in server_names if name in outdated]

    def _remember(self, server_name: str, rows: Iterable[KeyRow]) -> None:
        known = dict(self._known.get(server_name, {}))
        for row in rows:
            before = known.get(row.key_id)
            if before is None or row.told_until_ts >= before.told_until_ts:
                known[row.key_id] = row
        if len(known) > KEYS_OF_SERVER:
            newest = sorted(known.values(), key=lambda row: (-row.fetched_ts, row.key_id))[:KEYS_OF_SERVER]
            known = {row.key_id: row for row in newest}
        self._known[server_name] = known
        self._known.move_to_end(server_name)
        if len(self._known) > SERVERS_IN_MEMORY:
            self._known.popitem(last=False)

    async def _believe(self, published: Sequence[Published], direct: bool) -> None:
        """Store and remember what documents said."""
        rows = [msgspec.structs.astuple(row) for document in published for row in document.keys]
        documents = [
            (one.keys[0].server_name, orjson.dumps(one.document), one.valid_until_ts, self._clock.now_ms())
            for one in published
            if direct
        ]

        async def store(txn: Transaction) -> None:
            await store_keys(txn, rows)
            for one in published:
                await prune_keys_of(txn, one.keys[0].server_name, KEYS_OF_SERVER)
            for one in published if direct else ():
                await _retire(txn, one)
            await store_documents(txn, documents)

        await self._database.write(store)
        self._echoes.tell(STORED, msgspec.msgpack.encode([one.keys[0].server_name for one in published]))
        for one in published:
            self._remember(one.keys[0].server_name, one.keys)

    # --- asking ---

    async def renew(self, server_name: str) -> None:
        """Ask a server itself for its document, however lately it was asked."""
        await self._fetching.run(server_name, partial(self._renew, server_name))

    async def _renew(self, server_name: str) -> None:
        await self._ask_server(server_name)

    def _may_ask(self, server_name: str) -> bool:
        asked = self._asked.get(server_name)
        return asked is None or self._clock.now_ms() >= asked.again_ts

    def _leave_in_peace(self, server_name: str, told: bool) -> None:
        """A server was asked in vain: decide when it may be asked again.

        Soon, if it told its keys, for then anybody who invents key ids could keep it from being asked in earnest.
        """
        now, before = self._clock.now_ms(), self._asked.pop(server_name, _Asked(0, 0))
        failures = 0 if told else before.failures + 1
        wait = min(FIRST_WAIT_MS << min(max(failures - 1, 0), 16), LONGEST_WAIT_MS)
        self._asked[server_name] = _Asked(now + wait, failures)
        if len(self._asked) > SERVERS_ASKED:
            self._asked.popitem(last=False)

    async def _fetch(self, missing: Mapping[str, Wanted]) -> None:
        """Ask for the keys of these servers, all at the same time; what cannot be had is missing afterwards."""
        waiting: list[Deferred[None]] = []
        mine: dict[str, Wanted] = {}
        for name, wanted in missing.items():
            if name in self._fetching:
                waiting.append(self._fetching.run(name, _nothing))
            elif self._may_ask(name) and len(self._fetching) + len(mine) < FETCHES_WAITING:
                mine[name] = wanted
        notaries = _NotaryRound(self, mine)
        for name in mine:
            waiting.append(self._fetching.run(name, partial(self._fetch_one, name, mine[name], notaries)))
        await DeferredList(waiting, consumeErrors=True)

    async def _fetch_one(self, server_name: str, wanted: Wanted, notaries: _NotaryRound) -> None:
        """Ask the server and the notaries, in the order of the configuration, until the wanted keys are there."""
        begun = self._clock.now_ms()
        try:
            ways = [self._ask_server, notaries.for_server]
            for way in ways if self._prefer_direct else reversed(ways):
                await way(server_name)
                if not self._lacking(server_name, wanted):
                    break
        except MatrixError as error:
            log.info("the keys of {server} could not be stored: {error}", server=server_name, error=error.error)
        except Exception:
            log.failure("the keys of {server} could not be fetched", server=server_name)
        if not self._lacking(server_name, wanted):
            self._asked.pop(server_name, None)
        else:
            told = any(row.fetched_ts >= begun for row in self._known.get(server_name, {}).values())
            self._leave_in_peace(server_name, told)

    async def _ask_server(self, server_name: str) -> bool:
        """Ask a server itself; says whether it answered as it should."""
        turn = self._turns.acquire()
        if not turn.called:
            # Turns are handed on from within the one before: a long row of quick ones would nest too deeply.
            await turn
            await deferLater(self._time, 0)
        try:
            document = await self._fetcher.server_keys(server_name)
            published = read_document(server_name, document, self._clock.now_ms(), direct=True)
        except DocumentError as error:
            log.info("{server} told its keys in a wrong way: {error}", server=server_name, error=str(error))
            return False
        except MatrixError:
            return False
        finally:
            self._turns.release()
        await self._believe([published], direct=True)
        return True

    async def ask_notaries(self, wants: Mapping[str, Wanted]) -> None:
        """Ask the notaries in their order, each for what the ones before did not have."""
        for notary in self._perspectives:
            left = {name: wanted for name, wanted in wants.items() if self._lacking(name, wanted)}
            left.pop(notary.server_name, None)
            names = list(left)
            for start in range(0, len(names), NOTARY_SERVERS):
                await self._ask_notary(notary, {name: left[name] for name in names[start : start + NOTARY_SERVERS]})

    async def _ask_notary(self, notary: Perspective, wants: Mapping[str, Wanted]) -> None:
        question = {
            name: {key_id: {"minimum_valid_until_ts": ts} for key_id, ts in wanted.items()}
            for name, wanted in wants.items()
        }
        try:
            answer = await self._fetcher.notary_keys(notary.server_name, {"server_keys": question})
        except MatrixError:
            return
        documents = answer.get("server_keys")
        good = []
        for document in documents[:NOTARY_DOCUMENTS] if isinstance(documents, list) else ():
            name = document.get("server_name") if isinstance(document, dict) else None
            if not isinstance(name, str) or name not in wants or not _is_by(notary, document):
                continue
            try:
                good.append(read_document(name, document, self._clock.now_ms(), direct=False))
            except DocumentError:
                continue
        if good:
            await self._believe(good, direct=False)

    async def prune(self) -> int:
        """Forget keys that nobody confirmed for long, and the surplus; says how many rows went."""
        gone = 0
        while True:
            rows = await self._database.write(prune, self._clock.now_ms())
            gone += rows
            if rows < PRUNED_AT_ONCE:
                return gone


class _NotaryRound:
    """One round of questions to the notaries, for all servers that are looked for together; asked if needed, once."""

    def __init__(self, ring: KeyRing, wants: Mapping[str, Wanted]) -> None:
        self._ring = ring
        self._wants = wants
        self._asking: SharedCalls[None, None] = SharedCalls()
        self._is_over = False

    async def for_server(self, server_name: str) -> bool:
        """Wait until the notaries were asked."""
        if not self._is_over:
            await self._asking.run(None, self._ask)
        return True

    async def _ask(self) -> None:
        await self._ring.ask_notaries(self._wants)
        self._is_over = True


async def _retire(txn: Transaction, published: Published) -> None:
    """Keep the document that is replaced, for those of its keys that the new one does not name."""
    server_name = published.keys[0].server_name
    before = await document_of(txn, server_name)
    if before is None:
        return
    gone = orjson.loads(before.document)["verify_keys"].keys() - {row.key_id for row in published.keys}
    if gone:
        rest = (before.document, before.valid_until_ts, before.fetched_ts)
        await store_retired(txn, [(server_name, key_id, *rest) for key_id in sorted(gone)[:CURRENT_LIMIT]])
        await prune_retired_of(txn, server_name, RETIRED_OF_SERVER)


def _server_key(row: KeyRow) -> ServerKey:
    expired = row.valid_until_ts if row.expired else None
    return ServerKey(row.server_name, row.key_id, row.verify_key, row.valid_until_ts, expired)


async def _nothing() -> None:
    return None


def _is_by(notary: Perspective, document: dict[str, Any]) -> bool:
    """Whether the notary signed a document with one of the keys that it is known by."""
    for key_id, key in notary.keys.items():
        try:
            signing.verify_json(document, notary.server_name, key_id, key)
        except SignatureError:
            continue
        return True
    return False
