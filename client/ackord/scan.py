"""Scans: the rows of a key range in order, page by page, over all tablets that it touches.

A page is read at one tablet in one step. The next one begins where this one ended, whatever was written meanwhile:
so no row that exists throughout is skipped or comes twice. Pages are read ahead while the caller works on one, a
bounded number of them: a slow caller costs no memory, it just makes the reading wait.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ackord.calls import Count, Many, ScanAsOf
from ackord.calls import Scan as ScanPage
from ackord.errors import Error, InvalidRequest
from ackord.expressions import Expression, encode_where
from ackord.routing import TableRoute, TabletRoute
from ackord.row import Row
from ackord.versions import check_version
from ackord.wire.limits import Limits
from ackord.wire.ranges import KeyRange, is_empty, key_range, seal, unseal

if TYPE_CHECKING:
    from ackord.store import Store

PAGE_ROWS: Final = 2_000  # asked for at once: a few milliseconds of work for the node
PAGE_BYTES: Final = 1024 * 1024
READ_AHEAD_MAX: Final = 64
COUNTS_AT_ONCE: Final = 8  # tablets


@dataclass(frozen=True, slots=True)
class Bounds:
    """The keys of a scan or count, as given."""

    prefix: Any = ()
    start: Any = None
    start_after: Any = None
    end: Any = None
    end_at: Any = None

    @property
    def are_given(self) -> bool:
        return self != Bounds()

    def encode(self, table: TableRoute) -> KeyRange:
        return key_range(
            table.key,
            self.prefix,
            start=self.start,
            start_after=self.start_after,
            end=self.end,
            end_at=self.end_at,
        )


class Scan:
    """An asynchronous iterator over rows; made by ``Table.scan``. Breaking off the iteration needs no
    clean-up."""

    def __init__(
        self,
        store: Store,
        name: str,
        bounds: Bounds,
        *,
        where: Expression | None,
        columns: Sequence[str] | None,
        limit: int | None,
        reverse: bool,
        token: str | None,
        read_ahead: int,
        timeout: float | None,
        as_of: int | None = None,
    ) -> None:
        if limit is not None and (type(limit) is not int or limit < 0):
            raise InvalidRequest(
                f"limit={ascii(limit)[:60]} is not a number of rows", field="limit", value=ascii(limit)[:60]
            )
        if type(read_ahead) is not int or not 0 <= read_ahead <= READ_AHEAD_MAX:
            raise InvalidRequest(
                f"read_ahead={ascii(read_ahead)[:60]} is not 0 to {READ_AHEAD_MAX} pages",
                field="read_ahead",
                value=ascii(read_ahead)[:60],
                limit=READ_AHEAD_MAX,
            )
        has_more = reverse or where is not None or columns is not None or as_of is not None
        if token is not None and (bounds.are_given or has_more):
            raise InvalidRequest(
                "a token stands for the whole scan: beside it only limit, read_ahead and timeout may be given",
                field="token",
            )
        limits = store.batcher.routing.limits
        self._as_of = None if as_of is None else check_version("as_of", as_of)
        self._store = store
        self._name = name
        self._bounds = bounds
        self._token = token
        self._where = encode_where(where, limits)
        self._columns = check_names(columns, limits)
        self._left = limit  # rows that may still be asked for
        self._reverse = reverse
        self._read_ahead = read_ahead
        self._timeout = timeout
        self._table: TableRoute | None = None
        self._whole: KeyRange = (b"", None)
        self._start = b""  # what has not been asked for yet: start <= key < end
        self._end: bytes | None = None
        self._tablet: KeyRange = (b"", None)  # the part of it in the tablet that is being asked
        self._rows: deque[Row] = deque()  # the page that the caller works on
        self._position: KeyRange | None = (b"", None)  # what follows it, None if nothing does
        self._pages: deque[tuple[list[Any], KeyRange | None]] = (
            deque()
        )  # read ahead, each with what follows it
        self._is_asking = False
        self._is_turning = False
        self._is_exhausted = False
        self._error: Error | None = None
        self._arrived: asyncio.Future[None] | None = None  # the caller waits for it

    def __aiter__(self) -> Scan:
        return self

    async def __anext__(self) -> Row:
        while not self._rows:
            if not await self._turn_page():
                raise StopAsyncIteration
        return self._rows.popleft()

    async def rows(self) -> list[Row]:
        """All rows that are left, as a list."""
        return [row async for row in self]

    @property
    def token(self) -> str | None:
        """Where the scan stands: ``table.scan(token=...)``, also in another process, goes on with the row after
        the last one that was taken. None once there is nothing left. InvalidRequest before the first row was
        asked for."""
        if self._table is None:
            raise InvalidRequest(
                "the scan has not begun: there is no position to come back to", field="token"
            )
        left = self._left
        if left is not None:
            left += len(self._rows) + sum(len(page) // 2 for page, _ in self._pages)
        if self._rows:
            first = self._table.key.encode(self._rows[0].key)
            start, end = (self._whole[0], first + b"\x00") if self._reverse else (first, self._whole[1])
        elif self._position is not None and left != 0:
            start, end = self._position
        else:
            return None
        content = [self._table.id, self._reverse, start, end, left, self._where, self._columns, self._as_of]
        return seal("scan", content)

    # ---------------------------------------------------------------------------------- pages

    async def _turn_page(self) -> bool:
        """Takes the next page that has come or is coming; False at the end."""
        if self._is_turning:
            raise RuntimeError("another task waits for this scan's next row: a scan has one reader at a time")
        self._is_turning = True
        try:
            return await self._next_page()
        finally:
            self._is_turning = False

    async def _next_page(self) -> bool:
        if self._table is None:
            await self._begin()
        while not self._pages:
            if self._error is not None:
                error, self._error = self._error, None
                self._is_exhausted = True
                raise error
            if not self._is_asking and not self._ask():
                return False
            self._arrived = self._store.loop.create_future()
            try:
                await self._arrived
            finally:
                self._arrived = None
        assert self._table is not None
        flat, self._position = self._pages.popleft()
        self._rows.extend(map(Row, self._table.key.decode_many(flat[::2]), flat[1::2]))
        if not self._is_asking and len(self._pages) < self._read_ahead:
            self._ask()
        return True

    async def _begin(self) -> None:
        store = self._store
        table = await store.find_table(self._name, store.deadline(self._timeout))
        if self._token is None:
            self._start, self._end = self._bounds.encode(table)
        else:
            self._resume(self._token, table)
        self._whole = self._position = (self._start, self._end)
        self._table = table

    def _resume(self, token: str, table: TableRoute) -> None:
        content = unseal("scan", token)
        if not _is_position(content):
            raise InvalidRequest("token: it is damaged", field="token")
        table_id, self._reverse, self._start, self._end, left, self._where, self._columns, self._as_of = (
            content
        )
        if table_id != table.id:
            raise InvalidRequest(
                f"token: it is of another table than {self._name!r} is now", field="token", value=table_id
            )
        if self._left is None:
            self._left = left

    def _ask(self) -> bool:
        """Begins to read the next page; False if there is none."""
        assert self._table is not None
        if self._is_exhausted or self._left == 0 or is_empty((self._start, self._end)):
            self._is_exhausted = True
            return False
        store = self._store
        fresh = store.batcher.routing.tables.get(self._name)
        table = fresh if fresh is not None and fresh.id == self._table.id else self._table
        tablet, self._tablet = _part(table, self._start, self._end, self._reverse)
        many = Many(store.loop.create_future(), 1)
        kind = ScanPage if self._as_of is None else ScanAsOf
        page = kind(many.future, table, tablet, (), tablet.start, store.deadline(self._timeout), many, 0)
        if isinstance(page, ScanAsOf) and self._as_of is not None:
            page.as_of = self._as_of
        page.start, page.end = self._tablet
        page.reverse = self._reverse
        limits = store.batcher.routing.limits
        page.rows_max = min(PAGE_ROWS, limits.scan_page_rows_count)
        if self._left is not None:
            page.rows_max = min(page.rows_max, self._left)
        page.bytes_max = min(PAGE_BYTES, limits.scan_page_bytes)
        has_selection = self._where is not None or self._columns is not None
        page.selection = [self._where, self._columns] if has_selection else []
        self._is_asking = True
        this = weakref.ref(self)  # so that a scan that was broken off reads nothing more

        def taken(future: asyncio.Future[list[Any]]) -> None:
            scan = this()
            if scan is not None:
                scan._take(future)

        many.future.add_done_callback(taken)
        try:
            store.batcher.add(page)
        except Error as error:
            many.put(0, error)  # heard of in a later turn of the loop, like every answer
        return True

    def _take(self, future: asyncio.Future[list[Any]]) -> None:
        """A page has come: it waits for the caller, and the next is asked for if there is room."""
        self._is_asking = False
        (answer,) = future.result()
        if not isinstance(answer, Error) and not (_is_page(answer) and self._leads_on(answer[1])):
            answer = Error(f"the node's answer is no page of a scan: {ascii(answer)[:80]}")
        if isinstance(answer, Error):
            self._error = answer
        else:
            flat, follows = answer
            self._advance(follows)
            if self._left is not None:
                self._left -= len(flat) // 2
            position = None if self._is_exhausted else (self._start, self._end)
            if flat or (position is None and not self._pages):
                self._pages.append((flat, position))
            elif not self._pages and not self._rows:
                self._position = position
            if len(self._pages) < self._read_ahead or not flat:
                self._ask()
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    def _leads_on(self, follows: bytes | None) -> bool:
        """Whether what follows a page is less than what was asked for: else the scan would never end."""
        start, end = self._tablet
        if follows is None:
            return True
        return start <= follows and (end is None or follows < end) if self._reverse else start < follows

    def _advance(self, follows: bytes | None) -> None:
        """``follows``: where the rest of the tablet's part of the range begins (or ends, backwards)."""
        if follows is None:
            follows = self._tablet[0] if self._reverse else self._tablet[1]
        if self._reverse:
            self._end = follows
        elif follows is None:
            self._is_exhausted = True
        else:
            self._start = follows
        if self._left == 0 or is_empty((self._start, self._end)):
            self._is_exhausted = True


def _is_position(content: list[Any]) -> bool:
    """Whether a token holds what ``Scan.token`` puts into one, or what somebody made by hand."""
    if len(content) != 8:
        return False
    table, reverse, start, end, left, where, columns, as_of = content
    numbers = (0 if left is None else left, 0 if as_of is None else as_of)
    return (
        (type(table), type(reverse), type(start)) == (int, bool, bytes)
        and all(part is None or type(part) is bytes for part in (end, where))
        and all(type(number) is int and number >= 0 for number in numbers)
        and (columns is None or (type(columns) is list and all(type(name) is str for name in columns)))
    )


def _is_page(answer: Any) -> bool:
    """``[[key, row, ...], follows]``, as far as the scan relies on it; what follows it is a key or nothing."""
    flat, follows = answer if len(answer) == 2 else (None, None)
    return type(flat) is list and len(flat) % 2 == 0 and (follows is None or type(follows) is bytes)


async def count_rows(
    store: Store,
    name: str,
    bounds: Bounds,
    where: Expression | None,
    timeout: float | None,
    as_of: int | None,
) -> int:
    """How many rows of the range there are, a bounded number of tablets at a time."""
    selection: list[Any] = [encode_where(where, store.batcher.routing.limits)]
    if as_of is not None:
        selection.append(check_version("as_of", as_of))
    table = await store.find_table(name, store.deadline(timeout))
    start, end = bounds.encode(table)
    parts: list[KeyRange] = []
    while not is_empty((start, end)):
        _, part = _part(table, start, end, False)
        parts.append(part)
        if part[1] is None:
            break
        start = part[1]
    left = iter(parts)

    async def work() -> int:
        return sum([await _count_part(store, table, part, selection, timeout) for part in left])

    tasks = [store.loop.create_task(work()) for _ in range(min(COUNTS_AT_ONCE, len(parts)))]
    try:
        return sum(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


async def _count_part(
    store: Store, table: TableRoute, part: KeyRange, selection: list[Any], timeout: float | None
) -> int:
    """Of one tablet's part of the range, stretch by stretch; ``timeout`` is for each of them."""
    total = 0
    start: bytes | None = part[0]
    while start is not None:
        many = Many(store.loop.create_future(), 1)
        tablet = table.tablet_of(start)
        op = Count(many.future, table, tablet, (), start, store.deadline(timeout), many, 0)
        op.start, op.end = start, part[1]
        op.selection = selection
        store.batcher.add(op)
        (answer,) = await many.future
        if isinstance(answer, Error):
            raise answer
        found, start = answer if len(answer) == 2 else (None, None)
        leads_on = start is None or (type(start) is bytes and start > op.start)
        if type(found) is not int or not leads_on:
            raise Error(f"the node's answer is no count: {ascii(answer)[:80]}")
        total += found
    return total


def check_names(columns: Sequence[str] | None, limits: Limits) -> list[str] | None:
    """The names of a projection as on the wire; InvalidRequest."""
    if columns is None:
        return None
    if isinstance(columns, str) or any(type(name) is not str for name in columns):
        raise InvalidRequest(
            "columns must be a list of column names", field="columns", value=ascii(columns)[:60]
        )
    names = list(dict.fromkeys(columns))
    if len(names) > limits.columns_count:
        raise InvalidRequest(
            f"{len(names)} columns, over the limit of {limits.columns_count}",
            field="columns",
            value=len(names),
            limit=limits.columns_count,
        )
    return names


def _part(table: TableRoute, start: bytes, end: bytes | None, reverse: bool) -> tuple[TabletRoute, KeyRange]:
    """The tablet in which a range begins (ends, backwards), and its part of the range."""
    if reverse:
        tablet = [t for t in table.tablets if end is None or t.start < end][-1]
    else:
        tablet = table.tablet_of(start)
    ends = [bound for bound in (end, tablet.end) if bound is not None]
    return tablet, (max(start, tablet.start), min(ends) if ends else None)
