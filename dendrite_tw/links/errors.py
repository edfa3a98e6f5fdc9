"""What can go wrong with a call beside what the one who answers says."""

from __future__ import annotations

from ..database.engines import Unavailable
from ..matrix.errors import MatrixError


class Unanswered(Unavailable):
    """No process answered; of an action it may not be known whether it was carried out."""

    def __init__(self, reason: str) -> None:
        MatrixError.__init__(
            self,
            503,
            "M_UNKNOWN",
            f"A part of this server did not answer: {reason}. Try again later.",
            retry_after_ms=2000,
        )


class CallFailed(Exception):
    """Whoever answered failed in an unforeseen way, and has it in its log.

    No `MatrixError`: as with a direct call, nobody may take it for a refusal.
    """


class NotTaken(Exception):
    """Certainly nobody has carried the call out, nor will."""


class Lost(Exception):
    """There will be no answer; whether the call was carried out is not known."""
