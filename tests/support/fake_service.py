"""A node's ``Service`` in a dict: rows are really stored, conditions really judged, so that the HTTP faces
can be tested without a cluster. Tests decide when and how groups are answered by holding or scripting
them."""

from __future__ import annotations

from typing import Any

from ackord.errors import Conflict, Error, TableExists, TableNotFound, Unavailable
from ackord.wire.keys import KeySchema
from ackord.wire.limits import DEFAULT_LIMITS, Limits
from ackord.wire.messages import (
    COND_IF_ABSENT,
    COND_IF_EXISTS,
    COND_IF_VERSION,
    KIND_DELETE,
    KIND_PUT,
    OP_GET,
    OP_SCAN,
    OP_WRITE,
    WHOLE_GROUP,
    TableDefinition,
    TabletRange,
    error_to_wire,
    join_row,
    row_columns,
    row_version,
    split_starts,
)
from ackord.wire.options import DEFAULT_OPTIONS, TableOptions
from ackord.wire.values import check_columns, check_update, decode_columns, encode_columns
from ackord_node.runtime.catalogue import TableRecord
from ackord_node.runtime.service import Respond, Service


class FakeService:
    """One node. ``rows`` is shared between the fake nodes of a test, as replicas would be."""

    def __init__(
        self, name: str = "n1", rows: dict[bytes, bytes] | None = None, limits: Limits = DEFAULT_LIMITS
    ):
        self.name = name
        self.cluster = "demo"
        self.cluster_id = "id-1"
        self.incarnation = 7
        self.limits = limits
        self.rows: dict[bytes, bytes] = {} if rows is None else rows
        self.results: dict[tuple[bytes, int], Any] = {}  # (client_id, seq) -> the first result
        self.tables: dict[str, TableDefinition] = {}
        self.record_versions: dict[str, int] = {}  # of the tables that ever stood
        self.tables_reads_count = 0
        self.addresses: dict[str, str] = {}
        self.not_here: dict[int, str | None] = {}  # tablet -> coordinator: this node serves it not
        self.groups: list[list[Any]] = []  # all that were submitted
        self.flushes = 0
        self.hold = False  # keep groups unanswered in ``held``
        self.held: list[tuple[list[Any], Respond]] = []
        self.is_ready = (True, "")
        self.recoveries: list[dict[str, Any]] = []
        self._clock = 1_700_000_000_000 << 16

    # ------------------------------------------------------------------ the protocol

    def now_version(self) -> int:
        self._clock += 1
        return self._clock

    def submit(self, group: list[Any], respond: Respond) -> None:
        self.groups.append(group)
        if self.hold:
            self.held.append((group, respond))
        else:
            respond(self.result_of(group))

    def flush(self) -> None:
        self.flushes += 1

    def routing(self) -> dict[str, Any]:
        tables = {}
        for table in self.tables.values():
            tablets = [
                {
                    **tablet.to_wire(),
                    "coordinator": self.coordinator_of(tablet.id),
                    "in_sync": ["n1"],
                    "epoch": 1,
                }
                for tablet in table.tablets
            ]
            tables[table.name] = {"id": table.id, "key": table.key.to_wire(), "tablets": tablets}
        return {"wire": 1, "cluster": self.cluster, "cluster_id": self.cluster_id, "tables": tables}

    async def describe_table(self, name: str) -> TableRecord:
        return TableRecord(await self.table(name), self.record_versions[name])

    async def read_tables(self) -> None:
        self.tables_reads_count += 1

    async def table(self, name: str) -> TableDefinition:
        if name not in self.tables:
            version = self.record_versions.get(name, -1)
            raise TableNotFound(f"no table {name!r}", table=name, record_version=version)
        return self.tables[name]

    def coordinator_of(self, tablet: int) -> str | None:
        return self.not_here.get(tablet, self.name)

    def address_of(self, node: str) -> str | None:
        return self.addresses.get(node)

    async def create_table(
        self,
        name: str,
        key: list[list[str]],
        split_at: list[Any],
        options: TableOptions = DEFAULT_OPTIONS,
        if_record_version: int | None = None,
    ) -> TableDefinition:
        version = self.record_versions.get(name, -1)
        if name not in self.tables and if_record_version not in (None, version):
            raise Conflict(f"the record of {name!r} has version {version}", record_version=version)
        schema = KeySchema.from_wire(key)
        if name in self.tables and self.tables[name].key != schema:
            raise TableExists(f"the table {name!r} exists with another key", table=name)
        starts = split_starts(schema, split_at)
        ends = [*starts[1:], None]
        first = 1 + 100 * len(self.tables)
        tablets = tuple(
            TabletRange(first + number, start, end)
            for number, (start, end) in enumerate(zip(starts, ends, strict=True))
        )
        self.record_versions[name] = version + 1
        self.tables[name] = TableDefinition(len(self.tables) + 1, name, schema, tablets, options=options)
        return self.tables[name]

    async def drop_table(self, name: str, table_id: int | None = None) -> None:
        if table_id not in (None, (await self.table(name)).id):
            raise TableNotFound(f"no table {name!r} of id {table_id}", table=name)
        del self.tables[name]
        self.record_versions[name] += 2

    async def status(self) -> dict[str, Any]:
        return {"node": self.name, "copy": b"\x01"}

    def ready(self) -> tuple[bool, str]:
        return self.is_ready

    async def recover(self, request: dict[str, Any]) -> dict[str, Any]:
        self.recoveries.append(request)
        return {"done": True}

    # ------------------------------------------------------------------ what it answers

    def release(self) -> None:
        """Answers all held groups, the last first."""
        held, self.held = self.held, []
        for group, respond in reversed(held):
            respond(self.result_of(group))

    def result_of(self, group: list[Any]) -> list[Any]:
        rid, op, tablet = group[:3]
        if tablet in self.not_here:
            node = self.not_here[tablet]
            detail = {"reason": "not_coordinator"} | ({} if node is None else {"coordinator": node})
            return [rid, WHOLE_GROUP, error_to_wire(Unavailable(f"tablet {tablet} is not here", **detail))]
        if op == OP_GET:
            return [rid, None, [self.rows.get(key) for key in group[3]]]
        if op == OP_SCAN:
            return [rid, None, [self._scan(*group[3:])]]
        assert op == OP_WRITE
        return [rid, None, [self._write_once(group[3], item) for item in group[6]]]

    def _scan(
        self, start: bytes, end: bytes | None, reverse: bool, rows_max: int, bytes_max: int
    ) -> list[Any]:
        keys = sorted((k for k in self.rows if k >= start and (end is None or k < end)), reverse=reverse)
        return scan_answer([(key, self.rows[key]) for key in keys], reverse, rows_max)

    def _write_once(self, client_id: bytes, op: list[Any]) -> Any:
        name = (client_id, op[0])
        if name not in self.results:
            try:
                self.results[name] = self._write(*op[1:6])
            except Error as error:
                self.results[name] = error_to_wire(error, self.rows.get(op[2]))
        return self.results[name]

    def _write(self, kind: int, key: bytes, body: Any, cond: int, cond_value: Any) -> int:
        row = self.rows.get(key)
        holds = {
            COND_IF_VERSION: row is not None and row_version(row) == cond_value,
            COND_IF_ABSENT: row is None,
            COND_IF_EXISTS: row is not None,
        }.get(cond, True)
        if not holds:
            raise Conflict("the condition does not hold")
        version = self.now_version()
        if kind == KIND_DELETE:
            self.rows.pop(key, None)
        elif kind == KIND_PUT:
            check_columns(body)
            self.rows[key] = join_row(version, body)
        else:
            changes, removed, increments, appends = check_update(body)
            columns = {} if row is None else decode_columns(row_columns(row))
            columns |= changes
            for name in removed:
                columns.pop(name, None)
            for name, by in increments.items():
                columns[name] = columns.get(name, 0) + by
            for name, items in appends.items():
                columns[name] = columns.get(name, []) + items
            self.rows[key] = join_row(version, encode_columns(columns))
        return version


def scan_answer(rows: list[tuple[bytes, bytes]], reverse: bool, rows_max: int) -> list[Any]:
    """A page of the rows that are left, as on the wire."""
    page = rows[:rows_max]
    rest = None if len(rows) <= rows_max else page[-1][0] + b"\x00" * (not reverse)
    return [[item for pair in page for item in pair], rest]


def as_service(fake: FakeService) -> Service:
    """For mypy: a FakeService is a Service."""
    return fake
