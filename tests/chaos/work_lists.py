"""Lists that grow by ``update(append=...)``: each element exactly once, in an order that agrees with all answers.

A list that is long enough is left alone, and the clients go on with the next one. A read of a list is the beginning
of what it holds in the end, up to exactly the elements that were appended by then.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any, ClassVar, Final

import ackord
from tests.chaos.works import FINAL, REPORTS_MAX, Client, Work, real_time
from tests.sim.history import CONFLICT, FAILED, GET, OK, UNKNOWN, Op

TABLE_KEY: Final[dict[str, type]] = {"list": int, "generation": int}
APPEND: Final = "append"
LISTS: Final = 4
LENGTH_MAX: Final = 60


class Lists(Work):
    name: ClassVar[str] = "lists"

    async def create(self, store: ackord.Store) -> None:
        await store.create_table(self.table, TABLE_KEY, split_at=[LISTS // 2], timeout=60)

    async def step(self, client: Client) -> None:
        number = client.rng.randrange(LISTS)
        key = (number, client.memory.setdefault(number, 0))
        if client.rng.random() < 0.4:
            op = await self._get(client, key)
        else:
            op = await self._append(client, key)
        if op.columns is not None and len(op.columns["list"]) >= LENGTH_MAX:
            client.memory[number] += 1

    async def _get(self, client: Client, key: tuple[int, int]) -> Op:
        store, part = client.reader()

        async def call(op: Op, timeout_s: float) -> None:
            _note(op, await store.table(self.table).get(key, timeout=timeout_s))

        return await client.do(self, GET, key, call, is_read=True, part=part)

    async def _append(self, client: Client, key: tuple[int, int]) -> Op:
        """Now and then it returns the new row, which is a read at its moment."""
        stamp, is_returned = client.stamp(), client.rng.random() < 0.3
        table = client.store.table(self.table)

        async def call(op: Op, timeout_s: float) -> None:
            if not is_returned:
                op.version = await table.update(key, append={"list": [stamp]}, timeout=timeout_s)
                return
            written = await table.update(key, append={"list": [stamp]}, returning="new", timeout=timeout_s)
            _note(op, written.row)
            op.version = written.version

        return await client.do(self, APPEND, key, call, element=stamp)

    async def read_final(self, client: Client) -> None:
        async for row in client.store.table(self.table).scan(timeout=client.timeout_s):

            async def call(op: Op, _: float, row: ackord.Row = row) -> None:
                _note(op, row)

            await client.do(self, GET, row.key, call, is_read=True)

    def judge(self) -> list[str]:
        by_key: dict[tuple[Any, ...], list[Op]] = defaultdict(list)
        for op in self.history.ops:
            if op.key is not None:
                by_key[op.key].append(op)
        return [report for key in sorted(by_key) for report in judge_list(by_key[key])][:REPORTS_MAX]

    def tell(self) -> str:
        held = {op.key: len(_elements(op)) for op in self.history.ops if op.workload == FINAL and op.columns}
        return (
            f"{self.count(APPEND, OK)} appends acknowledged, {self.count(APPEND, UNKNOWN)} left unknown;"
            f" {sum(held.values())} elements in {len(held)} lists"
        )


def _note(op: Op, row: ackord.Row | None) -> None:
    op.version = 0 if row is None else row.version
    op.columns = {"list": [] if row is None else row["list"]}


def judge_list(ops: list[Op]) -> list[str]:
    """``ops``: all that was asked of one list, the final reads included."""
    appends = {op.args["element"]: op for op in ops if op.kind == APPEND}
    reads = [op for op in ops if op.outcome == OK and op.columns is not None]
    finals = [op for op in reads if op.workload == FINAL]
    key = ops[0].key
    if not finals:
        sure = [op for op in appends.values() if op.outcome == OK]
        return [f"the list {key} is gone, with {sure[0]}"] if sure else []
    elements = max((_elements(op) for op in finals), key=len)
    reports = [*_judge_elements(key, elements, appends), *_judge_versions(key, elements, appends)]
    where = {element: position for position, element in enumerate(elements)}
    for op in reads:
        reports += _judge_read(op, elements, appends, where)
    return [*reports, *real_time(op for op in [*appends.values(), *reads] if op.outcome == OK)]


def _elements(op: Op) -> list[int]:
    elements: list[int] = (op.columns or {})["list"]
    return elements


def _judge_elements(key: Any, elements: list[int], appends: dict[int, Op]) -> Iterator[str]:
    for element, count in Counter(elements).items():
        append = appends.get(element)
        if count > 1:
            yield f"{key} holds {element} {count} times: {append}"
        if append is None or append.outcome in (FAILED, CONFLICT):
            yield f"{key} holds {element}, which was not appended: {append}"
    held = set(elements)
    for element, append in appends.items():
        if append.outcome == OK and element not in held:
            yield f"an acknowledged append is lost: {append}"


def _judge_versions(key: Any, elements: list[int], appends: dict[int, Op]) -> Iterator[str]:
    """The order is that of the versions, and no element stands before one that was answered before it was asked."""
    latest: Op | None = None
    last: Op | None = None
    for append in (appends[element] for element in elements if element in appends):
        if append.outcome == OK:
            if last is not None and (append.version or 0) <= (last.version or 0):
                yield f"{key} holds in another order than that of versions: {last} before {append}"
            if latest is not None and (append.ended or 0) < latest.began:
                yield f"{key} holds in the wrong order: {latest} before {append}"
            last = append
        if latest is None or append.began > latest.began:
            latest = append


def _judge_read(op: Op, elements: list[int], appends: dict[int, Op], where: dict[int, int]) -> Iterator[str]:
    seen = _elements(op)
    if op.kind == APPEND and (not seen or seen[-1] != op.args["element"]):
        yield f"{op}\n    was answered with a row that does not end with it: {seen}"
    if seen != elements[: len(seen)]:
        yield f"{op}\n    saw {seen}, which is not how the list begins: {elements}"
        return
    for element, append in appends.items():
        if append.outcome != OK or element not in where:
            continue
        is_in, is_due = where[element] < len(seen), (append.version or 0) <= (op.version or 0)
        if is_in != is_due:
            yield f"{op}\n    saw version {op.version} {'with' if is_in else 'without'} {element} of {append}"
