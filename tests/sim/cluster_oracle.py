"""What must hold of the replicas themselves, whatever clients saw.

``PrefixOracle``: the committed log of a tablet is one sequence. The first replica that commits an index defines its
entry; every replica that commits it later must have the same one, and what was exposed is never unsaid: nobody who
may answer reads holds less of it. Linear in the number of commits, so it is always on.

``ClusterOracle`` feeds it from the core's replicas after each of their steps, and keeps every committed row, so that
what clients saw can be compared with what was committed in the end, and each request with having run once (rule
R16).

After healing, replicas are compared byte for byte through their engines, or row by row through what each node
answers.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import ackord
from ackord.wire.messages import TableDefinition, row_columns, row_version
from ackord.wire.values import decode_columns
from ackord_node.core.cells import plain_row
from ackord_node.core.copy_meta import CopyMeta
from ackord_node.core.expiry import TabletClock
from ackord_node.core.history import Moment, Retention, history_key, split_history_key
from ackord_node.core.log import Entry, RecordCorrupt
from ackord_node.core.replica import Replica
from ackord_node.ports import Engine, EngineCorrupt
from tests.sim.history import CONFLICT, GET, OK, ROW_WRITES, Columns, History, Op

SCAN_ROWS: Final = 1_000
SCAN_BYTES: Final = 1024 * 1024
LOG_RECORDS: Final = 256
EXCESS_MAX: Final = 100_000
DIFFERENCES_MAX: Final = 5  # shown of each comparison

EntryAt = Callable[[int], Entry | None]
CommittedRows = dict[
    tuple[str, tuple[Any, ...]], dict[int, Columns | None]
]  # (table, key) -> version -> columns

Clocks = list[tuple[float, int]]
Expiries = dict[
    tuple[Any, ...], tuple[dict[int, int], Clocks]
]  # key -> (version -> expiry), readings of its clock


class Violation(AssertionError):
    """The cluster broke a promise."""


@dataclass(slots=True)
class Truth:
    """One committed entry."""

    epoch: int
    version: int
    checksum: int
    node: str  # that committed it first


@dataclass(slots=True)
class TabletTruth:
    """The committed log of one tablet, as far as any replica committed it."""

    entries: list[Truth] = field(default_factory=list)  # of index 1, 2, ...
    last_version: int = 0
    exposed: int = 0  # of these, what somebody outside may have seen
    seen: dict[str, tuple[Any, int]] = field(
        default_factory=dict
    )  # node -> (which copy of it, its commit point)
    requests: dict[tuple[bytes, int], int] = field(default_factory=dict)  # (client, sequence) -> index
    rows: dict[bytes, dict[int, bytes | None]] = field(default_factory=dict)  # key -> version -> row
    clocks: list[tuple[float, int]] = field(
        default_factory=list
    )  # true time of the commit, reading (rule R20)


class PrefixOracle:
    """Every committed state of a tablet is a prefix of every later one."""

    def __init__(self) -> None:
        self.tablets: dict[int, TabletTruth] = {}
        self.observed_count = 0  # entries compared or taken
        self.now: Callable[[], float] = lambda: 0.0  # true time
        self._gone: set[int] = set()  # tablets that were dropped

    def observe(self, tablet: int, node: str, commit_index: int, entry_at: EntryAt, copy: Any = None) -> None:
        """A replica's commit point. ``entry_at`` gives an entry, None if the replica holds it no longer; ``copy``
        changes when the replica starts anew (restarted, refilled), after which all that it holds is compared again.
        """
        if tablet in self._gone:
            return
        truth = self.tablets.setdefault(tablet, TabletTruth())
        seen_copy, seen = truth.seen.get(node, (copy, 0))
        if seen_copy != copy:
            seen = 0
        elif commit_index < seen:
            raise Violation(
                f"tablet {tablet:x}: {node}'s commit point went back from {seen} to {commit_index}"
            )
        for index in range(seen + 1, commit_index + 1):
            entry = entry_at(index)
            if entry is not None:
                self._committed(tablet, truth, node, index, entry)
            elif index > len(truth.entries):
                raise Violation(
                    f"tablet {tablet:x}: {node} has committed {index}, of which nobody knows what it is "
                    f"({len(truth.entries)} are known)"
                )
        truth.seen[node] = (copy, commit_index)

    def crashed(self, node: str) -> None:
        """It may come back with less, which is then compared again."""
        for truth in self.tablets.values():
            truth.seen.pop(node, None)

    def dropped(self, tablet: int) -> None:
        """The tablet's table was dropped; its number is never used again (rule R18)."""
        self.tablets.pop(tablet, None)
        self._gone.add(tablet)

    def exposed(self, tablet: int, index: int) -> None:
        """Somebody outside may have seen all up to this index."""
        if tablet in self.tablets:
            self.tablets[tablet].exposed = max(self.tablets[tablet].exposed, index)

    def may_answer(self, tablet: int, node: str, reach: int, epoch_at: Callable[[int], int | None]) -> None:
        """A replica may answer reads from the first ``reach`` entries: all that was exposed must be among them."""
        truth = self.tablets.get(tablet, TabletTruth())
        if reach < truth.exposed:
            raise Violation(
                f"tablet {tablet:x}: {node} may answer reads from {reach} entries, but {truth.exposed} were exposed"
            )
        if truth.exposed:
            epoch, expected = epoch_at(truth.exposed), truth.entries[truth.exposed - 1].epoch
            if epoch is not None and epoch != expected:
                raise Violation(
                    f"tablet {tablet:x}: {node} may answer reads with an entry of epoch {epoch} at {truth.exposed}, "
                    f"where epoch {expected} was exposed"
                )

    def _committed(self, tablet: int, truth: TabletTruth, node: str, index: int, entry: Entry) -> None:
        self.observed_count += 1
        checksum = zlib.crc32(entry.record)
        if index <= len(truth.entries):
            known = truth.entries[index - 1]
            if (known.version, known.checksum) != (entry.version, checksum):
                raise Violation(
                    f"tablet {tablet:x}: {node} commits the entry of epoch {entry.epoch}, version {entry.version} at "
                    f"{index}, where {known.node} committed that of epoch {known.epoch}, version {known.version}"
                )
            return
        if index != len(truth.entries) + 1:
            raise Violation(f"tablet {tablet:x}: {node} commits {index} after {len(truth.entries)}")
        truth.entries.append(Truth(entry.epoch, entry.version, checksum, node))
        self._replay(tablet, truth, index, entry, self.now())

    @staticmethod
    def _replay(tablet: int, truth: TabletTruth, index: int, entry: Entry, now: float) -> None:
        """Versions rise, and each request has one place."""
        version = entry.version
        groups = [group for group in entry.groups if group[0] is not None]
        if groups and version <= truth.last_version:
            raise Violation(f"tablet {tablet:x}: {index} has version {version} after {truth.last_version}")
        for client, _, _, seqs, keys, values in (group[:6] for group in groups):
            for seq, key, value in zip(seqs, keys, values, strict=True):
                first = truth.requests.setdefault((client, seq), index) if client else index
                if first != index:
                    raise Violation(
                        f"tablet {tablet:x}: request {seq} of {client!r} ran at {first} and at {index}"
                    )
                for one, row in _rows_of(key, value):
                    if row is not None and row_version(row) != version:
                        raise Violation(
                            f"tablet {tablet:x}: {index} stores a row of another version than {version}"
                        )
                    truth.rows.setdefault(one, {})[version] = row
                version += 1
        truth.last_version = max(truth.last_version, entry.last_version)
        if entry.clock_ms:
            truth.clocks.append((now, entry.clock_ms))


def _rows_of(key: Any, value: Any) -> Iterable[tuple[bytes, bytes | None]]:
    """What one write leaves: nothing if it was refused, several rows of a transaction."""
    if key is None:
        return ()
    return [(key, value)] if type(key) is bytes else list(zip(key, value, strict=True))


class ClusterOracle:
    """The prefix oracle over the replicas of a simulated cluster. ``reads_are_judged`` is False where clocks drift
    beyond what the cluster was told: then commits must still be right, answers need not be."""

    def __init__(self) -> None:
        self.prefix = PrefixOracle()
        self.reads_are_judged = True
        self.may_answer_count = 0

    def stepped(self, node: str, incarnation: int, replica: Replica, local_now: float | None = None) -> None:
        """After each step of a replica; ``local_now`` is the node's own clock, None to leave reads out."""
        state = replica.state
        copy = (incarnation, state.generation)
        self.prefix.observe(state.tablet, node, state.commit, state.log.get, copy)
        if local_now is None or not self.reads_are_judged or not replica.may_read(local_now):
            return
        self.may_answer_count += 1
        reach = state.commit if replica.coordinator is not None else state.log.end
        self.prefix.may_answer(state.tablet, node, reach, state.log.epoch_at)
        self.prefix.exposed(state.tablet, state.commit)

    def crashed(self, node: str) -> None:
        self.prefix.crashed(node)

    def dropped(self, tablet: int) -> None:
        self.prefix.dropped(tablet)

    def committed(self, tablet: int) -> list[Truth]:
        truth = self.prefix.tablets.get(tablet)
        return [] if truth is None else truth.entries

    def committed_rows(self, tables: Iterable[TableDefinition]) -> CommittedRows:
        """Every version of every row that was ever committed in these tables."""
        found: CommittedRows = {}
        for table, _, key, versions in self._stored_versions(tables):
            has_cells = table.options.has_cells
            found[table.name, table.key.decode(key)] = {
                version: None
                if row is None
                else decode_columns(row_columns(plain_row(row) if has_cells else row))
                for version, row in versions.items()
            }
        return found

    def committed_cells(self, tables: Iterable[TableDefinition]) -> CommittedRows:
        """The same with all cells, of the tables whose columns keep several."""
        return {
            (table.name, table.key.decode(key)): {
                version: None if row is None else decode_columns(row_columns(row))
                for version, row in versions.items()
            }
            for table, _, key, versions in self._stored_versions(tables)
            if table.options.has_cells
        }

    def expiries(self, table: TableDefinition) -> Expiries:
        """When the versions of its rows expire, by the clock of their tablet."""
        clock = TabletClock(table.options, 0)
        return {
            table.key.decode(key): (
                {version: clock.expiry_of(row) for version, row in versions.items() if row is not None},
                truth.clocks,
            )
            for _, truth, key, versions in self._stored_versions([table])
        }

    def clocks(self, table: TableDefinition) -> Clocks:
        """The readings of all its tablets' clocks."""
        found = [self.prefix.tablets.get(tablet.id) for tablet in table.tablets]
        return [reading for truth in found if truth is not None for reading in truth.clocks]

    def _stored_versions(
        self, tables: Iterable[TableDefinition]
    ) -> Iterator[tuple[TableDefinition, TabletTruth, bytes, dict[int, bytes | None]]]:
        for table in tables:
            for tablet in table.tablets:
                truth = self.prefix.tablets.get(tablet.id)
                if truth is not None:
                    for key, versions in truth.rows.items():
                        yield table, truth, key, versions


# ------------------------------------------------------------------------- no read of uncommitted data


def check_reads_committed(history: History, committed: CommittedRows, tables: Iterable[str]) -> list[str]:
    """What clients saw in these tables, and the versions that their writes got, must have been committed."""
    names = set(tables)
    reports = []
    for op in history.ops:
        if op.table not in names or op.outcome not in (OK, CONFLICT):
            continue
        for key, version, columns in _seen(op):
            versions = committed.get((op.table, key), {})
            if version not in versions:
                reports.append(f"{op}\n    version {version} of {key!r} was never committed")
            elif columns is not None and versions[version] != columns:
                reports.append(
                    f"{op}\n    version {version} of {key!r} was committed as {versions[version]!r}"
                )
    return reports


def _seen(op: Op) -> Iterator[tuple[tuple[Any, ...], int, Columns | None]]:
    if op.rows is not None:
        yield from op.rows
    elif op.key is not None and op.version is not None and op.kind in (GET, *ROW_WRITES):
        yield op.key, op.version, op.columns


# ---------------------------------------------------------------------------- replicas after healing


def compare_engines(
    engines: Mapping[str, Engine], tablets: Iterable[int], retention: Retention | None = None
) -> list[str]:
    """Differences between the stored copies of tablets whose replicas are all in sync and idle. Rows are compared
    byte for byte, with the entries on top that a copy has not applied yet, logs where more than one still holds
    them. Of a table that keeps versions (``retention``) also those that can be read by the latest clock of all. A copy
    whose checksums say that it is damaged is left out: nobody has read that part yet (rule R14)."""
    reports = []
    for tablet in sorted(tablets):
        versions: dict[str, dict[bytes, bytes]] = {}
        rows: dict[str, dict[bytes, bytes]] = {}
        logs: dict[str, dict[int, bytes]] = {}
        for name, engine in sorted(engines.items()):
            try:
                log = dict(_stored_log(engine, tablet))
                rows[name], logs[name] = _stored_rows(engine, tablet, log), log
                if retention is not None:
                    versions[name] = _stored_history(engine, tablet, log)
            except (EngineCorrupt, RecordCorrupt):
                continue
        names = list(rows)
        ends = {name: max(log) for name, log in logs.items() if log}  # a refilled copy may hold no entry
        if len(set(ends.values())) > 1:
            reports.append(f"tablet {tablet:x}: the logs end at {ends}")
        clock_ms = max((CopyMeta.decode(engines[name].metas()[tablet]).clock_ms for name in names), default=0)
        for name in names[1:]:
            reports += _differences(f"tablet {tablet:x}: rows", names[0], name, rows[names[0]], rows[name])
            if retention is not None:
                ours, theirs = (_readable(versions[n], retention, clock_ms) for n in (names[0], name))
                reports += _differences(f"tablet {tablet:x}: versions", names[0], name, ours, theirs)
            both = logs[names[0]].keys() & logs[name].keys()
            one, other = ({index: logs[n][index] for index in both} for n in (names[0], name))
            reports += _differences(f"tablet {tablet:x}: log", names[0], name, one, other)
    return reports


def _stored_rows(engine: Engine, tablet: int, log: Mapping[int, bytes]) -> dict[bytes, bytes]:
    rows: dict[bytes, bytes] = {}
    start, is_exhausted = b"", False
    while not is_exhausted:
        page, is_exhausted = engine.scan(tablet, start, None, False, SCAN_ROWS, SCAN_BYTES)
        rows.update(page)
        start = page[-1][0] + b"\x00" if page else start
    meta = CopyMeta.decode(engine.metas()[tablet])
    for index, record in log.items():
        entry = Entry.decode(tablet, record)
        if index > meta.applied:
            for key, row in entry.changes():
                if row is None:
                    rows.pop(key, None)
                else:
                    rows[key] = row
    return rows


def _stored_history(engine: Engine, tablet: int, log: Mapping[int, bytes]) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    snapshot = engine.snapshot(tablet)
    after, is_exhausted = None, False
    while not is_exhausted:
        page, is_exhausted = snapshot.read("history", after, SCAN_BYTES)
        found.update(page)
        after = page[-1][0] if page else after
    snapshot.close()
    meta = CopyMeta.decode(engine.metas()[tablet])
    for index, record in log.items():
        if index > meta.applied:
            for key, version, row in Entry.decode(tablet, record).versions():
                found[history_key(key, version, row is None)] = row or b""
    return found


def _readable(versions: Mapping[bytes, bytes], retention: Retention, clock_ms: int) -> dict[bytes, bytes]:
    """Of the stored versions, in order, those that can be read by this clock: no copy may have removed them."""
    chains: dict[bytes, list[tuple[int, bytes | None]]] = {}
    for raw in sorted(versions):
        key, version, is_deletion = split_history_key(raw)
        chains.setdefault(key, []).append((version, None if is_deletion else versions[raw]))
    found = {}
    for key, chain in chains.items():
        newest = Moment(key, [], None, *chain[0])
        for version, row in chain[: retention.kept_count(newest, chain, clock_ms)]:
            found[history_key(key, version, row is None)] = row or b""
    return found


def _stored_log(engine: Engine, tablet: int) -> list[tuple[int, bytes]]:
    bounds = engine.log_bounds(tablet)
    if bounds is None:
        return []
    records: list[tuple[int, bytes]] = []
    index, last = bounds
    while index <= last:
        page = engine.read_log(tablet, index, LOG_RECORDS, SCAN_BYTES)
        if not page:
            raise Violation(f"tablet {tablet:x}: the log from {bounds[0]} to {last} has a gap at {index}")
        records += page
        index = page[-1][0] + 1
    return records


async def compare_nodes(stores: Mapping[str, ackord.Store], tables: Iterable[str]) -> list[str]:
    """Differences between what the nodes answer; each store is connected with ``reads="node:NAME"``."""
    reports = []
    for table in sorted(tables):
        found = {
            name: {row.key: (row.version, dict(row)) async for row in store.table(table).scan()}
            for name, store in stores.items()
        }
        names = sorted(found)
        for name in names[1:]:
            reports += _differences(f"table {table}", names[0], name, found[names[0]], found[name])
    return reports


def _differences(
    what: str, one: str, other: str, ours: Mapping[Any, Any], theirs: Mapping[Any, Any]
) -> list[str]:
    keys = [key for key in sorted(ours.keys() | theirs.keys()) if ours.get(key) != theirs.get(key)]
    reports = [
        f"{what} {key!r}: {one} has {ours.get(key)!r}, {other} has {theirs.get(key)!r}" for key in keys
    ]
    if len(reports) > DIFFERENCES_MAX:
        return [*reports[:DIFFERENCES_MAX], f"{what}: {len(reports)} differences between {one} and {other}"]
    return reports
