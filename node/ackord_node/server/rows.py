"""Rows over plain HTTP: ``/v1/tables/T/rows[/K1/K2...]`` for curl and for programs without the SDK.

A node that cannot serve a request forwards it once to the tablet's coordinator. A scan walks the tablets in
order and answers with what this node could read; ``next`` resumes it, on any node.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

from aiohttp import web

from ackord.errors import Error, InvalidRequest
from ackord.wire.json_forms import columns_from_json, to_json, version_from_json
from ackord.wire.messages import (
    COND_NONE,
    KIND_DELETE,
    KIND_PUT,
    KIND_PUT_AUTO,
    KIND_UPDATE,
    OP_CELLS,
    OP_COUNT,
    OP_GET,
    OP_HISTORY,
    OP_SCAN,
    OP_SCAN_AS_OF,
    OP_SELECT,
    OP_WRITE,
    VERSION_COUNTER_BITS,
    TableDefinition,
    TabletRange,
)
from ackord.wire.values import encode_columns, encode_update
from ackord_node.runtime.service import Service
from ackord_node.server.asking import NotServedHere, ask, row_answer
from ackord_node.server.bodies import Body, answer, check_fields, check_query, read_body, wants_msgpack
from ackord_node.server.errors import Answered
from ackord_node.server.forward import IDEMPOTENCY_HEADER, Forwarder, is_forwarded
from ackord_node.server.metrics import Metrics
from ackord_node.server.row_requests import (
    CONDITION_PARAMETERS,
    RANGE_PARAMETERS,
    SCAN_PARAMETERS,
    SELECT_PARAMETERS,
    ScanRange,
    condition_of_query,
    identity_of_key,
    key_of_path,
    limit_of_query,
    new_key_of_path,
    range_of_query,
    returning_of_query,
    selection_of_query,
    where_of_query,
)
from ackord_node.server.version_queries import (
    EXTRA_PARAMETERS,
    VERSION_PARAMETERS,
    cells_answer,
    history_answer,
    version_group,
    with_extras,
)

HTTP_SEQ = 1  # an idempotency key is a client of one write
HTTP_FLOOR = 0
HTTP_ATTEMPT = 2  # the node cannot know whether a key was sent before; so negative results are recorded
COUNT_STEPS = 100  # stretches of a range that one request counts before it answers with a token
_UPDATE_FIELDS = dict.fromkeys(("set", "delete", "increment", "append", "delete_cells"), False)


class RowHandlers:
    """The endpoints of single rows and of scans."""

    def __init__(self, service: Service, forwarder: Forwarder, metrics: Metrics) -> None:
        self._service = service
        self._forwarder = forwarder
        self._metrics = metrics

    async def get(self, request: web.Request) -> web.StreamResponse:
        query = check_query(request, (*SELECT_PARAMETERS, *VERSION_PARAMETERS))
        table = await self._service.table(request.match_info["table"])
        key = key_of_path(request.rel_url.raw_path, table.key)
        tablet = table.tablet_of(key).id
        as_json = not wants_msgpack(request)
        selection = selection_of_query(query, self._service.limits)
        group = [OP_SELECT if selection else OP_GET, tablet, [key], *selection]
        group = version_group(query, tablet, key, self._service.limits) or group
        try:
            row = await self._ask("history" if group[0] == OP_HISTORY else "get", group, table, as_json)
        except NotServedHere as elsewhere:
            return await self._forward(request, elsewhere, None, {})
        if row is None:
            missing = {
                "code": "row_not_found",
                "message": f"table {table.name!r} has no row with this key",
                "detail": {},
                "outcome_unknown": False,
                "retriable": False,
                "current": None,
            }
            return answer(request, {"error": missing}, 404)
        if group[0] == OP_HISTORY:
            return answer(request, history_answer(table.key, key, row, as_json))
        if group[0] == OP_CELLS:
            return answer(request, cells_answer(table.key, key, row, as_json))
        return answer(request, row_answer(table.key, key, row, as_json))

    async def put(self, request: web.Request) -> web.StreamResponse:
        body = await read_body(request, self._service.limits)
        columns = columns_from_json(body.value) if body.is_json else body.value
        return await self._write(request, KIND_PUT, encode_columns(columns, self._service.limits), body)

    async def patch(self, request: web.Request) -> web.StreamResponse:
        body = await read_body(request, self._service.limits)
        fields = check_fields(body.value, _UPDATE_FIELDS, "body")
        changes = fields.get("set", {})
        if body.is_json:
            changes = columns_from_json(changes, "set")
        appends = fields.get("append", {})
        if body.is_json:
            appends = columns_from_json(appends, "append")
        update = encode_update(
            changes, fields.get("delete", []), fields.get("increment", {}), self._service.limits, appends
        )
        return await self._write(request, KIND_UPDATE, update, body, fields.get("delete_cells"))

    async def delete(self, request: web.Request) -> web.StreamResponse:
        if request.body_exists and await request.read():
            raise InvalidRequest("DELETE takes no body", field="body")
        return await self._write(request, KIND_DELETE, None, None)

    async def _write(
        self,
        request: web.Request,
        kind: int,
        encoded: bytes | None,
        body: Body | None,
        delete_cells: Any = None,
    ) -> web.StreamResponse:
        service = self._service
        query = check_query(request, (*CONDITION_PARAMETERS, *EXTRA_PARAMETERS))
        cond, cond_value = condition_of_query(query, service.limits)
        encoded = with_extras(query, encoded, delete_cells)
        table = await service.table(request.match_info["table"])
        key, is_auto = new_key_of_path(request.rel_url.raw_path, table.key)
        if is_auto:
            if kind != KIND_PUT or cond != COND_NONE:
                raise InvalidRequest("auto makes a new row: only PUT without a condition can", field="key")
            kind = KIND_PUT_AUTO
        change = [kind, key, encoded, cond, cond_value]
        as_json = not wants_msgpack(request)
        return await self.write(
            request,
            table,
            change,
            returning_of_query(query),
            None if body is None else body.raw,
            lambda result: _written(table, key, is_auto, result, as_json),
        )

    async def write(
        self,
        request: web.Request,
        table: TableDefinition,
        change: list[Any],
        returning: list[int],
        raw: bytes | None,
        answered: Callable[[Any], dict[str, Any]],
    ) -> web.StreamResponse:
        """Does ``[kind, key, body, cond, cond_value]`` under the request's idempotency key, here or, with the body
        ``raw``, at the coordinator."""
        given = request.headers.get(IDEMPOTENCY_HEADER)
        idempotency_key = self._fresh_key() if given is None else given
        client_id, registered = identity_of_key(idempotency_key, self._service.limits)
        op = [HTTP_SEQ, *change, 1 if given is None else HTTP_ATTEMPT, *returning]
        group = [OP_WRITE, table.tablet_of(change[1]).id, client_id, registered, HTTP_FLOOR, [op]]
        try:
            result = await self._ask("write", group, table, not wants_msgpack(request))
        except NotServedHere as elsewhere:
            return await self._forward(request, elsewhere, raw, {IDEMPOTENCY_HEADER: idempotency_key})
        return answer(request, answered(result))

    async def scan(self, request: web.Request) -> web.StreamResponse:
        limits = self._service.limits
        query = check_query(request, (*SCAN_PARAMETERS, "as_of"))
        past = [version_from_json(query["as_of"], "as_of")] if "as_of" in query else []
        table = await self._service.table(request.match_info["table"])
        left = range_of_query(query, table.key, table.id)
        rows_max, selection = limit_of_query(query, limits), selection_of_query(query, limits)
        rest: ScanRange | None = None if left.is_empty() else left
        as_json = not wants_msgpack(request)
        rows: list[dict[str, Any]] = []
        bytes_left, steps = limits.scan_page_bytes, 0
        while rest is not None and len(rows) < rows_max and bytes_left > 0 and steps < COUNT_STEPS:
            tablet = _tablet_of_scan(table, rest)
            bounds = [*_clipped(tablet, rest), rest.reverse, rows_max - len(rows), bytes_left]
            try:
                op = OP_SCAN_AS_OF if past else OP_SCAN
                found, follows = await self._ask(
                    "scan", [op, tablet.id, *bounds, *past, *selection], table, as_json
                )
            except NotServedHere as elsewhere:
                if steps and (rows or is_forwarded(request)):
                    break  # the next page begins in this tablet, and is forwarded whole
                return await self._forward(
                    request, elsewhere, None, {}, query | {"after": rest.token(table.id)}
                )
            pairs = list(zip(found[::2], found[1::2], strict=True))
            rows.extend(row_answer(table.key, key, row, as_json) for key, row in pairs)
            bytes_left -= sum(map(len, found))
            rest = rest.after_tablet(tablet.start, tablet.end) if follows is None else rest.after(follows)
            steps += 1
        return answer(request, {"rows": rows, "next": None if rest is None else rest.token(table.id)})

    async def count(self, request: web.Request) -> web.StreamResponse:
        """``{"count": n, "next": token or null}``: the sum over all pages is the count of the range."""
        query = check_query(request, (*RANGE_PARAMETERS, "as_of"))
        past = [version_from_json(query["as_of"], "as_of")] if "as_of" in query else []
        table = await self._service.table(request.match_info["table"])
        left = range_of_query(query, table.key, table.id)
        where = where_of_query(query, self._service.limits)
        rest: ScanRange | None = None if left.is_empty() else left
        total = steps = 0
        while rest is not None and steps < COUNT_STEPS:
            tablet = _tablet_of_scan(table, rest)
            group = [OP_COUNT, tablet.id, *_clipped(tablet, rest), where, *past]
            try:
                found, follows = await self._ask("count", group, table, not wants_msgpack(request))
            except NotServedHere as elsewhere:
                if steps:
                    break
                return await self._forward(
                    request, elsewhere, None, {}, query | {"after": rest.token(table.id)}
                )
            total += found
            rest = rest.after_tablet(tablet.start, tablet.end) if follows is None else rest.after(follows)
            steps += 1
        return answer(request, {"count": total, "next": None if rest is None else rest.token(table.id)})

    # ------------------------------------------------------------------ helpers

    async def _ask(self, name: str, group: list[Any], table: TableDefinition, as_json: bool) -> Any:
        outcome = "error"
        try:
            result = await ask(self._service, group, table, as_json)
            outcome = "ok"
            return result
        except NotServedHere:
            outcome = "elsewhere"
            raise
        except Answered as answered:
            outcome = answered.error.name
            raise
        except Error as error:
            outcome = error.name
            raise
        finally:
            self._metrics.operations(name, outcome, 1)

    async def _forward(
        self,
        request: web.Request,
        elsewhere: NotServedHere,
        body: bytes | None,
        headers: dict[str, str],
        query: dict[str, str] | None = None,
    ) -> web.StreamResponse:
        node = elsewhere.coordinator
        address = None if node is None else self._service.address_of(node)
        if address is None or is_forwarded(request):
            raise elsewhere.error
        return await self._forwarder.forward(request, address, body, headers, query)

    def _fresh_key(self) -> str:
        """For a write without a key: so that a forwarded one cannot be executed twice either."""
        now_ms = self._service.now_version() >> VERSION_COUNTER_BITS
        return f"{now_ms:013d}-{secrets.token_hex(16)}"


def _tablet_of_scan(table: TableDefinition, rest: ScanRange) -> TabletRange:
    """The tablet in which the rest of a scan begins."""
    if not rest.reverse:
        return table.tablet_of(rest.start)
    if rest.end is None:
        return table.tablets[-1]
    below = [tablet for tablet in table.tablets if tablet.start < rest.end]
    return below[-1]


def _clipped(tablet: TabletRange, rest: ScanRange) -> tuple[bytes, bytes | None]:
    ends = [end for end in (tablet.end, rest.end) if end is not None]
    return max(tablet.start, rest.start), min(ends) if ends else None


def _written(table: TableDefinition, key: bytes, is_auto: bool, result: Any, as_json: bool) -> dict[str, Any]:
    """The answer to a write: its version, the key if the table numbered it, the row if one was asked for."""
    version, *row = result if isinstance(result, list) else [result]
    answered: dict[str, Any] = {"version": str(version) if as_json else version}
    if is_auto:
        key = table.key.complete_auto(key, version)
        answered["key"] = [to_json(value) if as_json else value for value in table.key.decode(key)]
    if row:
        answered["row"] = None if row[0] is None else row_answer(table.key, key, row[0], as_json)
    return answered
