"""Request and response bodies: JSON by default, msgpack by content type (or by ``Accept`` for answers).

Values are plain Python values on the inside, with bytes as bytes and versions as ints; their JSON forms
(``$bytes``, ``$float``, versions as decimal strings) exist only here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from ackord.errors import InvalidRequest
from ackord.wire.frames import packb, unpackb
from ackord.wire.json_forms import check_depth, dump_json, parse_json, to_json
from ackord.wire.limits import Limits
from ackord.wire.messages import MSGPACK_CONTENT_TYPE

JSON_CONTENT_TYPE = "application/json"


@dataclass(frozen=True, slots=True)
class Body:
    """What a client sent. JSON values still have their JSON forms: ``is_json`` says so."""

    value: Any
    raw: bytes
    is_json: bool


class BodyRefused(Exception):
    """A body that is not read at all; carries the HTTP status."""

    def __init__(self, status: int, error: InvalidRequest) -> None:
        super().__init__(error.message)
        self.status = status
        self.error = error


def wants_msgpack(request: web.Request) -> bool:
    """``Accept`` decides; without one (or with ``*/*``) the answer speaks the request's own language."""
    accepted = [part.split(";")[0].strip().lower() for part in request.headers.get("Accept", "").split(",")]
    if MSGPACK_CONTENT_TYPE in accepted:
        return True
    if JSON_CONTENT_TYPE in accepted:
        return False
    return request.content_type == MSGPACK_CONTENT_TYPE


def answer(request: web.Request, value: Any, status: int = 200) -> web.Response:
    if wants_msgpack(request):
        return web.Response(body=packb(value), status=status, content_type=MSGPACK_CONTENT_TYPE)
    text = dump_json(_jsonable(value)) + "\n"
    return web.Response(
        body=text.encode(errors="backslashreplace"),
        status=status,
        content_type=JSON_CONTENT_TYPE,
        charset="utf-8",
    )


async def read_body(request: web.Request, limits: Limits) -> Body:
    """The whole body, decoded; BodyRefused (413, 415) before it is read, InvalidRequest if it is garbled."""
    kind = request.content_type
    if kind not in (JSON_CONTENT_TYPE, MSGPACK_CONTENT_TYPE) or "Content-Encoding" in request.headers:
        sent = request.headers.get("Content-Type", "nothing")
        encoding = request.headers.get("Content-Encoding")
        raise BodyRefused(
            415,
            InvalidRequest(
                f"the content type must be {JSON_CONTENT_TYPE} or {MSGPACK_CONTENT_TYPE}, without content"
                f" encoding; this is {sent[:100]}" + (f" with {encoding[:40]}" if encoding else ""),
                field="Content-Type",
                value=sent[:100],
                limit=[JSON_CONTENT_TYPE, MSGPACK_CONTENT_TYPE],
            ),
        )
    raw = await _read(request, limits.body_bytes)
    if kind == JSON_CONTENT_TYPE:
        return Body(parse_json(raw), raw, True)
    try:
        value = unpackb(raw)
    except ValueError as error:
        raise InvalidRequest(f"the body is not valid msgpack: {error}", field="body") from None
    check_depth(value)
    return Body(value, raw, False)


def check_fields(value: Any, known: Mapping[str, bool], what: str) -> dict[str, Any]:
    """A map with these fields only; ``known`` says of each whether it is required. InvalidRequest names what
    is unknown or missing."""
    if not isinstance(value, dict):
        raise InvalidRequest(f"{what} must be a map, not {type(value).__name__}", field=what)
    for name in value:
        if name not in known:
            raise InvalidRequest(
                f"{what}: unknown field {str(name)[:80]!r}; known are {', '.join(known)}",
                field=str(name)[:80],
                limit=list(known),
            )
    for name, is_required in known.items():
        if is_required and name not in value:
            raise InvalidRequest(f"{what}: the field {name!r} is missing", field=name)
    return value


def check_query(request: web.Request, known: tuple[str, ...]) -> dict[str, str]:
    """The query as a dict; InvalidRequest for unknown names and names given twice."""
    query = dict(request.query)
    for name in query:
        if name not in known:
            raise InvalidRequest(
                f"unknown query parameter {name[:80]!r}; known are {', '.join(known) or 'none'}",
                field=name[:80],
                limit=list(known),
            )
        if len(request.query.getall(name)) > 1:
            raise InvalidRequest(f"the query parameter {name!r} is given twice", field=name)
    return query


async def _read(request: web.Request, bytes_max: int) -> bytes:
    if (request.content_length or 0) > bytes_max:
        raise _too_large(bytes_max, request.content_length)
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise _too_large(bytes_max, None) from None


def _too_large(bytes_max: int, size: int | None) -> BodyRefused:
    text = f"the body of {size} bytes" if size else "the body"
    error = InvalidRequest(
        f"{text} is over the limit body_bytes of {bytes_max} bytes", field="body", value=size, limit=bytes_max
    )
    return BodyRefused(413, error)


def _jsonable(value: Any) -> Any:
    """Values, maps and lists of an answer. Rows were put into JSON form before; versions are text by now."""
    if type(value) is dict:
        return {name: _jsonable(item) for name, item in value.items()}
    if type(value) is list or type(value) is tuple:
        return [_jsonable(item) for item in value]
    return to_json(value)
