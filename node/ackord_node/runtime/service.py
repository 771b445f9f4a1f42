"""What the HTTP faces (server/) need from the node, as one protocol; the runtime implements it.

``submit`` takes a group of the public protocol whose shape was checked already: types, counts, lengths. What
needs the table's definition or the tablet's state (key schema, columns, conditions) is checked behind it. It
never raises for the state of the cluster: an error is an answer like any other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ackord.wire.limits import Limits
from ackord.wire.messages import TableDefinition
from ackord.wire.options import DEFAULT_OPTIONS, TableOptions
from ackord_node.runtime.catalogue import TableRecord

Respond = Callable[[list[Any]], None]


class Service(Protocol):
    """One node, as its clients see it."""

    name: str
    cluster: str
    cluster_id: str
    incarnation: int
    limits: Limits

    def now_version(self) -> int:
        """The hybrid logical clock now, for a client that registers (rule R16)."""

    def submit(self, group: list[Any], respond: Respond) -> None:
        """Takes one request group ``[rid, op, tablet, ...]``. ``respond`` gets ``[rid, indices|None|-1,
        results]``, perhaps before this returns, perhaps in parts, until each operation is answered once."""

    def flush(self) -> None:
        """All groups of one frame were submitted: what they queued may leave as one batch."""

    def routing(self) -> dict[str, Any]:
        """The body of ``GET /v1/routing``; bytes are bytes."""

    async def table(self, name: str) -> TableDefinition:
        """TableNotFound only if the coordination service said so after this was asked: a table whose creation
        another node has acknowledged is found. Unavailable if that service cannot be asked."""

    async def describe_table(self, name: str) -> TableRecord:
        """The table as the coordination service has it now, linearizably; TableNotFound, Unavailable. Both tell the
        version of the table's record."""

    async def read_tables(self) -> None:
        """Afterwards ``routing`` reflects every table operation that was acknowledged before this was called, on
        whichever node. Unavailable."""

    def coordinator_of(self, tablet: int) -> str | None:
        """The node that orders the tablet's writes, as far as this node knows."""

    def address_of(self, node: str) -> str | None:
        """``"http://host:port"`` of a node of cluster.yaml."""

    async def create_table(
        self,
        name: str,
        key: list[list[str]],
        split_at: list[Any],
        options: TableOptions = DEFAULT_OPTIONS,
        if_record_version: int | None = None,
    ) -> TableDefinition:
        """Creates the table and returns once its tablets are recorded; TableExists, InvalidRequest,
        Unavailable, OutcomeUnknown. The same definition again answers with the table that stands. With
        ``if_record_version`` nothing is created from another version of the record: Conflict."""

    async def drop_table(self, name: str, table_id: int | None = None) -> None:
        """Returns after every authority and lease has ended (rule R18); TableNotFound, OutcomeUnknown. With
        ``table_id`` no other table is dropped."""

    async def status(self) -> dict[str, Any]:
        """The body of ``GET /v1/status``."""

    def ready(self) -> tuple[bool, str]:
        """(True, "") if this node serves what it should, else (False, why not)."""

    async def recover(self, request: dict[str, Any]) -> dict[str, Any]:
        """An operator's recovery request (``POST /admin/v1/recover``), answered with what was done."""
