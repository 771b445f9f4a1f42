"""Transactions over a cluster of cores: what a client of the SDK does, in virtual time.

``Tx`` reads at a replica's commit point, where that replica may answer at once, and remembers what it read;
``commit`` sends it to whoever coordinates until it is decided. The oracle checks at the transaction's place in the
committed log that everything it read was still so.
"""

from __future__ import annotations

from typing import Any

from ackord.errors import Conflict, OutcomeUnknown, Unavailable
from ackord.wire.messages import (
    COND_NONE,
    KIND_PUT,
    KIND_TRANSACTION,
    is_error,
    row_columns,
    row_version,
)
from ackord.wire.transactions import digest_of
from ackord.wire.values import decode_columns, encode_columns
from ackord_node.core import effects as e
from tests.support.core_cluster import Cluster, Node
from tests.support.core_oracle import Violation

PARTITION = b"p"


class Moved(Exception):
    """The replica may not answer, or not at once."""


def account(number: int) -> bytes:
    return PARTITION + b"%02d" % number


def may_answer(node: Node, start: bytes, end: bytes) -> bool:
    return node.core.may_read(node.clock()) and not node.core.has_pending_in(start, end)


def committed_rows(node: Node, start: bytes, end: bytes) -> list[tuple[bytes, bytes]]:
    """A read of the range, as the runtime answers it: stored rows under what is committed and not stored yet."""
    if not may_answer(node, start, end):
        raise Moved
    overlay = node.core.state.overlay.unapplied
    rows: dict[bytes, bytes | None] = dict(node.disk.now.rows)
    rows.update({key: row for key, (_, row) in overlay.items()})
    return [(key, row) for key, row in sorted(rows.items()) if row is not None and start <= key < end]


class Tx:
    """One transaction of a client with its own request id."""

    def __init__(self, c: Cluster, client: bytes, seq: int, waits: bool = True) -> None:
        """``waits``: for replicas that lag; a script's own calls may, those of the walk's heap cannot."""
        self._c = c
        self._waits = waits
        self.request = (client, seq)
        self.reads: list[Any] = []
        self.ranges: list[Any] = []
        self.writes: list[Any] = []
        self.attempts = 0
        self.answers: list[Any] = []
        self.result: Any = None
        self._registered = c.wall_ms() << 16

    # -- reads

    def get(self, node: Node, key: bytes) -> dict[str, Any] | None:
        rows = self._rows(node, key, key + b"\0")
        self.reads.append([key, row_version(rows[0][1]) if rows else None])
        return decode_columns(row_columns(rows[0][1])) if rows else None

    def scan(self, node: Node, start: bytes = PARTITION, end: bytes = b"q") -> dict[bytes, dict[str, Any]]:
        rows = self._rows(node, start, end)
        self.ranges.append([start, end, [(key, row_version(row)) for key, row in rows]])
        return {key: decode_columns(row_columns(row)) for key, row in rows}

    def _rows(self, node: Node, start: bytes, end: bytes) -> list[tuple[bytes, bytes]]:
        if self._waits:
            self._c.run_until(lambda: may_answer(node, start, end), 2, f"{node.name} may answer")
        return committed_rows(node, start, end)

    # -- writes

    def put(self, key: bytes, columns: dict[str, Any], condition: int = COND_NONE, value: Any = None) -> None:
        self.write(KIND_PUT, key, encode_columns(columns), condition, value)

    def write(
        self, kind: int, key: bytes, body: bytes | None, condition: int = COND_NONE, value: Any = None
    ) -> None:
        self.writes.append([kind, key, body, condition, value])

    # -- commit

    def op(self) -> list[Any]:
        ranges = [[start, end, len(rows), digest_of(rows)] for start, end, rows in self.ranges]
        body = [self.reads, ranges, self.writes]
        return [self.request[1], KIND_TRANSACTION, PARTITION, body, COND_NONE, None, self.attempts]

    def send(self, name: str | None = None) -> None:
        """One attempt; without a name it is repeated until it is decided."""
        if self.is_done:
            return
        c = self._c
        c.oracle.transactions[self.request] = (self.reads, self.ranges, self.writes)
        self.attempts += 1
        group = e.WriteGroup(self, self.request[0], self._registered, self.request[1], [self.op()])
        node = c.nodes[name or c.likely_coordinator()]
        c.at_node(node, lambda: c.write(node, group), c.delay())
        if name is None:
            c.at(c.rng.uniform(0.2, 0.6), self.send)

    def done(self, seconds: float = 10) -> Any:
        self.send()
        self._c.run_until(lambda: self.is_done, seconds, "the transaction is decided")
        return self.result

    @property
    def is_done(self) -> bool:
        return self.result is not None

    @property
    def is_conflict(self) -> bool:
        return is_error(self.result) and bool(self.result[0] == Conflict.code)

    def replied(self, indices: list[int] | None, results: list[Any]) -> None:
        (result,) = results
        self.answers.append(result)
        if is_error(result):
            is_final = result[2].get("reason") in ("stale", "client_collected")
            if result[0] in (Unavailable.code, OutcomeUnknown.code) and not is_final:
                return
        else:
            self._acknowledged(result)
        if self.result is None:
            self.result = result

    def _acknowledged(self, version: int) -> None:
        oracle = self._c.oracle
        index, found = oracle.done.get(self.request, (0, version if not self.writes else None))
        if found != version:
            raise Violation(f"{self.request} was acknowledged at {version}, committed is {found}")
        oracle.exposed = max(oracle.exposed, index)


def transfer(c: Cluster, tx: Tx, node: Node, source: int, target: int, amount: int) -> None:
    """Both accounts are read at the node, and written."""
    a, b = (tx.get(node, account(number)) or {"n": 0} for number in (source, target))
    tx.put(account(source), {"n": a["n"] - amount})
    tx.put(account(target), {"n": b["n"] + amount})


def opened(c: Cluster, count: int = 3, amount: int = 100) -> None:
    """Accounts, made by one transaction."""
    tx = Tx(c, b"opener", 1)
    for number in range(count):
        tx.put(account(number), {"n": amount})
    assert isinstance(tx.done(), int)


def total(c: Cluster) -> int:
    return sum(decode_columns(row_columns(row))["n"] for row in c.oracle.rows.values())
