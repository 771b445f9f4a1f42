"""Reads of a row's earlier versions and of its cells: one question each, answered by any in-sync replica."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ackord.calls import Many, Query
from ackord.errors import Error, InvalidRequest
from ackord.operations import key_tuple
from ackord.row import CellRow, Row
from ackord.wire.keys import INT64_MAX, INT64_MIN
from ackord.wire.messages import OP_AS_OF, OP_CELLS, OP_HISTORY
from ackord.writing import add_one, bounded

if TYPE_CHECKING:
    from ackord.store import Store

HISTORY_COUNT: Final = 100


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a row: what it was from ``version`` on, None if it was deleted then."""

    version: int
    row: Row | None

    @property
    def is_deletion(self) -> bool:
        return self.row is None


async def read_as_of(store: Store, name: str, key: Any, as_of: int, timeout: float | None) -> Row | None:
    check_version("as_of", as_of)
    query, encoded = await _query(store, name, key, timeout)
    raw = await _ask(store, query, OP_AS_OF, [encoded], as_of)
    return None if raw is None else Row(query.key, raw)


async def read_many_as_of(
    store: Store, name: str, keys: Iterable[Any], as_of: int, timeout: float | None
) -> list[Row | None]:
    """In the order of the keys; the first row's error if there is one."""
    check_version("as_of", as_of)
    deadline = store.deadline(timeout)
    table = await store.find_table(name, deadline)
    keys_max = store.batcher.routing.limits.batch_rows_count
    wanted = [(key_tuple(key), table.key.encode(key)) for key in bounded(keys, "keys", keys_max)]
    if not wanted:
        return []
    many = Many(store.loop.create_future(), len(wanted))
    for index, (key, raw) in enumerate(wanted):
        query = Query(many.future, table, table.tablet_of(raw), key, raw, deadline, many, index)
        query.code, query.parts = OP_AS_OF, [[raw], as_of]
        add_one(store, query, many, index)
    rows: list[Row | None] = []
    for (key, _), result in zip(wanted, await many.future, strict=True):
        if isinstance(result, Error):
            raise result
        rows.append(None if result is None else Row(key, result))
    return rows


async def read_cells(
    store: Store, name: str, key: Any, versions: int | None, time_range: Any, timeout: float | None
) -> CellRow | None:
    count_max = store.batcher.routing.limits.history_rows_count
    count = count_max if versions is None else versions
    if type(count) is not int or not 1 <= count <= count_max:
        raise InvalidRequest(
            f"versions={ascii(versions)[:60]} is not a number from 1 to {count_max}",
            field="versions",
            value=ascii(versions)[:60],
            limit=count_max,
        )
    start, end = (None, None) if time_range is None else _time_range(time_range)
    query, encoded = await _query(store, name, key, timeout)
    raw = await _ask(store, query, OP_CELLS, [encoded], count, start, end)
    return None if raw is None else CellRow(query.key, raw)


async def read_history(
    store: Store, name: str, key: Any, limit: int, before: int | None, timeout: float | None
) -> list[Version]:
    if type(limit) is not int or limit < 1:
        raise InvalidRequest(
            f"limit={ascii(limit)[:60]} is not a number of versions", field="limit", value=ascii(limit)[:60]
        )
    position = INT64_MAX if before is None else check_version("before", before)
    most = store.batcher.routing.limits.history_rows_count
    found: list[Version] = []
    while len(found) < limit:
        query, encoded = await _query(store, name, key, timeout)
        count = min(limit - len(found), most)
        flat, follows = await _ask(store, query, OP_HISTORY, encoded, position, count)
        for version, raw in zip(flat[::2], flat[1::2], strict=True):
            found.append(Version(version, None if raw is None else Row(query.key, raw)))
        if follows is None:
            break
        position = follows
    return found


def check_alone(as_of: Any, versions: Any, time_range: Any, where: Any, columns: Any) -> None:
    """InvalidRequest if a read of earlier versions or cells is combined with something else."""
    if where is not None or columns is not None:
        raise InvalidRequest(
            "as_of, versions and time_range cannot be combined with where or columns",
            field="where" if where is not None else "columns",
        )
    if as_of is not None and (versions is not None or time_range is not None):
        raise InvalidRequest("as_of cannot be combined with versions or time_range", field="as_of")


def check_version(field: str, version: Any) -> int:
    if type(version) is not int or not 0 <= version <= INT64_MAX:
        raise InvalidRequest(
            f"{field}={ascii(version)[:60]} is not a version (an int that a write or row returned)",
            field=field,
            value=ascii(version)[:60],
        )
    return version


def _time_range(given: Any) -> tuple[int | None, int | None]:
    bounds = tuple(given) if isinstance(given, tuple | list) else ()
    for bound in bounds:
        if bound is not None and (type(bound) is not int or not INT64_MIN < bound <= INT64_MAX):
            bounds = ()
            break
    if len(bounds) != 2:
        raise InvalidRequest(
            f"time_range={ascii(given)[:60]} is not a pair of timestamps in milliseconds, or None for no bound",
            field="time_range",
            value=ascii(given)[:60],
        )
    return bounds[0], bounds[1]


async def _query(store: Store, name: str, key: Any, timeout: float | None) -> tuple[Query, bytes]:
    deadline = store.deadline(timeout)
    table = await store.find_table(name, deadline)
    encoded = table.key.encode(key)
    future = store.loop.create_future()
    return Query(future, table, table.tablet_of(encoded), key_tuple(key), encoded, deadline), encoded


async def _ask(store: Store, query: Query, code: int, *parts: Any) -> Any:
    query.code, query.parts = code, list(parts)
    store.batcher.add(query)
    return await query.future
