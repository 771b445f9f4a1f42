"""Tables over HTTP: list, create, describe, drop. Any node takes them; they need the coordination service.

A create may be bound to a version of the table's record and a drop to the table's id, so that a request that
arrives late does not touch a later table of the same name.
"""

from __future__ import annotations

from typing import Any

from aiohttp import web

from ackord.errors import InvalidRequest
from ackord.wire.json_forms import from_json
from ackord.wire.keys import INT64_MAX, KeySchema
from ackord.wire.messages import check_table_name, split_starts
from ackord.wire.options import TableOptions
from ackord_node.runtime.service import Service
from ackord_node.server.bodies import answer, check_fields, check_query, read_body
from ackord_node.server.row_requests import flag_of_query

_CREATE_FIELDS = {"name": True, "key": True, "split_at": False, "options": False, "if_record_version": False}


class TableHandlers:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def list(self, request: web.Request) -> web.StreamResponse:
        if not flag_of_query(check_query(request, ("cached",)), "cached"):
            await self._service.read_tables()
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
        version = fields.get("if_record_version")
        if version is not None and (type(version) is not int or not -1 <= version <= INT64_MAX):
            raise InvalidRequest("if_record_version is an int from -1 on", field="if_record_version")
        table = await self._service.create_table(name, key.to_wire(), list(split_at), options, version)
        return answer(request, table.to_wire(), 201)

    async def describe(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["table"]
        if flag_of_query(check_query(request, ("cached",)), "cached"):
            return answer(request, (await self._service.table(name)).to_wire())
        record = await self._service.describe_table(name)
        assert record.table is not None
        return answer(request, {**record.table.to_wire(), "record_version": record.version})

    async def drop(self, request: web.Request) -> web.StreamResponse:
        query = check_query(request, ("id",))
        if request.body_exists and await request.read():
            raise InvalidRequest("DELETE takes no body", field="body")
        name = request.match_info["table"]
        await self._service.drop_table(name, _table_id(query["id"]) if "id" in query else None)
        return answer(request, {"dropped": name})


def _table_id(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise InvalidRequest(
            f"id={ascii(text)[:60]} is not a table's number", field="id", value=ascii(text)[:60]
        )
    return int(text)
