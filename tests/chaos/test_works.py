"""The judgement of the works of whole rows: a history that is right passes, and one with a known fault is reported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.load import WORKS
from tests.chaos.work_lists import APPEND, judge_list
from tests.chaos.work_merges import MERGE, judge_row
from tests.chaos.work_transfers import AMOUNT, TRANSFER, judge_bank
from tests.chaos.work_versions import AS_OF, HISTORY
from tests.chaos.work_versions import judge_row as judge_versions
from tests.chaos.works import COLLECTED, FINAL
from tests.sim.history import CONFLICT, FAILED, GET, OK, PUT, SCAN, UNKNOWN, History, Op, read_history


class Told:
    """A history that is made by hand: one call after the other, unless a call is begun and ended by itself."""

    def __init__(self, key: tuple[Any, ...], path: Path | None = None) -> None:
        self.history = History(path)
        self.key = key

    @property
    def ops(self) -> list[Op]:
        return self.history.ops

    def begin(
        self, kind: str, *, client: str = "c1", workload: str = "w", key: Any = None, **args: Any
    ) -> Op:
        return self.history.begin(client, workload, kind, "t", key or self.key, 0.0, args)

    def end(
        self, op: Op, outcome: str = OK, version: int | None = None, columns: Any = None, note: str = ""
    ) -> Op:
        op.version, op.columns = version, columns
        self.history.end(op, outcome, 1.0, note=note)
        return op

    def did(
        self, kind: str, outcome: str = OK, version: int | None = None, columns: Any = None, **args: Any
    ) -> Op:
        note = args.pop("note", "")
        return self.end(self.begin(kind, **args), outcome, version, columns, note)


def only_report(reports: Sequence[str], *words: str) -> None:
    assert reports and any(all(word in report for word in words) for report in reports), reports


# ---------------------------------------------------------------------------------------- transfers


class Bank(Told):
    """Two accounts. ``moved`` and ``read`` are what was answered, ``journal`` is what the end shows."""

    def __init__(self, path: Path | None = None) -> None:
        super().__init__(("a",), path)
        self.journal: list[list[Any]] = []

    def moved(
        self, stamp: int, by: int, held: Sequence[int], outcome: str = OK, version: int = 0, **more: Any
    ) -> Op:
        if version:
            self.journal.append([stamp, version, [0, -by, 1, by]])
        return self.did(
            TRANSFER,
            outcome,
            version if outcome == OK else None,
            key=("a", stamp),
            moves=[(0, -by), (1, by)],
            held=list(enumerate(held)),
            **more,
        )

    def read(self, n: Sequence[int], versions: Sequence[int], by: str = "scan") -> Op:
        columns = {"accounts": [0, 1], "n": list(n), "versions": list(versions)}
        return self.did(SCAN, OK, max(versions), columns, by=by)

    def judged(self, n: Sequence[int], versions: Sequence[int]) -> list[str]:
        columns = {"accounts": [0, 1], "n": list(n), "versions": list(versions), "journal": self.journal}
        self.did(SCAN, OK, max(versions), columns, workload=FINAL, client="final n1", by="scan")
        return judge_bank(self.ops, 2)


def right_bank(path: Path | None = None) -> Bank:
    bank = Bank(path)
    bank.moved(1, 10, [AMOUNT, AMOUNT], OK, 20)
    bank.read([AMOUNT - 10, AMOUNT + 10], [20, 20])
    bank.moved(2, 5, [AMOUNT, AMOUNT], CONFLICT)
    bank.moved(3, 7, [AMOUNT - 10, AMOUNT + 10], UNKNOWN, 30)
    bank.moved(4, 7, [AMOUNT - 10, AMOUNT + 10], UNKNOWN)
    bank.read([AMOUNT - 17, AMOUNT + 17], [30, 30], by="transaction")
    return bank


def test_transfers_that_are_right(tmp_path: Path) -> None:
    bank = right_bank(tmp_path / "history.jsonl")
    assert bank.judged([AMOUNT - 17, AMOUNT + 17], [30, 30]) == []
    bank.history.close(2.0)
    again = read_history(tmp_path / "history.jsonl")
    assert judge_bank(again.ops, 2) == [], "what was written says the same"


def test_a_total_that_no_moment_had() -> None:
    bank = right_bank()
    bank.read([AMOUNT - 17, AMOUNT + 10], [30, 20])
    reports = bank.judged([AMOUNT - 17, AMOUNT + 17], [30, 30])
    only_report(reports, "hold 1993, not 2000")
    only_report(reports, "saw 1010 of version 20 in account 1")


def test_a_transfer_that_is_lost() -> None:
    bank = right_bank()
    bank.journal = bank.journal[:1]
    only_report(bank.judged([AMOUNT - 10, AMOUNT + 10], [20, 20]), "which at 30 had")
    bank = right_bank()
    bank.journal = bank.journal[1:]
    only_report(bank.judged([AMOUNT - 17, AMOUNT + 17], [30, 30]), "an acknowledged transfer is lost")


def test_a_transfer_that_was_done_twice_or_not_asked_for_or_refused() -> None:
    bank = right_bank()
    bank.journal[0][1] = 25
    only_report(bank.judged([AMOUNT - 17, AMOUNT + 17], [30, 30]), "done again, at 25")
    bank = right_bank()
    bank.journal.append([2, 40, [0, -5, 1, 5]])
    only_report(bank.judged([AMOUNT - 22, AMOUNT + 22], [40, 40]), "not done, and yet in the journal")
    bank = right_bank()
    bank.journal.append([9, 40, [0, -5, 1, 5]])
    only_report(bank.judged([AMOUNT - 22, AMOUNT + 22], [40, 40]), "nobody asked for")
    bank = right_bank()
    only_report(bank.judged([AMOUNT - 24, AMOUNT + 24], [30, 30]), f"saw {AMOUNT - 24} of version 30")


def test_a_transfer_that_did_not_read_what_the_one_before_left() -> None:
    bank = right_bank()
    bank.moved(5, 1, [AMOUNT - 10, AMOUNT + 17], OK, 40)
    only_report(
        bank.judged([AMOUNT - 18, AMOUNT + 18], [40, 40]), f"read {AMOUNT - 10} of account 0", "since 30"
    )


def test_a_read_of_the_partition_that_is_stale() -> None:
    bank = right_bank()
    bank.read([AMOUNT - 10, AMOUNT + 10], [20, 20])
    reports = bank.judged([AMOUNT - 17, AMOUNT + 17], [30, 30])
    assert len(reports) == 1 and "has version 20" in reports[0] and "had version 30" in reports[0]


def test_accounts_that_differ_between_nodes_in_the_end() -> None:
    bank = right_bank()
    bank.judged([AMOUNT - 17, AMOUNT + 17], [30, 30])
    only_report(bank.judged([AMOUNT - 10, AMOUNT + 10], [20, 20]), "two nodes differ")
    assert judge_bank(right_bank().ops, 2) == ["the journal was not read in the end"]


# -------------------------------------------------------------------------------------------- lists


class List(Told):
    def __init__(self) -> None:
        super().__init__((1, 0))

    def append(self, element: int, outcome: str = OK, version: int | None = None, columns: Any = None) -> Op:
        return self.did(APPEND, outcome, version, columns, element=element)

    def get(self, elements: Sequence[int], version: int, **more: Any) -> Op:
        return self.did(GET, OK, version, {"list": list(elements)}, **more)

    def judged(self, elements: Sequence[int], version: int) -> list[str]:
        self.get(elements, version, workload=FINAL)
        return judge_list(self.ops)


def right_list() -> List:
    told = List()
    told.append(1, OK, 10)
    told.get([1], 10)
    told.append(2, UNKNOWN)
    told.append(3, FAILED)
    told.append(4, OK, 30, {"list": [1, 2, 4]})
    return told


def test_appends_that_are_right() -> None:
    assert right_list().judged([1, 2, 4], 30) == []
    early, late = right_list(), right_list()
    late.append(5, UNKNOWN)
    assert late.judged([1, 2, 4, 5], 40) == [] == early.judged([1, 2, 4], 30)


@pytest.mark.parametrize(
    ("elements", "words"),
    [
        ([1, 2], "an acknowledged append is lost"),
        ([1, 2, 4, 4], "holds 4 2 times"),
        ([1, 2, 3, 4], "holds 3, which was not appended"),
        ([1, 2, 4, 9], "holds 9, which was not appended"),
        ([4, 1, 2], "in another order than that of versions"),
        ([1, 4, 2], "which is not how the list begins"),
    ],
)
def test_a_list_that_is_wrong_in_the_end(elements: list[int], words: str) -> None:
    only_report(right_list().judged(elements, 40), words)


def test_an_unknown_append_stands_before_one_that_was_answered_before_it_was_asked() -> None:
    told = List()
    told.append(1, OK, 10)
    told.append(2, UNKNOWN)
    only_report(told.judged([2, 1], 20), "in the wrong order")


def test_reads_of_a_list_that_are_wrong() -> None:
    told = right_list()
    told.get([1, 2], 20)
    reports = told.judged([1, 2, 4], 30)
    assert len(reports) == 1 and "after" in reports[0], "stale: 4 was acknowledged"
    told = right_list()
    told.get([1, 2], 30)
    only_report(told.judged([1, 2, 4], 30), "without 4")
    told = right_list()
    told.append(5, OK, 50, {"list": [1, 2, 4, 5, 6]})
    only_report(told.judged([1, 2, 4, 5, 6], 60), "does not end with it")
    told = right_list()
    told.append(5, OK, 30)
    only_report(told.judged([1, 2, 4, 5], 30), "has version 30", "had version 30")
    assert len(judge_list(right_list().ops)) == 1, "the whole row is gone"


# ------------------------------------------------------------------------------------------- merges


class Row(Told):
    def __init__(self) -> None:
        super().__init__((0, 0))

    def merge(self, element: int, by: int, outcome: str = OK, version: int | None = None) -> Op:
        return self.did(MERGE, outcome, version, element=element, by=by)

    def look(
        self,
        total: int,
        new: Sequence[int],
        version: int,
        gone: Sequence[int] = (),
        count: int | None = None,
        **more: Any,
    ) -> Op:
        columns = {
            "sum": total,
            "count": len(new) if count is None else count,
            "new": list(new),
            "gone": list(gone),
        }
        return self.did(GET, OK, version, columns, **more)

    def judged(self, total: int, items: Sequence[int], version: int, count: int | None = None) -> list[str]:
        self.look(total, items, version, count=count, workload=FINAL)
        return judge_row(self.ops)


def right_row() -> Row:
    row = Row()
    row.look(0, [], 5)
    row.merge(1, 10, OK, 10)
    row.look(10, [1], 10)
    row.merge(2, 20, UNKNOWN)
    row.merge(3, 30, FAILED)
    row.look(30, [2], 20, count=2)
    row.merge(4, 40, OK, 30)
    row.look(70, [1, 2, 4], 30, client="c2")
    return row


def test_merges_that_are_right() -> None:
    assert right_row().judged(70, [1, 2, 4], 30) == []
    row = right_row()
    row.merge(5, 50, UNKNOWN)
    assert row.judged(70, [1, 2, 4], 30) == []


@pytest.mark.parametrize(
    ("total", "items", "count", "words"),
    [
        (30, [1, 2], None, "an acknowledged merge is lost"),
        (110, [1, 2, 4], None, "sums up to 110, but its elements to 70"),
        (30, [1, 2, 4], None, "sums up to 30, but its elements to 70"),
        (100, [1, 2, 3, 4], None, "holds 3, which was not added"),
        (70, [1, 2, 4, 9], None, "holds 9, which was not added: None"),
        (70, [1, 2, 4], 4, "some of them twice"),
        (50, [1, 4], None, "a merge was there at 20 and not at 40"),
    ],
)
def test_a_merged_row_that_is_wrong_in_the_end(
    total: int, items: list[int], count: int | None, words: str
) -> None:
    only_report(right_row().judged(total, items, 40, count), words)


def test_reads_of_a_merged_row_that_are_wrong() -> None:
    row = right_row()
    row.look(30, [], 35, gone=[4], client="c2", count=2)
    reports = row.judged(70, [1, 2, 4], 30)
    only_report(reports, "misses", "element=4")
    only_report(reports, "holds 1 acknowledged merges, 2 were done up to 35")
    row = right_row()
    row.look(70, [4], 25, count=3)
    only_report(row.judged(70, [1, 2, 4], 30), "holds what is later than its version 25")
    row = right_row()
    row.look(30, [], 20, count=2)
    only_report(row.judged(70, [1, 2, 4], 30), "has version 20", "had version 30")
    row = right_row()
    row.merge(6, 60, OK, 30)
    only_report(row.judged(130, [1, 2, 4, 6], 30), "has version 30", "had version 30")
    assert len(judge_row(right_row().ops)) == 1, "the whole row is gone"


# ----------------------------------------------------------------------------------------- versions


class Kept(Told):
    def __init__(self) -> None:
        super().__init__((1,))

    def put(self, value: int, outcome: str = OK, version: int | None = None) -> Op:
        return self.did(PUT, outcome, version, value=value)

    def delete(self, outcome: str = OK, version: int | None = None) -> Op:
        return self.did("delete", outcome, version, value=None)

    def as_of(self, asked: int, version: int | None, value: int | None) -> Op:
        return self.did(AS_OF, OK, None, {"rows": [[1, version, value]]}, as_of=asked)

    def get(self, version: int | None, value: int | None) -> Op:
        return self.did(GET, OK, version, {"rows": [[1, version, value]]})

    def refused(self, asked: int) -> Op:
        return self.did(AS_OF, FAILED, note=COLLECTED, as_of=asked)

    def listed(self, *versions: tuple[int, int | None]) -> Op:
        return self.did(HISTORY, OK, None, {"versions": [list(one) for one in versions]})

    @property
    def judged(self) -> list[str]:
        return judge_versions(self.ops, (1,), 2)


def right_versions() -> Kept:
    kept = Kept()
    kept.put(1, OK, 10)
    kept.as_of(9, None, None)
    kept.as_of(15, 10, 1)
    kept.put(2, UNKNOWN)
    kept.get(20, 2)
    kept.listed((20, 2), (10, 1))
    kept.as_of(15, 10, 1)
    kept.delete(OK, 30)
    kept.as_of(30, None, None)
    kept.refused(15)
    kept.put(3, OK, 40)
    kept.listed((40, 3), (30, None))
    kept.as_of(35, None, None)
    return kept


def test_versions_that_are_right() -> None:
    assert right_versions().judged == []


def test_a_version_that_changes_or_is_answered_wrong() -> None:
    kept = right_versions()
    kept.as_of(25, 10, 1)
    only_report(kept.judged, "saw (10, 1) of (1,), where version 20 was the last one")
    kept = right_versions()
    kept.as_of(25, 20, 7)
    only_report(kept.judged, "saw 7 at version 20")
    kept = right_versions()
    kept.as_of(25, None, None)
    only_report(kept.judged, "saw None of (1,)")
    kept = right_versions()
    kept.as_of(15, 20, 2)
    only_report(kept.judged, "saw version 20, which is later")
    kept = right_versions()
    kept.as_of(35, 33, 9)
    only_report(kept.judged, "which nobody wrote")
    kept = right_versions()
    kept.get(45, 3)
    only_report(kept.judged, "acknowledged as 40")
    kept = right_versions()
    kept.put(5, OK, 40)
    only_report(kept.judged, "two writes at one version 40")


def test_a_version_that_is_collected_too_soon_or_comes_back() -> None:
    kept = right_versions()
    kept.refused(35)
    only_report(kept.judged, "only 1 versions are newer than 35")
    kept = right_versions()
    kept.as_of(15, 10, 1)
    only_report(kept.judged, "was answered after it had been refused")


def test_a_scan_as_of_a_version_counts_for_each_row() -> None:
    kept = right_versions()
    kept.did(SCAN, OK, None, {"rows": [[0, None, None], [1, 10, 1]]}, key=None, as_of=25)
    only_report(kept.judged, "where version 20 was the last one")


def test_histories_that_are_wrong() -> None:
    kept = right_versions()
    kept.listed((30, None), (20, 2))
    only_report(kept.judged, "without 40, which was acknowledged before")
    kept = right_versions()
    kept.listed((40, 3), (20, 2))
    only_report(kept.judged, "without [30] in between")
    kept = right_versions()
    kept.listed((40, 3))
    only_report(kept.judged, "lists only [40]")
    kept = right_versions()
    kept.listed((30, None), (40, 3))
    only_report(kept.judged, "out of order")


def test_current_reads_of_a_table_with_versions() -> None:
    kept = right_versions()
    kept.get(20, 2)
    only_report(kept.judged, "has version 20", "had version 40")
    kept = right_versions()
    kept.get(None, None)
    only_report(kept.judged, "saw no row, after")
    kept = right_versions()
    op = kept.begin(AS_OF, as_of=40)
    kept.history.end(op, FAILED, 1.0, error="InvalidRequest: as_of lies ahead")
    only_report(kept.judged, "was refused, after")


def test_every_work_has_a_name_of_its_own() -> None:
    assert all(kind.name == name for name, kind in WORKS.items()) and len(WORKS) == 4
