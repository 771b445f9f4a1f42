"""Clients in virtual time: writes under request ids, retried on any node, and reads on every node.

Each takes the first answer that decides; a refusal counts only from the newest attempt, as an earlier
attempt's refusal is not recorded (rule R16).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ackord.errors import Conflict, OutcomeUnknown, Unavailable
from ackord.wire.messages import (
    COND_IF_ABSENT,
    COND_IF_EXISTS,
    COND_IF_VERSION,
    COND_NONE,
    KIND_DELETE,
    KIND_PUT,
    KIND_UPDATE,
    is_error,
    row_version,
)
from ackord.wire.values import encode_columns, encode_update
from ackord_node.core.effects import WriteGroup, Writes
from tests.support.core_oracle import Violation

if TYPE_CHECKING:
    from tests.support.core_cluster import Cluster, Node

KEYS = [b"k%d" % i for i in range(5)]


@dataclass
class Op:
    client: bytes
    seq: int
    kind: int
    key: bytes
    body: bytes | None
    condition: int = COND_NONE
    condition_value: Any = None
    returning: int = 0
    attempts: int = 0
    since: dict[int, int] = field(default_factory=dict)  # attempt -> what was exposed when it was sent
    outcome: Any = None  # version, or an error's wire form
    last_error: Any = None

    @property
    def is_done(self) -> bool:
        return self.outcome is not None

    def wire(self) -> list[Any]:
        plain = [
            self.seq,
            self.kind,
            self.key,
            self.body,
            self.condition,
            self.condition_value,
            self.attempts,
        ]
        return [*plain, self.returning] if self.returning else plain


class Attempt:
    """The responder of one group of writes as it was sent to one node."""

    def __init__(self, cluster: Cluster, node: str, ops: list[Op]) -> None:
        self._c = cluster
        self.node = node
        self.ops = ops
        self.numbers = [op.attempts for op in ops]
        self.answered: set[int] = set()
        self.answers: dict[int, Any] = {}

    def replied(self, indices: list[int] | None, results: list[Any]) -> None:
        where = list(range(len(self.ops))) if indices is None else indices
        if len(where) != len(results):
            raise Violation(f"{len(results)} results for {len(where)} operations")
        for at, result in zip(where, results, strict=True):
            if at in self.answered:
                raise Violation(f"operation {at} of {self.ops} was answered twice")
            self.answered.add(at)
            self.answers[at] = result
            self._answer(self.ops[at], self.numbers[at], result)

    def _answer(self, op: Op, number: int, result: Any) -> None:
        oracle = self._c.oracle
        if not is_error(result):
            oracle.acknowledged(op, result)
            op.outcome = op.outcome if op.is_done else result
            return
        op.last_error = result
        if result[0] == Conflict.code:
            if result[2].get("repeated") is None or op.kind:
                oracle.answered(op.key, result[3], op.since[number], f"conflict from {self.node}")
            if number == op.attempts and not op.is_done:
                op.outcome = result
        elif result[0] == OutcomeUnknown.code and result[2].get("reason") in ("stale", "client_collected"):
            if not op.is_done:
                op.outcome = result
        elif result[0] not in (Unavailable.code, OutcomeUnknown.code):
            raise Violation(f"{op} was refused with {result}")


class Reader:
    """The responder of one get_many at one node."""

    def __init__(self, cluster: Cluster, node: str, keys: list[bytes]) -> None:
        self._c = cluster
        self.node = node
        self.keys = keys
        self.since = cluster.oracle.exposed
        self.rows: dict[int, Any] = {}

    def take(self, answer: tuple[list[Any], list[int]] | None) -> None:
        if answer is not None:
            rows, late = answer
            for at, row in enumerate(rows):
                if at not in late:
                    self._row(at, row)

    def replied(self, indices: list[int] | None, results: list[Any]) -> None:
        for at, row in zip(range(len(self.keys)) if indices is None else indices, results, strict=True):
            if isinstance(row, list):
                self.rows[at] = row
            else:
                self._row(at, row)

    def _row(self, at: int, row: bytes | None) -> None:
        if at in self.rows:
            raise Violation(f"key {at} of {self.keys} was answered twice")
        self.rows[at] = row
        self._c.oracle.answered(self.keys[at], row, self.since, f"read at {self.node}")


class Client:
    """One client of the random walk: a few writes at a time, each retried until decided or given up."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        self._c = cluster
        self._rng = cluster.rng
        self.number = number
        self.register()
        self.open: list[Op] = []
        self._is_forgotten = False
        self.versions: dict[bytes, int] = {}

    def register(self) -> None:
        """Begins under a new id, as the SDK does once the cluster has forgotten the old one (rule R16)."""
        self._c.registered += 1
        self.id = b"client-%d-of-sim-%d" % (self.number, self._c.registered)
        self.registered = self._c.wall_ms() << 16
        self.seq = 0

    @property
    def floor(self) -> int:
        return min((op.seq for op in self.open), default=self.seq + 1)

    def start(self) -> None:
        self._c.at(self._rng.uniform(0.0, 0.2), self._turn)

    def _turn(self) -> None:
        if not self._c.has_clients:
            return
        if self._is_forgotten and not self.open:
            self._is_forgotten = False
            self.register()
        if len(self.open) < 4 and not self._is_forgotten:
            self.submit([self.new_op() for _ in range(self._rng.choice((1, 1, 1, 2, 3)))])
        self._c.at(self._rng.expovariate(12.0), self._turn)

    def op(
        self, kind: int, key: bytes, body: bytes | None, condition: int = COND_NONE, value: int | None = None
    ) -> Op:
        self.seq += 1
        op = Op(self.id, self.seq, kind, key, body, condition, value)
        self._c.oracle.ops[op.client, op.seq] = op
        return op

    def new_op(self) -> Op:
        rng = self._rng
        key = rng.choice(KEYS)
        if key == KEYS[0]:
            return self.op(KIND_UPDATE, key, encode_update(increment={"n": 1}))
        body = encode_columns({"v": f"{self.id.decode()}/{self.seq + 1}"})
        chance = rng.random()
        if chance < 0.15:
            return self.op(KIND_DELETE, key, None, rng.choice((COND_NONE, COND_IF_EXISTS)))
        if chance < 0.3:
            return self.op(KIND_PUT, key, body, COND_IF_ABSENT)
        if chance < 0.5:
            return self.op(KIND_PUT, key, body, COND_IF_VERSION, self.versions.get(key, 1))
        if chance < 0.6:
            return self.op(KIND_UPDATE, key, encode_update(set={"u": self.seq}), COND_IF_EXISTS)
        return self.op(KIND_PUT, key, body)

    def submit(self, ops: list[Op], node: str | None = None) -> Attempt:
        self.open.extend(ops)
        return self.send(ops, node)

    def send(self, ops: list[Op], name: str | None = None) -> Attempt:
        """One attempt; ``name`` None: a likely node, and retries until decided."""
        c = self._c
        target = name or c.likely_coordinator()
        for op in ops:
            op.attempts += 1
            op.since[op.attempts] = c.oracle.exposed
        attempt = Attempt(c, target, ops)
        group = WriteGroup(attempt, ops[0].client, self.registered, self.floor, [op.wire() for op in ops])
        delay = c.delay() if not c.has_faults or self._rng.random() < 0.95 else self._rng.uniform(0.5, 4.0)
        c.at_node(c.nodes[target], lambda: c.write(c.nodes[target], group), delay)
        if name is None:
            c.at(self._rng.uniform(0.1, 0.8), lambda: self._again(ops, attempt))
        return attempt

    def _again(self, ops: list[Op], attempt: Attempt) -> None:
        for op in ops:
            if op.outcome is not None and not is_error(op.outcome):
                self.versions[op.key] = op.outcome if isinstance(op.outcome, int) else op.outcome[0]
            elif op.outcome is not None and op.outcome[3] is not None:
                self.versions[op.key] = row_version(op.outcome[3])
            if (
                op.is_done
                and op.last_error is op.outcome
                and op.outcome[2].get("reason") == "client_collected"
            ):
                self._is_forgotten = True
        for op in [op for op in self.open if op.is_done or op.attempts >= 8]:
            self.open.remove(op)
        rest = [op for op in ops if op in self.open]
        if rest:
            self.send(rest)


def read(cluster: Cluster, node: Node, keys: list[bytes]) -> Reader:
    reader = Reader(cluster, node.name, keys)
    assert node.replica is not None
    reader.take(node.replica.get_many(reader, keys, node.clock()))
    return reader


def write_event(cluster: Cluster, groups: list[WriteGroup], skew_ms: int) -> Writes:
    return Writes(groups, cluster.wall_ms() + skew_ms)
