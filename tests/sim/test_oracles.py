"""The oracles are able to fail: each is shown a history, a log or a pair of stores that breaks one promise."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from ackord.wire.keys import KeySchema
from ackord.wire.messages import TableDefinition, TabletRange, join_row
from ackord.wire.values import encode_columns
from ackord_node.adapters.engine_memory import MemoryEngine
from ackord_node.core.copy_meta import CopyMeta
from ackord_node.core.log import Entry
from ackord_node.ports import Batch
from tests.sim.cluster_oracle import (
    ClusterOracle,
    PrefixOracle,
    Violation,
    check_reads_committed,
    compare_engines,
)
from tests.sim.history import (
    CONFLICT,
    CREATE,
    DELETE,
    DROP,
    FAILED,
    GET,
    OK,
    PUT,
    SCAN,
    UNKNOWN,
    UPDATE,
    History,
    Op,
)
from tests.sim.linearizability import check_key
from tests.sim.oracles import (
    check_batches,
    check_conflicts,
    check_counters,
    check_deadlines,
    check_history,
    check_last_writes,
    check_lists,
    check_scans,
    check_sets,
    check_standing,
    check_tables,
)
from tests.sim.row_events import check_history_keys, events_by_key
from tests.sim.test_linearizability import random_history

TABLET = 0x101
KEY = (1, "a")
SCHEMA = KeySchema.from_wire([["slot", "int"], ["name", "str"]])


class Story:
    """A history told one operation after the other."""

    def __init__(self) -> None:
        self.history = History()
        self._now = 0.0

    def begin(self, workload: str, kind: str, key: Any = KEY, table: str = "load", **args: Any) -> Op:
        self._now += 1.0
        return self.history.begin("c", workload, kind, table, key, self._now, args)

    def end(self, op: Op, outcome: str = OK, error: str = "", note: str = "", **seen: Any) -> Op:
        self._now += 1.0
        for name, value in seen.items():
            setattr(op, name, value)
        self.history.end(op, outcome, self._now, error=error, note=note)
        return op

    def put(self, version: int, columns: dict[str, Any], workload: str = "register", key: Any = KEY) -> Op:
        return self.end(self.begin(workload, PUT, key, columns=columns), version=version)

    def read(self, version: int | None, columns: Any = None, workload: str = "final", key: Any = KEY) -> Op:
        return self.end(self.begin(workload, GET, key), version=version, columns=columns)


# ------------------------------------------------------------------------------ what clients saw


def test_counters() -> None:
    def counted(final: int) -> list[str]:
        story = Story()
        story.end(story.begin("counter", UPDATE, increment={"n": 1}), version=10)
        story.end(story.begin("counter", UPDATE, increment={"n": 3}), UNKNOWN)
        story.end(story.begin("counter", UPDATE, increment={"n": 5}), FAILED)
        story.read(12, {"n": final})
        return check_counters(story.history)

    assert [bool(counted(final)) for final in (0, 1, 4, 5)] == [True, False, False, True]


LISTS: dict[str, tuple[list[Any], bool]] = {
    "all": (["a", "b", "u"], True),
    "without the unknown one": (["a", "b"], True),
    "lost": (["a"], False),
    "twice": (["a", "b", "b"], False),
    "unknown twice": (["a", "b", "u", "u"], False),
    "wrong order": (["b", "a"], False),
    "what was refused": (["a", "b", "x"], False),
    "what nobody appended": (["a", "b", "z"], False),
}


@pytest.mark.parametrize("name", LISTS)
def test_lists(name: str) -> None:
    story = Story()
    story.put(10, {"list": ["a"]}, "append")
    story.put(11, {"list": ["a", "b"]}, "append")
    story.end(story.begin("append", PUT, columns={"list": ["a", "b", "u"]}, if_version=11), UNKNOWN)
    story.end(story.begin("append", PUT, columns={"list": ["a", "x"]}, if_version=10), CONFLICT)
    elements, is_good = LISTS[name]
    story.read(12, {"list": elements})
    assert (check_lists(story.history) == []) is is_good


def test_a_list_only_grows() -> None:
    story = Story()
    story.end(story.begin("append", PUT, columns={"list": ["u"]}, if_absent=True), UNKNOWN)
    story.end(story.begin("append", PUT, columns={"list": ["v"]}, if_absent=True), UNKNOWN)
    story.read(10, {"list": ["u"]}, "append")
    story.read(11, {"list": ["v"]}, "append")
    assert any("continuation" in report for report in check_lists(story.history))


@pytest.mark.parametrize(
    ("outcome", "final", "is_good"),
    [
        (OK, 10, True),
        (OK, None, False),
        (OK, 11, False),
        (UNKNOWN, None, True),
        (UNKNOWN, 10, True),
        (FAILED, 10, False),
        (FAILED, None, True),
    ],
)
def test_sets(outcome: str, final: int | None, is_good: bool) -> None:
    story = Story()
    op = story.begin("set", PUT, columns={"v": 1}, if_absent=True)
    story.end(op, outcome, version=10 if outcome == OK else None)
    story.read(final, None if final is None else {"v": 1})
    assert (check_sets(story.history) == []) is is_good
    story = Story()
    op = story.begin("set", PUT, columns={"v": 1}, if_absent=True)
    story.end(op, outcome, version=10 if outcome == OK else None)
    story.read(final, None if final is None else {"v": 1})
    scan = story.begin("final", SCAN, None)
    story.end(scan, rows=[] if final is None else [(KEY, final, {"v": 1})])
    assert (check_sets(story.history) == []) is is_good


def test_last_writes() -> None:
    def judged(final: int | None, columns: Any = None, deleted: str | None = None) -> bool:
        story = Story()
        story.put(10, {"v": 1})
        story.put(12, {"v": 2})
        if deleted is not None:
            story.end(story.begin("register", DELETE), deleted, version=13 if deleted == OK else None)
        story.read(final, columns)
        return check_last_writes(story.history) == []

    assert judged(12, {"v": 2}) and judged(None, deleted=OK) and judged(None, deleted=UNKNOWN)
    assert judged(14, {"v": 3})  # by whom, others say
    assert not judged(None) and not judged(None, deleted=FAILED)
    assert not judged(10, {"v": 1}) and not judged(12, {"v": 3}) and not judged(12, {"v": 2}, deleted=OK)


def test_batches() -> None:
    def judged(seen: Any, outcome: str = OK) -> bool:
        story = Story()
        op = story.begin("batch", PUT, columns={"stamp": "s"})
        op.batch = op.number
        story.end(op, outcome)
        story.read(10, seen)
        return check_batches(story.history) == []

    assert judged({"stamp": "s"}) and judged({"stamp": "s"}, UNKNOWN) and judged({"v": 1})
    assert not judged({"stamp": "s"}, FAILED) and not judged({"stamp": "s"}, CONFLICT)
    assert not judged({"stamp": "of nobody"})


def test_what_is_no_row_must_be_refused_alone() -> None:
    story = Story()
    op = story.begin("batch", PUT, (0,), columns={"stamp": "s"})
    op.batch = op.number
    story.end(op, OK, version=5)
    assert check_batches(story.history)


def test_conflicts() -> None:
    def judged(condition: dict[str, Any], version: int | None, note: str = "") -> bool:
        story = Story()
        op = story.begin("register", PUT, columns={"v": 1}, **condition)
        story.end(op, CONFLICT, note=note, version=version, columns=None if version is None else {"v": 0})
        return check_conflicts(story.history) == []

    assert judged({"if_version": 3}, 4) and judged({"if_version": 3}, None)
    assert judged({"if_absent": True}, 4) and judged({"if_exists": True}, None)
    assert not judged({"if_version": 3}, 3)
    assert not judged({"if_absent": True}, None) and not judged({"if_exists": True}, 4)
    assert judged({"if_absent": True}, None, note="repeated")


def test_scans() -> None:
    def judged(names: str, **args: Any) -> bool:
        story = Story()
        rows = [((1, name), 5, {"v": 1}) for name in names]
        story.end(story.begin("scan", SCAN, None, **args), rows=rows)
        return check_scans(story.history) == []

    assert (
        judged("abc") and judged("cba", reverse=True) and judged("bc", start=(1, "b"), end=(1, "d"), limit=2)
    )
    assert not judged("acb") and not judged("aab") and not judged("abc", reverse=True)
    assert not judged("ab", start=(1, "b")) and not judged("ab", end=(1, "b")) and not judged("ab", limit=1)


def test_a_scan_is_a_read_of_every_key_up_to_its_limit() -> None:
    def judged(names: str, **args: Any) -> bool:
        story = Story()
        for number, name in enumerate("abcd"):
            story.put(10 + number, {"v": 1}, key=(1, name))
        rows = [((1, name), 10 + "abcd".index(name), {"v": 1}) for name in names]
        story.end(story.begin("scan", SCAN, None, **args), rows=rows)
        return check_history_keys(story.history) == []

    assert judged("abcd") and judged("ab", limit=2) and judged("dc", limit=2, reverse=True)
    assert judged("bc", start=(1, "b"), end=(1, "d")) and judged("abcd", start=(1,), end=(2,))
    assert not judged("abc") and not judged("ac", limit=2) and not judged("db", limit=2, reverse=True)
    assert not judged("ab", limit=3) and not judged("b", start=(1, "b"), end=(1, "d"))


def tables_history(*steps: tuple[Any, ...]) -> History:
    """(kind, outcome), then an error or the incarnation's number."""
    story = Story()
    for kind, outcome, *rest in steps:
        error = next((text for text in rest if isinstance(text, str)), "")
        number = next((number for number in rest if isinstance(number, int)), 1)
        key = KEY if kind in (GET, PUT) else None
        op = story.begin("tables", kind, key, f"t@{number}", **({"columns": {"v": 1}} if kind == PUT else {}))
        story.end(op, outcome, error=error)
    return story.history


def tables_story(*steps: tuple[Any, ...]) -> list[str]:
    return check_tables(tables_history(*steps))


def test_tables() -> None:
    missing = (GET, FAILED, "TableNotFound: no")
    assert tables_story((CREATE, OK), (GET, OK), (DROP, OK), missing) == []
    assert tables_story((CREATE, OK), (DROP, UNKNOWN), missing) == []
    assert tables_story((CREATE, UNKNOWN), missing) == []
    assert tables_story((CREATE, OK), missing, (DROP, OK))
    assert tables_story((CREATE, OK), (DROP, FAILED, "TableNotFound: no"))


def test_a_dropped_table_does_not_show_again_not_even_empty() -> None:
    dropped = (CREATE, OK), (DROP, OK)
    assert tables_story(*dropped, (CREATE, OK, 2), (GET, OK, 2)) == []
    assert tables_story(*dropped, (GET, FAILED, "Unavailable: no")) == []
    assert tables_story(*dropped, (GET, OK))
    assert tables_story(*dropped, (SCAN, OK))
    assert tables_story(*dropped, (CREATE, FAILED, "TableExists: with another split", 2))
    assert tables_story(*dropped, (CREATE, FAILED, "Unavailable: table 't' is being dropped", 2))


def test_what_stands_in_the_end() -> None:
    def judged(standing: str, *steps: tuple[Any, ...]) -> list[str]:
        return check_standing(tables_history(*steps), standing.split())

    assert judged("load", (CREATE, OK), (DROP, OK)) == []
    assert judged("load t", (CREATE, OK), (DROP, OK), (CREATE, OK, 2)) == []
    assert judged("load t", (CREATE, OK), (DROP, OK))
    assert judged("load", (CREATE, OK), (DROP, OK), (CREATE, OK, 2))
    for standing in ("load", "load t"):
        assert judged(standing, (CREATE, OK), (DROP, UNKNOWN)) == []
        assert judged(standing, (CREATE, UNKNOWN)) == []
        assert (
            judged(standing, (CREATE, OK), (DROP, OK), (CREATE, FAILED, "Unavailable: not served", 2)) == []
        )


def test_deadlines() -> None:
    story = Story()
    story.put(10, {"v": 1})
    assert check_deadlines(story.history, 0.5, 0.6) == []
    assert check_deadlines(story.history, 0.5, 0.4)


def test_everything_is_asked() -> None:
    story = Story()
    story.put(10, {"v": 1})
    story.read(None)
    reports = check_history(story.history)
    assert any("linearizable" in report for report in reports)
    assert any("is lost" in report for report in reports)
    assert len(check_history(story.history, has_final_reads=False)) == 1


# ---------------------------------------------------------------------------- the committed log


def entry(index: int, version: int, value: str = "v", epoch: int = 1, seq: int | None = None) -> Entry:
    row = join_row(version, encode_columns({"v": value}))
    group = [b"client", 1, 0, [index if seq is None else seq], [SCHEMA.encode(KEY)], [row]]
    return Entry.create(TABLET, epoch, index, version, [group])


def log_of(*entries: Entry) -> Callable[[int], Entry | None]:
    return {e.index: e for e in entries}.get


def test_every_state_is_a_prefix_of_the_next() -> None:
    oracle = PrefixOracle()
    one, two = entry(1, 10), entry(2, 11)
    oracle.observe(TABLET, "n1", 2, log_of(one, two))
    oracle.observe(TABLET, "n2", 1, log_of(one))
    oracle.observe(TABLET, "n2", 2, log_of(one, two))
    with pytest.raises(Violation, match="went back"):
        oracle.observe(TABLET, "n2", 1, log_of(one))
    oracle.crashed("n2")
    oracle.observe(TABLET, "n2", 1, log_of(one))
    with pytest.raises(Violation, match="where n1 committed"):
        oracle.observe(TABLET, "n2", 2, log_of(one, entry(2, 12, "other", epoch=2)))
    oracle.dropped(TABLET)
    oracle.observe(TABLET, "n2", 1, log_of(entry(1, 5)))


def test_a_copy_that_starts_anew_is_compared_anew() -> None:
    oracle = PrefixOracle()
    oracle.observe(TABLET, "n1", 1, log_of(entry(1, 10)), copy=1)
    with pytest.raises(Violation, match="where n1 committed"):
        oracle.observe(TABLET, "n1", 1, log_of(entry(1, 10, "other")), copy=2)


def test_commits_without_gap_and_with_rising_versions() -> None:
    for second, what in [
        (entry(3, 12), "of which nobody knows"),
        (entry(2, 10), "has version 10 after 10"),
        (entry(2, 11, seq=1), "ran at 1 and at 2"),
    ]:
        oracle = PrefixOracle()
        with pytest.raises(Violation, match=what):
            oracle.observe(TABLET, "n1", second.index, log_of(entry(1, 10), second))


def test_who_may_answer_holds_what_was_exposed() -> None:
    oracle = PrefixOracle()
    oracle.observe(TABLET, "n1", 2, log_of(entry(1, 10), entry(2, 11)))
    oracle.exposed(TABLET, 2)
    oracle.may_answer(TABLET, "n2", 2, lambda _: 1)
    with pytest.raises(Violation, match="from 1 entries, but 2"):
        oracle.may_answer(TABLET, "n2", 1, lambda _: 1)
    with pytest.raises(Violation, match="epoch 2 at 2"):
        oracle.may_answer(TABLET, "n2", 2, lambda _: 2)


def test_no_read_of_uncommitted_data() -> None:
    oracle = ClusterOracle()
    oracle.prefix.observe(TABLET, "n1", 1, log_of(entry(1, 10, "one")))
    table = TableDefinition(1, "load", SCHEMA, (TabletRange(TABLET, b"", None),))
    committed = oracle.committed_rows([table])
    assert committed == {("load", KEY): {10: {"v": "one"}}}

    def judged(version: int, value: str) -> bool:
        story = Story()
        story.read(version, {"v": value})
        return check_reads_committed(story.history, committed, ["load"]) == []

    assert judged(10, "one")
    assert not judged(10, "two") and not judged(11, "one")


# ----------------------------------------------------------------------------------- stored copies


def engine(rows: dict[bytes, bytes], entries: list[Entry], applied: int) -> MemoryEngine:
    made = MemoryEngine()
    made.open()
    batch = Batch(meta={TABLET: CopyMeta(1, applied=applied).encode()})
    batch.rows = [(TABLET, key, row) for key, row in rows.items()]
    batch.log = [(TABLET, e.index, e.record) for e in entries]
    made.commit(batch)
    return made


def test_stored_copies_are_compared_byte_for_byte() -> None:
    one, two = entry(1, 10, "one"), entry(2, 11, "two")
    rows = dict(two.changes())
    assert all(row is not None for row in rows.values())
    applied = engine({key: row for key, row in rows.items() if row is not None}, [one, two], 2)
    behind = engine({key: row for key, row in one.changes() if row is not None}, [two], 1)
    assert compare_engines({"n1": applied, "n2": behind}, [TABLET]) == []
    wrong = engine({key: row for key, row in one.changes() if row is not None}, [one, two], 2)
    assert any("rows" in report for report in compare_engines({"n1": applied, "n2": wrong}, [TABLET]))
    shorter = engine({key: row for key, row in one.changes() if row is not None}, [one], 1)
    assert any("logs end" in report for report in compare_engines({"n1": applied, "n2": shorter}, [TABLET]))
    other = engine({}, [one, entry(2, 11, "two", epoch=2)], 0)
    assert any("log 2" in report for report in compare_engines({"n1": applied, "n2": other}, [TABLET]))


# ----------------------------------------------------------------------------------------- speed


@pytest.mark.parametrize("unknown_rate", [0.0, 0.02])
def test_thousands_of_operations_on_one_key(unknown_rate: float) -> None:
    events = random_history(random.Random(1), 6_000, unknown_rate, corrupt=False)
    begun = time.process_time()
    assert check_key(events) is None
    assert time.process_time() - begun < 20  # it takes about half a second
    reads = [event for event in events if event.is_read and event.version is not None]
    late = max(event.ended for event in events if event.ended != math.inf) + 2
    stale = [*events, type(reads[0])(GET, int(late) - 1, late, reads[0].version, reads[0].columns)]
    found = check_key(stale)
    assert found is not None and found.is_proven and "stale read" in found.reason


def test_a_write_that_failed_and_was_done_is_named() -> None:
    story = Story()
    story.end(story.begin("register", PUT, columns={"v": "x"}), FAILED, "Unavailable: not now")
    story.read(10, {"v": "x"})
    (report,) = check_history_keys(story.history)
    assert "no write can have left version 10" in report
    assert "not done, and yet? #0" in report


def test_a_history_of_many_keys() -> None:
    story = Story()
    for number in range(300):
        story.put(10 + number, {"v": number}, key=(number % 6, f"k{number:04d}"))
    story.end(
        story.begin("final", SCAN, None),
        rows=sorted(((n % 6, f"k{n:04d}"), 10 + n, {"v": n}) for n in range(300)),
    )
    assert check_history(story.history) == []
    assert len(events_by_key(story.history)) == 300
