"""Scans: the rows of a key range in order, page by page, over all tablets that it touches.

A page is read at one tablet in one step. The next one begins right after the last key of this one (before it,
backwards), whatever was written meanwhile: so no row that exists throughout is skipped or comes twice. While
the caller works on a page, the next is being read.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from ackord.calls import Many
from ackord.calls import Scan as ScanPage
from ackord.errors import Error, InvalidRequest
from ackord.routing import TableRoute
from ackord.row import Row

if TYPE_CHECKING:
    from ackord.store import Store


class Scan:
    """An asynchronous iterator over rows; made by ``Table.scan``. Breaking off the iteration needs no
    clean-up."""

    def __init__(
        self,
        store: Store,
        name: str,
        prefix: Any,
        start: Any,
        end: Any,
        limit: int | None,
        reverse: bool,
        timeout: float | None,
    ) -> None:
        if limit is not None and (type(limit) is not int or limit < 0):
            raise InvalidRequest(
                f"limit={ascii(limit)[:60]} is not a number of rows", field="limit", value=ascii(limit)[:60]
            )
        self._store = store
        self._name = name
        self._range = (prefix, start, end)
        self._left = limit  # rows that may still come
        self._reverse = reverse
        self._timeout = timeout
        self._table: TableRoute | None = None
        self._start = b""  # what has not been asked for yet: start <= key < end
        self._end: bytes | None = None
        self._rows: deque[Row] = deque()
        self._next: Many | None = None  # the page that is being read
        self._next_end: tuple[bytes, bytes | None] = (b"", None)  # its tablet's part of the range
        self._is_exhausted = False

    def __aiter__(self) -> Scan:
        return self

    async def __anext__(self) -> Row:
        while not self._rows:
            if self._left == 0 or (self._is_exhausted and self._next is None):
                raise StopAsyncIteration
            await self._take_page()
        if self._left is not None:
            self._left -= 1
        return self._rows.popleft()

    async def rows(self) -> list[Row]:
        """All rows that are left, as a list."""
        return [row async for row in self]

    async def _take_page(self) -> None:
        if self._table is None:
            await self._begin()
        if self._next is None:
            self._ask()
            if self._next is None:
                return
        many, self._next = self._next, None
        try:
            (page,) = await many.future
        except asyncio.CancelledError:
            self._is_exhausted = True
            raise
        if isinstance(page, Error):
            self._is_exhausted = True
            raise page
        self._advance(page)

    async def _begin(self) -> None:
        store = self._store
        self._table = await store.find_table(self._name, store.deadline(self._timeout))
        schema = self._table.key
        prefix, start, end = self._range
        self._start, self._end = schema.prefix_range(prefix)
        if start is not None:
            self._start = max(self._start, schema.encode_prefix(start))
        if end is not None:
            bound = schema.encode_prefix(end)
            self._end = bound if self._end is None else min(self._end, bound)

    def _advance(self, page: Any) -> None:
        """Takes a page's rows and asks for the one after it."""
        assert self._table is not None
        pairs, is_exhausted = page
        decode = self._table.key.decode
        self._rows.extend(Row(decode(key), row) for key, row in pairs)
        if pairs and not is_exhausted:
            last: bytes = pairs[-1][0]
            if self._reverse:
                self._end = last
            else:
                self._start = last + b"\x00"  # the least bytes above
        else:
            self._skip_tablet()
        if self._left is None or self._left > len(self._rows):
            self._ask()

    def _skip_tablet(self) -> None:
        """The tablet's part of the range is done."""
        start, end = self._next_end
        if self._reverse:
            self._end = start
        elif end is None:
            self._is_exhausted = True
        else:
            self._start = end

    def _ask(self) -> None:
        """Begins to read the next page, if there is any."""
        store, table = self._store, self._table
        assert table is not None
        if self._is_exhausted or (self._end is not None and self._start >= self._end):
            self._is_exhausted = True
            return
        fresh = store.batcher.routing.tables.get(self._name)
        if fresh is not None and fresh.id == table.id:
            table = fresh
        if self._reverse:
            last = [t for t in table.tablets if self._end is None or t.start < self._end]
            tablet = last[-1]
        else:
            tablet = table.tablet_of(self._start)
        start = max(self._start, tablet.start)
        ends = [end for end in (self._end, tablet.end) if end is not None]
        end = min(ends) if ends else None
        limits = store.batcher.routing.limits
        many = Many(store.loop.create_future(), 1)
        page = ScanPage(many.future, table, tablet, (), tablet.start, store.deadline(self._timeout), many, 0)
        page.start, page.end, page.reverse = start, end, self._reverse
        page.rows_max = limits.scan_page_rows_count
        if self._left is not None:
            page.rows_max = min(page.rows_max, self._left - len(self._rows))
        page.bytes_max = limits.scan_page_bytes
        self._next, self._next_end = many, (start, end)
        try:
            store.batcher.add(page)
        except Error as error:
            many.put(0, error)
