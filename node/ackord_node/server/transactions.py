"""``POST /v1/tables/T/transactions``: rows of one partition key written together, if what was read is still so.

The body names everything at once: who wants to read first does so with ``GET``, and sends the versions along.

    {"partition": "alice",
     "reads": [{"key": ["alice", 1], "version": "123"}, {"key": ["alice", 2], "version": null}],
     "ranges": [{"prefix": ["alice"], "rows": [{"key": ["alice", 1], "version": "123"}]}],
     "writes": [{"put": ["alice", 1], "columns": {"total": 5}, "if_absent": true},
                {"update": ["alice", 2], "increment": {"n": 1}},
                {"delete": ["alice", 3]}]}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from aiohttp import web

from ackord.errors import InvalidRequest
from ackord.wire.json_forms import columns_from_json, dump_json, from_json, to_json, version_from_json
from ackord.wire.keys import AUTO
from ackord.wire.limits import Limits
from ackord.wire.messages import (
    COND_NONE,
    KIND_DELETE,
    KIND_PUT,
    KIND_PUT_AUTO,
    KIND_TRANSACTION,
    KIND_UPDATE,
    TableDefinition,
)
from ackord.wire.ranges import key_range
from ackord.wire.transactions import digest_of
from ackord.wire.values import encode_columns, encode_update
from ackord_node.runtime.service import Service
from ackord_node.server.bodies import Body, check_fields, check_query, read_body, wants_msgpack
from ackord_node.server.groups import GroupChecker
from ackord_node.server.row_requests import condition_of_query
from ackord_node.server.rows import RowHandlers
from ackord_node.server.version_queries import with_extras

_FIELDS: Final = {"partition": True, "reads": False, "ranges": False, "writes": False}
_BOUNDS: Final = ("prefix", "start", "start_after", "end", "end_at")
_CONDITIONS: Final = ("if_version", "if_absent", "if_exists", "where", "on_conflict", "ttl", "timestamp")
_WRITES: Final = {
    "put": (KIND_PUT, ("columns",)),
    "update": (KIND_UPDATE, ("set", "delete", "increment", "append", "delete_cells")),
    "delete": (KIND_DELETE, ()),
}


class TransactionHandlers:
    def __init__(self, rows: RowHandlers, service: Service) -> None:
        self._rows = rows
        self._service = service

    async def commit(self, request: web.Request) -> web.StreamResponse:
        check_query(request, ())
        service = self._service
        body = await read_body(request, service.limits)
        table = await service.table(request.match_info["table"])
        form = _Form(table, body, service.limits)
        partition, parts = form.transaction()
        change = [KIND_TRANSACTION, partition, parts, COND_NONE, None]
        GroupChecker(service.limits).check_transaction(partition, parts, COND_NONE)
        as_json = not wants_msgpack(request)
        return await self._rows.write(
            request,
            table,
            change,
            [],
            body.raw,
            lambda version: {"version": str(version) if as_json else version},
        )


class _Form:
    """One body, read as what travels to the coordinator; InvalidRequest names what is wrong."""

    def __init__(self, table: TableDefinition, body: Body, limits: Limits) -> None:
        self._schema = table.key
        self._is_json = body.is_json
        self._limits = limits
        self._fields = check_fields(body.value, _FIELDS, "body")

    def transaction(self) -> tuple[bytes, list[Any]]:
        partition = self._schema.encode_prefix((self._plain(self._fields["partition"]),))
        reads = [self._read(item) for item in self._list("reads")]
        ranges = [self._range(item) for item in self._list("ranges")]
        return partition, [reads, ranges, [self._write(item) for item in self._list("writes")]]

    def _list(self, name: str) -> list[Any]:
        items = self._fields.get(name, [])
        if not isinstance(items, list):
            raise InvalidRequest(f"{name} must be a list", field=name)
        return items

    def _plain(self, value: Any) -> Any:
        return from_json(value) if self._is_json else value

    def _key(self, value: Any, field: str) -> tuple[Any, ...]:
        plain = self._plain(value)
        if not isinstance(plain, list):
            raise InvalidRequest(f"{field} must be a list of key values", field=field)
        return tuple(plain)

    def _version(self, value: Any) -> int | None:
        if value is None or (type(value) is int and not self._is_json):
            return value
        return version_from_json(value, "version")

    def _read(self, item: Any) -> list[Any]:
        fields = check_fields(item, {"key": True, "version": True}, "reads")
        return [self._schema.encode(self._key(fields["key"], "key")), self._version(fields["version"])]

    def _range(self, item: Any) -> list[Any]:
        fields = check_fields(item, {**dict.fromkeys(_BOUNDS, False), "rows": True}, "ranges")
        bounds = {name: self._key(fields[name], name) for name in _BOUNDS if name in fields}
        start, end = key_range(self._schema, bounds.pop("prefix", ()), **bounds)
        if not isinstance(fields["rows"], list):
            raise InvalidRequest("rows must be a list of what the range held", field="rows")
        rows = [self._read(row) for row in fields["rows"]]
        if any(type(version) is not int for _, version in rows):
            raise InvalidRequest("each row of a range has a version", field="rows")
        return [start, end, len(rows), digest_of(sorted((key, version) for key, version in rows))]

    def _write(self, item: Any) -> list[Any]:
        named = [name for name in _WRITES if isinstance(item, dict) and name in item]
        if len(named) != 1 and named != ["update", "delete"]:  # "delete" of an update names columns
            raise InvalidRequest("each of writes has one of put, update and delete", field="writes")
        name = named[0]
        kind, parts = _WRITES[name]
        fields = check_fields(item, dict.fromkeys((name, *parts, *_CONDITIONS), False), "writes")
        query: dict[str, str] = {of: self._parameter(of, fields[of]) for of in _CONDITIONS if of in fields}
        condition, value = condition_of_query(query, self._limits)
        body = with_extras(query, self._body(kind, fields), fields.get("delete_cells"))
        key, is_auto = self._new_key(self._key(fields[name], name))
        if is_auto:
            if kind != KIND_PUT or condition != COND_NONE:
                raise InvalidRequest("auto makes a new row: only a put without a condition can", field="key")
            kind = KIND_PUT_AUTO
        return [kind, key, body, condition, value]

    def _new_key(self, key: tuple[Any, ...]) -> tuple[bytes, bool]:
        if self._schema.is_auto and len(key) == len(self._schema.types) and key[-1] == "auto":
            return self._schema.encode_auto((*key[:-1], AUTO)), True
        return self._schema.encode(key), False

    def _body(self, kind: int, fields: Mapping[str, Any]) -> bytes | None:
        if kind == KIND_DELETE:
            return None
        if kind == KIND_PUT:
            return encode_columns(self._columns(fields.get("columns", {}), "columns"), self._limits)
        return encode_update(
            self._columns(fields.get("set", {}), "set"),
            fields.get("delete", []),
            fields.get("increment", {}),
            self._limits,
            self._columns(fields.get("append", {}), "append"),
        )

    def _columns(self, value: Any, field: str) -> Any:
        return columns_from_json(value, field) if self._is_json else value

    def _parameter(self, name: str, value: Any) -> str:
        """As the query of a single write says it."""
        if name in ("if_absent", "if_exists"):
            return str(value).lower()
        if name != "where":
            return str(value)
        try:
            return dump_json(value if self._is_json else to_json(value))
        except (TypeError, ValueError):
            raise InvalidRequest("where is no expression as JSON or msgpack", field="where") from None
