"""What a change brings with it that does not fit into its transaction.

A duty is stored with the change it follows from and deleted when it is done.
So it is done even if the server dies in between, perhaps twice: whoever
carries out a duty sees to it that a second time does no harm.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..database.engines import Database, Unavailable
from ..database.statements import Transaction
from ..matrix.errors import MatrixError
from .ownership import Ownership
from .tables import duties as table
from .tables.duties import DutyRow

log = Logger()

GUESTS, TOMBSTONE, PURGE, RECHECK = "guests", "tombstone", "purge", "recheck"

RETRY_SECONDS = 60.0
BATCH = 50

Carrier = Callable[[DutyRow], Awaitable[None]]


class Duties:
    """Carries out duties in the order in which they arose; ``carriers`` says who does which kind.

    Those of a room are the business of the process that has the room.
    """

    def __init__(self, database: Database, time: IReactorTime, ownership: Ownership) -> None:
        self._database = database
        self._ownership = ownership
        self._time = time
        self.carriers: dict[str, Carrier] = {}
        self._working = False
        self._woken = False
        self._again: IDelayedCall | None = None
        self._stopped = False

    async def note(self, txn: Transaction, kind: str, room_nid: int, subject: str = "") -> None:
        """Store a duty with the change that it follows from."""
        await table.insert_duties(txn, [(kind, room_nid, subject)])
        txn.after_commit(self.wake)

    def wake(self) -> None:
        """There may be something to do."""
        self._woken = True
        if not self._working and not self._stopped:
            self._working = True
            Deferred.fromCoroutine(self._work()).addErrback(self._defect)

    def stop(self) -> None:
        """Begin nothing more; what is left is done after the next start."""
        self._stopped = True
        if self._again is not None and self._again.active():
            self._again.cancel()

    def _defect(self, failure: Failure) -> None:
        if failure.check(Unavailable) is not None:
            log.warn("duties of rooms wait: {why}", why=failure.getErrorMessage())
        else:
            log.failure("duties of rooms wait", failure)
        self._working = False
        self._later()

    def _later(self) -> None:
        if not self._stopped and (self._again is None or not self._again.active()):
            self._again = self._time.callLater(RETRY_SECONDS, self.wake)

    async def _work(self) -> None:
        while self._woken and not self._stopped:
            self._woken = False
            done = 0
            while rows := await self._database.read(table.duties_after, done, BATCH):
                for row in rows:
                    done = row.duty_id
                    if self._stopped:
                        return
                    if not self._ownership.holds(row.room_id):
                        continue
                    if await self._carry_out(row):
                        await self._database.write(table.delete_duty, row.duty_id)
                    else:
                        self._later()
        self._working = False

    async def _carry_out(self, row: DutyRow) -> bool:
        """Whether the duty is done, or will never be."""
        try:
            await self.carriers[row.kind](row)
        except MatrixError as error:
            if error.status < 500:
                log.info("a duty of a room is void: {kind}: {error}", kind=row.kind, error=error)
                return True
            log.warn("a duty of a room has to wait: {kind}: {error}", kind=row.kind, error=error)
            return False
        except Exception:
            log.failure("a duty of a room cannot be done: {kind} of {room}", kind=row.kind, room=row.room_nid)
            return False
        return True
