"""Rows over plain HTTP: ``/v1/tables/T/rows[/K1/K2...]`` for curl and for programs without the SDK.

A node that cannot serve a request forwards it once to the tablet's coordinator. A scan walks the tablets in
order and answers with what this node could read; ``next`` resumes it, on any node.
"""

from __future__ import annotations

import secrets
from typing import Any

from aiohttp import web

from ackord.errors import Error, InvalidRequest
from ackord.wire.json_forms import columns_from_json
from ackord.wire.messages import (
    KIND_DELETE,
    KIND_PUT,
    KIND_UPDATE,
    OP_GET,
    OP_SCAN,
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
    SCAN_PARAMETERS,
    ScanRange,
    condition_of_query,
    identity_of_key,
    key_of_path,
    scan_of_query,
)

HTTP_SEQ = 1  # an idempotency key is a client of one write
HTTP_FLOOR = 0
HTTP_ATTEMPT = 2  # the node cannot know whether a key was sent before; so negative results are recorded
_UPDATE_FIELDS = {"set": False, "delete": False, "increment": False}


class RowHandlers:
    """The endpoints of single rows and of scans."""

    def __init__(self, service: Service, forwarder: Forwarder, metrics: Metrics) -> None:
        self._service = service
        self._forwarder = forwarder
        self._metrics = metrics

    async def get(self, request: web.Request) -> web.StreamResponse:
        check_query(request, ())
        table = await self._service.table(request.match_info["table"])
        key = key_of_path(request.rel_url.raw_path, table.key)
        tablet = table.tablet_of(key).id
        as_json = not wants_msgpack(request)
        try:
            row = await self._ask("get", [OP_GET, tablet, [key]], table, as_json)
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
        update = encode_update(
            changes, fields.get("delete", []), fields.get("increment", {}), self._service.limits
        )
        return await self._write(request, KIND_UPDATE, update, body)

    async def delete(self, request: web.Request) -> web.StreamResponse:
        if request.body_exists and await request.read():
            raise InvalidRequest("DELETE takes no body", field="body")
        return await self._write(request, KIND_DELETE, None, None)

    async def _write(
        self, request: web.Request, kind: int, encoded: bytes | None, body: Body | None
    ) -> web.StreamResponse:
        service = self._service
        cond, cond_value = condition_of_query(check_query(request, CONDITION_PARAMETERS))
        table = await service.table(request.match_info["table"])
        key = key_of_path(request.rel_url.raw_path, table.key)
        given = request.headers.get(IDEMPOTENCY_HEADER)
        idempotency_key = self._fresh_key() if given is None else given
        client_id, registered = identity_of_key(idempotency_key, service.limits)
        attempt = 1 if given is None else HTTP_ATTEMPT
        op = [HTTP_SEQ, kind, key, encoded, cond, cond_value, attempt]
        group = [OP_WRITE, table.tablet_of(key).id, client_id, registered, HTTP_FLOOR, [op]]
        try:
            version = await self._ask("write", group, table, not wants_msgpack(request))
        except NotServedHere as elsewhere:
            raw = None if body is None else body.raw
            return await self._forward(request, elsewhere, raw, {IDEMPOTENCY_HEADER: idempotency_key})
        return answer(request, {"version": version if wants_msgpack(request) else str(version)})

    async def scan(self, request: web.Request) -> web.StreamResponse:
        service = self._service
        query = check_query(request, SCAN_PARAMETERS)
        table = await service.table(request.match_info["table"])
        left, rows_max = scan_of_query(query, table.key, service.limits)
        rest: ScanRange | None = None if left.is_empty() else left
        as_json = not wants_msgpack(request)
        rows: list[dict[str, Any]] = []
        bytes_left = service.limits.scan_page_bytes
        while rest is not None and len(rows) < rows_max and bytes_left > 0:
            tablet = _tablet_of_scan(table, rest)
            start, end = _clipped(tablet, rest)
            group = [OP_SCAN, tablet.id, start, end, rest.reverse, rows_max - len(rows), bytes_left]
            try:
                found, exhausted = await self._ask("scan", group, table, as_json)
            except NotServedHere as elsewhere:
                if rows or (rest is not left and is_forwarded(request)):
                    break  # the next page begins in this tablet, and is forwarded whole
                return await self._forward(request, elsewhere, None, {}, query | {"after": rest.token()})
            rows.extend(row_answer(table.key, key, row, as_json) for key, row in found)
            bytes_left -= sum(len(key) + len(row) for key, row in found)
            if exhausted:
                rest = rest.after_tablet(tablet.start, tablet.end)
            elif found:
                rest = rest.after_row(found[-1][0])
            else:
                break
        return answer(request, {"rows": rows, "next": None if rest is None else rest.token()})

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
