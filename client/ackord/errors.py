"""The errors of Ackord, few on purpose: each says what happened and what the caller can do.

Two facts decide what a caller may do, so every class carries them (DESIGN rule R17):

``retriable``
    calling again can succeed without anything else changing.
``outcome_unknown``
    the write may have happened. ``False`` means it certainly has not.

The numeric ``code`` is what travels on the wire and stands in HTTP bodies; it never changes meaning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from ackord.row import Row


class Error(Exception):
    """Base of every error that Ackord raises.

    ``detail`` holds what a program may want to read (field, value, limit, tablet, ...).
    """

    code: ClassVar[int] = 1
    name: ClassVar[str] = "error"
    http_status: ClassVar[int] = 500
    retriable: ClassVar[bool] = False
    outcome_unknown: ClassVar[bool] = False

    def __init__(self, message: str, **detail: Any) -> None:
        super().__init__(message)
        self.message = message
        self.detail: dict[str, Any] = detail

    def __reduce__(self) -> Any:
        return (_rebuild, (type(self), self.message, self.detail, getattr(self, "current", None)))


class InvalidRequest(Error):
    """The request can never succeed as it is: the message names the field, the value and the limit.

    Nothing was done.
    """

    code = 2
    name = "invalid_request"
    http_status = 400


class TableNotFound(Error):
    """No table has this name (or it was dropped). Nothing was done."""

    code = 3
    name = "table_not_found"
    http_status = 404


class Conflict(Error):
    """A condition (``if_version``, ``if_absent``, ``if_exists``) did not hold. Nothing was done.

    ``current`` is the row as it was when the condition was judged, ``None`` if there was none.
    """

    code = 4
    name = "conflict"
    http_status = 409

    def __init__(self, message: str, current: Row | None = None, **detail: Any) -> None:
        super().__init__(message, **detail)
        self.current = current


class Unavailable(Error):
    """The cluster could not take the request now. Certainly not done; retrying is safe.

    ``detail["retry_after_ms"]``, where present, is a hint in milliseconds.
    """

    code = 5
    name = "unavailable"
    http_status = 503
    retriable = True


class OutcomeUnknown(Error):
    """A write was sent and its answer was not received: it may or may not have happened.

    A retry under the *same* request id is safe (the SDK does that until its deadline); a new call is
    a new write.
    """

    code = 6
    name = "outcome_unknown"
    http_status = 504
    outcome_unknown = True


class Unauthorized(Error):
    """The caller may not do this, or speaks to another cluster. Nothing was done."""

    code = 7
    name = "unauthorized"
    http_status = 401


class TableExists(InvalidRequest):
    """``create_table`` met a table of that name with another definition. Nothing was done."""

    code = 8
    name = "table_exists"
    http_status = 409


class VersionCollected(Error):
    """What a row was at this version is no longer kept (``keep_versions``, ``keep_for``): a read ``as_of`` it, or a
    merge from it, cannot be done any more. Nothing was done."""

    code = 9
    name = "version_collected"
    http_status = 410


_CLASSES: tuple[type[Error], ...] = (
    Error,
    InvalidRequest,
    TableNotFound,
    Conflict,
    Unavailable,
    OutcomeUnknown,
    Unauthorized,
    TableExists,
    VersionCollected,
)
BY_CODE: dict[int, type[Error]] = {cls.code: cls for cls in _CLASSES}


def from_code(code: int, message: str, detail: dict[str, Any] | None = None) -> Error:
    """The error for a wire code; a code of a newer version becomes a plain ``Error``."""
    return BY_CODE.get(code, Error)(message, **(detail or {}))


def _rebuild(cls: type[Error], message: str, detail: dict[str, Any], current: Any) -> Error:
    error = cls(message, **detail)
    if isinstance(error, Conflict):
        error.current = current
    return error
