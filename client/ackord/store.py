"""The store: one program's access to one cluster. ``connect`` makes it; it lives on one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal, overload
from urllib.parse import urlsplit

from ackord.admin import Admin
from ackord.batcher import Batcher
from ackord.cache import CacheOptions
from ackord.caching import CachedTable, Caching
from ackord.calls import QueueOptions
from ackord.errors import Error, InvalidRequest, TableNotFound, Unauthorized, Unavailable
from ackord.routing import NodeChooser, RoutingTable, TableRoute, backoff_s
from ackord.table import Table
from ackord.transport import AsyncioEnvironment, Environment, HttpTransport, Transport, error_of_body
from ackord.wire.keys import AUTO, Auto, KeySchema
from ackord.wire.messages import TableDefinition, check_table_name, split_starts
from ackord.wire.options import DEFAULT_OPTIONS, TableOptions

REFRESH_INTERVAL_S: Final = 0.1  # between two fetches of the routing table, at least
REFRESH_TIMEOUT_S: Final = 1.0  # for one node's answer
KEY_TYPE_NAMES: Final = {int: "int", str: "str", bytes: "bytes"}


def connect(
    urls: str | Iterable[str],
    *,
    timeout: float = 10.0,
    reads: str = "any",
    queue: QueueOptions | None = None,
    transport: Transport | None = None,
    environment: Environment | None = None,
) -> Connecting:
    """Connects to a cluster: ``async with connect(...) as store`` or ``store = await connect(...)``.

    ``urls``: one or more nodes, as a list or joined by commas; one that answers is enough, the others are
    learned. ``timeout``: seconds, for connecting and as the default of every call. ``reads``: "any" (the
    nearest in-sync replica), "round_robin" (all in turn), "coordinator", or "node:NAME"; all are
    linearizable. ``queue``: bounds on what may be under way. ``transport`` and ``environment`` replace the
    network and the clock, for simulations.

    Raises InvalidRequest for arguments that cannot work, Unavailable if no node answered in time.
    """
    return Connecting(
        node_urls(urls),
        _seconds(timeout),
        NodeChooser(reads),
        queue or QueueOptions(),
        transport,
        environment,
    )


class Connecting:
    """What ``connect`` returns: to be awaited or entered, once."""

    def __init__(
        self,
        urls: list[str],
        timeout: float,
        chooser: NodeChooser,
        queue: QueueOptions,
        transport: Transport | None,
        environment: Environment | None,
    ) -> None:
        self._arguments = (urls, timeout, chooser, queue)
        self._transport = transport
        self._environment = environment
        self._store: Store | None = None

    def __await__(self) -> Generator[Any, None, Store]:
        return self._open().__await__()

    async def __aenter__(self) -> Store:
        self._store = await self._open()
        return self._store

    async def __aexit__(self, *_: object) -> None:
        if self._store is not None:
            await self._store.close()

    async def _open(self) -> Store:
        urls, timeout, chooser, queue = self._arguments
        environment = self._environment or AsyncioEnvironment()
        transport = self._transport or HttpTransport()
        try:
            routing = await _first_routing(urls, timeout, transport, environment)
            return Store(urls, timeout, chooser, queue, transport, environment, routing)
        except BaseException:
            await transport.close()
            raise


class Store:
    """Tables and cluster. Any number of calls may run at the same time, on the event loop that made it."""

    def __init__(
        self,
        urls: list[str],
        timeout: float,
        chooser: NodeChooser,
        queue: QueueOptions,
        transport: Transport,
        environment: Environment,
        routing: RoutingTable,
    ) -> None:
        """Use ``connect``."""
        self.loop = asyncio.get_running_loop()
        self.timeout = timeout
        self._urls = urls
        self._transport = transport
        self._environment = environment
        self._now = environment.now
        self._refreshing: asyncio.Task[Error | None] | None = None
        self._confirming: dict[str, asyncio.Task[None]] = {}
        self._refreshed_at = environment.now()
        self._turn = 0
        self._is_closed = False
        self._admin = Admin(transport, environment, self._urls_in_order, lambda: self._is_closed)
        self._caching: Caching | None = None
        self.batcher = Batcher(environment, transport, routing, chooser, self._refresh_soon, queue)

    @property
    def cluster(self) -> str:
        """The cluster's name."""
        return self.batcher.routing.cluster

    async def __aenter__(self) -> Store:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends every stream and task. Calls under way end with Unavailable, or OutcomeUnknown for writes that
        were sent and not answered. Closing again does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._caching is not None:
            self._caching.close()
        tasks: list[asyncio.Task[Any]] = list(self._confirming.values())
        if self._refreshing is not None:
            tasks.append(self._refreshing)
        for task in tasks:
            task.cancel()
        try:
            if tasks:
                await asyncio.wait(tasks)
            await self.batcher.close()
        finally:
            await self._transport.close()

    # --------------------------------------------------------------------------------- tables

    @overload
    def table(self, name: str, *, cache: Literal[False] = False) -> Table: ...

    @overload
    def table(self, name: str, *, cache: Literal[True] | CacheOptions) -> CachedTable: ...

    def table(self, name: str, *, cache: bool | CacheOptions = False) -> Table:
        """A table by name; whether it exists shows at the first use. InvalidRequest if no table can be named
        so. With ``cache`` its ``get`` keeps rows in this process's memory, and stays linearizable: see
        `CachedTable`."""
        name = check_table_name(name, self.batcher.routing.limits)
        if not cache:
            return Table(self, name)
        if self._caching is None:
            self._caching = Caching(self.batcher, self._environment)
        options = cache if isinstance(cache, CacheOptions) else CacheOptions()
        return CachedTable(self, name, self._caching, options)

    async def create_table(
        self,
        name: str,
        key: Mapping[str, type | str | Auto],
        *,
        split_at: Sequence[Any] = (),
        keep_versions: int = 1,
        keep_for: float | None = None,
        ttl: float | None = None,
        max_versions: int = 1,
        timestamp_deviation: float = DEFAULT_OPTIONS.timestamp_deviation,
        merge: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> TableDefinition:
        """Creates a table with these key columns: name -> int, str or bytes; the first is the partition key. The
        last of several may be ``ackord.AUTO``: an int that the table gives to each new row, strictly increasing.
        ``split_at`` holds ascending partition-key values at which new tablets begin.

        The other options are fixed with the table. Versions of rows: the newest ``keep_versions`` and those that
        were superseded less than ``keep_for`` seconds ago can be read (``get(key, as_of=)``, ``history``). ``ttl``:
        rows expire so many seconds after their last write. ``max_versions``: timestamped cells of each column,
        whose timestamps, where a caller gives them, lie within ``timestamp_deviation`` seconds of the clock.
        ``merge``: column -> "latest", "max", "min", "sum", "union" or "append", for ``on_conflict="merge"``.

        Creating it again with the same definition returns the table that stands; TableExists if another one
        has the name. Also InvalidRequest, Unavailable, OutcomeUnknown.
        """
        limits = self.batcher.routing.limits
        columns = [[column, _type_name(kind)] for column, kind in dict(key).items()]
        split_starts(KeySchema.from_wire(columns, limits.key_column_bytes), split_at, limits)
        options = TableOptions(keep_versions, keep_for, ttl, max_versions, timestamp_deviation, merge or {})
        body: dict[str, Any] = {
            "name": check_table_name(name, limits),
            "key": columns,
            "split_at": list(split_at),
        }
        if options != DEFAULT_OPTIONS:
            body["options"] = options.to_wire()
        deadline = self.deadline(timeout)
        definition = await self._admin.create(name, body, deadline)
        await self._wait_for_table(definition, deadline)
        return definition

    async def list_tables(self, *, timeout: float | None = None) -> list[TableDefinition]:
        """All tables, by name: with every one whose creation, and without any whose drop, was acknowledged to anybody
        before."""
        return await self._admin.list_tables(self.deadline(timeout))

    async def describe_table(self, name: str, *, timeout: float | None = None) -> TableDefinition:
        """The table's key columns and tablets as they are now, like ``list_tables``; TableNotFound."""
        return await self._admin.describe(name, self.deadline(timeout))

    async def drop_table(self, name: str, *, timeout: float | None = None) -> None:
        """Deletes the table and all its rows; when it returns no node serves any of them. TableNotFound,
        Unavailable, OutcomeUnknown."""
        dropped = await self._admin.drop(name, self.deadline(timeout))
        tables = self.batcher.routing.tables
        if name in tables and tables[name].id == dropped:
            del tables[name]

    async def status(self, *, timeout: float | None = None) -> dict[str, Any]:
        """The cluster as one node sees it: nodes, tablets, coordinators, in-sync sets, lag."""
        answer = await self._admin.ask("/v1/status", self.deadline(timeout))
        if not isinstance(answer, dict):
            raise Error(f"the node's status is a {type(answer).__name__}")
        return answer

    # ------------------------------------------------------------------------- for the modules

    def deadline(self, timeout: float | None) -> float:
        """When a call that begins now must end."""
        return self._now() + (self.timeout if timeout is None else _seconds(timeout))

    def seconds_to(self, deadline: float) -> float:
        """What is left until then; a millisecond at least."""
        return max(deadline - self._now(), 0.001)

    def jitter(self) -> float:
        """Random, 0 <= jitter < 1."""
        return self._environment.jitter()

    async def sleep(self, seconds: float) -> None:
        await self._environment.sleep(seconds)

    async def find_table(self, name: str, deadline: float) -> TableRoute:
        """The table's route. A node that lags may not know the table yet: that there is none is believed only of
        a node that looked it up for this."""
        is_known_to_stand = False
        while True:
            table = self.batcher.routing.tables.get(name)
            if table is not None:
                return table
            error = await self._refresh(deadline)
            if error is None and name not in self.batcher.routing.tables:
                if is_known_to_stand and self._now() >= deadline:
                    raise Unavailable(f"no node has told where table {name!r} is in time")
                await self._admin.check_stands(name, deadline)
                is_known_to_stand = True
            elif error is not None and (not error.retriable or self._now() >= deadline):
                raise error

    # -------------------------------------------------------------------------------- routing

    def _refresh_soon(self) -> None:
        """Begins to fetch the routing table unless that is under way; not more often than the interval."""
        if self._refreshing is None and not self._is_closed:
            self._refreshing = self.loop.create_task(self._fetch_when_due())

    async def _refresh(self, deadline: float) -> Error | None:
        """One fetch; the error if it failed."""
        if self._is_closed:
            raise Unavailable("the store is closed")
        self._refresh_soon()
        assert self._refreshing is not None
        remaining = max(deadline - self._now(), 0.0)
        done, _ = await asyncio.wait([self._refreshing], timeout=remaining)
        if not done:
            return Unavailable("no node has told the routing table in time")
        (task,) = done
        return Unavailable("the store was closed") if task.cancelled() else task.result()

    async def _fetch_when_due(self) -> Error | None:
        try:
            wait_s = self._refreshed_at + REFRESH_INTERVAL_S - self._now()
            if wait_s > 0:
                await self._environment.sleep(wait_s)
            self._refreshed_at = self._now()
            error: Error = Unavailable("no node is known")
            for url in self._urls_in_order():
                try:
                    routing = await _fetch_routing(url, REFRESH_TIMEOUT_S, self._transport)
                    self._check_cluster(routing, url)
                except Error as failure:
                    error = failure
                else:
                    self.batcher.adopt(routing)
                    self._confirm(routing.doubtful)
                    return None
            return error
        finally:
            self._refreshed_at = self._now()
            self._refreshing = None

    def _confirm(self, doubtful: list[str]) -> None:
        """Tables that the newest routing table lacks stay known until a node has looked them up."""
        for name in doubtful:
            if name not in self._confirming and not self._is_closed:
                task = self._confirming[name] = self.loop.create_task(self._forget_if_gone(name))
                task.add_done_callback(partial(self._confirmed, name))

    def _confirmed(self, name: str, _: asyncio.Task[None]) -> None:
        self._confirming.pop(name, None)

    async def _forget_if_gone(self, name: str) -> None:
        try:
            await self._admin.check_stands(name, self.deadline(REFRESH_TIMEOUT_S))
        except TableNotFound:
            self.batcher.routing.tables.pop(name, None)
            self.batcher.adopt(self.batcher.routing)  # what waited for the table is told
        except Error:
            return  # the next routing table raises the question again

    def _check_cluster(self, routing: RoutingTable, url: str) -> None:
        ours = self.batcher.routing
        if (routing.cluster, routing.cluster_id) != (ours.cluster, ours.cluster_id):
            raise Unauthorized(
                f"{url} belongs to cluster {routing.cluster!r} ({routing.cluster_id}), not {ours.cluster!r} "
                f"({ours.cluster_id})"
            )

    def _urls_in_order(self) -> list[str]:
        """All nodes, a different one first each time, those that do not answer last."""
        self._turn += 1
        links = sorted(self.batcher.links.values(), key=lambda link: link.name)
        turn = self._turn % len(links) if links else 0
        links = links[turn:] + links[:turn]
        links.sort(key=lambda link: not link.is_up or link.silent_s >= REFRESH_TIMEOUT_S)
        return list(dict.fromkeys([link.url for link in links] + self._urls))

    async def _wait_for_table(self, definition: TableDefinition, deadline: float) -> None:
        """Until the routing table that calls use has the new table, or the deadline: calls look for it
        too."""
        while self._now() < deadline:
            known = self.batcher.routing.tables.get(definition.name)
            if known is not None and known.id == definition.id:
                return
            await self._refresh(deadline)


async def _first_routing(
    urls: list[str], timeout: float, transport: Transport, environment: Environment
) -> RoutingTable:
    deadline = environment.now() + timeout
    failures = 0
    reasons: dict[str, str] = {}
    while True:
        for url in urls:
            remaining = deadline - environment.now()
            try:
                return await _fetch_routing(url, max(min(remaining, timeout / len(urls)), 0.01), transport)
            except Unavailable as error:
                reasons[url] = error.message
        failures += 1
        pause_s = backoff_s(failures, environment.jitter())
        if environment.now() + pause_s >= deadline:
            raise Unavailable(
                f"no node answered within {timeout:g} s: {'; '.join(reasons.values())}", urls=urls
            )
        await environment.sleep(pause_s)


async def _fetch_routing(url: str, timeout_s: float, transport: Transport) -> RoutingTable:
    status, answer = await transport.request("GET", f"{url}/v1/routing", None, timeout_s)
    if status != 200:
        raise error_of_body(status, answer, url)
    try:
        return RoutingTable.from_wire(answer)
    except ValueError as error:
        raise Unavailable(f"{url} is no node that this SDK understands: {error}", url=url) from None


def _type_name(kind: Any) -> Any:
    if kind is AUTO:
        return "auto"
    return KEY_TYPE_NAMES.get(kind, kind) if isinstance(kind, type) else kind


def node_urls(urls: str | Iterable[str]) -> list[str]:
    """The nodes' URLs, each once, without a slash at the end; InvalidRequest names the one that is none."""
    parts: list[Any] = urls.split(",") if isinstance(urls, str) else list(urls)
    found = []
    for part in parts:
        text = part.strip() if isinstance(part, str) else ""
        text = (text if "://" in text else "http://" + text).rstrip("/")
        if not is_address(text):
            raise InvalidRequest(
                f"{ascii(part)[:80]} is not a node's address like http://127.0.0.1:7801",
                field="urls",
                value=ascii(part)[:80],
            )
        found.append(text)
    if not found:
        raise InvalidRequest("no node's address was given", field="urls", value="")
    return list(dict.fromkeys(found))


def is_address(url: str) -> bool:
    """Whether it is a scheme, a host and perhaps a port, and nothing else."""
    try:
        split = urlsplit(url)
        is_fine = split.scheme in ("http", "https") and bool(split.hostname) and split.port != 0
    except ValueError:
        return False
    return is_fine and not split.path and not any(sign in url for sign in "?#@ ")


def _seconds(timeout: Any) -> float:
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < 1e9:
        raise InvalidRequest(
            f"timeout={ascii(timeout)[:60]} is not a positive number of seconds",
            field="timeout",
            value=ascii(timeout)[:60],
        )
    return float(timeout)
