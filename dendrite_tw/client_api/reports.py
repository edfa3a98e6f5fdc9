"""Reports: what users tell the administrators of, and how these read it.

Client-Server API, "Reporting Content".  The administrators' endpoints are
those that Dendrite took over from Synapse; they list reports of events.
Reports of rooms and users are under ``/_dendrite/admin/reports``.
"""

from __future__ import annotations

from typing import Any

import msgspec
import orjson

from ..matrix.errors import invalid_param, not_found
from ..room_api.api import Report, RoomAPI
from ..user_api.api import Caller
from ..web.routes import Access, Limit, Route

CLIENT = "/_matrix/client/v3"
REPORTING = Limit("report")
MAX_BODY = 1 << 16
LOWEST_SCORE = -100


class EventReportBody(msgspec.Struct):
    reason: str | None = None
    score: Any = None


class ReportBody(msgspec.Struct):
    reason: str


class ReportsQuery(msgspec.Struct):
    start: int = msgspec.field(default=0, name="from")
    limit: int = 100
    dir: str = "b"
    user_id: str | None = None
    room_id: str | None = None
    kind: str | None = None


class ReportRoutes:
    """The endpoints of reports."""

    def __init__(self, rooms: RoomAPI) -> None:
        self._rooms = rooms

    def routes(self) -> list[Route]:
        room, admin = f"{CLIENT}/rooms/{{room_id}}/report", "/_synapse/admin/v1/event_reports"
        return [
            Route("POST", f"{room}/{{event_id}}", self.report_event, Access.USER, REPORTING, MAX_BODY),
            Route("POST", room, self.report_room, Access.USER, REPORTING, MAX_BODY),
            Route("POST", f"{CLIENT}/users/{{user_id}}/report", self.report_user, Access.USER, REPORTING, MAX_BODY),
            Route("GET", admin, self.event_reports, Access.ADMIN),
            Route("GET", f"{admin}/{{report_id}}", self.event_report, Access.ADMIN),
            Route("DELETE", f"{admin}/{{report_id}}", self.delete_report, Access.ADMIN),
            Route("GET", "/_dendrite/admin/reports", self.all_reports, Access.ADMIN),
        ]

    async def report_event(self, caller: Caller, room_id: str, event_id: str, body: EventReportBody) -> None:
        score = body.score if type(body.score) is int and LOWEST_SCORE <= body.score <= 0 else None
        await self._rooms.report(caller.user_id, room_id, event_id, body.reason, score)

    async def report_room(self, caller: Caller, room_id: str, body: ReportBody) -> None:
        await self._rooms.report(caller.user_id, room_id, None, body.reason, None)

    async def report_user(self, caller: Caller, user_id: str, body: ReportBody) -> None:
        await self._rooms.report_user(caller.user_id, user_id, body.reason)

    # --- for administrators ---

    async def event_reports(self, query: ReportsQuery) -> dict[str, Any]:
        reports, total, following = await self._page(query, "event")
        page: dict[str, Any] = {"event_reports": [_event_report(report) for report in reports], "total": total}
        return page if following is None else page | {"next_token": following}

    async def all_reports(self, query: ReportsQuery) -> dict[str, Any]:
        if query.kind not in (None, "event", "room", "user"):
            raise invalid_param("kind must be event, room or user.")
        reports, total, following = await self._page(query, query.kind or "")
        page: dict[str, Any] = {"reports": [_any_report(report) for report in reports], "total": total}
        return page if following is None else page | {"next_token": following}

    async def _page(self, query: ReportsQuery, kind: str) -> tuple[list[Report], int, int | None]:
        if query.dir not in ("b", "f"):
            raise invalid_param("dir must be b or f.")
        if query.start < 0 or query.limit < 0 or max(query.start, query.limit) >= 2**62:
            raise invalid_param("from and limit must not be negative.")
        reports, total = await self._rooms.reports(
            kind, query.user_id, query.room_id, query.start, query.limit, query.dir == "b"
        )
        end = query.start + len(reports)
        return reports, total, end if reports and end < total else None

    async def event_report(self, report_id: str) -> dict[str, Any]:
        found = await self._rooms.report_details(_number(report_id))
        event = orjson.Fragment(found.event) if found.event is not None else None
        return _any_report(found.report) | _event_report(found.report) | {"event_json": event}

    async def delete_report(self, report_id: str) -> None:
        await self._rooms.delete_report(_number(report_id))


def _number(report_id: str) -> int:
    if not (report_id.isascii() and report_id.isdigit() and len(report_id) < 19):
        raise not_found("There is no such report.")
    return int(report_id)


def _event_report(report: Report) -> dict[str, Any]:
    return {
        "id": report.report_id,
        "received_ts": report.received_ts,
        "room_id": report.room_id,
        "event_id": report.event_id,
        "user_id": report.reporter,
        "reason": report.reason,
        "score": report.score,
        "sender": report.sender,
        "name": report.name,
        "canonical_alias": report.canonical_alias,
    }


def _any_report(report: Report) -> dict[str, Any]:
    kind = "event" if report.event_id else "user" if report.user_id else "room"
    return {
        "id": report.report_id,
        "kind": kind,
        "received_ts": report.received_ts,
        "reporter": report.reporter,
        "reason": report.reason,
        "room_id": report.room_id,
        "event_id": report.event_id,
        "reported_user_id": report.user_id or report.sender,
    }
