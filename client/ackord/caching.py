"""A table whose rows are kept in this process and read from there, linearizably (rule R19).

A node that grants a row counts this process as its holder: no write of the row is acknowledged before this process has
dropped it, or its lease has run out. So a row under a lease is what a read at the node would give. Leases count from
when this process asked for them, and are extended while rows under them are used. They are short: a process that is
frozen, or cut off, delays a write by one lease at most.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from ackord.cache import CacheOptions, CacheStats, Lease, RowCache
from ackord.expressions import Expression
from ackord.holding import Hold, KeepGroup
from ackord.operations import key_tuple
from ackord.row import Row
from ackord.table import Table
from ackord.transport import Environment

if TYPE_CHECKING:
    from ackord.batcher import Batcher
    from ackord.link import NodeLink
    from ackord.store import Store

CHECK_S: Final = (
    0.002  # hits in a row let the event loop in so often: else nobody could tell this process anything
)
RENEW_PART: Final = 0.5  # a lease that is used is extended once so much of it is over


class Caching:
    """The leases of one store, and its tables' caches."""

    def __init__(self, batcher: Batcher, environment: Environment) -> None:
        self.clock = environment.boot_now
        self._batcher = batcher
        self._environment = environment
        self._caches: dict[str, RowCache] = {}
        self._leases: dict[tuple[str, int], Lease] = {}  # (node, tablet) -> the newest
        self._by_tablet: dict[int, RowCache] = {}
        self._due: dict[tuple[str, int, int], int] = {}  # (node, tablet, number) -> the last message of it
        self._turned_at = 0.0
        self._is_closed = False
        self._lease_s_max = batcher.routing.limits.cache_lease_ms / 1000
        batcher.on_told = self.told

    def cache_of(self, table: str, options: CacheOptions) -> RowCache:
        """One for each table, whoever asks; its bounds are those of who asked first."""
        cache = self._caches.get(table)
        if cache is None:
            cache = self._caches[table] = RowCache(options, self._lease_s_max)
        return cache

    def close(self) -> None:
        """Nothing is answered from memory any more."""
        self._is_closed = True
        for cache in self._caches.values():
            cache.clear()

    # ------------------------------------------------------------------------------- granted

    def granted(self, node: str, hold: Hold, raw: bytes | None, grant: list[Any], sent_at: float) -> None:
        number, seconds, as_of = grant
        if self._is_closed:
            return
        tablet, now = hold.tablet.id, self.clock()
        cache = self._caches[hold.table.name]
        self._by_tablet[tablet] = cache
        lease = self._leases.get((node, tablet))
        if lease is None or lease.number != number:
            lease = self._leases[node, tablet] = Lease(node, tablet, number)
        self._extend(lease, seconds, sent_at, now)
        cache.keep(hold.encoded, (hold.key, hold.name), raw, lease, as_of, now)

    def _extend(self, lease: Lease, seconds: float, sent_at: float, now: float) -> None:
        """From when it was asked for: however late this comes, the node waits no longer. And never for longer than
        floors are remembered, whatever a node whose limits are other ones by now grants."""
        seconds = min(seconds, self._lease_s_max)
        until = sent_at + seconds
        if until > lease.until:
            lease.until = until
            lease.renew_at = sent_at + seconds * RENEW_PART
            lease.check_at = min(now + CHECK_S, until)

    # ---------------------------------------------------------------------------------- told

    def told(self, link: NodeLink, hold: Any, told: Any) -> None:
        """A node wants rows to be dropped."""
        (tablet, number), (seq, version, keys) = hold, told
        cache = self._by_tablet.get(tablet)
        if cache is not None:
            cache.told(keys, version, self.clock())
        if not self._due:
            self._environment.call_soon(self._answer)
        self._due[link.name, tablet, number] = seq

    def _answer(self) -> None:
        due, self._due = self._due, {}
        for (node, tablet, number), seq in due.items():
            lease = self._leases.get((node, tablet))
            if lease is None or lease.number != number:
                lease = Lease(node, tablet, number)  # none that is used any more
            lease.seq = seq
            self._keep(lease)

    def _keep(self, lease: Lease) -> None:
        """Ahead of whatever waits: writes may wait for it."""
        link = self._batcher.links.get(lease.node)
        if link is None or not link.is_up:
            return

        def extended(grant: Any, sent_at: float) -> None:
            if grant is not None and grant[0] == lease.number:
                self._extend(lease, grant[1], sent_at, self.clock())

        link.backlog.appendleft(KeepGroup(lease.tablet, lease.number, lease.seq, self.clock, extended))
        link.pump()

    # ---------------------------------------------------------------------------------- time

    def used(self, lease: Lease, now: float) -> bool:
        """A row under the lease is in use. Whether the event loop should get a turn."""
        if now >= lease.renew_at:
            lease.renew_at = now + (lease.until - now) * RENEW_PART
            self._keep(lease)
        lease.check_at = min(now + CHECK_S, lease.until)
        if now - self._turned_at < CHECK_S:
            return False
        self._turned_at = now
        return True


class CachedTable(Table):
    """A table whose ``get`` of a whole row keeps it, also that there is none, and answers from memory while its lease
    stands: as linearizable as any read, without asking a node. Everything else is done as by `Table`, and needs no
    care: this process's own writes drop what they change like everybody's.

    A row is the same object for all who read it from memory: lists and maps in it must not be changed.
    """

    __slots__ = ("_cache", "_caching", "_clock", "_names")

    def __init__(self, store: Store, name: str, caching: Caching, options: CacheOptions) -> None:
        super().__init__(store, name)
        self._caching = caching
        self._cache = caching.cache_of(name, options)
        self._names = self._cache.names
        self._clock = caching.clock

    @property
    def stats(self) -> CacheStats:
        """Hits, misses and what is kept, of all who read this table through this store."""
        return self._cache.stats

    # Not keyword-only, as `Table.get` is: CPython fills such arguments so slowly that a hit would take a fifth longer.
    async def get(
        self,
        key: Any,
        where: Expression | None = None,
        columns: Sequence[str] | None = None,
        as_of: int | None = None,
        versions: int | None = None,
        time_range: tuple[int | None, int | None] | None = None,
        timeout: float | None = None,
    ) -> Row | None:
        if where is None and columns is None and as_of is None and versions is None and time_range is None:
            try:
                kept = self._names.get(key)
            except TypeError:  # a list
                kept = None
            if kept is not None and self._clock() < kept.lease.check_at:
                self._cache.hits += 1
                kept.is_used = True
                return kept.row
            return await self._get(key, timeout)
        return await super().get(
            key,
            where=where,
            columns=columns,
            as_of=as_of,
            versions=versions,
            time_range=time_range,
            timeout=timeout,
        )

    async def _get(self, key: Any, timeout: float | None) -> Row | None:
        store, cache = self._store, self._cache
        deadline = store.deadline(timeout)
        table = store.batcher.routing.tables.get(self.name) or await store.find_table(self.name, deadline)
        encoded = table.key.encode(key)
        now = self._clock()
        kept = cache.find(encoded, key, now)
        if kept is not None:
            cache.hits += 1
            kept.is_used = True
            row = kept.row  # what it is now, whatever is told while the loop turns
            if self._caching.used(kept.lease, now):
                await asyncio.sleep(0)
            return row
        cache.misses += 1
        future = store.loop.create_future()
        hold = Hold(future, table, table.tablet_of(encoded), key_tuple(key), encoded, deadline)
        hold.keeper, hold.name = self._caching, key
        store.batcher.add(hold)
        read: Row | None = await future
        return read
