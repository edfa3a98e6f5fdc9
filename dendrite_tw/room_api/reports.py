"""Reports of events, rooms and users, for the administrators of this server.

Client-Server API, "Reporting Content".
"""

from __future__ import annotations

from ..database.engines import Database
from ..database.statements import Transaction
from ..matrix.errors import MatrixError, invalid_param, not_found
from ..matrix.events import client_dict, shown_json
from ..matrix.identifiers import is_historical_user_id, server_name_of
from ..user_api.api import UserAPI
from ..world import Clock
from .actions import CANONICAL_ALIAS, Actions
from .api import Report, ReportDetails
from .room import Rooms
from .store import EventStore, stored_event
from .tables import reports as table
from .tables.names import Names
from .viewing import Viewer

REASON_LIMIT = 4000
"""Characters of a reason."""

REPORTS_OF_A_USER = 1000
PAGE_LIMIT = 1000


class Reports:
    """Takes reports and shows them to administrators."""

    def __init__(
        self,
        *,
        database: Database,
        names: Names,
        rooms: Rooms,
        store: EventStore,
        viewer: Viewer,
        actions: Actions,
        users: UserAPI,
        clock: Clock,
        server_name: str,
    ) -> None:
        self._database = database
        self._names = names
        self._rooms = rooms
        self._store = store
        self._viewer = viewer
        self._actions = actions
        self._users = users
        self._clock = clock
        self._server_name = server_name

    # --- taken ---

    async def report(
        self, user_id: str, room_id: str, event_id: str | None, reason: str | None, score: int | None
    ) -> None:
        """Take a report of a room, or of an event in a room that the user is joined to; ``M_NOT_FOUND`` else."""
        room = await self._rooms.find(room_id)
        if room is None:
            raise not_found("This server does not know the room.")
        if event_id is not None:
            row = await self._viewer.event_row(room_id, event_id)
            joined = await self._actions.membership(room, user_id) == "join"
            if row is None or not joined or not await self._viewer.visible_rows(user_id, [row]):
                raise not_found("There is no such event, or you are not in the room.")
        await self._take(room_id, event_id or "", "", user_id, reason, score)

    async def report_user(self, user_id: str, reported: str, reason: str | None) -> None:
        """Take a report of a user; ``M_NOT_FOUND`` for one that this server knows nothing of."""
        if not is_historical_user_id(reported):
            raise invalid_param("That is not a user ID.")
        if server_name_of(reported) == self._server_name:
            known = await self._users.account(reported) is not None
        else:
            known = await self._database.read(self._names.find, reported) is not None
        if not known:
            raise not_found("This server does not know the user.")
        await self._take("", "", reported, user_id, reason, None)

    async def _take(
        self, room_id: str, event_id: str, user_id: str, reporter: str, reason: str | None, score: int | None
    ) -> None:
        if reason is not None and len(reason) > REASON_LIMIT:
            raise invalid_param(f"A reason may have {REASON_LIMIT} characters at most.")
        if await self._database.read(table.reports_by, reporter) >= REPORTS_OF_A_USER:
            raise MatrixError(429, "M_LIMIT_EXCEEDED", "You have reported a lot; let the administrators read it first.")
        text = None if reason is None else reason.replace("\0", "")
        now = self._clock.now_ms()
        await self._database.write(table.insert_report, room_id, event_id, user_id, reporter, text, score, now)

    # --- shown ---

    async def reports(
        self, kind: str, reporter: str | None, room_id: str | None, start: int, limit: int, newest_first: bool
    ) -> tuple[list[Report], int]:
        """A page of the reports of a kind (``event``, ``room``, ``user``, or all), and how many there are."""
        read = table.newest_reports if newest_first else table.oldest_reports
        chosen = (kind, reporter or "", room_id or "")
        rows = await self._database.read_long(read, *chosen, start, max(0, min(limit, PAGE_LIMIT)))
        total = await self._database.read_long(table.report_count, *chosen)
        return [await self._shown(row) for row in rows], total

    async def report_details(self, report_id: int) -> ReportDetails:
        """A report with the event that it is about; ``M_NOT_FOUND`` where there is none."""
        row = await self._database.read(table.report, report_id)
        if row is None:
            raise not_found("There is no such report.")
        stored = await self._store.row(row.event_id) if row.event_id else None
        event = stored_event(stored) if stored is not None else None
        shown = shown_json(client_dict(event), event.version) if event is not None else None
        return ReportDetails(report=await self._shown(row), event=shown)

    async def delete_report(self, report_id: int) -> None:
        if not await self._database.write(self._delete, report_id):
            raise not_found("There is no such report.")

    async def _delete(self, txn: Transaction, report_id: int) -> bool:
        return await table.delete_report(txn, report_id) > 0

    async def _shown(self, row: table.ReportRow) -> Report:
        sender = name = alias = None
        if row.event_id and (event := await self._store.row(row.event_id)) is not None:
            sender = stored_event(event).sender
        if row.room_id and (room := await self._rooms.find(row.room_id)) is not None:
            keys = ("m.room.name", ""), (CANONICAL_ALIAS, "")
            state = await self._actions.state(room, *keys)
            named, aliased = (state[key].content if key in state else {} for key in keys)
            name, alias = named.get("name"), aliased.get("alias")
        return Report(
            report_id=row.report_id,
            received_ts=row.received_ts,
            reporter=row.reporter,
            reason=row.reason,
            score=row.score,
            room_id=row.room_id or None,
            event_id=row.event_id or None,
            user_id=row.user_id or None,
            sender=sender,
            name=name if isinstance(name, str) else None,
            canonical_alias=alias if isinstance(alias, str) else None,
        )
