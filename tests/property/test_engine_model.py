"""RocksDB and memory give the same answers after any history of batches, snapshots and reopenings."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ackord_node.adapters.engine_memory import MemoryEngine
from ackord_node.adapters.engine_rocksdb import RocksEngine
from ackord_node.ports import Batch, SnapshotReader

NO_LIMIT = 1 << 40

tablets = st.integers(1, 3)
indexes = st.integers(0, 90)
keys = st.one_of(
    st.sampled_from([b"", b"\0", b"a", b"a\0", b"a\xff", b"b", b"\xff", b"\xff" * 9]), st.binary(max_size=3)
)
values = st.binary(max_size=20)
records = st.lists(st.tuples(tablets, keys, st.none() | values), max_size=6)


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """Mostly runs of log records and rows; sometimes deletions of each kind before them."""
    first = draw(indexes)
    run = range(first, first + draw(st.sampled_from([0, 1, 3, 50])))
    tablet = draw(tablets)
    few_tablets = st.lists(tablets, max_size=1)
    is_destructive = draw(st.integers(0, 9)) == 0
    return Batch(
        clear=draw(few_tablets) if is_destructive else [],
        forget=draw(few_tablets) if is_destructive else [],
        cut=draw(st.lists(st.tuples(tablets, indexes), max_size=2)),
        trim=draw(st.lists(st.tuples(tablets, indexes), max_size=2)),
        meta=draw(st.dictionaries(tablets, values, max_size=1)),
        log=[(tablet, index, draw(values)) for index in run[:3]]
        + [(tablet, index, b"r") for index in run[3:]],
        rows=draw(records),
        requests=draw(records),
        node=draw(st.dictionaries(st.sampled_from(["cluster", "name", "é"]), values, max_size=1)),
    )


class EnginesAgree(RuleBasedStateMachine):
    """The same calls on both engines; a snapshot of each is held now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.memory = MemoryEngine()
        self.rocks = self.open_rocks()
        self.snapshots: tuple[SnapshotReader, SnapshotReader] | None = None

    def open_rocks(self) -> RocksEngine:
        rocks = RocksEngine(Path(self.folder.name) / "data", reserve_bytes=0, write_buffer_bytes=1 << 20)
        rocks.open()
        return rocks

    @initialize()
    def start(self) -> None:
        self.memory.open()

    @rule(batch=batches())
    def commit(self, batch: Batch) -> None:
        self.memory.commit(batch)
        self.rocks.commit(batch)

    @precondition(lambda self: self.snapshots is None)
    @rule()
    def reopen(self) -> None:
        self.rocks.close()
        self.rocks = self.open_rocks()
        assert not self.rocks.suspect

    @rule(tablet=tablets)
    def take_snapshots(self, tablet: int) -> None:
        self.drop_snapshots()
        self.snapshots = self.memory.snapshot(tablet), self.rocks.snapshot(tablet)

    @rule()
    def drop_snapshots(self) -> None:
        for snapshot in self.snapshots or ():
            snapshot.close()
        self.snapshots = None

    @precondition(lambda self: self.snapshots is not None)
    @rule(space=st.sampled_from(["rows", "requests"]), after=st.none() | keys, bytes_max=st.integers(1, 60))
    def read_snapshots(self, space: str, after: bytes | None, bytes_max: int) -> None:
        assert self.snapshots is not None
        memory, rocks = self.snapshots
        assert memory.read(space, after, bytes_max) == rocks.read(space, after, bytes_max)
        assert memory.read(space, None, NO_LIMIT) == rocks.read(space, None, NO_LIMIT)

    @rule(
        tablet=tablets,
        start=keys,
        end=st.none() | keys,
        reverse=st.booleans(),
        rows_max=st.integers(1, 8),
        bytes_max=st.integers(1, 80),
    )
    def scan(
        self, tablet: int, start: bytes, end: bytes | None, reverse: bool, rows_max: int, bytes_max: int
    ) -> None:
        found = self.rocks.scan(tablet, start, end, reverse, rows_max, bytes_max)
        assert found == self.memory.scan(tablet, start, end, reverse, rows_max, bytes_max)

    @rule(tablet=tablets, first=indexes, count_max=st.integers(1, 60), bytes_max=st.integers(1, 900))
    def read_log(self, tablet: int, first: int, count_max: int, bytes_max: int) -> None:
        found = self.rocks.read_log(tablet, first, count_max, bytes_max)
        assert found == self.memory.read_log(tablet, first, count_max, bytes_max)

    @rule(tablet=tablets, wanted=st.lists(keys, max_size=5))
    def get(self, tablet: int, wanted: list[bytes]) -> None:
        found = self.rocks.get_many(tablet, wanted)
        assert found == self.memory.get_many(tablet, wanted)
        assert found == [self.rocks.get(tablet, key) for key in wanted]

    @invariant()
    def answers_agree(self) -> None:
        assert self.rocks.node_facts() == self.memory.node_facts()
        assert self.rocks.metas() == self.memory.metas()
        for tablet in (1, 2, 3):
            assert self.rocks.log_bounds(tablet) == self.memory.log_bounds(tablet)
            assert self.rocks.requests(tablet) == self.memory.requests(tablet)
            whole = self.rocks.scan(tablet, b"", None, False, 1_000, NO_LIMIT)
            assert whole == self.memory.scan(tablet, b"", None, False, 1_000, NO_LIMIT)

    def teardown(self) -> None:
        self.drop_snapshots()
        self.rocks.close()
        self.folder.cleanup()


TestEnginesAgree = EnginesAgree.TestCase
TestEnginesAgree.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
