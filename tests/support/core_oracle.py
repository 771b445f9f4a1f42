"""What must hold of a cluster of cores, checked after every step.

``truth`` is the committed log: the first replica to commit an index defines it, and every other must agree.
``exposed`` is the longest prefix that anybody outside has seen: an acknowledged write, or a state that a replica
could answer a read from. A replica that may read must hold all of it, in real-time order.

``truth`` is also replayed through a model of the row operations, so that each (client, sequence) runs once, on
the state that its condition was judged on.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from ackord.errors import Conflict
from ackord.wire.expressions import compiled
from ackord.wire.messages import (
    COND_IF_ABSENT,
    COND_IF_EXISTS,
    COND_IF_VERSION,
    COND_NONE,
    COND_WHERE,
    KIND_DELETE,
    KIND_PUT,
    KIND_PUT_AUTO,
    RETURN_NEW,
    RETURN_OLD,
    row_columns,
    row_version,
)
from ackord.wire.values import check_update, decode_columns
from ackord_node.core.log import Entry
from ackord_node.core.types import Descriptor

if TYPE_CHECKING:
    from tests.support.core_clients import Op
    from tests.support.core_cluster import Node


class Violation(AssertionError):
    """The cluster broke a promise."""


class Oracle:
    def __init__(self) -> None:
        self.truth: list[Entry] = []
        self.exposed = 0
        self.ops: dict[tuple[bytes, int], Op] = {}
        # -> (index, version, version and returned row, or minus the error's code)
        self.done: dict[tuple[bytes, int], tuple[int, Any]] = {}
        self.transactions: dict[tuple[bytes, int], Any] = {}  # (client, sequence) -> reads, ranges, writes
        self.rows: dict[bytes, bytes] = {}
        self.history: dict[bytes, tuple[list[int], list[bytes | None]]] = defaultdict(lambda: ([0], [None]))
        self.last_version = 0
        self.reads = self.acks = self.may_read_steps = 0
        self.judges_reads = True  # False while clocks drift beyond what reads can bear
        self.has_given_up = False
        self.is_dropped = False  # the drop has returned: nobody serves the tablet any more

    # ------------------------------------------------------------------------ the committed log

    def committed(self, node: Node) -> None:
        """Called after each step: what the replica committed is, and stays, the truth."""
        assert node.replica is not None
        state = node.replica.state
        first, node.seen_commit = node.seen_commit + 1, state.commit
        if node.seen_generation != state.generation:
            node.seen_generation, first = state.generation, state.commit + 1
            if state.commit > len(self.truth):
                raise Violation(f"{node.name} was filled up to {state.commit}, beyond what is committed")
        for index in range(first, state.commit + 1):
            entry = state.log.get(index)
            if entry is None:
                if index > len(self.truth):
                    raise Violation(f"{node.name} committed {index}, which nobody knows")
            elif index > len(self.truth):
                self._extend(entry, node)
            elif self.truth[index - 1].record != entry.record:
                raise Violation(
                    f"{node.name} commits {self._name(entry)} at {index}, where "
                    f"{self._name(self.truth[index - 1])} was committed (exposed {self.exposed})"
                )

    def _name(self, entry: Entry) -> str:
        return f"entry {entry.index} of epoch {entry.epoch}"

    def _extend(self, entry: Entry, node: Node) -> None:
        if entry.index != len(self.truth) + 1:
            raise Violation(f"{node.name} commits {entry.index} after {len(self.truth)}")
        if entry.version <= self.last_version and any(g[0] is not None for g in entry.groups):
            raise Violation(f"{self._name(entry)} has version {entry.version} after {self.last_version}")
        self.truth.append(entry)
        version = entry.version
        for group in entry.groups:
            if group[0] is None:
                continue
            client, _, _, seqs, keys, values = group[:6]
            for seq, key, value in zip(seqs, keys, values, strict=True):
                self._replay(client, seq, key, value, version, entry.index)
                version += 1
        self.last_version = max(self.last_version, entry.last_version)

    def _replay(
        self, client: bytes, seq: int, key: bytes | list[bytes] | None, value: Any, version: int, index: int
    ) -> None:
        request = (client, seq)
        if client:
            if request in self.done:
                raise Violation(
                    f"request {seq} of {client!r} is committed at {self.done[request]} and {index}"
                )
            self.done[request] = (index, version if key is not None else -value)
        if isinstance(key, list):
            self._replay_transaction(request, key, value, version, index)
            return
        op = self.ops.get(request)
        if op is None:  # a sweep's, or a script's own, which the script judges
            self._take(key, value, index)
            return
        if op.returning and key is not None and client:
            row = {RETURN_NEW: value, RETURN_OLD: self.rows.get(key)}[op.returning]
            self.done[request] = (index, [version, row])
        expected = self._judge(op)
        if key is None:
            if expected != "conflict" or value != Conflict.code:
                raise Violation(f"{op} was refused with {value}, expected {expected!r}")
            return
        found = (row_version(value), decode_columns(row_columns(value))) if value is not None else None
        wanted = (version, expected) if expected is not None else None
        named = op.key + (version + 2**63).to_bytes(8, "big") if op.kind == KIND_PUT_AUTO else op.key
        if key != named or found != wanted:
            raise Violation(f"{op} left {found!r}, expected {wanted!r}")
        self._take(key, value, index)

    def _replay_transaction(
        self,
        request: tuple[bytes, int],
        keys: list[bytes],
        rows: list[bytes | None],
        version: int,
        index: int,
    ) -> None:
        """What it read is still so at its place in the committed log: that is a serial order."""
        reads, ranges, writes = self.transactions[request]
        for key, seen in reads:
            row = self.rows.get(key)
            if (None if row is None else row_version(row)) != seen:
                raise Violation(f"{request} read {key!r} at {seen}, but commits at {version} on {row!r}")
        for start, end, seen_rows in ranges:
            now = [
                (key, row_version(row))
                for key, row in sorted(self.rows.items())
                if start <= key and (end is None or key < end)
            ]
            if now != seen_rows:
                raise Violation(f"{request} read {seen_rows} in {start!r}, but commits at {version} on {now}")
        if set(keys) != {write[1] for write in writes} or len(keys) != len(set(keys)):
            raise Violation(f"{request} wrote {keys}, wanted {writes}")
        for key, row in zip(keys, rows, strict=True):
            if row is not None and row_version(row) != version:
                raise Violation(f"{request} left {key!r} at {row_version(row)}, its version is {version}")
            self._take(key, row, index)

    def _take(self, key: bytes | None, value: Any, index: int) -> None:
        if key is None:
            return
        if value is None:
            self.rows.pop(key, None)
        else:
            self.rows[key] = value
        indices, rows = self.history[key]
        indices.append(index)
        rows.append(value)

    def _judge(self, op: Op) -> Any:
        """The columns that the row should have now, None if deleted, or "conflict"."""
        row = self.rows.get(op.key)
        found = row_version(row) if row is not None else None
        condition, wanted = op.condition, op.condition_value
        if condition == COND_WHERE:
            condition, wanted, expression = wanted
            if not compiled(expression, None).holds(op.key, row):
                return "conflict"
        holds = {
            COND_NONE: True,
            COND_IF_VERSION: found is not None and found == wanted,
            COND_IF_ABSENT: row is None,
            COND_IF_EXISTS: row is not None,
        }[condition]
        if not holds:
            return "conflict"
        if op.kind == KIND_DELETE:
            return None
        if op.kind in (KIND_PUT, KIND_PUT_AUTO):
            return decode_columns(op.body or b"")
        changes, removed, increments, appends = check_update(op.body)
        columns = decode_columns(row_columns(row)) if row is not None else {}
        for name in removed:
            columns.pop(name, None)
        columns.update(changes)
        for name, amount in increments.items():
            columns[name] = columns.get(name, 0) + amount
        for name, items in appends.items():
            columns[name] = columns.get(name, []) + items
        return columns

    # -------------------------------------------------------------------------- what is exposed

    def readable(self, node: Node, now: float) -> None:
        """If the replica may answer reads now, it must hold all that was exposed; and it exposes its own."""
        replica = node.replica
        assert replica is not None
        if not self.judges_reads or not replica.may_read(now):
            return
        if self.is_dropped:
            raise Violation(f"{node.name} may answer reads of a dropped tablet")
        state = replica.state
        self.may_read_steps += 1
        reach = state.commit if replica.coordinator is not None else state.log.end
        if reach < self.exposed:
            raise Violation(
                f"{node.name} may answer reads with {reach} entries (epoch {state.promised}), but {self.exposed} "
                "were exposed"
            )
        if self.exposed >= max(state.log.trimmed, 1):
            epoch = state.log.epoch_at(self.exposed)
            if epoch != self.truth[self.exposed - 1].epoch:
                raise Violation(f"{node.name} may answer reads with another entry at {self.exposed}")
        self.exposed = max(self.exposed, state.commit)

    def acknowledged(self, op: Op, result: Any) -> None:
        self.acks += 1
        if self.is_dropped:
            raise Violation(f"{op} was acknowledged after its tablet was dropped")
        index, found = self.done.get((op.client, op.seq), (0, 0))
        if found != result:
            raise Violation(f"{op} was acknowledged with {result}, but {found} is committed at {index}")
        self.exposed = max(self.exposed, index)

    def answered(self, key: bytes, row: bytes | None, since: int, what: str) -> None:
        """A read (or a negative answer) that arrived when ``since`` entries were exposed answered ``row``: the row
        as of some prefix between that and what is committed now."""
        self.reads += 1
        if not self.judges_reads:
            return
        indices, rows = self.history[key]
        at = bisect_right(indices, since) - 1
        while at < len(indices):
            if rows[at] == row:
                self.exposed = max(self.exposed, min(indices[at], len(self.truth)))
                return
            at += 1
        raise Violation(
            f"{what} answered {row!r} for {key!r}; since {since} it was {rows[bisect_right(indices, since) - 1 :]}"
        )

    def given_up(self, index: int) -> None:
        """An operator accepted the loss of everything after ``index``; older copies than that are void."""
        self.has_given_up = True
        del self.truth[index:]
        self.exposed = min(self.exposed, index)
        self.done = {request: found for request, found in self.done.items() if found[0] <= index}
        self.rows = self.state_at(index)
        for indices, rows in self.history.values():
            keep = bisect_right(indices, index)
            del indices[keep:], rows[keep:]
        self.last_version = max((entry.last_version for entry in self.truth), default=0)

    # ---------------------------------------------------------------------------- stored states

    def state_at(self, index: int) -> dict[bytes, bytes]:
        rows = {}
        for key, (indices, values) in sorted(self.history.items()):
            value = values[bisect_right(indices, index) - 1]
            if value is not None:
                rows[key] = value
        return rows

    def stored(self, node: Node) -> None:
        """What a node finds at its start is the state at ``applied``, followed by a log without gap."""
        meta = node.disk.meta
        if meta.filling or (self.has_given_up and not meta.recovered):
            return
        if node.disk.now.rows != self.state_at(meta.applied):
            raise Violation(f"{node.name}'s stored rows are not the state at {meta.applied}")

    def descriptor_changed(self, before: Descriptor, after: Descriptor) -> None:
        if after.epoch < before.epoch:
            raise Violation(f"the epoch went back from {before.epoch} to {after.epoch}")
        if after.recovered > before.recovered:
            return  # an operator's decision, not the protocol's
        if after.epoch > before.epoch and not before.is_newborn:
            taker = after.member_of(after.coordinator or "")
            if taker not in before.in_sync and not after.dropped:
                raise Violation(f"{taker} took over, but {sorted(before.in_sync)} were in sync")
        if len(after.in_sync) < min(len(before.in_sync), after.min_in_sync):
            raise Violation(f"the in-sync set went below the minimum: {sorted(after.in_sync)}")
        if after.epoch == before.epoch and len(after.in_sync ^ before.in_sync) > 2:
            raise Violation(
                f"more than one change at a time: {sorted(before.in_sync)} to {sorted(after.in_sync)}"
            )
