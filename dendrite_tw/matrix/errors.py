"""The vocabulary of errors: what went wrong, as a client or another server is told.

Every refusal that leaves this server is a `MatrixError`: a status, an
``errcode`` of the specification and a sentence that helps the reader
(Client-Server API, "Standard error response").  One place, `web.resource`,
turns it into bytes.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What `msgspec` raises for bytes of a stranger that are not what they should be, or nest without end."""


class MatrixError(Exception):
    """A refusal with the status and ``errcode`` that the specification gives it.

    ``extra`` holds further top-level keys of the JSON body (``retry_after_ms``,
    ``soft_logout``, ``room_version`` …).
    """

    kinds: ClassVar[dict[str, type[MatrixError]]] = {}
    """All narrower errors by their names, so that one can be made again in another process."""

    def __init_subclass__(cls) -> None:
        MatrixError.kinds[cls.__name__] = cls

    def __init__(self, status: int, errcode: str, error: str, **extra: Any) -> None:
        super().__init__(error)
        self.status = status
        self.errcode = errcode
        self.error = error
        self.extra = extra

    def body(self) -> dict[str, Any]:
        """The JSON object that the specification describes for an error."""
        return {"errcode": self.errcode, "error": self.error, **self.extra}

    def __repr__(self) -> str:
        return f"MatrixError({self.status}, {self.errcode!r}, {self.error!r})"


def not_json(error: str = "The request body is not valid JSON.") -> MatrixError:
    return MatrixError(400, "M_NOT_JSON", error)


def bad_json(error: str) -> MatrixError:
    return MatrixError(400, "M_BAD_JSON", error)


def invalid_param(error: str) -> MatrixError:
    return MatrixError(400, "M_INVALID_PARAM", error)


def missing_param(error: str) -> MatrixError:
    return MatrixError(400, "M_MISSING_PARAM", error)


def forbidden(error: str) -> MatrixError:
    return MatrixError(403, "M_FORBIDDEN", error)


def not_found(error: str) -> MatrixError:
    return MatrixError(404, "M_NOT_FOUND", error)


def too_large(error: str) -> MatrixError:
    return MatrixError(413, "M_TOO_LARGE", error)


def limit_exceeded(retry_after_ms: int) -> MatrixError:
    return MatrixError(
        429,
        "M_LIMIT_EXCEEDED",
        "Too many requests; wait before you try again.",
        retry_after_ms=retry_after_ms,
    )


def unrecognized(status: int = 404, error: str = "There is no such endpoint here.") -> MatrixError:
    return MatrixError(status, "M_UNRECOGNIZED", error)
