"""Server-side backup of room keys.

Client-Server API, "Server-side key backups".  What is in ``auth_data`` and
``session_data`` depends on the algorithm and is the clients' business; here it
is JSON to be kept.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import orjson

from ..matrix.errors import bad_json, invalid_param, missing_param
from ..user_api.api import BackupInfo, BackupKey, BackupState, Caller, KeyAPI
from ..web.routes import Limit, Route, shape_error

BODY_LIMIT = 16 << 20
ROOM_KEYS = Limit("room_keys")

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]


class VersionQuery(msgspec.Struct):
    version: str


class Session(msgspec.Struct):
    """``KeyBackupData``."""

    first_message_index: Count
    forwarded_count: Count
    is_verified: bool
    session_data: dict[str, Any] | str


class Room(msgspec.Struct):
    """``RoomKeyBackup``."""

    sessions: dict[str, Session]


class Rooms(msgspec.Struct):
    rooms: dict[str, Room]


class RoomKeysRoutes:
    """``/room_keys/…``."""

    def __init__(self, keys: KeyAPI) -> None:
        self._keys = keys

    def routes(self) -> list[Route]:
        """The rows of this section."""
        base = "/_matrix/client/v3/room_keys"
        every, room, session = f"{base}/keys", f"{base}/keys/{{room_id}}", f"{base}/keys/{{room_id}}/{{session_id}}"
        return [
            Route("POST", f"{base}/version", self.create, limit=ROOM_KEYS),
            Route("GET", f"{base}/version", self.current, limit=ROOM_KEYS),
            Route("GET", f"{base}/version/{{version}}", self.info, limit=ROOM_KEYS),
            Route("PUT", f"{base}/version/{{version}}", self.update, limit=ROOM_KEYS),
            Route("DELETE", f"{base}/version/{{version}}", self.delete, limit=ROOM_KEYS),
            Route("PUT", every, self.put_all, limit=ROOM_KEYS, body_limit=BODY_LIMIT),
            Route("GET", every, self.get_all, limit=ROOM_KEYS),
            Route("DELETE", every, self.delete_all, limit=ROOM_KEYS),
            Route("PUT", room, self.put_room, limit=ROOM_KEYS, body_limit=BODY_LIMIT),
            Route("GET", room, self.get_room, limit=ROOM_KEYS),
            Route("DELETE", room, self.delete_room, limit=ROOM_KEYS),
            Route("PUT", session, self.put_session, limit=ROOM_KEYS),
            Route("GET", session, self.get_session, limit=ROOM_KEYS),
            Route("DELETE", session, self.delete_session, limit=ROOM_KEYS),
        ]

    # --- versions ---

    async def create(self, caller: Caller, body: dict[str, Any]) -> dict[str, Any]:
        algorithm, auth_data = backup_of(body)
        return {"version": await self._keys.create_backup(caller.user_id, algorithm, auth_data)}

    async def current(self, caller: Caller) -> dict[str, Any]:
        return info_json(await self._keys.backup(caller.user_id, None))

    async def info(self, caller: Caller, version: str) -> dict[str, Any]:
        return info_json(await self._keys.backup(caller.user_id, version))

    async def update(self, caller: Caller, version: str, body: dict[str, Any]) -> None:
        algorithm, auth_data = backup_of(body)
        if str(body.get("version", version)) != version:
            raise invalid_param("version must be that of the path.")
        await self._keys.update_backup(caller.user_id, version, algorithm, auth_data)

    async def delete(self, caller: Caller, version: str) -> None:
        await self._keys.delete_backup(caller.user_id, version)

    # --- keys ---

    async def put_all(self, caller: Caller, query: VersionQuery, body: dict[str, Any]) -> BackupState:
        rooms = shaped(body, Rooms).rooms
        keys = [
            backup_key(room_id, session_id, session)
            for room_id, room in rooms.items()
            for session_id, session in room.sessions.items()
        ]
        return await self._keys.put_backup_keys(caller.user_id, query.version, keys)

    async def put_room(self, caller: Caller, room_id: str, query: VersionQuery, body: dict[str, Any]) -> BackupState:
        sessions = shaped(body, Room).sessions
        keys = [backup_key(room_id, session_id, session) for session_id, session in sessions.items()]
        return await self._keys.put_backup_keys(caller.user_id, query.version, keys)

    async def put_session(
        self, caller: Caller, room_id: str, session_id: str, query: VersionQuery, body: dict[str, Any]
    ) -> BackupState:
        key = backup_key(room_id, session_id, shaped(body, Session))
        return await self._keys.put_backup_keys(caller.user_id, query.version, [key])

    async def get_all(self, caller: Caller, query: VersionQuery) -> bytes:
        return await self._keys.backup_keys(caller.user_id, query.version, None, None)

    async def get_room(self, caller: Caller, room_id: str, query: VersionQuery) -> bytes:
        return await self._keys.backup_keys(caller.user_id, query.version, room_id, None)

    async def get_session(self, caller: Caller, room_id: str, session_id: str, query: VersionQuery) -> bytes:
        return await self._keys.backup_keys(caller.user_id, query.version, room_id, session_id)

    async def delete_all(self, caller: Caller, query: VersionQuery) -> BackupState:
        return await self._keys.delete_backup_keys(caller.user_id, query.version, None, None)

    async def delete_room(self, caller: Caller, room_id: str, query: VersionQuery) -> BackupState:
        return await self._keys.delete_backup_keys(caller.user_id, query.version, room_id, None)

    async def delete_session(self, caller: Caller, room_id: str, session_id: str, query: VersionQuery) -> BackupState:
        return await self._keys.delete_backup_keys(caller.user_id, query.version, room_id, session_id)


def backup_of(body: dict[str, Any]) -> tuple[str, bytes]:
    """The algorithm and ``auth_data`` (JSON) of a body."""
    algorithm, auth_data = body.get("algorithm"), body.get("auth_data")
    if algorithm is None or auth_data is None:
        raise missing_param("algorithm and auth_data must be present.")
    if not isinstance(algorithm, str):
        raise bad_json("algorithm must be a string.")
    if not isinstance(auth_data, dict | str):
        raise bad_json("auth_data must be an object, or text where the algorithm has it so.")
    return algorithm, orjson.dumps(auth_data)


def info_json(info: BackupInfo) -> dict[str, Any]:
    return {
        "algorithm": info.algorithm,
        "auth_data": orjson.Fragment(info.auth_data),
        "count": info.count,
        "etag": info.etag,
        "version": info.version,
    }


def shaped(body: dict[str, Any], struct: type[Any]) -> Any:
    """The Struct that `body` describes; ``M_BAD_JSON`` or ``M_MISSING_PARAM`` where it does not."""
    try:
        return msgspec.convert(body, struct)
    except msgspec.ValidationError as error:
        raise shape_error(error) from None


def backup_key(room_id: str, session_id: str, session: Session) -> BackupKey:
    return BackupKey(
        room_id=room_id,
        session_id=session_id,
        first_message_index=session.first_message_index,
        forwarded_count=session.forwarded_count,
        is_verified=session.is_verified,
        session_data=orjson.dumps(session.session_data),
    )
