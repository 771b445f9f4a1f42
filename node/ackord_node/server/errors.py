"""Errors as HTTP answers: every one, aiohttp's own too, has the same body.

``{"error": {"code": name, "message", "detail", "outcome_unknown", "retriable", "current": row | null}}``, in
JSON or msgpack as the caller asked for, with the HTTP status of the error's class (rule R17: the body says
whether a write may have happened).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.http import HttpProcessingError

from ackord.errors import Error, InvalidRequest, OutcomeUnknown, Unavailable
from ackord.wire.messages import error_to_wire
from ackord_node.server.bodies import BodyRefused, answer

log = logging.getLogger("ackord.server")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _SendersFault(logging.Filter):
    """What is no HTTP, or a body that breaks off, is no bug of this node: one line, without a traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, HttpProcessingError | web.RequestPayloadError | ConnectionError):
            record.msg = f"{record.getMessage()}: {type(error).__name__}: {error}"[:500]
            record.args = ()
            record.exc_info = record.exc_text = None
            record.levelno, record.levelname = logging.INFO, "INFO"
        return True


def http_logger() -> logging.Logger:
    """What aiohttp's own part of the server logs to."""
    logger = logging.getLogger("ackord.http")
    if not any(isinstance(known, _SendersFault) for known in logger.filters):
        logger.addFilter(_SendersFault())
    return logger


class Answered(Exception):
    """An error that came with the row a condition was judged on, as the protocol's row (or None)."""

    def __init__(self, error: Error, current: dict[str, Any] | None) -> None:
        super().__init__(error.message)
        self.error = error
        self.current = current


def error_response(
    request: web.Request, error: Error, status: int | None = None, current: dict[str, Any] | None = None
) -> web.Response:
    _, message, detail, _ = error_to_wire(error)
    body = {
        "code": error.name,
        "message": message,
        "detail": detail,
        "outcome_unknown": error.outcome_unknown,
        "retriable": error.retriable,
        "current": current,
    }
    response = answer(request, {"error": body}, status or error.http_status)
    retry_after_ms = error.detail.get("retry_after_ms")
    if isinstance(retry_after_ms, int):
        response.headers["Retry-After"] = str(max(1, -(-retry_after_ms // 1000)))  # HTTP counts seconds
    return response


def _http_error(request: web.Request, error: web.HTTPException) -> web.Response:
    """aiohttp's own refusals: no such path, wrong method, body too large."""
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = sorted(error.allowed_methods)
        known: Error = InvalidRequest(
            f"{request.path} does not take {request.method}, only {', '.join(allowed)}",
            field="method",
            value=request.method,
            limit=allowed,
        )
    elif isinstance(error, web.HTTPNotFound):
        known = InvalidRequest(
            f"there is no {request.path[:200]} here; see /v1/tables", field="path", value=request.path[:200]
        )
    else:
        known = InvalidRequest(error.reason or "the request was refused", field="request")
    response = error_response(request, known, error.status)
    if "Allow" in error.headers:
        response.headers["Allow"] = error.headers["Allow"]
    return response


@web.middleware
async def errors_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turns what a handler raised into an answer; only a bug becomes a 500, with its traceback in the log."""
    try:
        return await handler(request)
    except Answered as answered:
        return error_response(request, answered.error, current=answered.current)
    except BodyRefused as refused:
        return error_response(request, refused.error, refused.status)
    except Error as error:
        return error_response(request, error)
    except web.HTTPException as error:
        return _http_error(request, error)
    except web.RequestPayloadError as error:
        return error_response(
            request, InvalidRequest(f"the body is broken: {str(error)[:200]}", field="body")
        )
    except ConnectionError:  # nobody hears this; aiohttp needs an answer to end with
        log.info("%s went away before %s %s was answered", request.remote, request.method, request.path)
        return error_response(request, Unavailable("the client went away"))
    except Exception:
        log.exception("a bug while answering %s %s", request.method, request.path)
        text = "internal error; the node's log has the details"
        if request.method in ("GET", "HEAD"):
            return error_response(request, Error(text))
        # a bug says nothing about how far the write had come
        return error_response(request, OutcomeUnknown(text), web.HTTPInternalServerError.status_code)
