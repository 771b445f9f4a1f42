"""The coordination service inside one process: for tests, the simulator and a single machine.

Several `MemoryCoordination` objects, one for each node, share one `MemoryCoordinationService`. It keeps
the promises of the port as the ZooKeeper adapter does: compare-and-sets decide (rule R1), locks and
registrations live as long as a session, an answer that was lost stays unknown. It is deterministic: it has no
tasks and no timers, and tells its listeners with `call_soon` in the order of the changes.

What a test can make happen: `expire` ends a session, `set_available` cuts nodes off, `unknown_next` loses
the answer of the next change, whether or not it was applied.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from ackord_node.ports import Cas, CoordinationError, CoordinationListener, LockAttempt


@dataclass(slots=True)
class _Versioned:
    data: bytes
    version: int = 0


@dataclass(slots=True)
class _Ephemeral:
    data: bytes
    session: int


class MemoryCoordinationService:
    """What the instances share, and the faults that a test may cause."""

    def __init__(self) -> None:
        self.record: bytes | None = None
        self.last_id = 0
        self.tables: dict[str, _Versioned] = {}
        self.descriptors: dict[int, _Versioned] = {}
        self.locks: dict[int, _Ephemeral] = {}
        self.nodes: dict[str, _Ephemeral] = {}
        self._instances: list[MemoryCoordination] = []
        self._last_session = 0

    def expire(self, instance: MemoryCoordination) -> None:
        """Ends the instance's session as the service does to one that it has not heard from: its locks and
        its registration vanish. It gets a new session at once, or when it can reach the service again."""
        instance.end_session()

    def set_available(self, is_available: bool, instance: MemoryCoordination | None = None) -> None:
        """Cuts off one instance, or all of them, or lets them reach the service again. Sessions live on."""
        for each in list(self._instances) if instance is None else [instance]:
            each.set_reachable(is_available)

    def unknown_next(self, instance: MemoryCoordination, applied: bool) -> None:
        """The answer of the instance's next compare-and-set or lock attempt is lost; ``applied`` says whether
        it took effect (provided that it would have)."""
        instance.unknown_next = applied

    def join(self, instance: MemoryCoordination) -> None:
        self._instances.append(instance)

    def leave(self, instance: MemoryCoordination) -> None:
        self._instances.remove(instance)

    def new_session(self) -> int:
        self._last_session += 1
        return self._last_session

    def drop_session(self, session: int) -> None:
        for tablet in [tablet for tablet, lock in self.locks.items() if lock.session == session]:
            del self.locks[tablet]
            self.lock_was_changed(tablet)
        names = [name for name, node in self.nodes.items() if node.session == session]
        for name in names:
            del self.nodes[name]
        if names:
            self.nodes_were_changed()

    def descriptor_was_changed(self, tablet: int) -> None:
        for instance in self._instances:
            instance.report_descriptor(tablet)

    def lock_was_changed(self, tablet: int) -> None:
        for instance in self._instances:
            instance.report_lock(tablet)

    def tables_were_changed(self) -> None:
        for instance in self._instances:
            instance.tell(lambda listener: listener.tables_changed())

    def nodes_were_changed(self) -> None:
        for instance in self._instances:
            instance.tell(lambda listener: listener.nodes_changed())


class MemoryCoordination:
    """Implements the Coordination port on a shared MemoryCoordinationService."""

    def __init__(self, service: MemoryCoordinationService, session_timeout_ms: int = 3000) -> None:
        self.session_timeout_ms: int | None = None
        self.unknown_next: bool | None = None
        self._service = service
        self._timeout_ms_wanted = session_timeout_ms
        self._listener: CoordinationListener | None = None
        self._session = 0  # 0: none
        self._is_reachable = True
        self._registration: tuple[str, bytes] | None = None
        self._followed: set[int] = set()
        self._descriptors_reported: dict[int, tuple[bytes | None, int]] = {}
        self._locks_reported: dict[int, tuple[bytes | None, bool]] = {}
        self._to_release: set[int] = set()

    async def start(self, listener: CoordinationListener) -> None:
        self._listener = listener
        self._service.join(self)
        if self._is_reachable:
            self._connect()

    async def close(self) -> None:
        if self._listener is None:
            return
        self._listener = None
        self._service.leave(self)
        if self._is_reachable:  # otherwise the session lingers until the service expires it
            session, self._session = self._session, 0
            self._service.drop_session(session)

    # ---------------------------------------------------------------- faults, from the service

    def end_session(self) -> None:
        session, self._session = self._session, 0
        if self._is_reachable:
            self.tell(lambda listener: listener.session_changed(False))
        self._to_release.clear()
        self._service.drop_session(session)
        if self._is_reachable and self._listener is not None:
            self._connect()

    def set_reachable(self, is_reachable: bool) -> None:
        if is_reachable == self._is_reachable:
            return
        self._is_reachable = is_reachable
        if self._listener is None:
            return
        if is_reachable:
            self._connect()
        else:
            self.tell(lambda listener: listener.session_changed(False))

    def _connect(self) -> None:
        """A usable session, resumed or new: everything that stands is registered and reported again."""
        if self._session == 0:
            self._session = self._service.new_session()
        self.session_timeout_ms = self._timeout_ms_wanted
        self._publish_registration()
        for tablet in sorted(self._to_release):
            self._delete_lock(tablet)
        self._to_release.clear()
        self.tell(lambda listener: listener.session_changed(True))
        self.tell(lambda listener: listener.nodes_changed())
        self.tell(lambda listener: listener.tables_changed())
        for tablet in sorted(self._followed):
            self.report_descriptor(tablet)
            self.report_lock(tablet)

    def tell(self, call: Callable[[CoordinationListener], None]) -> None:
        asyncio.get_running_loop().call_soon(self._deliver, call)

    def _deliver(self, call: Callable[[CoordinationListener], None]) -> None:
        if self._listener is not None:
            call(self._listener)

    async def _reach(self) -> None:
        await asyncio.sleep(0)
        if not self._is_reachable or self._listener is None:
            raise CoordinationError("the coordination service cannot be reached")

    # --------------------------------------------------------------------------------- cluster

    async def cluster(self) -> bytes | None:
        await self._reach()
        return self._service.record

    async def create_cluster(self, data: bytes) -> bytes:
        await self._reach()
        if self._service.record is None:
            self._service.record = data
        return self._service.record

    async def next_id(self) -> int:
        await self._reach()
        self._service.last_id += 1
        return self._service.last_id

    async def register_node(self, name: str, data: bytes) -> None:
        self._registration = (name, data)
        await self._reach()
        self._publish_registration()

    def _publish_registration(self) -> None:
        if self._registration is not None:
            name, data = self._registration
            stands = self._service.nodes.get(name)
            if stands is None or stands.session != self._session or stands.data != data:
                self._service.nodes[name] = _Ephemeral(data, self._session)
                self._service.nodes_were_changed()

    async def nodes(self) -> dict[str, bytes]:
        await self._reach()
        return {name: node.data for name, node in sorted(self._service.nodes.items())}

    # ---------------------------------------------------------------------------------- tables

    async def tables(self) -> dict[str, tuple[bytes, int]]:
        await self._reach()
        tables = sorted(self._service.tables.items())
        return {name: (table.data, table.version) for name, table in tables if table.data}

    async def table(self, name: str) -> tuple[bytes, int] | None:
        await self._reach()
        found = self._service.tables.get(name)
        return None if found is None else (found.data, found.version)

    async def create_table(self, name: str, data: bytes, version: int) -> Cas:
        await self._reach()
        stands = self._service.tables.get(name)
        return self._write_table(name, data, version, (-1 if stands is None else stands.version) == version)

    async def update_table(self, name: str, data: bytes, version: int) -> Cas:
        await self._reach()
        wins = _has_version(self._service.tables.get(name), version)
        return self._write_table(name, data, version, wins)

    def _write_table(self, name: str, data: bytes, version: int, wins: bool) -> Cas:
        def write() -> None:
            self._service.tables[name] = _Versioned(data, version + 1)
            self._service.tables_were_changed()

        return self._settle(wins, write)

    async def delete_table(self, name: str, version: int) -> Cas:
        return await self.update_table(name, b"", version)

    def _settle(self, wins: bool, apply: Callable[[], None]) -> Cas:
        applied, self.unknown_next = self.unknown_next, None
        if wins and applied is not False:
            apply()
        if applied is not None:
            return Cas.UNKNOWN
        return Cas.WON if wins else Cas.LOST

    # ----------------------------------------------------------------------------- descriptors

    async def descriptor(self, tablet: int) -> tuple[bytes, int] | None:
        await self._reach()
        found = self._service.descriptors.get(tablet)
        return None if found is None else (found.data, found.version)

    async def create_descriptor(self, tablet: int, data: bytes) -> Cas:
        def create() -> None:
            self._service.descriptors[tablet] = _Versioned(data)
            self._service.descriptor_was_changed(tablet)

        await self._reach()
        return self._settle(tablet not in self._service.descriptors, create)

    async def swap_descriptor(self, tablet: int, data: bytes, version: int) -> Cas:
        def swap() -> None:
            self._service.descriptors[tablet] = _Versioned(data, version + 1)
            self._service.descriptor_was_changed(tablet)

        await self._reach()
        return self._settle(_has_version(self._service.descriptors.get(tablet), version), swap)

    def follow(self, tablet: int) -> None:
        if tablet not in self._followed:
            self._followed.add(tablet)
            if self._session:
                self.report_descriptor(tablet)
                self.report_lock(tablet)

    def unfollow(self, tablet: int) -> None:
        self._followed.discard(tablet)
        self._descriptors_reported.pop(tablet, None)
        self._locks_reported.pop(tablet, None)

    def report_descriptor(self, tablet: int) -> None:
        if tablet not in self._followed or not self._is_reachable:
            return
        found = self._service.descriptors.get(tablet)
        data, version = (None, -1) if found is None else (found.data, found.version)
        self.tell(lambda listener: self._tell_descriptor(listener, tablet, data, version))

    def _tell_descriptor(
        self, listener: CoordinationListener, tablet: int, data: bytes | None, version: int
    ) -> None:
        if tablet in self._followed and self._descriptors_reported.get(tablet) != (data, version):
            self._descriptors_reported[tablet] = (data, version)
            listener.descriptor_changed(tablet, data, version)

    # ----------------------------------------------------------------------------------- locks

    async def acquire_lock(self, tablet: int, owner: bytes) -> LockAttempt:
        await self._reach()
        self._to_release.discard(tablet)
        lock = self._service.locks.get(tablet)
        applied, self.unknown_next = self.unknown_next, None
        if lock is None and applied is not False:
            lock = self._service.locks[tablet] = _Ephemeral(owner, self._session)
            self._service.lock_was_changed(tablet)
        if applied is not None:
            self._locks_reported.pop(tablet, None)  # told even if nothing changed
            self.report_lock(tablet)
            return LockAttempt.UNKNOWN
        return LockAttempt.HELD if lock is not None and lock.session == self._session else LockAttempt.TAKEN

    async def release_lock(self, tablet: int) -> None:
        if self._is_reachable:
            self._delete_lock(tablet)
        else:
            self._to_release.add(tablet)

    def _delete_lock(self, tablet: int) -> None:
        lock = self._service.locks.get(tablet)
        if lock is not None and lock.session == self._session:
            del self._service.locks[tablet]
            self._service.lock_was_changed(tablet)

    def report_lock(self, tablet: int) -> None:
        if tablet in self._followed and self._is_reachable:
            lock = self._service.locks.get(tablet)
            holder = None if lock is None else lock.data
            is_mine = lock is not None and lock.session == self._session
            self.tell(lambda listener: self._tell_lock(listener, tablet, holder, is_mine))

    def _tell_lock(
        self, listener: CoordinationListener, tablet: int, holder: bytes | None, is_mine: bool
    ) -> None:
        if tablet in self._followed and self._locks_reported.get(tablet) != (holder, is_mine):
            self._locks_reported[tablet] = (holder, is_mine)
            listener.lock_changed(tablet, holder, is_mine)


def _has_version(found: _Versioned | None, version: int) -> bool:
    return found is not None and found.version == version
