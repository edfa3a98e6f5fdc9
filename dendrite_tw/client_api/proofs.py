"""What clients prove or say in several steps, remembered between them.

A process that is alone keeps it in memory: whoever loses it begins again.
Where there are several, the next step may reach another one, so it is kept by the user component.  There
it is stored under a hash of its ID and sealed with a key made of the ID, which only the client knows: who reads the
database learns nothing, though a registration on its way holds a password.
"""

from __future__ import annotations

import base64
import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

import msgspec
from nacl.bindings import crypto_secretbox, crypto_secretbox_NONCEBYTES, crypto_secretbox_open
from nacl.exceptions import CryptoError

from ..user_api.api import UIASession, UserAPI
from ..world import Clock, World


class Proofs(Protocol):
    """What is remembered of one kind, by ID until it expires."""

    async def put(self, proof: UIASession) -> None:
        """Remember it, new or in the place of what was remembered of it."""

    async def get(self, id: str) -> UIASession | None: ...

    async def end(self, id: str) -> UIASession | None:
        """Forget it; of those who end it at the same time one is given it."""


Keeper = Callable[[str, int], Proofs]
"""Makes a place for one kind, of which a process that is alone keeps so many: the oldest is forgotten first."""


def keeper(users: UserAPI, world: World, shared: bool) -> Keeper:
    """Where proofs are kept; `shared` with other processes."""
    if shared:
        return lambda kind, limit: SharedProofs(users, kind, lambda: world.random.bytes(crypto_secretbox_NONCEBYTES))
    return lambda kind, limit: OwnProofs(world.clock, limit)


class OwnProofs:
    """`Proofs` in the memory of this process."""

    def __init__(self, clock: Clock, limit: int) -> None:
        self._clock = clock
        self._limit = limit
        self._known: OrderedDict[str, UIASession] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    async def put(self, proof: UIASession) -> None:
        now = self._clock.now_ms()
        self._known.pop(proof.id, None)
        while self._known and (len(self._known) >= self._limit or next(iter(self._known.values())).expires_ts <= now):
            self._known.popitem(last=False)
        self._known[proof.id] = proof

    async def get(self, id: str) -> UIASession | None:
        proof = self._known.get(id)
        return proof if proof is not None and proof.expires_ts > self._clock.now_ms() else None

    async def end(self, id: str) -> UIASession | None:
        proof = await self.get(id)
        self._known.pop(id, None)
        return proof


class SharedProofs:
    """`Proofs` that the user component keeps for all processes."""

    def __init__(self, users: UserAPI, kind: str, nonce: Callable[[], bytes]) -> None:
        self._users = users
        self._kind = kind
        self._nonce = nonce

    async def put(self, proof: UIASession) -> None:
        nonce = self._nonce()
        sealed = nonce + crypto_secretbox(msgspec.json.encode(proof), nonce, self._key(proof.id))
        await self._users.put_uia_session(
            UIASession(
                id=self._name(proof.id),
                purpose=self._kind,
                user_id=None,
                flows=[],
                params={"sealed": base64.b64encode(sealed).decode()},
                expires_ts=proof.expires_ts,
            )
        )

    async def get(self, id: str) -> UIASession | None:
        stored = await self._users.uia_session(self._name(id))
        if stored is None or stored.purpose != self._kind:
            return None
        try:
            sealed = base64.b64decode(stored.params["sealed"])
            nonce, rest = sealed[:crypto_secretbox_NONCEBYTES], sealed[crypto_secretbox_NONCEBYTES:]
            return msgspec.json.decode(crypto_secretbox_open(rest, nonce, self._key(id)), type=UIASession)
        except (KeyError, TypeError, ValueError, CryptoError, msgspec.DecodeError):
            return None

    async def end(self, id: str) -> UIASession | None:
        proof = await self.get(id)
        return proof if proof is not None and await self._users.end_uia_session(self._name(id)) else None

    def _name(self, id: str) -> str:
        return hashlib.sha256(f"{self._kind} {id}".encode("utf-8", "replace")).hexdigest()

    def _key(self, id: str) -> bytes:
        return hashlib.blake2b(id.encode("utf-8", "replace"), digest_size=32, person=b"dendrite proofs").digest()
