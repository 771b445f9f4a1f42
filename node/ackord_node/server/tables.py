"""Tables over HTTP: list, create, describe, drop. Any node takes them; they need the coordination service."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from ackord.errors import InvalidRequest
from ackord.wire.json_forms import from_json
from ackord.wire.keys import KeySchema
from ackord.wire.messages import check_table_name, split_starts
from ackord.wire.options import TableOptions
from ackord_node.runtime.service import Service
from ackord_node.server.bodies import answer, check_fields, check_query, read_body

_CREATE_FIELDS = {"name": True, "key": True, "split_at": False, "options": False}


class TableHandlers:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def list(self, request: web.Request) -> web.StreamResponse:
        check_query(request, ())
        tables = self._service.routing()["tables"]
        return answer(request, {"tables": [{"name": name, **tables[name]} for name in sorted(tables)]})

    async def create(self, request: web.Request) -> web.StreamResponse:
        check_query(request, ())
        limits = self._service.limits
        body = await read_body(request, limits)
        fields = check_fields(body.value, _CREATE_FIELDS, "body")
        name = check_table_name(fields["name"], limits)
        key = KeySchema.from_wire(fields["key"], limits.key_column_bytes)
        split_at: Any = fields.get("split_at")
        if split_at is None:
            split_at = []
        elif body.is_json:
            split_at = from_json(split_at)
        split_starts(key, split_at, limits)
        options = TableOptions.from_wire(fields.get("options"))
        table = await self._service.create_table(name, key.to_wire(), list(split_at), options)
        return answer(request, table.to_wire(), 201)

    async def describe(self, request: web.Request) -> web.StreamResponse:
        check_query(request, ())
        return answer(request, (await self._service.table(request.match_info["table"])).to_wire())

    async def drop(self, request: web.Request) -> web.StreamResponse:
        check_query(request, ())
        if request.body_exists and await request.read():
            raise InvalidRequest("DELETE takes no body", field="body")
        name = request.match_info["table"]
        await self._service.drop_table(name)
        return answer(request, {"dropped": name})
