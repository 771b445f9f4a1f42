"""Tables: the catalogue as this node knows it, and the operations on it.

Rules: R18 (tablets have ids that are never used twice; a drop marks every descriptor in a new epoch and returns
after every authority and lease has ended), R17 (what a failed table operation says).

A table's record in the coordination service goes through versions that never start again, also when a table of its
name is dropped and another one created. A create is bound to the version that its caller saw, a drop to the table's
id: one that arrives late finds another version, or another table, and does nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from ackord.errors import Conflict, OutcomeUnknown, TableExists, TableNotFound, Unavailable
from ackord.wire.frames import packb, unpackb
from ackord.wire.keys import KeySchema
from ackord.wire.limits import Limits
from ackord.wire.messages import TableDefinition, TabletRange, check_table_name, split_starts
from ackord.wire.options import DEFAULT_OPTIONS, TableOptions
from ackord_node.core.types import Descriptor, Timing
from ackord_node.ports import Cas, Clock, Coordination, CoordinationError
from ackord_node.runtime.placement import place

log = logging.getLogger("ackord.tables")

TABLET_BITS = 16  # a tablet's id is the table's id << 16 | its number
STOPPED_WAIT_S = 10.0  # drop waits so long for the tablets' members to confirm
SERVED_WAIT_S = 15.0  # create_table waits so long for its tablets to be served
LEAVING_WAIT_S = 1.0  # ... and so long from when the node began to stop
TRIES_COUNT = 10
SERVED_LOOK_S = 0.02  # between two looks at them
AT_ONCE = 128  # descriptors that are written together
NO_RECORD = -1  # the version of the record of a name that no table ever had


@dataclass(frozen=True, slots=True)
class TableRecord:
    """What the coordination service holds under a name: the table, none once it was dropped, and a version."""

    table: TableDefinition | None
    version: int

    def not_found(self, name: str) -> TableNotFound:
        detail: dict[str, Any] = {"table": name, "record_version": self.version}
        if self.table is not None:
            detail.update(id=self.table.id, state=self.table.state)
        return TableNotFound(f"there is no table {name!r}", **detail)


class Catalogue:
    """``tables`` holds what stands now; ``descriptors`` what was last seen of each tablet."""

    def __init__(
        self,
        coordination: Coordination,
        clock: Clock,
        limits: Limits,
        timing: Timing,
        nodes: list[str],
        replicas_count: int,
        min_in_sync: int,
    ) -> None:
        self._coordination = coordination
        self._clock = clock
        self._limits = limits
        self._timing = timing
        self._nodes = nodes
        self._replicas_count = replicas_count
        self._min_in_sync = min_in_sync
        self.tables: dict[str, TableDefinition] = {}
        self._tables_by_id: dict[int, TableDefinition] = {}
        self.descriptors: dict[int, tuple[Descriptor, int]] = {}
        self.version = 0  # grows at every change of a descriptor or a table
        self.on_refresh: Callable[[], None] = lambda: None
        self._leaving_since: float | None = None
        self._reading = asyncio.Lock()
        self._refreshing = asyncio.Lock()
        self._reads_begun = self._reads_done = 0
        self.has_stopped: Callable[[str, int, int], Awaitable[bool]]  # (node, tablet, epoch), set by the node

    # -------------------------------------------------------------------------------- reading

    async def find(self, name: str, is_ours: Callable[[], Awaitable[bool]]) -> TableDefinition:
        """The table. That there is none is an answer from the state of the whole cluster, which this node may not
        have seen yet, so the coordination service (if it ``is_ours``) is asked first."""
        if name not in self.tables:
            await self.read_again(is_ours)
        found = self.tables.get(name)
        if found is None:
            raise TableNotFound(f"there is no table {name!r}", table=name)
        return found

    async def describe(self, name: str, is_ours: Callable[[], Awaitable[bool]]) -> TableRecord:
        """The table that stands, whatever this node has seen yet. TableNotFound tells the record's version too, and
        the id of a table that is being dropped."""
        try:
            await _check_ours(is_ours)
            record = await self._read_record(name)
        except CoordinationError as error:
            raise _not_known(error) from error
        if record.table is None or record.table.state != "active":
            raise record.not_found(name)
        return record

    async def read_again(self, is_ours: Callable[[], Awaitable[bool]]) -> None:
        """Afterwards ``tables`` reflects every table operation that was acknowledged before this was called."""
        try:
            await self._read_once_more(is_ours)
        except CoordinationError as error:
            raise _not_known(error) from error

    async def _read_once_more(self, is_ours: Callable[[], Awaitable[bool]]) -> None:
        """One read that begins after this was called, shared by all who wait for one."""
        begun_before = self._reads_begun
        async with self._reading:
            if self._reads_done > begun_before:
                return
            self._reads_begun += 1
            number = self._reads_begun
            await _check_ours(is_ours)
            await self.refresh()
            self._reads_done = number

    async def _read_record(self, name: str) -> TableRecord:
        found = await self._coordination.table(name)
        if found is None:
            return TableRecord(None, NO_RECORD)
        data, version = found
        return TableRecord(TableDefinition.from_wire(unpackb(data), self._limits) if data else None, version)

    def tablet(self, tablet: int) -> TableDefinition | None:
        return self._tables_by_id.get(tablet >> TABLET_BITS)

    def descriptor_seen(self, tablet: int, descriptor: Descriptor, version: int) -> bool:
        known = self.descriptors.get(tablet)
        if known is not None and (known[0].epoch, known[1]) >= (descriptor.epoch, version):
            return False
        self.descriptors[tablet] = (descriptor, version)
        self.touch()
        return True

    def touch(self) -> None:
        self.version += 1

    def leave(self) -> None:
        """The node stops. It opens no more copies, so nobody here shall wait for one, nor hold up the node's end."""
        self._leaving_since = self._clock.now()
        self.touch()

    async def refresh(self) -> None:
        """Reads the tables that stand; one read after another, so that none brings an older state back."""
        async with self._refreshing:
            found = await self._coordination.tables()
            tables: dict[str, TableDefinition] = {}
            for name, (data, _) in found.items():
                definition = TableDefinition.from_wire(unpackb(data), self._limits)
                if definition.state == "active":
                    tables[name] = definition
            if tables != self.tables:
                self.tables = tables
                self._tables_by_id = {t.id: t for t in tables.values()}
                self.touch()
            self.on_refresh()

    # ------------------------------------------------------------------------------- changing

    async def create(
        self,
        name: str,
        key: list[list[str]],
        split_at: list[Any],
        options: TableOptions = DEFAULT_OPTIONS,
        if_record_version: int | None = None,
    ) -> TableDefinition:
        """The table that stands then. It is created only from the record's version that is named (if one is), or
        else from the one that is read first: Conflict if the record has gone on and no table stands."""
        check_table_name(name, self._limits)
        schema = KeySchema.from_wire(key, self._limits.key_column_bytes)
        starts = split_starts(schema, split_at, self._limits)
        async with _Certainty(f"create table {name!r}") as certainty:
            record = await self._standing(name, if_record_version)
            if record.table is None:
                self._check_room()
                definition = await self._record(name, schema, starts, options)
                certainty.is_sent = True
                record = await self._publish(definition, record.version)
            standing = _check_same(record, schema, starts, options)
            await self.refresh()
            await self._wait_served(standing, certainty.is_sent)
            return standing

    async def _standing(self, name: str, if_record_version: int | None) -> TableRecord:
        """The record, if a table may be created from it or one stands."""
        record = await self._read_record(name)
        if record.table is not None and record.table.state == "active":
            return record
        if if_record_version is not None and record.version != if_record_version:
            raise Conflict(
                f"the record of table {name!r} has version {record.version}, not {if_record_version}: tables of that "
                "name came or went meanwhile",
                reason="record_version",
                record_version=record.version,
            )
        if record.table is not None:
            raise Unavailable(f"table {name!r} is being dropped", reason="dropping", retry_after_ms=1000)
        return record

    def _check_room(self) -> None:
        if len(self.tables) >= self._limits.tables_count:
            raise Unavailable(
                f"there are {len(self.tables)} tables, the limit is {self._limits.tables_count}",
                reason="limit",
                limit=self._limits.tables_count,
            )

    async def _record(
        self, name: str, schema: KeySchema, starts: list[bytes], options: TableOptions
    ) -> TableDefinition:
        """Descriptors first: a table that can be seen has all of its tablets."""
        table_id = await self._coordination.next_id()
        ends: list[bytes | None] = [*starts[1:], None]
        existing = [d.replicas for d, _ in self.descriptors.values() if not d.dropped]
        orders = place(self._nodes, self._replicas_count, existing, len(starts))
        tablets = []
        newborns = []
        for number, (start, end, order) in enumerate(zip(starts, ends, orders, strict=True)):
            tablet = table_id << TABLET_BITS | number
            tablets.append(TabletRange(tablet, start, end))
            newborns.append(Descriptor(tablet, 0, None, 0, frozenset(), order, self._min_in_sync, start, end))
        for first in range(0, len(newborns), AT_ONCE):
            some = newborns[first : first + AT_ONCE]
            await asyncio.gather(*(self._record_newborn(name, newborn) for newborn in some))
        return TableDefinition(table_id, name, schema, tuple(tablets), options=options)

    async def _record_newborn(self, name: str, newborn: Descriptor) -> None:
        tablet = newborn.tablet
        outcome = await self._coordination.create_descriptor(tablet, newborn.encode())
        if outcome is not Cas.WON and await self._coordination.descriptor(tablet) is None:
            raise Unavailable(
                f"table {name!r} was not created: the coordination service did not record tablet {tablet:x}",
                reason="coordination",
                retry_after_ms=500,
            )

    async def _publish(self, definition: TableDefinition, version: int) -> TableRecord:
        """The record with the table that stands now, be it this one or another one that was faster."""
        name = definition.name
        outcome = await self._coordination.create_table(name, packb(definition.to_wire()), version)
        if outcome is Cas.WON:
            log.info("created table %s with %d tablets", name, len(definition.tablets))
            return TableRecord(definition, version + 1)
        if outcome is Cas.LOST:
            return await self._standing(name, version)
        record = await self._read_record(name)
        if record.table is None or record.table.state != "active":
            raise OutcomeUnknown(
                f"table {name!r} may still come to stand; look with list_tables, then try again",
                reason="coordination",
            )
        return record

    async def _wait_served(self, definition: TableDefinition, is_new: bool) -> None:
        """Until every tablet has its copies in sync; at the minimum after a third of the wait, or if this node
        stops. What fails here may have been created by this call (``is_new``), or stood before."""
        failed = OutcomeUnknown if is_new else Unavailable
        begun, left = self._clock.now(), [t.id for t in definition.tablets]
        while True:
            waited = self._clock.now() - begun
            is_patient = waited < SERVED_WAIT_S / 3 and self._leaving_since is None
            wanted = self._replicas_count if is_patient else self._min_in_sync
            left = [tablet for tablet in left if not self._is_served(tablet, wanted)]
            if not left:
                return
            if any(self._is_dropped(tablet) for tablet in left):
                raise failed(
                    f"table {definition.name!r} was dropped meanwhile", reason="dropping", retry_after_ms=1000
                )
            if waited > SERVED_WAIT_S or self._has_left():
                raise failed(
                    f"table {definition.name!r} stands, but not all of its tablets are served yet",
                    reason="not_served",
                    retry_after_ms=1000,
                )
            await asyncio.sleep(SERVED_LOOK_S)

    def _has_left(self) -> bool:
        since = self._leaving_since
        return since is not None and self._clock.now() - since > LEAVING_WAIT_S

    def _is_served(self, tablet: int, members_count: int) -> bool:
        known = self.descriptors.get(tablet)
        return (
            known is not None and known[0].coordinator is not None and len(known[0].in_sync) >= members_count
        )

    def _is_dropped(self, tablet: int) -> bool:
        known = self.descriptors.get(tablet)
        return known is not None and known[0].dropped

    async def drop(self, name: str, table_id: int | None = None) -> None:
        """Drops the table of this id, if one is named, and no other that has the name by now."""
        async with _Certainty(f"drop table {name!r}") as certainty:
            record = await self._read_record(name)
            definition = record.table
            if definition is None or (table_id is not None and table_id != definition.id):
                raise record.not_found(name)
            certainty.is_sent = True
            if definition.state == "active":
                marked = packb(replace(definition, state="dropping").to_wire())
                await self._coordination.update_table(name, marked, record.version)
            await self.refresh()
            for first in range(0, len(definition.tablets), AT_ONCE):
                some = definition.tablets[first : first + AT_ONCE]
                await asyncio.gather(*(self._stop(tablet.id) for tablet in some))
            # Authorities and leases of the old epochs end within L by their holders' clocks (R5, R6, R7).
            await asyncio.sleep(self._timing.promise)
            await self._delete(name, definition.id)
            await self.refresh()
            log.info("dropped table %s", name)

    async def _stop(self, tablet: int) -> None:
        before, epoch = await self._mark_dropped(tablet)
        await self._wait_stopped(tablet, before, epoch)

    async def _mark_dropped(self, tablet: int) -> tuple[Descriptor | None, int]:
        """The descriptor that the mark replaced (the marked one, if it stood already), and the mark's epoch."""
        for _ in range(TRIES_COUNT):
            found = await self._coordination.descriptor(tablet)
            if found is None:
                return None, 0
            descriptor = Descriptor.decode(found[0])
            if descriptor.dropped:
                return descriptor, descriptor.epoch
            marked = replace(
                descriptor, epoch=descriptor.epoch + 1, coordinator=None, incarnation=0, dropped=True
            )
            if await self._coordination.swap_descriptor(tablet, marked.encode(), found[1]) is Cas.WON:
                return descriptor, marked.epoch
        raise OutcomeUnknown(f"tablet {tablet:x} could not be marked as dropped; drop the table again")

    async def _wait_stopped(self, tablet: int, before: Descriptor | None, epoch: int) -> None:
        """Until the coordinator, or another member without which it can neither commit nor keep its authority,
        has seen the mark: one that is cut off from the coordination service would go on otherwise."""
        if before is None or not before.in_sync or (before.coordinator is None and not before.dropped):
            return  # nobody ever served it
        members = sorted(m.node for m in before.in_sync)
        begun = self._clock.now()
        while self._clock.now() - begun < STOPPED_WAIT_S:
            stopped = await asyncio.gather(*(self.has_stopped(node, tablet, epoch) for node in members))
            if any(stopped):
                return
            await asyncio.sleep(0.05)
        raise OutcomeUnknown(
            f"tablet {tablet:x} is marked as dropped, but none of {', '.join(members)} has confirmed that it stopped; "
            "drop the table again when they can be reached",
            reason="not_confirmed",
        )

    async def _delete(self, name: str, table_id: int) -> None:
        for _ in range(TRIES_COUNT):
            record = await self._read_record(name)
            if record.table is None or record.table.id != table_id:
                return
            if await self._coordination.delete_table(name, record.version) is Cas.WON:
                return
        raise OutcomeUnknown(f"table {name!r} is marked as dropped; drop it again to finish")


class _Certainty:
    """Turns the coordination service's absence into what the caller must know (rule R17)."""

    def __init__(self, what: str) -> None:
        self._what = what
        self.is_sent = False

    async def __aenter__(self) -> _Certainty:
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, CoordinationError):
            if self.is_sent:
                raise OutcomeUnknown(f"{self._what}: {error}", reason="coordination") from error
            raise Unavailable(
                f"{self._what}: the coordination service cannot be reached ({error})",
                reason="coordination",
                retry_after_ms=1000,
            ) from error


async def _check_ours(is_ours: Callable[[], Awaitable[bool]]) -> None:
    if not await is_ours():
        raise CoordinationError("the coordination service is not this cluster's")


def _not_known(error: CoordinationError) -> Unavailable:
    return Unavailable(
        f"which tables there are cannot be known now: {error}", reason="coordination", retry_after_ms=500
    )


def _check_same(
    record: TableRecord, schema: KeySchema, starts: list[bytes], options: TableOptions
) -> TableDefinition:
    """The table that stands, if it is what was asked for."""
    standing = record.table
    assert standing is not None
    if standing.key != schema or [t.start for t in standing.tablets] != starts:
        raise TableExists(
            f"table {standing.name!r} exists with another key or split: {standing.key.to_wire()}",
            table=standing.name,
            record_version=record.version,
        )
    if standing.options != options:
        raise TableExists(
            f"table {standing.name!r} exists with other options: {standing.options.to_wire()}",
            table=standing.name,
            record_version=record.version,
        )
    return standing
